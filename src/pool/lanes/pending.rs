//! Pictures on their way through a device.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::buckets::Shape;
use crate::engine::Slot;
use crate::picture::{Letterbox, Picture};
use crate::pool::budget::Ticket;
use crate::pool::crash::CrashNote;
use crate::pool::work::{Failure, Outcome, Params, Spent};
use crate::yolo::Candidate;

/// A picture that is in a slot, and whose file is not needed any more.
pub(super) struct Pending {
    pub(super) claim: Claim,
    pub(super) spent: Spent,
    pub(super) prepared: Prepared,
}

/// Who wants an answer, and what to.
pub(super) struct Claim {
    pub(super) params: Arc<Params>,
    pub(super) ticket: Ticket,
    pub(super) cancelled: Arc<AtomicBool>,
    pub(super) note: Option<CrashNote>,
    pub(super) reply: Box<dyn FnOnce(Outcome) + Send>,
}

/// What is known of a picture once it is letterboxed.
pub(super) struct Prepared {
    pub(super) geometry: Letterbox,
    /// Pixels across and down, upright.
    pub(super) size: (u32, u32),
    pub(super) truncated: bool,
    /// The decoded picture, where it is going to be drawn on.
    pub(super) picture: Option<Picture>,
}

/// A picture and the slot that it is in.
pub(super) struct Filled {
    pub(super) slot: Slot,
    pub(super) pending: Pending,
}

/// A picture that comes back.
pub(super) struct Computed {
    pub(super) pending: Pending,
    pub(super) result: Result<Vec<Candidate>, Fault>,
}

/// Why a device is of no use any more.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// It has no memory left.
    Exhausted(String),
    /// Anything else, …
    Failed(String),
    /// … while other devices go on.
    Lost(String),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Failure {
        match fault {
            Fault::Exhausted(text) => Failure::Exhausted(text),
            Fault::Failed(text) => Failure::Worker(text),
            Fault::Lost(text) => Failure::Lost(text),
        }
    }
}

impl Claim {
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

impl Pending {
    /// Which pictures it can be computed with.
    pub(super) fn shape(&self) -> Shape {
        let Letterbox { width, height, .. } = self.prepared.geometry;
        let conf = self.claim.params.nms.conf.to_bits();
        Shape { width: width as usize, height: height as usize, conf }
    }
}
