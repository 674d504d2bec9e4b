//! The desk: who is let in, who waits, and who is next at the pool.
//!
//! All doors come here. A request first takes an [`Entry`], of which there are a bounded number, and
//! with it the room that its body may take; once its picture is there it waits in one queue, by the
//! time at which it is due. The pool is given as many pictures as it has workers and no more, so
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
    room: Arc<Semaphore>,
    units: u32,
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

/// Room is counted in these.
const UNIT: u64 = 4096;

/// Where pictures go: the pool of a model that is loaded.
#[derive(Clone, Debug)]
pub struct Counter {
    /// The pool's queue; it has room for as many as there are workers.
    pub queue: Sender<Work>,
    /// Its budget.
    pub budget: Arc<Budget>,
    /// Its workers.
    pub workers: usize,
}

#[derive(Debug, Default)]
struct Queue {
    counter: Option<Counter>,
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

impl Desk {
    /// A desk for `most` requests at once, whose bodies have `room` bytes together.
    #[must_use]
    pub fn new(most: usize, room: u64) -> Arc<Desk> {
        let most = most.clamp(1, Semaphore::MAX_PERMITS);
        let units = u32::try_from(room.div_ceil(UNIT)).unwrap_or(u32::MAX).max(1);
        Arc::new(Desk {
            entries: Arc::new(Semaphore::new(most)),
            most,
            room: Arc::new(Semaphore::new(units as usize)),
            units,
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
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let all = self.room.clone().acquire_many_owned(units.clamp(1, self.units));
        Room { _room: all.await.expect("the desk's room was closed. This is a bug.") }
    }

    /// Pictures that wait for a worker.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Pictures that workers are busy with.
    #[must_use]
    pub fn busy(&self) -> usize {
        self.lock().busy
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
        self.serve(&mut queue);
    }

    /// Queues a picture.
    #[must_use]
    pub fn submit(
        self: &Arc<Desk>,
        bytes: Vec<u8>,
        params: Arc<Params>,
        priority: Priority,
    ) -> Pending {
        // What is no picture is found out quickly.
        let header = probe(&bytes, &params.limits);
        let large = header.is_ok_and(|header| header.decode_bytes > LARGE);
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
        let place = (due, queue.arrivals);
        queue.arrivals += 1;
        queue.waiting.insert(place, Waiting { bytes, params, large, cancelled, answer: sender });
        self.serve(&mut queue);
        pending
    }

    /// Gives the pool what it has workers for, in order.
    fn serve(self: &Arc<Desk>, queue: &mut Queue) {
        queue.waiting.retain(|_, waiting| !waiting.cancelled.load(Ordering::Relaxed));
        let Some(counter) = queue.counter.clone() else { return };
        // One worker is kept from large pictures, where there is more than one.
        let most_large = counter.workers.saturating_sub(1).max(1);
        while queue.busy < counter.workers {
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
            // There is room for as many as there are workers. A pool that is gone answers nobody.
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
