//! The command line end to end: the demo keeps its promises here and in Envoy, signals drain, modules are listed,
//! inspected and written.

use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use portcullis_tests::certificates::Certificates;
use portcullis_tests::child::{Process, until};
use portcullis_tests::client::{Route, Security};
use portcullis_tests::envoy::{self, Envoy};
use portcullis_tests::free_port::free_address;
use portcullis_tests::http1::{Answer, Request};
use portcullis_tests::raw_upstream::RawUpstream;
use portcullis_tests::report;
use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;

use crate::served::{self, Served};

const BOUND: Duration = Duration::from_secs(60);

/// `portcullis demo` on free ports.
struct Demo {
    process: Process,
    http: SocketAddr,
    https: SocketAddr,
    admin: SocketAddr,
    folder: TempDir,
}

impl Demo {
    fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (http, https, admin, echo) = (
            free_address()?,
            free_address()?,
            free_address()?,
            free_address()?,
        );
        let mut command = served::command()?;
        command
            .arg("demo")
            .arg("--dir")
            .arg(folder.path().join("demo"));
        for (option, address) in [
            ("--http-port", http),
            ("--https-port", https),
            ("--admin-port", admin),
            ("--echo-port", echo),
        ] {
            command.arg(option).arg(address.port().to_string());
        }
        let mut process = Process::start(&mut command, &folder.path().join("log"))?;
        until(BOUND, "the demo", || {
            if let Some(status) = process.ended()? {
                bail!("the demo ended ({status}):\n{}", process.last_words());
            }
            Ok(served::ask(admin, "/ready").is_ok_and(|answer| answer.status == 200))
        })?;
        Ok(Self {
            process,
            http,
            https,
            admin,
            folder,
        })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join("demo").join(name)
    }
}

/// What the demo promises: who asks, and what comes of it.
fn promises(folder: &Path, http: SocketAddr, https: SocketAddr) -> Result<()> {
    let trusted = Certificates::trusting(&folder.join("ca.pem"), "localhost")?;
    let token = |name: &str| -> Result<String> {
        let path = folder.join("tokens").join(name);
        let token = fs::read_to_string(&path)
            .with_context(|| format!("{} is not there", path.display()))?;
        Ok(format!("Bearer {}", token.trim()))
    };
    let ask = |security: Security, path: &str, authorization: Option<String>| -> Result<Answer> {
        let mut request = Request::get(path);
        request.authority = b"localhost".to_vec();
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        Route::tls(https, security, &trusted).send(&request)
    };
    let has = |answer: &Answer, status: u16, header: &str| -> Result<()> {
        ensure!(
            answer.status == status,
            "expected {status}, got {} {}",
            answer.status,
            answer.text()
        );
        ensure!(
            answer.header(header).is_some(),
            "{status} lacks {header}: {:?}",
            answer.headers
        );
        ensure!(
            answer.header("strict-transport-security").is_some(),
            "{status} lacks strict-transport-security"
        );
        Ok(())
    };
    has(
        &ask(Security::Tls13, "/hello", Some(token("valid.jwt")?))?,
        200,
        "ratelimit",
    )?;
    has(
        &ask(Security::Tls13, "/hello", None)?,
        401,
        "www-authenticate",
    )?;
    has(
        &ask(Security::Tls13, "/hello", Some(token("expired.jwt")?))?,
        401,
        "www-authenticate",
    )?;
    has(
        &ask(
            Security::Tls13,
            "/hello",
            Some(token("wrong-audience.jwt")?),
        )?,
        401,
        "www-authenticate",
    )?;
    has(
        &ask(Security::Tls12, "/hello", Some(token("valid.jwt")?))?,
        403,
        "strict-transport-security",
    )?;
    for _ in 0..3 {
        has(
            &ask(Security::Tls13, "/limited", Some(token("valid.jwt")?))?,
            200,
            "ratelimit",
        )?;
    }
    has(
        &ask(Security::Tls13, "/limited", Some(token("valid.jwt")?))?,
        429,
        "retry-after",
    )?;
    let public = Request::get("/public").header("x-user", "mallory");
    let public = Route::tls(https, Security::Tls13, &trusted).send(&public)?;
    has(&public, 200, "strict-transport-security")?;
    ensure!(
        !public.text().contains("mallory"),
        "a client's x-user reached the upstream: {}",
        public.text()
    );

    let plain = Route::plain(http).send(&Request::get("/hello"))?;
    ensure!(
        plain.status == 308,
        "plaintext GET: expected 308, got {}",
        plain.status
    );
    ensure!(
        plain.header("strict-transport-security").is_none(),
        "HSTS on plaintext"
    );
    let plain = Route::plain(http).send(&Request::get("/hello").post("x"))?;
    ensure!(
        plain.status == 403,
        "plaintext POST: expected 403, got {}",
        plain.status
    );
    Ok(())
}

