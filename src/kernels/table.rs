//! One tier's kernels behind checks, so that calling them is safe.

use std::ops::Range;

use super::cpu::{Cpu, Tier};
use super::math::to_bf16;
use super::memory::{ALIGN, Memory};
use super::portable;
use super::reference::{self, View};
use super::task::{Block, Conv, Element, KStep, Place, Pool, Store, Winograd};
use super::team::{Lead, Share};
#[cfg(target_arch = "x86_64")]
use super::x86;

/// The kernels of one tier.
#[derive(Clone, Copy, Debug)]
pub struct Kernels {
    tier: Tier,
}

impl Kernels {
    /// Those of `tier`; none where this CPU cannot run them.
    #[must_use]
    pub fn new(tier: Tier) -> Option<Self> {
        Cpu::get().has(tier).then_some(Kernels { tier })
    }

    /// Which ones they are.
    #[must_use]
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// To be called when this thread will have nothing to do for a while: what makes it expensive to
    /// switch to another is given back.
    pub fn idle(&self) {
        #[cfg(target_arch = "x86_64")]
        if self.tier == Tier::Amx {
            // SAFETY: `new` saw the feature.
            unsafe { x86::amx::release() };
        }
    }

    /// Runs some rows of a convolution in `arena`, with weights from `packed`.
    ///
    /// # Panics
    /// When the task leaves its memory: a bug of whoever made it.
    pub fn conv(&self, arena: &mut Memory, packed: &[u8], task: &Conv<'_>) {
        check(arena.len(), packed, task, self.tier);
        match self.tier {
            Tier::Portable => portable::conv(arena.floats_mut(), floats(packed), task),
            Tier::Reference => {
                let (element, tiled) = (self.tier.element(), self.tier.has_tiles());
                let mut view = View { bytes: arena.bytes_mut(), element };
                reference::conv(&mut view, packed, tiled, task);
            }
            // SAFETY: every offset was checked, and nobody else has the arena.
            #[cfg(target_arch = "x86_64")]
            _ => unsafe { self.conv_share(arena.pointer(), packed.as_ptr(), task, &Share::ALL) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => unreachable!("{} kernels elsewhere than on x86-64. This is a bug.", self.tier),
        }
    }

    /// Whether threads can share a convolution: only where `Share` is known.
    #[must_use]
    pub fn can_share(&self) -> bool {
        !matches!(self.tier, Tier::Portable | Tier::Reference)
    }

    /// The same together with whoever helps, to the same bits; `scratch` is the leader's. (The
    /// portable tiers leave it to the one that calls.)
    ///
    /// # Panics
    /// As [`Kernels::conv`], when what is written overlaps what is read or written besides, and
    /// when a helper did.
    pub fn conv_team(
        &self,
        lead: &mut Lead<'_>,
        arena: &mut Memory,
        packed: &[u8],
        scratch: &mut Memory,
        task: &Conv<'_>,
    ) {
        let pieces = if self.can_share() { lead.pieces() } else { 1 };
        if pieces == 1 {
            return self.conv(arena, packed, task);
        }
        check(arena.len(), packed, task, self.tier);
        let size = self.tier.element().bytes();
        let input = |k: &KStep| span(&k.from, task.rows, task.width, k.count * size);
        check_disjoint(task.ksteps.iter().map(input), task, size);
        #[cfg(target_arch = "x86_64")]
        {
            let (arena, packed) = (Pointer(arena.pointer()), Pointer(packed.as_ptr().cast_mut()));
            let (blocks, rows) = (task.blocks.len(), task.rows);
            lead.run(pieces, scratch, &|_, piece| {
                let share = Share::of(piece, pieces, blocks, rows);
                // SAFETY: every offset was checked; what a share writes, no other reads or writes.
                // (Tiles read up to 31 pixels beyond a row, which another share may be writing. It is
                // the instruction that reads them, no Rust code looks at the values, and the rows of
                // sums that come of them are dropped.)
                unsafe { self.conv_share(arena.get(), packed.get(), task, &share) };
            });
        }
    }

    /// # Safety
    /// `task` was checked for this memory; no other thread reads what the share writes, nor writes
    /// what it reads or writes.
    #[cfg(target_arch = "x86_64")]
    unsafe fn conv_share(&self, arena: *mut u8, packed: *const u8, task: &Conv<'_>, share: &Share) {
        // SAFETY: `new` saw the features; the rest is the caller's promise.
        unsafe {
            match self.tier {
                Tier::Amx => x86::amx::conv(arena, packed, task, share),
                Tier::Avx512 => x86::avx512::f32::conv(arena, packed, task, share),
                Tier::Avx512Bf16 => x86::avx512::bf16::conv(arena, packed, task, share),
                Tier::Avx2 => x86::avx2::conv(arena, packed, task, share),
                Tier::Portable | Tier::Reference => {}
            }
        }
    }

    /// The same by the naive reference for this tier's elements.
    ///
    /// # Panics
    /// As [`Kernels::conv`].
    pub fn conv_reference(&self, arena: &mut Memory, packed: &[u8], task: &Conv<'_>) {
        let (element, tiled) = (self.tier.element(), self.tier.has_tiles());
        check(arena.len(), packed, task, self.tier);
        reference::conv(&mut View { bytes: arena.bytes_mut(), element }, packed, tiled, task);
    }

    /// Runs some rows of a convolution by Winograd's scheme; `scratch` holds
    /// [`Winograd::scratch`] f32.
    ///
    /// # Panics
    /// When the task leaves its memory, or on a tier without: a bug of whoever made it.
    pub fn winograd(
        &self,
        arena: &mut Memory,
        packed: &[u8],
        scratch: &mut Memory,
        task: &Winograd<'_>,
    ) {
        check_winograd(arena.len(), packed, scratch, task, self.tier);
        match self.tier {
            Tier::Portable => {
                let (arena, scratch) = (arena.floats_mut(), scratch.floats_mut());
                portable::winograd(arena, floats(packed), scratch, task);
            }
            // SAFETY: every offset was checked, and nobody else has the memory.
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512 | Tier::Avx512Bf16 | Tier::Avx2 => unsafe {
                let scratch = scratch.pointer().cast();
                let (arena, packed) = (arena.pointer(), packed.as_ptr());
                self.winograd_share(arena, packed, scratch, task, (task.chunks(1), &Share::ALL));
            },
            _ => self.winograd_reference(arena, packed, task),
        }
    }

    /// The same together with whoever helps, to the same bits; `scratch` is the leader's, and holds
    /// [`Winograd::scratch`] f32. Helpers see to theirs.
    ///
    /// # Panics
    /// As [`Kernels::winograd`], when what is written overlaps what is read or written besides, and
    /// when a helper did.
    pub fn winograd_team(
        &self,
        lead: &mut Lead<'_>,
        arena: &mut Memory,
        packed: &[u8],
        scratch: &mut Memory,
        task: &Winograd<'_>,
    ) {
        let pieces = if self.can_share() { lead.pieces() } else { 1 };
        if pieces == 1 {
            return self.winograd(arena, packed, scratch, task);
        }
        let each = check_winograd(arena.len(), packed, scratch, task, self.tier);
        let size = self.tier.element().bytes();
        let input = |k: &KStep| span(&k.from, task.rows + 2, task.width + 2, k.count * size);
        check_disjoint(task.planes.iter().map(input), &as_conv(task), size);
        #[cfg(target_arch = "x86_64")]
        {
            let (arena, packed) = (Pointer(arena.pointer()), Pointer(packed.as_ptr().cast_mut()));
            let blocks = task.blocks.len();
            let chunks = task.chunks(pieces.div_ceil(blocks.max(1)));
            lead.run(pieces, scratch, &|scratch, piece| {
                if scratch.floats().len() < each {
                    *scratch = Memory::new(4 * each).expect("no memory to help with");
                }
                let share = Share::of(piece, pieces, blocks, chunks);
                // SAFETY: every offset was checked; what a share writes, no other reads or writes;
                // the scratch memory is this thread's own, and large enough.
                unsafe {
                    let scratch = scratch.pointer().cast::<f32>();
                    let (arena, packed) = (arena.get(), packed.get());
                    self.winograd_share(arena, packed, scratch, task, (chunks, &share));
                }
            });
        }
    }

    /// # Safety
    /// As [`Kernels::conv_share`]; nobody else uses `scratch`.
    #[cfg(target_arch = "x86_64")]
    unsafe fn winograd_share(
        &self,
        arena: *mut u8,
        packed: *const u8,
        scratch: *mut f32,
        task: &Winograd<'_>,
        (chunks, share): (usize, &Share),
    ) {
        use x86::winograd::{half, narrow, wide};
        // SAFETY: `new` saw the features; the rest is the caller's promise.
        unsafe {
            match self.tier {
                Tier::Avx512 => wide::conv(arena, packed, scratch, task, chunks, share),
                Tier::Avx512Bf16 => half::conv(arena, packed, scratch, task, chunks, share),
                Tier::Avx2 => narrow::conv(arena, packed, scratch, task, chunks, share),
                _ => unreachable!("Winograd on {}. This is a bug.", self.tier),
            }
        }
    }

    /// The same by the naive reference.
    ///
    /// # Panics
    /// As [`Kernels::winograd`].
    pub fn winograd_reference(&self, arena: &mut Memory, packed: &[u8], task: &Winograd<'_>) {
        let element = self.tier.element();
        reference::winograd(&mut View { bytes: arena.bytes_mut(), element }, packed, task);
    }

    /// Runs some rows of a 5 × 5 maximum; `line` is scratch.
    ///
    /// # Panics
    /// When the task leaves its memory: a bug of whoever made it.
    pub fn pool(&self, arena: &mut Memory, task: &Pool, line: &mut Vec<f32>) {
        let element = self.tier.element();
        match self.tier {
            Tier::Reference => {
                reference::pool(&mut View { bytes: arena.bytes_mut(), element }, task)
            }
            // SAFETY: `new` saw the features; the body is safe code.
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512 | Tier::Avx512Bf16 | Tier::Amx => unsafe {
                wide::pool_avx512(arena, task, line, element)
            },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2 => unsafe { wide::pool_avx2(arena, task, line, element) },
            _ => pool(arena, task, line, element),
        }
    }

    /// Writes the values 0..=255 of `pixels` as activations, one after another, at byte `at`.
    ///
    /// # Panics
    /// When they do not fit: a bug of whoever chose the place.
    pub fn convert(&self, arena: &mut Memory, at: usize, pixels: &[u8]) {
        let element = self.tier.element();
        match self.tier {
            // SAFETY: `new` saw the features; the body is safe code.
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512 | Tier::Avx512Bf16 | Tier::Amx => unsafe {
                wide::convert_avx512(arena, at, pixels, element);
            },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2 => unsafe { wide::convert_avx2(arena, at, pixels, element) },
            _ => convert(arena, at, pixels, element),
        }
    }

    /// Writes `values` as activations, one after another, at byte `at`.
    ///
    /// # Panics
    /// When they do not fit: a bug of whoever chose the place.
    pub fn store(&self, arena: &mut Memory, at: usize, values: &[f32]) {
        match self.tier.element() {
            Element::F32 => arena.floats_mut()[at / 4..][..values.len()].copy_from_slice(values),
            Element::Bf16 => {
                let out = &mut arena.halves_mut()[at / 2..][..values.len()];
                for (out, &value) in out.iter_mut().zip(values) {
                    *out = to_bf16(value);
                }
            }
        }
    }

    /// Appends to `hits` the numbers (from `first` on) of those of `width` pixels in which any of
    /// the f32 lanes of `planes` (place of the first pixel, lanes) is `floor` or more.
    ///
    /// # Panics
    /// When the planes leave the arena: a bug of whoever made the list.
    pub fn scan(
        &self,
        arena: &Memory,
        planes: &[(Place, usize)],
        (first, width): (usize, usize),
        floor: f32,
        hits: &mut Vec<u32>,
    ) {
        match self.tier {
            // SAFETY: `new` saw the features; the body is safe code.
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512 | Tier::Avx512Bf16 | Tier::Amx => unsafe {
                wide::scan_avx512(arena, planes, (first, width), floor, hits);
            },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2 => unsafe { wide::scan_avx2(arena, planes, (first, width), floor, hits) },
            _ => scan(arena, planes, (first, width), floor, hits),
        }
    }
}

/// The packed weights as f32.
fn floats(packed: &[u8]) -> &[f32] {
    // SAFETY: every bit pattern is an f32; `align_to` sees to the alignment.
    let (before, floats, _) = unsafe { packed.align_to::<f32>() };
    assert!(before.is_empty(), "packed weights are not aligned. This is a bug.");
    floats
}

/// One past the last byte that `place` reaches over all pixels of the task, `bytes` at each.
fn end(place: &Place, rows: usize, width: usize, bytes: usize) -> usize {
    let last = rows.saturating_sub(1).saturating_mul(place.row);
    let last = last.saturating_add(width.saturating_sub(1).saturating_mul(place.px));
    place.at.saturating_add(last).saturating_add(bytes)
}

/// Everything the kernels rely on.
fn check(arena: usize, packed: &[u8], task: &Conv<'_>, tier: Tier) {
    let element = tier.element();
    let size = element.bytes();
    // Whole tiles are read, of which only the pixels that exist are stored.
    let read = task.width + if tier.has_tiles() { Conv::TILE_OVERRUN } else { 0 };
    let inside = |place: &Place, rows: usize, bytes: usize| {
        assert!(
            end(place, rows, task.width, bytes) <= arena,
            "{place:?} leaves the arena. This is a bug."
        );
    };
    let aligned = |place: &Place, to: usize| {
        let all = place.at | place.row | place.px;
        assert!(all.is_multiple_of(to), "{place:?} is not aligned to {to}. This is a bug.");
    };
    assert!(
        packed.as_ptr().addr().is_multiple_of(ALIGN),
        "packed weights are not aligned. This is a bug."
    );
    let readable = |place: &Place, rows: usize, bytes: usize| {
        assert!(
            end(place, rows, read, bytes) <= arena,
            "{place:?} leaves the arena. This is a bug."
        );
    };
    for k in task.ksteps {
        readable(&k.from, task.rows, k.count.saturating_mul(size));
        let unit = if tier.has_tiles() { 64 } else { 4 };
        assert!(
            k.count.saturating_mul(size).is_multiple_of(unit),
            "{k:?} is no line. This is a bug."
        );
        assert!(k.from.px.is_multiple_of(4), "{k:?} is no whole number of units. This is a bug.");
        aligned(&Place { px: 0, ..k.from }, size);
        assert!(k.count.saturating_mul(size).is_multiple_of(4), "{k:?} is odd. This is a bug.");
    }
    for block in task.blocks {
        let Block { weights, bias, lanes, out, residual, init } = block;
        assert!(matches!(lanes, 16 | 32), "{lanes} lanes. This is a bug.");
        let last = weights.saturating_add(task.weight_bytes(*lanes, element));
        let bias_end = bias.saturating_add(4 * lanes);
        assert!(
            last.max(bias_end) <= packed.len() && (weights | bias).is_multiple_of(ALIGN),
            "{block:?} leaves the packed weights. This is a bug."
        );
        let (bytes, step) = match task.store {
            Store::Element => (lanes * size, 16 * size),
            Store::F32 => (lanes * 4, 64),
            Store::F32Twice => (lanes * 4 + out.px / 2, 64),
        };
        inside(out, task.rows, bytes);
        aligned(out, step);
        if task.store == Store::F32Twice {
            assert!((out.px / 2).is_multiple_of(64), "{out:?} is not aligned. This is a bug.");
        }
        if let Some(residual) = residual {
            inside(residual, task.rows, lanes * size);
            aligned(residual, 16 * size);
        }
        if let Some(init) = init {
            readable(init, (task.rows + usize::from(task.odd)).div_ceil(2), lanes * 4);
            aligned(init, 64);
        }
    }
}

/// What a task by Winograd's scheme writes, and reads besides its input, as a plain one.
fn as_conv<'a>(task: &Winograd<'a>) -> Conv<'a> {
    Conv {
        ksteps: &[],
        blocks: task.blocks,
        rows: task.rows,
        width: task.width,
        odd: false,
        act: task.act,
        store: Store::Element,
    }
}

