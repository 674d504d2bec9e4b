//! What devices have done, for those who want to know what bounds a run.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use serde::Serialize;

use crate::pool::work::add;

/// What the devices of a pool have done, counted while they do it.
#[derive(Debug)]
pub struct Devices {
    count: usize,
    alive: AtomicUsize,
    size: usize,
    batches: AtomicU64,
    pictures: AtomicU64,
    busy: AtomicU64,
    waited: AtomicU64,
}

/// What the devices of a pool have done so far, all of them together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct DevicesSoFar {
    /// How many there are.
    pub devices: usize,
    /// Places of a batch.
    pub batch: usize,
    /// Batches that were computed.
    pub batches: u64,
    /// Pictures in them.
    pub pictures: u64,
    /// Places in them that had no picture, and were computed all the same.
    pub padded: u64,
    /// Seconds with at least one batch begun and not finished: copying and computing.
    pub busy: f64,
    /// Seconds without: waiting for pictures.
    pub waited: f64,
}

impl DevicesSoFar {
    /// What has been done since `before`, of the same pool.
    #[must_use]
    pub fn since(&self, before: &DevicesSoFar) -> DevicesSoFar {
        DevicesSoFar {
            batches: self.batches.saturating_sub(before.batches),
            pictures: self.pictures.saturating_sub(before.pictures),
            padded: self.padded.saturating_sub(before.padded),
            busy: (self.busy - before.busy).max(0.0),
            waited: (self.waited - before.waited).max(0.0),
            ..*self
        }
    }

    /// The share of their time in which they had something to do, 0 to 1.
    #[must_use]
    pub fn utilisation(&self) -> f64 {
        let all = self.busy + self.waited;
        if all > 0.0 { self.busy / all } else { 0.0 }
    }

    /// The share of all places that had a picture, 0 to 1.
    #[must_use]
    pub fn fullness(&self) -> f64 {
        match self.pictures + self.padded {
            0 => 0.0,
            places => self.pictures as f64 / places as f64,
        }
    }
}

impl Devices {
    pub(super) fn new(count: usize, size: usize) -> Devices {
        let (batches, pictures) = (AtomicU64::new(0), AtomicU64::new(0));
        let (busy, waited) = (AtomicU64::new(0), AtomicU64::new(0));
        let alive = AtomicUsize::new(count);
        Devices { count, alive, size, batches, pictures, busy, waited }
    }

    /// How many of them have not failed.
    #[must_use]
    pub fn alive(&self) -> usize {
        self.alive.load(Ordering::Relaxed)
    }

    pub(super) fn lost(&self) {
        self.alive.fetch_sub(1, Ordering::Relaxed);
    }

    /// What they have done so far. A stretch of time counts when it is over, a batch when it is
    /// finished.
    #[must_use]
    pub fn so_far(&self) -> DevicesSoFar {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (batches, pictures) = (get(&self.batches), get(&self.pictures));
        DevicesSoFar {
            devices: self.count,
            batch: self.size,
            batches,
            pictures,
            padded: (batches * self.size as u64).saturating_sub(pictures),
            busy: get(&self.busy) as f64 / 1e9,
            waited: get(&self.waited) as f64 / 1e9,
        }
    }

    pub(super) fn finished(&self, pictures: usize) {
        self.batches.fetch_add(1, Ordering::Relaxed);
        self.pictures.fetch_add(pictures as u64, Ordering::Relaxed);
    }

    pub(super) fn was_busy(&self, time: Duration) {
        add(&self.busy, time);
    }

    pub(super) fn has_waited(&self, time: Duration) {
        add(&self.waited, time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_times_add_up() {
        let devices = Devices::new(2, 8);
        assert_eq!((devices.so_far().fullness(), devices.so_far().utilisation()), (0.0, 0.0));
        devices.finished(8);
        let before = devices.so_far();
        devices.finished(4);
        devices.was_busy(Duration::from_secs(3));
        devices.has_waited(Duration::from_secs(1));
        let now = devices.so_far();
        assert_eq!((now.batches, now.pictures, now.padded), (2, 12, 4));
        assert_eq!((now.utilisation(), now.fullness()), (0.75, 0.75));
        let since = now.since(&before);
        assert_eq!((since.batches, since.pictures, since.padded), (1, 4, 4));
        assert_eq!((since.devices, since.batch, since.fullness()), (2, 8, 0.5));
    }
}
