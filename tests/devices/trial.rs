//! Pictures through a pool, and what came of each.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use haul::engine::Engine;
use haul::picture::{Limits, Truncated};
use haul::pool::{Analysis, Annotate, Budget, DevicesSoFar, Failure, Outcome, Params, Pool, Work};
use haul::yolo::NmsOptions;

/// Nothing in these tests takes as long.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// The longest side of inputs.
pub(crate) const SIDE: u32 = 96;

/// The largest picture allowed, file and pixels.
pub(crate) const LARGEST: u64 = 8 << 20;

/// A picture, and what is asked of it.
#[derive(Clone)]
pub(crate) struct Asked {
    pub(crate) bytes: Vec<u8>,
    pub(crate) params: Arc<Params>,
    pub(crate) cancelled: Arc<AtomicBool>,
}

pub(crate) fn params(conf: f32, annotate: bool) -> Arc<Params> {
    let labels: Vec<String> = ["cat", "dog", "cow"].map(str::to_owned).into();
    Arc::new(Params {
        limits: Limits { max_pixels: 1 << 20, max_memory: LARGEST, truncated: Truncated::Reject },
        imgsz: SIDE,
        square: false,
        nms: NmsOptions { conf, ..NmsOptions::default() },
        annotate: annotate.then(|| Annotate::jpeg(&labels)),
    })
}

impl Asked {
    pub(crate) fn new(bytes: Vec<u8>, params: &Arc<Params>) -> Asked {
        Asked { bytes, params: params.clone(), cancelled: Arc::default() }
    }
}

/// What became of a picture.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Came {
    /// Everything that was found, and the drawn picture.
    Found(String),
    Bad(String),
    Failed(String),
    Lost(String),
    Exhausted(String),
    Cancelled,
}

fn came(result: Result<Analysis, Failure>) -> Came {
    match result {
        Ok(analysis) => Came::Found(format!("{analysis:?}")),
        Err(Failure::Picture(error)) => Came::Bad(error.to_string()),
        Err(Failure::Worker(text)) => Came::Failed(text),
        Err(Failure::Lost(text)) => Came::Lost(text),
        Err(Failure::Exhausted(text)) => Came::Exhausted(text),
        Err(Failure::Cancelled) => Came::Cancelled,
    }
}

/// A pool and its surroundings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Surroundings {
    pub(crate) workers: usize,
    pub(crate) waiting: usize,
    /// Bytes for all pictures but the oldest.
    pub(crate) free: u64,
}

pub(crate) const ROOMY: Surroundings = Surroundings { workers: 2, waiting: 4, free: 64 << 20 };

/// What became of all pictures, in their order, and what the devices did. Fails where one is not
/// answered, or twice, or the pool does not end.
pub(crate) fn through(
    engine: &Arc<dyn Engine>,
    around: Surroundings,
    asked: &[Asked],
) -> (Vec<Came>, Option<DevicesSoFar>) {
    let Surroundings { workers, waiting, free } = around;
    let pool = Pool::start(engine, workers, waiting, SIDE as usize).unwrap();
    let budget = Budget::new(free, LARGEST);
    let (sender, answers) = crossbeam_channel::unbounded();
    let (queue, of_feeder, work) = (pool.queue(), budget.clone(), asked.to_vec());
    // As a job's feeder does: opens tickets in order, and waits for room for the file.
    let feeder = std::thread::spawn(move || {
        for (number, one) in work.into_iter().enumerate() {
            let mut ticket = of_feeder.open();
            ticket.grow(one.bytes.len() as u64).unwrap();
            let sender = sender.clone();
            let reply = move |outcome: Outcome| {
                drop(sender.send((number, came(outcome.result))));
                drop(outcome.ticket);
            };
            let Asked { bytes, params, cancelled } = one;
            let reply = Box::new(reply);
            let work = Work { bytes, params, ticket, cancelled, note: None, reply };
            queue.send(work).unwrap();
        }
    });
    let came = collect(&answers, asked.len());
    feeder.join().unwrap();
    let devices = pool.devices();
    let start = Instant::now();
    pool.stop(LONG);
    assert!(start.elapsed() < LONG, "the pool does not end: {around:?}");
    // Everything was given back.
    let mut all = budget.open();
    assert_eq!((all.try_grow(free), all.try_grow(LARGEST)), (Ok(true), Ok(true)), "{around:?}");
    (came, devices.map(|devices| devices.so_far()))
}

pub(crate) fn collect(answers: &Receiver<(usize, Came)>, count: usize) -> Vec<Came> {
    let mut all: Vec<Option<Came>> = (0..count).map(|_| None).collect();
    for done in 0..count {
        let (number, came) = answers
            .recv_timeout(LONG)
            .unwrap_or_else(|error| panic!("{done} of {count} pictures are answered: {error}"));
        assert!(all[number].replace(came).is_none(), "picture {number} is answered twice");
    }
    // The last sender goes with the last reply.
    assert!(answers.recv_timeout(LONG).is_err(), "something is answered twice");
    all.into_iter().flatten().collect()
}

/// That pictures came to what workers make of them.
pub(crate) fn assert_same(came: &[Came], expected: &[Came], what: &str) {
    assert_eq!(came.len(), expected.len());
    for (number, (came, expected)) in came.iter().zip(expected).enumerate() {
        assert_eq!(came, expected, "picture {number}, {what}");
    }
}

pub(crate) fn cancel(asked: &Asked) {
    asked.cancelled.store(true, Ordering::SeqCst);
}
