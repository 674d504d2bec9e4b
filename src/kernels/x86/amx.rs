//! Tiles of 16 rows × 64 bytes: 32 pixels × 32 channels in four of them.
//!
//! A tile of input is 16 pixels × 32 bf16, one cache line each; a tile of weights is 16 pairs of
//! inputs × 16 channels; `tdpbf16ps` multiplies the two into a tile of 16 × 16 sums. So a K-step
//! here is always one line (the packer pads with zero weights), and an element that it reads but
//! does not mean must be finite: 0 · NaN is NaN.
//!
//! - The sums begin with nothing, or with the sums of another product. The bias is added afterwards,
//!   where it costs nothing: SiLU begins with a product.
//! - Where rows of input and output are equally far apart in pixels, rows are not cut at their
//!   ends: the pixel between two rows is computed too, and zeroed afterwards. At 20 pixels a row
//!   that is 21 of 21 useful tiles' rows, not 20 of 32.
//! - The sums of a block go through activation and store while the next block multiplies, a few
//!   pixels after each product: tiles and vectors are different units.
//! - Weights that do not stay in the first-level cache are loaded with `tileloaddt1`, which does
//!   not try to keep them there. They come to the second-level cache a block ahead.

use std::arch::asm;
use std::arch::x86_64::*;
use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr;

use super::super::task::{Activation, Block, Conv, Place, Store};
use super::super::team::Share;
use super::avx512::{silu_coarse_of_twice, store_bf16};

/// Rows of a tile: pixels.
const ROWS: usize = 16;
/// Bytes of a tile.
const TILE: usize = 1024;
/// Weights of a block beyond this are streamed past the first-level cache.
const STREAM: usize = 24 << 10;

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

/// The same four, from nothing.
#[inline(always)]
unsafe fn zero() {
    // SAFETY: as above.
    unsafe {
        asm!("tilezero tmm0", options(nostack, nomem, preserves_flags));
        asm!("tilezero tmm1", options(nostack, nomem, preserves_flags));
        asm!("tilezero tmm2", options(nostack, nomem, preserves_flags));
        asm!("tilezero tmm3", options(nostack, nomem, preserves_flags));
    }
}

/// The tiles of one K-step: 16 or 32 pixels of input, and weights for 16 or 32 channels.
#[inline(always)]
unsafe fn load<const MT: usize, const NT: usize>(
    from: *const u8,
    px: usize,
    weights: *const u8,
    streamed: bool,
) {
    // SAFETY: the caller checked MT · 16 lines of input, `px` bytes apart, and NT tiles of weights.
    unsafe {
        asm!("tileloadd tmm4, [{from} + {px} * 1]", from = in(reg) from, px = in(reg) px,
            options(nostack, readonly, preserves_flags));
        if streamed {
            asm!("tileloaddt1 tmm6, [{w} + {s} * 1]", w = in(reg) weights, s = in(reg) 64usize,
                options(nostack, readonly, preserves_flags));
        } else {
            asm!("tileloadd tmm6, [{w} + {s} * 1]", w = in(reg) weights, s = in(reg) 64usize,
                options(nostack, readonly, preserves_flags));
        }
        if MT == 2 {
            asm!("tileloadd tmm5, [{from} + {px} * 1]", from = in(reg) from.add(ROWS * px), px = in(reg) px,
                options(nostack, readonly, preserves_flags));
        }
        if NT == 2 {
            let weights = weights.add(TILE);
            if streamed {
                asm!("tileloaddt1 tmm7, [{w} + {s} * 1]", w = in(reg) weights, s = in(reg) 64usize,
                    options(nostack, readonly, preserves_flags));
            } else {
                asm!("tileloadd tmm7, [{w} + {s} * 1]", w = in(reg) weights, s = in(reg) 64usize,
                    options(nostack, readonly, preserves_flags));
            }
        }
    }
}

