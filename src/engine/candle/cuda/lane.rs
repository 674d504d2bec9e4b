//! One GPU at work: copies in, computing and copies out beside each other, batch after batch.
//!
//! Three streams: pictures go in on one, are computed on candle's, and boxes come back on a third.
//! Events between them are the only order there is. Each batch in flight has a [`Buffer`] of its own at
//! both ends; the tensors between are one arena, since computing is one batch after another.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaStream};
use sha2::{Digest as _, Sha256};

use super::arena::Shape;
use super::convolution::Dnn;
use super::driver::{DeviceMemory, Gpu, PTX, Pinned, Recorded};
use super::network::{OnGpu, Prepared};
use super::program::{Ends, Program};
use crate::engine::{Answered, Batch, EngineError, HostMemory as _, Lane, Slot};
use crate::yolo::{Candidate, logit_floor};

/// Batches in flight: one is computed while the next is copied.
pub(super) const DEPTH: usize = 2;

/// Bytes before the boxes: as `Asked` in kernels.cu, then their number, then nothing.
const HEAD: usize = 256;

/// Where the number of boxes is.
const COUNT: usize = 12;

/// Bytes of a box: as `Found` in kernels.cu.
const FOUND: usize = 32;

/// Boxes of each picture that come back at once; if there are more, the rest is fetched.
const FIRST: usize = 128;

/// Set to 0, launches are not recorded; for tests and measurements.
const GRAPHS_VARIABLE: &str = "HAUL_CUDA_GRAPHS";

/// Recordings may fail so often: another lane of the GPU may have been in the way.
const GRAPH_TRIES: u8 = 3;

/// Bytes that cuBLAS works in, as its documentation has it for new GPUs.
const BLAS: usize = 32 << 20;

/// One GPU, its memory, and what is in flight there.
pub(super) struct CudaLane {
    prepared: Arc<Prepared>,
    on: OnGpu,
    /// Pictures of a batch.
    batch: usize,
    /// Bytes of the largest picture.
    picture_bytes: usize,
    arena: DeviceMemory,
    workspace: DeviceMemory,
    programs: HashMap<Shape, Program>,
    buffers: Vec<Buffer>,
    /// Which buffers are in flight, oldest first.
    flying: VecDeque<usize>,
    into: Arc<CudaStream>,
    back: Arc<CudaStream>,
    /// Recordings that may yet fail before none is tried any more.
    graphs: u8,
    /// What cuBLAS works in, where it computes convolutions.
    blas: Option<DeviceMemory>,
}

/// Both ends of a batch in flight.
struct Buffer {
    /// Bytes of the pictures, on the GPU.
    pictures: DeviceMemory,
    /// What was asked, and the boxes, on the GPU.
    out: DeviceMemory,
    room: usize,
    asked: Pinned,
    results: Pinned,
    copied: CudaEvent,
    computed: CudaEvent,
    done: CudaEvent,
    /// Whose pictures are being copied and computed.
    slots: Vec<Slot>,
    /// By shape, what is launched for it.
    recorded: HashMap<Shape, Recorded>,
}

impl Buffer {
    fn new(
        gpu: &Gpu,
        batch: usize,
        picture_bytes: usize,
        room: usize,
    ) -> Result<Buffer, EngineError> {
        Ok(Buffer {
            pictures: gpu.memory(batch * picture_bytes, "pictures")?,
            out: gpu.memory(HEAD + room * FOUND, "boxes")?,
            room,
            asked: gpu.pinned(COUNT + 4)?,
            results: gpu.pinned(HEAD + room.min(FIRST * batch) * FOUND)?,
            copied: gpu.event()?,
            computed: gpu.event()?,
            done: gpu.sleeper()?,
            slots: Vec::new(),
            recorded: HashMap::new(),
        })
    }

    fn ends(&self) -> Ends {
        let out = self.out.pointer();
        Ends {
            pictures: self.pictures.pointer(),
            asked: out,
            count: out + COUNT as u64,
            found: out + HEAD as u64,
            room: self.room,
        }
    }
}

