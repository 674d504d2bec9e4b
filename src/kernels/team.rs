//! Several threads on one picture: for the time that a single one takes.
//!
//! A [`Team`] brings leaders and helpers together. Who has a picture leads ([`Team::lead`]): each
//! convolution is cut into pieces, which the leader offers and then does itself, one after the
//! other. Who has nothing to do assists ([`Team::assist`]) and takes pieces from whoever offers some.
//!
//! There are more pieces than threads, and every thread takes the next one when it is free. So a
//! helper whose core somebody else has just now costs nothing, nor does one that leaves: the others
//! do its pieces, the leader all of them if need be. Nobody waits for anything but for pieces that
//! were begun.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::memory::Memory;

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

/// A job: called with scratch memory of the thread's own, and the number of the piece to do.
type Job = dyn Fn(&mut Memory, usize) + Sync;

/// Called on a helper's thread for each piece, to call what it is handed: for what has to be so on
/// every thread that works on the leader's picture.
pub type Hook<'a> = dyn Fn(&mut dyn FnMut()) + Sync + 'a;

/// The [`Hook`] that does nothing besides.
pub fn no_hook(piece: &mut dyn FnMut()) {
    piece();
}

/// How long a helper looks for the next pieces before it sleeps: longer than a leader needs for what
/// it does alone between two convolutions, and too short to be missed by another process.
const PATIENCE: Duration = Duration::from_micros(100);

/// How long a leader waits for the last pieces, if not twice as long as one of its own took, before
/// it takes who does them to have lost the core.
const STALL: Duration = Duration::from_millis(1);

/// How often a leader looks for the end of the last pieces before it lets others have its core.
const SPINS: usize = 20_000;

/// Where one leader offers pieces. On cache lines of its own: all idle threads look at it.
#[derive(Default)]
#[repr(align(128))]
struct Slot {
    /// Somebody leads here.
    led: AtomicBool,
    /// Points to the leader's reference to the job while there are pieces of it.
    job: AtomicPtr<&'static Job>,
    /// Pieces in the upper 32 bits, and below how many of them were taken: one word, so that a
    /// piece is taken of what is offered now or not at all.
    ticket: AtomicU64,
    /// Pieces that are done.
    done: AtomicUsize,
    panicked: AtomicBool,
}

impl Slot {
    /// Takes a piece, if there is one that nobody has taken.
    fn take(&self) -> Option<usize> {
        let open = |ticket: u64| (ticket & 0xffff_ffff) < ticket >> 32;
        let next = |ticket: u64| open(ticket).then_some(ticket + 1);
        // Who takes none writes nothing, so that looking disturbs nobody.
        let taken = self.ticket.fetch_update(Ordering::AcqRel, Ordering::Relaxed, next).ok()?;
        Some((taken & 0xffff_ffff) as usize)
    }

    /// Does a piece that was taken, and counts it even if it panics.
    fn finish(&self, piece: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(piece)).is_err() {
            self.panicked.store(true, Ordering::Relaxed);
        }
        self.done.fetch_add(1, Ordering::Release);
    }

    /// Does a piece of somebody else's job; whether there was one.
    fn help(&self, scratch: &mut Memory) -> bool {
        let Some(piece) = self.take() else { return false };
        // SAFETY: the piece that was taken is one of a job whose leader does not leave `Lead::run`,
        // and so keeps what `job` points to, before this piece is counted in `done`.
        let job = unsafe { *self.job.load(Ordering::Relaxed) };
        self.finish(|| job(scratch, piece));
        true
    }
}

/// Leaders, and helpers that do pieces of what they offer.
pub struct Team {
    /// One for each thread, as any of them may lead.
    slots: Vec<Slot>,
    /// Helpers that look for pieces just now.
    awake: AtomicUsize,
    /// Helpers that would come if they were called.
    asleep: AtomicUsize,
    calls: (Sender<()>, Receiver<()>),
    /// Leaders cut their work whether anybody is there to help or not.
    always: bool,
}

