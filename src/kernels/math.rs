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
pub(super) const EXP2: [f32; 6] =
    [1.326_472_7e-3, 9.671_513e-3, 5.550_733_6e-2, 2.402_224_2e-1, 6.931_47e-1, 1.0];

/// x · sigmoid(x), to about 6·10⁻⁷ of its value where it matters (worst near −8.9, where the
/// rounding of t weighs most); NaN stays NaN.
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

/// Where tanh's table ends: the last number that rounds to 31 eighths.
pub(super) const TANH_END: f32 = 3.937_499_8;
/// Added to a number below 2¹⁸ it leaves the number of eighths in the lowest bits, rounded.
pub(super) const EIGHTHS: f32 = 1_572_864.0;
/// tanh t ≈ `TANH[0][i] + TANH[1][i] · t` with i = round(8 t): 32 lines, each as close as a line can
/// be (the first through 0; the last is 1, so that large numbers are exact); 10⁻³ off at most.
pub(super) const TANH: [[f32; 32]; 2] = [
    [
        0.0,
        0.00120153697,
        0.0097175492,
        0.0311678611,
        0.0683689639,
        0.121132836,
        0.186848536,
        0.261481375,
        0.340591371,
        0.420107931,
        0.496771961,
        0.568284512,
        0.63325423,
        0.691040874,
        0.741564751,
        0.785127699,
        0.822263718,
        0.853626192,
        0.879908741,
        0.901792765,
        0.919916093,
        0.934856713,
        0.947125614,
        0.95716697,
        0.965361476,
        0.972031832,
        0.977449536,
        0.981841147,
        0.985394657,
        0.988265514,
        0.990581512,
        1.0,
    ],
    [
        0.999024987,
        0.983315647,
        0.939012229,
        0.87088263,
        0.786079347,
        0.692348659,
        0.596748173,
        0.504835546,
        0.420378327,
        0.345464796,
        0.280837655,
        0.226293787,
        0.18104963,
        0.144027993,
        0.114057936,
        0.0900000632,
        0.0708153844,
        0.0555958524,
        0.0435707904,
        0.0340997651,
        0.0266587585,
        0.0208239462,
        0.0162555128,
        0.0126828095,
        0.00989136845,
        0.00771190459,
        0.00601120014,
        0.00468466198,
        0.00365032163,
        0.00284402841,
        0.00221563247,
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
