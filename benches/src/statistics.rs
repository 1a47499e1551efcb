//! Medians and percentiles of what was measured.

use std::time::Duration;

/// The value below which so many `percent` of the sorted values lie, by the nearest rank; zero for none.
pub fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (percent * sorted.len()).div_ceil(100);
    sorted
        .get(rank.clamp(1, sorted.len().max(1)) - 1)
        .copied()
        .unwrap_or_default()
}

/// Median, minimum and maximum of one figure over the rounds.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Spread {
    /// The middle value (the mean of the two in the middle for an even count).
    pub median: f64,
    /// The smallest.
    pub minimum: f64,
    /// The largest.
    pub maximum: f64,
}

/// The spread of some values; zeros for none.
pub fn spread(values: &[f64]) -> Spread {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
    let middle = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 {
        at(middle)
    } else {
        (at(middle.saturating_sub(1)) + at(middle)) / 2.0
    };
    Spread {
        median,
        minimum: at(0),
        maximum: at(sorted.len().saturating_sub(1)),
    }
}

#[cfg(test)]
mod tests {
    use super::{percentile, spread};
    use std::time::Duration;

    #[test]
    fn percentiles_by_nearest_rank() {
        let values: Vec<Duration> = (1..=100).map(Duration::from_micros).collect();
        for (percent, expected) in [(0, 1), (50, 50), (99, 99), (100, 100)] {
            assert_eq!(
                percentile(&values, percent),
                Duration::from_micros(expected),
                "{percent}"
            );
        }
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }

    #[test]
    fn spreads() {
        let even = spread(&[4.0, 1.0, 3.0, 2.0]);
        assert_eq!((even.median, even.minimum, even.maximum), (2.5, 1.0, 4.0));
        assert_eq!(spread(&[7.0]).median, 7.0);
        assert_eq!(spread(&[]).median, 0.0);
    }
}
