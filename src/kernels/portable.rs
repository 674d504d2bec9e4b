//! Plain Rust that compilers vectorise well: 4 pixels × 8 channels, which is what 16 registers of four
//! lanes hold; no intrinsics, no `unsafe`.

use super::math::silu;
use super::task::{Activation, Block, Conv, Store};

/// Whether `mul_add` is an instruction here, not a call.
const FUSED: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));

/// The name of the arithmetic: where sums are fused, they round once less.
pub(super) const CLASS: &str = if FUSED { "f32-portable-fma" } else { "f32-portable" };

/// Channels that are summed together.
const LANES: usize = 8;

// On its own, so that the compiler sees sums that nobody else touches, and keeps them in registers:
// inlined into its caller it once ran eight times slower.
#[inline(never)]
fn block<const PX: usize>(
    arena: &mut [f32],
    packed: &[f32],
    task: &Conv<'_>,
    block: &Block,
    (row, x, half): (usize, usize, usize),
) {
    let shift = LANES * half;
    let mut acc = [[0.0f32; LANES]; PX];
    for (p, acc) in acc.iter_mut().enumerate() {
        let from = match block.init {
            Some(init) => &arena[init.of((row + usize::from(task.odd)) / 2, x + p) / 4 + shift..],
            None => &packed[block.bias / 4 + shift..],
        };
        acc.copy_from_slice(&from[..LANES]);
    }
    let mut weights = &packed[block.weights / 4..];
    for k in task.ksteps {
        let mut from = [&arena[..0]; PX];
        for (p, from) in from.iter_mut().enumerate() {
            let at = k.from.of(row, x + p) / 4;
            *from = &arena[at..at + k.count];
        }
        let (these, rest) = weights.split_at(k.count * block.lanes);
        weights = rest;
        for (c, w) in these.chunks_exact(block.lanes).enumerate() {
            let Ok(w) = <&[f32; LANES]>::try_from(&w[shift..shift + LANES]) else { continue };
            for p in 0..PX {
                let a = from[p][c];
                for (sum, &w) in acc[p].iter_mut().zip(w) {
                    *sum = if FUSED { a.mul_add(w, *sum) } else { *sum + a * w };
                }
            }
        }
    }
    for (p, acc) in acc.iter_mut().enumerate() {
        if task.act == Activation::Silu {
            for y in acc.iter_mut() {
                *y = unfused_silu(*y);
            }
        }
        if let Some(residual) = block.residual {
            let at = residual.of(row, x + p) / 4 + shift;
            for (y, &add) in acc.iter_mut().zip(&arena[at..at + LANES]) {
                *y += add;
            }
        }
        let at = block.out.of(row, x + p) / 4 + shift;
        arena[at..at + LANES].copy_from_slice(acc);
        if task.store == Store::F32Twice {
            let at = at + block.out.px / 8;
            arena[at..at + LANES].copy_from_slice(acc);
        }
    }
}

/// [`silu`] without calls where `mul_add` would be one.
#[inline]
fn unfused_silu(x: f32) -> f32 {
    if FUSED {
        return silu(x);
    }
    let t = (x * super::math::NEG_LOG2_E).clamp(-super::math::LIMIT, super::math::LIMIT);
    // Rounds to the nearest integer by pushing the fraction out of the mantissa.
    let shifted = t + 12_582_912.0;
    let n = shifted - 12_582_912.0;
    let f = t - n;
    let mut p = super::math::EXP2[0];
    for c in &super::math::EXP2[1..] {
        p = p * f + c;
    }
    let exponent = shifted.to_bits() << 23;
    x / (1.0 + f32::from_bits(p.to_bits().wrapping_add(exponent)))
}

/// Some rows of a convolution; `arena` and `packed` are the memory as f32.
pub(super) fn conv(arena: &mut [f32], packed: &[f32], task: &Conv<'_>) {
    for one in task.blocks {
        for row in 0..task.rows {
            for half in 0..one.lanes / LANES {
                let mut x = 0;
                while x < task.width {
                    let at = (row, x, half);
                    x += match task.width - x {
                        4.. => {
                            block::<4>(arena, packed, task, one, at);
                            4
                        }
                        2.. => {
                            block::<2>(arena, packed, task, one, at);
                            2
                        }
                        _ => {
                            block::<1>(arena, packed, task, one, at);
                            1
                        }
                    };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_silu_are_close() {
        let mut x = -130.0f32;
        while x < 130.0 {
            let (a, b) = (silu(x), unfused_silu(x));
            assert!((a - b).abs() <= 1e-6 * a.abs().max(1e-3), "{x} {a} {b}");
            x += 0.01;
        }
        assert!(unfused_silu(f32::NAN).is_nan());
    }
}
