//! Bilinear resizing of interleaved RGB, bit for bit as `fast_image_resize` does it.
//!
//! Without antialiasing and with half-pixel centres: each pixel of the result is a mean of at most
//! two by two pixels of the source. That crate defines the arithmetic (weights of 14 or 15 bits,
//! down the columns first, rounded to bytes in between), and a test holds this module to it. It
//! stands here because two taps are all that is needed: a convolution of any width takes over
//! twice as long, asks the allocator a thousand times for each picture, and keeps a picture's
//! width times the result's height. Here a row is kept, and nothing allocated once it is there.

/// Most source pixels of a row that are looked at together: what bounds the memory kept. Wider
/// rows, which no JPEG has, are taken in parts.
const MOST: usize = 1 << 16;

/// What a row in memory must have behind its last pixel: pixels are read eight bytes at a time,
/// and a pair even where its second pixel has no weight.
const BEHIND: usize = 8;

/// Where a row or column of the result lies in the source.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Tap {
    /// The first of two neighbours; the second need not exist where its weight is zero.
    start: u32,
    weights: [i16; 2],
}

/// How one side is resized.
#[derive(Debug, Default)]
struct Axis {
    from: u32,
    to: u32,
    taps: Vec<Tap>,
    /// Bits behind the point of the weights.
    precision: u32,
}

impl Axis {
    /// Make ready for these lengths; nothing happens if they are the last ones.
    fn set(&mut self, from: u32, to: u32) {
        if (self.from, self.to) == (from, to) {
            return;
        }
        (self.from, self.to) = (from, to);
        self.taps.clear();
        if from == to {
            return;
        }
        let scale = f64::from(from) / f64::from(to);
        let largest = (0..to).flat_map(|at| weights(at, scale, from).1).fold(0.0, f64::max);
        // As many bits as the largest weight leaves in 16 with a sign.
        self.precision = if (largest * f64::from(1 << 15)).round() >= 32768.0 { 14 } else { 15 };
        let one = f64::from(1 << self.precision);
        self.taps.extend((0..to).map(|at| {
            let (start, weights) = weights(at, scale, from);
            Tap { start, weights: weights.map(|weight| (weight * one).round() as i16) }
        }));
    }
}

/// The first source pixel with any weight, and its and its neighbour's. In f64 step by step as
/// the crate computes it.
fn weights(at: u32, scale: f64, from: u32) -> (u32, [f64; 2]) {
    let middle = (f64::from(at) + 0.5) * scale;
    let first = (middle - 1.0).floor().max(0.0) as u32;
    let end = (middle + 1.0).ceil().min(f64::from(from)) as u32;
    let centre = middle - 0.5;
    let weight = |x: u32| (1.0 - (f64::from(x) - centre).abs()).max(0.0);
    // An open interval of length 2 holds two whole numbers at most.
    let start = (first..end).find(|&x| weight(x) != 0.0).unwrap_or(first);
    let pair = [weight(start), if start + 1 < end { weight(start + 1) } else { 0.0 }];
    let sum = pair[0] + pair[1];
    (start, if sum == 0.0 { pair } else { pair.map(|weight| weight / sum) })
}

/// Where the pixels go: rows of `width` pixels, `stride` bytes apart.
pub(super) struct Target<'a> {
    /// From the first pixel's first byte to the last pixel's last, or longer.
    pub(super) rgb: &'a mut [u8],
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) stride: usize,
}

/// Resizes pictures, reusing its memory from one to the next.
#[derive(Debug, Default)]
pub(super) struct Bilinear {
    x: Axis,
    y: Axis,
    row: Vec<u8>,
}

