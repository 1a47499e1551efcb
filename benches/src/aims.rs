//! The aims that stand in docs/benchmarks.md and need no peer: what each is, how it is measured, and whether it is met.

use crate::bed::{Bed, Traffic, pass};
use crate::embedder::BenchEmbedder;
use crate::growth::shown;
use crate::guests;
use crate::issuer::Issuer;
use crate::life::{batches_us, life_us};
use crate::policy::controls;
use crate::statistics::spread;
use crate::subject::Visit;
use anyhow::{Context, Result, ensure};
use portcullis::DiskCache;
use portcullis_runtime::{Chain, Isolation, NoCache};
use std::fmt::Write as _;
use std::rc::Rc;

/// A figure and what it should be.
#[derive(Clone, Debug)]
pub struct Aim {
    /// Its name in files.
    pub key: &'static str,
    /// What it is a figure of.
    pub title: &'static str,
    /// `µs`, `ns`, `ms` or `MiB`.
    pub unit: &'static str,
    /// At most this; nothing where there is no aim.
    pub at_most: Option<f64>,
    /// Why it is missed where it is, as profiling found (docs/performance.md).
    pub obstacle: Option<&'static str>,
}

impl Aim {
    const fn obstacle(mut self, obstacle: &'static str) -> Self {
        self.obstacle = Some(obstacle);
        self
    }
}

const fn aim(
    key: &'static str,
    title: &'static str,
    unit: &'static str,
    at_most: Option<f64>,
) -> Aim {
    Aim {
        key,
        title,
        unit,
        at_most,
        obstacle: None,
    }
}

/// What visits measure; a life is a request's whole plugin life, less what it takes without a filter.
pub const VISITED: [Aim; 7] = [
    aim("hsts", "life, HSTS alone", "µs", Some(0.6)),
    aim("api", "life, header set `api`", "µs", Some(2.5)),
    aim(
        "fourteen",
        "life, 14 filters in a chain (the four controls repeated, token cached)",
        "µs",
        Some(12.0),
    )
    .obstacle(
        "one by one the 14 lives take 16 µs: a header set 1.5, rate-limit 1.7, a cached token 1.1, each with a flat profile",
    ),
    aim(
        "policy",
        "life, the four controls as one policy module, token cached",
        "µs",
        None,
    ),
    aim(
        "hostcall",
        "hostcall that reads one header",
        "ns",
        Some(60.0),
    ),
    aim(
        "fresh_vm",
        "life, tls-policy in a VM of the request's own (`isolation: request`, from a snapshot, made new for each)",
        "µs",
        Some(8.0),
    ),
    aim(
        "restart",
        "a trap (503), until the next request has been served by a fresh VM (200)",
        "ms",
        Some(1.0),
    ),
];

/// What a running `portcullis serve` is asked for.
pub const SERVED: [Aim; 3] = [
    aim(
        "start",
        "policy start with cached modules, from the start of the process (not from the reading of the policy) to the first connection accepted (2 workers, 14 filters)",
        "ms",
        Some(50.0),
    ),
    aim(
        "reload",
        "reload, from SIGHUP to the first answer by a policy that configures each of the 14 filters otherwise (2 workers, cached modules)",
        "ms",
        None,
    ),
    aim(
        "resident",
        "resident memory, idle (2 workers, 14 filters)",
        "MiB",
        Some(64.0),
    ),
];

/// A visit for each of [`VISITED`], in their order.
///
/// # Errors
/// When a plugin does not start.
pub fn visits(bed: &Bed) -> Result<Vec<Visit>> {
    let issuer = Issuer::new()?;
    let plain = Traffic::new(&[]);
    let with_token = Traffic::new(&[("authorization", format!("Bearer {}", issuer.token()?))]);
    let life = |chain: Chain, traffic: &Traffic| -> Visit {
        let traffic = traffic.clone();
        Box::new(move |lasting| life_us(&chain, lasting, || traffic.exchange()))
    };
    let of_headers = |profile: &str| {
        bed.chain(
            "security-headers",
            &serde_json::json!({"profile": profile}).to_string(),
        )
    };
    let controls = controls(&issuer, 1_000_000);
    let fourteen = controls
        .iter()
        .cycle()
        .take(14)
        .map(|(control, configuration)| bed.plugin(control, &configuration.to_string()));
    let fourteen = Chain::new(fourteen.collect::<Result<_>>()?);
    let controls = controls.map(|(control, configuration)| {
        serde_json::json!({"control": control, "configuration": configuration})
    });
    let policy = bed.chain(
        "policy",
        &serde_json::json!({"controls": controls}).to_string(),
    )?;
    Ok(vec![
        life(of_headers("hsts")?, &plain),
        life(of_headers("api")?, &plain),
        life(fourteen, &with_token),
        life(policy, &with_token),
        hostcall(bed)?,
        life(fresh(bed)?, &plain),
        restart(bed)?,
    ])
}

