//! 3 × 3 convolutions of stride 1 by Winograd's F(4 × 4, 3 × 3): 36 products where the plain sum
//! has 144, in single precision.
//!
//! Sixteen outputs (a *tile*, 4 × 4) are made of 6 × 6 inputs d and transformed weights U:
//! y = Aᵀ (U ⊙ (Bᵀ d B)) A. Summed over input channels, the middle is a product of matrices for each
//! of the 36 positions: tiles × channels by channels × outputs, done by the same register block as
//! the plain convolution, with tiles in place of pixels.
//!
//! A chunk of tiles goes through all three stages before the next, so that what passes between them
//! stays in the caches, and weights are read once for all its tiles. The order of operations is that
//! of [`super::super::reference::winograd`], for both vector widths.
//!
//! Where activations are bf16, only reading and writing them differs. That is not a compromise: 36
//! f32 products are done in half the time of 144 bf16 ones, two at a time, and round less.

use std::arch::x86_64::*;

use super::super::math::{A, B, PRODUCT, SUM};
use super::super::task::{Activation, Block, Winograd};
use super::super::team::Share;

const SIDE: usize = Winograd::SIDE;
const REACH: usize = Winograd::REACH;
const POSITIONS: usize = Winograd::POSITIONS;

macro_rules! winograd {
    (
        $name:ident, $features:literal, vector $Vector:ty, lanes $lanes:literal, element $size:literal,
        gemm $gemm:path, silu $silu:path, set $set:ident, load $load:ident, store $store:ident, get $get:expr, put $put:expr,
        add $add:ident, sub $sub:ident, mul $mul:ident, fma $fma:ident, fnma $fnma:ident
    ) => {
        pub(in super::super) mod $name {
            use super::*;

            /// Bᵀ, as [`super::super::super::math::winograd_input`].
            #[inline]
            #[target_feature(enable = $features)]
            fn forward(d: [$Vector; REACH]) -> [$Vector; REACH] {
                let (aa, bb) = ($set(A * A), $set(B * B));
                let (even_a, odd_a) = ($fnma(bb, d[2], d[4]), $fnma(bb, d[1], d[3]));
                let (even_b, odd_b) = ($fnma(aa, d[2], d[4]), $fnma(aa, d[1], d[3]));
                let (a, b, sum, product) = ($set(A), $set(B), $set(SUM), $set(PRODUCT));
                [
                    $fma(product, d[0], $fnma(sum, d[2], d[4])),
                    $fma(a, odd_a, even_a),
                    $fnma(a, odd_a, even_a),
                    $fma(b, odd_b, even_b),
                    $fnma(b, odd_b, even_b),
                    $fma(product, d[1], $fnma(sum, d[3], d[5])),
                ]
            }

            /// Aᵀ, as [`super::super::super::math::winograd_output`].
            #[inline]
            #[target_feature(enable = $features)]
            fn backward(m: [$Vector; REACH]) -> [$Vector; SIDE] {
                let (even_a, odd_a) = ($add(m[1], m[2]), $sub(m[1], m[2]));
                let (even_b, odd_b) = ($add(m[3], m[4]), $sub(m[3], m[4]));
                [
                    $add(m[0], $add(even_a, even_b)),
                    $fma($set(B), odd_b, $mul($set(A), odd_a)),
                    $fma($set(B * B), even_b, $mul($set(A * A), even_a)),
                    $fma($set(B * B * B), odd_b, $fma($set(A * A * A), odd_a, m[5])),
                ]
            }

            /// Vᵖ = (Bᵀ d B)ᵖ for `tiles` neighbouring tiles of one plane, `lanes` channels; position
            /// p of tile t goes to `out[p · step + t · lanes]`. Of the inputs, rows and columns before
            /// `there` exist; the others are zero.
            #[target_feature(enable = $features)]
            unsafe fn input<const EDGE: bool>(
                from: *const u8,
                (line, lanes): (usize, usize),
                there: (usize, usize),
                tiles: usize,
                out: *mut f32,
                step: usize,
            ) {
                // Two columns of each tile are those of the next one.
                let mut columns = [[$set(0.0); REACH]; REACH];
                let mut c = 0;
                while c < lanes {
                    for tile in 0..tiles {
                        let first = if tile == 0 { 0 } else { REACH - SIDE };
                        if first > 0 {
                            (columns[0], columns[1]) = (columns[4], columns[5]);
                        }
                        for x in first..REACH {
                            let (x, mut d) = (SIDE * tile + x, [$set(0.0); REACH]);
                            for y in 0..REACH {
                                if !EDGE || (y < there.0 && x < there.1) {
                                    // SAFETY: this input exists, and all that exist were checked.
                                    d[y] = unsafe {
                                        $get(from.add(y * line + (x * lanes + c) * $size))
                                    };
                                }
                            }
                            columns[x - SIDE * tile] = forward(d);
                        }
                        for y in 0..REACH {
                            let mut d = [$set(0.0); REACH];
                            for x in 0..REACH {
                                d[x] = columns[x][y];
                            }
                            let v = forward(d);
                            for x in 0..REACH {
                                // SAFETY: the scratch memory holds 36 · step elements.
                                unsafe {
                                    $store(out.add((REACH * y + x) * step + tile * lanes + c), v[x])
                                };
                            }
                        }
                    }
                    c += $lanes;
                }
            }

            /// A share of so many chunks.
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
                chunks: usize,
                share: &Share,
            ) {
                let channels: usize = task.planes.iter().map(|plane| plane.count).sum();
                let (across, _) = task.tiles();
                for chunk in 0..chunks {
                    let mine = |index: usize| share.rows(index, chunks).contains(&chunk);
                    if !(0..task.blocks.len()).any(mine) {
                        continue;
                    }
                    let all = task.chunk(chunk, chunks);
                    let tiles = all.len();
                    let step = Winograd::step(channels, tiles);
                    let mut tile = all.start;
                    while tile < all.end {
                        // Those in one row of tiles.
                        let (ty, tx) = (tile / across, tile % across);
                        let row = (all.end - tile).min(across - tx);
                        let there = (task.rows + 2 - SIDE * ty, task.width + 2 - SIDE * tx);
                        let edge = there.0 < REACH || there.1 < SIDE * row + 2;
                        let mut before = 0;
                        for plane in task.planes {
                            let lanes = plane.count;
                            let at = before * tiles + (tile - all.start) * lanes;
                            before += lanes;
                            // SAFETY: the inputs that exist were checked; V takes 36 · step of the
                            // scratch memory.
                            unsafe {
                                let out = scratch.add(at);
                                let from = arena.add(plane.from.of(SIDE * ty, SIDE * tx));
                                let line = (plane.from.row, lanes);
                                if edge {
                                    input::<true>(from, line, there, row, out, step);
                                } else {
                                    input::<false>(from, line, there, row, out, step);
                                }
                            }
                        }
                        tile += row;
                    }
                    for (_, block) in task.blocks.iter().enumerate().filter(|&(i, _)| mine(i)) {
                        // SAFETY: V is there, the weights were checked, and M takes the 36 · tiles ·
                        // 32 after V.
                        unsafe {
                            let weights = packed.add(block.weights).cast();
                            let products = scratch.add(POSITIONS * step);
                            $gemm(
                                tiles,
                                task.planes,
                                (scratch, step),
                                weights,
                                products,
                                block.lanes,
                            );
                            for (index, tile) in all.clone().enumerate() {
                                let products = products.add(index * POSITIONS * block.lanes);
                                output(arena, packed, task, block, tile, products);
                            }
                        }
                    }
                }
            }

            /// Y = Aᵀ M A for a tile; then bias, activation, residual.
            #[target_feature(enable = $features)]
            unsafe fn output(
                arena: *mut u8,
                packed: *const u8,
                task: &Winograd<'_>,
                block: &Block,
                tile: usize,
                products: *const f32,
            ) {
                let (across, _) = task.tiles();
                let (y, x) = (SIDE * (tile / across), SIDE * (tile % across));
                let (rows, width) = ((task.rows - y).min(SIDE), (task.width - x).min(SIDE));
                let mut c = 0;
                while c < block.lanes {
                    // SAFETY: M holds 36 · lanes f32 of this tile, and biases, residuals and outputs
                    // within the task's rows and width were checked.
                    unsafe {
                        let bias = $load(packed.add(block.bias).cast::<f32>().add(c));
                        let mut across = [[$set(0.0); REACH]; SIDE];
                        for j in 0..REACH {
                            let mut m = [$set(0.0); REACH];
                            for i in 0..REACH {
                                m[i] = $load(products.add((REACH * i + j) * block.lanes + c));
                            }
                            let down = backward(m);
                            for i in 0..SIDE {
                                across[i][j] = down[i];
                            }
                        }
                        for i in 0..SIDE {
                            let out = backward(across[i]);
                            if i >= rows {
                                break;
                            }
                            for j in 0..SIDE {
                                if j >= width {
                                    break;
                                }
                                let mut value = $add(out[j], bias);
                                if task.act == Activation::Silu {
                                    value = $silu(value);
                                }
                                if let Some(residual) = block.residual {
                                    let at = residual.of(y + i, x + j) + $size * c;
                                    value = $add(value, $get(arena.add(at)));
                                }
                                $put(arena.add(block.out.of(y + i, x + j) + $size * c), value);
                            }
                        }
                    }
                    c += $lanes;
                }
            }
        }
    };
}

