//! Many times of the same thing, in a few numbers.

use std::time::Duration;

use serde::Serialize;

/// Quantiles in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Times {
    /// A tenth took less.
    pub p10: f64,
    /// Half took less.
    pub median: f64,
    /// Nine tenths took less.
    pub p90: f64,
    /// How many there were.
    pub count: usize,
}

impl Times {
    pub(super) fn of(mut times: Vec<Duration>) -> Times {
        times.sort_unstable();
        let at = |share: f64| {
            let index = (times.len().saturating_sub(1)) as f64 * share;
            times.get(index.round() as usize).map_or(0.0, |time| time.as_secs_f64() * 1e3)
        };
        Times { p10: at(0.1), median: at(0.5), p90: at(0.9), count: times.len() }
    }
}

/// The value that a tenth of `values` is below.
pub(super) fn p10(values: &mut [u64]) -> f64 {
    values.sort_unstable();
    let index = (values.len().saturating_sub(1) as f64 * 0.1).round() as usize;
    values.get(index).map_or(0.0, |&value| value as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_sorted_times() {
        let times = Times::of((0..=100).rev().map(Duration::from_millis).collect());
        assert_eq!((times.p10, times.median, times.p90, times.count), (10.0, 50.0, 90.0, 101));
        assert_eq!(Times::of(Vec::new()), Times::default());
        assert_eq!(p10(&mut [9, 1, 5]), 1.0);
    }
}
