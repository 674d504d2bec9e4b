//! The command line: one file per command. Structs here are syntax; every check is `job`'s.

mod bench;
mod completions;
mod doctor;
mod export;
mod gpus;
mod inference;
mod lambda;
mod log;
mod model;
mod plan;
mod retry;
mod run;
mod serve;
mod serve_async;
mod signals;
mod status;
mod verify;
mod work;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::job::{EXIT_HELP, Exit, JobError, S3Flags, Survey};
use crate::store::Place;

/// YOLOv8 over every picture under a folder or an S3 prefix, once, and proof that it did.
///
/// Results are JSON Lines in parts, committed mini-batch by mini-batch: kill it, run the same
/// command again, and only what is missing is done.
#[derive(Debug, Parser)]
#[command(name = "haul", version = VERSION, max_term_width = 100, args_override_self = true)]
#[command(after_help = format!("{EXAMPLES}\n{EXIT_HELP}"))]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What `--version` says: whether CUDA is built in, too.
const VERSION: &str = match CUDA {
    true => concat!(env!("CARGO_PKG_VERSION"), "+cuda"),
    false => env!("CARGO_PKG_VERSION"),
};

/// Whether this haul was built to use GPUs.
const CUDA: bool = cfg!(feature = "cuda");

const EXAMPLES: &str = "\
Examples:
  haul run --model yolov8n.pt --input photos/ --output out/
  haul run jobs/quickstart.toml --conf 0.5        # a job file; flags go over it
  haul resume out/                                # what a kill or a crash has left
  haul status out/ && haul verify out/            # look, and prove
  haul retry out/ --output again/ --truncated accept    # only the pictures that failed
  haul export out/ --to coco --dest boxes.json
";

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    Resume(run::Resume),
    Retry(retry::Retry),
    Plan(plan::Plan),
    Status(status::Status),
    Verify(verify::Verify),
    Export(export::Export),
    Serve(Box<serve::Serve>),
    Lambda(Box<lambda::Lambda>),
    #[command(subcommand)]
    Model(model::ModelCommand),
    Doctor(doctor::Doctor),
    Bench(bench::Bench),
    Completions(completions::Completions),
}

/// The output that a command is about, and how it is reached.
#[derive(Debug, Args)]
struct Output {
    /// The output: its folder, or s3://BUCKET/PREFIX/
    #[arg(value_name = "OUT")]
    path: PathBuf,
    #[command(flatten)]
    s3: S3Flags,
}

impl Output {
    fn place(&self) -> Result<Place, JobError> {
        Place::parse(&self.path).map_err(JobError::Usage)
    }

    fn survey(&self) -> Result<Survey, JobError> {
        Survey::open(&self.place()?, &self.s3.options()?)
    }
}

impl Cli {
    /// Does what was asked.
    ///
    /// # Errors
    /// What could not be done, with its exit code.
    pub fn execute(self) -> Result<Exit, JobError> {
        match self.command {
            Command::Run(run) => run.execute(),
            Command::Resume(resume) => resume.execute(),
            Command::Retry(retry) => retry.execute(),
            Command::Plan(plan) => plan.execute(),
            Command::Status(status) => status.execute(),
            Command::Verify(verify) => verify.execute(),
            Command::Export(export) => export.execute(),
            Command::Serve(serve) => serve.execute(),
            Command::Lambda(lambda) => lambda.execute(),
            Command::Model(model) => model.execute(),
            Command::Doctor(doctor) => doctor.execute(),
            Command::Bench(bench) => bench.execute(),
            Command::Completions(completions) => completions.execute(),
        }
    }
}

/// The command line. AWS Lambda starts an executable `bootstrap` without any: that is `haul lambda`.
#[must_use]
pub fn arguments() -> Vec<OsString> {
    let given: Vec<OsString> = std::env::args_os().collect();
    let [name] = given.as_slice() else { return given };
    let bootstrap = Path::new(name).file_name() == Some("bootstrap".as_ref());
    match bootstrap && std::env::var_os("AWS_LAMBDA_RUNTIME_API").is_some() {
        true => vec!["haul".into(), "lambda".into()],
        false => given,
    }
}

/// Prints to stdout. A reader that has gone away is no failure of ours.
fn print(text: &str) -> Result<(), JobError> {
    use std::io::Write as _;
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(JobError::Internal(format!("cannot write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// A path as it stands in messages: on one line, whatever it is.
fn shown(path: &std::path::Path) -> String {
    crate::store::one_line(&path.to_string_lossy())
}

/// Prints a value as JSON, on lines of its own.
fn print_json(value: &impl serde::Serialize) -> Result<(), JobError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| JobError::Internal(format!("cannot write JSON: {error}")))?;
    print(&format!("{text}\n"))
}