winograd!(
    wide, "avx512f", vector __m512, lanes 16, element 4,
    gemm super::super::avx512::gemm, silu super::super::avx512::silu,
    set _mm512_set1_ps, load _mm512_load_ps, store _mm512_store_ps,
    get |from: *const u8| _mm512_load_ps(from.cast()),
    put |to: *mut u8, value| _mm512_store_ps(to.cast(), value),
    add _mm512_add_ps, sub _mm512_sub_ps, mul _mm512_mul_ps, fma _mm512_fmadd_ps, fnma _mm512_fnmadd_ps
);
winograd!(
    half, "avx512f,avx512bf16", vector __m512, lanes 16, element 2,
    gemm super::super::avx512::gemm, silu super::super::avx512::silu_coarse,
    set _mm512_set1_ps, load _mm512_load_ps, store _mm512_store_ps,
    get |from: *const u8| super::super::avx512::bf16::load(from, 0),
    put |to: *mut u8, value| super::super::avx512::store_bf16(to, 0, value),
    add _mm512_add_ps, sub _mm512_sub_ps, mul _mm512_mul_ps, fma _mm512_fmadd_ps, fnma _mm512_fnmadd_ps
);
winograd!(
    narrow, "avx2,fma", vector __m256, lanes 8, element 4,
    gemm super::super::avx2::gemm, silu super::super::avx2::silu,
    set _mm256_set1_ps, load _mm256_load_ps, store _mm256_store_ps,
    get |from: *const u8| _mm256_load_ps(from.cast()),
    put |to: *mut u8, value| _mm256_store_ps(to.cast(), value),
    add _mm256_add_ps, sub _mm256_sub_ps, mul _mm256_mul_ps, fma _mm256_fmadd_ps, fnma _mm256_fnmadd_ps
);
