//! Two devices for tests. They take their time, and say what they were given.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::engine::{Answered, Batch, Batching, Engine, EngineError, Lane, Worker};

pub(super) const BATCHING: Batching = Batching { devices: 2, pictures: 4, depth: 2 };

/// What a device takes for a batch at least.
const TIME: Duration = Duration::from_millis(2);

/// A batch that was begun.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) width: usize,
    /// The first byte of each picture.
    pub(super) first: Vec<u8>,
}

#[derive(Default)]
pub(super) struct Double {
    pub(super) begun: Arc<Mutex<Vec<Begun>>>,
    /// The batch that the second device fails at, if any.
    pub(super) fails_at: Option<usize>,
}

struct DoubleLane {
    flight: VecDeque<(Instant, Batch)>,
    begun: Arc<Mutex<Vec<Begun>>>,
    left: usize,
}

impl Engine for Double {
    fn numeric_class(&self) -> &'static str {
        "double"
    }

    fn weight_bytes(&self) -> u64 {
        0
    }

    fn scratch_bytes(&self, _: usize, _: usize) -> u64 {
        0
    }

    fn worker(&self) -> Result<Box<dyn Worker>, EngineError> {
        Err(EngineError::Unsupported { step: "a picture".into() })
    }

    fn batching(&self) -> Option<Batching> {
        Some(BATCHING)
    }

    fn lane(&self, device: usize) -> Result<Box<dyn Lane>, EngineError> {
        assert!(device < BATCHING.devices, "there is no device {device}");
        Ok(Box::new(DoubleLane {
            flight: VecDeque::new(),
            begun: self.begun.clone(),
            left: self.fails_at.filter(|_| device == 1).unwrap_or(usize::MAX),
        }))
    }
}

impl Lane for DoubleLane {
    fn submit(&mut self, batch: Batch) -> Result<(), EngineError> {
        let bytes = 3 * batch.width * batch.height;
        assert!(batch.pictures.iter().all(|slot| slot.bytes().len() >= bytes));
        assert!((1..=BATCHING.pictures).contains(&batch.pictures.len()));
        assert!(self.flight.len() < BATCHING.depth, "more are in flight than may be");
        let first = batch.pictures.iter().map(|slot| slot.bytes()[0]).collect();
        self.begun.lock().unwrap().push(Begun { width: batch.width, first });
        self.flight.push_back((Instant::now(), batch));
        Ok(())
    }

    fn finish(&mut self) -> Result<Answered, EngineError> {
        let (begun, batch) = self.flight.pop_front().expect("nothing was begun");
        self.left -= 1;
        if self.left == 0 {
            let needs = "8 MiB for a test".into();
            return Err(EngineError::OutOfMemory { device: "1 (a double)".into(), needs });
        }
        std::thread::sleep(TIME.saturating_sub(begun.elapsed()));
        let candidates = batch.pictures.iter().map(|_| Vec::new()).collect();
        Ok(Answered { slots: batch.pictures, candidates })
    }
}
