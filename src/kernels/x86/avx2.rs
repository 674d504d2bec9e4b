//! 6 pixels × 16 channels in 12 ymm registers; a block of 32 channels is done in two halves.
//!
//! The sums and the epilogue are those of the AVX-512 kernels, operation for operation.

use std::arch::x86_64::*;

use super::super::math::{EXP2, LIMIT, NEG_LOG2_E};
use super::super::task::{Activation, Block, Conv, KStep, Store, Winograd};
use super::super::team::Share;

#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn silu(x: __m256) -> __m256 {
    let t = _mm256_mul_ps(x, _mm256_set1_ps(NEG_LOG2_E));
    let t = _mm256_min_ps(_mm256_set1_ps(LIMIT), _mm256_max_ps(_mm256_set1_ps(-LIMIT), t));
    let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(t);
    let f = _mm256_sub_ps(t, n);
    let mut p = _mm256_set1_ps(EXP2[0]);
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(EXP2[1]));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(EXP2[2]));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(EXP2[3]));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(EXP2[4]));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(EXP2[5]));
    let n = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(n));
    let e = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), n));
    _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1.0), e))
}

#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn run<const PX: usize, const STEP: usize>(
    acc: &mut [[__m256; 2]; PX],
    mut from: *const f32,
    mut weights: *const f32,
    (units, step, lanes): (usize, usize, usize),
) -> *const f32 {
    let step = if STEP == 0 { step } else { STEP };
    for _ in 0..units {
        // SAFETY: weights of this unit, by the caller's promise.
        let w = unsafe { [_mm256_load_ps(weights), _mm256_load_ps(weights.add(8))] };
        for p in 0..PX {
            // SAFETY: an element of pixel p, by the caller's promise.
            let a = _mm256_set1_ps(unsafe { *from.add(p * step) });
            acc[p][0] = _mm256_fmadd_ps(a, w[0], acc[p][0]);
            acc[p][1] = _mm256_fmadd_ps(a, w[1], acc[p][1]);
        }
        // SAFETY: one past the last unit at most (the second half of a block of 32 begins 16 later,
        // and ends with the block).
        unsafe {
            from = from.add(1);
            weights = weights.wrapping_add(lanes);
        }
    }
    weights
}

/// `PX` pixels from `x` on, of row `row`, channels `16 · half ..` of the block.
#[target_feature(enable = "avx2,fma")]
unsafe fn block<const PX: usize>(
    arena: *mut u8,
    packed: *const u8,
    task: &Conv<'_>,
    block: &Block,
    (row, x, half): (usize, usize, usize),
) {
    let shift = 64 * half;
    let mut acc = [[_mm256_setzero_ps(); 2]; PX];
    // SAFETY: biases and initial sums lie where `Kernels::conv` checked them.
    unsafe {
        if let Some(init) = block.init {
            for p in 0..PX {
                let at = init.of((row + usize::from(task.odd)) / 2, x + p) + shift;
                acc[p][0] = _mm256_load_ps(arena.add(at).cast());
                acc[p][1] = _mm256_load_ps(arena.add(at + 32).cast());
            }
        } else {
            let bias: *const f32 = packed.add(block.bias + shift).cast();
            for p in 0..PX {
                acc[p] = [_mm256_load_ps(bias), _mm256_load_ps(bias.add(8))];
            }
        }
    }
    // SAFETY: offset checked by `Kernels::conv`.
    let mut weights: *const f32 = unsafe { packed.add(block.weights + shift).cast() };
    for k in task.ksteps {
        // SAFETY: `Kernels::conv` checked the last element that any pixel of the task reads from
        // this K-step, and the weights of all of them.
        weights = unsafe {
            let from = arena.add(k.from.of(row, x)).cast_const().cast();
            let rest = (k.count, k.from.px / 4, block.lanes);
            match k.from.px {
                128 => run::<PX, 32>(&mut acc, from, weights, rest),
                256 => run::<PX, 64>(&mut acc, from, weights, rest),
                64 => run::<PX, 16>(&mut acc, from, weights, rest),
                24 => run::<PX, 6>(&mut acc, from, weights, rest),
                _ => run::<PX, 0>(&mut acc, from, weights, rest),
            }
        };
    }
    let mut sums = Sums([0.0; 6 * 16]);
    for p in 0..PX {
        // SAFETY: PX is at most 6, and `Sums` is aligned to 32.
        unsafe {
            _mm256_store_ps(sums.0.as_mut_ptr().add(p * 16), acc[p][0]);
            _mm256_store_ps(sums.0.as_mut_ptr().add(p * 16 + 8), acc[p][1]);
        }
    }
    for p in 0..PX {
        for v in 0..2 {
            let shift = shift + 32 * v;
            // SAFETY: residual and output were checked for all pixels of the task.
            unsafe {
                let mut y = _mm256_load_ps(sums.0.as_ptr().add(p * 16 + 8 * v));
                if task.act == Activation::Silu {
                    y = silu(y);
                }
                if let Some(residual) = block.residual {
                    let at = residual.of(row, x + p) + shift;
                    y = _mm256_add_ps(y, _mm256_load_ps(arena.add(at).cast()));
                }
                let out = arena.add(block.out.of(row, x + p) + shift);
                _mm256_store_ps(out.cast(), y);
                if task.store == Store::F32Twice {
                    _mm256_store_ps(out.add(block.out.px / 2).cast(), y);
                }
            }
        }
    }
}

