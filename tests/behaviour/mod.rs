//! Every row of the behaviour table as one differential test: the same guest and the same request against stock Envoy and
//! against Portcullis, both over sockets. What Envoy answers is seen anew in each run; what we answer otherwise on purpose stands
//! with its reason in the row, and in `docs/compatibility.md`, which is made of what was seen.

mod document;
mod functions;
mod languages;
mod place;
mod probe;
mod row;

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use portcullis_tests::client::Route;
use portcullis_tests::envoy::{self, Envoy};
use portcullis_tests::http1::Request;
use portcullis_tests::report;
use serde_json::json;

use crate::places::{Here, export};
use functions::VERSIONS;
use languages::LANGUAGES;
use place::{Guest, Scene, send_patiently};
use row::{Chapter, Harm, Row, chapters};

/// What was seen of each row, in the order of the table; or why nothing was.
type Seen = Vec<Result<String, String>>;

/// How long an Envoy may take to end itself, and how long a hung one is waited for.
const END_BOUND: Duration = Duration::from_secs(20);
const HANG_PATIENCE: Duration = Duration::from_millis(500);

/// What was seen in one host.
struct Run {
    rows: Seen,
    /// By version, the statuses of its hostcalls.
    functions: Vec<Vec<u8>>,
    /// Whether each guest's answer was right.
    languages: Vec<bool>,
}

fn rows(chapters: &[Chapter]) -> impl Iterator<Item = &Row> {
    chapters.iter().flat_map(|chapter| &chapter.rows)
}

/// The guests beside the probes: one a version, one a language.
fn guests(folder: &Path) -> Result<Vec<Guest>> {
    let mut guests = Vec::new();
    for version in VERSIONS {
        let path = folder.join(format!("abi-{}.wasm", version.name));
        fs::write(&path, functions::guest(version)?)?;
        guests.push(Guest {
            name: route_of(version.name),
            module: json!(path),
        });
    }
    for language in LANGUAGES {
        guests.push(Guest {
            name: language.name.into(),
            module: (language.module)(folder)?,
        });
    }
    Ok(guests)
}

fn route_of(version: &str) -> String {
    format!("abi-{}", version.replace('.', "-"))
}

/// All that is to be seen in the host at `address`. Rows that do harm there are left to others; `check` says why none can be run
/// any more.
fn run(
    scene: &Scene,
    address: SocketAddr,
    chapters: &[Chapter],
    is_left_to_others: impl Fn(&Row) -> bool,
    mut check: impl FnMut() -> Result<()>,
) -> Result<Run> {
    let seen = rows(chapters).map(|row| {
        if is_left_to_others(row) {
            return Ok(String::new());
        }
        check()
            .and_then(|()| scene.observe(address, row))
            .map_err(|error| format!("{error:#}"))
    });
    let rows = seen.collect();
    check()?;
    let mut functions = Vec::new();
    for version in VERSIONS {
        let path = format!("/{}", route_of(version.name));
        functions.push(Route::plain(address).send(&Request::get(&path))?.body);
    }
    let mut languages = Vec::new();
    for language in LANGUAGES {
        let request = (language.ask)(Request::get(&format!("/{}", language.name)));
        let answer = Route::plain(address).send(&request)?;
        languages.push((language.is_right)(&answer));
    }
    Ok(Run {
        rows,
        functions,
        languages,
    })
}

fn here(chapters: &[Chapter]) -> Result<Run> {
    let folder = tempfile::tempdir()?;
    let scene = Scene::start()?;
    let policy = scene.policy(&probe::module()?, chapters, &guests(folder.path())?);
    let here = Here::start(&policy, folder.path())?;
    run(
        &scene,
        here.listener("plain")?,
        chapters,
        |_| false,
        || Ok(()),
    )
}

fn there(chapters: &[Chapter]) -> Result<Run> {
    let folder = tempfile::tempdir()?;
    let scene = Scene::start()?;
    let policy = scene.policy(&probe::module()?, chapters, &guests(folder.path())?);
    let mut envoy = Envoy::start(&export(&policy, folder.path())?, envoy::Options::default())?;
    let address = envoy.listener("plain")?;
    let check = || match envoy.process_mut().ended()? {
        None => Ok(()),
        Some(status) => bail!(
            "Envoy is gone ({status}): a row before this one did it. Its last words:\n{}",
            envoy.process().last_words()
        ),
    };
    run(&scene, address, chapters, |row| row.harm().is_some(), check)
}

/// Rows that harm all of an Envoy, each in one of its own; what was seen, by the row's name.
fn alone(chapters: &[Chapter]) -> Result<Vec<(String, Result<String, String>)>> {
    let mut seen = Vec::new();
    for row in rows(chapters) {
        if let Some(harm) = row.harm() {
            let result = harmed(row, harm).map_err(|error| format!("{error:#}"));
            seen.push((row.name.clone(), result));
        }
    }
    Ok(seen)
}

