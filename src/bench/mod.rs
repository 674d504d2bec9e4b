//! How fast this machine is with a model: the network alone, whole pictures, and each layer.
//!
//! Measures what jobs run (the same engine, the same pool) and leaves nothing behind. Numbers are
//! for people and for comparisons; nothing in haul decides by them.
//!
//! | part | from | to |
//! | --- | --- | --- |
//! | `network` | letterboxed bytes in memory | candidates, or every anchor decoded |
//! | `end_to_end` | files | detections, through the worker pool |
//! | `latency` | one picture at a time | candidates, and detections |
//! | `layers` | one worker alone | time and rate of each op |

mod end_to_end;
mod latency;
mod layers;
mod network;
mod pictures;
mod report;
mod times;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::fused::Fused;
use crate::engine::{Engine, Precision, choose, forced};
use crate::job::{JobError, peak as peak_memory};
use crate::kernels::{Cpu, peak};
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
    /// The network's arithmetic.
    pub precision: Precision,
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

    let usage = |error: &dyn std::error::Error| JobError::usage(error);
    let read = ModelFile::find(&options.model, &options.s3)?.read()?;
    let own = u32::try_from(read.info.imgsz).unwrap_or(640);
    let imgsz = options.imgsz.unwrap_or(own);
    if !(32..=8192).contains(&imgsz) {
        return Err(JobError::Usage(format!("--imgsz is {imgsz}; it lies between 32 and 8192")));
    }
    let imgsz = imgsz.next_multiple_of(32);
    let forced = forced().map_err(|e| usage(&e))?;
    let tier = choose(options.precision, None, forced).map_err(|e| usage(&e))?;
    let engine = Arc::new(Fused::new(&read.network, tier).map_err(|e| usage(&e))?);
    drop(read.network);

    let params = Arc::new(params(imgsz, options.square));
    let mut report = Report {
        haul: env!("CARGO_PKG_VERSION").into(),
        cpu: Cpu::get().brand.clone(),
        model: options.model.display().to_string(),
        tier: tier.name().into(),
        numeric_class: engine.numeric_class().to_owned(),
        precision: options.precision.name().into(),
        imgsz,
        square: options.square,
        workers,
        seconds: options.seconds,
        files: files.len(),
        ..Report::default()
    };
    // First, so that the peak of memory is that of a job and not of this program's own pictures.
    if options.wants(Only::EndToEnd) {
        let engine: Arc<dyn Engine> = engine.clone();
        let run = end_to_end::run(&engine, &params, &files, workers, options.window())?;
        report.end_to_end_images_per_second = Some(run.images_per_second);
        report.end_to_end_pictures = run.pictures;
        report.failed_pictures = run.failed;
        report.stages_ms = Some(run.stages);
        report.devices = run.devices;
        report.peak_memory_bytes = peak_memory();
    }
    if options.wants(Only::Model) || options.per_layer || options.latency {
        let pictures = pictures::letterboxed(&files, &params)?;
        let gflop = |p: &pictures::Picture| -> f64 {
            engine.layers(p.width, p.height).iter().map(|layer| layer.gflop).sum()
        };
        let mean = pictures.iter().map(gflop).sum::<f64>() / pictures.len() as f64;
        report.network_gflop = Some(mean);
        if options.wants(Only::Model) {
            let window = options.window();
            let sparse = network::run(&engine, &pictures, workers, window, false)?;
            let dense = network::run(&engine, &pictures, workers, window, true)?;
            report.model_pictures = pictures.len();
            report.model_images_per_second = Some(sparse.images_per_second);
            report.model_ms = Some(sparse.times);
            report.model_cpu_ms = Some(sparse.cpu_ms);
            report.model_dense_images_per_second = Some(dense.images_per_second);
            report.model_dense_ms = Some(dense.times);
            report.model_dense_cpu_ms = Some(dense.cpu_ms);
        }
        if options.latency {
            report.latency_ms =
                Some(latency::run(&engine, &params, &files, workers, options.window())?);
        }
        if options.per_layer {
            report.layers = Some(layers::run(&engine, &pictures[0], options.window())?);
        }
    }
    // Last, when the clock is where the load has brought it.
    report.peak_gflops = peak(tier, PEAK).unwrap_or(0.0);
    if let Some(layers) = &mut report.layers {
        layers.peak_gflops = layers.peak_gflops.max(report.peak_gflops);
        report.peak_gflops = layers.peak_gflops;
    }
    report.peak_memory_bytes = report.peak_memory_bytes.or_else(peak_memory);
    Ok(report)
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
