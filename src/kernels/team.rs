//! Several threads on one convolution: for the time a single picture takes.
//!
//! A [`Team`] is a few threads that wait, spinning for a moment and then asleep, for their leader
//! to call [`Team::run`]; the leader does its own share and waits for theirs. Between two
//! convolutions of a network that takes about a microsecond.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};

/// A share of a task: which rows of which of its blocks.
///
/// Shares of one task never overlap, and a kernel writes nothing but the outputs of its share:
/// that is what lets threads work in one arena.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Share {
    /// These units of rows of all blocks.
    Rows(Range<usize>),
    /// Of all (block, unit of rows) in that order, these.
    Pairs(Range<usize>),
}

impl Share {
    /// Everything.
    pub(super) const ALL: Share = Share::Rows(0..usize::MAX);

    /// Part `index` of `parts` of a task with so many blocks and units of rows.
    ///
    /// Plenty of rows are divided, so that every part reads its own input. Few rows mean deep
    /// layers, whose weights are what is large: there, blocks are divided first.
    pub(super) fn of(index: usize, parts: usize, blocks: usize, rows: usize) -> Share {
        let cut = |all: usize| all * index / parts..all * (index + 1) / parts;
        if rows >= 4 * parts && blocks < 4 * parts {
            Share::Rows(cut(rows))
        } else {
            Share::Pairs(cut(blocks * rows))
        }
    }

    /// The units of rows, of `rows` in all, that are to be done of a block.
    pub(super) fn rows(&self, block: usize, rows: usize) -> Range<usize> {
        match self {
            Share::Rows(range) => range.start.min(rows)..range.end.min(rows),
            Share::Pairs(range) => {
                let of = |pair: usize| pair.saturating_sub(block * rows).min(rows);
                of(range.start)..of(range.end)
            }
        }
    }
}

/// A job: called once by every thread with its number.
type Job = dyn Fn(usize) + Sync;

struct Shared {
    /// Points to the leader's reference to the job while it runs.
    job: AtomicPtr<&'static Job>,
    /// Counts jobs; odd numbers are never skipped, so a change means one more job.
    round: AtomicUsize,
    /// Helpers that have not finished the job.
    left: AtomicUsize,
    stop: AtomicBool,
    panicked: AtomicBool,
    asleep: Vec<AtomicBool>,
}

/// A leader's helpers.
pub struct Team {
    shared: Arc<Shared>,
    helpers: Vec<(Thread, Option<JoinHandle<()>>)>,
}

/// How often a thread looks again before it sleeps: some ten microseconds.
const SPINS: usize = 20_000;

impl Team {
    /// A team of so many threads, the caller included.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn new(threads: NonZeroUsize) -> std::io::Result<Self> {
        let helpers = threads.get() - 1;
        let shared = Arc::new(Shared {
            job: AtomicPtr::new(std::ptr::null_mut()),
            round: AtomicUsize::new(0),
            left: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            asleep: (0..helpers).map(|_| AtomicBool::new(false)).collect(),
        });
        let mut team = Team { shared, helpers: Vec::with_capacity(helpers) };
        for index in 0..helpers {
            let shared = team.shared.clone();
            let handle = std::thread::Builder::new()
                .name(format!("worker-team-{index}"))
                .spawn(move || help(&shared, index))?;
            team.helpers.push((handle.thread().clone(), Some(handle)));
        }
        Ok(team)
    }

    /// How many threads there are, the caller's included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `job` once on every thread, with numbers from 0 (the caller) on, and waits for all.
    ///
    /// # Panics
    /// When the job did, on any thread.
    pub fn run(&mut self, job: &(dyn Fn(usize) + Sync)) {
        // SAFETY: only the lifetime changes. The reference is used by helpers between the start of
        // the round and their count in `left`, and `Wait` does not let this function go, by return
        // or by panic, before all of them are counted.
        let mut job =
            unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync + '_), &'static Job>(job) };
        let shared = &*self.shared;
        shared.left.store(self.helpers.len(), Ordering::Relaxed);
        shared.job.store(&raw mut job, Ordering::Relaxed);
        shared.round.fetch_add(1, Ordering::SeqCst);
        for ((thread, _), asleep) in self.helpers.iter().zip(&shared.asleep) {
            if asleep.load(Ordering::SeqCst) {
                thread.unpark();
            }
        }
        {
            let _wait = Wait(shared);
            job(0);
        }
        assert!(!shared.panicked.load(Ordering::Relaxed), "a thread of the team panicked");
    }
}

/// Waits for the helpers when it goes out of scope.
struct Wait<'a>(&'a Shared);

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let mut spins = 0;
        while self.0.left.load(Ordering::Acquire) != 0 {
            spins += 1;
            match spins < SPINS {
                true => std::hint::spin_loop(),
                // Somebody else has the core that the helper needs.
                false => std::thread::yield_now(),
            }
        }
    }
}

fn help(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        let mut spins = 0;
        while shared.round.load(Ordering::Acquire) == seen {
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
                continue;
            }
            shared.asleep[index].store(true, Ordering::SeqCst);
            // Either this sees the new round, or the leader sees that this is asleep.
            if shared.round.load(Ordering::SeqCst) == seen {
                std::thread::park();
            }
            shared.asleep[index].store(false, Ordering::SeqCst);
        }
        seen = seen.wrapping_add(1);
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        // SAFETY: the round was started after `job` was stored, and the leader keeps what it points
        // to alive until this thread has counted itself below.
        let job = unsafe { *shared.job.load(Ordering::Relaxed) };
        if catch_unwind(AssertUnwindSafe(|| job(index + 1))).is_err() {
            shared.panicked.store(true, Ordering::Relaxed);
        }
        shared.left.fetch_sub(1, Ordering::Release);
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.round.fetch_add(1, Ordering::SeqCst);
        for (thread, handle) in &mut self.helpers {
            thread.unpark();
            if let Some(handle) = handle.take() {
                let _ = handle.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_everything_once() {
        for (blocks, rows, parts) in [
            (1, 1, 1),
            (1, 5, 2),
            (3, 4, 2),
            (2, 20, 2),
            (8, 20, 3),
            (5, 3, 7),
            (1, 0, 2),
            (16, 40, 4),
        ] {
            let mut seen = vec![0; blocks * rows];
            for index in 0..parts {
                let share = Share::of(index, parts, blocks, rows);
                for block in 0..blocks {
                    for row in share.rows(block, rows) {
                        seen[block * rows + row] += 1;
                    }
                }
            }
            assert!(seen.iter().all(|&times| times == 1), "{blocks} {rows} {parts}: {seen:?}");
        }
        assert_eq!(Share::ALL.rows(7, 12), 0..12);
    }

    #[test]
    fn everybody_works_once_a_round_and_panics_come_back() {
        let mut team = Team::new(NonZeroUsize::new(3).unwrap()).unwrap();
        let counts: Vec<AtomicUsize> = (0..3).map(|_| AtomicUsize::new(0)).collect();
        for round in 0..2000 {
            team.run(&|index| {
                counts[index].fetch_add(1, Ordering::Relaxed);
            });
            if round % 500 == 0 {
                // Long enough for them to fall asleep.
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
        assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 2000));
        let told = catch_unwind(AssertUnwindSafe(|| team.run(&|index| assert!(index != 2))));
        assert!(told.is_err());
    }
}
