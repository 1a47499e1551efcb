//! Measures how costs grow with the number of filters, headers, routes and rate-limit keys, and the aims that need no peer; writes tables, figures
//! and pictures. Needs Linux.

use anyhow::{Context, Result};
use clap::Parser;
use portcullis_benches::aims::{self, Outcome};
use portcullis_benches::bed::Bed;
use portcullis_benches::growth::{Point, Series};
use portcullis_benches::machine::Machine;
use portcullis_benches::plot;
use portcullis_benches::program;
use portcullis_benches::service::Service;
use portcullis_benches::subject::{SERIES, Visit, subjects};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Measure how costs grow, and the aims that need no peer.
#[derive(Parser)]
#[command(
    name = "scaling",
    version,
    about,
    long_about = "Measure how costs grow, and the aims that need no peer.

Series: a request's plugin life by filters in the chain, by headers, and by rate-limit keys with debt; finding a request's route by routes \
for hosts and for prefixes. For each the time at every point, the time for one more of it, and the exponent e of the growth (time ~ n^e, \
least squares over the logarithms, round by round): at most 0.1 is flat, below 0.9 better than linear, up to 1.1 linear. Then the aims: \
lives of controls, a hostcall, a fresh VM, a restart after a trap; `portcullis serve` with 14 filters on two workers, its start and its memory.

Every subject has a visit in each round, in turn; a figure is the median of rounds, with the least and the most. Setting up is not measured. \
A run takes about half a minute, with --quick ten seconds, and a minute more where modules have to be compiled first. Run it on an idle \
machine: the report says what the load average was at its beginning.",
    after_long_help = "Examples:
  scaling                                      tables on standard output
  scaling --out scaling                        and scaling.json, scaling.md, and an SVG file for each series
  scaling --quick --largest 1000               a look
  scaling --portcullis target/dist/portcullis  start and memory of the build that is shipped

Exit codes: 0 measured, whatever came of it; 1 something could not be measured; 2 wrong usage."
)]
struct Arguments {
    /// Rounds; each subject is visited once a round
    #[arg(long, default_value_t = 21, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// About how long a visit takes, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 25, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    visit: u64,
    /// Five rounds of short visits: a look, not a measurement
    #[arg(long, conflicts_with_all = ["rounds", "visit"])]
    quick: bool,
    /// Leave out the points above this number
    #[arg(long, value_name = "N", default_value_t = u32::MAX, hide_default_value = true, value_parser = clap::value_parser!(u32).range(1..))]
    largest: u32,
    /// Start this build of `portcullis` instead of the one within this program; `--bin dist` makes the one that is shipped
    #[arg(long, value_name = "FILE")]
    portcullis: Option<PathBuf>,
    /// Write scaling.json, scaling.md and SVG files to this folder; it is made if it is missing
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Starts of the whole proxy: they take long, and differ little.
const STARTS_MAX: u16 = 5;

/// The proxy's own, see `host/proxy/src/main.rs`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    if program::is_proxy() {
        return portcullis::cli::run();
    }
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut arguments: Arguments) -> Result<()> {
    let machine = Machine::look()?;
    if arguments.quick {
        (arguments.rounds, arguments.visit) = (5, 5);
    }
    // What cannot be written is better known before the measurement than after it.
    if let Some(out) = &arguments.out {
        std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    }
    let folder = tempfile::tempdir().context("no temporary folder")?;
    let own = std::env::current_exe()?;
    let file = arguments.portcullis.as_deref().unwrap_or(&own);
    let service = Service::new(&program::named(&folder, "proxy", file)?)?;
    eprintln!("setting up: plugins, policies of up to ten thousand routes");
    let report = measure(&arguments, machine, &service)?;
    let markdown = report.markdown();
    println!("{markdown}");
    if let Some(out) = &arguments.out {
        report.write(out, &markdown)?;
    }
    Ok(())
}

/// What came of a run.
struct Report {
    machine: Machine,
    rounds: u16,
    visit_ms: u64,
    series: Vec<Series>,
    aims: Vec<Outcome>,
}

