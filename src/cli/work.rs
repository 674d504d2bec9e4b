//! What `run`, `resume` and `retry` share: from settings to an exit code, and what is said and left
//! on the way.

use std::path::Path;
use std::time::SystemTime;

use clap::Args;

use super::{print_json, signals};
use crate::job::{
    Ended, Exit, Gate, JobError, Line, Mode, Opened, Progress, Report, Session, Settings, Spec,
    Status, Survey, Terminal, Verbosity, drift, failures, open, tell,
};
use crate::store::one_line;

/// How a command talks.
#[derive(Debug, Args)]
pub(super) struct Talk {
    /// Print the summary as JSON on stdout (--progress json has it already)
    #[arg(long, help_heading = "Messages")]
    json: bool,
    /// Say only what is wrong
    #[arg(long, short, help_heading = "Messages")]
    quiet: bool,
    /// Say more
    #[arg(long, short, action = clap::ArgAction::Count, help_heading = "Messages")]
    verbose: u8,
}

impl Talk {
    pub(super) fn terminal(&self) -> Terminal {
        Terminal::new(match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (false, 0) => Verbosity::Normal,
            (false, _) => Verbosity::Verbose,
        })
    }

    pub(super) fn json(&self) -> bool {
        self.json
    }
}

/// Flags over the job file. What of it is ignored is said with -v.
pub(super) fn settings(
    flags: Settings,
    job: Option<&Path>,
    terminal: &Terminal,
) -> Result<Settings, JobError> {
    let flags = flags.relative_to(Path::new(""))?;
    let Some(path) = job else { return Ok(flags) };
    let (settings, notes) = flags.over_job_file(path)?;
    notes.iter().for_each(|note| terminal.detail(&format!("`{}`: {note}", path.display())));
    Ok(settings)
}

/// Does what comes before there is a job to work on. Who asked for messages in JSON hears there, too,
/// why it came to nothing; of a job to work on, `work` says how it ended.
///
/// `progress` is the flag; what is behind it, `prepare` may find in a file.
pub(super) fn prepared<T>(
    talk: &Talk,
    mut progress: Option<String>,
    prepare: impl FnOnce(&mut Option<String>) -> Result<T, JobError>,
) -> Result<T, JobError> {
    prepare(&mut progress).inspect_err(|error| {
        if progress.as_deref() == Some("json") {
            let text = error.to_string();
            let failure = Some((error.exit() as u8, text.as_str()));
            talk.terminal().showing(Progress::Json).conclude(None, failure);
        }
    })
}

/// How an invocation ended.
struct Ending {
    exit: Exit,
    /// What the job amounts to; nothing where it could not be opened.
    report: Option<Report>,
    /// What kept it from going on.
    error: Option<JobError>,
    /// Pictures that failed.
    failures: Vec<Line>,
    /// Another run holds the output, and that is fine.
    skipped: bool,
    /// What is said to people.
    text: String,
}

/// Works on a job.
pub(super) fn work(spec: Spec, mode: Mode, talk: &Talk) -> Result<Exit, JobError> {
    end(&spec, talk, |terminal| attempt(spec.clone(), mode, terminal))
}

/// Ends a job that has no pictures, of which nothing is written, as any other.
pub(super) fn nothing(spec: &Spec, text: String, talk: &Talk) -> Result<Exit, JobError> {
    end(spec, talk, |_| {
        let report = complete(spec.output.to_string(), Status::default());
        Ok(Ending::of(&spec.gates, Exit::Done, report, Some(text)))
    })
}

/// Says and leaves how an attempt ended.
fn end(
    spec: &Spec,
    talk: &Talk,
    attempt: impl FnOnce(&mut Terminal) -> Result<Ending, JobError>,
) -> Result<Exit, JobError> {
    let mut terminal = talk.terminal().showing(spec.progress).with_json(talk.json());
    let folders = spec.notices.check_folders();
    let able = folders.is_ok();
    let attempted = folders.and_then(|()| attempt(&mut terminal));
    let mut ending = attempted.unwrap_or_else(Ending::failed);
    if !ending.text.is_empty() {
        terminal.say(ending.text.trim_end());
    }
    let gates = ending.report.iter().flat_map(|report| &report.gates);
    gates.filter(|gate| !gate.holds).for_each(|gate| terminal.murmur(&gate.to_string()));
    if able {
        ending.publish(spec, &terminal);
    }
    let Ending { exit, report, error, .. } = ending;
    let reason = error.as_ref().map(ToString::to_string);
    let reason = reason.as_deref().or(terminal.reason());
    terminal.conclude(report.as_ref(), reason.map(|reason| (exit as u8, reason)));
    // Messages on stdout have the report in them already.
    if let Some(report) = report
        && talk.json()
        && spec.progress != Progress::Json
    {
        print_json(&report)?;
    }
    error.map_or(Ok(exit), Err)
}

impl Ending {
    /// An attempt that was not cut short; `said` is all there is to say where there was nothing to do.
    fn of(gates: &[Gate], exit: Exit, mut report: Report, said: Option<String>) -> Ending {
        // Before it is complete, a job has nothing yet that a gate could be held against.
        let exit = match exit {
            Exit::Done | Exit::SomeFailed if report.is_complete() => report.hold_against(gates),
            // A share that is through: how many pictures may fail is judged by whoever finds the
            // whole job complete.
            Exit::SomeFailed if gates.iter().any(Gate::speaks_for_failures) => {
                report.exit = Exit::Done as u8;
                Exit::Done
            }
            other => other,
        };
        let text = match said {
            Some(text) => report.gates.iter().fold(text, |text, gate| format!("{text}\n{gate}")),
            None => report.text(),
        };
        let (error, failures) = (None, Vec::new());
        Ending { exit, report: Some(report), error, failures, skipped: false, text }
    }

