//! The arithmetic of TDPBF16PS: the scalar version against known cases and the processor's FMA,
//! the fast versions against the scalar one.

use super::Random;
use super::amx::{Scratch, Tile, Way, dot_by, fma};
use proptest::prelude::*;

const SIGN: u32 = 0x8000_0000;
const INF: u32 = 0x7f80_0000;
const NAN: u32 = 0xffc0_0000;
const TINY: u32 = 0x0080_0000;

fn bits(x: f32) -> u32 {
    x.to_bits()
}

#[test]
fn fma_rounds_once_and_to_even() {
    let eps = f32::EPSILON;
    // A product of 2^-24 is half of what 1 can hold: the tie goes to even.
    assert_eq!(fma(bits(eps), bits(0.5), bits(1.0)), bits(1.0));
    assert_eq!(fma(bits(eps), bits(0.5), bits(1.0 + eps)), bits(1.0 + 2.0 * eps));
    // The least bit more, far below what f64 holds beside 1, breaks the tie.
    let more = 1.0 + 1.0 / 128.0;
    assert_eq!(fma(bits(eps), bits(0.5 * more), bits(1.0)), bits(1.0 + eps));
    // Once: (1 + 2^-7)^2 - (1 + 2^-6) is 2^-14 and would be that also rounded twice, but
    // (1 + 2^-12)^2 - (1 + 2^-11) = 2^-24 is lost by a rounded product.
    let x = 1.0 + f32::powi(2.0, -12);
    let y = 1.0 + f32::powi(2.0, -11);
    assert_eq!(fma(bits(x), bits(x), bits(-y)), bits(f32::powi(2.0, -24)));
    // 1 + eps + 2^-24 - 2^-54: just below half way, which f64 would take for half way.
    let least = f32::powi(2.0, -15);
    let half = f32::powi(2.0, -24);
    assert_eq!(
        fma(bits(half * (1.0 + least)), bits(1.0 - least), bits(1.0 + eps)),
        bits(1.0 + eps)
    );
    assert_eq!(fma(bits(f32::MAX), bits(2.0), bits(0.0)), INF);
    assert_eq!(fma(bits(f32::MAX), bits(-2.0), bits(0.0)), INF | SIGN);
}

#[test]
fn fma_takes_and_gives_denormals_as_zeros() {
    assert_eq!(fma(1, bits(1e30), bits(0.0)), 0);
    assert_eq!(fma(0x007f_ffff, bits(1.0), bits(3.0)), bits(3.0));
    assert_eq!(fma(bits(0.0), bits(0.0), 0x807f_ffff), 0);
    assert_eq!(fma(SIGN, bits(1.0), 0x807f_ffff), SIGN);
    // Half of the least normal number is none. What rounds up to it, were the exponent without
    // bound, is one.
    assert_eq!(fma(TINY, bits(0.5), 0), 0);
    assert_eq!(fma(TINY, bits(-0.5), 0), SIGN);
    // 2^-126 - 2^-152 has 26 bits and rounds to 2^-126: not tiny.
    let (x, y) = (f32::powi(2.0, -76), f32::powi(2.0, -76));
    assert_eq!(fma(bits(-x), bits(y), TINY), TINY);
    // 2^-126 - 2^-150 has 24 bits: tiny, and exactly so.
    assert_eq!(fma(bits(-x), bits(y * 4.0), TINY), 0);
    // 2^-126 - 2^-151 is half way and goes to even, to 2^-126.
    assert_eq!(fma(bits(-x), bits(y * 2.0), TINY), TINY);
}

#[test]
fn fma_knows_what_is_no_number() {
    assert_eq!(fma(INF, bits(0.0), bits(1.0)), NAN);
    // A denormal counts as a zero here too.
    assert_eq!(fma(INF, 1, bits(1.0)), NAN);
    assert_eq!(fma(INF, bits(1.0), INF | SIGN), NAN);
    assert_eq!(fma(INF, bits(-1.0), INF | SIGN), INF | SIGN);
    assert_eq!(fma(bits(1.0), bits(1.0), INF), INF);
    // The first NaN of the three, made quiet.
    assert_eq!(fma(0x7f80_0001, 0x7fc0_0002, 0x7fc0_0003), 0x7fc0_0001);
    assert_eq!(fma(bits(0.0), 0xff80_0002, 0x7fc0_0003), 0xffc0_0002);
    assert_eq!(fma(INF, bits(0.0), 0x7f80_0003), 0x7fc0_0003);
}

