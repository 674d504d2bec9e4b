//! Everything that is launched for a batch of one shape, with all its pointers.

use std::ffi::c_void;

use super::arena::{Arena, Shape};
use super::convolution::{Convolution, Sizes, product};
use super::driver::{Gpu, Kernel, Pointer};
use super::element::Element;
use super::layers::{self, GROUP, Op, PLACES};
use super::network::{OnGpu, Prepared};
use crate::engine::EngineError;
use crate::yolo::Act;

/// Tensors have fewer elements than this: cuDNN takes no others, and kernels count threads, of which
/// there are fewer, in 32 bits.
const MOST_ELEMENTS: usize = 1 << 31;

/// As `Place` in kernels.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    to: Pointer,
    pitch: u32,
    first: u32,
    from: u32,
    channels: u32,
    up: u32,
    unused: u32,
}

/// As `Finish` in kernels.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Finish {
    sums: Pointer,
    bias: Pointer,
    residual: Pointer,
    residual_pitch: u32,
    width: u32,
    rows: u32,
    pitch: u32,
    act: u32,
    places: u32,
    place: [Place; PLACES],
}

/// As `Pool` in kernels.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Pool {
    from: Pointer,
    pitch: u32,
    channels: u32,
    width: u32,
    height: u32,
    pictures: u32,
    places: u32,
    place: [Place; PLACES],
}

/// As `Decode` in kernels.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Decode {
    boxes: Pointer,
    scores: Pointer,
    boxes_pitch: u32,
    scores_pitch: u32,
    width: u32,
    cells: u32,
    pictures: u32,
    first: u32,
    stride: u32,
    bins: u32,
    classes: u32,
    room: u32,
    asked: Pointer,
    count: Pointer,
    found: Pointer,
}

/// As `Unfold` in kernels.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Unfold {
    from: Pointer,
    to: Pointer,
    pitch: u32,
    width: u32,
    height: u32,
    pictures: u32,
    kernel: u32,
    stride: u32,
    out_width: u32,
    out_height: u32,
}

/// Where a batch comes from and its boxes go to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    /// Bytes R, G, B of all pictures.
    pub(super) pictures: Pointer,
    /// As `Asked` in kernels.cu.
    pub(super) asked: Pointer,
    /// How many boxes were found.
    pub(super) count: Pointer,
    /// The boxes, as `Found` in kernels.cu, and how many there is room for.
    pub(super) found: Pointer,
    pub(super) room: usize,
}

/// What to launch for a batch of one shape. It holds pointers into an arena and to weights, and is of
/// no use when they are gone.
pub(super) struct Program {
    pub(super) shape: Shape,
    element: Element,
    picture: Pointer,
    steps: Vec<Step>,
    decodes: Vec<Decode>,
    /// Working memory that its convolutions want.
    pub(super) workspace: usize,
    /// Logits by tensor: place in the arena, and bytes of each picture.
    pub(super) logits: Vec<(usize, usize)>,
}

enum Step {
    Conv {
        convolution: Convolution,
        sizes: Sizes,
        input: Pointer,
        weights: Pointer,
        finish: Finish,
    },
    Pool(Pool),
}

impl Program {
    /// Bytes of the arena for batches of `shape`.
    pub(super) fn arena_bytes(prepared: &Prepared, shape: Shape) -> usize {
        Arena::new(&prepared.layers, shape, prepared.element.size()).bytes
    }

