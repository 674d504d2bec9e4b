//! The byte budget: who may hold how much, and why nobody waits for ever.
//!
//! Work takes a [`Ticket`] when it is begun and grows it before it allocates. Tickets are numbered,
//! and one reserve, large enough for the largest picture allowed, is kept for the oldest of them:
//! whatever younger work has taken, the oldest never waits for it, finishes, and passes the reserve
//! on.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// The budget was closed while somebody waited.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the pool is closing")]
pub struct Closed;

/// Bytes shared by everything that is in flight.
#[derive(Debug)]
pub struct Budget {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    free: u64,
    reserve: u64,
    open: BTreeSet<u64>,
    next: u64,
    closed: bool,
}

impl Budget {
    /// A budget of `free` bytes for all, and `reserve` bytes for the oldest ticket alone.
    #[must_use]
    pub fn new(free: u64, reserve: u64) -> Arc<Budget> {
        let state = State { free, reserve, open: BTreeSet::new(), next: 0, closed: false };
        Arc::new(Budget { state: Mutex::new(state), changed: Condvar::new() })
    }

    /// Begins a piece of work. Work must be queued in the order of its tickets.
    #[must_use]
    pub fn open(self: &Arc<Self>) -> Ticket {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.open.insert(number);
        Ticket { budget: self.clone(), number, from_free: 0, from_reserve: 0 }
    }

    /// Wakes everybody who waits, with an error: the pool is going away.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Wakes those who wait for bytes or for something else to do: there is something.
    pub(super) fn nudge(&self) {
        drop(self.lock());
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A piece of work in flight, and the bytes it holds; they return when it is dropped.
#[derive(Debug)]
pub struct Ticket {
    budget: Arc<Budget>,
    number: u64,
    from_free: u64,
    from_reserve: u64,
}

impl Ticket {
    /// Takes `bytes` more, waiting for them if need be.
    ///
    /// One ticket must never hold more than the reserve, or as the oldest it could wait for ever.
    ///
    /// # Errors
    /// [`Closed`] when the pool goes away meanwhile.
    pub fn grow(&mut self, bytes: u64) -> Result<(), Closed> {
        let budget = self.budget.clone();
        let mut state = budget.lock();
        while !self.take(&mut state, bytes)? {
            state = budget.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// Takes `bytes` more, waiting for them if need be, but no longer than until there is `something
    /// else` to do; says whether it took them. Who makes something to do calls [`Budget::nudge`].
    ///
    /// # Errors
    /// As [`Ticket::grow`].
    pub(super) fn grow_unless(
        &mut self,
        bytes: u64,
        something_else: &dyn Fn() -> bool,
    ) -> Result<bool, Closed> {
        let budget = self.budget.clone();
        let mut state = budget.lock();
        loop {
            if self.take(&mut state, bytes)? {
                return Ok(true);
            }
            // Under the lock, which whoever nudges takes, too: nothing comes up unseen between this
            // look and the waiting.
            if something_else() {
                return Ok(false);
            }
            state = budget.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The budget that it is of.
    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Takes `bytes` more if they are there; says whether they were.
    ///
    /// # Errors
    /// [`Closed`] when the pool is going away.
    pub fn try_grow(&mut self, bytes: u64) -> Result<bool, Closed> {
        let budget = self.budget.clone();
        let mut state = budget.lock();
        self.take(&mut state, bytes)
    }

    fn take(&mut self, state: &mut State, bytes: u64) -> Result<bool, Closed> {
        if state.closed {
            return Err(Closed);
        }
        if bytes <= state.free {
            state.free -= bytes;
            self.from_free += bytes;
            return Ok(true);
        }
        if state.open.first() == Some(&self.number) && bytes <= state.reserve {
            state.reserve -= bytes;
            self.from_reserve += bytes;
            return Ok(true);
        }
        Ok(false)
    }

    /// Gives back all but `bytes`; the reserve first, it is wanted most.
    pub fn shrink_to(&mut self, bytes: u64) {
        let mut state = self.budget.lock();
        let surplus = (self.from_free + self.from_reserve).saturating_sub(bytes);
        let reserve = surplus.min(self.from_reserve);
        self.from_reserve -= reserve;
        self.from_free -= surplus - reserve;
        state.reserve += reserve;
        state.free += surplus - reserve;
        drop(state);
        self.budget.changed.notify_all();
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.budget.lock();
        state.free += self.from_free;
        state.reserve += self.from_reserve;
        state.open.remove(&self.number);
        drop(state);
        self.budget.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    #[test]
    fn the_oldest_is_never_kept_waiting_by_younger_ones() {
        let budget = Budget::new(10, 8);
        let (mut oldest, mut younger) = (budget.open(), budget.open());
        younger.grow(10).unwrap();
        oldest.grow(8).unwrap();
        drop(oldest);
        // The reserve passes on.
        younger.grow(8).unwrap();
    }

    #[test]
    fn a_younger_one_waits_until_there_is_room() {
        let budget = Budget::new(10, 100);
        let mut oldest = budget.open();
        oldest.grow(10).unwrap();
        let mut younger = budget.open();
        let waiting = std::thread::spawn(move || younger.grow(5));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!waiting.is_finished());
        oldest.shrink_to(4);
        assert_eq!(waiting.join().unwrap(), Ok(()));
    }

    #[test]
    fn who_does_not_wait_is_told_so() {
        let budget = Budget::new(10, 8);
        let (mut oldest, mut younger) = (budget.open(), budget.open());
        assert_eq!(younger.try_grow(10), Ok(true));
        assert_eq!(younger.try_grow(1), Ok(false));
        assert_eq!(oldest.try_grow(9), Ok(false));
        assert_eq!(oldest.try_grow(8), Ok(true));
        drop(oldest);
        assert_eq!(younger.try_grow(8), Ok(true));
        budget.close();
        assert_eq!(younger.try_grow(0), Err(Closed));
    }

    #[test]
    fn closing_wakes_who_waits() {
        let budget = Budget::new(0, 0);
        let _oldest = budget.open();
        let mut younger = budget.open();
        let waiting = std::thread::spawn(move || younger.grow(5));
        std::thread::sleep(Duration::from_millis(20));
        budget.close();
        assert_eq!(waiting.join().unwrap(), Err(Closed));
    }

    #[test]
    fn never_more_than_the_whole_and_all_come_to_an_end() {
        let budget = Budget::new(50, 100);
        let held = Arc::new(AtomicU64::new(0));
        let (sender, receiver) = crossbeam_channel::bounded::<(Ticket, u64)>(4);
        let workers: Vec<_> = (0..3)
            .map(|_| {
                let (receiver, held) = (receiver.clone(), held.clone());
                std::thread::spawn(move || {
                    for (mut ticket, size) in receiver {
                        ticket.grow(size).unwrap();
                        let now = held.fetch_add(size, Ordering::SeqCst) + size;
                        assert!(now <= 150, "{now} bytes are held");
                        std::thread::yield_now();
                        held.fetch_sub(size, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        for step in 0..3000u64 {
            sender.send((budget.open(), step.wrapping_mul(2_654_435_761) % 101)).unwrap();
        }
        drop(sender);
        for worker in workers {
            worker.join().unwrap();
        }
        let state = budget.lock();
        assert_eq!((state.free, state.reserve), (50, 100));
    }
}
