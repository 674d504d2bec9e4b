//! The engine: how large batches are, which class that is, and a lane for each GPU.

use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest as _, Sha256};

use super::driver::Gpu;
use super::element::Element;
use super::lane::{CudaLane, DEPTH};
use super::network::Prepared;
use crate::engine::{
    Arithmetic, Batch, Batching, Engine, EngineError, Input, Lane, Precision, Slot, Worker,
};
use crate::yolo::{Candidate, Network};

/// Pictures of a batch, where nobody says how many.
const BATCH: usize = 32;

/// The network on one or more GPUs of a kind.
pub struct Cuda {
    class: String,
    prepared: Arc<Prepared>,
    /// CUDA's numbers.
    numbers: Vec<usize>,
    batch: usize,
    /// Longest side of a picture.
    side: usize,
    plain: bool,
    gpu: Gpu,
    /// By device, until somebody takes it.
    lanes: Mutex<Vec<Option<CudaLane>>>,
}

impl Cuda {
    /// Prepares `network` for GPUs `numbers`, for pictures of up to `side` × `side` pixels, and runs it
    /// once on each. `class` is that of the job, if it has one.
    ///
    /// The batch is what is asked for, what the job has, or 32; for a new job it is halved until it
    /// fits, and until a picture has the same bits at each of its places.
    ///
    /// # Errors
    /// [`EngineError::Device`] for a GPU that cannot be used or is of another kind than the first,
    /// [`EngineError::Class`] where the job's class cannot be had here, [`EngineError::OutOfMemory`].
    pub fn new(
        network: &Network,
        numbers: &[usize],
        arithmetic: &Arithmetic,
        class: Option<&str>,
        side: usize,
    ) -> Result<Cuda, EngineError> {
        let job =
            class.and_then(parse).filter(|(_, batch)| arithmetic.batch.is_none_or(|b| b == *batch));
        let element = match (arithmetic.precision, job) {
            (Precision::Auto, Some((element, _))) => element,
            (precision, _) => Element::of(precision),
        };
        let prepared = Arc::new(Prepared::new(network, element)?);
        let wanted = arithmetic.batch.or(job.map(|(_, batch)| batch)).unwrap_or(BATCH);
        let first = numbers.first().copied().unwrap_or(0);
        let Sized { lane, batch, plain } = size(&prepared, first, wanted, side, job.is_none())?;
        let (kind, gpu) = (lane.kind(), lane.gpu().clone());
        let ours = name(element, batch, &kind);
        if let (Some(class), Some(_)) = (class, job)
            && class != ours
        {
            let here = format!("`{ours}` on {}: another GPU, cuDNN or algorithm", gpu.label());
            return Err(EngineError::Class { class: class.to_owned(), here });
        }
        let mut lanes = vec![Some(lane)];
        for &number in &numbers[1..] {
            let other = CudaLane::open(&prepared, number, (batch, side), plain)?;
            if other.kind() != kind {
                return Err(EngineError::Device {
                    device: format!("cuda:{number}"),
                    reason: format!(
                        "{} computes other bits than {} (take GPUs of one kind, or give each a shard of \
                         its own output)",
                        other.gpu().label(),
                        gpu.label()
                    ),
                });
            }
            lanes.push(Some(other));
        }
        let numbers = if numbers.is_empty() { vec![first] } else { numbers.to_vec() };
        let lanes = Mutex::new(lanes);
        Ok(Cuda { class: ours, prepared, numbers, batch, side, plain, gpu, lanes })
    }
}

/// What the warm-up found.
struct Sized {
    lane: CudaLane,
    batch: usize,
    plain: bool,
}