fn harmed(row: &Row, harm: Harm) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let scene = Scene::start()?;
    let policy = scene.policy(&probe::module()?, &[], &[]);
    let mut envoy = Envoy::start(&export(&policy, folder.path())?, envoy::Options::default())?;
    let address = envoy.listener("plain")?;
    scene.provoke(address, row);
    match harm {
        Harm::Dies => {
            let status = envoy.process_mut().wait(END_BOUND)?;
            Ok(format!("Envoy ends: {status}"))
        }
        Harm::Hangs => match send_patiently(address, &Request::get("/"), HANG_PATIENCE) {
            Ok(answer) => bail!("Envoy still answers: {}", answer.status),
            Err(_) => Ok("no answer, nor to any request after it".into()),
        },
    }
}

#[test]
fn every_row_in_both_hosts() -> Result<()> {
    let chapters = chapters()?;
    probe::module()?;
    let (ours, theirs, harmed) = match envoy::left_out() {
        Some(why) => {
            report::not_run("the rows of behaviour in Envoy", why);
            (here(&chapters)?, None, Vec::new())
        }
        None => thread::scope(|scope| -> Result<_> {
            let theirs = scope.spawn(|| there(&chapters));
            let harmed = scope.spawn(|| alone(&chapters));
            let ours = here(&chapters)?;
            let panicked = |_| anyhow!("a thread panicked");
            let theirs = theirs.join().map_err(panicked)?.context("Envoy")?;
            Ok((ours, Some(theirs), harmed.join().map_err(panicked)??))
        })?,
    };
    let theirs = theirs.map(|mut theirs| {
        for (seen, row) in theirs.rows.iter_mut().zip(rows(&chapters)) {
            if let Some((_, result)) = harmed.iter().find(|(name, _)| *name == row.name) {
                seen.clone_from(result);
            }
        }
        theirs
    });
    let failures = compare(&chapters, &ours, theirs.as_ref())?;
    if !failures.is_empty() {
        bail!("the hosts do not agree\n\n{failures}");
    }
    document::check(&chapters, &ours, theirs.as_ref())
}

/// What is not as it should be.
fn compare(chapters: &[Chapter], ours: &Run, theirs: Option<&Run>) -> Result<String> {
    let mut failures = String::new();
    for (index, row) in rows(chapters).enumerate() {
        let (Some(here), there) = (
            ours.rows.get(index),
            theirs.and_then(|theirs| theirs.rows.get(index)),
        ) else {
            bail!("row {index} was not run");
        };
        let expected = row
            .deviates
            .as_ref()
            .map(|deviation| Ok(deviation.portcullis.trim_end().to_owned()));
        let wrong = match (&expected, there) {
            (Some(expected), _) if expected != here => {
                "Portcullis answers otherwise than the row says"
            }
            (Some(_), Some(there)) if there == here => {
                "no deviation any more: take it out of the row"
            }
            (None, Some(there)) if there != here => "the hosts differ",
            _ if here.is_err() => "nothing was seen",
            _ if there.is_some_and(Result::is_err) => "nothing was seen in Envoy",
            _ => continue,
        };
        let show = |seen: &Result<String, String>| match seen {
            Ok(text) => text.replace('\n', "\n    "),
            Err(reason) => format!("error: {reason}"),
        };
        writeln!(
            failures,
            "{:?}: {wrong}\n  Portcullis\n    {}",
            row.name,
            show(here)
        )?;
        if let Some(there) = there {
            writeln!(failures, "  Envoy\n    {}", show(there))?;
        }
        if let Some(expected) = &expected {
            writeln!(failures, "  the row\n    {}", show(expected))?;
        }
        writeln!(failures)?;
    }
    if let Some(theirs) = theirs {
        for (version, (here, there)) in VERSIONS
            .iter()
            .zip(ours.functions.iter().zip(&theirs.functions))
        {
            for (index, (name, _)) in functions::of(*version).enumerate() {
                let (here, there) = (here.get(index), there.get(index));
                // What is not served yet stands in the table.
                if here != there && here != Some(&12) {
                    writeln!(
                        failures,
                        "{name} of {}: {here:?}, in Envoy {there:?}\n",
                        version.name
                    )?;
                }
            }
        }
    }
    for run in [Some(ours), theirs].into_iter().flatten() {
        for (language, is_right) in LANGUAGES.iter().zip(&run.languages) {
            if !is_right {
                writeln!(
                    failures,
                    "the guest in {} ({}) answers wrongly\n",
                    language.language, language.kit
                )?;
            }
        }
    }
    Ok(failures)
}
