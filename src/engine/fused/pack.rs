//! Weights in the order in which kernels read them.
//!
//! For each plane of the output one block: its biases, then for each element of each K-step as
//! many weights as the plane has lanes ([`crate::kernels::task::Block`]). Strictly sequential, so
//! that the hardware's prefetcher sees one stream. Independent of the picture's size.

use super::super::api::EngineError;
use super::super::fold::fold;
use super::lower::{Conv, Kind, Net, Op, Part, Plane};
use crate::kernels::math::to_bf16;
use crate::kernels::task::{Element, Winograd, weight_index};
use crate::kernels::{ALIGN, Memory};
use crate::yolo::{Network, Op as Node};

/// Rises whenever the same network is packed into other bytes than before: packs on disk are stale
/// then. (That the *place* of a weight has changed is noticed without it.)
pub(super) const PACKING_VERSION: u32 = 1;

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
            let elements = elements * if conv.winograd { Winograd::POSITIONS } else { 1 };
            for (_, plane) in outputs(net, conv) {
                of_op.push(Packed {
                    bias: take(4 * plane.lanes),
                    weights: take(elements * plane.lanes * net.element.bytes()),
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

/// Folds and packs all weights.
///
/// # Errors
/// [`EngineError`] names the convolution at fault.
pub(super) fn pack(network: &Network, net: &Net, index: &Index) -> Result<Memory, EngineError> {
    let mut memory = Memory::new(index.bytes)
        .map_err(|e| EngineError::Prepare { step: "all weights".into(), source: Box::new(e) })?;
    for (op, blocks) in net.ops.iter().zip(&index.blocks) {
        let Op::Conv(conv) = op else { continue };
        let Node::Conv(source) = &network.graph.nodes[conv.node].op else { continue };
        let (kernel, bias) = fold(network, source)?;
        for ((part, plane), packed) in outputs(net, conv).zip(blocks) {
            let block = Source { net, conv, kernel: &kernel, cin: source.cin, part, plane };
            if conv.init.is_none() {
                let out = &mut memory.floats_mut()[packed.bias / 4..][..plane.lanes];
                let (used, rest) = out.split_at_mut(plane.used);
                used.copy_from_slice(&bias[part.first + plane.first..][..plane.used]);
                if net.tensors[part.tensor].kind == Kind::Logits {
                    // Lanes without a class must not look like one.
                    rest.fill(f32::NEG_INFINITY);
                }
            }
            if conv.winograd {
                block.write_transformed(&mut memory, packed.weights);
            } else {
                block.write(&mut memory, packed.weights);
            }
        }
    }
    Ok(memory)
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
    fn write(&self, memory: &mut Memory, at: usize) {
        match self.net.element {
            Element::F32 => self.write_taps(&mut memory.floats_mut()[at / 4..], |w| w),
            Element::Bf16 => self.write_taps(&mut memory.halves_mut()[at / 2..], to_bf16),
        }
    }

    /// Writes the weights of each element of each K-step for all lanes. Where there is no tap, no
    /// input channel or no output channel, memory stays zero.
    fn write_taps<T>(&self, out: &mut [T], element_of: impl Fn(f32) -> T) {
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
                            out[to + (lane - first) * next] = element_of(weight);
                        }
                    }
                }
                index += 1;
            }
        }
    }

    /// U = G g Gᵀ of every 3 × 3 kernel, in f64 and rounded once, position by position.
    fn write_transformed(&self, memory: &mut Memory, at: usize) {
        /// G applied to three values.
        fn transform(g: [f64; 3]) -> [f64; 4] {
            let (sum, middle) = ((g[0] + g[2]) / 2.0, g[1] / 2.0);
            [g[0], sum + middle, sum - middle, g[2]]
        }
        let (lanes, used) = (self.plane.lanes, self.plane.used);
        let channels: usize = self.conv.steps.iter().map(|step| step.count).sum();
        let out = &mut memory.floats_mut()[at / 4..];
        let fan = self.cin * 9;
        let kernel = &self.kernel[(self.part.first + self.plane.first) * fan..][..used * fan];
        // All lanes of an input channel, to be written position by position in one go.
        let mut transformed = [[0.0f32; 32]; Winograd::POSITIONS];
        let mut channel = 0;
        for step in &self.conv.steps {
            let inputs = self.net.tensors[step.tensor].planes[step.plane].used;
            for c in 0..inputs {
                for lane in 0..used {
                    let g = &kernel[lane * fan + (step.first + c) * 9..][..9];
                    let row = |y: usize| [0, 1, 2].map(|x| f64::from(g[3 * y + x]));
                    let across = [0, 1, 2].map(|y| transform(row(y)));
                    for (x, column) in
                        [0, 1, 2, 3].map(|x| across.map(|row| row[x])).into_iter().enumerate()
                    {
                        for (y, u) in transform(column).into_iter().enumerate() {
                            transformed[4 * y + x][lane] = u as f32;
                        }
                    }
                }
                for (position, from) in transformed.iter().enumerate() {
                    let k = position * channels + channel + c;
                    out[k * lanes..][..used].copy_from_slice(&from[..used]);
                }
            }
            channel += step.count;
        }
    }
}
