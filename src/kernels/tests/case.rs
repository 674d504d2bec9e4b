//! A convolution to be tried: what it is, and how it is laid into memory.

use super::super::math::{from_bf16, to_bf16};
use super::super::task::{Activation, Block, Conv, Element, KStep, Place, Store};
use super::super::{ALIGN, Kernels, Memory};
use super::Noise;

/// A convolution by its properties; [`Case::build`] decides where everything lies.
#[derive(Clone, Debug)]
pub(super) struct Case {
    /// Output pixels per row, and rows.
    pub(super) width: usize,
    pub(super) rows: usize,
    /// Side of the kernel, and the distance between output pixels in the input.
    pub(super) kernel: usize,
    pub(super) stride: usize,
    /// Input planes: lanes, and how many of them hold channels.
    pub(super) inputs: Vec<(usize, usize)>,
    /// Output planes: lanes.
    pub(super) blocks: Vec<usize>,
    /// Pixels from the end of a row to the next, in all planes.
    pub(super) gap: usize,
    pub(super) residual: bool,
    pub(super) init: bool,
    pub(super) odd: bool,
    pub(super) act: Activation,
    pub(super) store: Store,
    /// Whether numbers that are hard to get right are among the values.
    pub(super) wild: bool,
    /// How the regions are rotated in memory: another one is the first and another the last.
    pub(super) turn: usize,
    pub(super) seed: u64,
}

impl Default for Case {
    fn default() -> Self {
        Case {
            width: 13,
            rows: 2,
            kernel: 3,
            stride: 1,
            inputs: vec![(32, 32)],
            blocks: vec![32],
            gap: 1,
            residual: false,
            init: false,
            odd: false,
            act: Activation::Silu,
            store: Store::Element,
            wild: false,
            turn: 0,
            seed: 1,
        }
    }
}

/// A case in memory.
pub(super) struct Built {
    pub(super) arena: Memory,
    pub(super) packed: Memory,
    pub(super) ksteps: Vec<KStep>,
    pub(super) blocks: Vec<Block>,
    /// Byte ranges that the task may write, of `lanes` numbers each.
    pub(super) writes: Vec<(usize, usize)>,
}

/// A piece of the arena.
#[derive(Clone, Copy)]
struct Region {
    bytes: usize,
    align: usize,
    /// Bytes per pixel and per row.
    px: usize,
    line: usize,
}

