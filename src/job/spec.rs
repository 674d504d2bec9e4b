//! What a job is, after every check: the only thing the runner sees.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use super::compress::Compress;
use super::exit::JobError;
use super::gate::Gate;
use super::inference::Inference;
use super::notices::Notices;
use super::plan::Caps;
use super::retry::Retry;
use super::sample::Sample;
use super::settings::Settings;
use super::shard::ShardChoice;
use super::terminal::Progress;
use crate::store::{IdentityKind, Location, Place, S3Options};

/// Where the pictures come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A folder, a picture or a list.
    Path(PathBuf),
    /// A prefix of a bucket, or a list in one.
    S3(Location),
    /// A list on standard input.
    Stdin,
}

/// When another run holds the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfLocked {
    /// Exit 11.
    Fail,
    /// Exit 0 with one line.
    Skip,
    /// Wait so long, then exit 11.
    Wait(Duration),
}

/// `--max-failures`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MaxFailures {
    /// More failed pictures than this stop the job.
    Count(u64),
    /// More than this share of the planned pictures, 0 to 1, stops the job.
    Share(f64),
}

/// A validated job.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Every setting with its default filled in: for `--print-config` and `job.json`.
    pub settings: Settings,
    /// What is asked of the model.
    pub inference: Inference,
    /// Where pictures come from.
    pub input: Input,
    /// Where results go.
    pub output: Place,
    /// How S3 is reached, if anything is there.
    pub s3: S3Options,
    /// The column of a table that holds the keys.
    pub key_column: Option<String>,
    /// `--include`.
    pub include: Vec<String>,
    /// `--exclude`.
    pub exclude: Vec<String>,
    /// Take hidden names.
    pub hidden: bool,
    /// Read links out of the tree.
    pub follow_symlinks: bool,
    /// Most pictures to plan.
    pub limit: Option<u64>,
    /// A random choice of the pictures.
    pub sample: Option<Sample>,
    /// `--since`, as given but absolute.
    pub since: Vec<String>,
    /// What tells a changed picture.
    pub identity: IdentityKind,
    /// No picture is fine.
    pub allow_empty: bool,
    /// `--max-failures`.
    pub max_failures: Option<MaxFailures>,
    /// Longest time for a mini-batch.
    pub batch_timeout: Duration,
    /// Time to finish after SIGTERM.
    pub grace: Duration,
    /// Time after which this run stops by itself.
    pub max_runtime: Option<Duration>,
    /// Which share of the mini-batches; `None` is all of them.
    pub shard: Option<ShardChoice>,
    /// What a mini-batch may hold.
    pub caps: Caps,
    /// How parts are stored.
    pub compress: Compress,
    /// Where annotated pictures go.
    pub annotate: Option<Place>,
    /// When the output is locked.
    pub if_locked: IfLocked,
    /// Do not lock.
    pub no_lock: bool,
    /// What the finished job must hold.
    pub gates: Vec<Gate>,
    /// How progress is shown.
    pub progress: Progress,
    /// What is left for other programs when a run ends.
    pub notices: Notices,
    /// The output whose failed pictures are run again; no setting, `haul retry` alone asks for it.
    pub retry: Option<Retry>,
}