impl Bilinear {
    /// Resize `source`, `width` x `height` pixels of interleaved RGB without gaps, into `target`.
    /// No side may be zero, and both slices hold what their sizes say.
    pub(super) fn run(&mut self, source: &[u8], width: u32, height: u32, target: Target) {
        self.x.set(width, target.width);
        self.y.set(height, target.height);
        let (line, wanted) = (width as usize * 3, target.width as usize * 3);
        let across = (target.width != width).then_some(&self.x);
        let down = (target.height != height).then_some(&self.y);
        let lanes = Lanes::detect();
        for (y, to) in target.rgb.chunks_mut(target.stride).take(target.height as usize).enumerate()
        {
            let to = &mut to[..wanted];
            // A row that needs no other is one with all the weight.
            let tap = match down {
                None => Tap { start: y as u32, weights: [1, 0] },
                Some(axis) => axis.taps[y],
            };
            let first = tap.start as usize;
            let second = (first + 1).min(height as usize - 1);
            let rows = [first, second].map(|row| &source[row * line..(row + 1) * line]);
            let precision = down.map_or(0, |axis| axis.precision);
            let Some(axis) = across else {
                lanes.blend(rows, tap.weights, precision, to);
                continue;
            };
            let mut done = 0;
            while done < axis.taps.len() {
                let left = axis.taps[done].start as usize;
                let part =
                    axis.taps[done..].partition_point(|tap| tap.start as usize + 2 <= left + MOST);
                let taps = &axis.taps[done..done + part];
                let last = taps.last().map_or(left, |tap| tap.start as usize);
                let (from, until) = (left * 3, (last + 2).min(width as usize) * 3);
                let length = until - from;
                if self.row.len() < length + 3 + BEHIND {
                    self.row.resize(length + 3 + BEHIND, 0);
                }
                let rows = rows.map(|row| &row[from..until]);
                match precision {
                    0 => self.row[..length].copy_from_slice(rows[0]),
                    _ => lanes.blend(rows, tap.weights, precision, &mut self.row[..length]),
                }
                let to = &mut to[done * 3..(done + part) * 3];
                lanes.spread(&self.row, left as u32, taps, axis.precision, to);
                done += part;
            }
        }
    }
}

/// Which instructions to use: all give the same bytes.
#[derive(Debug, Clone, Copy)]
enum Lanes {
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Any,
}

impl Lanes {
    fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            return Self::Avx2;
        }
        Self::Any
    }

    /// The weighted mean of two rows, byte by byte. All three are equally long.
    fn blend(self, rows: [&[u8]; 2], weights: [i16; 2], precision: u32, to: &mut [u8]) {
        match self {
            // SAFETY: `detect` has found AVX2 on this machine.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { avx2::blend(rows, weights, precision, to) },
            Self::Any => blend(rows, weights, precision, to),
        }
    }

    /// The weighted mean of two neighbouring pixels for each tap. `row` begins with the source's
    /// pixel `left` and is [`BEHIND`] bytes longer than the last pair.
    fn spread(self, row: &[u8], left: u32, taps: &[Tap], precision: u32, to: &mut [u8]) {
        match self {
            // SAFETY: `detect` has found AVX2 on this machine.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { avx2::spread(row, left, taps, precision, to) },
            Self::Any => spread(row, left, taps, precision, to),
        }
    }
}

#[inline(always)]
fn mean(first: u8, second: u8, weights: [i16; 2], precision: u32) -> u8 {
    let sum = i32::from(first) * i32::from(weights[0]) + i32::from(second) * i32::from(weights[1]);
    // Two rounded weights may be one too many in sum.
    ((sum + ((1 << precision) >> 1)) >> precision).min(255) as u8
}

#[inline(always)]
fn blend([first, second]: [&[u8]; 2], weights: [i16; 2], precision: u32, to: &mut [u8]) {
    for ((to, &first), &second) in to.iter_mut().zip(first).zip(second) {
        *to = mean(first, second, weights, precision);
    }
}

