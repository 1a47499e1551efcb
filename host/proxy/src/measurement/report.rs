//! What was measured, as data and as text.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Run;
use super::recording::Recording;

/// What the cases of a control cost.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Measurement {
    pub(crate) control: String,
    /// As it was named.
    pub(crate) module: String,
    /// The file, as it was named.
    pub(crate) cases: String,
    /// What a look at the clock takes: taken off each callback once.
    pub(crate) clock_ns: u64,
    pub(crate) measured: Vec<Row>,
    pub(crate) not_measured: Vec<NotMeasured>,
}

/// A case that was not measured.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct NotMeasured {
    pub(crate) case: String,
    pub(crate) reason: String,
}

/// What one case costs.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    /// Its name.
    pub(crate) case: String,
    /// Of the answers; 0 where exchanges are reset.
    pub(crate) status: u16,
    pub(crate) exchanges: u32,
    /// All callbacks of an exchange.
    pub(crate) exchange: Spread,
    /// Wasm operators of an exchange, on average.
    pub(crate) operators: f64,
    pub(crate) callbacks: Vec<CallbackRow>,
    pub(crate) hostcalls: Vec<HostcallRow>,
    /// Values handed to the guest in memory that it is asked for, of an exchange.
    pub(crate) allocations: f64,
    pub(crate) allocated_bytes: f64,
    /// The guest's memory at the end.
    pub(crate) memory_bytes: usize,
    pub(crate) note: Option<String>,
    /// Where the exchanges lie: one value of 100, and the last, in µs.
    pub(crate) distribution_us: Vec<f64>,
}

/// What one callback takes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CallbackRow {
    pub(crate) callback: String,
    /// Of an exchange.
    pub(crate) calls: f64,
    pub(crate) call: Spread,
    /// Of a call.
    pub(crate) operators: f64,
}

/// How often a hostcall is made.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HostcallRow {
    pub(crate) hostcall: String,
    /// Of an exchange.
    pub(crate) calls: f64,
}

/// Times in µs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) p50_us: f64,
    pub(crate) p90_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) max_us: f64,
}

impl Spread {
    /// Of values in ns, in their order.
    fn of(sorted: &[u64]) -> Self {
        Self {
            p50_us: us(at(sorted, 50)),
            p90_us: us(at(sorted, 90)),
            p99_us: us(at(sorted, 99)),
            max_us: us(at(sorted, 100)),
        }
    }
}

/// The value below or at which so many of a hundred lie.
fn at(sorted: &[u64], percent: usize) -> u64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

#[expect(clippy::cast_precision_loss, reason = "a measured time has few digits")]
fn us(ns: u64) -> f64 {
    ns as f64 / 1000.0
}

#[expect(clippy::cast_precision_loss, reason = "of thousands of exchanges")]
fn per(count: u64, of: usize) -> f64 {
    count as f64 / of.max(1) as f64
}

impl Row {
    pub(super) fn new(case: &str, run: &Run, counted: &Recording, clock_ns: u64) -> Self {
        let mut lives = run.recording.exchanges(clock_ns);
        lives.sort_unstable();
        let count = lives.len();
        let counted_exchanges = counted.exchanges(0).len();
        let mut all_operators = 0;
        let counted_callbacks = counted.callbacks();
        let callbacks = run
            .recording
            .callbacks()
            .into_iter()
            .map(|(callback, calls)| {
                let mut ns: Vec<u64> = calls
                    .ns
                    .iter()
                    .map(|ns| ns.saturating_sub(clock_ns))
                    .collect();
                ns.sort_unstable();
                let counted = counted_callbacks.iter().find(|(it, _)| *it == callback);
                let (operators, of) = counted.map_or((0, 0), |(_, it)| (it.operators, it.ns.len()));
                all_operators += operators;
                CallbackRow {
                    callback: callback.name().to_owned(),
                    calls: per(u64::try_from(ns.len()).unwrap_or(u64::MAX), count),
                    call: Spread::of(&ns),
                    operators: per(operators, of),
                }
            });
        let callbacks = callbacks.collect();
        let hostcalls = counted.hostcalls().into_iter();
        let hostcalls = hostcalls.map(|(name, calls)| HostcallRow {
            hostcall: name.to_owned(),
            calls: per(calls, counted_exchanges),
        });
        let (allocations, bytes) = counted.allocations();
        Self {
            case: case.to_owned(),
            status: run.status,
            exchanges: run.exchanges,
            exchange: Spread::of(&lives),
            operators: per(all_operators, counted_exchanges),
            callbacks,
            hostcalls: hostcalls.collect(),
            allocations: per(allocations, counted_exchanges),
            allocated_bytes: per(bytes, counted_exchanges),
            memory_bytes: run.memory_bytes,
            note: run.note.clone(),
            distribution_us: (1..=100).map(|percent| us(at(&lives, percent))).collect(),
        }
    }
}

