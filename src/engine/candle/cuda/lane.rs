//! One GPU at work: copies in, computing and copies out beside each other, batch after batch.
//!
//! Three streams: pictures go in on one, are computed on candle's, and boxes come back on a third.
//! Events between them are the only order there is. Each batch in flight has a [`Buffer`] of its own at
//! both ends; the tensors between are one arena, since computing is one batch after another.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaStream};

use super::arena::Shape;
use super::driver::{DeviceMemory, Gpu, Pinned, Recorded};
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
    graphs: bool,
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
    /// By shape, what is launched for it. The first time nothing is recorded: libraries load their
    /// kernels then, which cannot be.
    recorded: HashMap<Shape, Option<Recorded>>,
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
            done: gpu.event()?,
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
    /// Opens GPU `number` for batches of pictures of up to `side` × `side` pixels.
    ///
    /// # Errors
    /// [`EngineError::OutOfMemory`] where they do not fit; where the GPU cannot be used.
    pub(super) fn open(
        prepared: &Arc<Prepared>,
        number: usize,
        (batch, side): (usize, usize),
        plain: bool,
    ) -> Result<CudaLane, EngineError> {
        let on = OnGpu::new(prepared, number, plain)?;
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
        let graphs = std::env::var_os(GRAPHS_VARIABLE).is_none_or(|set| set != "0");
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
            graphs,
        };
        lane.prepare(largest)?;
        Ok(lane)
    }

    /// What decides its results for pictures of the largest size, and by the same rules for all others.
    pub(super) fn kind(&self) -> String {
        let library = match &self.on.dnn {
            Some(dnn) => dnn.kind(),
            None => format!("cublas {}", self.on.gpu.blas_version()),
        };
        let program = self.programs.values().map(Program::kind).next().unwrap_or_default();
        format!("{}; {library}; {program}", self.on.gpu.kind())
    }

    /// Whether cuDNN computes convolutions.
    pub(super) fn has_dnn(&self) -> bool {
        self.on.dnn.is_some()
    }

    /// A GPU for whoever needs one.
    pub(super) fn gpu(&self) -> &Gpu {
        &self.on.gpu
    }

    /// Makes sure that there is a program for `shape`, and memory for it.
    fn prepare(&mut self, shape: Shape) -> Result<(), EngineError> {
        if self.programs.contains_key(&shape) {
            return Ok(());
        }
        let needed = Program::arena_bytes(&self.prepared, shape);
        if needed > self.arena.bytes() {
            // Tensors are a little larger than their share of pixels, by rounding.
            self.settle()?;
            self.forget();
            self.arena = self.on.gpu.memory(needed, "tensors")?;
        }
        let program = Program::new(&self.prepared, &self.on, shape, self.arena.pointer())?;
        if program.workspace > self.workspace.bytes() {
            self.settle()?;
            // Recordings hold its old place; programs do not.
            for buffer in &mut self.buffers {
                buffer.recorded.clear();
            }
            self.workspace = self.on.gpu.memory(program.workspace, "convolutions")?;
        }
        self.programs.insert(shape, program);
        Ok(())
    }

    /// Forgets everything that holds places in the arena.
    fn forget(&mut self) {
        self.programs.clear();
        for buffer in &mut self.buffers {
            buffer.recorded.clear();
        }
    }

    /// Waits until nothing is at work.
    fn settle(&self) -> Result<(), EngineError> {
        self.on.gpu.wait(&self.into)?;
        self.on.gpu.wait(&self.on.gpu.stream)?;
        self.on.gpu.wait(&self.back)
    }

    /// Whether one picture has the same bits at all places of a batch: cuDNN promises that for one
    /// place, run after run, and says nothing of the others.
    ///
    /// # Errors
    /// A fault of the GPU, or [`EngineError::Overflow`] where the logits are no numbers.
    pub(super) fn places_agree(&mut self, side: usize) -> Result<bool, EngineError> {
        let shape = Shape { pictures: self.batch, width: side, height: side };
        self.on.gpu.bind()?;
        self.prepare(shape)?;
        let picture = noise(3 * side * side);
        let gpu = &self.on.gpu;
        gpu.fill(&picture.repeat(self.batch), &self.buffers[0].pictures)?;
        gpu.fill(&asked(self.batch, 1.0), &self.buffers[0].out)?;
        let ends = self.buffers[0].ends();
        let Some(program) = self.programs.get(&shape) else { return Ok(false) };
        // SAFETY: the GPU is bound; the lane owns all that is pointed to, and waits before it returns.
        let launched = unsafe { program.launch(&self.on, self.workspace.pointer(), ends) };
        gpu.wait(&gpu.stream)?;
        launched?;
        for &(at, bytes) in &program.logits {
            let mut all = vec![0; bytes * self.batch];
            gpu.read(&self.arena, at, &mut all)?;
            let element = self.prepared.element;
            if !element.finite(&all[..bytes]) {
                return Err(EngineError::Overflow { precision: element.name() });
            }
            let mut pictures = all.chunks_exact(bytes);
            let first = pictures.next();
            if pictures.any(|other| Some(other) != first) {
                return Ok(false);
            }
        }
        Ok(true)
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
        if !*graphs {
            return plainly();
        }
        match buffer.recorded.get(&shape) {
            Some(Some(recorded)) => recorded.launch(&on.gpu),
            None => {
                buffer.recorded.insert(shape, None);
                plainly()
            }
            Some(None) => match Recorded::record(&on.gpu, plainly) {
                Some(recorded) => {
                    let launched = recorded.launch(&on.gpu);
                    buffer.recorded.insert(shape, Some(recorded));
                    launched
                }
                None => {
                    *graphs = false;
                    plainly()
                }
            },
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
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..bytes).map(|_| next()).collect()
}
