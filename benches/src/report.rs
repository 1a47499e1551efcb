//! The figures of all rounds, as JSON and as Markdown tables, the ratios first.

use crate::figures::{LOAD_FACTOR, REFERENCE, Turn};
use crate::kind::{Effect, Kind};
use crate::load::Protocol;
use crate::machine::Machine;
use crate::ratios::{Aim, RATIOS};
use crate::statistics::{Spread, median, spread};
use anyhow::{Context as _, Result};
use std::fmt::Write as _;

/// In a text that is more than a report: what follows is one.
pub const BEGIN: &str = "<!-- compare: what stands here is written by `compare --markdown` -->";
/// Where it ends.
pub const END: &str = "<!-- compare: end -->";

/// What stands before [`BEGIN`] and behind [`END`] in `text`.
///
/// # Errors
/// When `text` has one of them without the other behind it.
pub fn around(text: &str) -> Result<(&str, &str)> {
    let (before, rest) = text
        .split_once(BEGIN)
        .with_context(|| format!("no line `{BEGIN}`"))?;
    let (_, after) = rest
        .split_once(END)
        .with_context(|| format!("no line `{END}` behind `{BEGIN}`"))?;
    Ok((before, after))
}

/// All rounds, and under which conditions they ran.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Report {
    /// What it ran on.
    pub machine: Machine,
    /// Which protocol every peer was spoken to; `portcullis` and `nginx` also the other one.
    pub protocol: Protocol,
    /// Seconds of each measurement.
    pub seconds: f64,
    /// Connections of the load.
    pub connections: usize,
    /// Programs and their versions, as they say.
    pub versions: Vec<String>,
    /// Which share of the processors' time the hypervisor took, round by round; empty where the kernel does not say it.
    pub stolen_shares: Vec<f64>,
    /// Every peer's turn in every round.
    pub turns: Vec<Turn>,
}

impl Report {
    /// Who was measured, and over which protocol, in the order of the first round.
    pub fn subjects(&self) -> Vec<(Kind, Protocol)> {
        let mut subjects: Vec<_> = self
            .turns
            .iter()
            .map(|turn| (turn.peer, turn.protocol))
            .collect();
        subjects.sort_unstable_by_key(|(kind, protocol)| (*protocol != self.protocol, *kind));
        subjects.dedup();
        subjects
    }

    /// One figure of one subject, round by round.
    pub fn values(
        &self,
        (kind, protocol): (Kind, Protocol),
        figure: impl Fn(&Turn) -> Option<f64>,
    ) -> Vec<f64> {
        self.turns
            .iter()
            .filter(|turn| (turn.peer, turn.protocol) == (kind, protocol))
            .filter_map(figure)
            .collect()
    }

    /// How many rounds there were.
    pub fn rounds(&self) -> usize {
        self.turns
            .iter()
            .map(|turn| turn.round)
            .max()
            .unwrap_or_default()
    }

    /// Everything; `ratios` has each ratio by its key, `null` where a peer of it took no part.
    ///
    /// # Errors
    /// When a figure cannot be written as JSON (none can be).
    pub fn json(&self) -> Result<String> {
        let ratios: serde_json::Map<_, _> = RATIOS
            .iter()
            .map(|ratio| {
                let spread = ratio.spread(&self.turns, self.protocol);
                Ok((ratio.key.to_owned(), serde_json::to_value(spread)?))
            })
            .collect::<Result<_>>()?;
        let peers: serde_json::Map<_, _> = self
            .subjects()
            .iter()
            .map(|(kind, _)| {
                let told =
                    serde_json::json!({"what": kind.description(), "effects": kind.effects()});
                (kind.to_string(), told)
            })
            .collect();
        Ok(serde_json::to_string_pretty(&serde_json::json!({
            "ratios": ratios,
            "conditions": {
                "machine": self.machine,
                "protocol": self.protocol,
                "tls": "1.3, TLS_AES_128_GCM_SHA256",
                "rounds": self.rounds(),
                "seconds": self.seconds,
                "connections": self.connections,
                "versions": self.versions,
                "stolen_shares": self.stolen_shares,
            },
            "limits": self.limits(),
            "peers": peers,
            "latency_per_mille": crate::figures::PER_MILLE,
            "turns": self.turns,
        }))?)
    }

    /// As [`Report::markdown`], in its place in a longer text: between the lines [`BEGIN`] and [`END`].
    ///
    /// # Errors
    /// As [`around`].
    pub fn placed(&self, text: &str) -> Result<String> {
        let (before, after) = around(text)?;
        let markdown = self.markdown();
        Ok(format!("{before}{BEGIN}\n\n{markdown}\n{END}{after}"))
    }

