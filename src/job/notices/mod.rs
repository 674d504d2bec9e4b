//! What a run tells other programs when it ends: files for those who were not there.
//!
//! The forms are pure functions from [`Ended`] to text; only [`Notices`] writes. None of it is read
//! by haul again, and no reader of results trusts it.

mod github;
mod junit;
mod prometheus;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::exit::{Exit, JobError};
use super::line::Line;
use super::report::Report;
use super::survey::Survey;
use super::terminal::Terminal;
use crate::store::{Place, StoreError, one_line};

/// So many failed pictures are named; the others are counted.
pub const MOST_NAMED: usize = 100;

/// Which files a run leaves for other programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notices {
    /// `--junit`.
    pub junit: Option<PathBuf>,
    /// `--github`.
    pub github: bool,
    /// `--prometheus`.
    pub prometheus: Option<PathBuf>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended<'a> {
    /// The output's folder.
    pub output: &'a str,
    /// The exit code.
    pub exit: Exit,
    /// Why, where it failed or stopped itself.
    pub reason: Option<&'a str>,
    /// What the job amounts to; nothing where it could not be opened.
    pub report: Option<&'a Report>,
    /// Failed pictures by their lines, the first [`MOST_NAMED`].
    pub failures: &'a [Line],
    /// The gates that were given, judged or not.
    pub gates: &'a [String],
    /// When.
    pub time: SystemTime,
}

impl<'a> Ended<'a> {
    /// The same where not all that was to be told could be: whoever waits for it must hear of that,
    /// so a job that is complete ends with 1.
    #[must_use]
    pub fn untold(self, fault: &'a str) -> Ended<'a> {
        match self.exit.complete() {
            true => Ended { exit: Exit::Failed, reason: Some(fault), ..self },
            false => self,
        }
    }

    /// Why the exit code is not 0, in a sentence; nothing where only gates are to blame.
    fn trouble(&self) -> Option<String> {
        let report = self.report;
        let committed = || {
            report.map_or(String::new(), |report| {
                let Report { committed, batches, .. } = report;
                format!("{committed} of {batches} mini-batches committed")
            })
        };
        match (self.exit, self.reason) {
            (Exit::Done | Exit::Gate, None) => None,
            (Exit::SomeFailed, _) => {
                let counts = |r: &Report| match &r.shard {
                    None => (r.failed, r.planned),
                    Some(share) => (share.failed, share.planned),
                };
                let (failed, planned) = report.map_or((0, 0), counts);
                Some(format!("{} of {} pictures failed", grouped(failed), grouped(planned)))
            }
            (_, Some(reason)) => Some(reason.to_owned()),
            (Exit::Interrupted, None) => Some(format!(
                "interrupted, {}; the same command goes on with the others",
                committed()
            )),
            (_, None) => Some(format!("the job is not complete, {}", committed())),
        }
    }

    /// How many failed pictures are not among those that are named.
    fn unnamed(&self) -> u64 {
        let failed = self.report.map_or(0, |report| report.failed);
        failed.saturating_sub(self.failures.len() as u64)
    }
}

impl Notices {
    /// Checks paths against each other and the output.
    ///
    /// # Errors
    /// [`JobError::Usage`] naming the flag.
    pub fn check_paths(&self, output: &Place) -> Result<(), JobError> {
        for (flag, path) in self.files() {
            let wrong =
                |what: &str| JobError::Usage(format!("--{flag} `{}` {what}", path.display()));
            if output.local().is_some_and(|output| path.starts_with(output)) {
                return Err(wrong("is in --output, which is for the results only"));
            }
            if self.files().any(|(other, there)| other != flag && there == path) {
                return Err(wrong("is the file of another report, too"));
            }
        }
        Ok(())
    }

    /// Checks that the files can be written, before any work is done for them.
    ///
    /// # Errors
    /// [`JobError::Usage`] naming the flag and what is in the way.
    pub fn check_folders(&self) -> Result<(), JobError> {
        for (flag, path) in self.files() {
            let wrong =
                |what: String| JobError::Usage(format!("--{flag} `{}`: {what}", path.display()));
            if path.is_dir() {
                return Err(wrong("it is a folder (name a file in it)".into()));
            }
            check_target(path).map_err(|error| wrong(error.to_string()))?;
            temporary(path).map_err(|error| {
                wrong(format!("cannot write there: {error} (is the folder there?)"))
            })?;
        }
        Ok(())
    }

