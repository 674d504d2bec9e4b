//! `haul run` and `haul resume`.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::Args;

use super::{print, print_json, signals};
use crate::job::{
    Ended, Exit, JobError, Line, Manifest, Mode, Opened, Progress, Report, Session, Settings, Spec,
    Status, Terminal, Verbosity, drift, failures, open, open_output, tell,
};

/// Run a job: a new one, or what is left of it
///
/// Flags go over the job file; what neither says has a default, `yolo predict`'s where it has one.
#[derive(Debug, Args)]
#[command(
    args_override_self = true,
    after_help = "\
Examples:
  haul run --model yolov8n.pt --input photos/ --output out/
  haul run jobs/quickstart.toml --conf 0.5
  haul run -m yolov8n.pt -i photos/ -o out/ --annotate seen/ --classes person,car
  find . -name '*.jpg' -newer stamp | haul run -m yolov8n.pt -i - -o out/
  haul run nightly.toml --since outputs/ --output outputs/2026-01-02   # only what is new
  haul run nightly.toml --if-locked skip                               # in cron
  haul run nightly.toml --max-runtime 6h                               # until the morning
  haul run job.toml --gate 'errors < 2%' --gate 'class person == 0' --junit haul.xml"
)]
pub(super) struct Run {
    /// Job file (TOML): the same names as the flags, with _ for -; its paths are relative to it.
    /// Or a SageMaker CreateTransformJob request (.json)
    #[arg(value_name = "JOB.toml")]
    job: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    /// Forget the job in the output and start over (deletes only what haul wrote)
    #[arg(long, help_heading = "Output")]
    new: bool,
    /// Print the settings as a job file and stop
    #[arg(long, help_heading = "Output")]
    print_config: bool,
    #[command(flatten)]
    talk: Talk,
}

/// Go on with the job in an output, from anywhere
///
/// Settings are the job's own; a flag here changes one for this run.
#[derive(Debug, Args)]
#[command(
    args_override_self = true,
    after_help = "\
Examples:
  haul resume out/
  haul resume out/ --workers 1 --grace 2m"
)]
pub(super) struct Resume {
    /// The output's folder
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// The checkpoint, if it has moved; its contents must be the same
    #[arg(long, short, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Worker threads
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Memory for everything
    #[arg(long, value_name = "SIZE")]
    memory_budget: Option<String>,
    /// Stop (exit 4) when more pictures failed: a number, or a share such as 2%
    #[arg(long, value_name = "N|P%")]
    max_failures: Option<String>,
    /// Longest time for one mini-batch
    #[arg(long, value_name = "TIME")]
    batch_timeout: Option<String>,
    /// After SIGTERM, finish what fits in this time
    #[arg(long, value_name = "TIME")]
    grace: Option<String>,
    /// Stop after this time, as SIGTERM would (exit 75)
    #[arg(long, value_name = "TIME")]
    max_runtime: Option<String>,
    /// When another run holds the output: fail, skip or wait=TIME
    #[arg(long, value_name = "POLICY")]
    if_locked: Option<String>,
    /// What the finished job must hold, else exit 6 (repeatable; instead of the job's own)
    #[arg(long, value_name = "METRIC OP N[%]")]
    gate: Option<Vec<String>>,
    /// Write a JUnit report for CI into this file
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// In a step of GitHub Actions: annotations, a table in the step's summary, and outputs
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, value_name = "BOOL")]
    github: Option<bool>,
    /// Write metrics into this file, for node_exporter's textfile collector
    #[arg(long, value_name = "FILE")]
    prometheus: Option<PathBuf>,
    /// How to show progress: auto (on stderr), json (messages on stdout), or none
    #[arg(long, value_name = "KIND", help_heading = "Messages")]
    progress: Option<String>,
    #[command(flatten)]
    talk: Talk,
}

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

impl Run {
    pub(super) fn execute(self) -> Result<Exit, JobError> {
        let given = settings(self.settings, self.job.as_deref(), &self.talk.terminal())?;
        let spec = spec(given, &self.talk)?;
        if self.print_config {
            let text = toml::to_string(&spec.settings)
                .map_err(|error| JobError::Internal(format!("cannot write TOML: {error}")))?;
            print(&text)?;
            return Ok(Exit::Done);
        }
        work(spec, if self.new { Mode::StartOver } else { Mode::Run }, &self.talk)
    }
}

