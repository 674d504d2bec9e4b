//! One number at a time, as plainly as can be: what the other kernels are held to.

#![allow(clippy::needless_range_loop, reason = "indices are what the formulas are written in")]

use std::array::from_fn;

use super::math::{from_bf16, silu, silu_coarse, to_bf16, winograd_input, winograd_output};
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
                    let bias = element(packed, Element::F32, block.bias + 4 * lane);
                    let mut sum = match block.init {
                        Some(init) => {
                            let row = (row + usize::from(task.odd)) / 2;
                            arena.f32(init.of(row, x) + 4 * lane)
                        }
                        // With tiles it comes last.
                        None if tiled => 0.0,
                        None => bias,
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
                    if tiled && block.init.is_none() {
                        sum += bias;
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
    const SIDE: usize = Winograd::SIDE;
    const REACH: usize = Winograd::REACH;
    let size = arena.element.bytes();
    let channels: usize = task.planes.iter().map(|plane| plane.count).sum();
    for block in task.blocks {
        for (y, x) in (0..task.rows)
            .step_by(SIDE)
            .flat_map(|y| (0..task.width).step_by(SIDE).map(move |x| (y, x)))
        {
            for lane in 0..block.lanes {
                let mut m = [[0.0f32; REACH]; REACH];
                let mut channel = 0;
                for plane in task.planes {
                    for c in 0..plane.count {
                        let d = |i: usize, j: usize| {
                            // What no output that exists depends on is taken for zero.
                            let there = y + i < task.rows + 2 && x + j < task.width + 2;
                            let at = plane.from.of(y + i, x + j) + size * c;
                            if there { arena.get(at) } else { 0.0 }
                        };
                        // Down each column, then across each row.
                        let columns: [_; REACH] = from_fn(|j| winograd_input(from_fn(|i| d(i, j))));
                        for i in 0..REACH {
                            let v = winograd_input(from_fn(|j| columns[j][i]));
                            for j in 0..REACH {
                                let u = ((REACH * i + j) * channels + channel) * block.lanes + lane;
                                let u = element(packed, Element::F32, block.weights + 4 * u);
                                m[i][j] = v[j].mul_add(u, m[i][j]);
                            }
                        }
                        channel += 1;
                    }
                }
                let columns: [_; REACH] = from_fn(|j| winograd_output(from_fn(|i| m[i][j])));
                for i in 0..SIDE {
                    let out = winograd_output(from_fn(|j| columns[j][i]));
                    for j in 0..SIDE {
                        if y + i >= task.rows || x + j >= task.width {
                            continue;
                        }
                        let bias = element(packed, Element::F32, block.bias + 4 * lane);
                        let mut value = out[j] + bias;
                        if task.act == Activation::Silu {
                            value = match arena.element {
                                Element::F32 => silu(value),
                                Element::Bf16 => silu_coarse(value),
                            };
                        }
                        if let Some(residual) = block.residual {
                            value += arena.get(residual.of(y + i, x + j) + size * lane);
                        }
                        arena.set(block.out.of(y + i, x + j) + size * lane, value);
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