impl Spec {
    /// Checks settings, one by one and against each other, and fills in the defaults.
    ///
    /// # Errors
    /// [`JobError::Usage`] naming the setting, its value and what it may be.
    pub fn new(given: Settings) -> Result<Spec, JobError> {
        let mut s = given.over(defaults());
        let inference = Inference::from_filled(&s)?;
        let need = |path: &Option<PathBuf>, name: &str, what: &str| {
            path.clone().ok_or_else(|| usage(format!("--{name} is missing: {what}")))
        };
        let input = need(&s.input, "input", "a folder, a picture, a list, or -")?;
        let output = need(&s.output, "output", "the folder for the results")?;
        // They go into job.json, which is text. Keys inside the input may be any bytes.
        let others = [s.annotate.as_ref(), s.junit.as_ref(), s.prometheus.as_ref()];
        for path in [Some(&inference.model), Some(&input), Some(&output)].into_iter().chain(others)
        {
            if let Some(path) = path.filter(|path| path.to_str().is_none()) {
                let path = path.display();
                return Err(usage(format!(
                    "`{path}` is not UTF-8; reach it by another name (a link)"
                )));
            }
        }
        let place = |path: &Path| Place::parse(path).map_err(usage);
        let annotate = s.annotate.as_deref().map(place).transpose()?;
        let place_of_output = place(&output)?;
        let input = match place(&input)? {
            _ if input == Path::new("-") => Input::Stdin,
            Place::Local(path) => Input::Path(path),
            Place::S3(location) => Input::S3(location),
        };
        let s3 = s.s3()?;
        if s.limit == Some(0) {
            return Err(usage("--limit is 0; it is at least 1".to_owned()));
        }
        match (s.sample, s.seed) {
            (Some(0), _) => return Err(usage("--sample is 0; it is at least 1".to_owned())),
            (None, Some(seed)) => {
                return Err(usage(format!("--seed is {seed}, and there is no --sample")));
            }
            (Some(_), None) => s.seed = Some(0),
            // TOML has no larger numbers, and --print-config must be able to say it.
            (Some(_), Some(seed)) if i64::try_from(seed).is_err() => {
                return Err(usage(format!("--seed is {seed}; it is at most {}", i64::MAX)));
            }
            _ => {}
        }
        if annotate.as_ref().is_some_and(|annotate| annotate.is_same(&place_of_output)) {
            let what = "--annotate is --output; give annotated pictures a folder of their own";
            return Err(usage(what.to_owned()));
        }
        let in_bucket = matches!(input, Input::S3(_));
        let default = if in_bucket { "etag" } else { "mtime" };
        s.identity.get_or_insert_with(|| default.to_owned());
        let identity = match s.identity.as_deref() {
            None => IdentityKind::Mtime,
            Some("size") => IdentityKind::Size,
            Some("etag") if in_bucket => IdentityKind::Etag,
            Some(other) if in_bucket => {
                return Err(choice("identity", other, "etag or size on S3"));
            }
            Some("mtime") => IdentityKind::Mtime,
            Some("sha256") => IdentityKind::Sha256,
            Some(other) => return Err(choice("identity", other, "mtime, size or sha256")),
        };
        let compress = match s.compress.as_deref() {
            None => Compress::None,
            Some(name) => {
                name.parse().map_err(|()| choice("compress", name, "none, gzip or zstd"))?
            }
        };
        let if_locked = match s.if_locked.as_deref() {
            None | Some("fail") => IfLocked::Fail,
            Some("skip") => IfLocked::Skip,
            Some(other) => match other.strip_prefix("wait=") {
                Some(time) => IfLocked::Wait(duration(time, "if-locked")?),
                None => return Err(choice("if-locked", other, "fail, skip or wait=TIME")),
            },
        };
        let progress = match s.progress.as_deref() {
            None | Some("auto") => Progress::Auto,
            Some("json") => Progress::Json,
            Some("none") => Progress::None,
            Some(other) => return Err(choice("progress", other, "auto, json or none")),
        };
        let notices = Notices {
            junit: s.junit.clone(),
            github: s.github == Some(true),
            prometheus: s.prometheus.clone(),
        };
        notices.check_paths(&place_of_output)?;
        let gates = s.gate.iter().flatten().map(|gate| Gate::parse(gate));
        let gates = gates.collect::<Result<_, _>>()?;
        let max_runtime =
            s.max_runtime.as_deref().map(|time| duration(time, "max-runtime")).transpose()?;
        if max_runtime.is_some_and(|time| time.is_zero()) {
            return Err(usage("--max-runtime is 0, in which nothing can be done".to_owned()));
        }
        Ok(Spec {
            inference,
            input,
            output: place_of_output,
            s3,
            key_column: s.key_column.clone(),
            include: s.include.clone().unwrap_or_default(),
            exclude: s.exclude.clone().unwrap_or_default(),
            hidden: s.hidden == Some(true),
            follow_symlinks: s.follow_symlinks == Some(true),
            limit: s.limit,
            sample: s.sample.map(|pictures| Sample { pictures, seed: s.seed.unwrap_or(0) }),
            since: s.since.clone().unwrap_or_default(),
            identity,
            allow_empty: s.allow_empty == Some(true),
            max_failures: s.max_failures.as_deref().map(max_failures).transpose()?,
            batch_timeout: duration(s.batch_timeout.as_deref().unwrap_or("1h"), "batch-timeout")?,
            grace: duration(s.grace.as_deref().unwrap_or("25s"), "grace")?,
            max_runtime,
            shard: s.shard.as_deref().map(str::parse).transpose()?,
            caps: Caps {
                payload: megabytes(s.max_payload_mb, "max-payload-mb")?,
                pictures: at_least_one(s.max_images, "max-images")?.unwrap_or(1),
            },
            compress,
            annotate,
            if_locked,
            no_lock: s.no_lock == Some(true),
            gates,
            progress,
            notices,
            retry: None,
            settings: s,
        })
    }
}

