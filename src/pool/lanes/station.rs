//! What workers and devices know of each other: pictures that wait, and whether more are coming.

use std::convert::Infallible;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::buckets::{Buckets, Shape};
use super::pending::{Computed, Fault, Filled};
use crate::pool::work::Work;

/// A device that has nothing to do waits no longer than this for a batch to become full.
const LINGER: Duration = Duration::from_millis(20);

/// Between the workers and the devices.
pub(super) struct Station {
    state: Mutex<State>,
    changed: Condvar,
    queue: Receiver<Work>,
}

struct State {
    buckets: Buckets<Filled>,
    /// Workers that may bring pictures yet.
    feeding: usize,
    /// Those of them that have a picture at hand, …
    preparing: usize,
    /// … and of these those that wait for memory, …
    blocked: usize,
    /// … and those that wait for a slot.
    starved: usize,
    /// Devices that work.
    alive: usize,
    /// Why the last of them does not.
    dead: Option<Fault>,
    /// Disconnects when no device is left.
    gone: Option<Sender<Infallible>>,
    /// Keeps the channel open to the workers as long as any of them may bring pictures.
    computed: Option<Sender<Computed>>,
}

/// How long a device waits for its next batch.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wait {
    /// It has nothing else to do, and takes what there is.
    Idle,
    /// It is computing until about then, and wants a full batch.
    Until(Instant),
}

/// Which of the workers' counts.
#[derive(Clone, Copy)]
pub(super) enum Doing {
    Preparing,
    Blocked,
    Starved,
}

/// A worker may bring pictures, for as long as this lives: also where its thread never came to be.
pub(super) struct Feeding {
    station: Arc<Station>,
}

/// A worker counts among those who do this, for as long as this lives.
pub(super) struct Counted<'a> {
    station: &'a Station,
    doing: Doing,
}

impl Station {
    /// For so many workers and devices. The receiver disconnects when no device is left.
    pub(super) fn new(
        full: usize,
        workers: usize,
        devices: usize,
        queue: Receiver<Work>,
        computed: Sender<Computed>,
    ) -> (Arc<Station>, Receiver<Infallible>) {
        let (gone, no_device) = crossbeam_channel::bounded(0);
        let state = State {
            buckets: Buckets::new(full),
            feeding: workers,
            preparing: 0,
            blocked: 0,
            starved: 0,
            alive: devices,
            dead: None,
            gone: Some(gone),
            computed: Some(computed),
        };
        let station = Station { state: Mutex::new(state), changed: Condvar::new(), queue };
        (Arc::new(station), no_device)
    }

    /// Gives a picture to the devices; gives it back, with the reason, where there is none left.
    pub(super) fn put(&self, filled: Filled) -> Result<(), Box<(Filled, Fault)>> {
        let mut state = self.lock();
        if let Some(fault) = &state.dead {
            return Err(Box::new((filled, fault.clone())));
        }
        let first = state.buckets.is_empty();
        let full = state.buckets.put(filled.pending.shape(), filled);
        drop(state);
        // Otherwise no device would do anything else than before.
        if first || full {
            self.changed.notify_all();
        }
        Ok(())
    }

    /// Why there is no device left, where there is none.
    pub(super) fn dead(&self) -> Option<Fault> {
        self.lock().dead.clone()
    }

    /// This thread does that now.
    pub(super) fn count(&self, doing: Doing) -> Counted<'_> {
        *self.lock().counter(doing) += 1;
        // That somebody prepares a picture is no reason to begin a batch; that he cannot, is.
        if !matches!(doing, Doing::Preparing) {
            self.changed.notify_all();
        }
        Counted { station: self, doing }
    }

    /// One of its workers, which may bring pictures.
    pub(super) fn feeding(self: &Arc<Self>) -> Feeding {
        Feeding { station: self.clone() }
    }

    /// The next batch of a device. `None` when there is nothing to wait for: with [`Wait::Idle`]
    /// nothing will ever come.
    ///
    /// When a batch begins, and with which pictures, is decided here alone, by what happens to be
    /// there. It decides no byte of any answer: a batch is padded to its fixed size, and what is
    /// computed for a picture does not depend on its neighbours.
    pub(super) fn next(&self, wait: Wait) -> Option<(Shape, Vec<Filled>)> {
        let mut state = self.lock();
        loop {
            let full = state.buckets.take_full();
            if full.is_some() {
                return full;
            }
            let until = match wait {
                Wait::Idle => {
                    let linger = state.buckets.since().map(|since| since + LINGER);
                    let late = linger.is_some_and(|until| until <= Instant::now());
                    if late || !self.is_more_coming(&state) {
                        let oldest = state.buckets.take_oldest();
                        if oldest.is_some() || state.feeding == 0 {
                            return oldest;
                        }
                    }
                    linger
                }
                Wait::Until(until) if until <= Instant::now() || !self.is_more_coming(&state) => {
                    return None;
                }
                Wait::Until(until) => Some(until),
            };
            state = match until {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let time = until.saturating_duration_since(Instant::now());
                    let woken = self.changed.wait_timeout(state, time);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Whether pictures are on their way to the buckets that nothing holds up. Who waits for a slot
    /// waits for a device, and may well do so for this one; who waits for memory may wait for what
    /// the pictures in the buckets hold.
    fn is_more_coming(&self, state: &State) -> bool {
        if state.starved > 0 {
            return false;
        }
        let at_work = state.preparing > state.blocked;
        at_work || (state.blocked == 0 && state.feeding > 0 && !self.queue.is_empty())
    }

    /// A device is of no use any more. Says what that is to its pictures, and gives back those that
    /// nobody will compute: all that wait, where it was the last one.
    pub(super) fn lost(&self, fault: Fault) -> (Fault, Vec<Filled>) {
        let mut state = self.lock();
        state.alive -= 1;
        if state.alive > 0 {
            let fault = match fault {
                Fault::Failed(text) => Fault::Lost(text),
                other => other,
            };
            return (fault, Vec::new());
        }
        state.dead = Some(fault.clone());
        state.gone = None;
        (fault, state.buckets.take_all().collect())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn counter(&mut self, doing: Doing) -> &mut usize {
        match doing {
            Doing::Preparing => &mut self.preparing,
            Doing::Blocked => &mut self.blocked,
            Doing::Starved => &mut self.starved,
        }
    }
}

impl Drop for Feeding {
    fn drop(&mut self) {
        let mut state = self.station.lock();
        state.feeding -= 1;
        if state.feeding == 0 {
            state.computed = None;
        }
        drop(state);
        self.station.changed.notify_all();
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let mut state = self.station.lock();
        *state.counter(self.doing) -= 1;
        let more = self.station.is_more_coming(&state);
        drop(state);
        if !more {
            self.station.changed.notify_all();
        }
    }
}
