//! `portcullis bench`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use serde::Serialize;

use super::output::{Format, note, print, print_json};
use super::subject::Subject;
use crate::measurement::{Baseline, Budget, Comparison, Measurement, Measuring, html};

/// Measures what a control's cases cost on its Wasm module
///
/// Builds the control as `portcullis build` does, and asks each exchange of each case thousands of times in this host, in process and without a
/// socket, as `portcullis test` asks it once; for the steps after a case's first, a fresh plugin is first asked what stands before them (so a refusal
/// beyond a rate limit is measured after the requests that spend it). If cases have `benchmark: true`, only these. A case that does not hold is not
/// measured, nor is a step whose status soon becomes another when it is asked again.
///
/// Told of each case: how long all callbacks of an exchange took together, and each of them (median, 90th and 99th of a hundred, the longest, in µs;
/// hostcalls included, the time for the clock taken off), which hostcalls they made, what memory was asked for to hand values over, and the guest's
/// memory. `operators` are the Wasm operators that were run, counted in a pass of their own: the same on every machine and at every hour, while times
/// move with both, twofold on a shared machine. So a budget is for times and is broken by the median, and a baseline is compared by operators; the
/// times are shown beside them.
///
/// Exit codes: 0 done; 1 a budget is broken, operators grew beyond the tolerance, nothing could be measured, or the control does not build; 2 wrong
/// usage.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  portcullis bench
  portcullis bench --budget 5us --html cost.html
  portcullis bench --save before.json        and after a change:
  portcullis bench --baseline before.json --tolerance 2
  portcullis bench --module body-gate.wasm --cases cases.yaml --format json | jq '.measured[].exchange.p50_us'")]
pub(super) struct Bench {
    #[command(flatten)]
    subject: Subject,

    /// How often each is asked; a step ends after 10 s at the latest, for times and for counts each
    #[arg(long, value_name = "COUNT", default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    exchanges: u32,

    /// What an exchange may cost, as 5us, 800ns or 0.5ms: fails where the median of a case is above it
    #[arg(long, value_name = "TIME", value_parser = budget)]
    budget: Option<Budget>,

    /// Keep the measurement, to compare with later
    #[arg(long, value_name = "FILE.json")]
    save: Option<PathBuf>,

    /// Compare with one that was kept: fails where the operators of a case grew beyond the tolerance
    #[arg(long, value_name = "FILE.json")]
    baseline: Option<PathBuf>,

    /// How much operators may grow against the baseline, in percent
    #[arg(
        long,
        value_name = "PERCENT",
        default_value_t = 5,
        requires = "baseline"
    )]
    tolerance: u32,

    /// Draw the distribution of each case: one HTML file that needs no other
    #[arg(long, value_name = "FILE.html")]
    html: Option<PathBuf>,

    /// How it is printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// All that is known, for scripts.
#[derive(Serialize)]
struct Told<'t> {
    #[serde(flatten)]
    measurement: &'t Measurement,
    budget: Option<Budget>,
    /// Cases above the budget.
    over_budget: Vec<&'t str>,
    comparison: Option<&'t Comparison>,
    /// Cases beyond the tolerance.
    grown: Vec<&'t str>,
}

impl Bench {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        // A baseline that cannot be read is said before anything is built and measured.
        let baseline = self.baseline.as_deref().map(Baseline::read).transpose()?;
        let Some((module, cases)) = self.subject.find() else {
            return Ok(ExitCode::FAILURE);
        };
        let measuring = Measuring {
            module: &module,
            cases: &cases,
            named: self.subject.case.as_deref(),
            exchanges: self.exchanges,
        };
        let measurement = measuring.run()?;
        let comparison = baseline.map(|it| it.compare(&measurement)).transpose()?;
        let over = self.budget.map(|budget| budget.broken_by(&measurement));
        let over_budget = over.iter().flatten().map(|row| row.case.as_str());
        let grown = comparison.iter();
        let told = Told {
            measurement: &measurement,
            budget: self.budget,
            over_budget: over_budget.collect(),
            comparison: comparison.as_ref(),
            grown: grown
                .flat_map(|it| it.grown(f64::from(self.tolerance)))
                .collect(),
        };
        match self.format {
            Format::Text => print(&told.text(self.tolerance))?,
            Format::Json => print_json(&told)?,
        }
        if let Some(path) = &self.save {
            let text = serde_json::to_string_pretty(&measurement)?;
            std::fs::write(path, text + "\n")
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        if let Some(path) = &self.html {
            std::fs::write(path, html(&measurement))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        if measurement.measured.is_empty() {
            note("error: no case could be measured");
            return Ok(ExitCode::FAILURE);
        }
        Ok(match told.over_budget.is_empty() && told.grown.is_empty() {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        })
    }
}

impl Told<'_> {
    fn text(&self, tolerance: u32) -> String {
        let mut text = self.measurement.to_string();
        if let Some(budget) = self.budget {
            text.push_str(&format!("\nof the budget of {} µs:\n", budget.us));
            for row in &self.measurement.measured {
                let percent = budget.share(row) * 100.0;
                let verdict = if percent > 100.0 { "  BROKEN" } else { "" };
                text.push_str(&format!("  {percent:>5.0}%  {}{verdict}\n", row.case));
            }
        }
        if let Some(comparison) = self.comparison {
            text.push_str(&comparison.to_string());
        }
        for case in &self.grown {
            text.push_str(&format!("  GREW by more than {tolerance}%: {case}\n"));
        }
        text
    }
}

/// `5us`, `800ns`, `0.5ms`.
fn budget(text: &str) -> Result<Budget, String> {
    let units = [("ns", 0.001), ("us", 1.0), ("µs", 1.0), ("ms", 1000.0)];
    let us = units.iter().find_map(|(unit, us)| {
        let number: f64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
        Some(number * us)
    });
    let us = us.filter(|us| us.is_finite() && *us > 0.0);
    us.map(|us| Budget { us })
        .ok_or_else(|| format!("`{text}` is not a time such as 5us, 800ns or 0.5ms"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_have_a_unit() {
        for (text, us) in [
            ("5us", Some(5.0)),
            ("800ns", Some(0.8)),
            ("0.5ms", Some(500.0)),
            ("2.5 µs", Some(2.5)),
            ("5", None),
            ("5s", None),
            ("0us", None),
            ("-1us", None),
            ("infus", None),
        ] {
            let read = budget(text).ok().map(|it| it.us);
            let same = match (read, us) {
                (Some(read), Some(us)) => (read - us).abs() < 1e-9,
                (read, us) => read.is_none() && us.is_none(),
            };
            assert!(same, "{text}: {read:?}");
        }
    }
}