impl CudaLane {
    /// Opens GPU `number` for batches of pictures of up to `side` × `side` pixels, and computes one of
    /// noise.
    ///
    /// # Errors
    /// [`EngineError::OutOfMemory`] where they do not fit, [`EngineError::Places`] where a picture has
    /// other bits at another place, [`EngineError::Overflow`] where its logits are no numbers; where
    /// the GPU cannot be used.
    pub(super) fn open(
        prepared: &Arc<Prepared>,
        number: usize,
        (batch, side): (usize, usize),
    ) -> Result<CudaLane, EngineError> {
        let on = OnGpu::new(prepared, number)?;
        let gpu = &on.gpu;
        let largest = Shape { pictures: batch, width: side, height: side };
        let cells = prepared.layers.levels.iter().map(|level| (side / level.stride).pow(2));
        let room = batch * cells.sum::<usize>();
        let picture_bytes = 3 * side * side;
        let buffer = |_| Buffer::new(gpu, batch, picture_bytes, room);
        let buffers = (0..DEPTH).map(buffer).collect::<Result<_, _>>()?;
        let arena = gpu.memory(Program::arena_bytes(prepared, largest), "tensors")?;
        let (into, back) = (gpu.new_stream()?, gpu.new_stream()?);
        let workspace = gpu.memory(0, "convolutions")?;
        let wanted = std::env::var_os(GRAPHS_VARIABLE).is_none_or(|set| set != "0");
        let mut lane = CudaLane {
            prepared: prepared.clone(),
            on,
            batch,
            picture_bytes,
            arena,
            workspace,
            programs: HashMap::new(),
            buffers,
            flying: VecDeque::with_capacity(DEPTH),
            into,
            back,
            graphs: if wanted { GRAPH_TRIES } else { 0 },
            blas: None,
        };
        lane.prepare(largest)?;
        // Libraries take more when they please, and other shapes want more to work in: what only just
        // fits would not do so for long.
        if lane.on.gpu.is_full() {
            return Err(EngineError::OutOfMemory {
                device: lane.on.gpu.label(),
                needs: format!("batches of {batch} fit, and leave nothing for libraries"),
            });
        }
        Ok(lane)
    }

    /// What decides its results for pictures of the largest size, and by the same rules for all others.
    pub(super) fn kind(&self) -> String {
        let gpu = &self.on.gpu;
        let dnn = self.on.dnn.as_ref().map_or("no cudnn".to_owned(), Dnn::kind);
        let program = self.programs.values().map(Program::kind).next().unwrap_or_default();
        let ptx = Sha256::digest(PTX.as_bytes());
        let ptx: String = ptx.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        format!("{}; {dnn}; cublas {}; {ptx}; {program}", gpu.kind(), gpu.blas_version())
    }

    /// Why cuDNN does not compute convolutions, if it does not.
    pub(super) fn lacks_dnn(&self) -> Option<&str> {
        self.on.dnn.as_ref().err().map(String::as_str)
    }

    /// A GPU for whoever needs one.
    pub(super) fn gpu(&self) -> &Gpu {
        &self.on.gpu
    }

    /// Makes sure that there is a program for `shape`, memory for it, and that a picture has the same
    /// bits at all places of its batches: cuDNN promises that for one place, run after run, and says
    /// nothing of the others. Where it has not, by the plainest algorithm; that decides no less than
    /// the heuristic does, and comes out the same each time.
    fn prepare(&mut self, shape: Shape) -> Result<(), EngineError> {
        if self.programs.contains_key(&shape) {
            return Ok(());
        }
        self.settle()?;
        let needed = Program::arena_bytes(&self.prepared, shape);
        if needed > self.arena.bytes() {
            // Tensors are a little larger than their share of pixels, by rounding.
            self.programs.clear();
            self.forget_recordings();
            self.arena = self.on.gpu.memory(0, "tensors")?;
            self.arena = self.on.gpu.memory(needed, "tensors")?;
        }
        for plain in [false, true] {
            let base = self.arena.pointer();
            let program = Program::new(&self.prepared, &self.on, shape, base, plain)?;
            if program.workspace > self.workspace.bytes() {
                // Recordings hold its old place; programs do not. The old one goes first.
                self.forget_recordings();
                self.workspace = self.on.gpu.memory(0, "convolutions")?;
                self.workspace = self.on.gpu.memory(program.workspace, "convolutions")?;
            }
            if program.has_products() && self.blas.is_none() {
                let memory = self.on.gpu.memory(BLAS, "cuBLAS")?;
                self.on.gpu.set_up_blas(&memory)?;
                self.blas = Some(memory);
            }
            if self.places_agree(&program)? {
                self.programs.insert(shape, program);
                return Ok(());
            }
        }
        Err(EngineError::Places { device: self.on.gpu.label(), batch: shape.pictures })
    }

    fn forget_recordings(&mut self) {
        for buffer in &mut self.buffers {
            buffer.recorded.clear();
        }
    }

