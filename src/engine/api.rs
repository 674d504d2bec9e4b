//! What all executors have in common.

use thiserror::Error;

use std::sync::Arc;

use super::batch::{Batching, Lane, Slot};
use crate::kernels::{Hook, Team};
use crate::yolo::Candidate;

/// Rises whenever the same picture and model may give other bytes than before within a numeric
/// class. Part of a job's fingerprint.
pub const NUMERICS_VERSION: u32 = 2;

/// A letterboxed picture.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Pixels per row, a multiple of 32.
    pub width: usize,
    /// Rows, a multiple of 32.
    pub height: usize,
    /// R, G, B of each pixel, row by row: `width · height · 3` bytes.
    pub rgb: &'a [u8],
}

impl Input<'_> {
    /// # Errors
    /// [`EngineError::Input`] unless the sides are positive multiples of 32 and the bytes as many
    /// as they imply.
    pub fn check(&self) -> Result<(), EngineError> {
        let Input { width, height, rgb } = *self;
        let bytes = width.checked_mul(height).and_then(|n| n.checked_mul(3));
        let sides = [width, height].iter().all(|&side| side > 0 && side.is_multiple_of(32));
        match sides && bytes == Some(rgb.len()) {
            true => Ok(()),
            false => Err(EngineError::Input { width, height, bytes: rgb.len() }),
        }
    }
}

/// A network made ready for one kind of arithmetic.
pub trait Engine: Send + Sync {
    /// Names the arithmetic: two engines with equal names (and [`NUMERICS_VERSION`]) give equal
    /// bits for equal pictures and weights, on whatever machine.
    fn numeric_class(&self) -> &str;

    /// Bytes the weights occupy, once per process.
    fn weight_bytes(&self) -> u64;

    /// Bytes one worker needs at its peak for a picture of this size in pixels, beyond the
    /// weights: activations and temporaries. An estimate from above, within about 1.5.
    fn scratch_bytes(&self, width: usize, height: usize) -> u64;

    /// A worker for one thread.
    ///
    /// # Errors
    /// When its memory cannot be set up.
    fn worker(&self) -> Result<Box<dyn Worker>, EngineError>;

    /// A worker for one thread of a team: it assists the others where it is asked to, and has
    /// them assist it in [`Worker::run_assisted`]. The results are the same bits.
    ///
    /// # Errors
    /// As [`Engine::worker`].
    fn member(&self, _team: &Arc<Team>) -> Result<Box<dyn Worker>, EngineError> {
        self.worker()
    }

    /// How it wants its pictures, if in batches on devices of its own: then the pool computes
    /// nothing, and gives it batches by [`Engine::lane`].
    fn batching(&self) -> Option<Batching> {
        None
    }

    /// What people may want to know of how it computes.
    fn remarks(&self) -> Vec<String> {
        Vec::new()
    }

    /// The use of one of its devices, numbered from 0.
    ///
    /// # Errors
    /// When its memory cannot be set up, or there is no such device.
    fn lane(&self, device: usize) -> Result<Box<dyn Lane>, EngineError> {
        Err(EngineError::Unsupported { step: format!("batches on device {device}") })
    }

    /// Memory for a picture of at most so many bytes, from which copies to its devices are fast.
    ///
    /// # Errors
    /// When it cannot be had.
    fn slot(&self, bytes: usize) -> Result<Slot, EngineError> {
        Ok(Box::new(vec![0; bytes]))
    }
}

/// One thread's use of an [`Engine`].
pub trait Worker: Send {
    /// Fills `candidates` (cleared first) with every anchor whose best class scores more than
    /// `conf`, in anchor order. The best class is taken over all classes; NaN never passes.
    ///
    /// # Errors
    /// [`EngineError::Input`] for a picture of a wrong size; else a fault of the executor.
    fn run(
        &mut self,
        input: Input<'_>,
        conf: f32,
        candidates: &mut Vec<Candidate>,
    ) -> Result<(), EngineError>;

