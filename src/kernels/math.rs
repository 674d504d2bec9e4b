//! SiLU as the f32 kernels compute it, one number at a time.
//!
//! The vector kernels do the same operations in the same order, so that their bits agree:
//! t = clamp(−x · log₂e), n = round(t), f = t − n, 2ᶠ by a polynomial, scaled by 2ⁿ by adding to
//! its exponent, and x / (1 + 2ᵗ).

/// −log₂e.
pub(super) const NEG_LOG2_E: f32 = -std::f32::consts::LOG2_E;
/// Beyond this, 2ᵗ would leave the normal numbers and x / (1 + 2ᵗ) is x or nothing.
pub(super) const LIMIT: f32 = 125.0;
/// 2ᶠ for −½ ≤ f ≤ ½, highest power first; relative error 2·10⁻⁷ at most (minimax of degree 5).
#[allow(clippy::approx_constant, reason = "the best fit is near ln 2, and is not ln 2")]
pub(super) const EXP2: [f32; 6] =
    [1.326_472_7e-3, 9.671_513e-3, 5.550_733_6e-2, 2.402_224_2e-1, 6.931_47e-1, 1.0];

/// x · sigmoid(x), to about 6·10⁻⁷ of its value where it matters (worst near −8.9, where the
/// rounding of t weighs most); below −87, where it is next to nothing, x · 2⁻¹²⁵; NaN stays NaN.
#[must_use]
pub fn silu(x: f32) -> f32 {
    let t = (x * NEG_LOG2_E).clamp(-LIMIT, LIMIT);
    let n = t.round_ties_even();
    let f = t - n;
    let mut p = EXP2[0];
    for c in &EXP2[1..] {
        p = p.mul_add(f, *c);
    }
    let e = f32::from_bits(p.to_bits().wrapping_add_signed((n as i32) << 23));
    x / (1.0 + e)
}

/// The points at which Winograd's scheme evaluates polynomials: 0, ±A, ±B, and infinity. Small
/// fractions, so that all that is made of them is exact in f32; and of those pairs that were tried on
/// noise and on YOLOv8n, the one with the smallest errors: half of those of ±1 and ±2.
pub(super) const A: f32 = 0.75;
/// See [`A`].
pub(super) const B: f32 = 1.5;
/// A² + B².
pub(super) const SUM: f32 = A * A + B * B;
/// A² · B².
pub(super) const PRODUCT: f32 = A * A * B * B;

/// What transformations of Winograd's scheme are made of: one number, or one for each of some lanes.
pub(super) trait Number: Copy {
    fn plus(self, other: Self) -> Self;
    fn minus(self, other: Self) -> Self;
    fn times(self, factor: f32) -> Self;
    /// `self · factor + other`, rounded once.
    fn times_plus(self, factor: f32, other: Self) -> Self;
}

impl Number for f32 {
    fn plus(self, other: Self) -> Self {
        self + other
    }

    fn minus(self, other: Self) -> Self {
        self - other
    }

    fn times(self, factor: f32) -> Self {
        self * factor
    }

    fn times_plus(self, factor: f32, other: Self) -> Self {
        self.mul_add(factor, other)
    }
}

/// Bᵀ of Winograd's scheme, applied to six neighbouring inputs.
#[inline(always)]
pub(super) fn winograd_input<T: Number>(d: [T; 6]) -> [T; 6] {
    let (even_a, odd_a) = (d[2].times_plus(-B * B, d[4]), d[1].times_plus(-B * B, d[3]));
    let (even_b, odd_b) = (d[2].times_plus(-A * A, d[4]), d[1].times_plus(-A * A, d[3]));
    [
        d[0].times_plus(PRODUCT, d[2].times_plus(-SUM, d[4])),
        odd_a.times_plus(A, even_a),
        odd_a.times_plus(-A, even_a),
        odd_b.times_plus(B, even_b),
        odd_b.times_plus(-B, even_b),
        d[1].times_plus(PRODUCT, d[3].times_plus(-SUM, d[5])),
    ]
}

/// G of Winograd's scheme, applied to three neighbouring weights.
#[must_use]
#[inline]
pub fn winograd_weights(g: [f64; 3]) -> [f64; 6] {
    let (a, b) = (f64::from(A), f64::from(B));
    let at = |p: f64, scale: f64| {
        let (even, odd) = (g[0] + p * p * g[2], p * g[1]);
        [(even + odd) * scale, (even - odd) * scale]
    };
    let at_a = at(a, 1.0 / (2.0 * a * a * (a * a - b * b)));
    let at_b = at(b, 1.0 / (2.0 * b * b * (b * b - a * a)));
    [g[0] * (1.0 / f64::from(PRODUCT)), at_a[0], at_a[1], at_b[0], at_b[1], g[2]]
}

/// Aᵀ of Winograd's scheme, applied to six sums of products.
#[inline(always)]
pub(super) fn winograd_output<T: Number>(m: [T; 6]) -> [T; 4] {
    let (even_a, odd_a) = (m[1].plus(m[2]), m[1].minus(m[2]));
    let (even_b, odd_b) = (m[3].plus(m[4]), m[3].minus(m[4]));
    [
        m[0].plus(even_a.plus(even_b)),
        odd_b.times_plus(B, odd_a.times(A)),
        even_b.times_plus(B * B, even_a.times(A * A)),
        odd_b.times_plus(B * B * B, odd_a.times_plus(A * A * A, m[5])),
    ]
}