    fn files(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        [("junit", self.junit.as_deref()), ("prometheus", self.prometheus.as_deref())]
            .into_iter()
            .filter_map(|(flag, path)| path.map(|path| (flag, path)))
    }

    /// Whether anything wants to know which pictures failed.
    #[must_use]
    pub fn name_failures(&self) -> bool {
        self.junit.is_some() || self.github
    }

    /// Writes everything that was asked for. What fails does not keep the rest from being written,
    /// and none of the rest says that all is well.
    ///
    /// # Errors
    /// The first that could not be written.
    pub fn publish(&self, ended: &Ended<'_>, terminal: &Terminal) -> Result<(), JobError> {
        let written = self.write(ended);
        let fault = written.as_ref().err().map(ToString::to_string);
        let ended = fault.as_deref().map_or(*ended, |fault| ended.untold(fault));
        if fault.is_some() {
            // What could be written has another exit code in it, and what could not was said.
            let _ = self.write(&ended);
        }
        // GitHub is told last: what it has been told cannot be taken back.
        if self.github
            && let Err(error) = tell_github(ended, terminal)
        {
            let _ = self.write(&ended.untold(&error.to_string()));
            return written.and(Err(error));
        }
        written
    }

    /// Writes the files.
    fn write(&self, ended: &Ended<'_>) -> Result<(), JobError> {
        let junit = self.junit.as_ref().map(|path| replace(path, &junit::document(ended)));
        let metrics = self.prometheus.as_ref();
        let metrics = metrics.map(|path| replace(path, &prometheus::metrics(ended)));
        junit.into_iter().chain(metrics).collect()
    }
}

/// The first failed pictures of a job in plan order, and after them those of `fresh` that are not
/// committed: where a threshold stops a job, these are the ones that did.
///
/// # Errors
/// When the output cannot be read.
pub fn failures(survey: &Survey, fresh: Vec<Line>) -> Result<Vec<Line>, JobError> {
    let mut found: Vec<Line> = Vec::new();
    survey.visit(|batch, _, record| {
        if found.len() >= MOST_NAMED || record.is_none_or(|record| record.failed == 0) {
            return Ok(());
        }
        let part = survey.manifest.part(&survey.job, batch.id)?.unwrap_or_default();
        // What is wrong with a part is for `verify` to say.
        let lines = survey.job.lines(batch, &part).unwrap_or_default();
        let lines = lines.split(|&byte| byte == b'\n').filter_map(|line| Line::parse(line).ok());
        found.extend(lines.filter(|line| line.error.is_some()));
        Ok(())
    })?;
    let key = |line: &Line| (line.image.clone(), line.image_b64.clone());
    let committed: BTreeSet<_> = found.iter().map(key).collect();
    found.extend(fresh.into_iter().filter(|line| !committed.contains(&key(line))));
    found.truncate(MOST_NAMED);
    Ok(found)
}

/// Does what `--github` asks for. Job files are tried at desks, too, so elsewhere it is a warning.
fn tell_github(ended: Ended<'_>, terminal: &Terminal) -> Result<(), JobError> {
    if std::env::var_os("GITHUB_ACTIONS").is_none_or(|value| value != "true") {
        terminal.warn("--github does nothing here (GITHUB_ACTIONS is not `true`)");
        return Ok(());
    }
    let file = |name| std::env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    let mut told = Ok(());
    if let Some(path) = file("GITHUB_STEP_SUMMARY") {
        let taken = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
        let text = github::summary(&ended, taken);
        if text.is_empty() {
            terminal.warn("the step's summary is full already (1,024 KiB): the table is left out");
        }
        told = append(&path, &text);
    }
    let fault = told.as_ref().err().map(ToString::to_string);
    let ended = fault.as_deref().map_or(ended, |fault| ended.untold(fault));
    if let Some(path) = file("GITHUB_OUTPUT") {
        told = told.and(append(&path, &github::outputs(&ended)));
    }
    let fault = told.as_ref().err().map(ToString::to_string);
    let ended = fault.as_deref().map_or(ended, |fault| ended.untold(fault));
    for line in github::annotations(&ended) {
        terminal.command(&line);
    }
    told
}

fn append(path: &Path, text: &str) -> Result<(), JobError> {
    let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| StoreError::new("append to", path, error).into())
}

