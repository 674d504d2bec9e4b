//! A device that is a thread: it takes batches as a lane must, computes each picture with another
//! engine's worker, takes its time, and fails when it is told to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use haul::engine::{Answered, Batch, Batching, Engine, EngineError, Input, Lane, Slot, Worker};

/// How a device fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It does not take a batch.
    Refuses,
    /// It loses a batch that it has taken.
    Loses,
    /// It does not take a batch for want of memory.
    Exhausted,
    /// Its code has a bug.
    Panics,
    /// It forgets a picture.
    Forgets,
}

pub(crate) const TROUBLES: [Trouble; 5] =
    [Trouble::Refuses, Trouble::Loses, Trouble::Exhausted, Trouble::Panics, Trouble::Forgets];

/// An engine's arithmetic on devices.
pub(crate) struct OnDevices {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) batching: Batching,
    /// Of a batch, at most.
    pub(crate) micros: u64,
    pub(crate) seed: u64,
    /// By device: at its how many-th batch, and how.
    pub(crate) troubles: BTreeMap<usize, (usize, Trouble)>,
    /// Lanes that are there.
    pub(crate) lanes: Arc<AtomicUsize>,
}

/// Numbers that look random, the same for the same seed.
#[derive(Clone, Debug)]
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound.max(1)
    }

    /// One of them.
    pub(crate) fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

impl OnDevices {
    pub(crate) fn new(engine: &Arc<dyn Engine>, devices: usize, pictures: usize) -> OnDevices {
        OnDevices {
            engine: engine.clone(),
            batching: Batching { devices, pictures, depth: 2 },
            micros: 500,
            seed: 0,
            troubles: BTreeMap::new(),
            lanes: Arc::default(),
        }
    }
}

impl Engine for OnDevices {
    fn numeric_class(&self) -> &str {
        self.engine.numeric_class()
    }

    fn weight_bytes(&self) -> u64 {
        self.engine.weight_bytes()
    }

    fn scratch_bytes(&self, width: usize, height: usize) -> u64 {
        self.engine.scratch_bytes(width, height)
    }

    fn worker(&self) -> Result<Box<dyn Worker>, EngineError> {
        panic!("where devices compute, workers do not")
    }

    fn batching(&self) -> Option<Batching> {
        Some(self.batching)
    }

    fn lane(&self, device: usize) -> Result<Box<dyn Lane>, EngineError> {
        let trouble = self.troubles.get(&device).copied();
        if matches!(trouble, Some((0, Trouble::Exhausted))) {
            return Err(exhausted(device));
        }
        let mut worker = self.engine.worker()?;
        let (sender, receiver) = crossbeam_channel::unbounded::<Batch>();
        let (done, answered) = crossbeam_channel::unbounded();
        let (mut chance, micros) = (Chance(self.seed ^ (device as u64) << 32), self.micros);
        std::thread::spawn(move || {
            for batch in receiver {
                std::thread::sleep(Duration::from_micros(chance.below(micros)));
                if done.send(compute(&mut *worker, batch)).is_err() {
                    return;
                }
            }
        });
        self.lanes.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(DeviceLane {
            device,
            batching: self.batching,
            batches: sender,
            answered,
            begun: 0,
            under_way: 0,
            trouble,
            failed: false,
            lanes: self.lanes.clone(),
        }))
    }
}

fn exhausted(device: usize) -> EngineError {
    EngineError::OutOfMemory { device: format!("{device} (a double)"), needs: "a batch".into() }
}

fn compute(worker: &mut dyn Worker, batch: Batch) -> Answered {
    let Batch { width, height, conf, pictures: mut slots } = batch;
    let candidates = slots
        .iter()
        .map(|slot| {
            let rgb = &slot.bytes()[..3 * width * height];
            let mut candidates = Vec::new();
            worker.run(Input { width, height, rgb }, conf, &mut candidates).unwrap();
            candidates
        })
        .collect();
    // Whoever reads a slot that is not filled anew finds nothing of the picture before.
    slots.iter_mut().for_each(|slot| slot.bytes_mut().fill(0xA5));
    Answered { slots, candidates }
}

struct DeviceLane {
    device: usize,
    batching: Batching,
    batches: Sender<Batch>,
    answered: Receiver<Answered>,
    begun: usize,
    under_way: usize,
    trouble: Option<(usize, Trouble)>,
    failed: bool,
    lanes: Arc<AtomicUsize>,
}

impl DeviceLane {
    /// Whether it fails so with the batch that was begun last.
    fn fails(&mut self, so: Trouble) -> bool {
        let fails = self.trouble.is_some_and(|(at, how)| how == so && self.begun >= at);
        self.failed |= fails;
        fails
    }

    fn fault(&self, what: &str) -> EngineError {
        EngineError::Execute { step: what.into(), source: "a cable is loose".into() }
    }
}

impl Lane for DeviceLane {
    fn submit(&mut self, batch: Batch) -> Result<(), EngineError> {
        assert!(!self.failed, "a lane that has failed is used again");
        assert!(self.under_way < self.batching.depth, "more batches than there may be");
        assert!((1..=self.batching.pictures).contains(&batch.pictures.len()));
        let bytes = 3 * batch.width * batch.height;
        assert!(batch.pictures.iter().all(|slot: &Slot| slot.bytes().len() >= bytes));
        self.begun += 1;
        if self.fails(Trouble::Refuses) {
            return Err(self.fault("a copy"));
        }
        if self.fails(Trouble::Exhausted) {
            return Err(exhausted(self.device));
        }
        assert!(!self.fails(Trouble::Panics), "a bug");
        self.under_way += 1;
        self.batches.send(batch).unwrap();
        Ok(())
    }

    fn finish(&mut self) -> Result<Answered, EngineError> {
        assert!(self.under_way > 0 && !self.failed, "nothing was begun");
        if self.fails(Trouble::Loses) {
            return Err(self.fault("the network"));
        }
        self.under_way -= 1;
        let mut answered = self.answered.recv().unwrap();
        if self.fails(Trouble::Forgets) {
            answered.candidates.pop();
        }
        Ok(answered)
    }
}

impl Drop for DeviceLane {
    fn drop(&mut self) {
        self.lanes.fetch_sub(1, Ordering::SeqCst);
    }
}
