//! What devices compute is what workers compute, and everything comes to an end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use haul::engine::{Batching, Engine};
use haul::pool::{Budget, Outcome, Pool, Work};

use crate::double::{Chance, OnDevices};
use crate::pictures::{ByPixels, bmp};
use crate::trial::{
    Asked, Came, LARGEST, LONG, ROOMY, SIDE, Surroundings, assert_same, cancel, params, through,
};

/// Pictures of so many shapes, some of them no pictures, with two confidences.
pub(crate) fn pictures(count: u64, shapes: u64, annotate: bool, seed: u64) -> Vec<Asked> {
    let mut chance = Chance(seed);
    let asked = [params(0.25, annotate), params(0.6, annotate)];
    (0..count)
        .map(|number| {
            let which = if chance.below(5) == 0 { &asked[1] } else { &asked[0] };
            let side = 32 * (1 + chance.below(shapes) as u32);
            let (width, height) = if chance.below(2) == 0 { (96, side) } else { (side, 96) };
            let bytes = match chance.below(17) {
                0 => b"no picture".to_vec(),
                // Larger than its input, and slow to decode beside the others.
                1 => bmp(3 * width, 3 * height, number),
                _ => bmp(width, height, number),
            };
            Asked::new(bytes, which)
        })
        .collect()
}

pub(crate) fn by_workers(asked: &[Asked]) -> Vec<Came> {
    let engine: Arc<dyn Engine> = Arc::new(ByPixels);
    let (came, devices) = through(&engine, ROOMY, asked);
    assert_eq!(devices, None);
    came
}

#[test]
fn answers_are_the_same_however_pictures_meet() {
    for seed in 0..24 {
        let mut chance = Chance(seed);
        let asked = pictures(60, chance.of(&[1, 3]), seed % 4 == 0, seed);
        let expected = by_workers(&asked);
        for _ in 0..3 {
            let mut engine = OnDevices::new(
                &(Arc::new(ByPixels) as Arc<dyn Engine>),
                chance.of(&[1, 1, 2, 3]),
                chance.of(&[1, 2, 3, 8]),
            );
            engine.batching.depth = chance.of(&[1, 2, 3]);
            (engine.seed, engine.micros) = (seed, chance.of(&[1, 300, 3000]));
            let around = Surroundings {
                workers: chance.of(&[1, 2, 4]),
                waiting: chance.of(&[1, 8]),
                free: chance.of(&[0, 3 << 20, 10 << 20, 64 << 20]),
            };
            let what = format!("seed {seed}, {around:?}, {:?}", engine.batching);
            let (batch, lanes) = (engine.batching.pictures, engine.lanes.clone());
            let (came, devices) = through(&(Arc::new(engine) as Arc<dyn Engine>), around, &asked);
            assert_same(&came, &expected, &what);
            let devices = devices.unwrap();
            let found = came.iter().filter(|came| matches!(came, Came::Found(_))).count() as u64;
            assert!(found > 40, "{what}");
            assert_eq!(devices.pictures, found, "{what}");
            assert_eq!(devices.batches * batch as u64, found + devices.padded, "{what}");
            assert!(devices.busy > 0.0 && devices.fullness() > 0.0, "{what}");
            assert_eq!(lanes.load(Ordering::SeqCst), 0, "{what}");
        }
    }
}

/// As many shapes as may be, a single worker, hardly any slots, and no memory but the reserve. Drawn
/// pictures hold their memory until they are answered.
#[test]
fn the_least_of_everything_is_enough() {
    let asked = pictures(60, 3, true, 7);
    let expected = by_workers(&asked);
    for (pictures, depth) in [(1, 1), (8, 1), (2, 2)] {
        for free in [0, 5 << 20] {
            let mut engine = OnDevices::new(&(Arc::new(ByPixels) as Arc<dyn Engine>), 1, pictures);
            engine.batching = Batching { devices: 1, pictures, depth };
            let around = Surroundings { workers: 1, waiting: 1, free };
            let (came, _) = through(&(Arc::new(engine) as Arc<dyn Engine>), around, &asked);
            assert_same(&came, &expected, &format!("{around:?}, {pictures}, {depth}"));
        }
    }
}

/// Nothing more comes, and what is there does not fill a batch: it is answered before the queue's
/// handles are dropped, and then the pool ends.
#[test]
fn a_batch_that_never_fills_is_computed_all_the_same() {
    let engine = OnDevices::new(&(Arc::new(ByPixels) as Arc<dyn Engine>), 2, 64);
    let engine: Arc<dyn Engine> = Arc::new(engine);
    let pool = Pool::start(&engine, 2, 4, SIDE as usize).unwrap();
    let budget = Budget::new(1 << 20, LARGEST);
    let (sender, answers) = crossbeam_channel::unbounded();
    let queue = pool.queue();
    let submit = |seed| {
        let sender = sender.clone();
        let work = Work {
            bytes: bmp(96, 64, seed),
            params: params(0.25, false),
            ticket: budget.open(),
            cancelled: Arc::default(),
            note: None,
            reply: Box::new(move |Outcome { result, spent, .. }: Outcome| {
                let _ = sender.send((result.is_ok(), spent));
            }),
        };
        queue.send(work).unwrap();
    };
    for seed in 0..5 {
        submit(seed);
        let (fine, spent) = answers.recv_timeout(LONG).unwrap();
        assert!(fine && spent.infer > Duration::ZERO && spent.decode > Duration::ZERO);
    }
    let devices = pool.devices().unwrap().so_far();
    assert_eq!((devices.batches, devices.pictures, devices.padded), (5, 5, 5 * 63));
    // Some are on their way when the last handle goes.
    for seed in 5..10 {
        submit(seed);
    }
    drop(queue);
    pool.stop(LONG);
    drop(sender);
    assert_eq!(answers.iter().filter(|(fine, _)| *fine).count(), 5);
}

#[test]
fn who_is_cancelled_is_told_so_wherever_the_picture_is() {
    for seed in 0..10 {
        let asked = pictures(40, 2, false, seed);
        let expected = by_workers(&asked);
        let mut engine = OnDevices::new(&(Arc::new(ByPixels) as Arc<dyn Engine>), 1, 4);
        (engine.micros, engine.seed) = (3000, seed);
        // Some before they are begun, some at any time.
        let (before, later): (Vec<_>, Vec<_>) =
            asked.chunks(2).map(|two| (&two[0], &two[1])).unzip();
        before.into_iter().step_by(3).for_each(cancel);
        let later: Vec<Asked> = later.into_iter().cloned().collect();
        let canceller = std::thread::spawn(move || {
            for one in later {
                std::thread::sleep(Duration::from_micros(300));
                cancel(&one);
            }
        });
        let (came, _) = through(&(Arc::new(engine) as Arc<dyn Engine>), ROOMY, &asked);
        canceller.join().unwrap();
        for (number, (came, expected)) in came.iter().zip(&expected).enumerate() {
            match came {
                Came::Cancelled => assert!(number % 2 == 1 || number % 6 == 0, "{number}"),
                came => {
                    assert_eq!(came, expected, "{number}");
                    assert!(number % 6 != 0, "{number} was cancelled before it was begun");
                }
            }
        }
    }
}