    /// [`Worker::run`], with whoever of the team assists meanwhile. `hook` is called on each of
    /// their threads around every piece of the work.
    ///
    /// # Errors
    /// As [`Worker::run`].
    ///
    /// # Panics
    /// When an assistant did.
    fn run_assisted(
        &mut self,
        input: Input<'_>,
        conf: f32,
        candidates: &mut Vec<Candidate>,
        _hook: &Hook<'_>,
    ) -> Result<(), EngineError> {
        self.run(input, conf, candidates)
    }

    /// Does pieces of the pictures of others of the team, until `until` says so (it is asked after
    /// every piece) or there are none for a while.
    fn assist(&mut self, _until: &dyn Fn() -> bool) {}

    /// To be called before the thread waits for work: gives back what makes it expensive for the
    /// operating system to switch to another thread.
    fn idle(&mut self) {}
}

/// Why an executor could not do its work.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The caller's picture is no input for the network.
    #[error(
        "the input is {width}x{height} with {bytes} bytes (sides are positive multiples of 32, bytes are 3 per pixel)"
    )]
    Input {
        /// Pixels per row.
        width: usize,
        /// Rows.
        height: usize,
        /// Bytes given.
        bytes: usize,
    },
    /// This CPU cannot run the kernels asked for.
    #[error("this CPU has no {tier} kernels (`haul doctor` lists what it has)")]
    Tier {
        /// Their name.
        tier: &'static str,
    },
    /// `HAUL_CPU_TIER` cannot be obeyed.
    #[error("HAUL_CPU_TIER: {reason}")]
    Forced {
        /// Why.
        reason: String,
    },
    /// This CPU has no kernels of the precision asked for.
    #[error(
        "--precision {precision} needs a CPU with {needs}, which this one is not: {cpu} (use --precision f32, or auto)"
    )]
    Precision {
        /// What was asked for.
        precision: &'static str,
        /// What has it.
        needs: &'static str,
        /// This CPU.
        cpu: String,
    },
    /// Half precision was asked for on a CPU.
    #[error("--precision f16 is for GPUs: a CPU computes in f32 or bf16 (use auto)")]
    Half,
    /// The device that was asked for is not to be had.
    #[error("--device {device}: {reason}")]
    Device {
        /// What was asked for.
        device: String,
        /// Why not.
        reason: String,
    },
    /// The network does not stay within what this precision can hold.
    #[error(
        "the network's values leave the range of {precision} already for a picture of noise (use --precision bf16 or f32)"
    )]
    Overflow {
        /// The precision.
        precision: &'static str,
    },
    /// What a device computes for a picture depends on where in its batch it is.
    #[error(
        "{device}: a picture has other bits at other places of a batch of {batch} (use --batch 1)"
    )]
    Places {
        /// Its number and name.
        device: String,
        /// Pictures of the batch.
        batch: usize,
    },
    /// A device has no memory left for what it is to do.
    #[error(
        "GPU {device} is out of memory: {needs} (does another program use it? run again when it is free; a new job may take a smaller --batch)"
    )]
    OutOfMemory {
        /// Its number and name.
        device: String,
        /// What was needed, and for what.
        needs: String,
    },
    /// A job cannot go on in its numeric class here.
    #[error(
        "the job's numeric class is `{class}`, and this machine computes in {here} (go on where it was begun, or start over with --new or another --output; `haul doctor` lists what a machine has)"
    )]
    Class {
        /// The job's.
        class: String,
        /// Those of this CPU.
        here: String,
    },
    /// The executor cannot run this graph.
    #[error("`{step}` is nothing this executor can do. This is a bug.")]
    Unsupported {
        /// The step.
        step: String,
    },
    /// Weights that were packed before are not what this network needs here.
    #[error("{reason}")]
    Packed {
        /// What they are not, about "it".
        reason: String,
    },
    /// The weights could not be prepared.
    #[error("preparing the weights of `{step}` failed")]
    Prepare {
        /// The convolution.
        step: String,
        /// What the executor said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Weights that are finite alone are not when folded together.
    #[error(
        "the weights of `{step}` are not finite once normalisation is folded in (did the training diverge?)"
    )]
    NotFinite {
        /// The convolution.
        step: String,
    },
    /// A step of the network failed.
    #[error("executing `{step}` failed")]
    Execute {
        /// The step.
        step: String,
        /// What the executor said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