/// One product of a K-step: `sums[m][n] += input[m] · weights[n]`.
#[inline(always)]
unsafe fn multiply<const M: usize, const N: usize>() {
    // SAFETY: the tiles are configured and loaded.
    unsafe {
        match (M, N) {
            (0, 0) => asm!("tdpbf16ps tmm0, tmm4, tmm6", options(nostack, nomem, preserves_flags)),
            (0, _) => asm!("tdpbf16ps tmm1, tmm4, tmm7", options(nostack, nomem, preserves_flags)),
            (_, 0) => asm!("tdpbf16ps tmm2, tmm5, tmm6", options(nostack, nomem, preserves_flags)),
            _ => asm!("tdpbf16ps tmm3, tmm5, tmm7", options(nostack, nomem, preserves_flags)),
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

/// 32 pixels × 32 channels of sums. Never initialised as a whole: that would be 8 KB of zeroes per
/// convolution which nobody reads.
#[repr(align(64))]
struct Sums(MaybeUninit<[f32; 32 * 32]>);

/// A block whose sums are known and whose results are not stored yet.
///
/// Everything is about its next pixel, so that the loop over pixels only adds. All of it, and the
/// numbers that the activation needs, stay in registers: it is computed between tile instructions,
/// which leave few slots for anything but the results themselves.
struct Pending<const NV: usize> {
    /// 32 f32 for each pixel.
    sums: *const f32,
    /// What is added to them; half of it with [`Activation::Silu`], which begins by halving.
    bias: [__m512; NV],
    out: *mut u8,
    out_px: usize,
    /// Null without one.
    residual: *const u8,
    residual_px: usize,
    /// Pixels.
    left: usize,
}

impl<const NV: usize> Pending<NV> {
    /// No block at all.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn nothing() -> Self {
        let (bias, out) = ([_mm512_setzero_ps(); NV], ptr::null_mut());
        let (sums, residual) = (ptr::null(), ptr::null());
        Pending { sums, bias, out, out_px: 0, residual, residual_px: 0, left: 0 }
    }

    /// Bias, activation, residual and store of the next `count` pixels of `NV` · 16 channels.
    ///
    /// # Safety
    /// The CPU has the features; for each of `left` pixels, `sums` holds `NV` · 16 f32 of 32, aligned
    /// to 64 bytes; `out`, and `residual` if there is one, are places in the arena as
    /// `Kernels::conv` checks them.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn advance<const SILU: bool, const STORE: u8>(&mut self, count: usize) {
        const ELEMENT: u8 = Store::Element as u8;
        const F32_TWICE: u8 = Store::F32Twice as u8;
        let count = count.min(self.left);
        self.left -= count;
        for _ in 0..count {
            let mut y = [_mm512_setzero_ps(); NV];
            for v in 0..NV {
                // SAFETY: the caller's. The residual is aligned to 16 bf16.
                unsafe {
                    y[v] = _mm512_load_ps(self.sums.add(16 * v));
                    y[v] = match SILU {
                        true => silu_coarse_of_twice(_mm512_fmadd_ps(
                            y[v],
                            _mm512_set1_ps(0.5),
                            self.bias[v],
                        )),
                        false => _mm512_add_ps(y[v], self.bias[v]),
                    };
                    if !self.residual.is_null() {
                        let half = _mm256_load_si256(self.residual.add(32 * v).cast());
                        let whole = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half));
                        y[v] = _mm512_add_ps(y[v], _mm512_castsi512_ps(whole));
                    }
                }
            }
            if STORE == ELEMENT && NV == 2 {
                // SAFETY: the two types are 512 bits of one meaning; 32 bf16 are the pixel's output,
                // which is a line of the cache as a rule, and checked to be aligned to half a line.
                unsafe {
                    let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(y[NV - 1], y[0]));
                    _mm512_storeu_si512(self.out.cast(), both);
                }
            } else {
                for v in 0..NV {
                    // SAFETY: the caller's; the output is aligned to 16 of its elements, and so is
                    // the second place of each pixel.
                    unsafe {
                        if STORE == ELEMENT {
                            store_bf16(self.out, v, y[v]);
                        } else {
                            _mm512_store_ps(self.out.add(64 * v).cast(), y[v]);
                        }
                        if STORE == F32_TWICE {
                            _mm512_store_ps(self.out.add(self.out_px / 2 + 64 * v).cast(), y[v]);
                        }
                    }
                }
            }
            // Beyond the last pixel these may leave the arena, where nobody follows them.
            self.sums = self.sums.wrapping_add(32);
            self.out = self.out.wrapping_add(self.out_px);
            if !self.residual.is_null() {
                self.residual = self.residual.wrapping_add(self.residual_px);
            }
        }
    }
}