#[test]
fn the_demo_keeps_its_promises_and_stops_at_ctrl_c() -> Result<()> {
    let mut demo = Demo::start()?;
    let folder = demo.file("");
    promises(&folder, demo.http, demo.https).with_context(|| demo.process.last_words())?;
    let metrics = served::ask(demo.admin, "/metrics")?.text();
    ensure!(metrics.contains("# TYPE"), "no metrics:\n{metrics}");
    // Prometheus takes no histogram without it.
    ensure!(
        metrics.contains("portcullis_request_duration_seconds_bucket{le=\"+Inf\"}"),
        "no last bucket:\n{metrics}"
    );
    let policy = served::ask(demo.admin, "/policy")?;
    ensure!(
        policy.status == 200 && policy.text().contains("jwt-auth"),
        "no policy: {}",
        policy.text()
    );
    ensure!(
        !policy.text().contains("PRIVATE KEY"),
        "the admin page shows a key"
    );
    ensure!(
        demo.process.log().contains("curl"),
        "the demo prints no lines to try"
    );
    let log = demo.process.log();
    let token = fs::read_to_string(demo.file("tokens/valid.jwt"))?;
    ensure!(!log.contains(token.trim()), "a token was logged");
    demo.process.signal(Signal::INT)?;
    let status = demo.process.wait(BOUND)?;
    ensure!(
        status.code() == Some(0),
        "Ctrl-C ended the demo with {status}"
    );

    // The same policy, exported, keeps the same promises in Envoy. The echo upstream went with the demo.
    if let Some(why) = envoy::left_out() {
        report::not_run("the demo's policy in Envoy", why);
        return Ok(());
    }
    let demo = Demo::start()?;
    let out = demo.folder.path().join("envoy");
    let exported = served::export(&demo.file("policy.yaml"), &out)?;
    Envoy::validate(&exported)?;
    // The demo itself holds the ports of the policy.
    let elsewhere = demo.folder.path().join("elsewhere.yaml");
    let mut text = fs::read_to_string(&exported)?;
    for address in [demo.http, demo.https] {
        text = text.replace(&format!("port_value: {}", address.port()), "port_value: 0");
    }
    fs::write(&elsewhere, text)?;
    let envoy = Envoy::start(&elsewhere, envoy::Options::default())?;
    promises(
        &demo.file(""),
        envoy.listener("http")?,
        envoy.listener("https")?,
    )
    .with_context(|| format!("Envoy says:\n{}", envoy.process().last_words()))
}

#[test]
fn sigterm_drains() -> Result<()> {
    let (arrived, arrivals) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let released = Arc::new(Mutex::new(released));
    let upstream = RawUpstream::start(move |_, _, stream| {
        arrived.send(())?;
        let gate = released.lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
        gate.recv_timeout(BOUND)?;
        stream
            .get_mut()
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlate")?;
        Ok(true)
    })?;
    let address = free_address()?;
    let mut served = Served::start(&json!({
        "listeners": [{"name": "plain", "address": address.to_string()}],
        "clusters": [{"name": "upstream", "endpoints": [upstream.address().to_string()]}],
        "routes": [{"name": "all", "cluster": "upstream"}],
    }))?;
    let request = std::thread::spawn(move || Route::plain(address).send(&Request::get("/")));
    arrivals.recv_timeout(BOUND)?;
    served.process.signal(Signal::TERM)?;
    until(BOUND, "the listener to close", || {
        Ok(TcpStream::connect(address).is_err())
    })?;
    ensure!(
        served.process.ended()?.is_none(),
        "it ended with a request in flight"
    );
    release.send(())?;
    let answer = request
        .join()
        .map_err(|_| anyhow::anyhow!("the client panicked"))??;
    ensure!(
        answer.status == 200 && answer.text() == "late",
        "the request in flight got {answer:?}"
    );
    let status = served.process.wait(BOUND)?;
    ensure!(status.code() == Some(0), "SIGTERM ended it with {status}");
    Ok(())
}