fn measure(arguments: &Arguments, machine: Machine, service: &Service) -> Result<Report> {
    let bed = Bed::new()?;
    let mut subjects = subjects(&bed, arguments.largest)?;
    let mut series: Vec<Series> = SERIES
        .map(|(key, title, unit, _)| Series {
            key,
            title,
            unit,
            points: Vec::new(),
        })
        .into();
    let aim = |aim: &aims::Aim| Outcome {
        aim: aim.clone(),
        rounds: Vec::new(),
    };
    let mut visits = aims::visits(&bed)?;
    let mut visited: Vec<Outcome> = aims::VISITED.iter().map(aim).collect();
    let mut served: Vec<Outcome> = aims::SERVED.iter().map(aim).collect();
    let lasting = Duration::from_millis(arguments.visit);
    // The first of each warms up, and compiles what is not in the cache.
    service.start()?;
    for subject in &mut subjects {
        (subject.visit)(lasting).with_context(|| format!("{} {}s", subject.n, subject.series))?;
    }
    for visit in &mut visits {
        visit(lasting)?;
    }
    for round in 1..=arguments.rounds {
        eprint!("\rround {round} of {}", arguments.rounds);
        for subject in &mut subjects {
            let us = (subject.visit)(lasting)?;
            let Some(series) = series.iter_mut().find(|it| it.key == subject.series) else {
                continue;
            };
            match series.points.iter_mut().find(|point| point.n == subject.n) {
                Some(point) => point.us.push(us),
                None => series.points.push(Point {
                    n: subject.n,
                    us: vec![us],
                }),
            }
        }
        let pairs: std::iter::Zip<_, std::slice::IterMut<'_, Visit>> =
            visited.iter_mut().zip(visits.iter_mut());
        for (outcome, visit) in pairs {
            outcome.rounds.push(visit(lasting)?);
        }
        if round <= STARTS_MAX {
            let started = service.start()?;
            let figures = [started.ms, started.reload_ms, started.resident_mib];
            for (outcome, figure) in served.iter_mut().zip(figures) {
                outcome.rounds.push(figure);
            }
        }
    }
    eprintln!();
    Ok(Report {
        machine,
        rounds: arguments.rounds,
        visit_ms: arguments.visit,
        series,
        aims: visited.into_iter().chain(served).collect(),
    })
}

impl Report {
    fn markdown(&self) -> String {
        let Machine {
            date,
            model,
            kernel,
            processors,
            load_average,
            ..
        } = &self.machine;
        let mut text = format!(
            "{date}, {model}, Linux {kernel}, {} processors; load average at the beginning {load_average:.1}. {} interleaved rounds with visits of \
             {} ms ({STARTS_MAX} starts of the proxy at most).\n\n",
            processors.len(),
            self.rounds,
            self.visit_ms
        );
        text.push_str(&aims::markdown(&self.aims));
        for series in &self.series {
            // Writing to a string cannot fail.
            let _ = write!(text, "\n{}", series.markdown());
        }
        text
    }

    fn json(&self) -> Result<String> {
        let series = self.series.iter().map(|it| (it.key.to_owned(), it.json()));
        let aims = self
            .aims
            .iter()
            .map(|it| (it.aim.key.to_owned(), it.json()));
        Ok(serde_json::to_string_pretty(&serde_json::json!({
            "machine": self.machine,
            "rounds": self.rounds,
            "visit_ms": self.visit_ms,
            "aims": aims.collect::<serde_json::Map<_, _>>(),
            "series": series.collect::<serde_json::Map<_, _>>(),
        }))?)
    }

    fn write(&self, out: &Path, markdown: &str) -> Result<()> {
        let mut files = vec![
            (out.join("scaling.json"), self.json()? + "\n"),
            (out.join("scaling.md"), markdown.to_owned()),
        ];
        for series in &self.series {
            files.push((
                out.join(format!("{}.svg", series.key)),
                plot::growth(series),
            ));
        }
        for (file, text) in files {
            std::fs::write(&file, text)
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(())
    }
}