/// How many pixels of the pending block are done after each product of a K-step, so that all are
/// after `lines` K-steps of `products`: products take turns with vectors, which are another unit, and
/// more of the one at a time than the core can look ahead would keep the other waiting.
fn turns(lines: usize, products: usize) -> [usize; 4] {
    let each = (2 * ROWS).div_ceil(lines.max(1));
    match products {
        // The odd ones far apart.
        4 => [each.div_ceil(4), (each + 1) / 4, (each + 2) / 4, each / 4],
        2 => [each.div_ceil(2), each / 2, 0, 0],
        _ => [each, 0, 0, 0],
    }
}

/// The weights of the next block, on their way to the second-level cache while this one is computed.
///
/// Those of deep layers come from beyond it once per picture, and what is not there when it is
/// loaded is waited for: in a prototype, a product of tiles took 12.1 ns there without this, and
/// 10.3 with it. (To the first-level cache it was slower than nothing: tiles need its ports.)
struct Ahead {
    at: *const u8,
    /// Lines of the cache.
    left: usize,
    /// Lines per K-step.
    step: usize,
}

impl Ahead {
    /// K-steps of a task below which it is not worth it: weights are few, and used often.
    const LEAST: usize = 8;
    /// Lines per K-step at most. More would take the ports that tiles are loaded through; where
    /// pixels are so few that this does not reach the end of the weights, the rest is loaded then.
    const MOST: usize = 3;

    /// For the block after block `index`, whose `tiles` times 32 pixels have `lines` K-steps each.
    fn of(
        packed: *const u8,
        task: &Conv<'_>,
        share: &Share,
        index: usize,
        (tiles, lines): (usize, usize),
    ) -> Ahead {
        let next = index + 1;
        match task.blocks.get(next) {
            Some(block) if lines >= Self::LEAST && !share.rows(next, task.rows).is_empty() => {
                Ahead {
                    at: packed.wrapping_add(block.weights),
                    // A K-step has 64 bytes for each lane.
                    left: lines * block.lanes,
                    step: block.lanes.div_ceil(tiles.max(1)).min(Self::MOST),
                }
            }
            _ => Ahead { at: packed, left: 0, step: 0 },
        }
    }

