//! `haul plan`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::print_json;
use super::work::{Talk, settings};
use crate::job::{
    Exit, JobError, Mode, Opened, PlanSummary, Planner, Settings, Spec, dry_run, open,
};
use crate::store::Skip;

/// Settings of how a run talks, ends and reports. A plan has none of that; a job file may hold them
/// for the runs.
const OF_RUNS: [&str; 6] = ["max_runtime", "shard", "junit", "github", "prometheus", "progress"];

/// Freeze a job's plan without running it
///
/// The same flags as `run`, but for those that only a run has: a job file may hold these. With
/// --dry-run nothing is written, and a few pictures are tried to estimate the time.
#[derive(Debug, Args)]
#[command(
    args_override_self = true,
    mut_args(|arg| {
        let of_runs = OF_RUNS.contains(&arg.get_id().as_str());
        if of_runs { arg.hide(true) } else { arg }
    }),
    after_help = "\
Examples:
  haul plan --model yolov8n.pt --input photos/ --output out/ --dry-run
  haul plan jobs/nightly.toml && haul resume out/"
)]
pub(super) struct Plan {
    /// Job file: TOML, or a SageMaker CreateTransformJob request (.json)
    #[arg(value_name = "JOB.toml")]
    job: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    /// Write nothing; estimate the time
    #[arg(long, help_heading = "Output")]
    dry_run: bool,
    #[command(flatten)]
    talk: Talk,
}

impl Plan {
    pub(super) fn execute(self) -> Result<Exit, JobError> {
        let terminal = self.talk.terminal();
        let given =
            serde_json::to_value(&self.settings).expect("settings are JSON. This is a bug.");
        if let Some(key) = OF_RUNS.iter().find(|key| given.get(key).is_some()) {
            return Err(JobError::Usage(format!(
                "--{} does not go with plan, which is no run (give it to run or resume, or put it \
                 in the job file)",
                key.replace('_', "-")
            )));
        }
        let settings = settings(self.settings, self.job.as_deref(), &terminal)?;
        // A plan is everybody's; a job file that shares out the work may be planned, too.
        let spec = Spec::new(Settings { shard: None, ..settings })?;
        if self.dry_run {
            let estimate = dry_run(&spec, &terminal)?;
            terminal.say(&text(&estimate.plan));
            match (estimate.images_per_second, estimate.seconds) {
                (Some(rate), Some(seconds)) => terminal.say(&format!(
                    "about {} at {rate:.1} images/s ({} pictures were tried)",
                    humantime::format_duration(Duration::from_secs(seconds.round() as u64)),
                    estimate.probed
                )),
                _ => terminal.say("too few pictures to estimate the time"),
            }
            if self.talk.json() {
                print_json(&estimate)?;
            }
            let empty = estimate.plan.pictures == 0 && spec.since.is_empty() && !spec.allow_empty;
            return Ok(if empty { Exit::Empty } else { Exit::Done });
        }
        // They are kept for `resume`, which could not begin where they cannot be written.
        spec.notices.check_folders()?;
        let session = match open(spec, Mode::Run, &terminal)? {
            Opened::Job(session) => session,
            Opened::Skipped(text) | Opened::Nothing(text) => {
                terminal.say(&text);
                return Ok(Exit::Done);
            }
        };
        let store = session.manifest.store().clone();
        let mut planner = Planner::new(&*store, session.terms());
        while planner.next_segment()?.is_some() {}
        session.manifest.put_plan(planner.summary())?;
        terminal.say(&text(planner.summary()));
        if self.talk.json() {
            print_json(planner.summary())?;
        }
        Ok(Exit::Done)
    }
}

fn text(plan: &PlanSummary) -> String {
    let mut text = format!(
        "{} pictures, {:.1} MB, {} mini-batches",
        plan.pictures,
        plan.bytes as f64 / 1e6,
        plan.batches
    );
    for skip in Skip::ALL {
        if let Some(count) = plan.skipped.get(skip.as_str()) {
            text.push_str(&format!("\nnot planned: {count} {}", skip.explain()));
        }
    }
    text
}