#[test]
fn fma_agrees_with_the_library_where_no_denormal_is_met() {
    let mut random = Random(7);
    let mut seen = 0;
    while seen < 300_000 {
        let mut number = |low: u64, span: u64| {
            let exponent = low + random.below(span);
            f32::from_bits((random.below(1 << 23) | exponent << 23 | random.below(2) << 31) as u32)
        };
        let (x, y, z) = (number(100, 50), number(100, 50), number(60, 130));
        let expected = x.mul_add(y, z);
        if expected.is_normal() || expected == 0.0 {
            assert_eq!(fma(bits(x), bits(y), bits(z)), bits(expected), "{x:e} {y:e} {z:e}");
            seen += 1;
        }
    }
}

/// A bf16 of a kind: plain, tiny products, huge products, few bits for ties, or anything.
fn element(random: &mut Random, kind: u64) -> u16 {
    let exponent = match kind {
        0 => 117 + random.below(20),
        1 => 54 + random.below(18),
        2 => 175 + random.below(40),
        3 => 115 + random.below(24),
        _ => return random.next() as u16,
    };
    let mantissa = if kind == 3 { random.below(4) << 5 } else { random.below(128) };
    (random.below(2) << 15 | exponent << 7 | mantissa) as u16
}

fn tile(random: &mut Random, kind: u64, rows: usize, columns: usize) -> Tile {
    let mut tile = Tile::ZERO;
    for row in &mut tile.0[..rows] {
        for word in &mut row[..columns] {
            let (low, high) = (element(random, kind), element(random, kind));
            *word = u32::from(low) | u32::from(high) << 16;
        }
    }
    tile
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_fast_ways_give_the_bits_of_the_scalar_one(
        seed in any::<u64>(),
        kind in 0_u64..6,
        rows in 1_usize..=16,
        depth in 1_usize..=16,
        columns in 1_usize..=16,
    ) {
        let mut random = Random(seed | 1);
        let a = tile(&mut random, kind, rows, depth);
        let b = tile(&mut random, kind, depth, columns);
        let mut c = tile(&mut random, kind, rows, columns);
        if kind == 1 {
            // Sums near the least normal number, where a product's sign decides.
            for word in c.0.iter_mut().flatten() {
                *word &= 0x81ff_ffff;
            }
            c.0[rows..].fill([0; 16]);
        }
        let mut scratch = Box::new(Scratch::new());
        let shape = (rows, depth, columns);
        let mut expected = c;
        dot_by(Way::Scalar, &mut expected, &a, &b, shape, &mut scratch);
        for way in Way::all() {
            let mut got = c;
            dot_by(way, &mut got, &a, &b, shape, &mut scratch);
            prop_assert_eq!(got, expected, "{:?} of {:?}", way, shape);
        }
    }
}

/// One product of which each part is told apart: two chains, the destination last.
#[test]
fn the_order_of_the_sum() {
    let pair = |low: f32, high: f32| bits(low) >> 16 | bits(high) & 0xffff_0000;
    let (mut a, mut b, mut c) = (Tile::ZERO, Tile::ZERO, Tile::ZERO);
    // even: 2^24 + 1 - 2^24 = 0 as 2^24 + 1 rounds to 2^24; odd: 1; destination: 2^-1.
    let big = f32::powi(2.0, 24);
    for (k, (even, odd)) in [(big, 1.0), (1.0, 0.0), (-big, 0.0)].into_iter().enumerate() {
        a.0[0][k] = pair(even, odd);
        b.0[k][0] = pair(1.0, 1.0);
    }
    c.0[0][0] = bits(0.5);
    let mut scratch = Box::new(Scratch::new());
    for way in Way::all() {
        let mut got = c;
        dot_by(way, &mut got, &a, &b, (1, 3, 1), &mut scratch);
        assert_eq!(f32::from_bits(got.0[0][0]), 1.5, "{way:?}");
    }
    // The destination comes last: -2^24 + (2^24 + 1) would be 1, were it first.
    a.0[0] = [0; 16];
    a.0[0][0] = pair(big, 0.0);
    a.0[0][1] = pair(1.0, 0.0);
    c.0[0][0] = bits(-big);
    for way in Way::all() {
        let mut got = c;
        dot_by(way, &mut got, &a, &b, (1, 2, 1), &mut scratch);
        assert_eq!(f32::from_bits(got.0[0][0]), 0.0, "{way:?}");
    }
}