/// Everything the Winograd kernels rely on; gives the scratch memory they need, in f32.
fn check_winograd(
    arena: usize,
    packed: &[u8],
    scratch: &Memory,
    task: &Winograd<'_>,
    tier: Tier,
) -> usize {
    // There are no K-steps that would be read beyond their ends, as tiles are.
    check(arena, packed, &as_conv(task), tier);
    let size = tier.element().bytes();
    let (rows, columns) = (task.rows.saturating_add(2), task.width.saturating_add(2));
    let mut channels = 0;
    for plane in task.planes {
        let KStep { from, count } = plane;
        let all = from.at | from.row | from.px;
        assert!(
            end(from, rows, columns, count.saturating_mul(size)) <= arena
                && matches!(count, 16 | 32)
                && from.px == count * size
                && all.is_multiple_of(16 * size),
            "{plane:?} is no plane in the arena. This is a bug."
        );
        channels += count;
    }
    for block in task.blocks {
        let bytes = Winograd::POSITIONS * channels * block.lanes * 4;
        assert!(
            block.init.is_none() && block.weights.saturating_add(bytes) <= packed.len(),
            "{block:?} leaves the packed weights. This is a bug."
        );
    }
    let each = Winograd::scratch(channels);
    assert!(scratch.floats().len() >= each, "too little scratch memory. This is a bug.");
    each
}

