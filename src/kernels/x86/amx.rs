//! Tiles of 16 rows × 64 bytes: 32 pixels × 32 channels in four of them.
//!
//! A tile of input is 16 pixels × 32 bf16, one cache line each; a tile of weights is 16 pairs of
//! inputs × 16 channels; `tdpbf16ps` multiplies the two into a tile of 16 × 16 sums. So a K-step
//! here is always one line (the packer pads with zero weights), and an element that it reads but
//! does not mean must be finite: 0 · NaN is NaN.
//!
//! - The sums begin with the bias, loaded with a stride of 0, or with the sums of another product.
//! - Where rows of input and output are equally far apart in pixels, rows are not cut at their
//!   ends: the pixel between two rows is computed too, and zeroed afterwards. At 20 pixels a row
//!   that is 21 of 21 useful tiles' rows, not 20 of 32.
//! - The sums of a block go through activation and store while the next block multiplies, a few
//!   pixels per K-step: tiles and vectors are different units.
//! - Weights that do not stay in the first-level cache are loaded with `tileloaddt1`, which does
//!   not try to keep them there.

use std::arch::asm;
use std::arch::x86_64::*;
use std::cell::Cell;

use super::super::task::{Activation, Block, Conv, Place, Store};
use super::super::team::Share;
use super::avx512::silu_coarse;

/// Rows of a tile: pixels.
const ROWS: usize = 16;
/// Bytes of a tile.
const TILE: usize = 1024;
/// Weights of a block beyond this are streamed past the first-level cache.
const STREAM: usize = 16 << 10;

/// The layout of tile memory: eight tiles of 16 rows × 64 bytes.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