impl Resume {
    pub(super) fn execute(self) -> Result<Exit, JobError> {
        let manifest = Manifest::new(open_output(&self.output));
        let job = manifest.job()?.ok_or_else(|| {
            JobError::Usage(format!("`{}` holds no job of haul to resume", self.output.display()))
        })?;
        let flags = Settings {
            model: self.model,
            output: Some(self.output),
            workers: self.workers,
            memory_budget: self.memory_budget,
            max_failures: self.max_failures,
            batch_timeout: self.batch_timeout,
            grace: self.grace,
            max_runtime: self.max_runtime,
            if_locked: self.if_locked,
            gate: self.gate,
            junit: self.junit,
            github: self.github,
            prometheus: self.prometheus,
            progress: self.progress,
            ..Settings::default()
        };
        let mut spec = spec(flags.relative_to(Path::new(""))?.over(job.settings), &self.talk)?;
        spec.retry = job.retry;
        let listed_again = spec.input == crate::job::Input::Stdin && spec.retry.is_none();
        if listed_again && manifest.plan()?.is_none() {
            return Err(JobError::Usage(
                "the list came on standard input and was not planned to its end: run the first \
                 command again, with the list"
                    .into(),
            ));
        }
        work(spec, Mode::Resume, &self.talk)
    }
}

/// Checks the settings. Who asked for messages in JSON hears of a mistake in them there, too.
fn spec(settings: Settings, talk: &Talk) -> Result<Spec, JobError> {
    let json = settings.progress.as_deref() == Some("json");
    Spec::new(settings).inspect_err(|error| {
        let shown = if json { Progress::Json } else { Progress::None };
        let failure = Some((error.exit() as u8, error.to_string()));
        let failure = failure.as_ref().map(|(code, text)| (*code, text.as_str()));
        talk.terminal().showing(shown).conclude(None, failure);
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

pub(super) fn work(spec: Spec, mode: Mode, talk: &Talk) -> Result<Exit, JobError> {
    let mut terminal = talk.terminal().showing(spec.progress).with_json(talk.json());
    let folders = spec.notices.check_folders();
    let able = folders.is_ok();
    let attempted = folders.and_then(|()| attempt(spec.clone(), mode, &mut terminal));
    let mut ending = attempted.unwrap_or_else(Ending::failed);
    if !ending.text.is_empty() {
        terminal.say(ending.text.trim_end());
    }
    let gates = ending.report.iter().flat_map(|report| &report.gates);
    gates.filter(|gate| !gate.holds).for_each(|gate| terminal.murmur(&gate.to_string()));
    if able {
        ending.publish(&spec, &terminal);
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
        let published = self.name_failures(spec).and_then(|()| {
            let ended = Ended {
                output: &spec.output,
                exit: self.exit,
                reason: reason.as_deref().or(terminal.reason()),
                report: self.report.as_ref(),
                failures: &self.failures,
                gates: &gates,
                time: SystemTime::now(),
            };
            spec.notices.publish(&ended, terminal)
        });
        let Err(error) = published else { return };
        if matches!(self.exit, Exit::Done | Exit::SomeFailed | Exit::Gate) {
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
            self.failures = failures(&spec.output, fresh)?;
        }
        Ok(())
    }
}

fn attempt(spec: Spec, mode: Mode, terminal: &mut Terminal) -> Result<Ending, JobError> {
    let signals = signals::listen()?;
    let gates = spec.gates.clone();
    let output = spec.output.display().to_string();
    let mut fresh = Vec::new();
    let (mut exit, mut report, error, said) = match open(spec, mode, terminal)? {
        Opened::Skipped(text) => {
            // One line also for --quiet: that nothing ran is what cron's reader wants to know.
            tell(&text);
            let report = Report { output, state: "skipped".into(), ..Report::default() };
            return Ok(Ending {
                exit: Exit::Done,
                report: Some(report),
                error: None,
                failures: Vec::new(),
                skipped: true,
                text: String::new(),
            });
        }
        Opened::Nothing(text) => {
            (Exit::Done, complete(output, Status::default()), None, Some(text))
        }
        Opened::Job(session) if session.manifest.success()?.is_some() => {
            let status = finished(&session, mode)?;
            let text = format!("`{output}` is finished, and nothing is new in its input");
            (Exit::Done, complete(output, status), None, Some(text))
        }
        Opened::Job(session) => {
            let outcome = crate::job::run(*session, &signals, terminal)?;
            fresh = outcome.failures;
            (outcome.exit, outcome.report, outcome.error, None)
        }
    };
    // Before it is complete, a job has nothing yet that a gate could be held against.
    if matches!(exit, Exit::Done | Exit::SomeFailed) {
        exit = report.hold_against(&gates);
    }
    let text = match said {
        // There was nothing to do, so there is only this to say.
        Some(text) => report.gates.iter().fold(text, |text, gate| format!("{text}\n{gate}")),
        None if error.is_some() => String::new(),
        None => report.text(),
    };
    Ok(Ending { exit, report: Some(report), error, failures: fresh, skipped: false, text })
}

/// The output is finished: what it amounts to, unless the input has moved on.
fn finished(session: &Session, mode: Mode) -> Result<Status, JobError> {
    let output = session.spec.output.display();
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
    crate::job::Survey::open(&session.spec.output)?.status()
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
