//! Devices that fail: their pictures do, the others go on, and nobody is left waiting.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use haul::engine::{Engine, EngineError, Lane, Slot, Worker};
use haul::pool::{Pool, StartError};

use crate::double::{Chance, OnDevices, TROUBLES, Trouble};
use crate::pictures::ByPixels;
use crate::same::{by_workers, pictures};
use crate::trial::{Asked, Came, ROOMY, SIDE, Surroundings, through};

/// What a picture says that a device has failed. Where others go on, that is another failure.
fn is_named(came: &Came, trouble: Trouble) -> bool {
    match (came, trouble) {
        (Came::Exhausted(text), Trouble::Exhausted) => {
            text.contains("is out of memory: a batch") && text.contains("a double")
        }
        (Came::Failed(text) | Came::Lost(text), Trouble::Refuses) => {
            text.contains("device") && text.contains("`a copy`") && text.contains("cable is loose")
        }
        (Came::Failed(text) | Came::Lost(text), Trouble::Loses) => text.contains("`the network`"),
        (Came::Failed(text) | Came::Lost(text), Trouble::Panics) => {
            text.contains("panicked: a bug")
        }
        (Came::Failed(text) | Came::Lost(text), Trouble::Forgets) => text.contains("This is a bug"),
        _ => false,
    }
}

/// Pictures that failed.
#[derive(Debug, Default)]
struct Failures {
    all: usize,
    /// Those of them that were lost with a device while others went on.
    lost: usize,
}

/// Runs them; gives how many failed by the trouble. All others must be as workers have them.
fn count_failed(
    engine: OnDevices,
    around: Surroundings,
    asked: &[Asked],
    trouble: Trouble,
) -> Failures {
    let expected = by_workers(asked);
    let (what, lanes) =
        (format!("{trouble:?}, {around:?}, {:?}", engine.batching), engine.lanes.clone());
    let (came, _) = through(&(Arc::new(engine) as Arc<dyn Engine>), around, asked);
    let mut failed = Failures::default();
    for (number, (came, expected)) in came.iter().zip(&expected).enumerate() {
        match came {
            Came::Failed(_) | Came::Exhausted(_) | Came::Lost(_) => {
                assert!(is_named(came, trouble), "{number}: {came:?}, {what}");
                failed.all += 1;
                failed.lost += usize::from(matches!(came, Came::Lost(_)));
            }
            _ => assert_eq!(came, expected, "{number}, {what}"),
        }
    }
    assert_eq!(lanes.load(Ordering::SeqCst), 0, "{what}");
    failed
}

#[test]
fn a_device_that_fails_takes_its_own_pictures_with_it_and_no_others() {
    for seed in 0..10 {
        for trouble in TROUBLES {
            let mut chance = Chance(seed);
            let asked = pictures(60, 2, seed % 5 == 0, seed);
            let mut engine = OnDevices::new(&(Arc::new(ByPixels) as Arc<dyn Engine>), 2, 4);
            (engine.seed, engine.micros) = (seed, 1000);
            engine.troubles = [(0, (chance.of(&[1, 2, 3]), trouble))].into();
            let around = Surroundings { workers: chance.of(&[1, 2, 4]), waiting: 8, ..ROOMY };
            let failed = count_failed(engine, around, &asked, trouble);
            // Two batches at once. It may never have come to its turn.
            assert!(failed.all <= 2 * 4, "{failed:?} by {trouble:?}");
            let lost = if trouble == Trouble::Exhausted { 0 } else { failed.all };
            assert_eq!(failed.lost, lost, "{trouble:?}");
        }
    }
}

#[test]
fn where_no_device_is_left_everything_fails_and_nothing_waits() {
    for seed in 0..10 {
        for trouble in TROUBLES {
            let mut chance = Chance(seed);
            let asked = pictures(60, 3, seed % 5 == 0, seed);
            let devices = chance.of(&[1, 1, 2]);
            let mut engine = OnDevices::new(&(Arc::new(ByPixels) as Arc<dyn Engine>), devices, 3);
            engine.seed = seed;
            engine.troubles =
                (0..devices).map(|device| (device, (chance.of(&[1, 2]), trouble))).collect();
            // Also where workers wait for memory and for slots when it happens.
            let (workers, free) = (chance.of(&[1, 2, 4]), chance.of(&[0, 64 << 20]));
            let around = Surroundings { workers, waiting: 2, free };
            let failed = count_failed(engine, around, &asked, trouble);
            // Before the trouble each device has answered one batch at most, but where there is no
            // picture at all nothing need be computed.
            assert!(failed.all >= 60 - 20 - 2 * 3, "{failed:?} by {trouble:?}");
            // Only what the first of two devices had was lost before there was none.
            assert!(failed.lost <= (devices - 1) * 2 * 3, "{failed:?} by {trouble:?}");
        }
    }
}

#[test]
fn a_device_that_cannot_be_had_is_said_at_the_start() {
    let mut engine = OnDevices::new(&(Arc::new(ByPixels) as Arc<dyn Engine>), 2, 4);
    engine.troubles = [(1, (0, Trouble::Exhausted))].into();
    let lanes = engine.lanes.clone();
    let engine: Arc<dyn Engine> = Arc::new(engine);
    match Pool::start(&engine, 2, 4, SIDE as usize).err() {
        Some(StartError::Exhausted(text)) => assert!(text.contains("out of memory"), "{text}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(lanes.load(Ordering::SeqCst), 0, "the other one was let go");
}

/// An engine whose slots cannot be had.
struct NoSlots(OnDevices);

impl Engine for NoSlots {
    fn numeric_class(&self) -> &str {
        self.0.numeric_class()
    }
    fn weight_bytes(&self) -> u64 {
        0
    }
    fn scratch_bytes(&self, _: usize, _: usize) -> u64 {
        0
    }
    fn worker(&self) -> Result<Box<dyn Worker>, EngineError> {
        self.0.worker()
    }
    fn batching(&self) -> Option<haul::engine::Batching> {
        self.0.batching()
    }
    fn lane(&self, device: usize) -> Result<Box<dyn Lane>, EngineError> {
        self.0.lane(device)
    }
    fn slot(&self, bytes: usize) -> Result<Slot, EngineError> {
        assert_eq!(bytes, 3 * 96 * 96);
        Err(EngineError::Execute { step: "pinned memory".into(), source: "not allowed".into() })
    }
}

#[test]
fn slots_that_cannot_be_had_are_said_at_the_start() {
    let engine: Arc<dyn Engine> =
        Arc::new(NoSlots(OnDevices::new(&(Arc::new(ByPixels) as Arc<dyn Engine>), 1, 4)));
    match Pool::start(&engine, 2, 4, SIDE as usize).err() {
        Some(StartError::Fault(text)) => assert!(text.contains("pinned memory"), "{text}"),
        other => panic!("{other:?}"),
    }
}