    /// Prepares all launches, for an arena that begins at `base`; `plain` is by cuDNN's plainest
    /// algorithm.
    ///
    /// # Errors
    /// [`EngineError::OutOfMemory`] for a batch that is too large to be counted; what cuDNN says.
    pub(super) fn new(
        prepared: &Prepared,
        on: &OnGpu,
        shape: Shape,
        base: Pointer,
        plain: bool,
    ) -> Result<Program, EngineError> {
        let Prepared { layers, element, .. } = prepared;
        let element = *element;
        let size = element.size();
        countable(prepared, shape, &on.gpu)?;
        let arena = Arena::new(layers, shape, size);
        let at = |offset: usize| base + offset as u64;
        let tensor = |id: layers::Id| at(arena.tensors[id]);
        let pitch = |id: layers::Id| layers.tensors[id].channels;
        let view = |view: layers::View| tensor(view.tensor) + (view.first * size) as u64;
        let places = |places: &[layers::Place]| -> Result<[Place; PLACES], EngineError> {
            let mut all = [Place::default(); PLACES];
            for (to, place) in all.iter_mut().zip(places) {
                *to = Place {
                    to: tensor(place.tensor),
                    pitch: count(pitch(place.tensor))?,
                    first: count(place.first)?,
                    from: count(place.from)?,
                    channels: count(place.channels)?,
                    up: u32::from(place.up),
                    unused: 0,
                };
            }
            Ok(all)
        };
        let (mut steps, mut workspace) = (Vec::with_capacity(layers.ops.len()), 0);
        for (index, op) in layers.ops.iter().enumerate() {
            steps.push(match op {
                Op::Conv(conv) => {
                    let from = layers.tensors[conv.from];
                    let sizes = Sizes {
                        pictures: shape.pictures,
                        width: shape.width / from.stride,
                        height: shape.height / from.stride,
                        inputs: from.channels,
                        outputs: conv.channels,
                        kernel: conv.kernel,
                        stride: conv.stride,
                    };
                    let convolution = {
                        let dnn = on.dnn.as_ref().ok();
                        Convolution::new(&on.gpu, dnn, element, sizes, plain)?
                    };
                    workspace = workspace.max(convolution.workspace);
                    let [weights, bias] = on.weights(index)?;
                    let (width, height) = sizes.result();
                    let finish = Finish {
                        sums: arena.sums[index].map_or(0, at),
                        bias,
                        residual: conv.residual.map_or(0, view),
                        residual_pitch: count(conv.residual.map_or(0, |v| pitch(v.tensor)))?,
                        width: count(width)?,
                        rows: count(shape.pictures * height)?,
                        pitch: count(conv.channels)?,
                        act: u32::from(conv.act == Act::Silu),
                        places: count(conv.places.len())?,
                        place: places(&conv.places)?,
                    };
                    Step::Conv { convolution, sizes, input: tensor(conv.from), weights, finish }
                }
                Op::Pool(pool) => Step::Pool(Pool {
                    from: view(pool.from),
                    pitch: count(pitch(pool.from.tensor))?,
                    channels: count(pool.channels)?,
                    width: count(shape.width / pool.scale)?,
                    height: count(shape.height / pool.scale)?,
                    pictures: count(shape.pictures)?,
                    places: count(pool.places.len())?,
                    place: places(&pool.places)?,
                }),
            });
        }
        let (mut decodes, mut logits, mut first) = (Vec::new(), Vec::new(), 0);
        for level in &layers.levels {
            let (width, height) = (shape.width / level.stride, shape.height / level.stride);
            for id in [level.boxes, level.scores] {
                logits.push((arena.tensors[id], width * height * pitch(id) * size));
            }
            decodes.push(Decode {
                boxes: tensor(level.boxes),
                scores: tensor(level.scores),
                boxes_pitch: count(pitch(level.boxes))?,
                scores_pitch: count(pitch(level.scores))?,
                width: count(width)?,
                cells: count(width * height)?,
                pictures: count(shape.pictures)?,
                first: count(first)?,
                stride: count(level.stride)?,
                bins: count(layers.reg_max)?,
                classes: count(layers.classes)?,
                room: 0,
                asked: 0,
                count: 0,
                found: 0,
            });
            first += width * height;
        }
        let picture = tensor(layers.picture);
        Ok(Program { shape, element, picture, steps, decodes, workspace, logits })
    }

    /// What decides its results, for the numeric class.
    pub(super) fn kind(&self) -> String {
        let kinds = self.steps.iter().filter_map(|step| match step {
            Step::Conv { convolution, .. } => Some(convolution.kind()),
            Step::Pool(_) => None,
        });
        kinds.collect::<Vec<_>>().join(" ")
    }

    /// Whether some convolution is a product of matrices.
    pub(super) fn has_products(&self) -> bool {
        let product = |step: &Step| match step {
            Step::Conv { convolution, .. } => convolution.unfolded().is_some(),
            Step::Pool(_) => false,
        };
        self.steps.iter().any(product)
    }

    /// Launches all of it on the GPU's stream.
    ///
    /// # Safety
    /// The GPU is bound to this thread. The arena and weights that this was prepared for, `workspace`,
    /// of as many bytes as it says, and what `ends` points to, are there and nobody else's until the
    /// stream has come past this.
    pub(super) unsafe fn launch(
        &self,
        on: &OnGpu,
        workspace: Pointer,
        ends: Ends,
    ) -> Result<(), EngineError> {
        let pixels = self.shape.pixels(1);
        let (pictures, picture, most) = (ends.pictures, self.picture, count(pixels)?);
        let parameters = &mut [any(&pictures), any(&picture), any(&most)];
        // SAFETY: the kernel takes two pointers and a number, reads three bytes for each pixel of the
        // batch, and writes the tensor of the picture, of eight elements for each.
        unsafe { on.kernels.prepare.launch(&on.gpu, pixels, parameters)? };
        for step in &self.steps {
            match step {
                Step::Conv { convolution, sizes, input, weights, finish } => {
                    // SAFETY: all of them are tensors of the arena's plan, or weights packed for it.
                    unsafe {
                        let pointers = [*input, *weights, finish.sums, workspace];
                        match (&on.dnn, convolution.unfolded()) {
                            (Ok(dnn), None) => convolution.launch(&on.gpu, dnn, pointers)?,
                            (_, at_once) => {
                                let at_once = at_once.unwrap_or(1);
                                self.by_products(on, at_once, *sizes, pointers)?;
                            }
                        }
                    }
                    let threads = (finish.rows as usize * finish.width as usize)
                        * (finish.pitch as usize / GROUP);
                    // SAFETY: as the kernel's parameter, with pointers of the arena's plan and the
                    // bias of so many channels.
                    unsafe { run(on, &on.kernels.finish, threads, finish)? };
                }
                Step::Pool(pool) => {
                    let pixels = self.shape.pictures * pool.width as usize * pool.height as usize;
                    let threads = pixels * (pool.channels as usize / GROUP);
                    // SAFETY: as the kernel's parameter, with pointers of the arena's plan.
                    unsafe { run(on, &on.kernels.pool, threads, pool)? };
                }
            }
        }
        for decode in &self.decodes {
            let Ends { asked, count: number, found, room, .. } = ends;
            let decode = Decode { asked, count: number, found, room: count(room)?, ..*decode };
            let threads = self.shape.pictures * decode.cells as usize;
            // SAFETY: as the kernel's parameter; it writes no more boxes than there is room for.
            unsafe { run(on, &on.kernels.decode, threads, &decode)? };
        }
        Ok(())
    }

