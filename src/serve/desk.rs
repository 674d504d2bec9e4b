//! The desk: who is let in, who waits, and who is next at the pool.
//!
//! All doors come here. A request first takes an [`Entry`], of which there are a bounded number, and
//! with it the room that its body may take; once its picture is there it waits in one queue, by the
//! time at which it is due. The pool is given as many pictures as it can be at work on and no more, so
//! that what nobody waits for any more is dropped here, and so that large pictures never take all
//! workers at once while small ones wait.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::picture::probe;
use crate::pool::{Budget, Outcome, Params, Work};

/// A picture that needs more memory than this for decoding is a large one: about 16 megapixels.
const LARGE: u64 = 48 << 20;

/// How long a picture of the asynchronous queue lets others pass by.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// The server itself wants to know whether it is well, at once.
    Health,
    /// Somebody holds a connection open.
    RealTime,
    /// Nobody does: lets others pass by, but not for ever.
    Background,
}

/// There are too many requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crowded;

/// The desk of one endpoint.
#[derive(Debug)]
pub struct Desk {
    entries: Arc<Semaphore>,
    most: usize,
    space: Space,
    queue: Mutex<Queue>,
}

/// A request that was let in. It makes room when it is dropped.
#[derive(Debug)]
pub struct Entry {
    _entry: OwnedSemaphorePermit,
}

/// Room for a body, until it is dropped.
#[derive(Debug)]
pub struct Room {
    _room: OwnedSemaphorePermit,
}

/// The bytes that some bodies may have together. Who asks first gets room first.
#[derive(Debug)]
pub struct Space {
    room: Arc<Semaphore>,
    units: u32,
}

/// Room is counted in these.
const UNIT: u64 = 4096;

/// Where pictures go: the pool of a model that is loaded.
#[derive(Clone, Debug)]
pub struct Counter {
    /// The pool's queue; it has room for as many as there are places.
    pub queue: Sender<Work>,
    /// Pictures that the pool can be at work on at once: one for each worker, and where devices
    /// compute, those of their batches besides.
    pub places: usize,
    /// Its budget.
    pub budget: Arc<Budget>,
    /// Its workers.
    pub workers: usize,
}

#[derive(Debug, Default)]
struct Queue {
    counter: Option<Counter>,
    /// Nobody is to wait for a counter.
    closed: bool,
    /// By the time at which they are due, and in order of arrival.
    waiting: BTreeMap<(Instant, u64), Waiting>,
    arrivals: u64,
    busy: usize,
    busy_with_large: usize,
    given: u64,
}

#[derive(Debug)]
struct Waiting {
    bytes: Vec<u8>,
    params: Arc<Params>,
    large: bool,
    cancelled: Arc<AtomicBool>,
    answer: oneshot::Sender<Outcome>,
}

/// Whether a picture is a large one, by its header. What is no picture is found out quickly.
#[must_use]
pub fn is_large(bytes: &[u8], params: &Params) -> bool {
    probe(bytes, &params.limits).is_ok_and(|header| header.decode_bytes > LARGE)
}

/// A picture on its way through queue and pool. Dropping it tells them that nobody waits any more.
#[derive(Debug)]
pub struct Pending {
    answer: oneshot::Receiver<Outcome>,
    cancelled: Arc<AtomicBool>,
}

impl Pending {
    /// Waits for the answer; none where the pool went away.
    pub async fn answer(mut self) -> Option<Outcome> {
        (&mut self.answer).await.ok()
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

impl Space {
    /// Space for so many bytes.
    #[must_use]
    pub fn new(bytes: u64) -> Space {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).max(1);
        Space { room: Arc::new(Semaphore::new(units as usize)), units }
    }

    /// Waits for room for a body of at most `bytes`, or for all the room there is.
    pub async fn take(&self, bytes: u64) -> Room {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let all = self.room.clone().acquire_many_owned(units.clamp(1, self.units));
        Room { _room: all.await.expect("the room was closed. This is a bug.") }
    }
}

impl Desk {
    /// A desk for `most` requests at once, whose bodies have `room` bytes together.
    #[must_use]
    pub fn new(most: usize, room: u64) -> Arc<Desk> {
        let most = most.clamp(1, Semaphore::MAX_PERMITS);
        Arc::new(Desk {
            entries: Arc::new(Semaphore::new(most)),
            most,
            space: Space::new(room),
            queue: Mutex::default(),
        })
    }