/// `yolo predict`'s defaults where it has them. A device that nobody asks for is none: versions that
/// know of no devices read the job, too.
pub(super) fn defaults() -> Settings {
    Settings {
        conf: Some(0.25),
        iou: Some(0.7),
        max_det: Some(300),
        precision: Some("auto".into()),
        agnostic: Some(false),
        square: Some(false),
        boxes: Some("pixels".into()),
        hidden: Some(false),
        follow_symlinks: Some(false),
        allow_empty: Some(false),
        truncated: Some("reject".into()),
        max_pixels: Some(100_000_000),
        max_file_mb: Some(256.0),
        max_picture_memory: Some("512MiB".into()),
        batch_timeout: Some("1h".into()),
        grace: Some("25s".into()),
        max_payload_mb: Some(100.0),
        max_images: Some(100),
        compress: Some("none".into()),
        if_locked: Some("fail".into()),
        no_lock: Some(false),
        progress: Some("auto".into()),
        github: Some(false),
        ..Settings::default()
    }
}

pub(super) fn usage(message: String) -> JobError {
    JobError::Usage(message)
}

pub(super) fn show<T: std::fmt::Display>(value: Option<T>) -> String {
    value.map_or_else(|| "missing".to_owned(), |value| value.to_string())
}

pub(super) fn choice(name: &str, given: &str, allowed: &str) -> JobError {
    usage(format!("--{name} is `{given}`; it is {allowed}"))
}

pub(super) fn megabytes(value: Option<f64>, name: &str) -> Result<u64, JobError> {
    match value {
        Some(value) if value > 0.0 && value.is_finite() => Ok((value * 1e6).round() as u64),
        other => Err(usage(format!("--{name} is {}; it is a number above 0", show(other)))),
    }
}

pub(super) fn at_least_one(value: Option<usize>, name: &str) -> Result<Option<usize>, JobError> {
    match value {
        Some(0) => Err(usage(format!("--{name} is 0; it is at least 1"))),
        other => Ok(other),
    }
}

/// A time such as `25s` or `1h30m`, or a number of seconds.
///
/// # Errors
/// [`JobError::Usage`] naming the flag.
pub fn parse_duration(text: &str, name: &str) -> Result<Duration, JobError> {
    duration(text, name)
}

/// A size such as `384MiB` or `2GB`.
///
/// # Errors
/// [`JobError::Usage`] naming the flag.
pub fn parse_size(text: &str, name: &str) -> Result<u64, JobError> {
    Ok(size(Some(text), name)?.unwrap_or_default())
}

fn duration(text: &str, name: &str) -> Result<Duration, JobError> {
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    humantime::parse_duration(text)
        .map_err(|_| usage(format!("--{name} is `{text}`; it is a time such as 25s, 90m or 1h30m")))
}

pub(super) fn size(text: Option<&str>, name: &str) -> Result<Option<u64>, JobError> {
    let parse = |text: &str| match bytesize::ByteSize::from_str(text) {
        Ok(size) if size.as_u64() > 0 => Ok(size.as_u64()),
        _ => Err(usage(format!("--{name} is `{text}`; it is a size such as 384MiB or 2GB"))),
    };
    text.map(parse).transpose()
}

