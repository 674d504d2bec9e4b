//! 12 pixels × 32 channels in 24 zmm registers.
//!
//! Per input element (f32) or pair of elements (bf16): two loads of weights, twelve broadcasts,
//! 24 multiply-adds. That keeps a core's FMA units 98 % busy once it runs, so all that is left to
//! lose is what happens between two blocks: the sums go to a scratch array on the stack (loops
//! over an array of registers that are not unrolled make the compiler keep all of them in memory,
//! also inside the K loop), and from there through bias, SiLU and residual to the arena.

use std::arch::x86_64::*;

use super::super::math::{EIGHTHS, EXP2, LIMIT, NEG_LOG2_E, TANH, TANH_END};
use super::super::task::{Activation, Block, Conv, KStep, Store, Winograd};
use super::super::team::Share;

/// x · sigmoid(x), operation for operation as [`super::super::math::silu`].
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn silu(x: __m512) -> __m512 {
    let t = _mm512_mul_ps(x, _mm512_set1_ps(NEG_LOG2_E));
    // The order of operands lets a NaN pass; it reaches the result by `x` in any case.
    let t = _mm512_min_ps(_mm512_set1_ps(LIMIT), _mm512_max_ps(_mm512_set1_ps(-LIMIT), t));
    let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(t);
    let f = _mm512_sub_ps(t, n);
    let mut p = _mm512_set1_ps(EXP2[0]);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(EXP2[1]));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(EXP2[2]));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(EXP2[3]));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(EXP2[4]));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(EXP2[5]));
    // n lies within ±125 and p within [0.7, 1.5]: adding to the exponent and scaling agree.
    let e = _mm512_scalef_ps(p, n);
    _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0), e))
}

/// The same more coarsely, operation for operation as [`super::super::math::silu_coarse`].
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn silu_coarse(x: __m512) -> __m512 {
    silu_coarse_of_twice(_mm512_mul_ps(x, _mm512_set1_ps(0.5)))
}

/// [`silu_coarse`] of 2 · `h`.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn silu_coarse_of_twice(h: __m512) -> __m512 {
    let line = |of: usize| {
        // SAFETY: 16 of the table's 32 numbers each.
        let [low, high] = [0, 16].map(|at| unsafe { _mm512_loadu_ps(TANH[of].as_ptr().add(at)) });
        (low, high)
    };
    let (starts, slopes) = (line(0), line(1));
    let size = _mm512_abs_ps(h);
    let t = _mm512_min_ps(size, _mm512_set1_ps(TANH_END));
    // The permutation looks at the lowest five bits only.
    let index = _mm512_castps_si512(_mm512_add_ps(t, _mm512_set1_ps(EIGHTHS)));
    let start = _mm512_permutex2var_ps(starts.0, index, starts.1);
    let slope = _mm512_permutex2var_ps(slopes.0, index, slopes.1);
    _mm512_fmadd_ps(size, _mm512_fmadd_ps(t, slope, start), h)
}

