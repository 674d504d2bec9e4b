//! Plain Rust that compilers vectorise well: 4 pixels × 8 channels, which is what 16 registers of four
//! lanes hold; no intrinsics, no `unsafe`.

use std::array::from_fn;
use std::ops::Range;

use super::math::{Number, silu, winograd_input, winograd_output};
use super::task::{Activation, Block, Conv, KStep, Store, Winograd};

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

/// One number for each of the channels that are worked on together.
#[derive(Clone, Copy)]
struct Lanes([f32; LANES]);

impl Lanes {
    const ZERO: Lanes = Lanes([0.0; LANES]);

    fn at(from: &[f32], at: usize) -> Self {
        Lanes(from_fn(|lane| from[at..at + LANES][lane]))
    }

    #[inline(always)]
    fn zip(self, other: Self, of: impl Fn(f32, f32) -> f32) -> Self {
        Lanes(from_fn(|lane| of(self.0[lane], other.0[lane])))
    }
}

impl Number for Lanes {
    #[inline(always)]
    fn plus(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    fn minus(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    fn times(self, factor: f32) -> Self {
        Lanes(self.0.map(|a| a * factor))
    }

    #[inline(always)]
    fn times_plus(self, factor: f32, other: Self) -> Self {
        self.zip(other, |a, b| if FUSED { a.mul_add(factor, b) } else { a * factor + b })
    }
}

const SIDE: usize = Winograd::SIDE;
const REACH: usize = Winograd::REACH;

/// V = Bᵀ d B of one tile, for the channels from `c` on of a plane; position p goes to
/// `out[p · step..]`.
#[inline(never)]
fn transform(
    arena: &[f32],
    task: &Winograd<'_>,
    (plane, c): (&KStep, usize),
    (y, x): (usize, usize),
    (out, step): (&mut [f32], usize),
) {
    let (rows, columns) = (task.rows + 2 - y, task.width + 2 - x);
    let read = |i: usize, j: usize| {
        if i < rows && j < columns {
            Lanes::at(arena, plane.from.of(y + i, x + j) / 4 + c)
        } else {
            Lanes::ZERO
        }
    };
    let down: [[Lanes; REACH]; REACH] = from_fn(|j| winograd_input(from_fn(|i| read(i, j))));
    for i in 0..REACH {
        for (j, v) in winograd_input(from_fn(|j| down[j][i])).into_iter().enumerate() {
            out[(REACH * i + j) * step..][..LANES].copy_from_slice(&v.0);
        }
    }
}

/// The products of one position for `PX` tiles of `tiles` from `first` on, and of half a block:
/// `m[tile · 36 · lanes..]`.
#[inline(never)]
fn product<const PX: usize>(
    planes: &[KStep],
    (mut v, first, tiles): (&[f32], usize, usize),
    (mut u, lanes, shift): (&[f32], usize, usize),
    m: &mut [f32],
) {
    let mut acc = [[0.0f32; LANES]; PX];
    for plane in planes {
        let (these, rest) = v.split_at(plane.count * tiles);
        v = rest;
        let from: [&[f32]; PX] = from_fn(|p| &these[(first + p) * plane.count..][..plane.count]);
        let (these, rest) = u.split_at(plane.count * lanes);
        u = rest;
        for (c, w) in these.chunks_exact(lanes).enumerate() {
            let Ok(w) = <&[f32; LANES]>::try_from(&w[shift..shift + LANES]) else { continue };
            for p in 0..PX {
                let a = from[p][c];
                for (sum, &w) in acc[p].iter_mut().zip(w) {
                    *sum = if FUSED { a.mul_add(w, *sum) } else { *sum + a * w };
                }
            }
        }
    }
    for (p, acc) in acc.iter().enumerate() {
        m[p * Winograd::POSITIONS * lanes + shift..][..LANES].copy_from_slice(acc);
    }
}

/// Y = Aᵀ M A of one tile, for the lanes from `c` on of a block; then bias, activation, residual.
#[inline(never)]
fn finish(
    arena: &mut [f32],
    packed: &[f32],
    task: &Winograd<'_>,
    (block, c): (&Block, usize),
    (y, x): (usize, usize),
    m: &[f32],
) {
    let bias = Lanes::at(packed, block.bias / 4 + c);
    let read = |i: usize, j: usize| Lanes::at(m, (REACH * i + j) * block.lanes + c);
    let down: [[Lanes; SIDE]; REACH] = from_fn(|j| winograd_output(from_fn(|i| read(i, j))));
    let rows: [_; SIDE] = from_fn(|i| winograd_output(from_fn(|j| down[j][i])));
    for (i, row) in rows.into_iter().enumerate().take(task.rows - y) {
        for (j, value) in row.into_iter().enumerate().take(task.width - x) {
            let mut value = value.plus(bias);
            if task.act == Activation::Silu {
                value = Lanes(value.0.map(unfused_silu));
            }
            if let Some(residual) = block.residual {
                value = value.plus(Lanes::at(arena, residual.of(y + i, x + j) / 4 + c));
            }
            let at = block.out.of(y + i, x + j) / 4 + c;
            arena[at..at + LANES].copy_from_slice(&value.0);
        }
    }
}

/// Some rows of a convolution by Winograd's scheme, in the order of `x86/winograd.rs`; `scratch`
/// holds [`Winograd::scratch`] f32.
pub(super) fn winograd(
    arena: &mut [f32],
    packed: &[f32],
    scratch: &mut [f32],
    task: &Winograd<'_>,
) {
    const POSITIONS: usize = Winograd::POSITIONS;
    let channels: usize = task.planes.iter().map(|plane| plane.count).sum();
    let (across, _) = task.tiles();
    let place = |tile: usize| (SIDE * (tile / across), SIDE * (tile % across));
    let chunks = task.chunks(1);
    for all in (0..chunks).map(|chunk| task.chunk(chunk, chunks)) {
        let Range { start, end } = all;
        let tiles = end - start;
        let step = Winograd::step(channels, tiles);
        let (v, m) = scratch.split_at_mut(POSITIONS * step);
        let mut before = 0;
        for plane in task.planes {
            for (tile, c) in
                (0..tiles).flat_map(|t| (0..plane.count).step_by(LANES).map(move |c| (t, c)))
            {
                let out = &mut v[before * tiles + tile * plane.count + c..];
                transform(arena, task, (plane, c), place(start + tile), (out, step));
            }
            before += plane.count;
        }
        for block in task.blocks {
            let lanes = block.lanes;
            for (position, shift) in
                (0..POSITIONS).flat_map(|p| (0..lanes).step_by(LANES).map(move |shift| (p, shift)))
            {
                let u = &packed[block.weights / 4 + position * channels * lanes..];
                let u = (&u[..channels * lanes], lanes, shift);
                let v = &v[position * step..][..channels * tiles];
                let mut first = 0;
                while first < tiles {
                    let m = &mut m[(first * POSITIONS + position) * lanes..];
                    first += match tiles - first {
                        4.. => {
                            product::<4>(task.planes, (v, first, tiles), u, m);
                            4
                        }
                        2.. => {
                            product::<2>(task.planes, (v, first, tiles), u, m);
                            2
                        }
                        _ => {
                            product::<1>(task.planes, (v, first, tiles), u, m);
                            1
                        }
                    };
                }
            }
            for (tile, c) in (0..tiles).flat_map(|t| (0..lanes).step_by(LANES).map(move |c| (t, c)))
            {
                let m = &m[tile * POSITIONS * lanes..][..POSITIONS * lanes];
                finish(arena, packed, task, (block, c), place(start + tile), m);
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
