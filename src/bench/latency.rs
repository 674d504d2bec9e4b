//! One picture at a time: how long somebody waits for an answer.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::times::Times;
use super::{JobError, fault, pictures};
use crate::engine::fused::{Fused, FusedWorker};
use crate::engine::{Input, Worker as _};
use crate::picture::{Decoder, Letterbox, Letterboxer, probe};
use crate::pool::Params;
use crate::yolo::Nms;

/// Most files held in memory.
const MOST: usize = 64;

/// Milliseconds of a picture.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Latency {
    /// Threads that share a picture's network.
    pub threads: usize,
    /// Letterboxed bytes to candidates.
    pub network: Times,
    /// A file's bytes to detections.
    pub whole: Times,
}

/// On one thread, and where there are more on a team of them.
pub(super) fn run(
    engine: &Fused,
    params: &Params,
    files: &[PathBuf],
    threads: usize,
    window: Duration,
) -> Result<Vec<Latency>, JobError> {
    let some = files.iter().step_by(files.len().div_ceil(MOST));
    let files = some.map(|file| pictures::read(file)).collect::<Result<Vec<_>, _>>()?;
    let mut alone = engine.fused_worker().map_err(|error| fault(&error))?;
    let mut all = vec![measure(&mut alone, 1, params, &files, window)?];
    if let Some(many) = NonZeroUsize::new(threads).filter(|many| many.get() > 1) {
        // Only now: its threads are there from the start.
        let mut team = engine.team_worker(many).map_err(|error| fault(&error))?;
        all.push(measure(&mut team, threads, params, &files, window)?);
    }
    Ok(all)
}

fn measure(
    worker: &mut FusedWorker,
    threads: usize,
    params: &Params,
    files: &[Vec<u8>],
    window: Duration,
) -> Result<Latency, JobError> {
    let (mut decoder, mut letterboxer) = (Decoder::new(), Letterboxer::new());
    let (mut nms, mut found) = (Nms::new(), Vec::new());
    let (mut network, mut whole) = (Vec::new(), Vec::new());
    let begin = Instant::now();
    for (number, bytes) in files.iter().cycle().enumerate() {
        let warm = number >= files.len().min(5);
        if begin.elapsed() >= window && (warm && !whole.is_empty() || number > 2 * files.len()) {
            break;
        }
        let start = Instant::now();
        let decoded = probe(bytes, &params.limits)
            .and_then(|header| decoder.run(bytes, &header, &params.limits));
        let Ok(picture) = decoded else { continue };
        let geometry = Letterbox::new(picture.width, picture.height, params.imgsz, params.square);
        let Ok(rgb) = letterboxer.run(picture, &geometry) else { continue };
        let (width, height) = (geometry.width as usize, geometry.height as usize);
        let input = Input { width, height, rgb };
        let ready = Instant::now();
        worker.run(input, params.nms.conf, &mut found).map_err(|error| fault(&error))?;
        let done = ready.elapsed();
        nms.run(&params.nms, &mut found);
        let all = start.elapsed();
        if warm {
            network.push(done);
            whole.push(all);
        }
    }
    Ok(Latency { threads, network: Times::of(network), whole: Times::of(whole) })
}
