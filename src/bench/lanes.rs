//! The network alone on devices that take batches: pictures in the memory that a device reads them
//! from, to candidates. Copies, computing and the filter are in it; letterboxing is not.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use super::pictures::Picture;
use super::times::Times;
use super::{JobError, fault};
use crate::engine::{Answered, Batch, Batching, Engine, EngineError, Lane, Slot};

/// Least confidence of a candidate, as by default in jobs.
const CONF: f32 = 0.25;

/// What a device's batches may take of this machine's memory together. The commonest sizes come first.
const MOST: usize = 2 << 30;

/// What came out.
pub(super) struct Run {
    pub(super) images_per_second: f64,
    /// A picture's share of the time between one batch and the next.
    pub(super) times: Times,
    /// Different pictures that took part.
    pub(super) pictures: usize,
    /// Until each device had computed each size, from when its lane was open.
    pub(super) warm_up: Duration,
}

/// Runs full batches of `pictures` on all devices for a while, as many in flight as an engine takes.
pub(super) fn run(
    engine: &Arc<dyn Engine>,
    batching: Batching,
    pictures: &[Picture],
    window: Duration,
) -> Result<Run, JobError> {
    let sizes = by_size(pictures, batching);
    let start = Barrier::new(batching.devices);
    let one = |device: usize| work(&**engine, device, batching, &sizes, window, &start);
    let one = &one;
    let done: Vec<Result<Measured, EngineError>> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..batching.devices).map(|device| scope.spawn(move || one(device))).collect();
        threads
            .into_iter()
            .map(|thread| match thread.join() {
                Ok(measured) => measured,
                Err(panic) => resume_unwind(panic),
            })
            .collect()
    });
    let (mut times, mut rate, mut warm_up) = (Vec::new(), 0.0, Duration::ZERO);
    for measured in done {
        let Measured { between, warmed } = measured.map_err(|error| fault(&error))?;
        let seconds = between.iter().sum::<Duration>().as_secs_f64();
        rate += (between.len() * batching.pictures) as f64 / seconds;
        let share = |time: Duration| time.div_f64(batching.pictures as f64);
        times.extend(between.into_iter().map(share));
        warm_up = warm_up.max(warmed);
    }
    let pictures = sizes.iter().map(Vec::len).sum();
    Ok(Run { images_per_second: rate, times: Times::of(times), pictures, warm_up })
}

/// Pictures of one size each, the commonest size first. Those for whose batches there is no room are
/// left out.
fn by_size(pictures: &[Picture], batching: Batching) -> Vec<Vec<&Picture>> {
    let mut sizes: BTreeMap<(usize, usize), Vec<&Picture>> = BTreeMap::new();
    for picture in pictures {
        sizes.entry((picture.width, picture.height)).or_default().push(picture);
    }
    let mut sizes: Vec<Vec<&Picture>> = sizes.into_values().collect();
    sizes.sort_by_key(|alike| std::cmp::Reverse(alike.len()));
    let mut left = MOST;
    let mut first = true;
    sizes.retain(|alike| {
        let bytes = alike[0].input().rgb.len() * batching.pictures * (batching.depth + 1);
        let fits = first || bytes <= left;
        first = false;
        left = left.saturating_sub(if fits { bytes } else { 0 });
        fits
    });
    sizes
}

/// What one device did.
struct Measured {
    /// From one batch to the next.
    between: Vec<Duration>,
    /// How long each size took once. Opening the lane is the engine's, which has done so before.
    warmed: Duration,
}

/// Full batches of one size, to be given to a device again and again.
struct Stock {
    width: usize,
    height: usize,
    /// How many pictures have this size.
    weight: i64,
    /// What it is behind with.
    due: i64,
    /// Batches that no device has: one more than can be in flight, so that there is always one.
    ready: Vec<Vec<Slot>>,
}

impl Stock {
    fn new(
        engine: &dyn Engine,
        batching: Batching,
        alike: &[&Picture],
    ) -> Result<Stock, EngineError> {
        let (width, height) = (alike[0].width, alike[0].height);
        let mut pictures = alike.iter().cycle();
        let mut slot = || -> Result<Slot, EngineError> {
            let mut slot = engine.slot(3 * width * height)?;
            if let Some(picture) = pictures.next() {
                slot.bytes_mut()[..3 * width * height].copy_from_slice(picture.input().rgb);
            }
            Ok(slot)
        };
        let mut batch = || (0..batching.pictures).map(|_| slot()).collect();
        let ready = (0..=batching.depth).map(|_| batch()).collect::<Result<_, _>>()?;
        Ok(Stock { width, height, weight: alike.len() as i64, due: 0, ready })
    }

    fn submit(&mut self, lane: &mut dyn Lane) -> Result<(), EngineError> {
        let pictures = self.ready.pop().expect("there is one more than in flight. This is a bug.");
        let Stock { width, height, .. } = *self;
        lane.submit(Batch { width, height, conf: CONF, pictures })
    }

