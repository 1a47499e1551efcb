//! Guests in the languages that Proxy-Wasm plugins are written in, each built here from source without an SDK, in Portcullis and in Envoy.
//!
//! All do the same: answer 403 on `/closed`, log every path, and put `x-guest: NAME over PROTOCOL` on answers. [`table`] runs
//! them all and says what came of it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use portcullis_tests::child::{Process, until};
use portcullis_tests::client::Route;
use portcullis_tests::envoy::{self, Envoy};
use portcullis_tests::free_port::free_address;
use portcullis_tests::http1::Request;
use portcullis_tests::upstream::Upstream;
use portcullis_tests::{assembly_script, golang, report, zig};
use serde_json::{Value, json};

use crate::places;
use crate::served::Served;

/// A language: its guest's own name, the tool that builds it, why that is left out, and how it is built.
struct Language {
    name: &'static str,
    tool: &'static str,
    left_out: fn() -> Option<&'static str>,
    build: fn() -> Result<PathBuf>,
}

const LANGUAGES: &[Language] = &[
    Language {
        name: "zig",
        tool: "Zig 0.17, wasm32-wasi",
        left_out: zig::left_out,
        build: zig::zig_guest,
    },
    Language {
        name: "c",
        tool: "zig cc, wasm32-wasi with wasi-libc",
        left_out: zig::left_out,
        build: zig::c_guest,
    },
    Language {
        name: "c++",
        tool: "zig c++, wasm32-wasi with wasi-libc",
        left_out: zig::left_out,
        build: zig::cpp_guest,
    },
    Language {
        name: "assemblyscript",
        tool: "AssemblyScript 0.28",
        left_out: assembly_script::left_out,
        build: assembly_script::guest,
    },
    Language {
        name: "go",
        tool: "Go 1.27, wasip1, -buildmode=c-shared",
        left_out: golang::left_out,
        build: golang::guest,
    },
];

/// What a guest did in one place: `Err` says why not.
#[derive(Debug)]
pub(crate) struct InPlace {
    /// It was loaded and configured.
    pub(crate) loads: Result<(), String>,
    /// It answered as all do, and logged.
    pub(crate) answers: Result<(), String>,
}

/// One language's line of the table.
#[derive(Debug)]
pub(crate) struct Row {
    /// The language.
    pub(crate) language: &'static str,
    /// What built the guest.
    pub(crate) tool: &'static str,
    /// In Portcullis; `None` where the tool was left out.
    pub(crate) portcullis: Option<InPlace>,
    /// In Envoy; `None` where the tool or Envoy was left out.
    pub(crate) envoy: Option<InPlace>,
}

/// Builds every guest and runs it in both places, once a process: `docs/compatibility.md` is made of it, too.
///
/// # Errors
/// When a guest cannot be built and nobody said to leave its tool out.
pub(crate) fn table() -> Result<&'static [Row]> {
    static TABLE: OnceLock<Result<Vec<Row>, String>> = OnceLock::new();
    let made = || -> Result<Vec<Row>> { LANGUAGES.iter().map(row).collect() };
    let table = TABLE.get_or_init(|| made().map_err(|error| format!("{error:#}")));
    table.as_deref().map_err(|reason| anyhow!(reason.clone()))
}

fn row(language: &Language) -> Result<Row> {
    let mut row = Row {
        language: language.name,
        tool: language.tool,
        portcullis: None,
        envoy: None,
    };
    if let Some(why) = (language.left_out)() {
        report::not_run(&format!("a guest in {}", language.name), why);
        return Ok(row);
    }
    let upstream = Upstream::start()?;
    let module = (language.build)().with_context(|| format!("a guest in {}", language.name))?;
    let address = free_address()?;
    let policy = json!({
        "workers": 1,
        "listeners": [{"name": "plain", "address": address.to_string()}],
        "clusters": [{"name": "upstream", "endpoints": [upstream.address().to_string()]}],
        "filters": [{"name": "guest", "module": module}],
        "routes": [{"name": "all", "cluster": "upstream"}],
    });
    row.portcullis = Some(match Served::start(&policy) {
        Ok(served) => in_place(language.name, address, &served.process),
        Err(error) => not_loaded(&error),
    });
    row.envoy = match envoy::left_out() {
        Some(why) => {
            report::not_run(&format!("a guest in {} in Envoy", language.name), why);
            None
        }
        None => Some(in_envoy(language.name, &policy)?),
    };
    Ok(row)
}

fn in_envoy(name: &str, policy: &Value) -> Result<InPlace> {
    let folder = tempfile::tempdir()?;
    let config = places::export(policy, folder.path())?;
    Ok(match start_envoy(&config) {
        Ok((envoy, address)) => in_place(name, address, envoy.process()),
        Err(error) => not_loaded(&error),
    })
}

fn start_envoy(config: &Path) -> Result<(Envoy, SocketAddr)> {
    let envoy = Envoy::start(config, envoy::Options::default())?;
    let address = envoy.listener("plain")?;
    Ok((envoy, address))
}

fn not_loaded(error: &anyhow::Error) -> InPlace {
    InPlace {
        loads: Err(format!("{error:#}")),
        answers: Err("it was not loaded".into()),
    }
}

fn in_place(name: &str, address: SocketAddr, process: &Process) -> InPlace {
    let answers = answers(name, address, process);
    InPlace {
        loads: Ok(()),
        answers: answers.map_err(|error| format!("{error:#}; it says:\n{}", process.last_words())),
    }
}

fn answers(name: &str, address: SocketAddr, process: &Process) -> Result<()> {
    let mut connection = Route::plain(address).open()?;
    // Enough that what is not freed would show.
    for round in 0..100 {
        for (path, status) in [("/open", 200), ("/closed", 403)] {
            let answer = connection.exchange(&Request::get(path))?;
            ensure!(
                answer.status == status,
                "round {round}: {path} gets {}",
                answer.status
            );
            let guest = answer.header("x-guest");
            ensure!(
                guest == Some(format!("{name} over HTTP/1.1")),
                "round {round}: x-guest is {guest:?} on {path}"
            );
            ensure!(
                status != 403 || answer.text() == format!("closed by {name}"),
                "round {round}: {path} is answered with {:?}",
                answer.text()
            );
        }
    }
    for path in ["/open", "/closed"] {
        let line = format!("{name} sees {path}");
        until(
            Duration::from_secs(10),
            &format!("the line `{line}`"),
            || Ok(process.log().contains(&line)),
        )?;
    }
    Ok(())
}

#[test]
fn guests_of_every_language_load_and_answer_alike() -> Result<()> {
    for row in table()? {
        for (place, outcome) in [("Portcullis", &row.portcullis), ("Envoy", &row.envoy)] {
            let Some(InPlace { loads, answers }) = outcome else {
                continue;
            };
            let what = format!("{} ({}) in {place}", row.language, row.tool);
            ensure!(loads.is_ok(), "{what} does not load: {loads:?}");
            ensure!(answers.is_ok(), "{what} answers otherwise: {answers:?}");
            report::say(&format!("{what}: loads and answers"));
        }
    }
    Ok(())
}
