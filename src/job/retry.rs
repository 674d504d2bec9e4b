//! `haul retry`: the pictures of a finished output whose lines are errors, once more.
//!
//! The new job is one like any other. Only its listing is special: the failed keys of the other
//! output, read from plan and parts together, so that they are the same bytes and in order.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::exit::JobError;
use super::line::Line;
use super::manifest::{Manifest, part_name};
use super::plan::{key_of, key_text};
use super::session::{open_output, source_of_keys};
use super::settings::Settings;
use super::spec::Spec;
use super::survey::Survey;
use super::tally::Tally;
use crate::store::{Key, Place, S3Options, Source, StoreError, one_line};

/// Settings that choose pictures. They were chosen when the other output was planned.
pub const CHOOSING: [&str; 10] = [
    "input",
    "key_column",
    "include",
    "exclude",
    "hidden",
    "limit",
    "sample",
    "seed",
    "since",
    "allow_empty",
];

/// Which output's failed pictures a job runs again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// Its folder.
    pub output: String,
    /// The id of the job in it.
    pub job: String,
    /// A picture of it that could be read. Where every picture of a job is one that failed, none of
    /// them can vouch that it is not the disk that is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    witness: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    witness_b64: Option<String>,
}

/// What a request to retry comes to.
#[derive(Debug)]
pub enum Retrial {
    /// A job, new or begun.
    Job(Box<Spec>),
    /// There is nothing to try again, and these words say so.
    Nothing(Box<Spec>, String),
}

/// Settles what it is to run the failed pictures of `of` again, with `flags` over its settings.
///
/// # Errors
/// [`JobError::Usage`] when `of` is no finished output, or the flags choose other pictures.
pub fn retry(of: &Path, flags: Settings) -> Result<Retrial, JobError> {
    let given = serde_json::to_value(&flags).expect("settings are JSON. This is a bug.");
    if let Some(key) = CHOOSING.iter().find(|key| given.get(key).is_some()) {
        return Err(JobError::Usage(format!(
            "--{} does not go with retry: the pictures are those of `{}` that failed",
            key.replace('_', "-"),
            of.display()
        )));
    }
    let s3 = flags.s3()?;
    let of = match Place::parse(of).map_err(JobError::Usage)? {
        Place::Local(path) => Place::Local(path.components().collect()),
        of => of,
    };
    if of.local().is_some_and(|path| path.to_str().is_none()) {
        return Err(JobError::Usage(format!("`{of}` is not UTF-8; reach it by a link")));
    }
    let name = of.to_string();
    let Some(output) = flags.output.as_deref() else {
        return Err(JobError::Usage(format!(
            "--output is missing: another folder, for the results (`{name}` stays as it is)"
        )));
    };
    let output = Place::parse(output).map_err(JobError::Usage)?;
    // How S3 is reached, a job in a folder may know.
    let known = match of.local() {
        Some(_) => Manifest::new(open_output(&of, &s3)).job().ok().flatten(),
        None => None,
    };
    let s3 = match known {
        Some(job) => flags.clone().over(job.settings).s3()?,
        None => s3,
    };
    if of.is_same(&output) {
        return Err(JobError::Usage(format!(
            "--output is `{name}` itself, which stays as it is (give another folder)"
        )));
    }
    let begun = Manifest::new(open_output(&output, &s3)).job()?;
    let (base, retry) = match begun.map(|job| (job.retry, job.settings)) {
        // What it needs of the other output it has in its plan, or reads later.
        Some((Some(retry), settings)) if retry.output == name => (settings, retry),
        _ => {
            let manifest = Manifest::new(open_output(&of, &s3));
            let job = manifest
                .job()?
                .ok_or_else(|| JobError::Usage(format!("`{name}` holds no job of haul")))?;
            let success = manifest.success()?.ok_or_else(|| unfinished(&name))?;
            // What chose among all the pictures there were has done so, conditions on them mean
            // something else where all have failed before, and reports are the other job's.
            let base = Settings {
                since: None,
                limit: None,
                sample: None,
                seed: None,
                max_failures: None,
                gate: None,
                junit: None,
                prometheus: None,
                ..job.settings
            };
            if success.failed == 0 {
                let text = format!("none of the {} pictures in `{name}` failed", success.planned);
                // What is asked for is wrong all the same, if it is.
                let spec = Spec::new(flags.over(base))?;
                Survey::on(manifest.store().clone())?.check_gates(&spec.gates)?;
                return Ok(Retrial::Nothing(Box::new(spec), one_line(&text)));
            }
            let (witness, witness_b64) = (None, None);
            (base, Retry { output: name, job: job.id, witness, witness_b64 })
        }
    };
    let inherited = flags.device.is_none();
    let mut spec = Spec::new(flags.over(base))?;
    spec.inference.device_is_inherited = inherited;
    spec.retry = Some(retry);
    Ok(Retrial::Job(Box::new(spec)))
}