/// In ns a call.
fn hostcall(bed: &Bed) -> Result<Visit> {
    let row = guests::CALLS.iter().find(|row| row.name == "read a header");
    let wasm = wat::parse_str(row.context("no such hostcall")?.guest())?;
    let plugin = bed.start("hostcall", &bed.load(&wasm, &NoCache)?, "{}")?;
    let (chain, traffic) = (Chain::new(vec![plugin]), Traffic::new(&[]));
    ensure!(
        pass(&chain, traffic.exchange()) == 200,
        "the guest of the hostcall breaks"
    );
    Ok(Box::new(move |lasting| {
        let us = batches_us(
            lasting,
            1,
            || Some(traffic.exchange()),
            |exchange| {
                exchange.take().map(|exchange| pass(&chain, exchange));
            },
        )?;
        Ok(us * 1000.0 / f64::from(guests::CALLS_A_REQUEST))
    }))
}

/// A plugin with a VM for each request, from a snapshot.
fn fresh(bed: &Bed) -> Result<Chain> {
    let wasm = portcullis_plugins::builtin("tls-policy").context("no builtin tls-policy")?;
    let module = bed.load_for_snapshots(wasm.module, &DiskCache::of_user())?;
    let embedder = Rc::new(BenchEmbedder::default());
    let plugin = bed.start_as(Isolation::Request, "tls-policy", &module, "{}", &embedder)?;
    plugin.tend();
    ensure!(embedder.make_snapshots() == 1, "no snapshot was asked for");
    plugin.tend();
    ensure!(plugin.stats().snapshots() == 1, "no snapshot was made");
    Ok(Chain::new(vec![plugin]))
}

/// In ms, both requests together.
fn restart(bed: &Bed) -> Result<Visit> {
    let module = bed.load(&wat::parse_str(guests::TRAPPING)?, &NoCache)?;
    let embedder = Rc::new(BenchEmbedder::silent());
    let plugin = bed.start_as(Isolation::Plugin, "trapping", &module, "", &embedder)?;
    let chain = Chain::new(vec![plugin]);
    let bad = Traffic::new(&[("x-crime", "trap".to_owned())]);
    let good = Traffic::new(&[]);
    let answers = (pass(&chain, bad.exchange()), pass(&chain, good.exchange()));
    ensure!(
        answers == (503, 200),
        "the trap and the next request were answered with {answers:?}"
    );
    Ok(Box::new(move |lasting| {
        let us = batches_us(
            lasting,
            8,
            || [Some(bad.exchange()), Some(good.exchange())],
            |exchanges| {
                for exchange in exchanges {
                    exchange.take().map(|exchange| pass(&chain, exchange));
                }
            },
        )?;
        Ok(us / 1000.0)
    }))
}

/// An aim with its figures, round by round.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What.
    pub aim: Aim,
    /// In its unit.
    pub rounds: Vec<f64>,
}

impl Outcome {
    /// Whether the median meets it; nothing where there is no aim or no figure.
    pub fn met(&self) -> Option<bool> {
        Some(spread(&self.rounds)?.median <= self.aim.at_most?)
    }

    /// Everything, with the figures of every round.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "title": self.aim.title,
            "unit": self.aim.unit,
            "figure": spread(&self.rounds),
            "at_most": self.aim.at_most,
            "met": self.met(),
            "obstacle": self.aim.obstacle,
            "rounds": self.rounds,
        })
    }
}

/// The aims as a table.
pub fn markdown(outcomes: &[Outcome]) -> String {
    let mut text = "| figure | median of rounds (min–max) | aim |\n|---|---|---|\n".to_owned();
    for outcome in outcomes {
        let Aim {
            title,
            unit,
            at_most,
            obstacle,
            ..
        } = outcome.aim;
        let Some(figure) = spread(&outcome.rounds) else {
            continue;
        };
        let digits = if figure.median < 1.0 { 3 } else { 2 };
        let aim = match (at_most, outcome.met()) {
            (Some(most), Some(true)) => format!("≤ {most} {unit}, met"),
            (Some(most), _) => {
                let reason = obstacle.map_or(String::new(), |it| format!(": {it}"));
                format!("≤ {most} {unit}, missed{reason}")
            }
            (None, _) => String::new(),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| {title} | {} {unit} | {aim} |",
            shown(figure, digits)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aims_are_judged_by_the_median() {
        let outcome = |at_most, rounds: &[f64]| Outcome {
            aim: aim("a", "a thing", "µs", at_most),
            rounds: rounds.to_vec(),
        };
        let outcomes = [
            outcome(Some(2.0), &[1.0, 2.0, 9.0]),
            outcome(Some(2.0), &[1.0, 2.5, 3.0]),
            outcome(None, &[1.0]),
            outcome(Some(2.0), &[]),
        ];
        assert_eq!(
            outcomes.each_ref().map(Outcome::met),
            [Some(true), Some(false), None, None]
        );
        let text = markdown(&outcomes);
        assert!(
            text.contains("| a thing | 2.00 (1.00–9.00) µs | ≤ 2 µs, met |"),
            "{text}"
        );
        assert!(
            text.contains("| a thing | 2.50 (1.00–3.00) µs | ≤ 2 µs, missed |"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 5, "{text}");
    }
}
