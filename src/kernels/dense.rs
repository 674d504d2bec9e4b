//! The head decoded in full, sixteen cells at a time: what other programs give as their output.
//!
//! For comparisons and measurements only. Jobs decode the few cells that pass their threshold, in
//! double precision, by `yolo`.

use super::math::{EXP2, LIMIT, NEG_LOG2_E};
use super::memory::Memory;
use super::table::Kernels;
use super::task::Place;

/// Cells that are decoded together.
pub const CELLS: usize = 16;

/// A number of each of them.
pub type Row = [f32; CELLS];

impl Kernels {
    /// The first channels of `count` neighbouring pixels, the first of which lies at `place`: a row of
    /// pixels for each channel.
    ///
    /// # Panics
    /// When the pixels leave the arena, or are more than [`CELLS`]: a bug of whoever chose the place.
    pub fn columns(&self, arena: &Memory, place: &Place, count: usize, rows: &mut [Row]) {
        let (floats, px) = (&arena.floats()[place.at / 4..], place.px / 4);
        assert!(count <= CELLS, "{count} cells at once. This is a bug.");
        let mut done = 0;
        #[cfg(target_arch = "x86_64")]
        if count == CELLS && super::Cpu::get().has(super::Tier::Avx512) {
            for (index, rows) in rows.as_chunks_mut::<CELLS>().0.iter_mut().enumerate() {
                done = CELLS * (index + 1);
                let from = &floats[CELLS * index..][..(CELLS - 1) * px + CELLS];
                // SAFETY: the CPU has AVX-512; the slice ends with the last pixel's channels.
                unsafe { super::x86::avx512::transpose(from.as_ptr(), px, rows) };
            }
        }
        for (channel, row) in rows.iter_mut().enumerate().skip(done) {
            for (cell, value) in row[..count].iter_mut().enumerate() {
                *value = floats[cell * px + channel];
            }
        }
    }

    /// Box logits (4 sides × bins) to the expectation of each side's bins, and class logits to
    /// sigmoids, in place; in single precision, to about 10⁻⁶.
    pub fn decode(&self, boxes: &mut [Row], scores: &mut [Row], sides: &mut [Row; 4]) {
        use super::cpu::Tier;
        match self.tier() {
            Tier::Portable | Tier::Reference => decode::<false>(boxes, scores, sides),
            // SAFETY: `new` saw the features; the body is safe code.
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2 => unsafe { decode_avx2(boxes, scores, sides) },
            // SAFETY: as above; what is neither of those has AVX-512.
            #[cfg(target_arch = "x86_64")]
            _ => unsafe { decode_avx512(boxes, scores, sides) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => decode::<false>(boxes, scores, sides),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn decode_avx512(boxes: &mut [Row], scores: &mut [Row], sides: &mut [Row; 4]) {
    decode::<true>(boxes, scores, sides);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn decode_avx2(boxes: &mut [Row], scores: &mut [Row], sides: &mut [Row; 4]) {
    decode::<true>(boxes, scores, sides);
}

#[inline(always)]
fn decode<const FUSED: bool>(boxes: &mut [Row], scores: &mut [Row], sides: &mut [Row; 4]) {
    let bins = boxes.len() / 4;
    for (rows, side) in boxes.chunks_exact_mut(bins.max(1)).zip(sides) {
        let mut largest = [f32::NEG_INFINITY; CELLS];
        for row in &*rows {
            for (largest, &x) in largest.iter_mut().zip(row) {
                *largest = if x > *largest { x } else { *largest };
            }
        }
        let (mut sum, mut weighted) = ([0.0f32; CELLS], [0.0f32; CELLS]);
        for (bin, row) in rows.iter().enumerate() {
            for i in 0..CELLS {
                let e = exp::<FUSED>(largest[i] - row[i]);
                sum[i] += e;
                weighted[i] += e * bin as f32;
            }
        }
        for i in 0..CELLS {
            side[i] = weighted[i] / sum[i];
        }
    }
    for row in scores {
        for x in row {
            *x = 1.0 / (1.0 + exp::<FUSED>(*x));
        }
    }
}

/// e to the power of −`x`, as [`super::math::silu`] has it.
#[inline(always)]
fn exp<const FUSED: bool>(x: f32) -> f32 {
    let fma = |a: f32, b: f32, c: f32| if FUSED { a.mul_add(b, c) } else { a * b + c };
    let t = (x * NEG_LOG2_E).clamp(-LIMIT, LIMIT);
    // Adding and taking away 1.5 · 2²³ rounds to an integer, which the sum's low bits then are.
    let shifted = t + ROUND;
    let n = shifted - ROUND;
    let f = t - n;
    let mut p = EXP2[0];
    for c in &EXP2[1..] {
        p = fma(p, f, *c);
    }
    f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// 1.5 · 2²³: numbers near it are integers.
const ROUND: f32 = 12_582_912.0;

#[cfg(test)]
mod tests {
    use super::super::{Cpu, Tier};
    use super::*;

    #[test]
    fn columns_are_the_channels_of_neighbours() {
        let (px, cells) = (48, 21);
        let mut arena = Memory::new(4 * px * cells).unwrap();
        for (index, value) in arena.floats_mut().iter_mut().enumerate() {
            *value = index as f32;
        }
        let kernels = Kernels::new(Tier::Portable).unwrap();
        for (first, count, channels) in
            [(0, 16, 48), (5, 16, 32), (3, 16, 37), (2, 5, 48), (20, 1, 3)]
        {
            let mut rows = vec![[-1.0; CELLS]; channels];
            let place = Place { at: 4 * px * first, row: 0, px: 4 * px };
            kernels.columns(&arena, &place, count, &mut rows);
            for (channel, row) in rows.iter().enumerate() {
                for (cell, &value) in row.iter().enumerate() {
                    let is =
                        if cell < count { ((first + cell) * px + channel) as f32 } else { -1.0 };
                    assert_eq!(value, is, "{first} {count}: channel {channel}, cell {cell}");
                }
            }
        }
    }

    #[test]
    fn it_is_what_the_formulas_say() {
        let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 5.0;
        let row = |i: usize| -> Row { std::array::from_fn(|cell| value(i * CELLS + cell)) };
        for tier in Tier::ALL.into_iter().filter(|&tier| Cpu::get().has(tier)) {
            let (boxes, scores): (Vec<Row>, Vec<Row>) =
                ((0..32).map(row).collect(), (32..42).map(row).collect());
            let (mut b, mut s, mut sides) = (boxes.clone(), scores.clone(), [[0.0; CELLS]; 4]);
            Kernels::new(tier).unwrap().decode(&mut b, &mut s, &mut sides);
            for cell in 0..CELLS {
                for (before, after) in scores.iter().zip(&s) {
                    let exact = 1.0 / (1.0 + (-f64::from(before[cell])).exp());
                    assert!((f64::from(after[cell]) - exact).abs() < 1e-6, "{tier}");
                }
                for side in 0..4 {
                    let e: Vec<f64> =
                        (0..8).map(|bin| f64::from(boxes[side * 8 + bin][cell]).exp()).collect();
                    let exact = e.iter().enumerate().map(|(bin, e)| bin as f64 * e).sum::<f64>()
                        / e.iter().sum::<f64>();
                    assert!((f64::from(sides[side][cell]) - exact).abs() < 1e-5, "{tier}");
                }
            }
        }
    }
}
