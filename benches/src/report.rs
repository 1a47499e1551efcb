//! The figures of all rounds, as a Markdown table and as JSON.

use crate::load::Protocol;
use crate::peer::{Controls, Program};
use crate::statistics::{Spread, spread};
use anyhow::Result;
use std::fmt::Write as _;

/// What one peer showed in one round.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Figures {
    /// CPU time of the proxy a request under the open-loop load, in µs.
    pub cpu_us: f64,
    /// The same under the closed loop, when the proxy is never idle.
    pub cpu_saturated_us: f64,
    /// The same with tokens that are in no cache, where tokens are checked.
    pub cpu_uncached_us: Option<f64>,
    /// Median latency from the intended start, in µs.
    pub p50_us: f64,
    /// 99th percentile of the same.
    pub p99_us: f64,
    /// Requests a second in the closed loop.
    pub saturation_rps: f64,
    /// Resident memory in MiB after the open loop.
    pub resident_mib: f64,
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.1} µs CPU a request ({:.1} at saturation), p50 {:.0} µs, p99 {:.0} µs, {:.0} requests/s, {:.0} MiB",
            self.cpu_us,
            self.cpu_saturated_us,
            self.p50_us,
            self.p99_us,
            self.saturation_rps,
            self.resident_mib
        )
    }
}

/// A figure that is compared as a ratio.
struct Row {
    name: &'static str,
    figure: fn(&Figures) -> f64,
}

const ROWS: &[Row] = &[
    Row {
        name: "CPU a request",
        figure: |it| it.cpu_us,
    },
    Row {
        name: "CPU a request at saturation",
        figure: |it| it.cpu_saturated_us,
    },
    Row {
        name: "p50",
        figure: |it| it.p50_us,
    },
    Row {
        name: "p99",
        figure: |it| it.p99_us,
    },
    Row {
        name: "requests/s at saturation",
        figure: |it| it.saturation_rps,
    },
];

/// One peer's figures in one round.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Round {
    /// Which program.
    pub program: Program,
    /// Which policy.
    pub controls: Controls,
    /// What it showed.
    pub figures: Figures,
}

/// All rounds, and under which conditions they ran.
#[derive(Debug, serde::Serialize)]
pub struct Report {
    processors: usize,
    pinned: bool,
    protocol: &'static str,
    rate: f64,
    seconds: u64,
    rounds: Vec<Round>,
}

impl Report {
    /// An empty report.
    pub fn new(
        processors: usize,
        pinned: bool,
        protocol: Protocol,
        rate: f64,
        seconds: u64,
    ) -> Self {
        let protocol = match protocol {
            Protocol::Http1 => "HTTP/1.1",
            Protocol::Http2 => "HTTP/2",
        };
        Self {
            processors,
            pinned,
            protocol,
            rate,
            seconds,
            rounds: Vec::new(),
        }
    }

    /// Adds what one peer showed.
    pub fn add(&mut self, round: Round) {
        self.rounds.push(round);
    }

    fn values(
        &self,
        program: Program,
        controls: Controls,
        figure: fn(&Figures) -> f64,
    ) -> Vec<f64> {
        self.rounds
            .iter()
            .filter(|round| (round.program, round.controls) == (program, controls))
            .map(|round| figure(&round.figures))
            .collect()
    }

    /// The ratio of one figure, ours to Envoy's, round by round: the two were measured next to each other.
    fn ratio(&self, controls: Controls, figure: fn(&Figures) -> f64) -> Spread {
        self.ratio_to(Program::Envoy, controls, figure)
    }

    fn ratio_to(
        &self,
        program: Program,
        controls: Controls,
        figure: fn(&Figures) -> f64,
    ) -> Spread {
        let ours = self.values(Program::Portcullis, controls, figure);
        let theirs = self.values(program, controls, figure);
        spread(
            &ours
                .iter()
                .zip(&theirs)
                .map(|(ours, theirs)| ours / theirs)
                .collect::<Vec<_>>(),
        )
    }

    /// The ratio of one of our figures with the four controls to the same without.
    fn over_plain(&self, program: Program, figure: fn(&Figures) -> f64) -> Spread {
        let four = self.values(program, Controls::Four, figure);
        let plain = self.values(program, Controls::None, figure);
        spread(
            &four
                .iter()
                .zip(&plain)
                .map(|(four, plain)| four / plain)
                .collect::<Vec<_>>(),
        )
    }

