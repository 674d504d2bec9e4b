//! `--shard`: which share of a job's mini-batches one process works on, and how engines that start
//! many processes say so.
//!
//! Nothing that is published depends on it: a mini-batch has the same lines whoever worked on it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::exit::JobError;
use super::manifest::{MANIFEST_SCHEMA, Manifest};
use crate::store::MOST_SHARDS;

/// One of several shares of a job, counted from 1 as Jest, Playwright and nextest do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    index: u32,
    count: u32,
}

impl Shard {
    /// Shard `index` of `count`, if there is such a one.
    #[must_use]
    pub fn new(index: u32, count: u32) -> Option<Shard> {
        (0 < index && index <= count && count <= MOST_SHARDS).then_some(Shard { index, count })
    }

    /// Its number, from 1, and how many there are.
    #[must_use]
    pub fn numbers(self) -> (u32, u32) {
        (self.index, self.count)
    }

    /// Whether a mini-batch is in this share.
    #[must_use]
    pub fn has(self, batch: u64) -> bool {
        batch % u64::from(self.count) == u64::from(self.index) - 1
    }

    /// How many of the first `batches` mini-batches are in this share.
    #[must_use]
    pub fn share(self, batches: u64) -> u64 {
        let (index, count) = (u64::from(self.index), u64::from(self.count));
        (batches + count - index) / count
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

/// What `--shard` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardChoice {
    /// `i/N`.
    Named(Shard),
    /// `auto` and `auto/N`: the index from the environment, and the count too where none is given.
    Auto(Option<u32>),
}

impl FromStr for ShardChoice {
    type Err = JobError;

    fn from_str(text: &str) -> Result<ShardChoice, JobError> {
        let number = |text: &str| {
            // Not `+1`, which `parse` takes.
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse::<u32>().ok())?
        };
        let choice = match text.split_once('/') {
            None if text == "auto" => Some(ShardChoice::Auto(None)),
            None => None,
            Some(("auto", count)) => number(count)
                .filter(|count| (1..=MOST_SHARDS).contains(count))
                .map(|count| ShardChoice::Auto(Some(count))),
            Some((index, count)) => number(index)
                .zip(number(count))
                .and_then(|(index, count)| Shard::new(index, count))
                .map(ShardChoice::Named),
        };
        choice.ok_or_else(|| {
            usage(format!(
                "--shard is `{text}`; it is i/N with i from 1 to N (N at most {MOST_SHARDS}), or \
                 auto, or auto/N"
            ))
        })
    }
}

/// Refuses a number in a job file: it would be the same for all who read it.
///
/// # Errors
/// [`JobError::Usage`] that says so.
pub(super) fn check_job_file(shard: Option<&str>) -> Result<(), String> {
    match shard {
        Some(text) if !matches!(text.parse(), Ok(ShardChoice::Auto(_))) => Err(format!(
            "`shard` is `{text}`: in a job file it is \"auto\" or \"auto/N\", since every process \
             that reads the file would be the same shard (use the flag --shard {text})"
        )),
        _ => Ok(()),
    }
}

fn usage(text: String) -> JobError {
    JobError::Usage(text)
}

/// `_manifest/shards.json`: what the first array of an engine was, whose later ones may be parts of
/// it that do not say how large the whole was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardArray {
    schema: String,
    /// The engine's name here.
    engine: String,
    /// How many shards there are.
    count: u32,
    /// The index of the first of them.
    first: u32,
}

/// A shard from the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) shard: Shard,
    /// A line for people.
    pub(super) said: String,
    /// What later runs have to know, where no earlier one has left it.
    pub(super) array: Option<ShardArray>,
}