impl Team {
    /// A team of so many threads, leaders and helpers alike. Leaders cut their work into pieces only
    /// while somebody is there to take them.
    #[must_use]
    pub fn new(threads: NonZeroUsize) -> Arc<Self> {
        Self::make(threads, false)
    }

    fn make(threads: NonZeroUsize, always: bool) -> Arc<Self> {
        Arc::new(Team {
            slots: (0..threads.get()).map(|_| Slot::default()).collect(),
            awake: AtomicUsize::new(0),
            asleep: AtomicUsize::new(0),
            calls: crossbeam_channel::bounded(threads.get()),
            always,
        })
    }

    /// Begins a picture that others may help with; on each of their threads `hook` is called for
    /// every piece. None when as many pictures as the team has threads were begun.
    #[must_use]
    pub fn lead<'a>(&'a self, hook: &'a Hook<'a>) -> Option<Lead<'a>> {
        let free = |slot: &&Slot| !slot.led.swap(true, Ordering::AcqRel);
        let slot = self.slots.iter().find(free)?;
        Some(Lead { team: self, slot, hook, stalled: false })
    }

    /// Does pieces of whatever is offered, with `scratch` as this thread's own memory, until
    /// `until` says so, nobody leads, or there was nothing to take for a while.
    pub fn assist(&self, scratch: &mut Memory, until: &dyn Fn() -> bool) {
        let _awake = Count::of(&self.awake);
        let mut idle = Instant::now();
        loop {
            let (mut led, mut helped) = (false, false);
            for slot in &self.slots {
                led |= slot.led.load(Ordering::Relaxed);
                // After each piece, so that who has other work is back at it soon.
                while !until() && slot.help(scratch) {
                    helped = true;
                }
            }
            if helped {
                idle = Instant::now();
            } else if !led || until() || idle.elapsed() > PATIENCE {
                return;
            }
            std::hint::spin_loop();
        }
    }

    /// Has a helper wait, by `wait`, for its own work or for a call by a leader.
    pub fn sleep<T>(&self, wait: impl FnOnce(&Receiver<()>) -> T) -> T {
        let _asleep = Count::of(&self.asleep);
        wait(&self.calls.1)
    }

    /// Calls those who sleep.
    fn call(&self) {
        let asleep = self.asleep.load(Ordering::Relaxed);
        if asleep > 0 {
            // Who was called and has not heard it yet still counts as asleep. A call too many only
            // has somebody look in vain, and one too few is made good at the next convolution.
            (self.calls.1.len()..asleep).for_each(|_| _ = self.calls.0.try_send(()));
        }
    }
}

/// One more, for as long as this lives.
struct Count<'a>(&'a AtomicUsize);

impl<'a> Count<'a> {
    fn of(counter: &'a AtomicUsize) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Count(counter)
    }
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A picture that others may help with.
pub struct Lead<'a> {
    team: &'a Team,
    slot: &'a Slot,
    hook: &'a Hook<'a>,
    /// Somebody who was helping lost the core.
    stalled: bool,
}