    /// One K-step's part.
    #[inline(always)]
    fn advance(&mut self) {
        let count = self.step.min(self.left);
        // Over a constant: of `0..count` the compiler does not know how short it is.
        for line in 0..Self::MOST {
            if line < count {
                // SAFETY: it reads nothing that anyone could see, and cannot fault. (The address
                // lies in the weights of a block, too: `left` ends with them.)
                unsafe { _mm_prefetch::<_MM_HINT_T1>(self.at.wrapping_add(64 * line).cast()) };
            }
        }
        self.at = self.at.wrapping_add(64 * count);
        self.left -= count;
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
    let work = Work { arena, packed, task, share, pitch };
    let mut first = 0;
    // As a rule all blocks are alike, or all but the last.
    for alike in task.blocks.chunk_by(|a, b| a.lanes == b.lanes) {
        let range = first..first + alike.len();
        first = range.end;
        macro_rules! by_store {
            ($nt:literal, $silu:literal) => {
                match task.store {
                    Store::Element => work.blocks::<$nt, $silu, { Store::Element as u8 }>(range),
                    Store::F32 => work.blocks::<$nt, $silu, { Store::F32 as u8 }>(range),
                    Store::F32Twice => work.blocks::<$nt, $silu, { Store::F32Twice as u8 }>(range),
                }
            };
        }
        // SAFETY: the caller's; blocks of 32 lanes are two tiles wide.
        unsafe {
            match (alike[0].lanes, task.act) {
                (32, Activation::Silu) => by_store!(2, true),
                (32, Activation::None) => by_store!(2, false),
                (_, Activation::Silu) => by_store!(1, true),
                (_, Activation::None) => by_store!(1, false),
            }
        }
    }
    if let Some(pitch) = pitch {
        zero_between(arena, task, share, pitch);
    }
}

/// What the parts of a convolution are about.
#[derive(Clone, Copy)]
struct Work<'a> {
    arena: *mut u8,
    packed: *const u8,
    task: &'a Conv<'a>,
    share: &'a Share,
    pitch: Option<usize>,
}