static CONFIG: Config = Config {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

thread_local! {
    /// Whether this thread's tiles are configured.
    static CONFIGURED: Cell<bool> = const { Cell::new(false) };
}

/// Gives the tiles back: with them configured, the kernel saves 8 KB more whenever it switches to
/// another thread.
///
/// # Safety
/// The CPU has AMX and this process may use it.
pub(in super::super) unsafe fn release() {
    if CONFIGURED.replace(false) {
        // SAFETY: the caller's; no sums are kept in tiles between tasks.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

fn configure() {
    if !CONFIGURED.replace(true) {
        // SAFETY: only `conv` calls this, whose caller promised AMX; the configuration is 64 bytes
        // of a valid form.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, readonly, preserves_flags));
        }
    }
}

/// The four tiles of sums, from memory: `at[m][n]`, rows `step` bytes apart.
#[inline(always)]
unsafe fn begin<const MT: usize, const NT: usize>(at: [[*const u8; 2]; 2], step: usize) {
    // SAFETY: the caller checked 16 rows of 64 bytes behind each pointer. Tiles are no registers
    // the compiler uses, so they keep their contents from one block of assembly to the next.
    unsafe {
        macro_rules! load {
            ($tile:literal, $from:expr) => {
                asm!(concat!("tileloadd ", $tile, ", [{from} + {step} * 1]"),
                    from = in(reg) $from, step = in(reg) step,
                    options(nostack, readonly, preserves_flags))
            };
        }
        load!("tmm0", at[0][0]);
        if NT == 2 {
            load!("tmm1", at[0][1]);
        }
        if MT == 2 {
            load!("tmm2", at[1][0]);
            if NT == 2 {
                load!("tmm3", at[1][1]);
            }
        }
    }
}

/// One K-step: `sums[m][n] += input[m] · weights[n]`.
#[inline(always)]
unsafe fn multiply<const MT: usize, const NT: usize, const STREAMED: bool>(
    from: *const u8,
    px: usize,
    weights: *const u8,
) {
    // SAFETY: the caller checked MT · 16 lines of input, `px` bytes apart, and NT tiles of weights.
    unsafe {
        asm!("tileloadd tmm4, [{from} + {px} * 1]", from = in(reg) from, px = in(reg) px,
            options(nostack, readonly, preserves_flags));
        if MT == 2 {
            asm!("tileloadd tmm5, [{from} + {px} * 1]", from = in(reg) from.add(ROWS * px), px = in(reg) px,
                options(nostack, readonly, preserves_flags));
        }
        if STREAMED {
            asm!("tileloaddt1 tmm6, [{w} + {s} * 1]", w = in(reg) weights, s = in(reg) 64usize,
                options(nostack, readonly, preserves_flags));
        } else {
            asm!("tileloadd tmm6, [{w} + {s} * 1]", w = in(reg) weights, s = in(reg) 64usize,
                options(nostack, readonly, preserves_flags));
        }
        if NT == 2 {
            if STREAMED {
                asm!("tileloaddt1 tmm7, [{w} + {s} * 1]", w = in(reg) weights.add(TILE), s = in(reg) 64usize,
                    options(nostack, readonly, preserves_flags));
            } else {
                asm!("tileloadd tmm7, [{w} + {s} * 1]", w = in(reg) weights.add(TILE), s = in(reg) 64usize,
                    options(nostack, readonly, preserves_flags));
            }
        }
        asm!("tdpbf16ps tmm0, tmm4, tmm6", options(nostack, nomem, preserves_flags));
        if NT == 2 {
            asm!("tdpbf16ps tmm1, tmm4, tmm7", options(nostack, nomem, preserves_flags));
        }
        if MT == 2 {
            asm!("tdpbf16ps tmm2, tmm5, tmm6", options(nostack, nomem, preserves_flags));
            if NT == 2 {
                asm!("tdpbf16ps tmm3, tmm5, tmm7", options(nostack, nomem, preserves_flags));
            }
        }
    }
}

/// The tiles of sums to `sums`, pixel by pixel, 32 channels each.
#[inline(always)]
unsafe fn end<const MT: usize, const NT: usize>(sums: *mut f32) {
    // SAFETY: `sums` has room for 32 × 32 f32.
    unsafe {
        macro_rules! store {
            ($tile:literal, $at:expr) => {
                asm!(concat!("tilestored [{to} + {step} * 1], ", $tile),
                    to = in(reg) sums.add($at), step = in(reg) 128usize,
                    options(nostack, preserves_flags))
            };
        }
        store!("tmm0", 0);
        if NT == 2 {
            store!("tmm1", 16);
        }
        if MT == 2 {
            store!("tmm2", ROWS * 32);
            if NT == 2 {
                store!("tmm3", ROWS * 32 + 16);
            }
        }
    }
}

/// 32 pixels × 32 channels of sums.
#[repr(align(64))]
struct Sums([f32; 32 * 32]);

/// A block whose sums are known and whose results are not stored yet.
#[derive(Clone, Copy)]
struct Pending<'a> {
    block: &'a Block,
    row: usize,
    x: usize,
    pixels: usize,
    done: usize,
    sums: *const f32,
}

impl Pending<'_> {
    /// Activation, residual and store of the next `count` pixels.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn advance(&mut self, arena: *mut u8, task: &Conv<'_>, count: usize) {
        let end = (self.done + count).min(self.pixels);
        for p in self.done..end {
            let x = self.x + p;
            for v in 0..self.block.lanes / 16 {
                // SAFETY: `Kernels::conv` checked output and residual for all pixels of the task;
                // `sums` holds 32 channels for each of 32 pixels.
                unsafe {
                    let mut y = _mm512_load_ps(self.sums.add(p * 32 + v * 16));
                    if task.act == Activation::Silu {
                        y = silu_coarse(y);
                    }
                    if let Some(residual) = self.block.residual {
                        let from = arena.add(residual.of(self.row, x) + 32 * v);
                        let half = _mm512_cvtepu16_epi32(_mm256_load_si256(from.cast()));
                        y = _mm512_add_ps(y, _mm512_castsi512_ps(_mm512_slli_epi32::<16>(half)));
                    }
                    let out = arena.add(self.block.out.of(self.row, x));
                    match task.store {
                        Store::Element => {
                            let half: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(y));
                            _mm256_store_si256(out.add(32 * v).cast(), half);
                        }
                        Store::F32 => _mm512_store_ps(out.add(64 * v).cast(), y),
                        Store::F32Twice => {
                            _mm512_store_ps(out.add(64 * v).cast(), y);
                            _mm512_store_ps(out.add(self.block.out.px / 2 + 64 * v).cast(), y);
                        }
                    }
                }
            }
        }
        self.done = end;
    }
}

/// Pixels from one row to the next if that is the same for input and output, so that rows need
/// not be cut.
fn pitch(task: &Conv<'_>) -> Option<usize> {
    let residuals = task.blocks.iter().filter_map(|block| block.residual);
    let mut places = task
        .ksteps
        .iter()
        .map(|k| k.from)
        .chain(task.blocks.iter().map(|block| block.out))
        .chain(residuals);
    let of = |place: Place| place.row.is_multiple_of(place.px).then_some(place.row / place.px);
    let first = of(places.next()?)?;
    let same = places.all(|place| of(place) == Some(first));
    let sums = task.blocks.iter().any(|block| block.init.is_some());
    (same && !sums && task.store != Store::F32Twice && task.rows > 1).then_some(first)
}