    /// Lets a request in, or not; nobody waits for that.
    ///
    /// # Errors
    /// [`Crowded`] when there are as many as there may be.
    pub fn enter(&self) -> Result<Entry, Crowded> {
        let entry = self.entries.clone().try_acquire_owned().map_err(|_| Crowded)?;
        Ok(Entry { _entry: entry })
    }

    /// Requests that are in.
    #[must_use]
    pub fn inside(&self) -> usize {
        self.most - self.entries.available_permits()
    }

    /// Waits for room for a body of at most `bytes`, or for all the room there is.
    pub async fn room(&self, bytes: u64) -> Room {
        self.space.take(bytes).await
    }

    /// Pictures that wait for a worker.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Workers that are busy with a picture. Where devices compute, as many are taken for busy as
    /// have some on their way.
    #[must_use]
    pub fn busy(&self) -> usize {
        let queue = self.lock();
        queue.counter.as_ref().map_or(queue.busy, |counter| queue.busy.min(counter.workers))
    }

    /// Pictures that were given to workers since the desk is there.
    #[must_use]
    pub fn given(&self) -> u64 {
        self.lock().given
    }

    /// From now on pictures go there; without a counter they wait.
    pub fn open(self: &Arc<Desk>, counter: Option<Counter>) {
        let mut queue = self.lock();
        queue.counter = counter;
        queue.closed = false;
        self.serve(&mut queue);
    }

    /// Until it is opened again, nothing goes anywhere, and nothing waits: pictures that do, and those
    /// that come, get no answer.
    pub fn close(&self) {
        let mut queue = self.lock();
        queue.counter = None;
        queue.closed = true;
        queue.waiting.clear();
    }

    /// Queues a picture; `large` says [`is_large`].
    #[must_use]
    pub fn submit(
        self: &Arc<Desk>,
        bytes: Vec<u8>,
        large: bool,
        params: Arc<Params>,
        priority: Priority,
    ) -> Pending {
        let (sender, answer) = oneshot::channel();
        let cancelled = Arc::new(AtomicBool::new(false));
        let pending = Pending { answer, cancelled: cancelled.clone() };
        let now = Instant::now();
        let due = match priority {
            Priority::Health => now.checked_sub(Duration::from_secs(3600)).unwrap_or(now),
            Priority::RealTime => now,
            Priority::Background => now + PATIENCE,
        };
        let mut queue = self.lock();
        if queue.closed {
            return pending;
        }
        let place = (due, queue.arrivals);
        queue.arrivals += 1;
        queue.waiting.insert(place, Waiting { bytes, params, large, cancelled, answer: sender });
        self.serve(&mut queue);
        pending
    }

    /// Gives the pool what it has places for, in order.
    fn serve(self: &Arc<Desk>, queue: &mut Queue) {
        queue.waiting.retain(|_, waiting| !waiting.cancelled.load(Ordering::Relaxed));
        let Some(counter) = queue.counter.clone() else { return };
        // One worker is kept from large pictures, where there is more than one.
        let most_large = counter.workers.saturating_sub(1).max(1);
        while queue.busy < counter.places {
            let room_for_large = queue.busy_with_large < most_large;
            let mut next = queue.waiting.iter().filter(|(_, one)| !one.large || room_for_large);
            let Some((&place, _)) = next.next() else { return };
            let Some(one) = queue.waiting.remove(&place) else { return };
            let Waiting { bytes, params, large, cancelled, answer } = one;
            queue.busy += 1;
            queue.busy_with_large += usize::from(large);
            let desk = self.clone();
            // Tickets are taken in the order of the queue, under its lock. The file's bytes are
            // counted by the desk.
            let ticket = counter.budget.open();
            let reply = Box::new(move |outcome| {
                let _ = answer.send(outcome);
                desk.left(large);
            });
            let work = Work { bytes, params, ticket, cancelled, note: None, reply };
            // There is room for as many as there are places. A pool that is gone answers nobody.
            match counter.queue.try_send(work) {
                Ok(()) => queue.given += 1,
                Err(_) => {
                    queue.busy -= 1;
                    queue.busy_with_large -= usize::from(large);
                }
            }
        }
    }

