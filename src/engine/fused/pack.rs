//! Weights in the order in which kernels read them.
//!
//! For each plane of the output one block: its biases, then for each element of each K-step as
//! many weights as the plane has lanes ([`crate::kernels::task::Block`]). Strictly sequential, so
//! that the hardware's prefetcher sees one stream. Independent of the picture's size.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

use super::super::api::EngineError;
use super::super::fold::fold;
use super::lower::{Conv, Kind, Net, Op, Part, Plane};
use crate::kernels::math::{to_bf16, winograd_weights};
use crate::kernels::task::{Element, Winograd, weight_index};
use crate::kernels::{ALIGN, Memory};
use crate::yolo::{Network, Op as Node};

/// Rises whenever the same network is packed into other bytes than before: packs on disk are stale
/// then. (That the *place* of a weight has changed is noticed without it.)
pub(super) const PACKING_VERSION: u32 = 2;

/// Where a block lies in the packed weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packed {
    pub(super) bias: usize,
    pub(super) weights: usize,
}

/// The blocks of each op (none for those that are no convolutions), and the bytes of all.
#[derive(Clone, Debug)]
pub(super) struct Index {
    pub(super) blocks: Vec<Vec<Packed>>,
    pub(super) bytes: usize,
}

/// Decides where everything lies.
pub(super) fn index(net: &Net) -> Index {
    let mut bytes = 0;
    let mut take = |len: usize| {
        let at = bytes;
        bytes += len.next_multiple_of(ALIGN);
        at
    };
    let mut blocks = Vec::with_capacity(net.ops.len());
    for op in &net.ops {
        let mut of_op = Vec::new();
        if let Op::Conv(conv) = op {
            let elements: usize = conv.steps.iter().map(|step| step.count).sum();
            // Transformed weights are in single precision, whatever activations are.
            let (elements, element) = match conv.winograd {
                true => (elements * Winograd::POSITIONS, Element::F32),
                false => (elements, net.element),
            };
            for (_, plane) in outputs(net, conv) {
                of_op.push(Packed {
                    bias: take(4 * plane.lanes),
                    weights: take(elements * plane.lanes * element.bytes()),
                });
            }
        }
        blocks.push(of_op);
    }
    Index { blocks, bytes }
}

/// The planes a convolution writes, part by part: its blocks.
pub(super) fn outputs<'a>(
    net: &'a Net,
    conv: &'a Conv,
) -> impl Iterator<Item = (&'a Part, &'a Plane)> {
    conv.parts
        .iter()
        .flat_map(|part| net.tensors[part.tensor].planes.iter().map(move |plane| (part, plane)))
}

/// Folds and packs all weights, on all cores: nothing else goes on while a model is loaded.
///
/// # Errors
/// [`EngineError`] names the convolution at fault.
pub(super) fn pack(network: &Network, net: &Net, index: &Index) -> Result<Memory, EngineError> {
    let mut memory = Memory::new(index.bytes)
        .map_err(|e| EngineError::Prepare { step: "all weights".into(), source: Box::new(e) })?;
    // Each op's blocks lie together, in the order of ops.
    let mut regions = Vec::with_capacity(net.ops.len());
    let (mut rest, mut start) = (memory.bytes_mut(), 0);
    for op in 0..net.ops.len() {
        let next = index.blocks[op + 1..].iter().find_map(|blocks| blocks.first());
        let end = next.map_or(index.bytes, |packed| packed.bias);
        let (bytes, after) = std::mem::take(&mut rest).split_at_mut(end - start);
        regions.push((op, Region { bytes, start }));
        (rest, start) = (after, end);
    }
    let regions = Mutex::new(regions.into_iter());
    let fault: Mutex<Option<(usize, EngineError)>> = Mutex::new(None);
    let work = || {
        loop {
            let next = regions.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((op, mut region)) = next else { break };
            if let Err(error) = pack_op(network, net, op, &index.blocks[op], &mut region) {
                let mut fault = fault.lock().unwrap_or_else(PoisonError::into_inner);
                // The first in the network, whoever came to theirs first.
                if fault.as_ref().is_none_or(|&(before, _)| op < before) {
                    *fault = Some((op, error));
                }
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    std::thread::scope(|scope| {
        for _ in 1..threads.min(net.ops.len()) {
            // Without a thread more the others do its part.
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
    match fault.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, error)) => Err(error),
        None => Ok(memory),
    }
}

/// The packed weights of one op, and where in all of them they begin.
struct Region<'a> {
    bytes: &'a mut [u8],
    start: usize,
}

impl Region<'_> {
    /// From this place in all weights on.
    fn at(&mut self, at: usize) -> &mut [u8] {
        &mut self.bytes[at - self.start..]
    }

    /// Writes numbers from this place on, one after another.
    fn floats(&mut self, at: usize, values: &[f32]) {
        for (out, value) in self.at(at).chunks_exact_mut(4).zip(values) {
            out.copy_from_slice(&value.to_ne_bytes());
        }
    }
}

fn pack_op(
    network: &Network,
    net: &Net,
    op: usize,
    blocks: &[Packed],
    region: &mut Region<'_>,
) -> Result<(), EngineError> {
    let Op::Conv(conv) = &net.ops[op] else { return Ok(()) };
    let Node::Conv(source) = &network.graph.nodes[conv.node].op else { return Ok(()) };
    let (kernel, bias) = fold(network, source)?;
    for ((part, plane), packed) in outputs(net, conv).zip(blocks) {
        let block = Source { net, conv, kernel: &kernel, cin: source.cin, part, plane };
        if conv.init.is_none() {
            region.floats(packed.bias, &bias[part.first + plane.first..][..plane.used]);
            if net.tensors[part.tensor].kind == Kind::Logits {
                // Lanes without a class must not look like one.
                let rest = [f32::NEG_INFINITY; 32];
                region.floats(packed.bias + 4 * plane.used, &rest[..plane.lanes - plane.used]);
            }
        }
        if conv.winograd {
            block.write_transformed(region, packed.weights);
        } else {
            let out = region.at(packed.weights);
            match net.element {
                Element::F32 => block.write_taps(out, f32::to_ne_bytes),
                Element::Bf16 => block.write_taps(out, |weight| to_bf16(weight).to_ne_bytes()),
            }
        }
    }
    Ok(())
}

struct Source<'a> {
    net: &'a Net,
    conv: &'a Conv,
    kernel: &'a [f32],
    cin: usize,
    part: &'a Part,
    plane: &'a Plane,
}