    /// Waits until nothing is at work, and says what was the first to fail.
    fn settle(&self) -> Result<(), EngineError> {
        let gpu = &self.on.gpu;
        let waited = [&self.into, &gpu.stream, &self.back].map(|stream| gpu.wait(stream));
        waited.into_iter().collect()
    }

    /// Whether a picture has the same bits at all places of a batch, and among other neighbours. Nothing
    /// is at work meanwhile.
    fn places_agree(&self, program: &Program) -> Result<bool, EngineError> {
        let Some(index) = (0..DEPTH).find(|index| !self.flying.contains(index)) else {
            return Err(EngineError::Unsupported { step: "a trial among batches".into() });
        };
        let gpu = &self.on.gpu;
        gpu.bind()?;
        let buffer = &self.buffers[index];
        let bytes = 3 * program.shape.width * program.shape.height;
        let run = |seed: &dyn Fn(usize) -> u32| {
            for place in 0..self.batch {
                gpu.fill(&noise(bytes, seed(place)), &buffer.pictures, place * bytes)?;
            }
            gpu.fill(&asked(self.batch, 1.0), &buffer.out, 0)?;
            // SAFETY: the GPU is bound; the lane owns all that is pointed to, and waits before it
            // goes on.
            let launched =
                unsafe { program.launch(&self.on, self.workspace.pointer(), buffer.ends()) };
            gpu.wait(&gpu.stream)?;
            launched
        };
        let logits = |place: usize| -> Result<Vec<Vec<u8>>, EngineError> {
            let read = |&(at, size): &(usize, usize)| {
                let mut here = vec![0; size];
                gpu.read(&self.arena, at + place * size, &mut here)?;
                Ok(here)
            };
            program.logits.iter().map(read).collect()
        };
        run(&|_| 0)?;
        let first = logits(0)?;
        let element = self.prepared.element;
        if !first.iter().all(|logits| element.finite(logits)) {
            return Err(EngineError::Overflow { precision: element.name() });
        }
        for place in 1..self.batch {
            if logits(place)? != first {
                return Ok(false);
            }
        }
        // At the last place, which is at the end of what libraries divide the work into.
        let last = self.batch - 1;
        run(&|place| if place == last { 0 } else { 1 + place as u32 })?;
        Ok(logits(last)? == first)
    }

    fn check(&self, batch: &Batch) -> Result<(), EngineError> {
        let Batch { width, height, ref pictures, .. } = *batch;
        let bytes = width.checked_mul(height).and_then(|n| n.checked_mul(3)).unwrap_or(usize::MAX);
        let sides = [width, height].iter().all(|&side| side > 0 && side.is_multiple_of(32));
        let count = (1..=self.batch).contains(&pictures.len());
        let smallest = pictures.iter().map(|slot| slot.bytes().len()).min().unwrap_or(0);
        match sides && count && bytes <= self.picture_bytes && smallest >= bytes {
            true => Ok(()),
            false => Err(EngineError::Input { width, height, bytes: smallest }),
        }
    }

    /// Launches the program of `shape` for buffer `index`: as it was recorded, or piece by piece.
    fn launch(&mut self, shape: Shape, index: usize) -> Result<(), EngineError> {
        let CudaLane { on, programs, buffers, workspace, graphs, .. } = self;
        let Some(program) = programs.get(&shape) else {
            return Err(EngineError::Unsupported { step: format!("{shape:?} on a GPU") });
        };
        let buffer = &mut buffers[index];
        let ends = buffer.ends();
        // SAFETY: the GPU is bound; arena, workspace, weights and buffers are the lane's, which waits
        // before it lets go of any of them.
        let plainly = || unsafe { program.launch(on, workspace.pointer(), ends) };
        if let Some(recorded) = buffer.recorded.get(&shape) {
            return recorded.launch(&on.gpu);
        }
        if *graphs == 0 {
            return plainly();
        }
        // Libraries have loaded their kernels, which cannot be recorded, when places were compared.
        match Recorded::record(&on.gpu, plainly) {
            Some(recorded) => {
                let launched = recorded.launch(&on.gpu);
                buffer.recorded.insert(shape, recorded);
                launched
            }
            None => {
                *graphs -= 1;
                plainly()
            }
        }
    }
}

