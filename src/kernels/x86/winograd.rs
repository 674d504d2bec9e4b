//! 3 × 3 convolutions of stride 1 by Winograd's F(2 × 2, 3 × 3): 16 products where the plain sum
//! has 36, in single precision and no less exact than it.
//!
//! Four outputs (a *tile*, 2 × 2) are made of 4 × 4 inputs d and transformed weights U:
//! y = Aᵀ (U ⊙ (Bᵀ d B)) A, where Bᵀ and Aᵀ only add and subtract. Summed over input channels, the
//! middle is a product of matrices for each of the 16 positions: tiles × channels by channels ×
//! outputs, done by the same register block as the plain convolution, with tiles in place of
//! pixels.
//!
//! A chunk of a row of tiles (12 at most) goes through all three stages before the next, so that
//! what passes between them stays in the caches. The order of additions is that of
//! [`super::super::reference::winograd`], for both vector widths.

use std::arch::x86_64::*;

use super::super::task::{Activation, Winograd};
use super::super::team::Share;

macro_rules! winograd {
    (
        $name:ident, $features:literal, tier $tier:ident, vector $Vector:ty, lanes $lanes:literal,
        tiles $tiles:literal, load $load:ident, store $store:ident, add $add:ident, sub $sub:ident
    ) => {
        pub(in super::super) mod $name {
            use super::super::$tier::{gemm, silu};
            use super::*;

            /// Vᵖ = (Bᵀ d B)ᵖ for `tiles` tiles of one plane, `lanes` channels; position p of tile t
            /// goes to `out[p · step + t · lanes]`.
            #[target_feature(enable = $features)]
            unsafe fn input(
                from: *const f32,
                (line, lanes): (usize, usize),
                tiles: usize,
                out: *mut f32,
                step: usize,
            ) {
                // One column after the other: down first, and across from the last four.
                let down = |x: usize, c: usize| -> [$Vector; 4] {
                    let d = [0, 1, 2, 3].map(|y| {
                        // SAFETY: rows 0..4 and columns 0..2 · tiles + 2 of the input were checked.
                        unsafe { $load(from.add(y * line + x * lanes + c)) }
                    });
                    [$sub(d[0], d[2]), $add(d[1], d[2]), $sub(d[2], d[1]), $sub(d[1], d[3])]
                };
                let mut c = 0;
                while c < lanes {
                    let (mut d0, mut d1) = (down(0, c), down(1, c));
                    for t in 0..tiles {
                        let (d2, d3) = (down(2 * t + 2, c), down(2 * t + 3, c));
                        for y in 0..4 {
                            let v = [
                                $sub(d0[y], d2[y]),
                                $add(d1[y], d2[y]),
                                $sub(d2[y], d1[y]),
                                $sub(d1[y], d3[y]),
                            ];
                            for x in 0..4 {
                                // SAFETY: the scratch memory holds 16 · step elements.
                                unsafe {
                                    $store(out.add((4 * y + x) * step + t * lanes + c), v[x])
                                };
                            }
                        }
                        (d0, d1) = (d2, d3);
                    }
                    c += $lanes;
                }
            }

            /// Some rows.
            ///
            /// # Safety
            /// The CPU has the features, every offset of `task` was checked, and `scratch` holds
            /// [`Winograd::scratch`] f32.
            #[target_feature(enable = $features)]
            pub(in super::super::super) unsafe fn conv(
                arena: *mut u8,
                packed: *const u8,
                scratch: *mut f32,
                task: &Winograd<'_>,
                share: &Share,
            ) {
                let channels: usize = task.planes.iter().map(|plane| plane.count).sum();
                let across = task.width.div_ceil(2);
                let down = task.rows.div_ceil(2);
                for ty in 0..down {
                    let mine = |index: usize| share.rows(index, down).contains(&ty);
                    if !(0..task.blocks.len()).any(mine) {
                        continue;
                    }
                    let mut tx = 0;
                    while tx < across {
                        // Chunks of about equal length.
                        let left = across - tx;
                        let tiles = left.div_ceil(left.div_ceil($tiles));
                        let step = channels * tiles;
                        // SAFETY: all places are those that were checked; V takes 16 · step of the
                        // scratch memory and M the 16 · tiles · 32 after the largest V.
                        unsafe {
                            let mut out = scratch;
                            for plane in task.planes {
                                let from =
                                    arena.add(plane.from.of(2 * ty, 2 * tx)).cast_const().cast();
                                let line = plane.from.row / 4;
                                input(from, (line, plane.count), tiles, out, step);
                                out = out.add(plane.count * tiles);
                            }
                            let products = scratch.add(16 * channels * $tiles);
                            for (_, block) in
                                task.blocks.iter().enumerate().filter(|&(i, _)| mine(i))
                            {
                                let weights = packed.add(block.weights).cast();
                                gemm(tiles, task.planes, scratch, weights, products, block.lanes);
                                output(arena, packed, task, block, (ty, tx, tiles), products);
                            }
                        }
                        tx += tiles;
                    }
                }
            }

            /// Y = Aᵀ M A for a chunk of tiles; then bias, activation, residual.
            #[target_feature(enable = $features)]
            unsafe fn output(
                arena: *mut u8,
                packed: *const u8,
                task: &Winograd<'_>,
                block: &super::super::super::task::Block,
                (ty, tx, tiles): (usize, usize, usize),
                products: *const f32,
            ) {
                let lanes = block.lanes;
                for t in 0..tiles {
                    let (y, x) = (2 * ty, 2 * (tx + t));
                    let mut c = 0;
                    while c < lanes {
                        // SAFETY: M holds 16 · tiles · lanes f32, and the outputs within the
                        // task's rows and width were checked.
                        unsafe {
                            let m = |p: usize| $load(products.add((p * tiles + t) * lanes + c));
                            let bias = $load(packed.add(block.bias).cast::<f32>().add(c));
                            let mut s = [[bias; 4]; 2];
                            for j in 0..4 {
                                let (m0, m1, m2, m3) = (m(j), m(4 + j), m(8 + j), m(12 + j));
                                s[0][j] = $add($add(m0, m1), m2);
                                s[1][j] = $sub($sub(m1, m2), m3);
                            }
                            for i in 0..2 {
                                let s = s[i];
                                let ys =
                                    [$add($add(s[0], s[1]), s[2]), $sub($sub(s[1], s[2]), s[3])];
                                for j in 0..2 {
                                    if y + i >= task.rows || x + j >= task.width {
                                        continue;
                                    }
                                    let mut value = $add(ys[j], bias);
                                    if task.act == Activation::Silu {
                                        value = silu(value);
                                    }
                                    if let Some(residual) = block.residual {
                                        let at = residual.of(y + i, x + j) + 4 * c;
                                        value = $add(value, $load(arena.add(at).cast()));
                                    }
                                    let at = block.out.of(y + i, x + j) + 4 * c;
                                    $store(arena.add(at).cast(), value);
                                }
                            }
                        }
                        c += $lanes;
                    }
                }
            }
        }
    };
}

winograd!(
    wide, "avx512f", tier avx512, vector __m512, lanes 16, tiles 12,
    load _mm512_load_ps, store _mm512_store_ps, add _mm512_add_ps, sub _mm512_sub_ps
);
winograd!(
    narrow, "avx2,fma", tier avx2, vector __m256, lanes 8, tiles 6,
    load _mm256_load_ps, store _mm256_store_ps, add _mm256_add_ps, sub _mm256_sub_ps
);