    /// The conditions, the ratios, the figures, what each peer does, and the limits of all this.
    pub fn markdown(&self) -> String {
        [
            self.conditions(),
            self.ratios(),
            self.figures(),
            self.effects(),
            self.limits()
                .iter()
                .map(|limit| format!("- {limit}\n"))
                .collect(),
        ]
        .join("\n")
    }

    fn conditions(&self) -> String {
        let machine = &self.machine;
        let pinned = match machine.pinning {
            None => "nothing pinned".to_owned(),
            Some(it) => format!(
                "peers on processor {}, load on {}, upstream on {}{}",
                it.peer,
                it.load,
                it.upstream,
                if machine.shared_core {
                    " (two threads of one core)"
                } else {
                    ""
                }
            ),
        };
        format!(
            "{}, {}, Linux {}, {} processors: {pinned}; load average at the beginning {:.1}. {}.\n\n\
             {} over TLS 1.3 unless said otherwise, {} connections, {} interleaved rounds; in each a closed loop of {} s (saturation), then an \
             open loop of {} s at {:.0} % of what the slower of `{}` and `{}` did in it (of the slowest peer where not both took part), the \
             same for all. Every answer 200.\n",
            machine.date,
            machine.model,
            machine.kernel,
            machine.processors.len(),
            machine.load_average,
            self.versions.join("; "),
            self.protocol,
            self.connections,
            self.rounds(),
            self.seconds,
            self.seconds,
            LOAD_FACTOR * 100.0,
            REFERENCE[0],
            REFERENCE[1],
        )
    }

    fn ratios(&self) -> String {
        let mut text =
            "| ratio | key | median of rounds (min–max) | aim |\n|---|---|---|---|\n".to_owned();
        for ratio in &RATIOS {
            let Some(spread) = ratio.spread(&self.turns, self.protocol) else {
                continue;
            };
            let aim = match ratio.aim {
                None => String::new(),
                Some(aim) => {
                    let (sign, value) = match aim {
                        Aim::AtMost(value) => ("≤", value),
                        Aim::AtLeast(value) => ("≥", value),
                    };
                    match ratio.obstacle {
                        _ if aim.met(spread.median) => format!("{sign} {value}, met"),
                        None => format!("{sign} {value}, missed"),
                        Some(why) => format!("{sign} {value}, missed: {why}"),
                    }
                }
            };
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "| {} | `{}` | {} | {aim} |",
                ratio.title,
                ratio.key,
                shown(spread, 2)
            );
        }
        text
    }

    fn figures(&self) -> String {
        let mut text = "\
| peer | protocol | CPU µs a request | at saturation | p50 µs | p99 µs | requests/s at saturation | MiB | load's share of its processor | upstream's |
|---|---|---|---|---|---|---|---|---|---|
"
        .to_owned();
        for subject in self.subjects() {
            let middle = |figure: fn(&Turn) -> Option<f64>, digits: usize| {
                median(&self.values(subject, figure))
                    .map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
            };
            let cpu = spread(&self.values(subject, |turn| Some(turn.open.cpu_us)));
            let _ = writeln!(
                text,
                "| `{}` | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                subject.0,
                subject.1,
                cpu.map_or_else(String::new, |cpu| shown(cpu, 1)),
                middle(|turn| Some(turn.saturation.cpu_us), 1),
                middle(|turn| turn.open.latency_us(500), 0),
                middle(|turn| turn.open.latency_us(990), 0),
                middle(|turn| Some(turn.saturation.rps), 0),
                middle(|turn| turn.resident_mib, 0),
                middle(|turn| Some(turn.saturation.load_share), 2),
                middle(|turn| Some(turn.saturation.upstream_share), 2),
            );
        }
        let mut uncached = String::new();
        for subject in self.subjects() {
            let cost = spread(&self.values(subject, |turn| {
                Some(turn.cpu_uncached_us? - turn.saturation.cpu_us)
            }));
            if let Some(cost) = cost {
                let _ = writeln!(uncached, "| `{}` | {} |", subject.0, shown(cost, 0));
            }
        }
        if !uncached.is_empty() {
            let _ = write!(
                text,
                "\n| peer | what a token that is in no cache adds, CPU µs at saturation |\n|---|---|\n{uncached}"
            );
        }
        text
    }

    /// What each peer was seen to do before it was measured.
    fn effects(&self) -> String {
        let mut text = "| peer | what it is |".to_owned();
        for effect in Effect::ALL {
            let _ = write!(text, " {} |", effect.title());
        }
        let _ = writeln!(text, "\n|---|---|{}", "---|".repeat(Effect::ALL.len()));
        let mut kinds: Vec<Kind> = self.subjects().into_iter().map(|(kind, _)| kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        for kind in kinds {
            let _ = write!(text, "| `{kind}` | {} |", kind.description());
            for effect in Effect::ALL {
                let shown = kind.effects().contains(&effect);
                text.push_str(if shown { " yes |" } else { " – |" });
            }
            text.push('\n');
        }
        text
    }
}