impl Lead<'_> {
    /// Into how many pieces the next job is best cut; 1 while there is nobody to help. Calls those
    /// who sleep.
    #[must_use]
    pub fn pieces(&self) -> usize {
        if self.stalled && !self.team.always {
            return 1;
        }
        self.team.call();
        let helpers = match self.team.always {
            true => self.team.slots.len() - 1,
            false => self.team.awake.load(Ordering::Relaxed),
        };
        if helpers == 0 && !self.team.always { 1 } else { (2 * (1 + helpers)).min(1 << 10) }
    }

    /// Calls `job` once for each of `pieces` pieces, with scratch memory that nobody else uses
    /// meanwhile (the leader's is `scratch`) and the number of the piece, and waits for all.
    ///
    /// # Panics
    /// When the job did, on any thread.
    pub fn run(
        &mut self,
        pieces: usize,
        scratch: &mut Memory,
        job: &(dyn Fn(&mut Memory, usize) + Sync),
    ) {
        let pieces = u32::try_from(pieces).expect("too many pieces. This is a bug.");
        let hook = self.hook;
        let hooked = |scratch: &mut Memory, piece: usize| hook(&mut || job(scratch, piece));
        // SAFETY: only the lifetime changes. The reference is used between the taking of a piece
        // and its counting, and this function does not end before all pieces are counted: panics
        // of the job are caught where it is called.
        let mut hooked = unsafe {
            std::mem::transmute::<&(dyn Fn(&mut Memory, usize) + Sync + '_), &'static Job>(&hooked)
        };
        let slot = self.slot;
        slot.done.store(0, Ordering::Relaxed);
        slot.job.store(&raw mut hooked, Ordering::Relaxed);
        // From here on others take pieces, and see what was stored before.
        slot.ticket.store(u64::from(pieces) << 32, Ordering::Release);
        let mut longest = STALL;
        while let Some(piece) = slot.take() {
            let start = Instant::now();
            slot.finish(|| job(scratch, piece));
            longest = longest.max(2 * start.elapsed());
        }
        let (mut spins, start) = (0, Instant::now());
        while slot.done.load(Ordering::Acquire) != pieces as usize {
            spins += 1;
            match spins < SPINS {
                true => std::hint::spin_loop(),
                // Somebody else has the core that the helper needs.
                false => std::thread::yield_now(),
            }
        }
        // Others want the cores. Who has lost one would lose it again, for a time slice at each
        // convolution, so that the rest of the picture is faster alone.
        self.stalled |= start.elapsed() > longest;
        let panicked = slot.panicked.swap(false, Ordering::Relaxed);
        assert!(!panicked, "a thread of the team panicked");
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        self.slot.led.store(false, Ordering::Release);
    }
}

/// A team whose helpers are threads of its own, which do nothing else.
pub struct Crew {
    team: Arc<Team>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Crew {
    /// A crew of so many threads, the one that leads included. A helper calls `idle` before it
    /// sleeps.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn new(
        threads: NonZeroUsize,
        idle: impl Fn() + Clone + Send + 'static,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let team = Team::make(threads, true);
        let mut crew = Crew { team, stop, threads: Vec::with_capacity(threads.get() - 1) };
        for index in 1..threads.get() {
            let (team, stop, idle) = (crew.team.clone(), crew.stop.clone(), idle.clone());
            let mut scratch = Memory::new(1)?;
            let thread = std::thread::Builder::new().name(format!("worker-team-{index}")).spawn(
                move || {
                    let stopped = || stop.load(Ordering::Relaxed);
                    while !stopped() {
                        team.assist(&mut scratch, &stopped);
                        idle();
                        let _ = team.sleep(|calls| calls.recv());
                    }
                },
            )?;
            crew.threads.push(thread);
        }
        Ok(crew)
    }

