//! From files to detections, through the pool that jobs use.
//!
//! A file is read from the disk each time, as a job does (from its cache, after the first time
//! around). What a job does besides and this does not: list, plan, write lines.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{JobError, pictures};
use crate::engine::Engine;
use crate::pool::{Budget, DevicesSoFar, Failure, Outcome, Params, Pool, Spent, Work};

/// Room for files read ahead and pictures being decoded, as a job has by default …
const AHEAD: u64 = 64 << 20;
/// … for each worker.
const DECODED: u64 = 256 << 20;

/// Mean milliseconds of a picture by stage.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Stages {
    /// Reading the file (by the thread that feeds the workers).
    pub fetch: f64,
    /// Bytes to upright RGB.
    pub decode: f64,
    /// RGB to network input.
    pub letterbox: f64,
    /// The network.
    pub infer: f64,
    /// Choosing boxes.
    pub boxes: f64,
    /// Workers waiting for pictures or memory.
    pub idle: f64,
}

/// So many files at most are done once before anything counts, where devices compute.
const ONCE: usize = 4096;

/// What came out.
pub(super) struct Run {
    pub(super) images_per_second: f64,
    pub(super) pictures: usize,
    pub(super) failed: usize,
    pub(super) stages: Stages,
    /// What the engine's devices did, without the warm-up.
    pub(super) devices: Option<DevicesSoFar>,
}

/// One picture that is done.
struct Done {
    at: Instant,
    fetch: Duration,
    spent: Spent,
    failed: bool,
}

pub(super) fn run(
    engine: &Arc<dyn Engine>,
    params: &Arc<Params>,
    files: &[PathBuf],
    workers: usize,
    window: Duration,
) -> Result<Run, JobError> {
    let pool = Pool::start(engine, workers, 2 * workers, params.imgsz as usize)?;
    let budget = Budget::new(AHEAD + DECODED * workers as u64, params.limits.max_memory);
    let queue = pool.queue();
    let (sender, answers) = crossbeam_channel::unbounded::<Result<Done, String>>();
    let give = |file: &Path| -> Result<(), JobError> {
        let mut ticket = budget.open();
        let size = std::fs::metadata(file).map_or(0, |metadata| metadata.len());
        ticket.grow(size).map_err(|error| JobError::Internal(error.to_string()))?;
        let start = Instant::now();
        let bytes = pictures::read(file)?;
        let (fetch, sender) = (start.elapsed(), sender.clone());
        let reply = move |Outcome { result, spent, .. }: Outcome| {
            let at = Instant::now();
            let done = match result {
                Err(Failure::Worker(text) | Failure::Lost(text) | Failure::Exhausted(text)) => {
                    Err(text)
                }
                result => Ok(Done { at, fetch, spent, failed: result.is_err() }),
            };
            // The receiver outlives the pool's work.
            let _ = sender.send(done);
        };
        let work = Work {
            bytes,
            params: params.clone(),
            ticket,
            cancelled: Arc::new(AtomicBool::new(false)),
            note: None,
            reply: Box::new(reply),
        };
        queue.send(work).map_err(|_| JobError::Internal("the workers have ended".into()))
    };
    let devices = pool.devices();
    if devices.is_some() {
        // Devices set up each shape when it comes first.
        let first = &files[..files.len().min(ONCE)];
        first.iter().try_for_each(|file| give(file))?;
        for answer in answers.iter().take(first.len()) {
            answer.map_err(JobError::Internal)?;
        }
    }
    // Long enough that every worker has its memory and the clock its speed.
    let warm = (window / 5).min(Duration::from_secs(1));
    let begin = Instant::now();
    let mut before = None;
    for file in files.iter().cycle() {
        if begin.elapsed() >= warm + window {
            break;
        }
        if let (None, Some(devices)) = (&before, &devices)
            && begin.elapsed() >= warm
        {
            before = Some(devices.so_far());
        }
        give(file)?;
    }
    drop((sender, queue));
    let done: Vec<Done> =
        answers.iter().collect::<Result<_, String>>().map_err(JobError::Internal)?;
    pool.stop(Duration::from_secs(1));
    let devices = devices.map(|devices| devices.so_far().since(&before.unwrap_or_default()));
    Ok(Run { devices, ..sum_up(done, begin + warm, workers, devices.is_some())? })
}

/// Counts from the first picture that was done after `warm` to the last one.
fn sum_up(
    mut done: Vec<Done>,
    warm: Instant,
    workers: usize,
    on_devices: bool,
) -> Result<Run, JobError> {
    done.sort_by_key(|one| one.at);
    let failed = done.iter().filter(|one| one.failed).count();
    if failed == done.len() {
        return Err(JobError::Usage("none of the pictures could be decoded".into()));
    }
    let few = || JobError::Usage("too few pictures were done (give it more --seconds)".into());
    let first = done.iter().position(|one| one.at >= warm).ok_or_else(few)?;
    let counted = &done[first + 1..];
    let last = counted.last().ok_or_else(few)?;
    let seconds = (last.at - done[first].at).as_secs_f64();
    let mean = |stage: fn(&Done) -> Duration| {
        counted.iter().map(stage).sum::<Duration>().as_secs_f64() * 1e3 / counted.len() as f64
    };
    let mut stages = Stages {
        fetch: mean(|one| one.fetch),
        decode: mean(|one| one.spent.decode),
        letterbox: mean(|one| one.spent.letterbox),
        infer: mean(|one| one.spent.infer),
        boxes: mean(|one| one.spent.boxes),
        idle: 0.0,
    };
    let Stages { decode, letterbox, infer, boxes, .. } = stages;
    let available = 1e3 * seconds * workers as f64 / counted.len() as f64;
    // A device's time is not the workers'.
    let infer = if on_devices { 0.0 } else { infer };
    stages.idle = (available - decode - letterbox - infer - boxes).max(0.0);
    Ok(Run {
        images_per_second: counted.len() as f64 / seconds,
        pictures: counted.len(),
        failed,
        stages,
        devices: None,
    })
}