/// Where an engine's first index is.
enum First {
    Is(u32),
    /// In this variable.
    In(&'static str),
}

/// An engine that starts processes and numbers them.
struct Engine {
    name: &'static str,
    index: &'static str,
    first: First,
    count: Option<&'static str>,
    /// The count may be that of a part: Slurm counts the tasks of this submission, and those that
    /// failed in an earlier one are submitted alone.
    partly: bool,
}

const fn engine(
    name: &'static str,
    index: &'static str,
    first: u32,
    count: &'static str,
) -> Engine {
    Engine { name, index, first: First::Is(first), count: Some(count), partly: false }
}

const ENGINES: [Engine; 8] = [
    Engine {
        name: "Slurm",
        index: "SLURM_ARRAY_TASK_ID",
        first: First::In("SLURM_ARRAY_TASK_MIN"),
        count: Some("SLURM_ARRAY_TASK_COUNT"),
        partly: true,
    },
    Engine {
        name: "Kubernetes",
        index: "JOB_COMPLETION_INDEX",
        first: First::Is(0),
        count: None,
        partly: false,
    },
    // Not everywhere is there a size; then it is as with Kubernetes.
    engine("AWS Batch", "AWS_BATCH_JOB_ARRAY_INDEX", 0, "AWS_BATCH_JOB_ARRAY_SIZE"),
    engine("Google Cloud Batch", "BATCH_TASK_INDEX", 0, "BATCH_TASK_COUNT"),
    engine("Cloud Run", "CLOUD_RUN_TASK_INDEX", 0, "CLOUD_RUN_TASK_COUNT"),
    engine("GitLab", "CI_NODE_INDEX", 1, "CI_NODE_TOTAL"),
    engine("CircleCI", "CIRCLE_NODE_INDEX", 0, "CIRCLE_NODE_TOTAL"),
    engine("Buildkite", "BUILDKITE_PARALLEL_JOB", 0, "BUILDKITE_PARALLEL_JOB_COUNT"),
];

/// The environment.
type Variables<'a> = dyn Fn(&str) -> Option<String> + 'a;

fn number(variables: &Variables<'_>, name: &str) -> Result<Option<u32>, JobError> {
    match variables(name).filter(|text| !text.is_empty()) {
        None => Ok(None),
        Some(text) => text
            .parse()
            .map(Some)
            .map_err(|_| usage(format!("--shard auto: {name} is `{text}`, which is no number"))),
    }
}

/// Settles which shard is asked for.
///
/// # Errors
/// [`JobError::Usage`] when the environment does not say, or says what cannot be.
pub(super) fn settle(
    choice: ShardChoice,
    manifest: &Manifest,
    variables: &Variables<'_>,
) -> Result<Found, JobError> {
    match choice {
        ShardChoice::Named(shard) => {
            Ok(Found { shard, said: format!("shard {shard}"), array: None })
        }
        ShardChoice::Auto(count) => find(count, manifest.shards()?, variables),
    }
}

/// Finds out which shard this process is, from its environment and from what an earlier run has
/// left.
fn find(
    given: Option<u32>,
    left: Option<ShardArray>,
    variables: &Variables<'_>,
) -> Result<Found, JobError> {
    let set = |engine: &&Engine| variables(engine.index).is_some_and(|text| !text.is_empty());
    let found: Vec<&Engine> = ENGINES.iter().filter(set).collect();
    let engine = match found[..] {
        [engine] => engine,
        [] => {
            let names: Vec<&str> = ENGINES.iter().map(|engine| engine.index).collect();
            return Err(usage(format!(
                "--shard auto: no variable says which shard this is; {} are looked for (--shard \
                 i/N says it)",
                names.join(", ")
            )));
        }
        _ => {
            let names: Vec<&str> = found.iter().map(|engine| engine.index).collect();
            return Err(usage(format!(
                "--shard auto: {} are set, and only one can number the shards (--shard i/N says \
                 which this is)",
                names.join(" and ")
            )));
        }
    };
    let index = number(variables, engine.index)?.expect("it is set. This is a bug.");
    let counted = engine.count.map(|name| number(variables, name)).transpose()?.flatten();
    // What an array of another engine was says nothing about this one's.
    let fresh = left.is_none();
    let left = left.filter(|left| left.engine == engine.name);
    let array = match (&left, given, counted) {
        (_, Some(count), _) => ShardArray::of(engine, count, || {
            first_of_part(engine, count, counted, left.as_ref(), variables)
        })?,
        (Some(left), None, _) if engine.partly || counted.is_none() => left.clone(),
        (_, None, Some(count)) => {
            ShardArray::of(engine, count, || first(engine, count, variables))?
        }
        (_, None, None) => {
            let name =
                engine.count.map_or("no variable of it".to_owned(), |name| format!("no {name}"));
            return Err(usage(format!(
                "--shard auto: {} says {}={index}, and {name} how many there are (--shard auto/N \
                 says it, or --shard i/N)",
                engine.name, engine.index
            )));
        }
    };
    let ShardArray { count, first, .. } = array;
    let known = left.as_ref() == Some(&array) && counted != Some(count) && given.is_none();
    let whence = match known {
        true => ", as in the first run of this job",
        false if given.is_some() => ", as given",
        false => "",
    };
    let shard = index
        .checked_sub(first)
        .and_then(|from_zero| Shard::new(from_zero.checked_add(1)?, count))
        .ok_or_else(|| {
            usage(format!(
                "--shard auto: {}={index} is none of the {count} shards, which {} counts from \
                 {first}{whence} (another count: --shard auto/N, or --shard i/N)",
                engine.index, engine.name
            ))
        })?;
    let said = format!(
        "shard {shard}: {}, {}={index}, counted from {first}; {count} shards{whence}",
        engine.name, engine.index
    );
    let leave = fresh && (engine.partly || counted.is_none());
    Ok(Found { shard, said, array: leave.then_some(array) })
}

impl ShardArray {
    fn of(
        engine: &Engine,
        count: u32,
        first: impl FnOnce() -> Result<u32, JobError>,
    ) -> Result<ShardArray, JobError> {
        let schema = MANIFEST_SCHEMA.to_owned();
        Ok(ShardArray { schema, engine: engine.name.to_owned(), count, first: first()? })
    }
}

/// The first index of an array of so many, all of which are there.
fn first(engine: &Engine, count: u32, variables: &Variables<'_>) -> Result<u32, JobError> {
    let name = match engine.first {
        First::Is(first) => return Ok(first),
        First::In(name) => name,
    };
    let first = number(variables, name)?.ok_or_else(|| {
        usage(format!(
            "--shard auto: {} has no {name}, so nobody knows where it counts from (--shard i/N \
             says it)",
            engine.name
        ))
    })?;
    let last = number(variables, "SLURM_ARRAY_TASK_MAX")?;
    // Whoever took every tenth number would have nine of ten shards that nobody works on.
    if last
        .is_some_and(|last| last.checked_sub(first).and_then(|n| n.checked_add(1)) != Some(count))
    {
        return Err(usage(format!(
            "--shard auto: the {count} indices of this array of {} have gaps; give a range such as \
             1-{count}, or --shard i/N",
            engine.name
        )));
    }
    Ok(first)
}

/// The first index of an array of which there may be a part only.
fn first_of_part(
    engine: &Engine,
    count: u32,
    counted: Option<u32>,
    left: Option<&ShardArray>,
    variables: &Variables<'_>,
) -> Result<u32, JobError> {
    match (&engine.first, left) {
        (First::In(_), Some(left)) if counted != Some(count) => Ok(left.first),
        (First::In(_), None) if counted != Some(count) => Err(usage(format!(
            "--shard auto/{count}: this array of {} has not {count} tasks, and no earlier run of \
             this job has left where it counts from (--shard i/{count} says it)",
            engine.name
        ))),
        _ => first(engine, count, variables),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(result: Result<Found, JobError>) -> String {
        match result {
            Ok(found) => found.said,
            Err(error) => error.to_string(),
        }
    }

    fn find_in(
        given: Option<u32>,
        left: Option<ShardArray>,
        variables: &[(&str, &str)],
    ) -> Result<Found, JobError> {
        find(given, left, &|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, text)| (*text).to_owned())
        })
    }

    #[test]
    fn every_mini_batch_is_in_one_share() {
        for count in 1..9 {
            let shards: Vec<Shard> = (1..=count).filter_map(|i| Shard::new(i, count)).collect();
            assert_eq!(shards.len(), count as usize);
            for batches in 0..30 {
                for batch in 0..batches {
                    assert_eq!(shards.iter().filter(|shard| shard.has(batch)).count(), 1);
                }
                for shard in &shards {
                    let mine = (0..batches).filter(|&batch| shard.has(batch)).count() as u64;
                    assert_eq!(shard.share(batches), mine, "{shard} of {batches}");
                }
            }
        }
    }

    #[test]
    fn wrong_forms_are_refused() {
        for wrong in [
            "",
            "0/3",
            "4/3",
            "a/b",
            "1",
            "1/",
            "/3",
            "1/3/5",
            "-1/3",
            "+1/3",
            " 1/3",
            "1/0",
            "Auto",
            "auto/",
            "auto/0",
            "auto/x",
            "1/1000001",
            "auto/1000001",
            "1/99999999999",
        ] {
            let error = wrong.parse::<ShardChoice>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("--shard is `{wrong}`; it is i/N")), "{error}");
        }
        for right in ["1/1", "3/3", "1000000/1000000"] {
            let Ok(ShardChoice::Named(shard)) = right.parse() else { panic!("{right}") };
            assert_eq!(shard.to_string(), right);
        }
        assert_eq!("auto/7".parse::<ShardChoice>().unwrap(), ShardChoice::Auto(Some(7)));
        check_job_file(None).unwrap();
        check_job_file(Some("auto")).unwrap();
        check_job_file(Some("auto/200")).unwrap();
        assert!(check_job_file(Some("2/3")).unwrap_err().contains("the same shard"));
    }

    #[test]
    fn each_engine_counts_in_its_own_way() {
        let slurm = [
            ("SLURM_ARRAY_TASK_ID", "12"),
            ("SLURM_ARRAY_TASK_MIN", "10"),
            ("SLURM_ARRAY_TASK_MAX", "14"),
            ("SLURM_ARRAY_TASK_COUNT", "5"),
        ];
        let cases: &[(&str, &[(&str, &str)])] = &[
            ("Slurm", &slurm),
            ("AWS Batch", &[("AWS_BATCH_JOB_ARRAY_INDEX", "2"), ("AWS_BATCH_JOB_ARRAY_SIZE", "5")]),
            ("Google Cloud Batch", &[("BATCH_TASK_INDEX", "2"), ("BATCH_TASK_COUNT", "5")]),
            ("Cloud Run", &[("CLOUD_RUN_TASK_INDEX", "2"), ("CLOUD_RUN_TASK_COUNT", "5")]),
            ("GitLab", &[("CI_NODE_INDEX", "3"), ("CI_NODE_TOTAL", "5")]),
            ("CircleCI", &[("CIRCLE_NODE_INDEX", "2"), ("CIRCLE_NODE_TOTAL", "5")]),
            (
                "Buildkite",
                &[("BUILDKITE_PARALLEL_JOB", "2"), ("BUILDKITE_PARALLEL_JOB_COUNT", "5")],
            ),
        ];
        for (name, variables) in cases {
            let found = find_in(None, None, variables).unwrap();
            assert_eq!(found.shard.to_string(), "3/5", "{name}");
            assert!(found.said.starts_with(&format!("shard 3/5: {name}, ")), "{}", found.said);
            assert_eq!(found.array.is_some(), *name == "Slurm", "{name}");
        }
        let kubernetes = [("JOB_COMPLETION_INDEX", "2")];
        assert_eq!(find_in(Some(5), None, &kubernetes).unwrap().shard.to_string(), "3/5");
        assert_eq!(ENGINES.len(), cases.len() + 1, "a new engine is tried here");
    }

    #[test]
    fn an_index_needs_a_count() {
        for (variables, missing) in [
            (("JOB_COMPLETION_INDEX", "2"), "no variable of it"),
            (("AWS_BATCH_JOB_ARRAY_INDEX", "2"), "no AWS_BATCH_JOB_ARRAY_SIZE"),
            (("CI_NODE_INDEX", "2"), "no CI_NODE_TOTAL"),
            (("SLURM_ARRAY_TASK_ID", "2"), "no SLURM_ARRAY_TASK_COUNT"),
        ] {
            let error = text(find_in(None, None, &[variables]));
            let (name, _) = variables;
            assert!(error.contains(&format!("{name}=2")), "{error}");
            assert!(error.contains(missing) && error.contains("--shard auto/N"), "{error}");
        }
        // What the first run was told, later ones know.
        let first = find_in(Some(5), None, &[("JOB_COMPLETION_INDEX", "0")]).unwrap();
        let later = find_in(None, first.array, &[("JOB_COMPLETION_INDEX", "4")]).unwrap();
        assert_eq!(later.shard.to_string(), "5/5");
        assert!(
            later.said.ends_with("5 shards, as in the first run of this job"),
            "{}",
            later.said
        );
        assert_eq!(later.array, None);
        // A count without an index is what GitLab says of every job.
        assert!(text(find_in(None, None, &[("CI_NODE_TOTAL", "1")])).contains("CI_NODE_INDEX"));
        assert!(text(find_in(None, None, &[("CI_NODE_INDEX", "")])).contains("no variable says"));
    }

    #[test]
    fn a_part_of_an_array_keeps_the_count_of_the_whole() {
        let task = |id: &'static str, min: &'static str, max: &'static str, count: &'static str| {
            [
                ("SLURM_ARRAY_TASK_ID", id),
                ("SLURM_ARRAY_TASK_MIN", min),
                ("SLURM_ARRAY_TASK_MAX", max),
                ("SLURM_ARRAY_TASK_COUNT", count),
            ]
        };
        let whole = find_in(None, None, &task("7", "0", "199", "200")).unwrap();
        assert_eq!(whole.shard.to_string(), "8/200");
        let left = whole.array.unwrap();
        let again = find_in(None, Some(left.clone()), &task("89", "38", "89", "2")).unwrap();
        assert_eq!((again.shard.to_string().as_str(), again.array), ("90/200", None));
        let error = text(find_in(None, Some(left.clone()), &task("200", "38", "200", "2")));
        assert!(error.contains("none of the 200 shards"), "{error}");
        // Another count may be given; where it counts from is known from the first run.
        let other = find_in(Some(100), Some(left.clone()), &task("38", "38", "89", "2")).unwrap();
        assert_eq!(other.shard.to_string(), "39/100");
        let other = find_in(Some(50), Some(left), &task("38", "1", "50", "50")).unwrap();
        assert_eq!(other.shard.to_string(), "38/50");
        // Nothing is known of the whole.
        let error = text(find_in(Some(200), None, &task("38", "38", "89", "2")));
        assert!(error.contains("has not 200 tasks"), "{error}");
        let error = text(find_in(None, None, &task("38", "38", "89", "2")));
        assert!(error.contains("have gaps"), "{error}");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let twice = [("CI_NODE_INDEX", "1"), ("CI_NODE_TOTAL", "2"), ("BATCH_TASK_INDEX", "0")];
        assert!(text(find_in(None, None, &twice)).contains("only one can number the shards"));
        for (index, count) in [("0", "3"), ("4", "3"), ("4294967295", "3"), ("1", "0")] {
            let error =
                text(find_in(None, None, &[("CI_NODE_INDEX", index), ("CI_NODE_TOTAL", count)]));
            assert!(error.contains(&format!("CI_NODE_INDEX={index} is none of")), "{error}");
        }
        let error = text(find_in(None, None, &[("CI_NODE_INDEX", "one"), ("CI_NODE_TOTAL", "3")]));
        assert!(error.contains("CI_NODE_INDEX is `one`, which is no number"), "{error}");
    }
}
