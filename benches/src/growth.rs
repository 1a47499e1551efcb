//! How a cost grows with the number of something: medians of rounds, the exponent of the growth, and what that means.

use crate::statistics::{Spread, spread};
use serde::Serialize;
use std::fmt::Write as _;

/// Above it, a cost grows faster than the number: 1 is in proportion, and some room is left for noise.
const LINEAR_MAX: f64 = 1.1;
/// Below it, a cost grows slower.
const LINEAR_MIN: f64 = 0.9;
/// Below it, a cost hardly grows: a thousand times as many cost twice as much at most.
const FLAT_MAX: f64 = 0.1;

/// A cost at some numbers of something.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its name in files.
    pub key: &'static str,
    /// What costs.
    pub title: &'static str,
    /// What there is more and more of.
    pub unit: &'static str,
    /// By number, from the smallest.
    pub points: Vec<Point>,
}

/// A cost at one number.
#[derive(Clone, Debug)]
pub struct Point {
    /// How many.
    pub n: u32,
    /// In µs, by round.
    pub us: Vec<f64>,
}

/// How a cost grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Growth {
    /// Hardly.
    Flat,
    /// Slower than the number.
    BetterThanLinear,
    /// With it.
    Linear,
    /// Faster.
    WorseThanLinear,
    /// Too few points, or no time that could be told from none.
    Unknown,
}

impl Growth {
    fn text(self) -> &'static str {
        match self {
            Self::Flat => "flat",
            Self::BetterThanLinear => "better than linear",
            Self::Linear => "linear",
            Self::WorseThanLinear => "**worse than linear**",
            Self::Unknown => "unknown: too few points",
        }
    }
}

impl Series {
    /// The slope of log time against log n by least squares, round by round: 0 where the cost is the same for any number, 1 where it is in
    /// proportion.
    pub fn exponents(&self) -> Option<Spread> {
        let rounds = self.points.iter().map(|point| point.us.len()).min()?;
        let exponents: Vec<f64> = (0..rounds)
            .filter_map(|round| self.exponent(round))
            .collect();
        spread(&exponents)
    }

    fn exponent(&self, round: usize) -> Option<f64> {
        let logs: Option<Vec<(f64, f64)>> = self
            .points
            .iter()
            .map(|point| {
                let us = point.us.get(round).filter(|us| **us > 0.0)?;
                Some((f64::from(point.n).ln(), us.ln()))
            })
            .collect();
        let logs = logs.filter(|logs| logs.len() > 1)?;
        let count = logs.len() as f64;
        let (x, y) = logs
            .iter()
            .fold((0.0, 0.0), |(x, y), log| (x + log.0, y + log.1));
        let (x, y) = (x / count, y / count);
        let (up, along) = logs.iter().fold((0.0, 0.0), |(up, along), log| {
            (up + (log.0 - x) * (log.1 - y), along + (log.0 - x).powi(2))
        });
        (along > 0.0).then_some(up / along)
    }

    /// What the median of the exponents says.
    pub fn growth(&self) -> Growth {
        match self.exponents().map(|it| it.median) {
            None => Growth::Unknown,
            Some(it) if it <= FLAT_MAX => Growth::Flat,
            Some(it) if it < LINEAR_MIN => Growth::BetterThanLinear,
            Some(it) if it <= LINEAR_MAX => Growth::Linear,
            Some(_) => Growth::WorseThanLinear,
        }
    }

    /// Everything, with the figures of every round.
    pub fn json(&self) -> serde_json::Value {
        let points: Vec<_> = self
            .points
            .iter()
            .map(|point| serde_json::json!({"n": point.n, "us": spread(&point.us), "rounds_us": point.us}))
            .collect();
        serde_json::json!({
            "title": self.title,
            "unit": self.unit,
            "points": points,
            "exponent": self.exponents(),
            "growth": self.growth(),
        })
    }

    /// A heading, a table, and the verdict.
    pub fn markdown(&self) -> String {
        let Self { title, unit, .. } = self;
        let mut text = format!(
            "### {title}\n\n| {unit}s | µs, median of rounds (min–max) | ns per {unit} |\n|---|---|---|\n"
        );
        for point in &self.points {
            if let Some(us) = spread(&point.us) {
                let each = us.median * 1000.0 / f64::from(point.n);
                // Writing to a string cannot fail.
                let _ = writeln!(text, "| {} | {} | {each:.3} |", point.n, shown(us, 3));
            }
        }
        let grows = self.growth().text();
        let _ = match self.exponents() {
            Some(it) => writeln!(
                text,
                "\nTime grows with n to the power of {}: {grows}.",
                shown(it, 2)
            ),
            None => writeln!(text, "\nHow time grows is {grows}."),
        };
        text
    }
}

/// `1.00 (0.90–1.10)`
pub fn shown(spread: Spread, digits: usize) -> String {
    format!(
        "{:.digits$} ({:.digits$}–{:.digits$})",
        spread.median, spread.min, spread.max
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(us: impl Fn(f64) -> f64) -> Series {
        let point = |n: u32| Point {
            n,
            us: vec![us(f64::from(n)), us(f64::from(n)) * 1.2],
        };
        Series {
            key: "filters",
            title: "Filters",
            unit: "filter",
            points: [1, 10, 100, 1000].map(point).into(),
        }
    }

    #[test]
    fn an_exponent_is_found_and_judged() {
        for (us, exponent, growth) in [
            ((|_| 3.0) as fn(f64) -> f64, 0.0, Growth::Flat),
            (|n| 2.0 * n.sqrt(), 0.5, Growth::BetterThanLinear),
            (|n| 0.01 * n, 1.0, Growth::Linear),
            (|n| n.powf(1.2), 1.2, Growth::WorseThanLinear),
        ] {
            let series = series(us);
            let found = series.exponents().expect("an exponent");
            assert!((found.median - exponent).abs() < 1e-9, "{found:?}");
            assert_eq!((found.rounds, series.growth()), (2, growth));
        }
    }

    #[test]
    fn one_point_and_no_time_say_nothing() {
        let mut one = series(|n| n);
        one.points.truncate(1);
        assert_eq!(one.growth(), Growth::Unknown);
        assert!(one.markdown().contains("unknown"));
        assert_eq!(series(|_| -1.0).growth(), Growth::Unknown);
    }

    #[test]
    fn the_table_has_the_cost_of_each() {
        let text = series(|n| 0.5 * n).markdown();
        assert!(
            text.contains("| 100 | 55.000 (50.000–60.000) | 550.000 |"),
            "{text}"
        );
        assert!(
            text.contains("power of 1.00 (1.00–1.00): linear."),
            "{text}"
        );
        assert_eq!(series(|n| n).json()["growth"], "linear");
    }
}
