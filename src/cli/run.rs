//! `haul run` and `haul resume`.

use std::path::{Path, PathBuf};

use clap::Args;

use super::work::{Talk, prepared, settings, work};
use super::{Output, print};
use crate::job::{Exit, JobError, Manifest, Mode, Settings, ShardChoice, Spec, open_output};

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
  haul run -m yolov8n.pt -i s3://bucket/2026/ -o s3://bucket/out/
  find . -name '*.jpg' -newer stamp | haul run -m yolov8n.pt -i - -o out/
  haul run nightly.toml --since outputs/ --output outputs/2026-01-02   # only what is new
  haul run nightly.toml --if-locked skip                               # in cron
  haul run nightly.toml --max-runtime 6h                               # until the morning
  haul run job.toml --shard 2/3                                        # one of three machines
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
    #[command(flatten)]
    output: Output,
    /// The checkpoint, if it has moved; its contents must be the same
    #[arg(long, short, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Work on one share of the mini-batches: i/N; auto, as the scheduler says; auto/N
    #[arg(long, value_name = "i/N|auto")]
    shard: Option<String>,
    /// Worker threads
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Where the network runs: auto, cpu, cuda:0, cuda:0,1 [default: where it ran, if that is here]
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
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

impl Run {
    pub(super) fn execute(self) -> Result<Exit, JobError> {
        let spec = prepared(&self.talk, self.settings.progress.clone(), |progress| {
            let given = settings(self.settings, self.job.as_deref(), &self.talk.terminal())?;
            progress.clone_from(&given.progress);
            Spec::new(given)
        })?;
        if self.print_config {
            // Which shard this is would be refused in a job file.
            let named = matches!(spec.shard, Some(ShardChoice::Named(_)));
            let shard = spec.settings.shard.clone().filter(|_| !named);
            let text = toml::to_string(&Settings { shard, ..spec.settings })
                .map_err(|error| JobError::Internal(format!("cannot write TOML: {error}")))?;
            print(&text)?;
            return Ok(Exit::Done);
        }
        work(spec, if self.new { Mode::StartOver } else { Mode::Run }, &self.talk)
    }
}

impl Resume {
    pub(super) fn execute(self) -> Result<Exit, JobError> {
        let prepare = |progress: &mut Option<String>| self.spec(progress);
        let spec = prepared(&self.talk, self.progress.clone(), prepare)?;
        work(spec, Mode::Resume, &self.talk)
    }

    /// The job that is there, with flags over its settings.
    fn spec(&self, progress: &mut Option<String>) -> Result<Spec, JobError> {
        let place = self.output.place()?;
        let manifest = Manifest::new(open_output(&place, &self.output.s3.options()?));
        let job = manifest
            .job()?
            .ok_or_else(|| JobError::Usage(format!("`{place}` holds no job of haul to resume")))?;
        let flags = Settings {
            model: self.model.clone(),
            output: Some(self.output.path.clone()),
            shard: self.shard.clone(),
            workers: self.workers,
            device: self.device.clone(),
            memory_budget: self.memory_budget.clone(),
            max_failures: self.max_failures.clone(),
            batch_timeout: self.batch_timeout.clone(),
            grace: self.grace.clone(),
            max_runtime: self.max_runtime.clone(),
            if_locked: self.if_locked.clone(),
            gate: self.gate.clone(),
            junit: self.junit.clone(),
            github: self.github,
            prometheus: self.prometheus.clone(),
            progress: self.progress.clone(),
            ..self.output.s3.settings()
        };
        let settings = flags.relative_to(Path::new(""))?.over(job.settings);
        progress.clone_from(&settings.progress);
        let mut spec = Spec::new(settings)?;
        spec.inference.device_is_inherited = self.device.is_none();
        spec.retry = job.retry;
        let listed_again = spec.input == crate::job::Input::Stdin && spec.retry.is_none();
        if listed_again && manifest.plan()?.is_none() {
            return Err(JobError::Usage(
                "the list came on standard input and was not planned to its end: run the first \
                 command again, with the list"
                    .into(),
            ));
        }
        Ok(spec)
    }
}