fn shown(spread: Spread, digits: usize) -> String {
    format!(
        "{:.digits$} ({:.digits$}–{:.digits$})",
        spread.median, spread.min, spread.max
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::machine::Pinning;
    use crate::plot;
    use crate::ratios::tests::turn;

    /// Ratios that are the same in all rounds.
    pub(crate) fn report(rounds: usize) -> Report {
        let mut turns = Vec::new();
        for round in 1..=rounds {
            for (kind, figures) in [
                (Kind::PortcullisFour, [30.0, 30_000.0, 200.0]),
                (Kind::EnvoyFour, [120.0, 9000.0, 1000.0]),
                (Kind::EnvoyLua, [90.0, 7200.0, 1000.0]),
            ] {
                turns.push(turn(round, kind, Protocol::Http1, figures));
            }
        }
        Report {
            machine: Machine {
                date: "2026-11-22".to_owned(),
                model: "a processor".to_owned(),
                kernel: "6.18".to_owned(),
                processors: vec![0, 1],
                pinning: Some(Pinning {
                    peer: 0,
                    load: 1,
                    upstream: 1,
                }),
                shared_core: false,
                load_average: 0.1,
            },
            protocol: Protocol::Http1,
            seconds: 4.0,
            connections: 16,
            versions: vec!["portcullis 0.1.0".to_owned()],
            stolen_shares: vec![0.0; rounds],
            turns,
        }
    }

    #[test]
    fn json_has_every_ratio_by_its_key() -> Result<()> {
        let json: serde_json::Value = serde_json::from_str(&report(2).json()?)?;
        let cpu = &json["ratios"]["cpu_four_vs_envoy_wasm"];
        assert_eq!(
            *cpu,
            serde_json::json!({"median": 0.25, "min": 0.25, "max": 0.25, "rounds": 2})
        );
        assert_eq!(json["ratios"]["p99_four_vs_envoy_wasm"]["median"], 0.2);
        let missing = json["ratios"]
            .as_object()
            .and_then(|ratios| ratios.get("cpu_plain_vs_nginx"));
        assert_eq!(missing, Some(&serde_json::Value::Null));
        assert_eq!(json["turns"].as_array().map(Vec::len), Some(6));
        assert_eq!(json["turns"][0]["peer"], "portcullis-four");
        Ok(())
    }

    #[test]
    fn ratios_come_before_figures_and_aims_are_judged() {
        let text = report(2).markdown();
        let ratios = text
            .find("| `cpu_four_vs_envoy_wasm` | 0.25 (0.25–0.25) | ≤ 0.3, met |")
            .expect("the ratio");
        let figures = text
            .find("| `envoy-four` | HTTP/1.1 | 120.0 (120.0–120.0) | 60.0 | 500 | 1000 | 9000 |")
            .expect("the figures");
        assert!(ratios < figures);
        assert!(!text.contains("NaN"));
    }

    #[test]
    fn a_report_takes_the_place_of_the_one_before() -> Result<()> {
        let old = format!("# Head\n\n{BEGIN}\nold\n{END}\n\ntail\n");
        let new = report(2).placed(&old)?;
        assert!(new.starts_with("# Head\n\n") && new.ends_with(&format!("\n{END}\n\ntail\n")));
        assert!(new.contains(&report(2).markdown()) && !new.contains("old"));
        assert_eq!(report(2).placed(&new)?, new);
        for wrong in ["", BEGIN, END, &format!("{END}{BEGIN}")] {
            assert!(report(2).placed(wrong).is_err(), "{wrong}");
        }
        Ok(())
    }

    #[test]
    fn pictures_name_every_peer_and_need_no_other_file() {
        let report = report(2);
        for picture in [plot::latency(&report), plot::cost(&report)] {
            for (kind, _) in report.subjects() {
                assert!(picture.contains(&kind.to_string()), "{kind}");
            }
            assert!(picture.ends_with("</svg>\n") && !picture.contains("href"));
            assert!(!picture.contains("NaN") && !picture.contains("inf"));
        }
    }
}