/// The sums of one block, on the way from registers to memory.
#[repr(align(32))]
struct Sums([f32; 6 * 16]);

/// Some rows of a convolution.
///
/// # Safety
/// The CPU has AVX2 and FMA, and every offset of `task` was checked.
#[target_feature(enable = "avx2,fma")]
pub(in super::super) unsafe fn conv(
    arena: *mut u8,
    packed: *const u8,
    task: &Conv<'_>,
    share: &Share,
) {
    for (index, one) in task.blocks.iter().enumerate() {
        for row in share.rows(index, task.rows) {
            for half in 0..one.lanes / 16 {
                let mut x = 0;
                while x < task.width {
                    let at = (row, x, half);
                    // SAFETY: x + pixels ≤ width, and the caller promised the rest.
                    x += unsafe {
                        macro_rules! pixels {
                            ($px:literal) => {{
                                block::<$px>(arena, packed, task, one, at);
                                $px
                            }};
                        }
                        match task.width - x {
                            8 => pixels!(4),
                            10 => pixels!(5),
                            6.. => pixels!(6),
                            5 => pixels!(5),
                            4 => pixels!(4),
                            2.. => pixels!(2),
                            _ => pixels!(1),
                        }
                    };
                }
            }
        }
    }
}

/// The 36 products of a chunk of Winograd tiles: M = V · U, position by position.
///
/// # Safety
/// As [`super::avx512::gemm`], but for the features, and aligned to 32 bytes.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn gemm(
    tiles: usize,
    planes: &[KStep],
    v: (*const f32, usize),
    u: *const f32,
    m: *mut f32,
    lanes: usize,
) {
    let channels: usize = planes.iter().map(|plane| plane.count).sum();
    let parts = tiles.div_ceil(6);
    for position in 0..Winograd::POSITIONS {
        for half in 0..lanes / 16 {
            for part in 0..parts {
                let (first, end) = (tiles * part / parts, tiles * (part + 1) / parts);
                // SAFETY: the caller's.
                let (v, u, m) = unsafe {
                    (
                        (v.0.add(position * v.1), first, tiles),
                        u.add(position * channels * lanes + 16 * half),
                        m.add((first * Winograd::POSITIONS + position) * lanes + 16 * half),
                    )
                };
                macro_rules! tiles {
                    ($($tiles:literal)*) => {
                        match end - first {
                            // SAFETY: the caller's.
                            $($tiles => unsafe { product::<$tiles>(planes, v, u, m, lanes) },)*
                            tiles => unreachable!("{tiles} tiles at once. This is a bug."),
                        }
                    };
                }
                tiles!(1 2 3 4 5 6);
            }
        }
    }
}

/// One position of the `T` tiles from `first` of `tiles` on, 16 lanes.
#[target_feature(enable = "avx2,fma")]
unsafe fn product<const T: usize>(
    planes: &[KStep],
    (mut v, first, tiles): (*const f32, usize, usize),
    mut u: *const f32,
    m: *mut f32,
    lanes: usize,
) {
    let mut acc = [[_mm256_setzero_ps(); 2]; T];
    for plane in planes {
        // SAFETY: the caller's.
        unsafe {
            let from = v.add(first * plane.count);
            u = match plane.count {
                32 => run::<T, 32>(&mut acc, from, u, (32, 0, lanes)),
                _ => run::<T, 16>(&mut acc, from, u, (16, 0, lanes)),
            };
            v = v.add(tiles * plane.count);
        }
    }
    for t in 0..T {
        // SAFETY: the caller's.
        unsafe {
            let m = m.add(t * Winograd::POSITIONS * lanes);
            _mm256_store_ps(m, acc[t][0]);
            _mm256_store_ps(m.add(8), acc[t][1]);
        }
    }
}
