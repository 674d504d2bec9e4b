//! `haul run` and `haul resume`.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{print, print_json, signals};
use crate::job::{
    Exit, JobError, Manifest, Mode, Opened, Progress, Report, Session, Settings, Spec, Status,
    Terminal, Verbosity, drift, open, open_output, tell,
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
  haul run nightly.toml --if-locked skip                               # in cron"
)]
pub(super) struct Run {
    /// Job file (TOML): the same names as the flags, with _ for -; its paths are relative to it
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
    /// When another run holds the output: fail, skip or wait=TIME
    #[arg(long, value_name = "POLICY")]
    if_locked: Option<String>,
    /// What the finished job must hold, else exit 6 (repeatable; instead of the job's own)
    #[arg(long, value_name = "METRIC OP N[%]")]
    gate: Option<Vec<String>>,
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

/// Flags over the job file.
pub(super) fn settings(flags: Settings, job: Option<&Path>) -> Result<Settings, JobError> {
    let flags = flags.relative_to(Path::new(""))?;
    Ok(match job {
        None => flags,
        Some(path) => flags.over(Settings::from_job_file(path)?),
    })
}

impl Run {
    pub(super) fn execute(self) -> Result<Exit, JobError> {
        let spec = spec(settings(self.settings, self.job.as_deref())?, &self.talk)?;
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
            if_locked: self.if_locked,
            gate: self.gate,
            progress: self.progress,
            ..Settings::default()
        };
        let spec = spec(flags.relative_to(Path::new(""))?.over(job.settings), &self.talk)?;
        if spec.input == crate::job::Input::Stdin && manifest.plan()?.is_none() {
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
    /// What is said to people.
    text: String,
}

fn work(spec: Spec, mode: Mode, talk: &Talk) -> Result<Exit, JobError> {
    let mut terminal = talk.terminal().showing(spec.progress);
    let ending = attempt(spec.clone(), mode, &mut terminal).unwrap_or_else(|error| Ending {
        exit: error.exit(),
        report: None,
        error: Some(error),
        text: String::new(),
    });
    let Ending { exit, report, error, text } = ending;
    if !text.is_empty() {
        terminal.say(text.trim_end());
    }
    let reason = error.as_ref().map(ToString::to_string);
    let reason = reason.as_deref().or(terminal.reason());
    terminal.conclude(report.as_ref(), reason.map(|reason| (exit as u8, reason)));
    // Messages on stdout have the report in them already.
    if let Some(report) = report
        && talk.json()
        && spec.progress != Progress::Json
        && error.is_none()
    {
        print_json(&report)?;
    }
    error.map_or(Ok(exit), Err)
}

fn attempt(spec: Spec, mode: Mode, terminal: &mut Terminal) -> Result<Ending, JobError> {
    let signals = signals::listen()?;
    let gates = spec.gates.clone();
    let output = spec.output.display().to_string();
    let (mut exit, mut report, error, said) = match open(spec, mode, terminal)? {
        Opened::Skipped(text) => {
            // One line also for --quiet: that nothing ran is what cron's reader wants to know.
            tell(&text);
            let report = Report { output, state: "skipped".into(), ..Report::default() };
            return Ok(Ending {
                exit: Exit::Done,
                report: Some(report),
                error: None,
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
    Ok(Ending { exit, report: Some(report), error, text })
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