/// The bytes that `place` reaches.
fn span(place: &Place, rows: usize, width: usize, bytes: usize) -> Range<usize> {
    place.at..end(place, rows, width, bytes)
}

/// What several threads at once rely on: nothing that is written is read, or written twice.
/// `size` is that of an activation.
fn check_disjoint(input: impl Iterator<Item = Range<usize>>, task: &Conv<'_>, size: usize) {
    let Conv { rows, width, .. } = *task;
    let apart = |a: &Range<usize>, b: &Range<usize>| a.end <= b.start || b.end <= a.start;
    let written = |Block { out, lanes, .. }: &Block| match task.store {
        Store::Element => lanes * size,
        Store::F32 => lanes * 4,
        Store::F32Twice => lanes * 4 + out.px / 2,
    };
    // A row is whole before the next begins, and a pixel before the next.
    for block in task.blocks {
        let (out, bytes) = (&block.out, written(block));
        let row = width.saturating_sub(1).saturating_mul(out.px).saturating_add(bytes);
        assert!(out.row >= row && out.px >= bytes, "{out:?} overlaps itself. This is a bug.");
    }
    let outputs = |block: &Block| span(&block.out, rows, width, written(block));
    for (index, block) in task.blocks.iter().enumerate() {
        let mine = outputs(block);
        let others = task.blocks.iter().enumerate().filter(|&(other, _)| other != index);
        let fine = others.map(|(_, other)| other).all(|other| apart(&mine, &outputs(other)));
        assert!(fine, "two blocks write one place. This is a bug.");
        for Block { residual, init, lanes, .. } in task.blocks {
            let residual = residual.map(|place| span(&place, rows, width, lanes * size));
            // Two rows share one of these.
            let shared = (rows + usize::from(task.odd)).div_ceil(2);
            let init = init.map(|place| span(&place, shared, width, lanes * 4));
            let fine = residual.iter().chain(&init).all(|read| apart(&mine, read));
            assert!(fine, "a block writes what another one reads. This is a bug.");
        }
    }
    for read in input {
        let fine = task.blocks.iter().all(|block| apart(&outputs(block), &read));
        assert!(fine, "a convolution writes its own input. This is a bug.");
    }
}

