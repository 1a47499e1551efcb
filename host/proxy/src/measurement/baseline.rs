//! A measurement against one that was saved.

use std::fmt;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde::Serialize;

use super::report::{Measurement, Row};

/// A measurement that was saved.
#[derive(Debug)]
pub(crate) struct Baseline(Measurement);

impl Baseline {
    /// Reads what `--save` wrote.
    ///
    /// # Errors
    ///
    /// There is no such file, or it is not that.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read(path);
        let text = text.with_context(|| format!("cannot read {}", path.display()))?;
        let saved = serde_json::from_slice(&text)
            .with_context(|| format!("{} is no measurement of --save", path.display()))?;
        Ok(Self(saved))
    }

    /// What changed since, case by case.
    ///
    /// # Errors
    ///
    /// It is of another control.
    pub(crate) fn compare(&self, now: &Measurement) -> anyhow::Result<Comparison> {
        let (before, after) = (&self.0.control, &now.control);
        ensure!(
            before == after,
            "the baseline is of {before:?}, and this is {after:?}"
        );
        let changes = now.measured.iter().filter_map(|row| {
            // With another status it is another exchange: a step was put before it, say.
            let is_same = |it: &&Row| it.case == row.case && it.status == row.status;
            let before = self.0.measured.iter().find(is_same)?;
            Some(Change {
                case: row.case.clone(),
                time: ratio(row.exchange.p50_us, before.exchange.p50_us),
                operators: ratio(row.operators, before.operators),
                operators_before: before.operators,
                operators_now: row.operators,
            })
        });
        let changes: Vec<_> = changes.collect();
        let known = |case: &str| changes.iter().any(|it| it.case == case);
        let only_now = now.measured.iter().map(|row| row.case.as_str());
        let only_before = self.0.measured.iter().map(|row| row.case.as_str());
        Ok(Comparison {
            only_now: only_now
                .filter(|it| !known(it))
                .map(str::to_owned)
                .collect(),
            only_before: only_before
                .filter(|it| !known(it))
                .map(str::to_owned)
                .collect(),
            changes,
        })
    }
}

fn ratio(now: f64, before: f64) -> f64 {
    match before > 0.0 {
        true => now / before,
        false if now > 0.0 => f64::INFINITY,
        false => 1.0,
    }
}

/// What changed.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    changes: Vec<Change>,
    /// Cases that only one of the two has.
    only_now: Vec<String>,
    only_before: Vec<String>,
}

/// What changed in one case: now to before, 1 is no change.
#[derive(Debug, Serialize)]
struct Change {
    case: String,
    /// Of the median. Moves with the machine and the hour.
    time: f64,
    /// Does not.
    operators: f64,
    operators_before: f64,
    operators_now: f64,
}

impl Comparison {
    /// Cases whose operators grew by more than so many of a hundred.
    pub(crate) fn grown(&self, percent: f64) -> impl Iterator<Item = &str> {
        let most = 1.0 + percent / 100.0;
        let grown = self.changes.iter().filter(move |it| it.operators > most);
        grown.map(|it| it.case.as_str())
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nagainst the baseline:   time  operators")?;
        for it in &self.changes {
            writeln!(
                f,
                "                      {:>5.2}x {:>9.3}x  {} ({:.0}, before {:.0})",
                it.time, it.operators, it.case, it.operators_now, it.operators_before
            )?;
        }
        for (which, cases) in [
            ("baseline", &self.only_now),
            ("measurement", &self.only_before),
        ] {
            for case in cases {
                writeln!(f, "  not in the {which}: {case}")?;
            }
        }
        Ok(())
    }
}
