//! Reloads: the next request runs under the new policy, the last one ends under the old, and nothing is lost in between.

use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::child::until;
use portcullis_tests::client::Route;
use portcullis_tests::free_port::free_address;
use portcullis_tests::http1::{Answer, Request};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::reloaded::{BOUND, Counted, EDITION, Reloaded, edition_of, set_edition};
use crate::served::Served;

/// The header of the second plugin.
const SINGLE: &str = "x-its-own";

/// What clients saw of one connection after another, or of one that stays open.
fn hammer(address: SocketAddr, how: How, stop: &AtomicBool) -> Result<u64> {
    let route = Route::plain(address);
    let mut sent = 0;
    let mut last = 0;
    let mut see = |answer: &Answer| -> Result<()> {
        sent += 1;
        let edition = edition_of(answer).with_context(|| format!("request {sent}, {how:?}"))?;
        let single = answer.header(SINGLE);
        ensure!(
            single == Some(edition.to_string()),
            "one exchange in two editions: {edition} and {single:?}"
        );
        // One worker serves a connection, and it never goes back.
        if how != How::NewConnections {
            ensure!(edition >= last, "edition {edition} after {last}");
            last = edition;
        }
        Ok(())
    };
    let mut kept = route.open()?;
    while !stop.load(Ordering::Relaxed) {
        let answer = match how {
            How::KeepAlive => kept.exchange(&Request::get("/")),
            How::NewConnections => route.send(&Request::get("/")),
        };
        see(&answer.with_context(|| format!("{how:?}"))?)?;
    }
    Ok(sent)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    KeepAlive,
    NewConnections,
}

/// Requests over one HTTP/2 connection.
fn hammer_http2(address: SocketAddr, stop: &AtomicBool) -> Result<u64> {
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(address).await?;
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await?;
        let driving = tokio::spawn(connection);
        let (mut sent, mut last) = (0, 0);
        while !stop.load(Ordering::Relaxed) {
            let request = http::Request::get(format!("http://{address}/"))
                .body(http_body_util::Empty::<bytes::Bytes>::new())?;
            let answer = sender.send_request(request).await.context("HTTP/2")?;
            ensure!(answer.status() == 200, "{answer:?}");
            let edition = answer.headers().get("x-edition").context("no edition")?;
            let single = answer.headers().get(SINGLE);
            ensure!(single == Some(edition), "{edition:?} and {single:?}");
            let edition: u64 = edition.to_str()?.parse()?;
            ensure!(edition >= last, "edition {edition} after {last}");
            last = edition;
            sent += 1;
        }
        drop(sender);
        driving.await??;
        Ok(sent)
    })
}

