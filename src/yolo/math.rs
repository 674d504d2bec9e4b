//! Two functions whose bits do not depend on the machine's math library.

use std::f64::consts::LN_2;

/// e to the power of `x`, to about 1e-15 relative; NaN stays NaN.
///
/// The libm of the host may round `exp` otherwise on another machine, and scores and boxes go
/// into files that must not differ. Only IEEE additions and multiplications are used here, which
/// every machine rounds alike.
pub fn exp(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    if x > 709.0 {
        return f64::INFINITY;
    }
    if x < -708.0 {
        return 0.0;
    }
    // x = n·ln 2 + r with |r| ≤ 0.35, then a Taylor polynomial: 0.35^14 / 14! is below 1e-17.
    let n = (x / LN_2).round();
    let r = x - n * LN_2;
    let mut sum = 1.0;
    for i in (1..=14).rev() {
        sum = 1.0 + sum * r / f64::from(i);
    }
    // |n| ≤ 1023, so the exponent field stays in range.
    sum * f64::from_bits(((n as i64 + 1023) as u64) << 52)
}

/// 1 / (1 + e^-x), rounded once to f32.
pub fn sigmoid(x: f32) -> f32 {
    (1.0 / (1.0 + exp(-f64::from(x)))) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_right_to_the_last_digits() {
        let mut x = -700.0f64;
        while x < 700.0 {
            let (ours, theirs) = (exp(x), x.exp());
            assert!((ours - theirs).abs() <= 1e-13 * theirs, "{x}: {ours} {theirs}");
            x += 0.137;
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f64::INFINITY), f64::INFINITY);
        assert_eq!(exp(f64::NEG_INFINITY), 0.0);
        assert!(exp(f64::NAN).is_nan());
    }

    #[test]
    fn sigmoid_saturates_and_keeps_nan() {
        assert_eq!(sigmoid(0.0), 0.5);
        assert_eq!(sigmoid(f32::INFINITY), 1.0);
        assert_eq!(sigmoid(f32::NEG_INFINITY), 0.0);
        assert!(sigmoid(f32::NAN).is_nan());
    }
}