/// What an exchange may cost.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Budget {
    pub(crate) us: f64,
}

impl Budget {
    /// The share of it that a case takes, 1 is all: by the median.
    pub(crate) fn share(self, row: &Row) -> f64 {
        row.exchange.p50_us / self.us
    }

    /// The cases that take more.
    pub(crate) fn broken_by(self, measured: &Measurement) -> Vec<&Row> {
        let rows = measured.measured.iter();
        rows.filter(|row| self.share(row) > 1.0).collect()
    }
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            control,
            module,
            cases,
            clock_ns,
            ..
        } = self;
        writeln!(f, "{control}: {cases} on {module}")?;
        writeln!(
            f,
            "times in µs inside of the plugin, hostcalls included, less {clock_ns} ns a callback for the clock"
        )?;
        for row in &self.measured {
            write!(f, "\n{row}")?;
        }
        for NotMeasured { case, reason } in &self.not_measured {
            writeln!(f, "\nnot measured: {case} ({reason})")?;
        }
        Ok(())
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            case,
            status,
            exchanges,
            ..
        } = self;
        match status {
            0 => writeln!(f, "{case} (reset), {exchanges} exchanges")?,
            status => writeln!(f, "{case} ({status}), {exchanges} exchanges")?,
        }
        writeln!(
            f,
            "  {:<34} {:>6} {:>9} {:>9} {:>9} {:>9} {:>10}",
            "", "calls", "p50", "p90", "p99", "max", "operators"
        )?;
        line(f, "an exchange", 1.0, self.exchange, self.operators)?;
        for row in &self.callbacks {
            line(f, &row.callback, row.calls, row.call, row.operators)?;
        }
        let calls = self
            .hostcalls
            .iter()
            .map(|row| format!("{} {}", row.hostcall, number(row.calls)));
        let calls: Vec<_> = calls.collect();
        let calls = if calls.is_empty() {
            "none".into()
        } else {
            calls.join(", ")
        };
        writeln!(f, "  hostcalls: {calls}")?;
        writeln!(
            f,
            "  memory: {} KiB; handed over in {} allocations of {} bytes together",
            self.memory_bytes / 1024,
            number(self.allocations),
            number(self.allocated_bytes)
        )?;
        if let Some(note) = &self.note {
            writeln!(f, "  note: {note}")?;
        }
        Ok(())
    }
}

fn line(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    calls: f64,
    spread: Spread,
    operators: f64,
) -> fmt::Result {
    let Spread {
        p50_us,
        p90_us,
        p99_us,
        max_us,
    } = spread;
    let calls = number(calls);
    writeln!(
        f,
        "  {name:<34} {calls:>6} {p50_us:>9.2} {p90_us:>9.2} {p99_us:>9.2} {max_us:>9.2} {operators:>10.0}"
    )
}

/// Whole numbers as such.
fn number(value: f64) -> String {
    match (value - value.round()).abs() < 0.005 {
        true => format!("{value:.0}"),
        false => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<u64> = (1..=1000).collect();
        let percents = [(1, 10), (50, 500), (90, 900), (99, 990), (100, 1000)];
        for (percent, value) in percents {
            assert_eq!(at(&values, percent), value, "{percent}");
        }
        assert_eq!(at(&[7], 50), 7);
        assert_eq!(at(&[], 50), 0);
    }

    #[test]
    fn whole_numbers_have_no_point() {
        assert_eq!(number(2.0), "2");
        assert_eq!(number(0.9999), "1");
        assert_eq!(number(1.5), "1.50");
    }
}
