//! Named places where a test can make haul fail or die.
//!
//! Without the cargo feature `failpoints` there is nothing in here: every place is an `Ok(())` that
//! the compiler sees through. With it the environment says what happens where, in the words of the
//! crate [`fail`](https://docs.rs/fail):
//!
//! ```text
//! FAILPOINTS='after_part=2*off->return(SIGKILL);fetch=1*return(the disk is on fire)' haul run …
//! ```
//!
//! `panic`, `sleep(ms)` and `off` are that crate's. `return(WORD)` dies in the way that the word
//! names, where it is one of SIGKILL, SIGSEGV, SIGBUS, SIGILL, abort and overflow, and is an error
//! with that text otherwise; with `WORD@TEXT` it does so only at work on a picture whose name
//! contains the text.

#[cfg(not(feature = "failpoints"))]
mod points {
    /// Reads `FAILPOINTS`; to be called first in `main`.
    pub fn set_up() {}

    /// Says what this thread is at work on.
    #[inline(always)]
    pub(crate) fn about(_subject: &[u8]) {}

    /// A named place.
    #[inline(always)]
    pub(crate) fn hit(_name: &str) -> Result<(), String> {
        Ok(())
    }
}

#[cfg(feature = "failpoints")]
mod points {
    use std::cell::RefCell;
    use std::hint::black_box;

    thread_local! {
        static SUBJECT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }

    /// Reads `FAILPOINTS`; to be called first in `main`.
    pub fn set_up() {
        // Dropping it would forget them.
        std::mem::forget(fail::FailScenario::setup());
    }

    /// Says what this thread is at work on.
    pub(crate) fn about(subject: &[u8]) {
        SUBJECT.with_borrow_mut(|held| {
            held.clear();
            held.extend_from_slice(subject);
        });
    }

    /// A named place.
    pub(crate) fn hit(name: &str) -> Result<(), String> {
        fail::fail_point!(name, |word| act(name, &word.unwrap_or_default()));
        Ok(())
    }

    fn act(name: &str, word: &str) -> Result<(), String> {
        let (word, text) = word.split_once('@').unwrap_or((word, ""));
        let meant = SUBJECT.with_borrow(|subject| memchr::memmem::find(subject, text.as_bytes()));
        if meant.is_none() {
            return Ok(());
        }
        match word {
            "SIGKILL" => {
                let _ = nix::sys::signal::raise(nix::sys::signal::SIGKILL);
            }
            "SIGSEGV" => segv(),
            "SIGBUS" => bus(),
            "SIGILL" => ill(),
            "abort" => std::process::abort(),
            "overflow" => {
                black_box(overflow(1));
            }
            _ => return Err(format!("failpoint {name}: {word}")),
        }
        unreachable!("failpoint {name}: `{word}` was survived")
    }

    fn segv() {
        let nowhere = black_box(std::ptr::without_provenance_mut::<u8>(64));
        // SAFETY: none: the first page is never mapped, so the processor faults, which is what it
        // is for. The process does not go on.
        unsafe { nowhere.write_volatile(1) }
    }

    /// A page of a mapped file that is not there any more.
    fn bus() {
        let file = tempfile::tempfile().expect("no temporary file");
        file.set_len(1).expect("no room for a byte");
        let mapped = crate::kernels::Mapped::new(&file, 0, 1).expect("it cannot be mapped");
        file.set_len(0).expect("it cannot be shortened");
        black_box(mapped.bytes().iter().map(|byte| black_box(*byte)).max());
    }

    fn ill() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: none: this instruction is defined to fault. The process does not go on.
        unsafe {
            std::arch::asm!("ud2");
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = nix::sys::signal::raise(nix::sys::signal::SIGILL);
    }

    #[expect(unconditional_recursion, reason = "that is what it is for")]
    fn overflow(depth: u64) -> u64 {
        let room = black_box([depth; 64]);
        overflow(depth + 1) + room[0]
    }
}

pub use points::set_up;
pub(crate) use points::{about, hit};