impl Case {
    pub(super) fn task<'a>(&self, built: &'a Built) -> Conv<'a> {
        Conv {
            ksteps: &built.ksteps,
            blocks: &built.blocks,
            rows: self.rows,
            width: self.width,
            odd: self.odd,
            act: self.act,
            store: self.store,
        }
    }

    /// A piece of `width × rows` pixels; its last byte is the last pixel's.
    fn region(&self, (width, rows): (usize, usize), px: usize, align: usize) -> Region {
        let line = (width + self.gap) * px;
        let bytes = if rows == 0 { 0 } else { (rows - 1) * line + width * px };
        Region { bytes, align, px, line }
    }

    /// Elements of the runs of one kernel row of an input plane: offset in pixels and count.
    fn runs(&self, (lanes, used): (usize, usize), element: Element) -> Vec<(usize, usize)> {
        let even = |count: usize| match element {
            Element::F32 => count,
            Element::Bf16 => count.next_multiple_of(2),
        };
        match lanes == used {
            true => vec![(0, even(self.kernel * lanes))],
            false => (0..self.kernel).map(|kx| (kx, even(used))).collect(),
        }
    }

    /// Places and fills everything: what is not input holds a pattern.
    pub(super) fn build(&self, element: Element) -> Built {
        let size = element.bytes();
        let out_size = if self.store == Store::Element { size } else { 4 };
        let out_width = if self.store == Store::F32Twice { 2 * self.width } else { self.width };

        // Inputs, outputs, residuals, sums to begin with: in this order.
        let reach = |n: usize| (n - 1) * self.stride + self.kernel;
        let mut regions = Vec::new();
        for &(lanes, used) in &self.inputs {
            let mut region =
                self.region((reach(self.width), reach(self.rows)), lanes * size, size.min(4));
            // The last run may end before the last pixel does, or read a padding element.
            let (kx, count) = *self.runs((lanes, used), element).last().unwrap();
            let last = (reach(self.rows) - 1) * region.line
                + ((self.width - 1) * self.stride + kx) * region.px;
            region.bytes = last + count * size;
            regions.push(region);
        }
        for &lanes in &self.blocks {
            let px = lanes * out_size;
            regions.push(self.region((out_width, self.rows), px, 16 * out_size));
        }
        for &lanes in self.blocks.iter().filter(|_| self.residual) {
            regions.push(self.region((self.width, self.rows), lanes * size, 16 * size));
        }
        let init_rows = (self.rows + usize::from(self.odd)).div_ceil(2);
        for &lanes in self.blocks.iter().filter(|_| self.init) {
            regions.push(self.region((self.width, init_rows), lanes * 4, 64));
        }

        // The first begins with the arena, the last ends with it; both at a guard page.
        let count = regions.len();
        let order: Vec<usize> = (0..count).map(|i| (i + self.turn) % count).collect();
        let room: usize = regions.iter().map(|r| r.bytes.next_multiple_of(ALIGN) + ALIGN).sum();
        let mut arena = Memory::new(room.next_multiple_of(4096)).unwrap();
        let mut at = vec![0; count];
        let mut next = 0;
        for &index in &order {
            let region = regions[index];
            at[index] = next;
            next = (next + region.bytes).next_multiple_of(ALIGN);
            if index == order[count - 1] {
                let start = arena.len() - region.bytes;
                at[index] = start - start % region.align;
            }
        }

        let mut noise = Noise(self.seed);
        for (i, byte) in arena.bytes_mut().iter_mut().enumerate() {
            *byte = 0xA0 | (i % 13) as u8;
        }
        let (inputs, rest) = regions.split_at(self.inputs.len());
        for (&region, &start) in inputs.iter().zip(&at) {
            self.fill(&mut arena, start, region.bytes, element, &mut noise);
        }
        let (outputs, rest) = rest.split_at(self.blocks.len());
        let residuals = if self.residual { self.blocks.len() } else { 0 };
        for (i, &region) in rest.iter().enumerate() {
            let element = if i < residuals { element } else { Element::F32 };
            let start = at[inputs.len() + outputs.len() + i];
            self.fill(&mut arena, start, region.bytes, element, &mut noise);
        }

        let place = |index: usize, stride: usize, (dy, dx): (usize, usize)| {
            let Region { px, line, .. } = regions[index];
            Place { at: at[index] + dy * line + dx * px, row: stride * line, px: stride * px }
        };
        let mut ksteps = Vec::new();
        for (index, &input) in self.inputs.iter().enumerate() {
            for ky in 0..self.kernel {
                for (kx, count) in self.runs(input, element) {
                    ksteps.push(KStep { from: place(index, self.stride, (ky, kx)), count });
                }
            }
        }

        // Weights: biases first or last, so that the guard page is behind either.
        let elements: usize = ksteps.iter().map(|k| k.count).sum();
        let sizes = |lanes: usize| (4 * lanes, elements * lanes * size);
        let all: usize = self.blocks.iter().map(|&lanes| sizes(lanes).0 + sizes(lanes).1).sum();
        let mut packed = Memory::new(all).unwrap();
        let scale = 1.0 / (elements.max(1) as f32).sqrt();
        let mut blocks = Vec::new();
        let mut writes = Vec::new();
        let mut next = 0;
        for (i, &lanes) in self.blocks.iter().enumerate() {
            let (bias_bytes, weight_bytes) = sizes(lanes);
            let (bias, weights) = match self.turn.is_multiple_of(2) {
                true => (next, next + bias_bytes),
                false => (next + weight_bytes, next),
            };
            next += bias_bytes + weight_bytes;
            self.fill(&mut packed, bias, bias_bytes, Element::F32, &mut noise);
            for w in 0..elements * lanes {
                let value = if self.wild { noise.wild() } else { noise.unit() * scale };
                set(&mut packed, weights + w * size, element, value);
            }
            let mut out = place(inputs.len() + i, 1, (0, 0));
            if self.store == Store::F32Twice {
                out.px *= 2;
            }
            for row in 0..self.rows {
                for x in 0..self.width {
                    let copies = if self.store == Store::F32Twice { 2 } else { 1 };
                    for copy in 0..copies {
                        writes.push((out.of(row, x) + copy * out.px / 2, lanes));
                    }
                }
            }
            let behind = inputs.len() + self.blocks.len() + i;
            blocks.push(Block {
                weights,
                bias,
                lanes,
                out,
                residual: self.residual.then(|| place(behind, 1, (0, 0))),
                init: self.init.then(|| place(behind + residuals, 1, (0, 0))),
            });
        }
        assert_eq!(next, packed.len());
        Built { arena, packed, ksteps, blocks, writes }
    }

    fn fill(&self, memory: &mut Memory, at: usize, bytes: usize, element: Element, n: &mut Noise) {
        for i in 0..bytes / element.bytes() {
            let value = if self.wild { n.wild() } else { n.unit() };
            set(memory, at + i * element.bytes(), element, value);
        }
    }

    /// Bytes per number of the results, and how they are read.
    pub(super) fn stored(&self, kernels: &Kernels) -> Element {
        match self.store {
            Store::Element => kernels.tier().element(),
            Store::F32 | Store::F32Twice => Element::F32,
        }
    }
}

pub(super) fn set(memory: &mut Memory, at: usize, element: Element, value: f32) {
    match element {
        Element::F32 => memory.bytes_mut()[at..at + 4].copy_from_slice(&value.to_ne_bytes()),
        Element::Bf16 => {
            memory.bytes_mut()[at..at + 2].copy_from_slice(&to_bf16(value).to_ne_bytes());
        }
    }
}

pub(super) fn get(bytes: &[u8], at: usize, element: Element) -> f32 {
    match element {
        Element::F32 => f32::from_ne_bytes([0, 1, 2, 3].map(|i| bytes[at + i])),
        Element::Bf16 => from_bf16(u16::from_ne_bytes([bytes[at], bytes[at + 1]])),
    }
}
