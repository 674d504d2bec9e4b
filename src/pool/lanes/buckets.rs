//! Pictures of one shape, side by side until a batch of them is full.

use std::collections::VecDeque;
use std::time::Instant;

/// So many batches may begin before an older picture, whose bucket does not fill. Without a bound a
/// rare shape could wait for as long as there is enough of the others.
const MOST_PASSED: usize = 32;

/// What pictures must have in common to be computed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Pixels per row of the input.
    pub(super) width: usize,
    /// Rows of the input.
    pub(super) height: usize,
    /// The bits of the least confidence.
    pub(super) conf: u32,
}

/// Pictures that wait for a device, by shape.
#[derive(Debug)]
pub(super) struct Buckets<T> {
    /// Pictures of a full batch.
    full: usize,
    arrivals: u64,
    buckets: Vec<Bucket<T>>,
}

/// One of them. It is never empty.
#[derive(Debug)]
struct Bucket<T> {
    shape: Shape,
    waiting: VecDeque<Waiting<T>>,
    /// Batches that have begun since its oldest picture came, and were younger.
    passed: usize,
}

#[derive(Debug)]
struct Waiting<T> {
    number: u64,
    since: Instant,
    one: T,
}

impl<T> Bucket<T> {
    fn oldest(&self) -> u64 {
        self.waiting.front().map_or(u64::MAX, |waiting| waiting.number)
    }
}

impl<T> Buckets<T> {
    /// For batches of so many.
    pub(super) fn new(full: usize) -> Buckets<T> {
        Buckets { full: full.max(1), arrivals: 0, buckets: Vec::new() }
    }

    /// Puts one to those of its shape, and says whether that makes a batch full.
    pub(super) fn put(&mut self, shape: Shape, one: T) -> bool {
        let waiting = Waiting { number: self.arrivals, since: Instant::now(), one };
        self.arrivals += 1;
        let count = match self.buckets.iter_mut().find(|bucket| bucket.shape == shape) {
            Some(bucket) => {
                bucket.waiting.push_back(waiting);
                bucket.waiting.len()
            }
            None => {
                self.buckets.push(Bucket { shape, waiting: [waiting].into(), passed: 0 });
                1
            }
        };
        count.is_multiple_of(self.full)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// When the oldest of all came.
    pub(super) fn since(&self) -> Option<Instant> {
        let oldest = self.buckets.iter().min_by_key(|bucket| bucket.oldest())?;
        oldest.waiting.front().map(|waiting| waiting.since)
    }

    /// The batch that ought to be next: of those that are full, or have been passed by too often,
    /// the one with the oldest picture.
    pub(super) fn take_full(&mut self) -> Option<(Shape, Vec<T>)> {
        let ready = |b: &&Bucket<T>| b.waiting.len() >= self.full || b.passed >= MOST_PASSED;
        let shape = self.buckets.iter().filter(ready).min_by_key(|b| b.oldest())?.shape;
        self.take(shape)
    }

    /// The batch with the oldest picture, full or not.
    pub(super) fn take_oldest(&mut self) -> Option<(Shape, Vec<T>)> {
        let shape = self.buckets.iter().min_by_key(|bucket| bucket.oldest())?.shape;
        self.take(shape)
    }

    /// All of them.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = T> {
        let buckets = std::mem::take(&mut self.buckets);
        buckets.into_iter().flat_map(|bucket| bucket.waiting).map(|waiting| waiting.one)
    }

    fn take(&mut self, shape: Shape) -> Option<(Shape, Vec<T>)> {
        let at = self.buckets.iter().position(|bucket| bucket.shape == shape)?;
        let bucket = &mut self.buckets[at];
        let first = bucket.oldest();
        let count = bucket.waiting.len().min(self.full);
        let taken = bucket.waiting.drain(..count).map(|waiting| waiting.one).collect();
        bucket.passed = 0;
        if bucket.waiting.is_empty() {
            self.buckets.swap_remove(at);
        }
        for other in self.buckets.iter_mut().filter(|bucket| bucket.oldest() < first) {
            other.passed += 1;
        }
        Some((shape, taken))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(width: usize) -> Shape {
        Shape { width, height: 32, conf: 0 }
    }

    #[test]
    fn full_ones_come_oldest_first_and_in_order() {
        let mut buckets = Buckets::new(2);
        for (width, one) in [(32, 0), (64, 1), (96, 2), (64, 3), (32, 4), (32, 5)] {
            buckets.put(shape(width), one);
        }
        assert_eq!(buckets.take_full(), Some((shape(32), vec![0, 4])));
        assert_eq!(buckets.take_full(), Some((shape(64), vec![1, 3])));
        assert_eq!(buckets.take_full(), None);
        assert_eq!(buckets.take_oldest(), Some((shape(96), vec![2])));
        assert_eq!(buckets.take_oldest(), Some((shape(32), vec![5])));
        assert_eq!(buckets.take_oldest(), None);
        assert!(buckets.is_empty() && buckets.since().is_none());
    }

    #[test]
    fn another_confidence_is_another_batch() {
        let mut buckets = Buckets::new(2);
        buckets.put(shape(32), 0);
        buckets.put(Shape { conf: 1, ..shape(32) }, 1);
        assert_eq!(buckets.take_full(), None);
        assert_eq!(buckets.take_all().collect::<Vec<_>>(), [0, 1]);
        assert!(buckets.is_empty());
    }

    #[test]
    fn a_rare_shape_is_not_passed_by_for_ever() {
        let mut buckets = Buckets::new(2);
        buckets.put(shape(32), 0);
        let mut passed = 0;
        loop {
            buckets.put(shape(64), 1);
            buckets.put(shape(64), 2);
            match buckets.take_full().unwrap() {
                (_, taken) if taken == [0] => break,
                _ => passed += 1,
            }
        }
        assert_eq!(passed, MOST_PASSED);
        // It begins anew.
        buckets.put(shape(32), 3);
        assert_eq!(buckets.take_full(), Some((shape(64), vec![1, 2])));
        assert_eq!(buckets.take_full(), None);
    }
}