/// Where tanh's table ends: the last number that rounds to 31 eighths.
pub(super) const TANH_END: f32 = 3.937_499_8;
/// Added to a number below 2¹⁸ it leaves the number of eighths in the lowest bits, rounded.
pub(super) const EIGHTHS: f32 = 1_572_864.0;
/// tanh t ≈ `TANH[0][i] + TANH[1][i] · t` with i = round(8 t): 32 lines, each as close as a line can
/// be (the first through 0; the last is 1, so that large numbers are exact); 10⁻³ off at most.
pub(super) const TANH: [[f32; 32]; 2] = [
    [
        0.0,
        0.001_201_537,
        0.009_717_549,
        0.031_167_861,
        0.068_368_964,
        0.121_132_836,
        0.186_848_54,
        0.261_481_37,
        0.340_591_37,
        0.420_107_93,
        0.496_771_96,
        0.568_284_5,
        0.633_254_23,
        0.691_040_9,
        0.741_564_75,
        0.785_127_7,
        0.822_263_7,
        0.853_626_2,
        0.879_908_74,
        0.901_792_76,
        0.919_916_1,
        0.934_856_7,
        0.947_125_6,
        0.957_166_97,
        0.965_361_5,
        0.972_031_83,
        0.977_449_54,
        0.981_841_15,
        0.985_394_66,
        0.988_265_5,
        0.990_581_5,
        1.0,
    ],
    [
        0.999_025,
        0.983_315_65,
        0.939_012_2,
        0.870_882_63,
        0.786_079_35,
        0.692_348_66,
        0.596_748_2,
        0.504_835_55,
        0.420_378_33,
        0.345_464_8,
        0.280_837_66,
        0.226_293_79,
        0.181_049_63,
        0.144_028,
        0.114_057_936,
        0.090_000_06,
        0.070_815_384,
        0.055_595_852,
        0.043_570_79,
        0.034_099_765,
        0.026_658_759,
        0.020_823_946,
        0.016_255_513,
        0.012_682_809_5,
        0.009_891_368,
        0.007_711_904_6,
        0.006_011_2,
        0.004_684_662,
        0.003_650_321_6,
        0.002_844_028_4,
        0.002_215_632_5,
        0.0,
    ],
];

/// x · sigmoid(x) as the bf16 kernels compute it: h + |h| · tanh |h| with h = x / 2. Off by less
/// than 10⁻³ · |h|, which rounding to bf16 drowns; eight instructions, no division.
#[must_use]
pub fn silu_coarse(x: f32) -> f32 {
    let h = x * 0.5;
    let size = h.abs();
    // As `vminps`: a NaN gives the second operand, and reaches the result by `size`.
    let t = if size < TANH_END { size } else { TANH_END };
    let index = ((t + EIGHTHS).to_bits() & 31) as usize;
    let tanh = t.mul_add(TANH[1][index], TANH[0][index]);
    size.mul_add(tanh, h)
}

/// The nearest bf16, ties to even; NaN stays NaN.
#[must_use]
pub fn to_bf16(x: f32) -> u16 {
    half::bf16::from_f32(x).to_bits()
}

/// The same number in single precision.
#[must_use]
pub fn from_bf16(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coarse_silu_is_close_enough_for_bf16() {
        let mut x = -60.0f32;
        while x < 60.0 {
            let exact = f64::from(x) / (1.0 + (-f64::from(x)).exp());
            let error = (f64::from(silu_coarse(x)) - exact).abs();
            assert!(error <= 5e-4 * f64::from(x.abs()) + 1e-6, "{x}: {error:.2e}");
            x += 0.001;
        }
        assert_eq!(silu_coarse(0.0), 0.0);
        assert_eq!(silu_coarse(1e30), 1e30);
        assert_eq!(silu_coarse(-1e30), 0.0);
        assert!(silu_coarse(f32::NAN).is_nan());
        // The magic number counts eighths, and half-way goes to the even one.
        for (t, eighths) in [(0.0f32, 0), (0.07, 1), (1.0, 8), (3.9, 31), (TANH_END, 31)] {
            assert_eq!((t + EIGHTHS).to_bits() & 63, eighths, "{t}");
        }
    }

    #[test]
    fn silu_is_close_over_its_range() {
        let mut worst = 0.0f64;
        let mut x = -100.0f32;
        while x < 100.0 {
            let exact = f64::from(x) / (1.0 + (-f64::from(x)).exp());
            let error = (f64::from(silu(x)) - exact).abs() / exact.abs().max(1e-3);
            worst = worst.max(error);
            x += 0.000_7 + x.abs() * 1e-4;
        }
        println!("worst error {worst:.2e}");
        assert!(worst < 6.5e-7, "{worst:.2e}");
        assert_eq!(silu(0.0), 0.0);
        assert_eq!(silu(1e30), 1e30);
        assert!(silu(-1e30).abs() < 1e-6);
        assert!(silu(f32::NAN).is_nan());
    }
}
