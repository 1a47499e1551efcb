//! The gallery of hostile guests: each commits one crime when a request asks it to. The host must live, serve the
//! requests of others meanwhile, answer the next request as if nothing had been, stay small, and count what was.
//!
//! `guests/*.wat` are named for their crimes; the crimes that are the same in every callback or hostcall are written
//! out here.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use portcullis_tests::build_folder::repository;
use portcullis_tests::child::until;
use portcullis_tests::client::{Connection, Route};
use portcullis_tests::free_port::free_address;
use portcullis_tests::http1::{Answer, Request, read_answer, read_request_body};
use portcullis_tests::raw_upstream::RawUpstream;
use serde_json::json;

use crate::hostile_guests::GALLERY;
use crate::served::Served;

/// A host that serves one guest of two pages must not grow beyond this, whatever the guest does.
const RESIDENT_BYTES_MAX: u64 = 400 << 20;

/// How soon a trap must be counted.
const COUNTED_BOUND: Duration = Duration::from_secs(10);

/// What the request that asked for the crime may get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// 503: the VM is gone, and the request is refused.
    Refused,
    /// 200: what the guest did came to nothing.
    Passes,
    /// The answer was under way: a whole one or a broken one, both are right.
    Whatever,
    /// None: the guest holds the request until the client goes.
    Held,
}

use Verdict::{Held, Passes, Refused, Whatever};

/// A guest and what its crime must come to.
pub(crate) struct Crime {
    pub(crate) name: String,
    pub(crate) module: Vec<u8>,
    pub(crate) verdict: Verdict,
    /// Whether a metric must count a trap.
    pub(crate) counted: bool,
}

/// Proxies that are tried at once. Most of a trial is waiting: for a child to start, for a guest's time to run out.
const AT_ONCE: usize = 3;

#[test]
fn gallery() -> Result<()> {
    let folder = repository().join("tests/guests");
    let mut named: BTreeMap<&str, (Verdict, bool)> = GALLERY
        .iter()
        .map(|(name, verdict, counted)| (*name, (*verdict, *counted)))
        .collect();
    let mut crimes = Vec::new();
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if path.extension().is_none_or(|extension| extension != "wat")
            || ["prelude", "innocent"].contains(&&*name)
        {
            continue;
        }
        let (verdict, counted) = named
            .remove(&*name)
            .with_context(|| format!("{name}.wat is in no test"))?;
        // Imports come before all else in a module.
        let text = fs::read_to_string(&path)?;
        let (imports, text): (Vec<&str>, Vec<&str>) =
            text.lines().partition(|line| line.starts_with("(import"));
        let module =
            guest(&imports.join("\n"), &text.join("\n")).with_context(|| format!("{name}.wat"))?;
        crimes.push(Crime {
            name,
            module,
            verdict,
            counted,
        });
    }
    assert!(named.is_empty(), "there is no guest for {named:?}");
    commit_all(&crimes)
}

/// The callbacks of a stream: signature, and what the request gets that traps in it.
const CALLBACKS: &[(&str, &str, Verdict)] = &[
    (
        "proxy_on_request_headers",
        "(param i32 i32 i32) (result i32)",
        Refused,
    ),
    (
        "proxy_on_request_body",
        "(param i32 i32 i32) (result i32)",
        Refused,
    ),
    (
        "proxy_on_request_trailers",
        "(param i32 i32) (result i32)",
        Refused,
    ),
    (
        "proxy_on_response_headers",
        "(param i32 i32 i32) (result i32)",
        Refused,
    ),
    (
        "proxy_on_response_body",
        "(param i32 i32 i32) (result i32)",
        Whatever,
    ),
    (
        "proxy_on_response_trailers",
        "(param i32 i32) (result i32)",
        Whatever,
    ),
    ("proxy_on_log", "(param i32)", Passes),
    ("proxy_on_done", "(param i32) (result i32)", Passes),
    ("proxy_on_delete", "(param i32)", Passes),
];