impl Source<'_> {
    /// Writes the weights of each element of each K-step for all lanes, of `N` bytes each. Where
    /// there is no tap, no input channel or no output channel, memory stays zero.
    fn write_taps<const N: usize>(&self, out: &mut [u8], bytes_of: impl Fn(f32) -> [u8; N]) {
        /// Lanes whose weights lie evenly, whatever the form.
        const EVEN: usize = 16;
        let Net { element: kind, tiled, .. } = *self.net;
        let k = self.conv.kernel;
        let pad = (k / 2) as isize;
        let (lanes, used) = (self.plane.lanes, self.plane.used);
        // From one output channel's weights to the next one's.
        let fan = self.cin * k * k;
        let kernel = &self.kernel[(self.part.first + self.plane.first) * fan..][..used * fan];
        let mut index = 0;
        for step in &self.conv.steps {
            let tensor = &self.net.tensors[step.tensor];
            let plane = &tensor.planes[step.plane];
            let (dx, ky) = ((step.dx + pad) as usize, (step.dy + pad) as usize);
            for element in 0..step.count {
                let (kx, c) = (dx + element / plane.lanes, element % plane.lanes);
                if kx < k && c < plane.used {
                    let tap = ((step.first + c) * k + ky) * k + kx;
                    for first in (0..used).step_by(EVEN) {
                        let to = weight_index(kind, tiled, index, first, lanes);
                        let next = weight_index(kind, tiled, index, first + 1, lanes) - to;
                        for lane in first..used.min(first + EVEN) {
                            let weight = kernel[lane * fan + tap];
                            let weight = match tensor.kind {
                                // The picture stays 0..=255.
                                Kind::Picture => (f64::from(weight) / 255.0) as f32,
                                _ => weight,
                            };
                            let at = N * (to + (lane - first) * next);
                            out[at..at + N].copy_from_slice(&bytes_of(weight));
                        }
                    }
                }
                index += 1;
            }
        }
    }

    /// U = G g Gᵀ of every 3 × 3 kernel, in f64 and rounded once, position by position.
    fn write_transformed(&self, region: &mut Region<'_>, at: usize) {
        const REACH: usize = Winograd::REACH;
        let (lanes, used) = (self.plane.lanes, self.plane.used);
        let channels: usize = self.conv.steps.iter().map(|step| step.count).sum();
        let fan = self.cin * 9;
        let kernel = &self.kernel[(self.part.first + self.plane.first) * fan..][..used * fan];
        // All lanes of an input channel, tap by tap, and transformed, to be written position by
        // position: side by side, so that the compiler can do several at once.
        let mut taps = [[0.0f32; 32]; 9];
        let mut transformed = [[0.0f32; 32]; Winograd::POSITIONS];
        let mut channel = 0;
        for step in &self.conv.steps {
            let inputs = self.net.tensors[step.tensor].planes[step.plane].used;
            for c in 0..inputs {
                for lane in 0..used {
                    let g = &kernel[lane * fan + (step.first + c) * 9..][..9];
                    for (tap, &weight) in taps.iter_mut().zip(g) {
                        tap[lane] = weight;
                    }
                }
                for lane in 0..32 {
                    let across = [0, 1, 2].map(|y| {
                        winograd_weights([0, 1, 2].map(|x| f64::from(taps[3 * y + x][lane])))
                    });
                    for x in 0..REACH {
                        let column = winograd_weights([0, 1, 2].map(|y| across[y][x]));
                        for y in 0..REACH {
                            transformed[REACH * y + x][lane] = column[y] as f32;
                        }
                    }
                }
                for (position, from) in transformed.iter().enumerate() {
                    let k = position * channels + channel + c;
                    region.floats(at + 4 * k * lanes, &from[..used]);
                }
            }
            channel += step.count;
        }
    }
}