    /// The ratios first, then the figures.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        let rounds = self
            .values(Program::Portcullis, Controls::None, |it| it.cpu_us)
            .len();
        let pinned = if self.pinned {
            "proxy on one, load and upstream on the other"
        } else {
            "not pinned"
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{} over TLS 1.3, {} processors ({pinned}), open loop at {} requests/s, {rounds} interleaved rounds of {} s; every answer 200.\n",
            self.protocol, self.processors, self.rate, self.seconds
        );
        let _ = writeln!(
            text,
            "| ratio (median of rounds, min–max) | no filter | four controls |\n|---|---|---|"
        );
        for (program, whose) in [(Program::Envoy, "Envoy"), (Program::Baseline, "baseline")] {
            for Row { name, figure } in ROWS {
                if self.rounds.iter().any(|round| round.program == program) {
                    let _ = writeln!(
                        text,
                        "| {name}, ours / {whose} | {} | {} |",
                        show(self.ratio_to(program, Controls::None, *figure)),
                        show(self.ratio_to(program, Controls::Four, *figure))
                    );
                }
            }
        }
        let _ = writeln!(
            text,
            "| CPU, four controls / no filter | ours {} | Envoy {} |\n",
            show(self.over_plain(Program::Portcullis, |it| it.cpu_us)),
            show(self.over_plain(Program::Envoy, |it| it.cpu_us))
        );
        let signature = |program| {
            let uncached = self.values(program, Controls::Four, |it| {
                it.cpu_uncached_us.unwrap_or(f64::NAN) - it.cpu_saturated_us
            });
            let cost = spread(&uncached);
            format!(
                "{:.0} ({:.0}–{:.0})",
                cost.median, cost.minimum, cost.maximum
            )
        };
        let _ = writeln!(
            text,
            "An RS256 signature that is not in the cache costs, in µs CPU at saturation: ours {}, Envoy {}.\n",
            signature(Program::Portcullis),
            signature(Program::Envoy)
        );
        let _ = writeln!(
            text,
            "| proxy | controls | CPU µs a request | at saturation | p50 µs | p99 µs | requests/s at saturation | MiB |\n|---|---|---|---|---|---|---|---|"
        );
        for program in [Program::Portcullis, Program::Baseline, Program::Envoy] {
            if !self.rounds.iter().any(|round| round.program == program) {
                continue;
            }
            for controls in [Controls::None, Controls::Four] {
                let median = |figure| spread(&self.values(program, controls, figure)).median;
                let cpu = spread(&self.values(program, controls, |it| it.cpu_us));
                let _ = writeln!(
                    text,
                    "| {program:?} | {controls:?} | {:.1} ({:.1}–{:.1}) | {:.1} | {:.0} | {:.0} | {:.0} | {:.0} |",
                    cpu.median,
                    cpu.minimum,
                    cpu.maximum,
                    median(|it| it.cpu_saturated_us),
                    median(|it| it.p50_us),
                    median(|it| it.p99_us),
                    median(|it| it.saturation_rps),
                    median(|it| it.resident_mib)
                );
            }
        }
        text
    }

    /// Everything, with the ratios under their names.
    ///
    /// # Errors
    /// When a figure cannot be written as JSON (none can be).
    pub fn json(&self) -> Result<String> {
        let cpu = |it: &Figures| it.cpu_us;
        let ratios = serde_json::json!({
            "cpu_plain_vs_envoy": self.ratio(Controls::None, cpu),
            "cpu_four_vs_envoy_wasm": self.ratio(Controls::Four, cpu),
            "cpu_four_saturated_vs_envoy_wasm": self.ratio(Controls::Four, |it| it.cpu_saturated_us),
            "rps_four_vs_envoy_wasm": self.ratio(Controls::Four, |it| it.saturation_rps),
            "p99_four_vs_envoy_wasm": self.ratio(Controls::Four, |it| it.p99_us),
            "cpu_four_over_plain": self.over_plain(Program::Portcullis, cpu),
        });
        Ok(serde_json::to_string_pretty(
            &serde_json::json!({"conditions": self, "ratios": ratios}),
        )?)
    }
}

fn show(ratio: Spread) -> String {
    format!(
        "{:.2} ({:.2}–{:.2})",
        ratio.median, ratio.minimum, ratio.maximum
    )
}
