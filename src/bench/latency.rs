//! One picture at a time: how long somebody waits for an answer.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::times::Times;
use super::{JobError, fault, pictures};
use crate::engine::fused::{Fused, FusedWorker};
use crate::engine::{Batch, Engine, EngineError, Input, Worker as _};
use crate::picture::{Decoder, Letterbox, Letterboxer, probe};
use crate::pool::Params;
use crate::yolo::{Candidate, Nms};

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
    let files = some_of(files)?;
    let warm = files.len().min(5);
    let each = |mut worker: FusedWorker| {
        move |input: Input<'_>, conf, found: &mut Vec<_>| worker.run(input, conf, found)
    };
    let alone = engine.fused_worker().map_err(|error| fault(&error))?;
    let mut all = vec![measure(each(alone), 1, params, &files, warm, window)?];
    if let Some(many) = NonZeroUsize::new(threads).filter(|many| many.get() > 1) {
        // Only now: its threads are there from the start.
        let team = engine.team_worker(many).map_err(|error| fault(&error))?;
        all.push(measure(each(team), threads, params, &files, warm, window)?);
    }
    Ok(all)
}

/// On the first device of an engine that takes batches: each picture alone in one, which is padded.
pub(super) fn run_lane(
    engine: &dyn Engine,
    params: &Params,
    files: &[PathBuf],
    window: Duration,
) -> Result<Latency, JobError> {
    let files = some_of(files)?;
    let side = params.imgsz as usize;
    let mut lane = engine.lane(0).map_err(|error| fault(&error))?;
    let mut free = Some(engine.slot(3 * side * side).map_err(|error| fault(&error))?);
    let network = |input: Input<'_>, conf: f32, found: &mut Vec<Candidate>| {
        let lost =
            || EngineError::Unsupported { step: "a batch of which nothing came back".into() };
        let Input { width, height, rgb } = input;
        let mut slot = free.take().ok_or_else(lost)?;
        slot.bytes_mut()[..rgb.len()].copy_from_slice(rgb);
        lane.submit(Batch { width, height, conf, pictures: vec![slot] })?;
        let mut answered = lane.finish()?;
        free = answered.slots.pop();
        *found = answered.candidates.pop().ok_or_else(lost)?;
        Ok(())
    };
    // A device meets each size for the first time in the first round.
    measure(network, 1, params, &files, files.len(), window)
}

/// The contents of some files, evenly spread.
fn some_of(files: &[PathBuf]) -> Result<Vec<Vec<u8>>, JobError> {
    let some = files.iter().step_by(files.len().div_ceil(MOST));
    some.map(|file| pictures::read(file)).collect()
}

/// One picture after the other; the first `warm` of them are not counted.
fn measure(
    mut network: impl FnMut(Input<'_>, f32, &mut Vec<Candidate>) -> Result<(), EngineError>,
    threads: usize,
    params: &Params,
    files: &[Vec<u8>],
    warm: usize,
    window: Duration,
) -> Result<Latency, JobError> {
    let (mut decoder, mut letterboxer) = (Decoder::new(), Letterboxer::new());
    let (mut nms, mut found) = (Nms::new(), Vec::new());
    let (mut inside, mut whole) = (Vec::new(), Vec::new());
    let begin = Instant::now();
    for (number, bytes) in files.iter().cycle().enumerate() {
        let warm = number >= warm;
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
        network(input, params.nms.conf, &mut found).map_err(|error| fault(&error))?;
        let done = ready.elapsed();
        nms.run(&params.nms, &mut found);
        let all = start.elapsed();
        if warm {
            inside.push(done);
            whole.push(all);
        }
    }
    Ok(Latency { threads, network: Times::of(inside), whole: Times::of(whole) })
}