/// A pointer that threads of a team share.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
struct Pointer(*mut u8);

// SAFETY: it is only used where shares of checked tasks keep threads apart.
#[cfg(target_arch = "x86_64")]
unsafe impl Sync for Pointer {}

#[cfg(target_arch = "x86_64")]
impl Pointer {
    fn get(&self) -> *mut u8 {
        self.0
    }
}

#[inline(always)]
fn convert(arena: &mut Memory, at: usize, pixels: &[u8], element: Element) {
    match element {
        Element::F32 => {
            let out = &mut arena.floats_mut()[at / 4..][..pixels.len()];
            for (out, &value) in out.iter_mut().zip(pixels) {
                *out = f32::from(value);
            }
        }
        Element::Bf16 => {
            let out = &mut arena.halves_mut()[at / 2..][..pixels.len()];
            for (out, &value) in out.iter_mut().zip(pixels) {
                // 8 bits fit a bf16's mantissa: nothing is rounded.
                *out = (f32::from(value).to_bits() >> 16) as u16;
            }
        }
    }
}

/// Row by row: the maximum over five rows, then over five pixels of that.
#[inline(always)]
fn pool(arena: &mut Memory, task: &Pool, line: &mut Vec<f32>, element: Element) {
    let Pool { from, out, first, rows, height, width, lanes } = *task;
    let edge = 2 * lanes;
    line.clear();
    line.resize(width * lanes + 2 * edge, f32::NEG_INFINITY);
    for row in 0..rows {
        let y = first + row;
        let inner = &mut line[edge..edge + width * lanes];
        inner.fill(f32::NEG_INFINITY);
        for yy in y.saturating_sub(2)..(y + 3).min(height) {
            let at = from.of(yy, 0);
            match element {
                Element::F32 => {
                    for (best, &v) in
                        inner.iter_mut().zip(&arena.floats()[at / 4..][..width * lanes])
                    {
                        *best = if v > *best { v } else { *best };
                    }
                }
                Element::Bf16 => {
                    for (best, &v) in
                        inner.iter_mut().zip(&arena.halves()[at / 2..][..width * lanes])
                    {
                        let v = f32::from_bits(u32::from(v) << 16);
                        *best = if v > *best { v } else { *best };
                    }
                }
            }
        }
        let at = out.of(row, 0);
        let max = |i: usize| {
            let mut best = line[i];
            for p in 1..5 {
                let v = line[i + p * lanes];
                best = if v > best { v } else { best };
            }
            best
        };
        match element {
            Element::F32 => {
                for (i, out) in arena.floats_mut()[at / 4..][..width * lanes].iter_mut().enumerate()
                {
                    *out = max(i);
                }
            }
            Element::Bf16 => {
                for (i, out) in arena.halves_mut()[at / 2..][..width * lanes].iter_mut().enumerate()
                {
                    *out = (max(i).to_bits() >> 16) as u16;
                }
            }
        }
    }
}

