//! What goes through the pool and comes back: pictures, what is asked of them, and answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::budget::Ticket;
use super::crash::CrashNote;
use crate::picture::{Encoding, Limits, PictureError};
use crate::yolo::NmsOptions;

/// What to do with a picture.
#[derive(Clone, Debug)]
pub struct Params {
    /// What a picture may be.
    pub limits: Limits,
    /// Longest side of the network's input.
    pub imgsz: u32,
    /// Letterbox to a square.
    pub square: bool,
    /// Which boxes are kept.
    pub nms: NmsOptions,
    /// Draw them.
    pub annotate: Option<Annotate>,
}

/// How boxes are drawn.
#[derive(Clone, Debug)]
pub struct Annotate {
    /// Class names by index.
    pub labels: Arc<[String]>,
    /// What the drawn picture is written as.
    pub encoding: Encoding,
}

impl Annotate {
    /// As a JPEG.
    #[must_use]
    pub fn jpeg(labels: &[String]) -> Annotate {
        Annotate { labels: labels.into(), encoding: Encoding::Jpeg }
    }
}

/// A detected object in pixels of the upright picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// Class index.
    pub class: u32,
    /// Confidence, 0 to 1.
    pub score: f32,
    /// x1, y1, x2, y2 in pixels of the upright picture.
    pub bbox: [f32; 4],
}

/// What was found in a picture.
#[derive(Clone, Debug)]
pub struct Analysis {
    /// Pixels across, upright.
    pub width: u32,
    /// Pixels down, upright.
    pub height: u32,
    /// The file ended early and was taken all the same.
    pub truncated: bool,
    /// By score, then class, then anchor.
    pub found: Vec<Found>,
    /// The file of the picture with its boxes, if asked for and possible: none for a side over
    /// 65,535.
    pub annotated: Option<Vec<u8>>,
}

/// Why there is no [`Analysis`].
#[derive(Debug)]
pub enum Failure {
    /// The picture's own fault; another try gives the same.
    Picture(PictureError),
    /// The fault of the worker, or of its device; the picture is not to blame.
    Worker(String),
    /// The device that had it has failed, and others go on: another try is theirs.
    Lost(String),
    /// A device has run out of memory, of which others may have taken some. Another run may find it
    /// free again; the picture is not to blame.
    Exhausted(String),
    /// Nobody wants it any more.
    Cancelled,
}

/// Time spent on a picture, stage by stage.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// Bytes to upright RGB.
    pub decode: Duration,
    /// RGB to network input.
    pub letterbox: Duration,
    /// The network; on a device, the picture's share of the time that its batch took.
    pub infer: Duration,
    /// NMS and mapping back.
    pub boxes: Duration,
    /// Drawing and encoding, if asked for.
    pub draw: Duration,
}

/// The answer to a piece of work.
#[derive(Debug)]
pub struct Outcome {
    /// What was found, or why not.
    pub result: Result<Analysis, Failure>,
    /// Where the time went.
    pub spent: Spent,
    /// Holds the bytes of `annotated` until it is dropped.
    pub ticket: Ticket,
}

/// A picture for the pool.
pub struct Work {
    /// The file's bytes; the ticket holds as many.
    pub bytes: Vec<u8>,
    /// What to do with it.
    pub params: Arc<Params>,
    /// Its place in the order of the budget.
    pub ticket: Ticket,
    /// Set when nobody wants the answer any more.
    pub cancelled: Arc<AtomicBool>,
    /// What is left of it if the worker dies of a signal.
    pub note: Option<CrashNote>,
    /// Called on the worker's thread with the answer.
    pub reply: Box<dyn FnOnce(Outcome) + Send>,
}

/// Time that workers did not work, in all of them together.
#[derive(Debug, Default)]
pub struct Idle {
    queue: AtomicU64,
    budget: AtomicU64,
    devices: AtomicU64,
}

impl Idle {
    /// Waiting for pictures, and with nobody to assist.
    #[must_use]
    pub fn queue(&self) -> Duration {
        Duration::from_nanos(self.queue.load(Ordering::Relaxed))
    }

    /// Waiting for memory.
    #[must_use]
    pub fn budget(&self) -> Duration {
        Duration::from_nanos(self.budget.load(Ordering::Relaxed))
    }

    /// Waiting for devices to take pictures off their hands; nothing where the workers compute.
    #[must_use]
    pub fn devices(&self) -> Duration {
        Duration::from_nanos(self.devices.load(Ordering::Relaxed))
    }

    pub(super) fn add_queue(&self, time: Duration) {
        add(&self.queue, time);
    }

    pub(super) fn add_budget(&self, time: Duration) {
        add(&self.budget, time);
    }

    pub(super) fn add_devices(&self, time: Duration) {
        add(&self.devices, time);
    }
}

/// Adds to a counter of nanoseconds.
pub(super) fn add(total: &AtomicU64, time: Duration) {
    total.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// Why a pool cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A device has not enough memory just now.
    #[error("{0}")]
    Exhausted(String),
    /// Anything else: threads, memory, a device that fails.
    #[error("{0}")]
    Fault(String),
}
