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
