//! What a worker leaves behind when it dies of a picture.
//!
//! Decoders are guarded against panics, but a fault of the processor, a stack that overflows or an
//! abort ends the whole process, and the next run would begin with the same picture. So a worker
//! carries a note while it is at work; if its own thread dies of a signal, a handler appends the
//! note to a file, and the process then dies of that signal as it would have. What the note says is
//! its maker's business.
//!
//! All that a handler may do is in here, with all the unsafe code that it takes.

use std::fs::File;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering, compiler_fence};
use std::sync::{Arc, OnceLock};

use nix::libc;

/// The signals that a thread brings upon itself.
const SIGNALS: [(libc::c_int, &str); 4] = [
    (libc::SIGSEGV, "SIGSEGV"),
    (libc::SIGBUS, "SIGBUS"),
    (libc::SIGILL, "SIGILL"),
    (libc::SIGABRT, "SIGABRT"),
];

/// Bytes of a worker's alternate stack. The kernel alone may put 12 KiB of registers on it for each
/// of two signals (a stack overflow, then the abort of whoever reports it).
const STACK: usize = 64 << 10;

/// A line that is appended to a file if the thread which is at work with it dies of a signal.
#[derive(Debug)]
pub struct CrashNote {
    line: Box<[u8]>,
    file: Arc<File>,
}

impl CrashNote {
    /// A note for `file`, which is open for appending. `line` ends in a line feed.
    #[must_use]
    pub fn new(line: Vec<u8>, file: Arc<File>) -> CrashNote {
        CrashNote { line: line.into(), file }
    }

    /// The line.
    #[must_use]
    pub fn line(&self) -> &[u8] {
        &self.line
    }
}

thread_local! {
    // Constant and without a destructor: the handler's access is a plain load from this thread's
    // block, which allocates nothing and registers nothing.
    static NOTE: AtomicPtr<CrashNote> = const { AtomicPtr::new(ptr::null_mut()) };
}

/// This thread is at work with a note, for as long as this lives.
#[derive(Debug)]
pub(super) struct AtWork<'a> {
    note: PhantomData<&'a CrashNote>,
    // It speaks of one thread.
    stays: PhantomData<*mut ()>,
}

impl<'a> AtWork<'a> {
    pub(super) fn with(note: Option<&'a CrashNote>) -> AtWork<'a> {
        let note = note.map_or(ptr::null(), ptr::from_ref);
        NOTE.with(|slot| slot.store(note.cast_mut(), Ordering::Relaxed));
        // The handler runs on this thread, so the compiler alone could come between them.
        compiler_fence(Ordering::SeqCst);
        AtWork { note: PhantomData, stays: PhantomData }
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        compiler_fence(Ordering::SeqCst);
        NOTE.with(|slot| slot.store(ptr::null_mut(), Ordering::Relaxed));
    }
}

/// What was done about [`SIGNALS`] before us.
static BEFORE: OnceLock<[libc::sigaction; SIGNALS.len()]> = OnceLock::new();

/// Puts the handler in place, once for the process. Where the system refuses, crashes leave no
/// notes, which is no reason not to work.
pub(super) fn install() {
    BEFORE.get_or_init(|| {
        SIGNALS.map(|(signal, _)| {
            let mut action = default_action();
            action.sa_sigaction = died as *const () as libc::sighandler_t;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            let mut before = default_action();
            // SAFETY: both are whole structures of the right type, and `died` keeps to what a
            // handler may do. A signal between here and the end of `get_or_init` finds no note,
            // because this runs before any worker is at work.
            unsafe { libc::sigaction(signal, &raw const action, &raw mut before) };
            before
        })
    });
}

fn default_action() -> libc::sigaction {
    // SAFETY: every field is an integer, a set of bits or an optional pointer, for which zeros are a
    // value: no handler (SIG_DFL), an empty mask, no flags.
    unsafe { MaybeUninit::<libc::sigaction>::zeroed().assume_init() }
}

/// The handler. Between a fault and the end of the process anything may be broken, and any lock may
/// be held by this very thread: so there are only loads, system calls and nothing that allocates.
extern "C" fn died(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid structure, and its sender is filled in
    // where the code says that somebody sent it.
    let (faulted, aborted) = unsafe {
        let code = (*info).si_code;
        // Codes above 0 are faults that the kernel found. `abort` sends a signal to its own thread.
        (code > 0, code == libc::SI_TKILL && (*info).si_pid() == libc::getpid())
    };
    if faulted || aborted {
        // Taken, not read: whoever reports a stack overflow aborts on this same thread, and one
        // death is one line.
        let note = NOTE.with(|slot| slot.swap(ptr::null_mut(), Ordering::Relaxed));
        // SAFETY: it is null, or `AtWork` on this very thread borrows what it points to: that is
        // alive, and nobody alters it.
        if let Some(note) = unsafe { note.as_ref() } {
            leave(note, signal);
        }
    }
    // The processor's faults come again when the handler returns, and then find whoever was here
    // before us: Rust's own handler, which names a stack overflow, or the default. A signal that
    // was sent does not come again, so it is sent again, and to the default: Rust's handler would
    // take it for a fault that comes back.
    let before = SIGNALS
        .iter()
        .zip(BEFORE.get().into_iter().flatten())
        .find_map(|((number, _), before)| (faulted && *number == signal).then_some(*before));
    let action = before.unwrap_or_else(default_action);
    // SAFETY: the structure is whole; the signal is blocked until this handler has returned.
    unsafe {
        libc::sigaction(signal, &raw const action, ptr::null_mut());
        if !faulted {
            libc::raise(signal);
        }
    }
}

fn leave(note: &CrashNote, signal: libc::c_int) {
    let file = note.file.as_raw_fd();
    write(file, &note.line);
    // SAFETY: it takes a number, of a file that is open as long as the note is.
    unsafe { libc::fsync(file) };
    let name = SIGNALS.iter().find_map(|(number, name)| (*number == signal).then_some(*name));
    write(libc::STDERR_FILENO, b"\nhaul: a worker dies of ");
    write(libc::STDERR_FILENO, name.unwrap_or("a signal").as_bytes());
    write(libc::STDERR_FILENO, b" (run the same command again), at work on ");
    write(libc::STDERR_FILENO, &note.line);
}

fn write(file: libc::c_int, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        // SAFETY: the pointer and the length are those of a slice.
        let count = unsafe { libc::write(file, bytes.as_ptr().cast(), bytes.len()) };
        match usize::try_from(count) {
            Ok(count) if count > 0 => bytes = bytes.get(count..).unwrap_or_default(),
            _ if nix::errno::Errno::last() == nix::errno::Errno::EINTR => {}
            // A full disk: there is nobody left to tell.
            _ => return,
        }
    }
}

