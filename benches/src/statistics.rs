//! Medians and quantiles of what was measured.

use std::time::Duration;

/// The value below which so many thousandths of the sorted values lie, by the nearest rank; zero for none.
pub fn quantile(sorted: &[Duration], per_mille: usize) -> Duration {
    let rank = (per_mille * sorted.len()).div_ceil(1000);
    sorted
        .get(rank.clamp(1, sorted.len().max(1)) - 1)
        .copied()
        .unwrap_or_default()
}

/// Median, minimum and maximum of one figure over the rounds.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Spread {
    /// The middle value (the mean of the two in the middle for an even count).
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// How many rounds had the figure.
    pub rounds: usize,
}

/// The spread of some values; nothing for none.
pub fn spread(values: &[f64]) -> Option<Spread> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    let median = if sorted.len() % 2 == 1 {
        upper
    } else {
        f64::midpoint(*sorted.get(middle.checked_sub(1)?)?, upper)
    };
    Some(Spread {
        median,
        min: *sorted.first()?,
        max: *sorted.last()?,
        rounds: sorted.len(),
    })
}

/// The middle value alone; nothing for none.
pub fn median(values: &[f64]) -> Option<f64> {
    spread(values).map(|spread| spread.median)
}

#[cfg(test)]
mod tests {
    use super::{Spread, quantile, spread};
    use std::time::Duration;

    #[test]
    fn quantiles_by_nearest_rank() {
        let values: Vec<Duration> = (1..=1000).map(Duration::from_micros).collect();
        for (per_mille, expected) in [(0, 1), (500, 500), (990, 990), (999, 999), (1000, 1000)] {
            assert_eq!(
                quantile(&values, per_mille),
                Duration::from_micros(expected),
                "{per_mille}"
            );
        }
        let few: Vec<Duration> = (1..=10).map(Duration::from_micros).collect();
        assert_eq!(quantile(&few, 990), Duration::from_micros(10));
        assert_eq!(quantile(&[], 500), Duration::ZERO);
    }

    #[test]
    fn spreads() {
        let even = Spread {
            median: 2.5,
            min: 1.0,
            max: 4.0,
            rounds: 4,
        };
        assert_eq!(spread(&[4.0, 1.0, 3.0, 2.0]), Some(even));
        assert_eq!(
            spread(&[7.0, 9.0, 8.0]).map(|spread| (spread.median, spread.rounds)),
            Some((8.0, 3))
        );
        assert_eq!(spread(&[]), None);
    }
}
