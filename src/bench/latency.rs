//! One picture at a time: how long somebody waits for an answer.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::times::Times;
use super::{JobError, fault, pictures};
use crate::engine::fused::{Fused, FusedWorker};
use crate::engine::{EngineError, Input, Worker as _};
use crate::picture::{Decoder, Letterbox, Letterboxer, probe};
use crate::pool::Params;
use crate::yolo::Nms;

/// Most files held in memory.
const MOST: usize = 64;

/// Milliseconds of a picture.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Latency {
    /// Threads that share a picture.
    pub threads: usize,
    /// Letterboxed bytes to candidates.
    pub network: Times,
    /// A file's bytes to detections.
    pub whole: Times,
}

/// The worker that answers soonest, and over how many threads it spreads a picture. One, until the
/// engine has a worker that is a team: this is the place to ask for it.
fn soonest(engine: &Fused) -> Result<(FusedWorker, usize), EngineError> {
    Ok((engine.fused_worker()?, 1))
}

pub(super) fn run(
    engine: &Fused,
    params: &Params,
    files: &[PathBuf],
    window: Duration,
) -> Result<Latency, JobError> {
    let (mut worker, threads) = soonest(engine).map_err(|error| fault(&error))?;
    let some = files.iter().step_by(files.len().div_ceil(MOST));
    let files = some.map(|file| pictures::read(file)).collect::<Result<Vec<_>, _>>()?;
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