/// An alternate stack for this thread's signals: on an overflow its own has no room for a handler.
/// The one that Rust gives to its threads is as small as the kernel allows, too small for ours on a
/// processor with tile registers.
#[derive(Debug)]
pub(super) struct SignalStack {
    before: libc::stack_t,
    _memory: Box<[u8]>,
}

impl SignalStack {
    /// `None` where the system refuses; then Rust's stays.
    pub(super) fn new() -> Option<SignalStack> {
        let mut memory = vec![0u8; STACK].into_boxed_slice();
        let ours = libc::stack_t { ss_sp: memory.as_mut_ptr().cast(), ss_flags: 0, ss_size: STACK };
        let mut before = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: 0, ss_size: 0 };
        // SAFETY: the memory is ours, of that size, used for nothing else, and freed only after
        // `drop` has put back what was there.
        let code = unsafe { libc::sigaltstack(&raw const ours, &raw mut before) };
        (code == 0).then_some(SignalStack { before, _memory: memory })
    }
}

impl Drop for SignalStack {
    fn drop(&mut self) {
        // SAFETY: it is what this thread had before (the type holds a pointer, so it has not left
        // its thread), and its owner frees it only when the thread ends.
        unsafe { libc::sigaltstack(&raw const self.before, ptr::null_mut()) };
    }
}

/// This thread's note.
#[cfg(test)]
pub(super) fn noted() -> Option<Vec<u8>> {
    let note = NOTE.with(|slot| slot.load(Ordering::Relaxed));
    // SAFETY: tests look while `AtWork` borrows it.
    unsafe { note.as_ref() }.map(|note| note.line().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_counts_while_its_thread_is_at_work() {
        let note = CrashNote::new(b"a\n".to_vec(), Arc::new(tempfile::tempfile().unwrap()));
        assert_eq!(noted(), None);
        let at_work = AtWork::with(Some(&note));
        assert_eq!(noted(), Some(b"a\n".to_vec()));
        assert_eq!(std::thread::spawn(noted).join().unwrap(), None, "it is this thread's alone");
        drop(at_work);
        assert_eq!(noted(), None);
        drop(AtWork::with(None));
        assert_eq!(noted(), None);
    }

    #[test]
    fn a_thread_gets_back_the_stack_it_had() {
        let current = || {
            let mut stack = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: 0, ss_size: 0 };
            // SAFETY: with a null pointer it only asks.
            assert_eq!(unsafe { libc::sigaltstack(ptr::null(), &raw mut stack) }, 0);
            (stack.ss_sp as usize, stack.ss_size, stack.ss_flags)
        };
        let before = current();
        let stack = SignalStack::new().unwrap();
        assert_eq!(current().1, STACK);
        drop(stack);
        assert_eq!(current(), before);
    }
}
