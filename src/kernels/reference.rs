//! One number at a time, as plainly as can be: what the other kernels are held to.

#![allow(clippy::needless_range_loop, reason = "indices are what the formulas are written in")]

use super::math::{from_bf16, silu, silu_coarse, to_bf16};
use super::task::{Activation, Conv, Element, Pool, Store, Winograd, weight_index};

/// Reads and writes numbers at byte offsets.
pub(super) struct View<'a> {
    pub(super) bytes: &'a mut [u8],
    pub(super) element: Element,
}

impl View<'_> {
    fn f32(&self, at: usize) -> f32 {
        f32::from_ne_bytes([0, 1, 2, 3].map(|i| self.bytes[at + i]))
    }

    fn set_f32(&mut self, at: usize, value: f32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }

    fn get(&self, at: usize) -> f32 {
        element(self.bytes, self.element, at)
    }

    fn set(&mut self, at: usize, value: f32) {
        match self.element {
            Element::F32 => self.set_f32(at, value),
            Element::Bf16 => {
                self.bytes[at..at + 2].copy_from_slice(&to_bf16(value).to_ne_bytes());
            }
        }
    }
}

fn element(bytes: &[u8], element: Element, at: usize) -> f32 {
    match element {
        Element::F32 => f32::from_ne_bytes([0, 1, 2, 3].map(|i| bytes[at + i])),
        Element::Bf16 => from_bf16(u16::from_ne_bytes([bytes[at], bytes[at + 1]])),
    }
}

/// Some rows of a convolution.
pub(super) fn conv(arena: &mut View<'_>, packed: &[u8], tiled: bool, task: &Conv<'_>) {
    let size = arena.element.bytes();
    for block in task.blocks {
        for row in 0..task.rows {
            for x in 0..task.width {
                for lane in 0..block.lanes {
                    let mut sum = match block.init {
                        Some(init) => {
                            let row = (row + usize::from(task.odd)) / 2;
                            arena.f32(init.of(row, x) + 4 * lane)
                        }
                        None => element(packed, Element::F32, block.bias + 4 * lane),
                    };
                    let mut k = 0;
                    for step in task.ksteps {
                        for c in 0..step.count {
                            let a = arena.get(step.from.of(row, x) + size * c);
                            let at = weight_index(arena.element, tiled, k, lane, block.lanes);
                            let w = element(packed, arena.element, block.weights + size * at);
                            sum = a.mul_add(w, sum);
                            k += 1;
                        }
                    }
                    let mut y = match task.act {
                        Activation::Silu if arena.element == Element::Bf16 => silu_coarse(sum),
                        Activation::Silu => silu(sum),
                        Activation::None => sum,
                    };
                    if let Some(residual) = block.residual {
                        y += arena.get(residual.of(row, x) + size * lane);
                    }
                    let out = block.out.of(row, x);
                    match task.store {
                        Store::Element => arena.set(out + size * lane, y),
                        Store::F32 => arena.set_f32(out + 4 * lane, y),
                        Store::F32Twice => {
                            arena.set_f32(out + 4 * lane, y);
                            arena.set_f32(out + block.out.px / 2 + 4 * lane, y);
                        }
                    }
                }
            }
        }
    }
}

/// Some rows of a convolution by Winograd's scheme: y = Aᵀ (Σ U ⊙ (Bᵀ d B)) A + bias.
pub(super) fn winograd(arena: &mut View<'_>, packed: &[u8], task: &Winograd<'_>) {
    let channels: usize = task.planes.iter().map(|plane| plane.count).sum();
    // Bᵀ applied to four values, and Aᵀ.
    let bt = |d: [f32; 4]| [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]];
    let at = |m: [f32; 4]| [m[0] + m[1] + m[2], m[1] - m[2] - m[3]];
    for block in task.blocks {
        for (y, x) in
            (0..task.rows).step_by(2).flat_map(|y| (0..task.width).step_by(2).map(move |x| (y, x)))
        {
            for lane in 0..block.lanes {
                let mut m = [[0.0f32; 4]; 4];
                let mut channel = 0;
                for plane in task.planes {
                    for c in 0..plane.count {
                        let d = |i: usize, j: usize| arena.f32(plane.from.of(y + i, x + j) + 4 * c);
                        // Down each column, then across each row.
                        let columns = [0, 1, 2, 3].map(|j| bt([0, 1, 2, 3].map(|i| d(i, j))));
                        for i in 0..4 {
                            let v = bt([0, 1, 2, 3].map(|j| columns[j][i]));
                            for j in 0..4 {
                                let u = ((4 * i + j) * channels + channel) * block.lanes + lane;
                                let u = element(packed, Element::F32, block.weights + 4 * u);
                                m[i][j] = v[j].mul_add(u, m[i][j]);
                            }
                        }
                        channel += 1;
                    }
                }
                let columns = [0, 1, 2, 3].map(|j| at([0, 1, 2, 3].map(|i| m[i][j])));
                for i in 0..2 {
                    let out = at([0, 1, 2, 3].map(|j| columns[j][i]));
                    for j in 0..2 {
                        if y + i >= task.rows || x + j >= task.width {
                            continue;
                        }
                        let bias = element(packed, Element::F32, block.bias + 4 * lane);
                        let mut value = out[j] + bias;
                        if task.act == Activation::Silu {
                            value = silu(value);
                        }
                        if let Some(residual) = block.residual {
                            value += arena.f32(residual.of(y + i, x + j) + 4 * lane);
                        }
                        arena.set_f32(block.out.of(y + i, x + j) + 4 * lane, value);
                    }
                }
            }
        }
    }
}

/// Some rows of a 5 × 5 maximum.
pub(super) fn pool(arena: &mut View<'_>, task: &Pool) {
    let size = arena.element.bytes();
    for row in 0..task.rows {
        for x in 0..task.width {
            for lane in 0..task.lanes {
                let mut best = f32::NEG_INFINITY;
                let y = task.first + row;
                for yy in y.saturating_sub(2)..(y + 3).min(task.height) {
                    for xx in x.saturating_sub(2)..(x + 3).min(task.width) {
                        // As the others compare: of equals the first, and never a NaN.
                        let value = arena.get(task.from.of(yy, xx) + size * lane);
                        best = if value > best { value } else { best };
                    }
                }
                arena.set(task.out.of(row, x) + size * lane, best);
            }
        }
    }
}
