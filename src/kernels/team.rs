//! Several threads on one convolution: for the time a single picture takes.
//!
//! A [`Team`] is a few threads that wait, spinning for a moment and then asleep, for their leader
//! to call [`Team::run`]; the leader does its own share and waits for theirs. Between two
//! convolutions of a network that takes about a microsecond.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
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

/// A job: called with the number of the thread, and of the piece that it is to do.
type Job = dyn Fn(usize, usize) + Sync;

struct Shared {
    /// Points to the leader's reference to the job while there are pieces of it.
    job: AtomicPtr<&'static Job>,
    /// The round in the upper 32 bits, then in 16 bits each how many pieces it has, and how many of
    /// them were taken. All in one word, so that who takes a piece knows which round it is of.
    ticket: AtomicU64,
    /// Pieces of this round that are done.
    done: AtomicUsize,
    stop: AtomicBool,
    panicked: AtomicBool,
    asleep: Vec<AtomicBool>,
}

impl Shared {
    /// Does pieces of the current round until all are taken.
    fn work(&self, thread: usize) {
        loop {
            let ticket = self.ticket.fetch_add(1, Ordering::AcqRel);
            let (pieces, piece) = ((ticket >> 16 & 0xffff) as usize, (ticket & 0xffff) as usize);
            if piece >= pieces {
                return;
            }
            // SAFETY: the piece that was taken is one of a round whose leader does not leave `run`,
            // and so keeps what `job` points to, before this piece is counted in `done`.
            let job = unsafe { *self.job.load(Ordering::Relaxed) };
            if catch_unwind(AssertUnwindSafe(|| job(thread, piece))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.done.fetch_add(1, Ordering::Release);
        }
    }

    fn round(&self) -> u64 {
        self.ticket.load(Ordering::SeqCst) >> 32
    }
}

/// A leader's helpers.
///
/// Work is cut into more pieces than there are threads, and every thread takes the next one when it
/// is free. So a helper whose core somebody else has just now costs nothing: the others do its
/// pieces, the leader all of them if need be.
pub struct Team {
    shared: Arc<Shared>,
    helpers: Vec<(Thread, Option<JoinHandle<()>>)>,
}

/// How often a helper looks again before it sleeps: some tens of microseconds.
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
            ticket: AtomicU64::new(0),
            done: AtomicUsize::new(0),
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

    /// Into how many pieces work is best cut.
    #[must_use]
    pub fn pieces(&self) -> usize {
        (2 * self.threads()).min(1 << 10)
    }

    /// Calls `job` once for each of `pieces` pieces (65,535 at most), with the number of the thread
    /// that does it (0 is the caller) and of the piece, and waits for all.
    ///
    /// # Panics
    /// When the job did, on any thread.
    pub fn run(&mut self, pieces: usize, job: &(dyn Fn(usize, usize) + Sync)) {
        assert!(pieces <= 0xffff, "{pieces} pieces. This is a bug.");
        // SAFETY: only the lifetime changes. The reference is used between the taking of a piece
        // and its counting, and this function does not end before all pieces are counted: panics
        // of the job are caught where it is called.
        let mut job = unsafe {
            std::mem::transmute::<&(dyn Fn(usize, usize) + Sync + '_), &'static Job>(job)
        };
        let shared = &*self.shared;
        shared.done.store(0, Ordering::Relaxed);
        shared.job.store(&raw mut job, Ordering::Relaxed);
        let round = (shared.round() + 1) & u64::from(u32::MAX);
        shared.ticket.store(round << 32 | (pieces as u64) << 16, Ordering::SeqCst);
        for ((thread, _), asleep) in self.helpers.iter().zip(&shared.asleep) {
            if asleep.load(Ordering::SeqCst) {
                thread.unpark();
            }
        }
        shared.work(0);
        let mut spins = 0;
        while shared.done.load(Ordering::Acquire) != pieces {
            spins += 1;
            match spins < SPINS {
                true => std::hint::spin_loop(),
                // Somebody else has the core that the helper needs.
                false => std::thread::yield_now(),
            }
        }
        let panicked = shared.panicked.swap(false, Ordering::Relaxed);
        assert!(!panicked, "a thread of the team panicked");
    }
}

fn help(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        let mut spins = 0;
        while shared.round() == seen {
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
                continue;
            }
            shared.asleep[index].store(true, Ordering::SeqCst);
            // Either this sees the new round, or the leader sees that this is asleep.
            if shared.round() == seen {
                std::thread::park();
            }
            shared.asleep[index].store(false, Ordering::SeqCst);
        }
        seen = shared.round();
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        shared.work(index + 1);
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // A round without pieces.
        self.shared.ticket.fetch_add(1 << 32, Ordering::SeqCst);
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
    fn every_piece_is_done_once_and_panics_come_back() {
        let mut team = Team::new(NonZeroUsize::new(3).unwrap()).unwrap();
        let counts: Vec<AtomicUsize> = (0..7).map(|_| AtomicUsize::new(0)).collect();
        for round in 0..2000 {
            team.run(7, &|thread, piece| {
                assert!(thread < 3);
                counts[piece].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == round + 1));
            if round % 500 == 0 {
                // Long enough for them to fall asleep.
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
        let told = catch_unwind(AssertUnwindSafe(|| team.run(7, &|_, piece| assert!(piece != 2))));
        assert!(told.is_err());
        team.run(7, &|_, _| {});
    }
}
