//! The threads of a pool, and how they end.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use super::crash;
use super::lanes::{self, Devices};
use super::work::{Idle, StartError, Work};
use super::worker::State;
use crate::engine::{Engine, EngineError, Team};
use crate::picture::Decoder;

/// The workers and their queue.
pub struct Pool {
    queue: Option<Sender<Work>>,
    // One rayon pool of one thread for each worker: rayon inside the network stays on that thread,
    // so no worker is interrupted half-way to begin another picture in the same scratch memory.
    threads: Vec<rayon::ThreadPool>,
    finished: Receiver<()>,
    idle: Arc<Idle>,
    devices: Option<Arc<Devices>>,
}

impl Pool {
    /// Starts `workers` threads, with room for `waiting` pictures before [`Pool::queue`] blocks, and
    /// a thread for each device of an engine that has some. Inputs have at most `side` by `side`
    /// pixels.
    ///
    /// # Errors
    /// When threads, the engine's scratch memory or its devices cannot be had.
    pub fn start(
        engine: &Arc<dyn Engine>,
        workers: usize,
        waiting: usize,
        side: usize,
    ) -> Result<Pool, StartError> {
        crash::install();
        let (queue, work) = crossbeam_channel::bounded::<Work>(waiting.max(1));
        let (alive, finished) = crossbeam_channel::bounded::<()>(0);
        let idle = Arc::new(Idle::default());
        let mut pool = Pool {
            queue: Some(queue),
            threads: Vec::with_capacity(workers),
            finished,
            idle: idle.clone(),
            devices: None,
        };
        let serving: Vec<Serving> = match engine.batching() {
            Some(batching) => {
                let (devices, preparers) =
                    lanes::start(engine, batching, workers, side, &work, &idle, &alive)?;
                pool.devices = Some(devices);
                let serve = |mut preparer: lanes::Preparer| -> Serving {
                    Box::new(move |work| preparer.serve(work))
                };
                preparers.into_iter().map(serve).collect()
            }
            None => {
                let team = Team::new(NonZeroUsize::new(workers).unwrap_or(NonZeroUsize::MIN));
                let worker = |_| -> Result<Serving, StartError> {
                    let mut worker =
                        State::new(engine, &team, &idle).map_err(|error| refused(&error))?;
                    Ok(Box::new(move |work| worker.serve(work)))
                };
                (0..workers).map(worker).collect::<Result<_, _>>()?
            }
        };
        for (index, serve) in serving.into_iter().enumerate() {
            let thread = rayon::ThreadPoolBuilder::new()
                .num_threads(1)
                .thread_name(move |_| format!("worker-{index}"))
                .build()
                .map_err(|error| {
                    StartError::Fault(format!("cannot start worker thread {index}: {error}"))
                })?;
            let (work, alive) = (work.clone(), alive.clone());
            thread.spawn(move || {
                let _alive = alive;
                serve(&work);
            });
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// How many workers there are.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.threads.len()
    }

    /// Time that workers did not work so far.
    #[must_use]
    pub fn idle(&self) -> Arc<Idle> {
        self.idle.clone()
    }

    /// What the engine's devices have done so far; none where the workers compute.
    #[must_use]
    pub fn devices(&self) -> Option<Arc<Devices>> {
        self.devices.clone()
    }

    /// Whether it can compute: not where all of the engine's devices have failed.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.devices.as_ref().is_none_or(|devices| devices.alive() > 0)
    }

    /// A handle for submitting work; submission blocks while the queue is full.
    ///
    /// # Panics
    /// Never before [`Pool::stop`], which consumes the pool.
    #[must_use]
    pub fn queue(&self) -> Sender<Work> {
        self.queue.clone().expect("the pool was stopped. This is a bug.")
    }

    /// Waits until all pictures are answered and all handles to the queue are dropped, but not
    /// longer than `patience`: a decoder that never returns must not keep the process.
    pub fn stop(mut self, patience: Duration) {
        self.queue = None;
        // Disconnects when the last worker and the last device have left their loops.
        let _ = self.finished.recv_timeout(patience);
    }
}

/// What a worker's thread does.
type Serving = Box<dyn FnOnce(&Receiver<Work>) + Send>;

/// Pictures that a pool of so many workers can be at work on at once: what it should be given, by
/// somebody who wants it busy, before any of them is answered.
#[must_use]
pub fn places(engine: &dyn Engine, workers: usize) -> usize {
    workers + engine.batching().map_or(0, |batching| batching.slots())
}

/// Bytes at most that a worker keeps between pictures besides the network's own, for an input of
/// `side` by `side` pixels: the letterboxed picture, candidates, and what decoding keeps.
#[must_use]
pub fn kept_bytes(side: usize) -> u64 {
    (8 * side * side + Decoder::KEPT) as u64
}

/// Bytes of the pictures that an engine's devices read, or are about to, for inputs of `side` by
/// `side` pixels.
#[must_use]
pub fn slot_bytes(engine: &dyn Engine, side: usize) -> u64 {
    engine.batching().map_or(0, |batching| (batching.slots() * lanes::slot_size(side)) as u64)
}

/// What an engine that refuses means for the pool.
pub(super) fn refused(error: &EngineError) -> StartError {
    match error {
        EngineError::OutOfMemory { .. } => StartError::Exhausted(with_cause(error)),
        _ => StartError::Fault(with_cause(error)),
    }
}

/// An error's sentence, with its cause.
pub(super) fn with_cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}