#[test]
fn a_trap_in_every_callback() -> Result<()> {
    let mut crimes = Vec::new();
    for (callback, signature, verdict) in CALLBACKS {
        let judge = if *callback == "proxy_on_request_headers" {
            "(call $judge)"
        } else {
            ""
        };
        let innocent = if signature.contains("result") {
            if *callback == "proxy_on_done" {
                "(i32.const 1)"
            } else {
                "(i32.const 0)"
            }
        } else {
            ""
        };
        let text = format!(
            "(func (export \"{callback}\") {signature} {judge} (if (global.get $guilt) (then unreachable)) {innocent})"
        );
        let name = format!(
            "trap-in-{}",
            callback.trim_start_matches("proxy_on_").replace('_', "-")
        );
        crimes.push(Crime {
            name,
            module: guest("", &text)?,
            verdict: *verdict,
            counted: true,
        });
    }
    // The callbacks of the plugin itself: the crime is to bring them about.
    for (name, text) in [
        (
            "trap-in-tick",
            "(func (export \"proxy_on_configure\") (param i32 i32) (result i32)
                (drop (call $set_tick_period (i32.const 1))) (i32.const 1))
            (func (export \"proxy_on_tick\") (param i32) unreachable)",
        ),
        (
            "trap-in-queue-ready",
            "(func (export \"proxy_on_request_headers\") (param i32 i32 i32) (result i32)
                (call $judge)
                (if (global.get $guilt) (then
                    (drop (call $register_queue (i32.const 16) (i32.const 7) (i32.const 8)))
                    (drop (call $enqueue (i32.load (i32.const 8)) (i32.const 16) (i32.const 7)))))
                (i32.const 0))
            (func (export \"proxy_on_queue_ready\") (param i32 i32) unreachable)",
        ),
        (
            "trap-in-http-call-response",
            "(data (i32.const 128) \"backend\")
            (data (i32.const 256) \"\\03\\00\\00\\00\\07\\00\\00\\00\\03\\00\\00\\00\\05\\00\\00\\00\\01\\00\\00\\00\\0a\\00\\00\\00\\01\\00\\00\\00:method\\00GET\\00:path\\00/\\00:authority\\00a\\00\")
            (func (export \"proxy_on_request_headers\") (param i32 i32 i32) (result i32)
                (call $judge)
                (if (global.get $guilt) (then
                    (if (call $http_call (i32.const 128) (i32.const 7) (i32.const 256) (i32.const 61) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 5000) (i32.const 8))
                        (then unreachable))
                    (return (i32.const 1))))
                (i32.const 0))
            (func (export \"proxy_on_http_call_response\") (param i32 i32 i32 i32 i32) unreachable)",
        ),
    ] {
        let verdict = if name == "trap-in-http-call-response" { Refused } else { Whatever };
        crimes.push(Crime { name: name.to_owned(), module: guest("", text)?, verdict, counted: true });
    }
    commit_all(&crimes)
}

#[test]
fn a_reply_from_where_none_is_due() -> Result<()> {
    let reply = "(drop (call $reply (i32.const 403) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1)))";
    let mut crimes = Vec::new();
    for (name, text) in [
        ("configure", format!("(func (export \"proxy_on_configure\") (param i32 i32) (result i32) {reply} (i32.const 1))")),
        ("vm-start", format!("(func (export \"proxy_on_vm_start\") (param i32 i32) (result i32) {reply} (i32.const 1))")),
        ("context-create", format!("(func (export \"proxy_on_context_create\") (param i32 i32) (if (i32.eqz (local.get 1)) (then {reply})))")),
        (
            "tick",
            format!(
                "(func (export \"proxy_on_configure\") (param i32 i32) (result i32) (drop (call $set_tick_period (i32.const 1))) (i32.const 1))
                (func (export \"proxy_on_tick\") (param i32) {reply})"
            ),
        ),
        ("done", format!("(func (export \"proxy_on_done\") (param i32) (result i32) (if (global.get $guilt) (then {reply})) (i32.const 1))")),
        ("delete", format!("(func (export \"proxy_on_delete\") (param i32) (if (global.get $guilt) (then {reply})))")),
    ] {
        let name = format!("reply-in-{name}");
        crimes.push(Crime { name, module: guest("", &text)?, verdict: Passes, counted: false });
    }
    commit_all(&crimes)
}

/// Lets each guest commit its crime, in a VM that lasts and in those of single requests. One test after the other does.
pub(crate) fn commit_all(crimes: &[Crime]) -> Result<()> {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let crimes: Vec<_> = ["plugin", "request"]
        .into_iter()
        .flat_map(|isolation| crimes.iter().map(move |crime| (isolation, crime)))
        .collect();
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(String::new());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((isolation, crime)) =
                    crimes.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let Err(error) = commit(crime, isolation) else {
                        continue;
                    };
                    let mut failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
                    // Writing to a string does not fail.
                    let _ = writeln!(
                        failures,
                        "{}, isolation {isolation}: {error:#}\n",
                        crime.name
                    );
                }
            });
        }
    });
    let failures = failures
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    ensure!(failures.is_empty(), "{failures}");
    Ok(())
}

/// A guest from its own text: the prelude before it, and an innocent callback for each that it does not have.
pub(crate) fn guest(imports: &str, text: &str) -> Result<Vec<u8>> {
    let folder = repository().join("tests/guests");
    let prelude = fs::read_to_string(folder.join("prelude.wat"))?;
    let mut module = format!("(module\n{imports}\n{prelude}\n{text}\n");
    for line in fs::read_to_string(folder.join("innocent.wat"))?.lines() {
        let name = line.split('"').nth(1).unwrap_or_default();
        if line.starts_with(";;") || text.contains(&format!("\"{name}\"")) {
            continue;
        }
        module.push_str(line);
        module.push('\n');
    }
    module.push(')');
    wat::parse_str(&module).map_err(|error| anyhow::anyhow!("{error}\n{module}"))
}

/// Lets a guest commit its crime in a running proxy, and looks at what becomes of the proxy.
fn commit(crime: &Crime, isolation: &str) -> Result<()> {
    let Crime {
        name,
        module,
        verdict,
        counted,
    } = crime;
    let (verdict, counted) = (*verdict, *counted);
    let folder = tempfile::tempdir()?;
    let path = folder.path().join(format!("{name}.wasm"));
    fs::write(&path, module)?;
    let upstream = upstream_with_trailers()?;
    let address = free_address()?;
    let mut served = Served::start(&policy(&path, &upstream, &address.to_string(), isolation))?;
    let route = Route::plain(address);
    let result = (|| {
        expect_200(route, "/", "before the crime")?;
        if isolation == "request" {
            // From a snapshot; of a guest that cannot be snapshotted, a warning says so.
            until(COUNTED_BOUND, "a snapshot, or why there is none", || {
                let made = served.metric(&["plugin_snapshots_total", "guest"])? >= 1.0;
                Ok(made || served.process.log().contains("no snapshot"))
            })?;
            expect_200(route, "/", "in a vm that is kept")?;
        }
        for round in 1..=3 {
            let asked = std::thread::spawn(move || {
                let mut connection = Route::plain(address).open()?;
                ask(&mut connection, verdict)
            });
            for _ in 0..5 {
                expect_200(route, "/free", "of another route during the crime")?;
            }
            let answer = asked
                .join()
                .map_err(|_| anyhow::anyhow!("the client panicked"))?;
            judge(verdict, answer).with_context(|| format!("crime {round}"))?;
            // Where nobody asks for it, ticks do the crime, and may hit this request too.
            if !["trap-in-tick", "flood-ticks"].contains(&&**name) {
                expect_200(route, "/", "after the crime")?;
            }
        }
        expect_200(route, "/free", "of another route after all")?;
        if counted {
            // A tick or an answer to a callout may still be on its way.
            until(COUNTED_BOUND, "a metric that counts the trap", || {
                Ok(served.metric(&["plugin_traps", "guest"])? >= 1.0)
            })?;
        }
        let resident = served.process.resident_bytes_max()?;
        ensure!(
            resident < RESIDENT_BYTES_MAX,
            "the host grew to {} MiB",
            resident >> 20
        );
        ensure!(
            !served.process.log().contains("panicked at"),
            "a thread of the host panicked"
        );
        Ok(())
    })();
    let ended = served.process.ended()?;
    result.with_context(|| {
        format!(
            "the host ({ended:?}) says:\n{}",
            served.process.last_words()
        )
    })
}

fn policy(
    module: &Path,
    upstream: &RawUpstream,
    address: &str,
    isolation: &str,
) -> serde_json::Value {
    json!({
        "workers": 1,
        "listeners": [{"name": "plain", "address": address}],
        "clusters": [
            {"name": "upstream", "endpoints": [upstream.address().to_string()]},
            {"name": "backend", "endpoints": [upstream.address().to_string()]},
        ],
        "filters": [
            {"name": "security-headers", "module": "builtin:security-headers"},
            {"name": "guest", "module": module, "clusters": ["backend"], "isolation": isolation},
        ],
        "routes": [
            {"name": "free", "prefix": "/free", "cluster": "upstream", "filters": {"guest": "off"}},
            {"name": "all", "cluster": "upstream"},
        ],
    })
}

/// Answers everything with a body and trailers.
fn upstream_with_trailers() -> Result<RawUpstream> {
    RawUpstream::start(|_, headers, stream| {
        read_request_body(stream, headers, &mut |_| {})?;
        stream.get_mut().write_all(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n",
        )?;
        Ok(true)
    })
}

fn expect_200(route: Route<'_>, path: &str, when: &str) -> Result<()> {
    let answer = route
        .send(&Request::get(path))
        .with_context(|| format!("the request {when}"))?;
    ensure!(
        answer.status == 200,
        "the request {when} got {} {}",
        answer.status,
        answer.text()
    );
    ensure!(
        answer.header("set-cookie").is_none(),
        "the answer {when} was split"
    );
    Ok(())
}

/// Sends the request that asks for the crime, with a body and trailers.
fn ask(connection: &mut Connection, verdict: Verdict) -> Result<Answer> {
    connection.write(
        b"POST /crime HTTP/1.1\r\nhost: example.test\r\nx-crime: 1\r\nte: trailers\r\ntransfer-encoding: chunked\r\n\r\n\
          4\r\nbody\r\n0\r\nx-sum: 1\r\n\r\n",
    )?;
    if verdict == Held {
        // The client goes; the host must notice and let go of the request.
        return Ok(Answer::default());
    }
    read_answer(connection.reader(), b"POST")
}

fn judge(verdict: Verdict, answer: Result<Answer>) -> Result<()> {
    match (verdict, answer) {
        (Held | Whatever, Err(_)) | (Held, Ok(_)) => Ok(()),
        (Whatever, Ok(answer)) => {
            ensure!(
                answer.header("set-cookie").is_none(),
                "the answer was split"
            );
            Ok(())
        }
        (_, Err(error)) => Err(error.context("no answer to the criminal request")),
        (Passes, Ok(answer)) if answer.status == 200 => Ok(()),
        (Refused, Ok(answer)) if answer.status == 503 => {
            ensure!(
                answer.header("x-content-type-options").as_deref() == Some("nosniff"),
                "the refusal lacks the headers of security-headers: {:?}",
                answer.headers
            );
            Ok(())
        }
        (_, Ok(answer)) => bail!(
            "the criminal request got {} {}",
            answer.status,
            answer.text()
        ),
    }
}