#[test]
fn a_thousand_reloads_lose_no_request() -> Result<()> {
    const RELOADS: u64 = 1_000;
    /// Of resident memory, from the 100th reload to the last: 900 VMs in two workers would be over 100 MiB.
    const GROWTH_BYTES_MAX: u64 = 32 << 20;
    let folder = tempfile::tempdir()?;
    let module = folder.path().join("edition.wasm");
    fs::write(&module, wat::parse_str(EDITION)?)?;
    // The same with a VM for each request, which tells its edition in another header.
    let single = folder.path().join("single.wasm");
    fs::write(
        &single,
        wat::parse_str(EDITION.replace("x-edition", SINGLE))?,
    )?;
    let upstream = Counted::start()?;
    let address = free_address()?;
    let policy = |edition: u64| {
        json!({
            "workers": 2,
            "listeners": [{"name": "plain", "address": address.to_string()}],
            "clusters": [{"name": "upstream", "endpoints": [upstream.address()]}],
            "filters": [
                {"name": "edition", "module": module, "configuration": {"edition": edition}},
                {"name": "single", "module": single, "isolation": "request", "configuration": {"edition": edition}},
                {"name": "security-headers", "module": "builtin:security-headers", "isolation": "shared", "configuration": {"profile": "api"}},
            ],
            "routes": [{"name": "all", "cluster": "upstream"}],
        })
    };
    let served = Served::start_with(&policy(1), &["--no-watch", "--log", "warn"])?;
    let stop = AtomicBool::new(false);
    let mut settled = 0;
    let sent = thread::scope(|scope| -> Result<u64> {
        let clients = [
            scope.spawn(|| hammer(address, How::KeepAlive, &stop)),
            scope.spawn(|| hammer(address, How::KeepAlive, &stop)),
            scope.spawn(|| hammer(address, How::NewConnections, &stop)),
            scope.spawn(|| hammer_http2(address, &stop)),
        ];
        let reloaded = (|| -> Result<()> {
            for edition in 2..=RELOADS + 1 {
                served.write(&policy(edition))?;
                served.process.signal(Signal::HUP)?;
                until(BOUND, "a reload", || {
                    let told: Value = serde_json::from_slice(&served.admin("/policy")?.body)?;
                    ensure!(told["reload"]["refused"] == 0, "{}", told["reload"]);
                    Ok(told["reload"]["done"] == edition - 1)
                })?;
                if edition == 100 {
                    settled = served.process.resident_bytes()?;
                }
            }
            Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        let mut sent = 0;
        for client in clients {
            sent += client
                .join()
                .map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        reloaded?;
        Ok(sent)
    })
    .with_context(|| served.process.last_words())?;
    ensure!(sent > RELOADS, "only {sent} requests in {RELOADS} reloads");
    let counted = upstream.served.load(Ordering::SeqCst);
    ensure!(
        counted == sent,
        "{sent} requests, {counted} at the upstream"
    );
    let answer = Route::plain(address).send(&Request::get("/"))?;
    ensure!(edition_of(&answer)? == RELOADS + 1);
    let done = served.metric(&["portcullis_reloads_total", "result=\"done\""])?;
    ensure!(done == RELOADS as f64, "{done} reloads");
    // The workers are the same two, and counted all along.
    let requests = served.metric(&["portcullis_requests_total", "code=\"200\""])?;
    ensure!(
        requests == (sent + 1) as f64,
        "{requests} counted of {}",
        sent + 1
    );
    let text = served.admin("/metrics")?.text();
    let workers = text
        .lines()
        .filter(|line| line.starts_with("portcullis_downstream_connections{"));
    ensure!(workers.count() == 2, "{text}");
    until(BOUND, "earlier policies to end", || {
        Ok(served.metric(&["portcullis_earlier_policies{"])? == 0.0)
    })?;
    let grown = served.process.resident_bytes()?.saturating_sub(settled);
    ensure!(
        grown < GROWTH_BYTES_MAX,
        "{} KiB more after {RELOADS} reloads",
        grown >> 10
    );
    // On each of two workers one VM a plugin and its spare, or the root VM alone; and no more.
    for (plugin, vms) in [("edition", 2), ("single", 1)] {
        let label = format!("{{plugin=\"{plugin}\"");
        until(BOUND, plugin, || {
            let memory = served.metric(&["portcullis_plugin_memory_bytes", &label])?;
            let stand = served.metric(&["portcullis_plugin_vms", &label])?;
            Ok(memory == f64::from(2 * vms * 2 * 65_536) && stand == f64::from(2 * vms))
        })?;
    }
    // The one that stays gets its snapshots in the end, whatever was begun for those before.
    until(BOUND, "snapshots", || {
        ensure!(edition_of(&Route::plain(address).send(&Request::get("/"))?)? == RELOADS + 1);
        Ok(served.metric(&["portcullis_plugin_snapshots_total"])? >= 2.0)
    })?;
    ensure!(served.metric(&["portcullis_plugin_snapshot_failures_total"])? == 0.0);
    ensure!(served.metric(&["portcullis_plugin_refused_total"])? == 0.0);
    Ok(())
}

#[test]
fn a_bad_policy_changes_nothing_and_says_why() -> Result<()> {
    let mut proxy = Reloaded::start(|_, _| {})?;
    let mut kept = Route::plain(proxy.address("plain")?).open()?;
    ensure!(edition_of(&kept.exchange(&Request::get("/"))?)? == 1);
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let taken = taken.local_addr()?;
    type Edit = Box<dyn FnOnce(&mut Value)>;
    let rows: [(&str, Edit, &str); 4] = [
        (
            "a configuration that the plugin refuses",
            Box::new(|policy| set_edition(policy, 0)),
            "filters[0].configuration: proxy_on_configure refused the configuration",
        ),
        (
            "an address in use",
            Box::new(move |policy| {
                policy["listeners"] = json!([
                    policy["listeners"][0], {"name": "taken", "address": taken.to_string()}
                ]);
            }),
            "listeners[1].address: ",
        ),
        (
            "a capability that there is not",
            Box::new(|policy| {
                policy["filters"][0]["allow"] = json!({"capabilities": ["proxy_lag"]})
            }),
            "filters[0].allow.capabilities[0]: `proxy_lag` is no hostcall",
        ),
        (
            "a log that cannot be written",
            Box::new(|policy| policy["access_log"] = "/nowhere/at/all".into()),
            "access_log: cannot append to /nowhere/at/all",
        ),
    ];
    let count = rows.len();
    for (index, (what, edit, expected)) in rows.into_iter().enumerate() {
        let refused = proxy.reload(|policy| {
            // Would be seen if it took effect in part.
            policy["filters"][0]["configuration"]["edition"] = 7.into();
            edit(policy);
        });
        let error = refused.expect_err(what).to_string();
        ensure!(error.contains(expected), "{what}: {error}");
        ensure!(edition_of(&proxy.ask("/")?)? == 1, "{what}");
        ensure!(
            edition_of(&kept.exchange(&Request::get("/"))?)? == 1,
            "{what}"
        );
        let told: Value = serde_json::from_slice(&proxy.admin("/policy")?.body)?;
        let told = &told["reload"];
        ensure!(
            told["refused"] == index + 1 && told["last"] == "refused",
            "{told}"
        );
        ensure!(
            told["last_refused"]["problems"][0]
                .as_str()
                .is_some_and(|it| it.contains(expected)),
            "{told}"
        );
    }
    let metrics = proxy.admin("/metrics")?.text();
    for line in [
        format!("portcullis_reloads_total{{result=\"refused\"}} {count}"),
        "portcullis_last_reload_refused 1.0".to_owned(),
    ] {
        ensure!(metrics.contains(&line), "no {line} in\n{metrics}");
    }
    ensure!(proxy.admin("/ready")?.status == 200);
    proxy.reload(|policy| set_edition(policy, 2))?;
    ensure!(edition_of(&kept.exchange(&Request::get("/"))?)? == 2);
    let metrics = proxy.admin("/metrics")?.text();
    ensure!(
        metrics.contains("portcullis_last_reload_refused 0.0"),
        "{metrics}"
    );
    Ok(())
}

#[test]
fn a_changed_file_and_a_signal_reload_and_say_so() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let module = folder.path().join("edition.wasm");
    fs::write(&module, wat::parse_str(EDITION)?)?;
    let upstream = Counted::start()?;
    let address = free_address()?;
    let policy = |edition: u64| {
        json!({
            "listeners": [{"name": "plain", "address": address.to_string()}],
            "clusters": [{"name": "upstream", "endpoints": [upstream.address()]}],
            "filters": [{"name": "edition", "module": module, "configuration": {"edition": edition}}],
            "routes": [{"name": "all", "cluster": "upstream"}],
        })
    };
    let served = Served::start(&policy(1))?;
    let runs = |edition: u64| {
        until(BOUND, &format!("edition {edition}"), || {
            Ok(edition_of(&Route::plain(address).send(&Request::get("/"))?)? == edition)
        })
    };
    runs(1)?;
    served.write(&policy(2))?;
    runs(2).with_context(|| served.process.last_words())?;
    // A file that is no policy at all.
    let running = fs::read(served.policy())?;
    fs::write(served.policy(), "listeners: []\nroutes: []\n")?;
    let refused = || Ok(served.metric(&["portcullis_reloads_total", "result=\"refused\""])? >= 1.0);
    until(BOUND, "a refused reload", refused)?;
    let said = format!(
        "{}:1: listeners: at least one is needed",
        served.policy().display()
    );
    ensure!(
        served.process.log().contains(&said),
        "{}",
        served.process.last_words()
    );
    runs(2)?;
    // A signal reads the file again though it is as it was, and so does what it names.
    let digest = || -> Result<Value> {
        let told: Value = serde_json::from_slice(&served.admin("/policy")?.body)?;
        Ok(told["filters"][0]["sha256"].clone())
    };
    fs::write(served.policy(), &running)?;
    let before = digest()?;
    fs::write(
        &module,
        wat::parse_str(EDITION.replace("x-edition", "x-edition\\00"))?,
    )?;
    served.process.signal(Signal::HUP)?;
    until(BOUND, "another module", || Ok(digest()? != before))?;
    runs(2)?;
    // What was refused once is read again when it is written again: what it names may have changed.
    until(BOUND, "the present policy to be seen", || {
        Ok(served.process.log().contains("it is the policy that runs"))
    })?;
    fs::write(served.policy(), "listeners: []\nroutes: []\n")?;
    until(BOUND, "a second refused reload", || {
        Ok(served.metric(&["portcullis_reloads_total", "result=\"refused\""])? >= 2.0)
    })
}

#[test]
fn requests_in_flight_end_under_the_policy_they_began_with() -> Result<()> {
    let mut proxy = Reloaded::start(|_, _| {})?;
    let address = proxy.address("plain")?;
    for edition in 1..=3 {
        thread::scope(|scope| -> Result<()> {
            let asked = scope.spawn(move || Route::plain(address).send(&Request::get("/held")));
            proxy.upstream.wait()?;
            proxy.reload(|policy| set_edition(policy, edition + 1))?;
            ensure!(edition_of(&proxy.ask("/")?)? == edition + 1);
            // Each worker switches at its next turn.
            until(BOUND, "an earlier policy to be counted", || {
                let metrics = proxy.admin("/metrics")?.text();
                let mut earlier = metrics
                    .lines()
                    .filter(|line| line.starts_with("portcullis_earlier_policies{"));
                Ok(earlier.any(|line| line.ends_with(" 1.0")))
            })?;
            proxy.upstream.let_go.send(())?;
            let answer = asked
                .join()
                .map_err(|_| anyhow::anyhow!("the client panicked"))??;
            ensure!(edition_of(&answer)? == edition);
            Ok(())
        })?;
    }
    until(BOUND, "earlier policies to end", || {
        let metrics = proxy.admin("/metrics")?.text();
        let mut earlier = metrics
            .lines()
            .filter(|line| line.starts_with("portcullis_earlier_policies{"));
        Ok(earlier.all(|line| line.ends_with(" 0.0")))
    })
}

#[test]
fn requests_that_outlive_many_reloads_hold_up_the_next_for_the_drain_time_out() -> Result<()> {
    let mut proxy = Reloaded::start(|policy, _| {
        policy["workers"] = 1.into();
        policy["drain_timeout"] = "500ms".into();
        policy["clusters"][0]["request_timeout"] = "off".into();
    })?;
    let address = proxy.address("plain")?;
    let answer = thread::scope(|scope| -> Result<Answer> {
        let asked = scope.spawn(move || Route::plain(address).send(&Request::get("/held")));
        proxy.upstream.wait()?;
        // Only the first of them has a request: the others end at once.
        for edition in 2..9 {
            proxy.reload(|policy| set_edition(policy, edition))?;
        }
        // Each of these has one, held by a connection that reads no answer.
        let mut holding = Vec::new();
        for edition in 9..15 {
            let mut connection = Route::plain(address).open()?;
            connection.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n")?;
            until(BOUND, "the request to have begun", || {
                let metrics = proxy.admin("/metrics")?.text();
                let begun = metrics.lines().find(|line| {
                    line.contains("portcullis_plugin_callbacks_total")
                        && line.contains("proxy_on_request_headers")
                });
                let begun: usize = begun
                    .and_then(|line| line.rsplit(' ').next())
                    .unwrap_or("0")
                    .parse()?;
                Ok(begun >= 2 + holding.len())
            })?;
            holding.push(connection);
            proxy.reload(|policy| set_edition(policy, edition))?;
            ensure!(edition_of(&proxy.ask("/")?)? == edition);
        }
        proxy.upstream.let_go.send(())?;
        asked
            .join()
            .map_err(|_| anyhow::anyhow!("the client panicked"))?
    });
    // Its plugin is gone: the answer is refused, or there is none.
    match answer {
        Ok(answer) => ensure!(answer.status == 503, "{answer:?}"),
        Err(error) => ensure!(!format!("{error:#}").contains("panicked"), "{error:#}"),
    }
    ensure!(edition_of(&proxy.ask("/")?)? == 14);
    Ok(())
}
