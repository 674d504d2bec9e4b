//! The network alone: letterboxed bytes to candidates, each thread with a worker of its own.

use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use super::pictures::Picture;
use super::times::Times;
use super::{JobError, fault};
use crate::engine::fused::{Dense, Fused};
use crate::engine::{EngineError, Worker as _};

/// Least confidence of a candidate, as by default in jobs.
const CONF: f32 = 0.25;

/// What came out.
pub(super) struct Run {
    pub(super) images_per_second: f64,
    pub(super) times: Times,
    /// Mean milliseconds of a core for a picture.
    pub(super) cpu_ms: f64,
}

/// Runs `workers` threads over `pictures` for a while; with `dense` every anchor is decoded.
pub(super) fn run(
    engine: &Arc<Fused>,
    pictures: &[Picture],
    workers: usize,
    window: Duration,
    dense: bool,
) -> Result<Run, JobError> {
    let start = Barrier::new(workers);
    let one = |index: usize| work(engine, pictures, index, window, dense, &start);
    let one = &one;
    let done: Vec<Result<Measured, EngineError>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|index| scope.spawn(move || one(index))).collect();
        threads
            .into_iter()
            .map(|thread| match thread.join() {
                Ok(times) => times,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect()
    });
    let (mut all, mut rate, mut cpu_time) = (Vec::new(), 0.0, Duration::ZERO);
    for measured in done {
        let Measured { times, cpu } = measured.map_err(|error| fault(&error))?;
        // Each at its own pace: a thread that stops a little later has also done a little more.
        rate += times.len() as f64 / times.iter().sum::<Duration>().as_secs_f64();
        all.extend(times);
        cpu_time += cpu;
    }
    let cpu_ms = cpu_time.as_secs_f64() * 1e3 / all.len() as f64;
    Ok(Run { images_per_second: rate, times: Times::of(all), cpu_ms })
}

fn work(
    engine: &Fused,
    pictures: &[Picture],
    index: usize,
    window: Duration,
    dense: bool,
    start: &Barrier,
) -> Result<Measured, EngineError> {
    let prepared = engine.fused_worker().and_then(|mut worker| {
        let (mut found, mut all) = (Vec::new(), Dense::default());
        let mut each = move |picture: &Picture| match dense {
            true => worker.dense(picture.input(), &mut all),
            false => worker.run(picture.input(), CONF, &mut found),
        };
        // Every size once, so that plans and memory are there; and two of the first at least.
        let mut sizes: Vec<&Picture> = Vec::new();
        for picture in pictures {
            if !sizes.iter().any(|s| (s.width, s.height) == (picture.width, picture.height)) {
                sizes.push(picture);
            }
        }
        for picture in sizes.into_iter().chain([&pictures[0]]) {
            each(picture)?;
        }
        Ok(each)
    });
    // All come here, also who failed: the others wait for them.
    start.wait();
    let mut each = prepared?;
    let mut times = Vec::with_capacity(4096);
    let used = cpu_time();
    let begin = Instant::now();
    let mut before = begin;
    // Each thread begins somewhere else, as the workers of a job are never at the same picture.
    for picture in pictures.iter().cycle().skip(index * pictures.len() / 7) {
        each(picture)?;
        let now = Instant::now();
        times.push(now - before);
        before = now;
        if now - begin >= window {
            break;
        }
    }
    Ok(Measured { times, cpu: cpu_time().saturating_sub(used) })
}

/// What one thread measured.
struct Measured {
    times: Vec<Duration>,
    cpu: Duration,
}

/// Time that this thread has had a core: less than the clock's where others want it too.
fn cpu_time() -> Duration {
    let clock = nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID;
    nix::time::clock_gettime(clock).map_or(Duration::ZERO, Duration::from)
}