    /// Takes back what a device has done with.
    fn take(&mut self, answered: Answered, batching: Batching) -> Result<(), EngineError> {
        let Answered { slots, candidates } = answered;
        if (slots.len(), candidates.len()) != (batching.pictures, batching.pictures) {
            let step = format!(
                "a batch of {} of which {} slots and {} answers came back",
                batching.pictures,
                slots.len(),
                candidates.len()
            );
            return Err(EngineError::Unsupported { step });
        }
        self.ready.push(slots);
        Ok(())
    }
}

/// The size that is most behind, so that each has the share of the batches that it has of the pictures.
fn next(stocks: &mut [Stock]) -> usize {
    let all: i64 = stocks.iter().map(|stock| stock.weight).sum();
    stocks.iter_mut().for_each(|stock| stock.due += stock.weight);
    let most = (0..stocks.len()).rev().max_by_key(|&index| stocks[index].due).unwrap_or(0);
    stocks[most].due -= all;
    most
}

fn work(
    engine: &dyn Engine,
    device: usize,
    batching: Batching,
    sizes: &[Vec<&Picture>],
    window: Duration,
    start: &Barrier,
) -> Result<Measured, EngineError> {
    let prepare = || {
        let mut lane = engine.lane(device)?;
        let opened = Instant::now();
        let stocks = sizes.iter().map(|alike| Stock::new(engine, batching, alike));
        let mut stocks: Vec<Stock> = stocks.collect::<Result<_, _>>()?;
        for stock in &mut stocks {
            stock.submit(&mut *lane)?;
            stock.take(lane.finish()?, batching)?;
        }
        Ok((lane, stocks, opened.elapsed()))
    };
    // All come here, also who failed or panicked: the others wait for them.
    let prepared = catch_unwind(AssertUnwindSafe(prepare));
    start.wait();
    let prepared = prepared.unwrap_or_else(|panic| resume_unwind(panic));
    let began = Instant::now();
    let (mut lane, mut stocks, warmed) = prepared?;
    let (mut flight, mut between) = (VecDeque::new(), Vec::with_capacity(4096));
    let mut before = None;
    loop {
        while flight.len() < batching.depth {
            let index = next(&mut stocks);
            stocks[index].submit(&mut *lane)?;
            flight.push_back(index);
        }
        let Some(index) = flight.pop_front() else { break };
        stocks[index].take(lane.finish()?, batching)?;
        let now = Instant::now();
        // The first has had the device to itself while the others were not there yet.
        if let Some(before) = before.replace(now) {
            between.push(now - before);
            if now - began >= window {
                break;
            }
        }
    }
    // Whoever gives a lane back takes what is in it.
    flight.iter().try_for_each(|_| lane.finish().map(drop))?;
    Ok(Measured { between, warmed })
}

#[cfg(test)]
mod tests {
    use super::super::double::{BATCHING, Double};
    use super::*;

    fn pictures(widths: &[usize]) -> Vec<Picture> {
        // Each is of its width's number throughout.
        let number = |width: usize| u8::try_from(width / 32).unwrap();
        let picture = |&width: &usize| Picture::new(width, 32, vec![number(width); 3 * width * 32]);
        widths.iter().map(picture).collect()
    }

    #[test]
    fn all_devices_get_full_batches_of_each_size_by_its_share() {
        let double = Double::default();
        let begun = double.begun.clone();
        let engine: Arc<dyn Engine> = Arc::new(double);
        let held = pictures(&[64, 32, 32, 32]);
        let run = run(&engine, BATCHING, &held, Duration::from_millis(300)).unwrap();
        assert_eq!(run.pictures, 4);
        assert!(run.times.count > 10 && run.images_per_second > 0.0, "{:?}", run.times);
        assert!(run.warm_up > Duration::ZERO);
        let begun = begun.lock().unwrap();
        for batch in begun.iter() {
            assert_eq!(batch.first.len(), BATCHING.pictures, "{batch:?}");
            let number = batch.width / 32;
            assert!(batch.first.iter().all(|&byte| usize::from(byte) == number), "{batch:?}");
        }
        // Both devices have had both sizes once before; then three of four are the common one.
        let of = |width| begun.iter().filter(|batch| batch.width == width).count() as f64 - 2.0;
        assert!((of(32) - 3.0 * of(64)).abs() <= 6.0, "{} and {}", of(32), of(64));
    }

    #[test]
    fn a_device_that_fails_is_an_error_and_no_hang() {
        for fails_at in [1, 3, 7] {
            let double = Double { fails_at: Some(fails_at), ..Double::default() };
            let engine: Arc<dyn Engine> = Arc::new(double);
            let ran = run(&engine, BATCHING, &pictures(&[32, 64]), Duration::from_millis(100));
            let error = ran.err().expect("device 1 failed").to_string();
            assert!(error.contains("GPU 1 (a double) is out of memory"), "{error}");
        }
    }

    #[test]
    fn sizes_for_which_there_is_no_room_are_left_out_but_for_the_commonest() {
        let held = pictures(&[32, 64, 64]);
        let kept = |pictures: usize| {
            let sizes = by_size(&held, Batching { pictures, ..BATCHING });
            sizes.iter().map(|alike| (alike[0].width, alike.len())).collect::<Vec<_>>()
        };
        assert_eq!(kept(1024), [(64, 2), (32, 1)]);
        assert_eq!(kept(1 << 20), [(64, 2)]);
    }
}