#[inline(always)]
fn scan(
    arena: &Memory,
    planes: &[(Place, usize)],
    (first, width): (usize, usize),
    floor: f32,
    hits: &mut Vec<u32>,
) {
    let floats = arena.floats();
    for x in 0..width {
        let mut hit = false;
        for &(place, lanes) in planes {
            for chunk in floats[place.of(0, x) / 4..][..lanes].chunks_exact(16) {
                hit |= chunk.iter().fold(false, |hit, &v| hit | (v >= floor));
            }
        }
        if hit {
            hits.push((first + x) as u32);
        }
    }
}

/// The same bodies, compiled for wider vectors.
#[cfg(target_arch = "x86_64")]
mod wide {
    use super::{Element, Memory, Place, Pool};

    macro_rules! wide {
        ($features:literal, $pool:ident, $convert:ident, $scan:ident) => {
            #[target_feature(enable = $features)]
            pub(super) fn $pool(
                arena: &mut Memory,
                task: &Pool,
                line: &mut Vec<f32>,
                element: Element,
            ) {
                super::pool(arena, task, line, element);
            }
            #[target_feature(enable = $features)]
            pub(super) fn $convert(arena: &mut Memory, at: usize, pixels: &[u8], element: Element) {
                super::convert(arena, at, pixels, element);
            }
            #[target_feature(enable = $features)]
            pub(super) fn $scan(
                arena: &Memory,
                planes: &[(Place, usize)],
                range: (usize, usize),
                floor: f32,
                hits: &mut Vec<u32>,
            ) {
                super::scan(arena, planes, range, floor, hits);
            }
        };
    }
    wide!("avx512f,avx512bw,avx512dq,avx512vl", pool_avx512, convert_avx512, scan_avx512);
    wide!("avx2,fma", pool_avx2, convert_avx2, scan_avx2);
}
