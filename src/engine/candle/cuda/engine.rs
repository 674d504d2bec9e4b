//! The engine: how large batches are, which class that is, and a lane for each GPU.

use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest as _, Sha256};

use super::driver::Gpu;
use super::element::Element;
use super::lane::{CudaLane, DEPTH};
use super::network::Prepared;
use crate::engine::{
    Arithmetic, Batch, Batching, Device, Engine, EngineError, Input, Lane, Precision, Slot, Worker,
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
    remarks: Option<String>,
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
        let numbers = if numbers.is_empty() { vec![0] } else { numbers.to_vec() };
        let (lanes, batch) = open(&prepared, &numbers, wanted, side, job.is_none())?;
        let (kind, gpu) = (lanes[0].kind(), lanes[0].gpu().clone());
        let ours = name(element, batch, &kind);
        if let (Some(class), Some(_)) = (class, job)
            && class != ours
        {
            let here = format!("`{ours}` on {}: another GPU, cuDNN or algorithm", gpu.label());
            return Err(EngineError::Class { class: class.to_owned(), here });
        }
        if let Some(other) = lanes.iter().find(|lane| lane.kind() != kind) {
            let (other, first) = (other.gpu().label(), gpu.label());
            return Err(EngineError::Device {
                device: Device::Cuda(numbers).to_string(),
                reason: format!(
                    "{other} computes other bits than {first} (take GPUs of one kind, or give each a \
                     shard of its own output)"
                ),
            });
        }
        let remarks = lanes[0].lacks_dnn().map(|reason| {
            format!("convolutions are slower than they could be: there is no cuDNN ({reason}; docs/cuda.md)")
        });
        let lanes = Mutex::new(lanes.into_iter().map(Some).collect());
        Ok(Cuda { class: ours, prepared, numbers, batch, side, remarks, gpu, lanes })
    }
}

/// A lane for each GPU, with the largest batch up to `batch` that fits all of them and whose places
/// agree; `batch` itself or an error where it may not be smaller.
fn open(
    prepared: &Arc<Prepared>,
    numbers: &[usize],
    mut batch: usize,
    side: usize,
    smaller: bool,
) -> Result<(Vec<CudaLane>, usize), EngineError> {
    loop {
        let lane = |&number: &usize| CudaLane::open(prepared, number, (batch, side));
        match numbers.iter().map(lane).collect() {
            Ok(lanes) => return Ok((lanes, batch)),
            Err(EngineError::OutOfMemory { .. } | EngineError::Places { .. })
                if smaller && batch > 1 =>
            {
                batch /= 2;
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

    fn remarks(&self) -> Vec<String> {
        self.remarks.iter().cloned().collect()
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
        Ok(Box::new(CudaLane::open(&self.prepared, number, size)?))
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