    /// The team.
    #[must_use]
    pub fn team(&self) -> &Arc<Team> {
        &self.team
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A call for each: who takes one sees that it is over. Where there is no room, there are
        // as many calls already.
        self.threads.iter().for_each(|_| _ = self.team.calls.0.try_send(()));
        self.threads.drain(..).for_each(|thread| _ = thread.join());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

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
        let crew = Crew::new(NonZeroUsize::new(3).unwrap(), || ()).unwrap();
        let mut lead = crew.team().lead(&no_hook).unwrap();
        let mut scratch = Memory::new(1).unwrap();
        let counts: Vec<AtomicUsize> = (0..7).map(|_| AtomicUsize::new(0)).collect();
        for round in 0..2000 {
            assert_eq!(lead.pieces(), 6);
            lead.run(7, &mut scratch, &|_, piece| {
                counts[piece].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == round + 1));
            if round % 500 == 0 {
                // Long enough for them to fall asleep.
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let mut run = |bad| lead.run(7, &mut scratch, &|_, piece| assert!(piece != bad));
        assert!(catch_unwind(AssertUnwindSafe(|| run(2))).is_err());
        run(7);
    }

    /// Helpers of two leaders at once: each piece is done for the leader it belongs to, with memory
    /// and within a hook that nobody else is using.
    #[test]
    fn leaders_get_what_is_theirs() {
        let crew = Crew::new(NonZeroUsize::new(4).unwrap(), || ()).unwrap();
        let lead = |number: usize| {
            let hooks = AtomicUsize::new(0);
            let hook = |piece: &mut dyn FnMut()| {
                hooks.fetch_add(1, Ordering::Relaxed);
                piece();
            };
            let mut lead = crew.team().lead(&hook).unwrap();
            let (me, own) = (std::thread::current().id(), AtomicUsize::new(0));
            let mut scratch = Memory::new(1).unwrap();
            for round in 0..2000 {
                let sum = AtomicUsize::new(0);
                lead.run(9, &mut scratch, &|scratch, piece| {
                    own.fetch_add((std::thread::current().id() == me).into(), Ordering::Relaxed);
                    let mark = (number * 16 + piece + round) as u8;
                    scratch.bytes_mut().fill(mark);
                    std::hint::spin_loop();
                    assert!(scratch.bytes().iter().all(|&byte| byte == mark));
                    sum.fetch_add(piece + number, Ordering::Relaxed);
                });
                assert_eq!(sum.into_inner(), 36 + 9 * number);
            }
            assert_eq!(own.into_inner() + hooks.load(Ordering::Relaxed), 9 * 2000);
        };
        std::thread::scope(|scope| {
            scope.spawn(|| lead(1));
            lead(2);
        });
    }

    #[test]
    fn who_waits_for_a_helper_without_a_core_goes_on_alone() {
        let team = Team::new(NonZeroUsize::new(2).unwrap());
        let mut lead = team.lead(&no_hook).unwrap();
        let (me, own) = (std::thread::current().id(), Mutex::new(Duration::ZERO));
        let (mut scratch, stop) = (Memory::new(1).unwrap(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut scratch, stopped) =
                    (Memory::new(1).unwrap(), || stop.load(Ordering::Relaxed));
                while !stopped() {
                    team.assist(&mut scratch, &stopped);
                }
            });
            let deadline = Instant::now() + Duration::from_secs(60);
            while !lead.stalled && Instant::now() < deadline {
                lead.run(2, &mut scratch, &|_, _| {
                    let start = Instant::now();
                    if std::thread::current().id() == me {
                        std::thread::sleep(Duration::from_millis(1));
                        *own.lock().unwrap() = start.elapsed();
                    } else {
                        // Long after the leader's is done.
                        let own = *own.lock().unwrap();
                        std::thread::sleep(Duration::from_millis(20) + 4 * own);
                    }
                });
            }
            stop.store(true, Ordering::Relaxed);
        });
        let _awake = Count::of(&team.awake);
        assert_eq!((lead.stalled, lead.pieces()), (true, 1));
        drop(lead);
        // The next picture is another matter.
        assert!(team.lead(&no_hook).unwrap().pieces() > 1);
    }

    #[test]
    fn work_is_cut_only_for_those_who_are_there() {
        let team = Team::new(NonZeroUsize::new(2).unwrap());
        let lead = team.lead(&no_hook).unwrap();
        assert_eq!(lead.pieces(), 1);
        {
            let _awake = Count::of(&team.awake);
            assert_eq!(lead.pieces(), 4);
        }
        // Who sleeps is called, once.
        team.sleep(|calls| {
            assert!(calls.is_empty());
            assert_eq!((lead.pieces(), lead.pieces(), calls.len()), (1, 1, 1));
        });
        let other = team.lead(&no_hook).unwrap();
        assert!(team.lead(&no_hook).is_none());
        drop((lead, other));
        // With nobody who leads there is nothing to wait for.
        team.assist(&mut Memory::new(1).unwrap(), &|| false);
        assert!(team.lead(&no_hook).is_some());
    }
}
