//! `haul run` and `haul resume`.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{print, print_json, signals};
use crate::job::{
    Exit, JobError, Manifest, Mode, Opened, Report, Session, Settings, Spec, Terminal, Verbosity,
    drift, open, open_output, tell,
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
  haul run nightly.toml --max-runtime 6h                               # until the morning"
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
    /// Stop after this time, as SIGTERM would (exit 75)
    #[arg(long, value_name = "TIME")]
    max_runtime: Option<String>,
    /// When another run holds the output: fail, skip or wait=TIME
    #[arg(long, value_name = "POLICY")]
    if_locked: Option<String>,
    #[command(flatten)]
    talk: Talk,
}

/// How a command talks.
#[derive(Debug, Args)]
pub(super) struct Talk {
    /// Print the summary as JSON on stdout
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
        let spec = Spec::new(settings(self.settings, self.job.as_deref())?)?;
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
            ..Settings::default()
        };
        let mut spec = Spec::new(flags.relative_to(Path::new(""))?.over(job.settings))?;
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

pub(super) fn work(spec: Spec, mode: Mode, talk: &Talk) -> Result<Exit, JobError> {
    let mut terminal = talk.terminal();
    let signals = signals::listen()?;
    let session = match open(spec, mode, &terminal)? {
        Opened::Job(session) => *session,
        Opened::Skipped(text) => {
            // One line also for --quiet: that nothing ran is what cron's reader wants to know.
            tell(&text);
            return Ok(Exit::Done);
        }
        Opened::Nothing(text) => {
            terminal.say(&text);
            return Ok(Exit::Done);
        }
    };
    if let Some(success) = session.manifest.success()? {
        return finished(&session, success.failed, mode, talk, &terminal);
    }
    let outcome = crate::job::run(session, &signals, &mut terminal)?;
    terminal.say(outcome.report.text().trim_end());
    if talk.json() {
        print_json(&outcome.report)?;
    }
    Ok(outcome.exit)
}

/// The output is finished: the same answer as then, unless the input has moved on.
fn finished(
    session: &Session,
    failed: u64,
    mode: Mode,
    talk: &Talk,
    terminal: &Terminal,
) -> Result<Exit, JobError> {
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
    let exit = if failed > 0 { Exit::SomeFailed } else { Exit::Done };
    terminal.say(&format!("`{output}` is finished, and nothing is new in its input"));
    if talk.json() {
        let status = crate::job::Survey::open(&session.spec.output)?.status()?;
        print_json(&Report {
            output: output.to_string(),
            state: "done".into(),
            exit: exit as u8,
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
        })?;
    }
    Ok(exit)
}