#[inline(always)]
fn spread(row: &[u8], left: u32, taps: &[Tap], precision: u32, to: &mut [u8]) {
    for (to, tap) in to.chunks_exact_mut(3).zip(taps) {
        let at = (tap.start - left) as usize * 3;
        let pair = &row[at..at + 6];
        for channel in 0..3 {
            to[channel] = mean(pair[channel], pair[channel + 3], tap.weights, precision);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::Tap;

    /// The plain loop, which the compiler turns into vectors.
    #[target_feature(enable = "avx2")]
    pub(super) fn blend(rows: [&[u8]; 2], weights: [i16; 2], precision: u32, to: &mut [u8]) {
        super::blend(rows, weights, precision, to);
    }

    /// Four pixels at a time: their pairs as 16-bit numbers beside each other, multiplied and
    /// added in one instruction.
    #[target_feature(enable = "avx2")]
    pub(super) fn spread(row: &[u8], left: u32, taps: &[Tap], precision: u32, to: &mut [u8]) {
        let half = _mm256_set1_epi32(1 << precision >> 1);
        let shift = _mm_cvtsi32_si128(precision as i32);
        // R of both pixels, G of both, B of both; for two pairs of pixels.
        let pairs = _mm_setr_epi8(0, 3, 1, 4, 2, 5, -1, -1, 8, 11, 9, 12, 10, 13, -1, -1);
        let tight = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
        let two = |one: &Tap, other: &Tap| {
            let at = |tap: &Tap| {
                let at = (tap.start - left) as usize * 3;
                // Eight bytes: the pair and two that are not looked at.
                row[at..at + 8].try_into().map_or(0, i64::from_le_bytes)
            };
            let pixels =
                _mm256_cvtepu8_epi16(_mm_shuffle_epi8(_mm_set_epi64x(at(other), at(one)), pairs));
            let both =
                |tap: &Tap| i32::from(tap.weights[1]) << 16 | i32::from(tap.weights[0] as u16);
            let weights = _mm256_set_m128i(_mm_set1_epi32(both(other)), _mm_set1_epi32(both(one)));
            let sum = _mm256_madd_epi16(pixels, weights);
            _mm256_sra_epi32(_mm256_add_epi32(sum, half), shift)
        };
        let (fours, rest) = taps.as_chunks::<4>();
        let (whole, end) = to.split_at_mut(fours.len() * 12);
        for (to, [a, b, c, d]) in whole.as_chunks_mut::<12>().0.iter_mut().zip(fours) {
            // Packing works in halves of a register: so a and b end in the lower, c and d above.
            let words = _mm256_packs_epi32(two(a, c), two(b, d));
            let bytes = _mm256_packus_epi16(words, words);
            let bytes = _mm256_castsi256_si128(_mm256_permute4x64_epi64::<0b1000>(bytes));
            let bytes = _mm_shuffle_epi8(bytes, tight);
            to[..8].copy_from_slice(&_mm_cvtsi128_si64(bytes).to_le_bytes());
            to[8..].copy_from_slice(&_mm_extract_epi32::<2>(bytes).to_le_bytes());
        }
        super::spread(row, left, rest, precision, end);
    }
}

#[cfg(test)]
mod tests {
    use fast_image_resize::images::{TypedImage, TypedImageRef};
    use fast_image_resize::pixels::U8x3;
    use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
    use proptest::prelude::*;

    use super::*;

    fn theirs(rgb: &[u8], from: (u32, u32), to: (u32, u32)) -> Vec<u8> {
        let mut out = vec![0; (to.0 * to.1 * 3) as usize];
        let source = TypedImageRef::<U8x3>::from_buffer(from.0, from.1, rgb).unwrap();
        let mut target = TypedImage::<U8x3>::from_buffer(to.0, to.1, &mut out).unwrap();
        let bilinear = ResizeAlg::Interpolation(FilterType::Bilinear);
        let options = ResizeOptions::new().resize_alg(bilinear);
        Resizer::new().resize_typed(&source, &mut target, &options).unwrap();
        out
    }

    fn noise(count: usize, mut seed: u32, contrast: bool) -> Vec<u8> {
        let byte = |_| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let byte = (seed >> 24) as u8;
            if contrast { if byte < 128 { 0 } else { 255 } } else { byte }
        };
        (0..count).map(byte).collect()
    }

    fn agrees(bilinear: &mut Bilinear, from: (u32, u32), to: (u32, u32), seed: u32) {
        let source = noise((from.0 * from.1 * 3) as usize, seed, seed % 2 == 1);
        let expected = theirs(&source, from, to);
        // Into the middle of something larger, whose other bytes must stay.
        let (stride, left) = (to.0 as usize * 3 + 7, 5);
        let mut out = vec![9; stride * to.1 as usize + left];
        let (width, height) = to;
        let target = Target { rgb: &mut out[left..], width, height, stride };
        bilinear.run(&source, from.0, from.1, target);
        let row = width as usize * 3;
        for (y, expected) in expected.chunks_exact(row).enumerate() {
            let at = left + y * stride;
            assert!(out[at..at + row] == *expected, "{from:?} to {to:?}, row {y}");
        }
        let others = out.len() - expected.len();
        let rows = |y: usize| left + y * stride..left + y * stride + row;
        let inside: Vec<_> = (0..height as usize).map(rows).collect();
        let kept = out
            .iter()
            .enumerate()
            .filter(|(i, v)| **v == 9 && !inside.iter().any(|r| r.contains(i)));
        assert_eq!(kept.count(), others);
    }

    #[test]
    fn sizes_that_people_have_agree_with_the_crate() {
        let mut bilinear = Bilinear::default();
        for (from, to) in [
            ((500, 375), (640, 480)),
            ((333, 500), (426, 640)),
            ((1920, 1080), (640, 360)),
            ((4000, 3000), (640, 480)),
            ((641, 479), (640, 478)),
            ((640, 426), (640, 427)),
            ((100, 75), (640, 480)),
            ((320, 320), (640, 640)),
            ((1280, 1280), (640, 640)),
        ] {
            agrees(&mut bilinear, from, to, from.0);
        }
    }

    #[test]
    fn rows_longer_than_what_is_kept_agree_too() {
        let mut bilinear = Bilinear::default();
        for (from, to) in
            [((70_001, 2), (640, 1)), ((200_000, 3), (8, 2)), ((140_000, 1), (139_999, 1))]
        {
            agrees(&mut bilinear, from, to, from.0);
            assert!(bilinear.row.len() <= MOST * 3 + 3 + BEHIND);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
        #[test]
        fn any_size_agrees_with_the_crate(
            from in (1u32..90, 1u32..40),
            to in (1u32..90, 1u32..40),
            seed: u32,
        ) {
            agrees(&mut Bilinear::default(), from, to, seed);
        }

        #[test]
        fn all_instructions_give_the_same(
            from in 1u32..300,
            to in 1u32..300,
            seed: u32,
        ) {
            let mut axis = Axis::default();
            axis.set(from, to + u32::from(from == to));
            let row = noise(from as usize * 3 + 3 + BEHIND, seed, seed % 2 == 1);
            let other = noise(row.len(), !seed, false);
            let (mut plain, mut ours) = (vec![0; axis.taps.len() * 3], vec![0; axis.taps.len() * 3]);
            spread(&row, 0, &axis.taps, axis.precision, &mut plain);
            Lanes::detect().spread(&row, 0, &axis.taps, axis.precision, &mut ours);
            prop_assert_eq!(&plain, &ours);
            for tap in &axis.taps {
                let (mut plain, mut ours) = (vec![0; row.len()], vec![0; row.len()]);
                blend([&row, &other], tap.weights, axis.precision, &mut plain);
                Lanes::detect().blend([&row, &other], tap.weights, axis.precision, &mut ours);
                prop_assert_eq!(&plain, &ours);
            }
        }
    }
}