    /// A convolution as products of matrices, `at_once` pictures at a time.
    ///
    /// # Safety
    /// As [`Program::launch`]; the pointers are to input, weights, sums and working memory.
    unsafe fn by_products(
        &self,
        on: &OnGpu,
        at_once: usize,
        sizes: Sizes,
        [input, weights, sums, workspace]: [Pointer; 4],
    ) -> Result<(), EngineError> {
        let (width, height) = sizes.result();
        let (rows, size) = (width * height, self.element.size());
        let depth = sizes.kernel * sizes.kernel * sizes.inputs;
        let plain = sizes.kernel == 1 && sizes.stride == 1;
        for begin in (0..sizes.pictures).step_by(at_once) {
            let pictures = at_once.min(sizes.pictures - begin);
            let from = input + (begin * sizes.width * sizes.height * sizes.inputs * size) as u64;
            let to = sums + (begin * rows * sizes.outputs * size) as u64;
            let matrix = if plain { from } else { workspace };
            if !plain {
                let unfold = Unfold {
                    from,
                    to: workspace,
                    pitch: count(sizes.inputs)?,
                    width: count(sizes.width)?,
                    height: count(sizes.height)?,
                    pictures: count(pictures)?,
                    kernel: count(sizes.kernel)?,
                    stride: count(sizes.stride)?,
                    out_width: count(width)?,
                    out_height: count(height)?,
                };
                let threads = pictures * rows * depth / GROUP;
                // SAFETY: as the kernel's parameter; working memory is enough for so many pictures, by
                // `Convolution::new`, and threads are few since it is bounded.
                unsafe { run(on, &on.kernels.unfold, threads, &unfold)? };
            }
            let lengths = [pictures * rows, sizes.outputs, depth];
            // SAFETY: the matrix has been unfolded to so many rows, or is the tensor; weights are
            // packed as rows of `depth`; the sums are a tensor of the arena's plan.
            unsafe { product(&on.gpu, self.element, lengths, [matrix, weights, to])? };
        }
        Ok(())
    }
}

/// # Errors
/// [`EngineError::OutOfMemory`] where a tensor has too many elements.
fn countable(prepared: &Prepared, shape: Shape, gpu: &Gpu) -> Result<(), EngineError> {
    let layers = &prepared.layers;
    let tensors = layers.tensors.iter().map(|tensor| shape.pixels(tensor.stride) * tensor.channels);
    let sums = layers.ops.iter().map(|op| match op {
        Op::Conv(conv) => shape.pixels(conv.scale) * conv.channels,
        Op::Pool(_) => 0,
    });
    match tensors.chain(sums).max().unwrap_or(0) < MOST_ELEMENTS {
        true => Ok(()),
        false => Err(EngineError::OutOfMemory {
            device: gpu.label(),
            needs: format!("{} pictures at once have more than 2^31 elements", shape.pictures),
        }),
    }
}

/// # Safety
/// `parameter` is of the type that the kernel takes, and its pointers are good for what it does.
unsafe fn run<P>(
    on: &OnGpu,
    kernel: &Kernel,
    threads: usize,
    parameter: &P,
) -> Result<(), EngineError> {
    // SAFETY: the caller's promise.
    unsafe { kernel.launch(&on.gpu, threads, &mut [any(parameter)]) }
}

fn any<P>(parameter: &P) -> *mut c_void {
    std::ptr::from_ref(parameter).cast_mut().cast()
}

fn count(n: usize) -> Result<u32, EngineError> {
    u32::try_from(n).map_err(|_| EngineError::Unsupported { step: format!("a size of {n}") })
}