fn max_failures(text: &str) -> Result<MaxFailures, JobError> {
    let parsed = match text.strip_suffix('%') {
        Some(share) => match share.trim().parse::<f64>() {
            Ok(share) if (0.0..=100.0).contains(&share) => Some(MaxFailures::Share(share / 100.0)),
            _ => None,
        },
        None => text.parse().ok().map(MaxFailures::Count),
    };
    parsed
        .ok_or_else(|| choice("max-failures", text, "a number of pictures, or a share such as 2%"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minimal() -> Settings {
        let path = |name: &str| Some(PathBuf::from(name));
        Settings {
            model: path("/m.pt"),
            input: path("/in"),
            output: path("/out"),
            ..Settings::default()
        }
    }

    #[test]
    fn the_defaults_are_those_of_yolo_predict() {
        let spec = Spec::new(minimal()).unwrap();
        assert_eq!(
            (spec.inference.conf, spec.inference.iou, spec.inference.max_det, spec.inference.imgsz),
            (0.25, 0.7, 300, None)
        );
        assert!(!spec.inference.agnostic && !spec.inference.square);
        assert_eq!(spec.caps, Caps { payload: 100_000_000, pictures: 100 });
        assert_eq!((spec.grace, spec.inference.max_file), (Duration::from_secs(25), 256_000_000));
        // What is printed or stored gives the same job again.
        let again = Spec::new(spec.settings.clone()).unwrap();
        assert_eq!(format!("{again:?}"), format!("{spec:?}"));
    }

    #[test]
    fn fractions_sizes_times_and_shares() {
        let spec = Spec::new(Settings {
            max_payload_mb: Some(0.5),
            memory_budget: Some("1.5GiB".into()),
            grace: Some("1m30s".into()),
            batch_timeout: Some("90".into()),
            max_runtime: Some("6h".into()),
            max_failures: Some("2.5%".into()),
            if_locked: Some("wait=10m".into()),
            imgsz: Some(600),
            ..minimal()
        })
        .unwrap();
        assert_eq!(spec.caps.payload, 500_000);
        assert_eq!(spec.inference.memory_budget, Some(1536 << 20));
        assert_eq!((spec.grace.as_secs(), spec.batch_timeout.as_secs()), (90, 90));
        assert_eq!(spec.max_runtime, Some(Duration::from_secs(6 * 3600)));
        assert_eq!(spec.max_failures, Some(MaxFailures::Share(0.025)));
        assert_eq!(spec.if_locked, IfLocked::Wait(Duration::from_secs(600)));
        assert_eq!(spec.inference.imgsz, Some(608));
    }

    #[test]
    fn each_wrong_value_is_named() {
        let text = |text: &str| Some(text.to_owned());
        let cases = [
            (Settings { model: None, ..minimal() }, "--model is missing"),
            (Settings { conf: Some(1.5), ..minimal() }, "--conf is 1.5"),
            (Settings { iou: Some(f64::NAN), ..minimal() }, "--iou is NaN"),
            (Settings { max_det: Some(0), ..minimal() }, "--max-det is 0"),
            (Settings { imgsz: Some(7), ..minimal() }, "--imgsz is 7"),
            (Settings { limit: Some(0), ..minimal() }, "--limit is 0"),
            (Settings { sample: Some(0), ..minimal() }, "--sample is 0"),
            (Settings { seed: Some(7), ..minimal() }, "--seed is 7, and there is no --sample"),
            (Settings { workers: Some(0), ..minimal() }, "--workers is 0"),
            (Settings { max_images: Some(0), ..minimal() }, "--max-images is 0"),
            (Settings { max_payload_mb: Some(-1.0), ..minimal() }, "--max-payload-mb is -1"),
            (Settings { memory_budget: text("lots"), ..minimal() }, "--memory-budget is `lots`"),
            (Settings { grace: text("soon"), ..minimal() }, "--grace is `soon`"),
            (Settings { max_runtime: text("dawn"), ..minimal() }, "--max-runtime is `dawn`"),
            (Settings { max_runtime: text("0"), ..minimal() }, "--max-runtime is 0"),
            (Settings { identity: text("md5"), ..minimal() }, "--identity is `md5`"),
            (Settings { precision: text("f8"), ..minimal() }, "--precision is `f8`"),
            (Settings { device: text("gpu"), ..minimal() }, "--device: `gpu` is no device"),
            (Settings { device: text("cuda:1,1"), ..minimal() }, "names cuda:1 twice"),
            (Settings { batch: Some(0), ..minimal() }, "--batch is 0; it lies between 1 and 1024"),
            (Settings { batch: Some(1025), ..minimal() }, "--batch is 1025"),
            (Settings { truncated: text("maybe"), ..minimal() }, "--truncated is `maybe`"),
            (Settings { boxes: text("cm"), ..minimal() }, "--boxes is `cm`"),
            (Settings { compress: text("xz"), ..minimal() }, "--compress is `xz`"),
            (Settings { if_locked: text("cry"), ..minimal() }, "--if-locked is `cry`"),
            (Settings { max_failures: text("101%"), ..minimal() }, "--max-failures is `101%`"),
            (Settings { annotate: Some("/out".into()), ..minimal() }, "--annotate is --output"),
            (Settings { progress: text("bar"), ..minimal() }, "--progress is `bar`"),
            (Settings { junit: Some("/out/j.xml".into()), ..minimal() }, "--junit `/out/j.xml`"),
            (
                Settings { junit: Some("/a".into()), prometheus: Some("/a".into()), ..minimal() },
                "--junit `/a` is the file of another report, too",
            ),
            (Settings { gate: Some(vec!["errs > 1".into()]), ..minimal() }, "no metric `errs`"),
        ];
        for (settings, expected) in cases {
            let error = Spec::new(settings).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} should contain {expected}");
        }
    }
}
