//! `haul bench`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{print, print_json};
use crate::bench::{Only, Options, run};
use crate::job::{Exit, JobError, S3Flags, arithmetic, tell};
use crate::store::one_line;

/// Measure how fast this machine is with a model; writes nothing
///
/// Pictures a second through the network alone (letterboxed in memory, to candidates and to all
/// anchors decoded) and from files to boxes, as a job does it. Measure on a machine that does
/// nothing else.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  haul bench --model yolov8n.pt --images photos/
  haul bench --model yolov8n.pt --images photos/ --square --precision f32 --workers 2
  haul bench --model yolov8n.pt --images street.jpg --only model --per-layer
  haul bench --model yolov8n.pt --images photos/ --device cuda:0 --batch 64 --latency")]
pub(super) struct Bench {
    /// The checkpoint, or an archive with it (.tar.gz); also s3://...
    #[arg(long, short, value_name = "FILE")]
    model: PathBuf,
    /// A picture, or a folder with everything below it
    #[arg(long, value_name = "DIR|FILE")]
    images: PathBuf,
    /// Longest side of the network's input [default: the model's own, else 640]
    #[arg(long, value_name = "N")]
    imgsz: Option<u32>,
    /// Pad every picture to a square
    #[arg(long)]
    square: bool,
    /// Arithmetic of the network: auto (the fastest here), f32, bf16, or f16 on a GPU
    #[arg(long, value_name = "KIND", default_value = "auto")]
    precision: String,
    /// Worker threads [default: one for each core]
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Where the network runs: auto (a GPU if there is one), cpu, or GPUs: cuda:0, cuda:0,1
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: String,
    /// Pictures that a GPU computes together, 1 to 1024 [default: as suits it]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// How long each measurement takes
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    seconds: f64,
    /// Only one of the two
    #[arg(long, value_name = "PART")]
    only: Option<Part>,
    /// Each layer too, on a CPU: time, rate, share of the core's peak
    #[arg(long)]
    per_layer: bool,
    /// One picture at a time too: on one thread and divided among all, or alone in a GPU's batch
    #[arg(long)]
    latency: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    s3: S3Flags,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Part {
    /// The network alone
    Model,
    /// From files to boxes
    EndToEnd,
}

impl Bench {
    pub(super) fn execute(self) -> Result<Exit, JobError> {
        let report = run(&Options {
            model: self.model,
            s3: self.s3.options()?,
            images: self.images,
            imgsz: self.imgsz,
            square: self.square,
            arithmetic: arithmetic(Some(&self.precision), Some(&self.device), self.batch)?,
            workers: self.workers,
            seconds: self.seconds,
            only: self.only.map(|part| match part {
                Part::Model => Only::Model,
                Part::EndToEnd => Only::EndToEnd,
            }),
            per_layer: self.per_layer,
            latency: self.latency,
        })?;
        report.notes.iter().for_each(|note| tell(&one_line(note)));
        match self.json {
            true => print_json(&report)?,
            false => print(&report.text())?,
        }
        Ok(Exit::Done)
    }
}