/// Refuses what a rename would take the place of though it is no file: links, pipes and devices.
pub(super) fn check_target(path: &Path) -> std::io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(there) if !there.is_file() => Err(std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            "it is a link, pipe, device or folder, and haul replaces plain files only",
        )),
        _ => Ok(()),
    }
}

/// A file beside `path`, whose name ends in nothing that a collector of files looks for.
fn temporary(path: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    tempfile::Builder::new().prefix(".haul-").suffix(".tmp").tempfile_in(folder)
}

/// Puts a whole file in place, for everybody to read: whoever looks sees the old one or this one.
fn replace(path: &Path, text: &str) -> Result<(), JobError> {
    let write = || {
        let mut file = temporary(path)?;
        file.write_all(text.as_bytes())?;
        // Temporary files are for their owner only; collectors run as somebody else.
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
        check_target(path)?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    write().map_err(|error| StoreError::new("write", path, error).writing(text.len()).into())
}

/// A picture that failed, on one line.
fn failure(line: &Line) -> String {
    let (code, message) =
        line.error.as_ref().map_or(("", ""), |error| (error.code.as_str(), error.message.as_str()));
    format!("{}: {code}: {}", one_line(&line.image), one_line(message))
}

/// 1,234,567.
pub(super) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::line::LineError;

    /// A line of a picture that failed.
    pub(super) fn failed(image: &str, code: &str) -> Line {
        let message = "the picture is bad".to_owned();
        let error = LineError { code: code.to_owned(), stage: "decode".to_owned(), message };
        Line {
            image: image.to_owned(),
            image_b64: None,
            width: None,
            height: None,
            truncated: None,
            detections: None,
            error: Some(error),
            meta: None,
        }
    }

    /// A job of 5,000 pictures, of which 4,214 failed.
    pub(super) fn report() -> Report {
        Report {
            state: "done".into(),
            output: "/data/out".into(),
            planned: 5000,
            plan_complete: true,
            ok: 786,
            failed: 4214,
            batches: 50,
            committed: 50,
            errors: [("truncated".to_owned(), 4212), ("empty".to_owned(), 2)].into(),
            classes: [("boat".to_owned(), 7), ("a|b".to_owned(), 1)].into(),
            pictures: 5000,
            seconds: 12.5,
            images_per_second: 400.0,
            workers: 2,
            peak_memory: Some(1 << 20),
            ..Report::default()
        }
    }

    pub(super) fn ended<'a>(
        exit: Exit,
        report: Option<&'a Report>,
        failures: &'a [Line],
    ) -> Ended<'a> {
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_790_000_000);
        Ended { output: "/data/out", exit, reason: None, report, failures, gates: &[], time }
    }

    #[test]
    fn numbers_for_people() {
        let counts = [0, 999, 1000, 1_234_567].map(grouped);
        assert_eq!(counts, ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn files_are_put_in_place_whole_and_readable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.xml");
        for text in ["one", "two"] {
            replace(&path, text).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let link = dir.path().join("link.xml");
        std::os::unix::fs::symlink("report.xml", &link).unwrap();
        let error = replace(&link, "x").unwrap_err();
        assert!(error.to_string().contains("it is a link, pipe"), "{error}");
        assert!(link.is_symlink() && std::fs::read_to_string(&path).unwrap() == "two");
        let error = replace(&dir.path().join("none/report.xml"), "x").unwrap_err();
        assert!(error.to_string().contains("none/report.xml"), "{error}");
    }

    #[test]
    fn a_sentence_for_each_way_to_end() {
        let report = report();
        let trouble = |exit, reason| {
            Ended { reason, ..ended(exit, Some(&report), &[]) }.trouble().unwrap_or_default()
        };
        assert_eq!(trouble(Exit::Done, None), "");
        assert_eq!(trouble(Exit::Gate, None), "");
        assert_eq!(trouble(Exit::SomeFailed, None), "4,214 of 5,000 pictures failed");
        assert_eq!(trouble(Exit::Threshold, Some("stopping: bad")), "stopping: bad");
        assert!(trouble(Exit::Interrupted, None).starts_with("interrupted, 50 of 50 mini-batches"));
        assert!(trouble(Exit::Failed, None).starts_with("the job is not complete, 50 of 50"));
    }
}