/// Some rows of a convolution.
///
/// # Safety
/// The CPU has AMX-BF16, AVX-512 and AVX512-BF16, this process may use tiles, and every offset of
/// `task` was checked, inputs and initial sums for 31 pixels beyond the last.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(in super::super) unsafe fn conv(
    arena: *mut u8,
    packed: *const u8,
    task: &Conv<'_>,
    share: &Share,
) {
    configure();
    let pitch = pitch(task);
    let lines: usize = task.ksteps.iter().map(|k| k.count / 32).sum();
    let mut sums = [Sums([0.0; 32 * 32]), Sums([0.0; 32 * 32])];
    let mut turn = 0;
    let mut pending: Option<Pending<'_>> = None;
    for (index, block) in task.blocks.iter().enumerate() {
        let streamed = lines * 64 * block.lanes > STREAM;
        let share = share.rows(index, task.rows);
        let (rows, width) = match pitch {
            Some(pitch) if !share.is_empty() => {
                (share.start..share.start + 1, (share.len() - 1) * pitch + task.width)
            }
            _ => (share, task.width),
        };
        for row in rows {
            for x in (0..width).step_by(2 * ROWS) {
                let pixels = (width - x).min(2 * ROWS);
                let at = (row, x, lines);
                // SAFETY: by the caller's promise.
                unsafe {
                    macro_rules! tiles {
                        ($mt:literal, $nt:literal) => {
                            match streamed {
                                true => sum::<$mt, $nt, true>(
                                    arena,
                                    packed,
                                    task,
                                    block,
                                    at,
                                    &mut pending,
                                ),
                                false => sum::<$mt, $nt, false>(
                                    arena,
                                    packed,
                                    task,
                                    block,
                                    at,
                                    &mut pending,
                                ),
                            }
                        };
                    }
                    match (pixels > ROWS, block.lanes) {
                        (true, 32) => tiles!(2, 2),
                        (true, _) => tiles!(2, 1),
                        (false, 32) => tiles!(1, 2),
                        (false, _) => tiles!(1, 1),
                    }
                    if let Some(mut before) = pending.take() {
                        before.advance(arena, task, 2 * ROWS);
                    }
                    let to = sums[turn].0.as_mut_ptr();
                    match (pixels > ROWS, block.lanes) {
                        (true, 32) => end::<2, 2>(to),
                        (true, _) => end::<2, 1>(to),
                        (false, 32) => end::<1, 2>(to),
                        (false, _) => end::<1, 1>(to),
                    }
                    pending = Some(Pending { block, row, x, pixels, done: 0, sums: to });
                }
                turn ^= 1;
            }
        }
    }
    if let Some(mut before) = pending {
        // SAFETY: by the caller's promise.
        unsafe { before.advance(arena, task, 2 * ROWS) };
    }
    if let Some(pitch) = pitch {
        zero_between(arena, task, share, pitch);
    }
}

/// The sums of one block, while the pending one is stored.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn sum<const MT: usize, const NT: usize, const STREAMED: bool>(
    arena: *mut u8,
    packed: *const u8,
    task: &Conv<'_>,
    block: &Block,
    (row, x, lines): (usize, usize, usize),
    pending: &mut Option<Pending<'_>>,
) {
    let share = (2 * ROWS).div_ceil(lines.max(1));
    // SAFETY: by the caller's promise; weights are NT tiles for each line.
    unsafe {
        match block.init {
            Some(init) => {
                let from = |m: usize, n: usize| {
                    let at = init.of((row + usize::from(task.odd)) / 2, x + m * ROWS);
                    arena.wrapping_add(at + 64 * n).cast_const()
                };
                begin::<MT, NT>([[from(0, 0), from(0, 1)], [from(1, 0), from(1, 1)]], init.px);
            }
            None => {
                let bias = packed.add(block.bias);
                let both = [bias, if NT == 2 { bias.add(64) } else { bias }];
                begin::<MT, NT>([both, both], 0);
            }
        }
        let mut weights = packed.add(block.weights);
        for k in task.ksteps {
            let mut from = arena.add(k.from.of(row, x)).cast_const();
            for _ in 0..k.count / 32 {
                multiply::<MT, NT, STREAMED>(from, k.from.px, weights);
                from = from.add(64);
                weights = weights.add(NT * TILE);
                if let Some(pending) = pending {
                    pending.advance(arena, task, share);
                }
            }
        }
    }
}

/// Zeroes the pixels between two rows, which must be zero for the next convolution.
fn zero_between(arena: *mut u8, task: &Conv<'_>, share: &Share, pitch: usize) {
    let size = if task.store == Store::Element { 2 } else { 4 };
    for (index, block) in task.blocks.iter().enumerate() {
        let rows = share.rows(index, task.rows);
        for row in rows.start..rows.end.saturating_sub(1) {
            for x in task.width..pitch {
                // SAFETY: between the first and the last pixel of the task's output, all of which
                // was checked.
                unsafe { arena.add(block.out.of(row, x)).write_bytes(0, block.lanes * size) };
            }
        }
    }
}