    /// A worker is through with a picture; runs on its thread, which then finds the next one.
    fn left(self: &Arc<Desk>, large: bool) {
        let mut queue = self.lock();
        queue.busy -= 1;
        queue.busy_with_large -= usize::from(large);
        self.serve(&mut queue);
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::{Receiver, bounded};

    use crate::pool::{Failure, Spent};
    use crate::yolo::NmsOptions;

    /// A desk whose pool is the test itself.
    fn desk(workers: usize) -> (Arc<Desk>, Receiver<Work>, Arc<Params>) {
        let (queue, work) = bounded(workers);
        let desk = Desk::new(4, 10 * UNIT);
        let budget = Budget::new(1 << 20, 1 << 20);
        desk.open(Some(Counter { queue, places: workers, budget, workers }));
        let nms = NmsOptions {
            conf: 0.5,
            iou: 0.5,
            max_det: 1,
            max_nms: 1,
            agnostic: false,
            classes: None,
        };
        let limits = crate::picture::Limits::default();
        let params = Params { limits, imgsz: 32, square: false, nms, annotate: None };
        (desk, work, Arc::new(params))
    }

    /// The header of a bitmap, which says what decoding would cost.
    fn bitmap(side: u32) -> Vec<u8> {
        let mut file = b"BM".to_vec();
        for number in [54 + side * side * 3, 0, 54, 40, side, side] {
            file.extend(number.to_le_bytes());
        }
        for number in [1u16, 24] {
            file.extend(number.to_le_bytes());
        }
        file.resize(64, 0);
        file
    }

    fn submit(desk: &Arc<Desk>, side: u32, params: &Arc<Params>, priority: Priority) -> Pending {
        let bytes = bitmap(side);
        let large = is_large(&bytes, params);
        desk.submit(bytes, large, params.clone(), priority)
    }

    fn finish(work: Work) {
        let Work { ticket, reply, .. } = work;
        reply(Outcome { result: Err(Failure::Cancelled), spent: Spent::default(), ticket });
    }

    #[test]
    fn so_many_are_let_in_and_no_more() {
        let (desk, _work, _) = desk(1);
        let entries: Vec<Entry> = (0..4).map(|_| desk.enter().unwrap()).collect();
        assert_eq!((desk.inside(), desk.enter().unwrap_err()), (4, Crowded));
        drop(entries);
        assert_eq!(desk.inside(), 0);
        desk.enter().unwrap();
    }

    #[test]
    fn the_pool_gets_as_many_as_it_has_workers_in_the_order_in_which_they_are_due() {
        let (desk, work, params) = desk(2);
        let ask = |side, priority| submit(&desk, side, &params, priority);
        let _first = ask(1, Priority::Background);
        let _second = ask(2, Priority::RealTime);
        let _later = ask(3, Priority::Background);
        let _sooner = ask(4, Priority::RealTime);
        let _soonest = ask(5, Priority::Health);
        assert_eq!((desk.waiting(), desk.busy(), work.len()), (3, 2, 2));
        let mut sides = Vec::new();
        for left in [2, 1, 0, 0, 0] {
            let next = work.try_recv().unwrap();
            sides.push(next.bytes[18]);
            finish(next);
            assert_eq!(desk.waiting(), left);
        }
        assert_eq!((sides, desk.busy()), (vec![1, 2, 5, 4, 3], 0));
    }

    #[test]
    fn a_pool_with_devices_gets_enough_for_their_batches() {
        let (desk, _, params) = desk(1);
        let (queue, work) = bounded(5);
        let budget = Budget::new(1 << 20, 1 << 20);
        desk.open(Some(Counter { queue, places: 5, budget, workers: 2 }));
        let _all: Vec<Pending> =
            (1..9).map(|side| submit(&desk, side, &params, Priority::RealTime)).collect();
        assert_eq!((work.len(), desk.waiting(), desk.busy()), (5, 3, 2));
        finish(work.try_recv().unwrap());
        assert_eq!((work.len(), desk.waiting(), desk.busy()), (5, 2, 2));
    }

    #[test]
    fn large_pictures_leave_a_worker_to_small_ones() {
        let (desk, work, params) = desk(2);
        let ask = |side| submit(&desk, side, &params, Priority::RealTime);
        let _large: Vec<Pending> = (0..3).map(|_| ask(5000)).collect();
        // One worker is free, and none of the large ones gets it.
        assert_eq!((work.len(), desk.waiting()), (1, 2));
        let _small: Vec<Pending> = (0..2).map(|_| ask(10)).collect();
        assert_eq!((work.len(), desk.waiting()), (2, 3));
        let large = work.try_recv().unwrap();
        let small = work.try_recv().unwrap();
        assert!(large.bytes[18..22] == 5000u32.to_le_bytes() && small.bytes[18] == 10);
        finish(small);
        assert_eq!(work.try_recv().unwrap().bytes[18], 10);
        finish(large);
        assert_eq!(work.try_recv().unwrap().bytes[18..22], 5000u32.to_le_bytes());
    }

    #[test]
    fn a_lone_worker_takes_large_ones_too() {
        let (desk, work, params) = desk(1);
        let _large = submit(&desk, 5000, &params, Priority::RealTime);
        assert_eq!(work.len(), 1);
    }

    #[test]
    fn what_nobody_waits_for_never_gets_to_the_pool() {
        let (desk, work, params) = desk(1);
        let ask = |side| submit(&desk, side, &params, Priority::RealTime);
        let (_first, second, _third) = (ask(1), ask(2), ask(3));
        drop(second);
        let first = work.try_recv().unwrap();
        finish(first);
        assert_eq!(work.try_recv().unwrap().bytes[18], 3);
        assert_eq!(desk.waiting(), 0);
    }

    #[test]
    fn pictures_wait_for_a_model() {
        let (desk, work, params) = desk(1);
        desk.open(None);
        let _waits = submit(&desk, 1, &params, Priority::RealTime);
        assert_eq!((desk.waiting(), work.len()), (1, 0));
        let (queue, work) = bounded(1);
        let budget = Budget::new(1, 1);
        desk.open(Some(Counter { queue, places: 1, budget, workers: 1 }));
        assert_eq!((desk.waiting(), work.len()), (0, 1));
    }

    #[tokio::test]
    async fn nothing_waits_for_a_model_that_is_given_up() {
        let (desk, work, params) = desk(1);
        let ask = |side| submit(&desk, side, &params, Priority::RealTime);
        let (first, second) = (ask(1), ask(2));
        desk.close();
        let third = ask(3);
        assert_eq!((desk.waiting(), work.len()), (0, 1));
        assert!(second.answer().await.is_none() && third.answer().await.is_none());
        // What has gone to the pool has its answer from there.
        finish(work.try_recv().unwrap());
        assert!(first.answer().await.is_some());
        assert_eq!(desk.busy(), 0);
        let (queue, work) = bounded(1);
        let budget = Budget::new(1, 1);
        desk.open(Some(Counter { queue, places: 1, budget, workers: 1 }));
        let _fourth = ask(4);
        assert_eq!(work.len(), 1);
    }

    #[tokio::test]
    async fn bodies_wait_for_room() {
        let (desk, _work, _) = desk(1);
        let some = desk.room(6 * UNIT).await;
        let more = desk.room(6 * UNIT);
        tokio::pin!(more);
        let soon = Duration::from_millis(20);
        assert!(tokio::time::timeout(soon, &mut more).await.is_err());
        drop(some);
        more.await;
        // More than there is at all is all there is.
        desk.room(1000 * UNIT).await;
    }
}