    fn failed(error: JobError) -> Ending {
        Ending {
            exit: error.exit(),
            report: None,
            error: Some(error),
            failures: Vec::new(),
            skipped: false,
            text: String::new(),
        }
    }

    /// Writes what is left for other programs. Where that fails, a job that is complete ends with 1
    /// all the same: whoever waits for the file must hear of it, and the next run writes it again.
    fn publish(&mut self, spec: &Spec, terminal: &Terminal) {
        // The run that holds the output writes its own.
        if self.skipped {
            return;
        }
        let gates: Vec<String> = spec.gates.iter().map(|gate| gate.text().to_owned()).collect();
        let reason = self.error.as_ref().map(ToString::to_string);
        let named = self.name_failures(spec);
        let output = spec.output.to_string();
        let fault = named.as_ref().err().map(ToString::to_string);
        let ended = Ended {
            output: &output,
            exit: self.exit,
            reason: reason.as_deref().or(terminal.reason()),
            report: self.report.as_ref(),
            failures: &self.failures,
            gates: &gates,
            time: SystemTime::now(),
        };
        let ended = fault.as_deref().map_or(ended, |fault| ended.untold(fault));
        let Err(error) = named.and(spec.notices.publish(&ended, terminal)) else { return };
        if self.exit.complete() {
            self.exit = Exit::Failed;
            self.report.iter_mut().for_each(|report| report.exit = Exit::Failed as u8);
            self.error = Some(JobError::Internal(error.to_string()));
        } else {
            terminal.warn(&error.to_string());
        }
    }

    /// Finds the pictures that failed in earlier runs, where somebody wants to know.
    fn name_failures(&mut self, spec: &Spec) -> Result<(), JobError> {
        let any = self.report.as_ref().is_some_and(|report| report.committed > 0);
        if any && spec.notices.name_failures() {
            let fresh = std::mem::take(&mut self.failures);
            self.failures = failures(&Survey::open(&spec.output, &spec.s3)?, fresh)?;
        }
        Ok(())
    }
}

fn attempt(spec: Spec, mode: Mode, terminal: &mut Terminal) -> Result<Ending, JobError> {
    let gates = spec.gates.clone();
    let output = spec.output.to_string();
    let done =
        |status, text| Ending::of(&gates, Exit::Done, complete(output.clone(), status), Some(text));
    Ok(match open(spec, mode, terminal)? {
        Opened::Skipped(text) => {
            // One line also for --quiet: that nothing ran is what cron's reader wants to know.
            tell(&text);
            let state = "skipped".into();
            let report = Report { output, state, ..Report::default() };
            Ending {
                exit: Exit::Done,
                report: Some(report),
                error: None,
                failures: Vec::new(),
                skipped: true,
                text: String::new(),
            }
        }
        Opened::Nothing(text) => done(Status::default(), text),
        Opened::Job(session) if session.manifest.success()?.is_some() => {
            let status = finished(&session, mode)?;
            let survey = Survey::open(&session.spec.output, &session.spec.s3)?;
            let shard = session.shard.map(|shard| survey.share(shard)).transpose()?;
            let text =
                one_line(&format!("`{output}` is finished, and nothing is new in its input"));
            let report = Report { shard, ..complete(output, status) };
            Ending::of(&gates, Exit::Done, report, Some(text))
        }
        Opened::Job(session) => {
            // Up to here a signal simply ends the process: there is nothing to be finished, and
            // whoever waits for the lock for hours must not wait on.
            let signals = signals::listen()?;
            let outcome = crate::job::run(*session, &signals, terminal)?;
            let ending = Ending::of(&gates, outcome.exit, outcome.report, None);
            let text = if outcome.error.is_some() { String::new() } else { ending.text };
            Ending { error: outcome.error, failures: outcome.failures, text, ..ending }
        }
    })
}

/// The output is finished: what it amounts to, unless the input has moved on.
fn finished(session: &Session, mode: Mode) -> Result<Status, JobError> {
    let output = &session.spec.output;
    if mode != Mode::Resume {
        let drift = drift(&**session.manifest.store(), session.terms())?;
        if drift != crate::job::Drift::default() {
            return Err(JobError::Usage(format!(
                "`{output}` is finished, and its input has {} new, {} changed and {} gone pictures \
                 since the plan (run with --since {output} and another --output for just those, or \
                 with --new to do everything again)",
                drift.new, drift.changed, drift.gone
            )));
        }
    }
    Survey::open(&session.spec.output, &session.spec.s3)?.status()
}

/// The report of a job that left nothing to do.
fn complete(output: String, status: Status) -> Report {
    Report {
        output,
        state: "done".into(),
        planned: status.planned,
        plan_complete: true,
        ok: status.ok,
        failed: status.failed,
        batches: status.batches,
        committed: status.committed,
        skipped: status.skipped,
        classes: status.classes,
        errors: status.errors,
        bound: "Nothing was left to do.".into(),
        ..Report::default()
    }
}