/// The largest batch up to `batch` that fits and whose places agree; `batch` itself or an error where
/// it may not be smaller.
fn size(
    prepared: &Arc<Prepared>,
    number: usize,
    mut batch: usize,
    side: usize,
    smaller: bool,
) -> Result<Sized, EngineError> {
    let mut plain = false;
    loop {
        let tried = CudaLane::open(prepared, number, (batch, side), plain).and_then(|mut lane| {
            let agree = lane.places_agree(side)?;
            Ok((lane, agree))
        });
        match tried {
            Ok((lane, true)) => return Ok(Sized { lane, batch, plain }),
            Err(EngineError::OutOfMemory { .. }) if smaller && batch > 1 => batch /= 2,
            Ok((lane, false)) if !plain && lane.has_dnn() => plain = true,
            Ok((_, false)) if batch > 1 && smaller => (batch, plain) = (batch / 2, false),
            Ok((lane, false)) => {
                return Err(EngineError::Device {
                    device: lane.gpu().label(),
                    reason: format!(
                        "a picture has other bits at other places of a batch of {batch} (--batch 1)"
                    ),
                });
            }
            Err(error) => return Err(error),
        }
    }
}

fn name(element: Element, batch: usize, kind: &str) -> String {
    let digest = Sha256::digest(format!("{kind}; {} {batch}", element.name()).as_bytes());
    let digest: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("cuda-{}-b{batch}-{digest}", element.name())
}

/// Element and batch of a class.
fn parse(class: &str) -> Option<(Element, usize)> {
    let mut parts = class.strip_prefix("cuda-")?.split('-');
    let element = parts.next()?;
    let element =
        [Element::F32, Element::F16, Element::Bf16].into_iter().find(|e| e.name() == element)?;
    let batch = parts.next()?.strip_prefix('b')?.parse().ok().filter(|&batch| batch > 0)?;
    Some((element, batch))
}

impl Engine for Cuda {
    fn numeric_class(&self) -> &str {
        &self.class
    }

    /// Of this machine's memory: the packed weights, which another lane would be opened with.
    fn weight_bytes(&self) -> u64 {
        self.prepared.bytes() as u64
    }

    fn scratch_bytes(&self, _width: usize, _height: usize) -> u64 {
        0
    }

    fn worker(&self) -> Result<Box<dyn Worker>, EngineError> {
        let slot = self.slot(3 * self.side * self.side)?;
        Ok(Box::new(Single { lane: self.lane(0)?, slot: Some(slot) }))
    }

    fn batching(&self) -> Option<Batching> {
        Some(Batching { devices: self.numbers.len(), pictures: self.batch, depth: DEPTH })
    }

    fn lane(&self, device: usize) -> Result<Box<dyn Lane>, EngineError> {
        let Some(&number) = self.numbers.get(device) else {
            return Err(EngineError::Unsupported { step: format!("device {device}") });
        };
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = lanes.get_mut(device).and_then(Option::take) {
            return Ok(Box::new(lane));
        }
        drop(lanes);
        let size = (self.batch, self.side);
        Ok(Box::new(CudaLane::open(&self.prepared, number, size, self.plain)?))
    }

    fn slot(&self, bytes: usize) -> Result<Slot, EngineError> {
        Ok(Box::new(self.gpu.pinned(bytes)?))
    }
}

/// A lane for one picture at a time.
struct Single {
    lane: Box<dyn Lane>,
    slot: Option<Slot>,
}

impl Worker for Single {
    fn run(
        &mut self,
        input: Input<'_>,
        conf: f32,
        candidates: &mut Vec<Candidate>,
    ) -> Result<(), EngineError> {
        input.check()?;
        candidates.clear();
        let Input { width, height, rgb } = input;
        let wrong = EngineError::Input { width, height, bytes: rgb.len() };
        // None after a lane has failed: it has taken it along.
        let Some(mut slot) = self.slot.take_if(|slot| slot.bytes().len() >= rgb.len()) else {
            return Err(wrong);
        };
        slot.bytes_mut()[..rgb.len()].copy_from_slice(rgb);
        self.lane.submit(Batch { width, height, conf, pictures: vec![slot] })?;
        let mut done = self.lane.finish()?;
        self.slot = done.slots.pop();
        *candidates = done.candidates.pop().unwrap_or_default();
        Ok(())
    }
}
