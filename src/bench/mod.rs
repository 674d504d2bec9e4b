//! How fast this machine is with a model: the network alone, whole pictures, and each layer.
//!
//! Measures what jobs run (the same engine, the same pool, the same lanes) and leaves nothing behind. Numbers are
//! for people and for comparisons; nothing in haul decides by them.
//!
//! | part | from | to |
//! | --- | --- | --- |
//! | `network` | letterboxed bytes in memory | candidates, or every anchor decoded |
//! | `lanes` | the same, in batches for a device | candidates |
//! | `end_to_end` | files | detections, through the worker pool |
//! | `latency` | one picture at a time | candidates, and detections |
//! | `layers` | one worker alone | time and rate of each op |

mod cpu;
#[cfg(test)]
mod double;
mod end_to_end;
mod gpu;
mod lanes;
mod latency;
mod layers;
mod network;
mod pictures;
mod report;
mod times;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::{Arithmetic, Chosen, Device, Engine, decide, gpus};
use crate::job::{Asked, JobError, about_batch, refused};
use crate::kernels::Cpu;
use crate::model::ModelFile;
use crate::picture::{Limits, Truncated};
use crate::pool::Params;
use crate::store::S3Options;
use crate::yolo::NmsOptions;

pub use end_to_end::Stages;
pub use latency::Latency;
pub use layers::{LayerTime, Layers};
pub use report::Report;
pub use times::Times;

/// How long the peak of a core is looked for.
const PEAK: Duration = Duration::from_millis(100);

/// One of the two main measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Only {
    /// The network alone.
    Model,
    /// From files to detections.
    EndToEnd,
}

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// The checkpoint: a path, or an address of S3.
    pub model: PathBuf,
    /// How S3 is reached, if it is there.
    pub s3: S3Options,
    /// A picture, or a folder with everything below it.
    pub images: PathBuf,
    /// Longest side of the network's input; `None` is the model's own.
    pub imgsz: Option<u32>,
    /// Letterbox to a square.
    pub square: bool,
    /// The network's arithmetic, and where it runs.
    pub arithmetic: Arithmetic,
    /// Worker threads; `None` is one for each core.
    pub workers: Option<usize>,
    /// How long each measurement takes.
    pub seconds: f64,
    /// One of the main measurements instead of both.
    pub only: Option<Only>,
    /// Each layer too.
    pub per_layer: bool,
    /// One picture at a time too.
    pub latency: bool,
}

impl Options {
    fn window(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    fn wants(&self, part: Only) -> bool {
        self.only.is_none_or(|only| only == part)
    }
}

/// Measures.
///
/// # Errors
/// When options make no sense, or model or pictures cannot be read.
pub fn run(options: &Options) -> Result<Report, JobError> {
    if !(0.1..=86_400.0).contains(&options.seconds) {
        let given = options.seconds;
        return Err(JobError::Usage(format!("--seconds is {given}; it is at least 0.1")));
    }
    if options.workers == Some(0) {
        return Err(JobError::Usage("--workers is 0; it is at least 1".into()));
    }
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let workers = options.workers.unwrap_or(cores);
    let files = pictures::find(&options.images)?;

    refuse_layers(options, &options.arithmetic.device)?;
    let mut notes = Vec::new();
    let mut chosen =
        decide(&options.arithmetic, None, &mut notes).map_err(|error| refused(&error, &notes))?;
    let read = ModelFile::find(&options.model, &options.s3)?.read()?;
    let own = u32::try_from(read.info.imgsz).unwrap_or(640);
    let imgsz = options.imgsz.unwrap_or(own);
    if !(32..=8192).contains(&imgsz) {
        return Err(JobError::Usage(format!("--imgsz is {imgsz}; it lies between 32 and 8192")));
    }
    let imgsz = imgsz.next_multiple_of(32);
    let params = Arc::new(params(imgsz, options.square));
    let mut report = Report {
        haul: env!("CARGO_PKG_VERSION").into(),
        cpu: Cpu::get().brand.clone(),
        model: options.model.display().to_string(),
        precision: options.arithmetic.precision.name().into(),
        imgsz,
        square: options.square,
        workers,
        seconds: options.seconds,
        files: files.len(),
        notes,
        ..Report::default()
    };
    let (network, begin) = (Arc::new(read.network), Instant::now());
    let mut opened: Option<Arc<dyn Engine>> = None;
    if let Chosen::Gpus(numbers) = &chosen {
        refuse_layers(options, &Device::Cuda(numbers.clone()))?;
        let asked = Asked { arithmetic: &options.arithmetic, class: None, side: imgsz as usize };
        let engine = asked.open(network.clone(), &mut chosen, false, &mut report.notes);
        opened = Some(engine.map_err(|error| refused(&error, &report.notes))?);
    }
    match (&chosen, opened) {
        (Chosen::Kernels(tier), _) => {
            report.notes.extend(about_batch(options.arithmetic.batch, None, false));
            cpu::measure(&mut report, options, &network, *tier, &params, &files)?;
        }
        (Chosen::Gpus(numbers), Some(engine)) => {
            let device = Device::Cuda(numbers.clone());
            let here = gpus().unwrap_or_default();
            let named = numbers.iter().filter_map(|n| here.iter().find(|gpu| gpu.number == *n));
            report.gpus = named.map(|gpu| gpu.name.clone()).collect();
            report.device = device.to_string();
            let opened = begin.elapsed();
            drop(network);
            gpu::measure(&mut report, options, &engine, opened, &params, &files)?;
        }
        (Chosen::Candle | Chosen::Gpus(_), _) => {
            return Err(JobError::Internal(
                "candle is for jobs that have it, and GPUs are opened. This is a bug.".into(),
            ));
        }
    }
    Ok(report)
}

/// Layers are looked at one by one in our own kernels only.
fn refuse_layers(options: &Options, device: &Device) -> Result<(), JobError> {
    match device {
        Device::Cuda(_) if options.per_layer => Err(JobError::Usage(format!(
            "--per-layer is for the kernels of CPUs, and this is for {device} (--device cpu measures \
             those)"
        ))),
        _ => Ok(()),
    }
}

/// What a job with default settings asks of the pool.
fn params(imgsz: u32, square: bool) -> Params {
    Params {
        limits: Limits {
            max_pixels: 100_000_000,
            max_memory: 512 << 20,
            truncated: Truncated::Reject,
        },
        imgsz,
        square,
        nms: NmsOptions::default(),
        annotate: None,
    }
}

/// A fault of the engine while measuring.
fn fault(error: &dyn std::error::Error) -> JobError {
    match JobError::usage(error) {
        JobError::Usage(text) => JobError::Internal(text),
        other => other,
    }
}