#[test]
fn plugins_are_listed_inspected_and_written() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let good = |arguments: &[&str]| -> Result<String> {
        let output = served::run(arguments)?;
        ensure!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let list = good(&["plugins", "list"])?;
    let out = folder.path().join("out");
    good(&["plugins", "write", &out.display().to_string()])?;
    for control in portcullis_plugins::all() {
        ensure!(
            list.contains(control.name),
            "{} is not listed:\n{list}",
            control.name
        );
        let file = out.join(format!("{}.wasm", control.name));
        ensure!(
            fs::read(&file)? == control.module,
            "{} is another module",
            file.display()
        );
        for module in [
            file.display().to_string(),
            format!("builtin:{}", control.name),
        ] {
            let told = good(&["plugins", "inspect", &module])?;
            ensure!(
                good(&["inspect", &module])? == told,
                "inspect tells of {module} what plugins inspect does not"
            );
            for part in [
                control.name,
                control.version,
                "0.2.1",
                "proxy_on_configure",
                control.summary,
                control.capabilities[0],
                &control.module.len().to_string(),
            ] {
                ensure!(
                    told.contains(part),
                    "inspect {module} does not tell {part}:\n{told}"
                );
            }
        }
    }
    let bad = folder.path().join("bad.wasm");
    fs::write(&bad, b"no wasm")?;
    for module in [
        bad.display().to_string(),
        "no-such.wasm".to_owned(),
        "builtin:no-such".to_owned(),
    ] {
        let output = served::run(&["plugins", "inspect", &module])?;
        ensure!(
            output.status.code() == Some(1),
            "inspect {module} ended with {}",
            output.status
        );
        ensure!(!output.stderr.is_empty(), "inspect {module} says nothing");
    }
    Ok(())
}

#[test]
fn help_teaches() -> Result<()> {
    for (arguments, words) in [
        (
            &["--help"][..],
            &[
                "demo", "check", "serve", "export", "plugins", "new", "build", "inspect",
            ][..],
        ),
        (&["serve", "--help"], &["Example", "SIGTERM"]),
        (&["check", "--help"], &["POLICY.yaml"]),
        (&["demo", "--help"], &["--dir", "--https-port"]),
        (
            &["export", "envoy", "--help"],
            &["--out", "--modules-at", "--filters-only"],
        ),
        (&["plugins", "inspect", "--help"], &["builtin:"]),
        (&["inspect", "--help"], &["builtin:", "--format json"]),
        (
            &["new", "--help"],
            &["vendor/portcullis-sdk", "--sdk", "cargo test"],
        ),
        (
            &["build", "--help"],
            &["target/portcullis/NAME.wasm", "--offline"],
        ),
    ] {
        let output = served::run(arguments)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "{arguments:?} ended with {}",
            output.status
        );
        for word in words {
            ensure!(
                text.contains(word),
                "{arguments:?} does not speak of {word}:\n{text}"
            );
        }
    }
    let output = served::run(&["serv"])?;
    ensure!(
        output.status.code() == Some(2),
        "a wrong command ended with {}",
        output.status
    );
    Ok(())
}

/// A bare `cargo build` of the program and this crate's copy of it are one source.
#[test]
fn the_program_under_test_tells_its_version() -> Result<()> {
    let output = served::run(&["--version"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        text.starts_with("portcullis ") && text.contains(env!("CARGO_PKG_VERSION")),
        "{text}"
    );
    Ok(())
}