impl Work<'_> {
    /// Blocks of `NT` · 16 channels each.
    ///
    /// # Safety
    /// As [`conv`].
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn blocks<const NT: usize, const SILU: bool, const STORE: u8>(
        &self,
        range: Range<usize>,
    ) {
        let Work { arena, packed, task, share, pitch } = *self;
        let lines: usize = task.ksteps.iter().map(|k| k.count / 32).sum();
        let streamed = lines * 64 * 16 * NT > STREAM;
        let turns = [turns(lines, NT), turns(lines, 2 * NT)];
        let mut sums = [const { Sums(MaybeUninit::uninit()) }; 2];
        let mut turn = 0;
        let mut pending = Pending::<NT>::nothing();
        for index in range {
            let block = &task.blocks[index];
            let mut bias = [_mm512_setzero_ps(); NT];
            if block.init.is_none() {
                for (v, bias) in bias.iter_mut().enumerate() {
                    // SAFETY: the caller's: a bias for each lane.
                    *bias = unsafe { _mm512_loadu_ps(packed.add(block.bias + 64 * v).cast()) };
                    if SILU {
                        *bias = _mm512_mul_ps(*bias, _mm512_set1_ps(0.5));
                    }
                }
            }
            let mine = share.rows(index, task.rows);
            let (rows, width) = match pitch {
                Some(pitch) if !mine.is_empty() => {
                    (mine.start..mine.start + 1, (mine.len() - 1) * pitch + task.width)
                }
                _ => (mine, task.width),
            };
            let tiles = rows.len() * width.div_ceil(2 * ROWS);
            let mut ahead = Ahead::of(packed, task, share, index, (tiles, lines));
            for row in rows {
                for x in (0..width).step_by(2 * ROWS) {
                    let left = (width - x).min(2 * ROWS);
                    let to = sums[turn].0.as_mut_ptr().cast::<f32>();
                    turn ^= 1;
                    // SAFETY: by the caller's promise. Of the sums that `advance` reads none is
                    // uninitialised: `end` writes 16 pixels, or 32 if there are more than 16, and of
                    // each pixel the block's channels. The sums of two blocks lie in two places in
                    // turn, and the first of three is finished before the third one's `end`.
                    unsafe {
                        let pending = (&mut pending, &mut ahead);
                        let at = (row, x);
                        if left > ROWS {
                            self.sum::<2, NT, SILU, STORE>(block, at, streamed, turns[1], pending);
                            end::<2, NT>(to);
                        } else {
                            self.sum::<1, NT, SILU, STORE>(block, at, streamed, turns[0], pending);
                            end::<1, NT>(to);
                        }
                    }
                    let (residual, residual_px) = match block.residual {
                        Some(place) => {
                            (arena.wrapping_add(place.of(row, x)).cast_const(), place.px)
                        }
                        None => (ptr::null(), 0),
                    };
                    let (out, out_px) = (arena.wrapping_add(block.out.of(row, x)), block.out.px);
                    pending = Pending { sums: to, bias, out, out_px, residual, residual_px, left };
                }
            }
        }
        // SAFETY: by the caller's promise, and as above.
        unsafe { pending.advance::<SILU, STORE>(2 * ROWS) };
    }

    /// The sums of one block, while the pending one is stored and the next one's weights come nearer.
    ///
    /// # Safety
    /// As [`conv`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn sum<const MT: usize, const NT: usize, const SILU: bool, const STORE: u8>(
        &self,
        block: &Block,
        (row, x): (usize, usize),
        streamed: bool,
        turns: [usize; 4],
        (pending, ahead): (&mut Pending<NT>, &mut Ahead),
    ) {
        let Work { arena, packed, task, .. } = *self;
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
                None => zero(),
            }
            let mut weights = packed.add(block.weights);
            for k in task.ksteps {
                let mut from = arena.add(k.from.of(row, x)).cast_const();
                for _ in 0..k.count / 32 {
                    load::<MT, NT>(from, k.from.px, weights, streamed);
                    from = from.add(64);
                    weights = weights.add(NT * TILE);
                    multiply::<0, 0>();
                    pending.advance::<SILU, STORE>(turns[0]);
                    if NT == 2 {
                        multiply::<0, 1>();
                        pending.advance::<SILU, STORE>(turns[1]);
                    }
                    if MT == 2 {
                        multiply::<1, 0>();
                        pending.advance::<SILU, STORE>(turns[NT]);
                        if NT == 2 {
                            multiply::<1, 1>();
                            pending.advance::<SILU, STORE>(turns[3]);
                        }
                    }
                    ahead.advance();
                }
            }
            // Nothing is left as a rule: without a K-step, or behind one whose rest was smaller.
            pending.advance::<SILU, STORE>(2 * ROWS);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_pixels_of_a_block_have_their_turn() {
        for lines in 1..200 {
            for products in [1, 2, 4] {
                let turns = turns(lines, products);
                assert_eq!(turns.iter().sum::<usize>(), 32usize.div_ceil(lines));
                assert!(turns[products..].iter().all(|&count| count == 0), "{lines} {products}");
            }
        }
    }

    /// Fetching changes no result: a wrong address would only be slow, and never be noticed.
    #[test]
    fn the_next_weights_are_fetched_once_and_nothing_beyond() {
        let packed = [0u8; 64];
        let packed = packed.as_ptr();
        let blocks =
            [32, 16, 32].map(|lanes| Block { lanes, weights: 1 << 20, ..Block::default() });
        let task = Conv {
            ksteps: &[],
            blocks: &blocks,
            rows: 20,
            width: 20,
            odd: false,
            act: Activation::None,
            store: Store::Element,
        };
        for (index, share, tiles, lines, part) in [
            (0, Share::ALL, 14, 72, 16),
            (1, Share::ALL, 14, 72, 32),
            (1, Share::ALL, 50, 8, 32),
            // As many as there is room for: three lines per K-step.
            (1, Share::ALL, 5, 72, 15),
            // Few K-steps, no next block, and one that somebody else does.
            (1, Share::ALL, 14, 7, 0),
            (2, Share::ALL, 14, 72, 0),
            (1, Share::Pairs(0..40), 14, 72, 0),
        ] {
            let mut ahead = Ahead::of(packed, &task, &share, index, (tiles, lines));
            let start = ahead.at.addr();
            for _ in 0..tiles * lines {
                let before = ahead.at.addr();
                ahead.advance();
                assert!((ahead.at.addr() - before) / 64 <= Ahead::MOST);
            }
            assert_eq!(ahead.at.addr() - start, 64 * part * lines, "{index} {tiles} {lines}");
            assert!(part == 0 || start == packed.addr() + (1 << 20));
        }
    }
}