/// 16 rows of 16 numbers, `step` apart, as columns.
///
/// # Safety
/// The CPU has AVX-512 F, and the numbers are there.
#[target_feature(enable = "avx512f")]
pub(in super::super) unsafe fn transpose(from: *const f32, step: usize, to: &mut [[f32; 16]; 16]) {
    // SAFETY: the caller's.
    let rows: [__m512; 16] =
        std::array::from_fn(|i| unsafe { _mm512_loadu_ps(from.add(i * step)) });
    // Each pass doubles how many numbers of a column are neighbours: 2, 4, 8, 16.
    let mut a = [_mm512_setzero_ps(); 16];
    for i in 0..8 {
        a[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    }
    let pairs = |x: __m512| _mm512_castps_pd(x);
    let mut b = [_mm512_setzero_ps(); 16];
    for i in 0..4 {
        for half in 0..2 {
            let (x, y) = (pairs(a[4 * i + half]), pairs(a[4 * i + half + 2]));
            b[4 * i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
            b[4 * i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
        }
    }
    // b[4 i + j]: of rows 4 i..4 i + 4 the columns j, j + 4, j + 8 and j + 12, a quarter each.
    for j in 0..4 {
        let even_low = _mm512_shuffle_f32x4::<0x88>(b[j], b[4 + j]);
        let odd_low = _mm512_shuffle_f32x4::<0xdd>(b[j], b[4 + j]);
        let even_high = _mm512_shuffle_f32x4::<0x88>(b[8 + j], b[12 + j]);
        let odd_high = _mm512_shuffle_f32x4::<0xdd>(b[8 + j], b[12 + j]);
        let columns = [
            (j, _mm512_shuffle_f32x4::<0x88>(even_low, even_high)),
            (j + 4, _mm512_shuffle_f32x4::<0x88>(odd_low, odd_high)),
            (j + 8, _mm512_shuffle_f32x4::<0xdd>(even_low, even_high)),
            (j + 12, _mm512_shuffle_f32x4::<0xdd>(odd_low, odd_high)),
        ];
        for (column, values) in columns {
            // SAFETY: 16 f32.
            unsafe { _mm512_storeu_ps(to[column].as_mut_ptr(), values) };
        }
    }
}

/// One module of kernels: the two differ in what a unit of input is (one f32, or two bf16 that
/// are multiplied and added together) and in how results are stored.
macro_rules! tier {
    ($name:ident, $features:literal, $bf16:literal, $silu:path, $dot:expr, $store:expr) => {
        pub(in super::super) mod $name {
            use super::*;

            /// `acc += a · w` for every element of a run, K-step by K-step.
            #[inline]
            #[target_feature(enable = $features)]
            pub(super) unsafe fn run<const PX: usize, const NV: usize, const STEP: usize>(
                acc: &mut [[__m512; NV]; PX],
                mut from: *const f32,
                mut weights: *const f32,
                units: usize,
                step: usize,
            ) -> *const f32 {
                // Known to the compiler but for shapes that no YOLOv8 has.
                let step = if STEP == 0 { step } else { STEP };
                for _ in 0..units {
                    let mut w = [_mm512_setzero_ps(); NV];
                    for v in 0..NV {
                        // SAFETY: weights of this unit, by the caller's promise.
                        w[v] = unsafe { _mm512_load_ps(weights.add(16 * v)) };
                    }
                    for p in 0..PX {
                        // SAFETY: an element of pixel p, by the caller's promise.
                        let a = _mm512_set1_ps(unsafe { from.add(p * step).read_unaligned() });
                        for v in 0..NV {
                            acc[p][v] = $dot(acc[p][v], a, w[v]);
                        }
                    }
                    // SAFETY: one past the last unit at most.
                    unsafe {
                        from = from.add(1);
                        weights = weights.add(16 * NV);
                    }
                }
                weights
            }

            /// `PX` pixels from `x` on, of row `row`.
            #[target_feature(enable = $features)]
            unsafe fn block<const PX: usize, const NV: usize>(
                arena: *mut u8,
                packed: *const u8,
                task: &Conv<'_>,
                block: &Block,
                row: usize,
                x: usize,
            ) {
                let mut acc = [[_mm512_setzero_ps(); NV]; PX];
                if let Some(init) = block.init {
                    for p in 0..PX {
                        for v in 0..NV {
                            let at = init.of((row + usize::from(task.odd)) / 2, x + p) + 64 * v;
                            // SAFETY: within the arena, as `Kernels::conv` checked.
                            acc[p][v] = unsafe { _mm512_load_ps(arena.add(at).cast()) };
                        }
                    }
                } else {
                    for v in 0..NV {
                        let from = packed.wrapping_add(block.bias + 64 * v);
                        // SAFETY: the block's biases lie in the packed weights, as checked.
                        let bias = unsafe { _mm512_load_ps(from.cast()) };
                        for p in 0..PX {
                            acc[p][v] = bias;
                        }
                    }
                }
                // SAFETY: offset checked by `Kernels::conv`.
                let mut weights: *const f32 = unsafe { packed.add(block.weights).cast() };
                for k in task.ksteps {
                    let units = if $bf16 { k.count / 2 } else { k.count };
                    // SAFETY: `Kernels::conv` checked the last element that any pixel of the task
                    // reads from this K-step, and the weights of all of them.
                    weights = unsafe {
                        let from = arena.add(k.from.of(row, x)).cast_const().cast();
                        match k.from.px {
                            128 => run::<PX, NV, 32>(&mut acc, from, weights, units, 0),
                            256 => run::<PX, NV, 64>(&mut acc, from, weights, units, 0),
                            64 => run::<PX, NV, 16>(&mut acc, from, weights, units, 0),
                            32 => run::<PX, NV, 8>(&mut acc, from, weights, units, 0),
                            24 => run::<PX, NV, 6>(&mut acc, from, weights, units, 0),
                            12 => run::<PX, NV, 3>(&mut acc, from, weights, units, 0),
                            px => run::<PX, NV, 0>(&mut acc, from, weights, units, px / 4),
                        }
                    };
                }
                let mut sums = Sums([0.0; 12 * 32]);
                for p in 0..PX {
                    for v in 0..NV {
                        // SAFETY: PX · NV · 16 is at most 384, and `Sums` is aligned to 64.
                        unsafe {
                            _mm512_store_ps(sums.0.as_mut_ptr().add((p * NV + v) * 16), acc[p][v])
                        };
                    }
                }
                // SAFETY: by the caller's promise, passed on.
                unsafe { finish::<NV>(arena, task, block, row, x, PX, &sums) };
            }

            /// Activation, residual and store.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn finish<const NV: usize>(
                arena: *mut u8,
                task: &Conv<'_>,
                block: &Block,
                row: usize,
                x: usize,
                pixels: usize,
                sums: &Sums,
            ) {
                for p in 0..pixels {
                    for v in 0..NV {
                        // SAFETY: as in `block`; residual and output were checked for all pixels
                        // of the task.
                        unsafe {
                            let mut y = _mm512_load_ps(sums.0.as_ptr().add((p * NV + v) * 16));
                            if task.act == Activation::Silu {
                                y = $silu(y);
                            }
                            if let Some(residual) = block.residual {
                                y = _mm512_add_ps(y, load(arena.add(residual.of(row, x + p)), v));
                            }
                            let out = arena.add(block.out.of(row, x + p));
                            match task.store {
                                Store::Element => $store(out, v, y),
                                Store::F32 => _mm512_store_ps(out.add(64 * v).cast(), y),
                                Store::F32Twice => {
                                    _mm512_store_ps(out.add(64 * v).cast(), y);
                                    let next = out.add(block.out.px / 2 + 64 * v);
                                    _mm512_store_ps(next.cast(), y);
                                }
                            }
                        }
                    }
                }
            }

            /// 16 activations.
            #[inline]
            #[target_feature(enable = $features)]
            pub(in super::super) unsafe fn load(from: *const u8, v: usize) -> __m512 {
                // SAFETY: the caller's.
                unsafe {
                    if $bf16 {
                        let half = _mm256_load_si256(from.add(32 * v).cast());
                        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)))
                    } else {
                        _mm512_load_ps(from.add(64 * v).cast())
                    }
                }
            }

            /// Some rows of a convolution.
            ///
            /// # Safety
            /// The CPU has the features, and every offset of `task` was checked.
            #[target_feature(enable = $features)]
            pub(in super::super::super) unsafe fn conv(
                arena: *mut u8,
                packed: *const u8,
                task: &Conv<'_>,
                share: &Share,
            ) {
                for (index, one) in task.blocks.iter().enumerate() {
                    for row in share.rows(index, task.rows) {
                        let mut x = 0;
                        while x < task.width {
                            let left = task.width - x;
                            // SAFETY: x + pixels ≤ width, and the caller promised the rest.
                            x += unsafe {
                                macro_rules! pixels {
                                    ($px:literal) => {{
                                        match one.lanes {
                                            32 => block::<$px, 2>(arena, packed, task, one, row, x),
                                            _ => block::<$px, 1>(arena, packed, task, one, row, x),
                                        }
                                        $px
                                    }};
                                }
                                match left {
                                    16 => pixels!(8),
                                    12.. => pixels!(12),
                                    8.. => pixels!(8),
                                    4.. => pixels!(4),
                                    2.. => pixels!(2),
                                    _ => pixels!(1),
                                }
                            };
                        }
                    }
                }
            }
        }
    };
}

