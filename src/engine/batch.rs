//! Executors that take pictures in batches, on a device with memory of its own.
//!
//! What is computed for a picture must not depend on which pictures were beside it, so a batch always
//! has the size that its engine was made for: what is missing is padded and thrown away. Whoever
//! fills batches may therefore do it in any order and at any pace.

use super::api::EngineError;
use crate::yolo::Candidate;

/// How an engine wants its pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batching {
    /// Devices, each with a [`Lane`].
    pub devices: usize,
    /// Pictures that are computed together.
    pub pictures: usize,
    /// Batches that a lane takes before the first of them is finished.
    pub depth: usize,
}

impl Batching {
    /// Slots that keep all devices busy: those of the batches in flight, and four batches that are
    /// being filled, since pictures come in several shapes.
    #[must_use]
    pub fn slots(&self) -> usize {
        (self.devices * self.depth + 4) * self.pictures
    }
}

/// Memory of this machine that a device reads a letterboxed picture from.
pub trait HostMemory: Send {
    /// All of it.
    fn bytes(&self) -> &[u8];
    /// All of it.
    fn bytes_mut(&mut self) -> &mut [u8];
}

impl HostMemory for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self
    }
}

/// Room for a picture of any size that a job may have. A lane owns it while a device reads it.
pub type Slot = Box<dyn HostMemory>;

/// Pictures of one size, to be computed together.
pub struct Batch {
    /// Pixels per row, a multiple of 32.
    pub width: usize,
    /// Rows, a multiple of 32.
    pub height: usize,
    /// Least confidence of a candidate.
    pub conf: f32,
    /// One to [`Batching::pictures`] of them, R, G, B of each pixel, row by row, in the first
    /// `3 · width · height` bytes.
    pub pictures: Vec<Slot>,
}

/// What became of a [`Batch`].
pub struct Answered {
    /// Its slots, to be filled again.
    pub slots: Vec<Slot>,
    /// The candidates of each of its pictures, as [`super::Worker::run`] gives them.
    pub candidates: Vec<Vec<Candidate>>,
}

/// One device's use of an [`super::Engine`]; it belongs to one thread.
///
/// After an error a lane is of no use: what was in flight is lost with it.
pub trait Lane: Send {
    /// Begins a batch. Returns before it is computed; never more than [`Batching::depth`] are begun
    /// and not finished.
    ///
    /// # Errors
    /// [`EngineError::Input`] for pictures of a wrong size, [`EngineError::OutOfMemory`], or a fault
    /// of the device.
    fn submit(&mut self, batch: Batch) -> Result<(), EngineError>;

    /// Waits for the oldest batch that was begun.
    ///
    /// # Errors
    /// A fault of the device, or that nothing was begun.
    fn finish(&mut self) -> Result<Answered, EngineError>;
}