impl Lane for CudaLane {
    fn submit(&mut self, batch: Batch) -> Result<(), EngineError> {
        self.check(&batch)?;
        let Some(index) = (0..DEPTH).find(|index| !self.flying.contains(index)) else {
            return Err(EngineError::Unsupported { step: format!("more than {DEPTH} batches") });
        };
        let Batch { width, height, conf, pictures } = batch;
        let shape = Shape { pictures: self.batch, width, height };
        self.on.gpu.bind()?;
        self.prepare(shape)?;
        let bytes = 3 * width * height;
        let gpu = self.on.gpu.clone();
        let buffer = &mut self.buffers[index];
        buffer.asked.bytes_mut().copy_from_slice(&asked(pictures.len(), conf));
        // From here on the lane has them: whatever happens, they stay until nothing is at work.
        buffer.slots = pictures;
        for (place, slot) in buffer.slots.iter().enumerate() {
            // SAFETY: slot and buffer are the lane's until `finish`, which waits for an event after
            // this, or until it is dropped, which waits for all streams.
            unsafe {
                gpu.upload(&slot.bytes()[..bytes], &buffer.pictures, place * bytes, &self.into)?
            };
        }
        // SAFETY: as above. The boxes of the batch before were fetched: its `finish` is over.
        unsafe { gpu.upload(buffer.asked.bytes(), &buffer.out, 0, &self.into)? };
        let failed = |error| gpu.fault("order the GPU's streams", error);
        buffer.copied.record(&self.into).map_err(failed)?;
        gpu.stream.wait(&buffer.copied).map_err(failed)?;
        self.launch(shape, index)?;
        let buffer = &mut self.buffers[index];
        buffer.computed.record(&gpu.stream).map_err(failed)?;
        self.back.wait(&buffer.computed).map_err(failed)?;
        // SAFETY: as above; `finish` looks at it after the event below.
        unsafe { gpu.download(&buffer.out, buffer.results.bytes_mut(), &self.back)? };
        buffer.done.record(&self.back).map_err(failed)?;
        self.flying.push_back(index);
        Ok(())
    }

    fn finish(&mut self) -> Result<Answered, EngineError> {
        let Some(index) = self.flying.pop_front() else {
            return Err(EngineError::Unsupported { step: "a batch that nobody began".into() });
        };
        let gpu = &self.on.gpu;
        let buffer = &mut self.buffers[index];
        if let Err(error) = buffer.done.synchronize() {
            // Still the lane's: copies may be at work.
            return Err(gpu.fault("compute a batch", error));
        }
        let results = buffer.results.bytes();
        let found = number(results, COUNT) as usize;
        if found > buffer.room {
            let step = format!("{found} boxes of {} cells on a GPU", buffer.room);
            return Err(EngineError::Unsupported { step });
        }
        let mut rest = Vec::new();
        let there = (results.len() - HEAD) / FOUND;
        if found > there {
            rest.resize((found - there) * FOUND, 0);
            gpu.read(&buffer.out, HEAD + there * FOUND, &mut rest)?;
        }
        let boxes = results[HEAD..].chunks_exact(FOUND).chain(rest.chunks_exact(FOUND)).take(found);
        let mut candidates = vec![Vec::new(); buffer.slots.len()];
        for one in boxes {
            let real = |at: usize| f32::from_bits(number(one, at));
            if let Some(of) = candidates.get_mut(number(one, 0) as usize) {
                of.push(Candidate {
                    anchor: number(one, 4),
                    class: number(one, 8),
                    score: real(12),
                    bbox: [real(16), real(20), real(24), real(28)],
                });
            }
        }
        // Threads wrote them in any order.
        for of in &mut candidates {
            of.sort_unstable_by_key(|candidate| candidate.anchor);
        }
        Ok(Answered { slots: mem::take(&mut buffer.slots), candidates })
    }
}

impl Drop for CudaLane {
    fn drop(&mut self) {
        // Before memory is given back and slots are let go. Where the GPU has failed nothing is at work.
        let _ = self.on.gpu.bind();
        let _ = self.settle();
    }
}

/// As `Asked` in kernels.cu, and that no box was found yet.
fn asked(pictures: usize, conf: f32) -> [u8; COUNT + 4] {
    let mut bytes = [0; COUNT + 4];
    let pictures = u32::try_from(pictures).unwrap_or(u32::MAX);
    bytes[..4].copy_from_slice(&pictures.to_le_bytes());
    bytes[4..8].copy_from_slice(&conf.to_le_bytes());
    bytes[8..12].copy_from_slice(&logit_floor(conf).to_le_bytes());
    bytes
}

fn number(bytes: &[u8], at: usize) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(four)
}

/// A picture of all values, the same everywhere.
fn noise(bytes: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) ^ 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..bytes).map(|_| next()).collect()
}