/// The sums of one block, on the way from registers to memory.
#[repr(align(64))]
struct Sums([f32; 12 * 32]);

tier!(
    f32,
    "avx512f",
    false,
    silu,
    |acc, a, w| _mm512_fmadd_ps(a, w, acc),
    |to: *mut u8, v: usize, y| { _mm512_store_ps(to.add(64 * v).cast(), y) }
);
tier!(
    bf16,
    "avx512f,avx512bf16",
    true,
    silu_coarse,
    |acc, a: __m512, w: __m512| {
        // SAFETY: the same 512 bits, read as 32 bf16.
        let (a, w) = unsafe {
            (std::mem::transmute::<__m512, __m512bh>(a), std::mem::transmute::<__m512, __m512bh>(w))
        };
        _mm512_dpbf16_ps(acc, a, w)
    },
    store_bf16
);

/// Stores 16 activations, rounded.
///
/// # Safety
/// The CPU has the features; vector `v` of `to` is memory that nobody else has, aligned to 32 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn store_bf16(to: *mut u8, v: usize, y: __m512) {
    // SAFETY: the two types are 256 bits of one meaning; the place is the caller's promise.
    unsafe {
        let half: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(y));
        _mm256_store_si256(to.add(32 * v).cast(), half);
    }
}

/// The 36 products of a chunk of Winograd tiles: M = V · U, position by position.
///
/// # Safety
/// V holds 36 · `v.1` f32 (by position; there by plane, tile, channel), U 36 · channels · lanes, and
/// M has room for tiles · 36 · lanes (by tile, position, lane); all are aligned to 64 bytes.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn gemm(
    tiles: usize,
    planes: &[KStep],
    v: (*const f32, usize),
    u: *const f32,
    m: *mut f32,
    lanes: usize,
) {
    let channels: usize = planes.iter().map(|plane| plane.count).sum();
    let parts = tiles.div_ceil(12);
    for position in 0..Winograd::POSITIONS {
        for part in 0..parts {
            let (first, end) = (tiles * part / parts, tiles * (part + 1) / parts);
            // SAFETY: the caller's.
            let (v, u, m) = unsafe {
                (
                    v.0.add(position * v.1),
                    u.add(position * channels * lanes),
                    m.add((first * Winograd::POSITIONS + position) * lanes),
                )
            };
            macro_rules! tiles {
                ($($tiles:literal)*) => {
                    match (end - first, lanes) {
                        $(
                            // SAFETY: the caller's.
                            ($tiles, 32) => unsafe { product::<$tiles, 2>(planes, (v, first, tiles), u, m) },
                            // SAFETY: the caller's.
                            ($tiles, _) => unsafe { product::<$tiles, 1>(planes, (v, first, tiles), u, m) },
                        )*
                        (tiles, _) => unreachable!("{tiles} tiles at once. This is a bug."),
                    }
                };
            }
            tiles!(1 2 3 4 5 6 7 8 9 10 11 12);
        }
    }
}

/// One position of the `T` tiles from `first` of `tiles` on.
#[target_feature(enable = "avx512f")]
unsafe fn product<const T: usize, const NV: usize>(
    planes: &[KStep],
    (mut v, first, tiles): (*const f32, usize, usize),
    mut u: *const f32,
    m: *mut f32,
) {
    let mut acc = [[_mm512_setzero_ps(); NV]; T];
    for plane in planes {
        // SAFETY: the caller's.
        unsafe {
            let from = v.add(first * plane.count);
            u = match plane.count {
                32 => f32::run::<T, NV, 32>(&mut acc, from, u, 32, 0),
                _ => f32::run::<T, NV, 16>(&mut acc, from, u, 16, 0),
            };
            v = v.add(tiles * plane.count);
        }
    }
    for t in 0..T {
        for n in 0..NV {
            // SAFETY: the caller's.
            unsafe { _mm512_store_ps(m.add((t * Winograd::POSITIONS * NV + n) * 16), acc[t][n]) };
        }
    }
}