fn unfinished(name: &str) -> JobError {
    JobError::Usage(format!("`{name}` is not finished (haul resume {name} first)"))
}

impl Retry {
    /// A picture that could be read when the other output was made.
    pub(super) fn witness(&self) -> Option<Key> {
        key_of(self.witness.clone()?, self.witness_b64.clone()).ok()
    }

    /// The input of the job: the failed pictures.
    ///
    /// # Errors
    /// When the other output is not what it was, or its input is gone.
    pub(super) fn open_source(&mut self, spec: &Spec) -> Result<Arc<dyn Source>, JobError> {
        let spool = |error| StoreError::new("write the failed keys to", "a temporary file", error);
        let mut keys = BufWriter::new(tempfile::tempfile().map_err(spool)?);
        let folder = self.failed_keys(&mut keys, &spec.s3)?;
        let file: File =
            keys.into_inner().map_err(|error| JobError::from(spool(error.into_error())))?;
        source_of_keys(spec, file, &folder)
    }

    /// Writes key and meta of failed pictures, a zero byte after each; gives the folder that they are
    /// relative to. One segment and one part are in memory at a time.
    fn failed_keys(
        &mut self,
        keys: &mut BufWriter<File>,
        s3: &S3Options,
    ) -> Result<Place, JobError> {
        let name = self.output.clone();
        let place = Place::parse(Path::new(&name)).map_err(JobError::Usage)?;
        let survey = Survey::open(&place, s3)?;
        if survey.job.id != self.job {
            return Err(JobError::Usage(format!(
                "`{name}` holds another job than the one whose failed pictures were to be tried \
                 again (use another --output)"
            )));
        }
        let compress = survey.job.compress()?;
        let (_, complete) = survey.visit(|batch, _, record| {
            let record = record.ok_or_else(|| unfinished(&name))?;
            if record.failed == 0 && self.witness.is_some() {
                return Ok(());
            }
            let damaged = |what: String| {
                let part = part_name(batch.id, compress);
                JobError::Damaged(format!("`{name}/{part}`: {what}"))
            };
            let part = survey.manifest.part(&survey.job, batch.id)?;
            let part = part.ok_or_else(|| damaged("it is missing".to_owned()))?;
            let part = survey.job.lines(batch, &part).map_err(damaged)?;
            let tally = Tally::of_part(&part, batch).map_err(damaged)?;
            if tally.failed != record.failed {
                return Err(damaged("it does not add up to what its record says".to_owned()));
            }
            for (line, object) in part.split(|&byte| byte == b'\n').zip(&batch.objects) {
                if Line::parse(line).map_err(damaged)?.error.is_some() {
                    let write = |bytes: &[u8]| keys.write_all(bytes);
                    let meta = object.meta.as_deref().unwrap_or_default();
                    let texts = [object.key.as_bytes(), b"\0", meta.as_bytes(), b"\0"];
                    texts.into_iter().try_for_each(write).map_err(|error| {
                        StoreError::new("write the failed keys to", "a temporary file", error)
                    })?;
                } else if self.witness.is_none() {
                    let (text, base64) = key_text(&object.key);
                    (self.witness, self.witness_b64) = (Some(text), base64);
                }
            }
            Ok(())
        })?;
        if !complete {
            return Err(unfinished(&name));
        }
        Place::parse(Path::new(&survey.job.folder)).map_err(JobError::Usage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Args as _;

    #[test]
    fn every_flag_that_chooses_pictures_is_refused_or_known_to_make_sense() {
        let command = Settings::augment_args(clap::Command::new("settings"));
        let which = command.get_arguments().filter(|arg| {
            arg.get_help_heading() == Some("Which pictures") || arg.get_id() == "input"
        });
        let mut names: Vec<&str> = which.map(|arg| arg.get_id().as_str()).collect();
        // A link that leaves the input is an error that one of these mends; the other says how
        // changes are told from now on.
        names.retain(|name| !["follow_symlinks", "identity"].contains(name));
        names.sort_unstable();
        let mut refused = CHOOSING;
        refused.sort_unstable();
        assert_eq!(names, refused, "a new flag: does `haul retry` take it?");
    }
}
