//! One number at a time, as plainly as can be: what the other kernels are held to.

use super::math::{from_bf16, silu, to_bf16};
use super::task::{Activation, Conv, Element, Pool, Store};

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
pub(super) fn conv(arena: &mut View<'_>, packed: &[u8], task: &Conv<'_>) {
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
                            let at = match arena.element {
                                Element::F32 => k * block.lanes + lane,
                                // Pairs of elements lie together.
                                Element::Bf16 => (k / 2 * block.lanes + lane) * 2 + k % 2,
                            };
                            let w = element(packed, arena.element, block.weights + size * at);
                            sum = a.mul_add(w, sum);
                            k += 1;
                        }
                    }
                    let mut y = match task.act {
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
                        best = best.max(arena.get(task.from.of(yy, xx) + size * lane));
                    }
                }
                arena.set(task.out.of(row, x) + size * lane, best);
            }
        }
    }
}
