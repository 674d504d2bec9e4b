//! A worker at work on a picture: it dies in its name, and a panic is its failure alone.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::failpoint;
use crate::pool::answer::said;
use crate::pool::crash::{AtWork, CrashNote};
use crate::pool::work::Failure;

/// Runs a piece of a picture's work. What waits for others is no such piece: meanwhile a worker may
/// be at work on other pictures.
///
/// # Errors
/// [`Failure::Worker`] when it panics.
pub(super) fn guarded<T>(note: Option<&CrashNote>, work: impl FnOnce() -> T) -> Result<T, Failure> {
    let _at_work = AtWork::with(note);
    failpoint::about(note.map_or(&[], CrashNote::line));
    catch_unwind(AssertUnwindSafe(work))
        .map_err(|panic| Failure::Worker(format!("a worker panicked: {}", said(&*panic))))
}
