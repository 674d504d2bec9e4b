//! What the other threads tell the dispatcher.

use crate::pool::{Spent, Ticket};
use crate::store::Key;

use super::exit::JobError;
use super::tally::Tally;

/// A picture's line, made on the thread that had the answer.
pub(super) struct Answer {
    pub(super) batch: u64,
    pub(super) try_number: u64,
    pub(super) index: usize,
    pub(super) line: Vec<u8>,
    pub(super) tally: Tally,
    pub(super) spent: Spent,
    /// The annotated copy, to be published before the part.
    pub(super) annotated: Option<(Key, Vec<u8>)>,
    /// Keeps the budget of `annotated`.
    pub(super) _ticket: Option<Ticket>,
}

/// What the dispatcher hears.
pub(super) enum Event {
    /// The feeder has begun to read a mini-batch.
    Begun { batch: u64, try_number: u64 },
    /// A picture is through.
    Answer(Box<Answer>),
    /// A mini-batch cannot be finished this time: store or worker, not a picture.
    Fault { batch: u64, try_number: u64, reason: String },
    /// The same, and the fault of a device that others stand in for.
    Lost { batch: u64, try_number: u64, reason: String },
    /// The same, and a device has run out of memory: the run ought to end.
    Exhausted { batch: u64, try_number: u64, reason: String },
    /// The lister has published another segment.
    Segment,
    /// The lister has come to its end.
    Planned(Result<(), JobError>),
}
