//! What a reload keeps and what it replaces: shared data, listeners, certificates, connections, logs.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::certificates::Certificates;
use portcullis_tests::child::until;
use portcullis_tests::client::{Protocol, Route, Security};
use portcullis_tests::free_port::free_address;
use portcullis_tests::http1::Request;
use serde_json::json;

use crate::reloaded::{BOUND, Reloaded, edition_of, expect_close, metric, set_edition};

#[test]
fn shared_data_and_what_is_counted_survive() -> Result<()> {
    let mut proxy = Reloaded::start(|policy, _| {
        policy["filters"] = json!([
            {"name": "edition", "module": "edition.wasm", "configuration": {"edition": 1}},
            {"name": "limit", "module": "builtin:rate-limit", "configuration": {
                "key": "address", "limits": [{"name": "all", "requests": 4, "per": "3600s"}],
            }},
        ]);
    })?;
    let ask = |proxy: &Reloaded| Ok::<_, anyhow::Error>(proxy.ask("/")?.status);
    ensure!(ask(&proxy)? == 200 && ask(&proxy)? == 200);
    proxy.reload(|policy| set_edition(policy, 2))?;
    ensure!(ask(&proxy)? == 200 && ask(&proxy)? == 200);
    proxy.reload(|policy| set_edition(policy, 3))?;
    ensure!(ask(&proxy)? == 429, "the limit was forgotten");
    let metrics = proxy.admin("/metrics")?.text();
    let counted = metrics.lines().find(|line| {
        [
            "portcullis_plugin_callbacks_total",
            "plugin=\"edition\"",
            "proxy_on_request_headers",
        ]
        .iter()
        .all(|part| line.contains(part))
    });
    ensure!(
        counted.is_some_and(|line| line.ends_with(" 5")),
        "{metrics}"
    );
    // A filter that is taken out is forgotten once its policy has ended, and its counters with it.
    proxy.reload(|policy| {
        policy["filters"].as_array_mut().map(Vec::pop);
    })?;
    until(BOUND, "the filter to be forgotten", || {
        let metrics = proxy.admin("/metrics")?.text();
        ensure!(metrics.contains("plugin=\"edition\""), "{metrics}");
        Ok(!metrics.contains("plugin=\"limit\""))
    })
}

/// Counts requests in a metric of its own.
const COUNTS: &str = r#"(module
  (import "env" "proxy_define_metric" (func $define (param i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_increment_metric" (func $increment (param i32 i64) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "counted")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 1024))
  (func (export "proxy_on_configure") (param i32 i32) (result i32)
    (i32.eqz (call $define (i32.const 0) (i32.const 16) (i32.const 7) (i32.const 64))))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (call $increment (i32.load (i32.const 64)) (i64.const 1))))
"#;

#[test]
fn metrics_of_a_filter_that_is_taken_out_are_forgotten_with_its_last_request() -> Result<()> {
    let counts = json!({"name": "counts", "module": "counts.wasm"});
    let mut proxy = Reloaded::start(|policy, folder| {
        fs::write(folder.join("counts.wasm"), wat::parse_str(COUNTS).unwrap()).unwrap();
        policy["filters"] = json!([policy["filters"][0], counts]);
    })?;
    let counted = |proxy: &Reloaded| -> Result<Option<String>> {
        let metrics = proxy.admin("/metrics")?.text();
        let mut lines = metrics.lines();
        let line = lines.find_map(|line| line.strip_prefix("portcullis_custom_counted_total "));
        Ok(line.map(str::to_owned))
    };
    ensure!(proxy.ask("/")?.status == 200);
    ensure!(counted(&proxy)?.as_deref() == Some("1"));
    proxy.reload(|policy| set_edition(policy, 2))?;
    ensure!(proxy.ask("/")?.status == 200);
    ensure!(counted(&proxy)?.as_deref() == Some("2"), "it was forgotten");
    let address = proxy.address("plain")?;
    thread::scope(|scope| -> Result<()> {
        let in_flight = scope.spawn(move || Route::plain(address).send(&Request::get("/held")));
        proxy.upstream.wait()?;
        proxy.reload(|policy| policy["filters"] = json!([policy["filters"][0]]))?;
        // The first edition has long ended, and with the third comes another end: what a VM still has stays.
        proxy.reload(|policy| set_edition(policy, 3))?;
        ensure!(edition_of(&proxy.ask("/")?)? == 3);
        until(BOUND, "the policy in between to end", || {
            Ok(metric(&proxy, &["portcullis_earlier_policies{"])? <= 1.0)
        })?;
        ensure!(
            counted(&proxy)?.as_deref() == Some("3"),
            "its request is under way"
        );
        proxy.upstream.let_go.send(())?;
        let answer = in_flight.join();
        ensure!(answer.is_ok_and(|answer| answer.is_ok_and(|it| it.status == 200)));
        Ok(())
    })?;
    until(BOUND, "the metric to be forgotten", || {
        Ok(counted(&proxy)?.is_none())
    })?;
    proxy.reload(|policy| policy["filters"] = json!([policy["filters"][0], counts]))?;
    ensure!(proxy.ask("/")?.status == 200);
    ensure!(counted(&proxy)?.as_deref() == Some("1"), "it begins anew");
    Ok(())
}

#[test]
fn listeners_stay_come_and_go() -> Result<()> {
    let mut proxy = Reloaded::start(|_, _| {})?;
    let first = proxy.address("plain")?;
    let mut on_first = Route::plain(first).open()?;
    on_first.exchange(&Request::get("/"))?;
    proxy.reload(|policy| {
        policy["listeners"] = json!([
            {"name": "plain", "address": "127.0.0.1:0"}, {"name": "second", "address": "127.0.0.1:0"},
        ]);
    })?;
    ensure!(proxy.address("plain")? == first, "the socket has changed");
    let second = proxy.address("second")?;
    let mut on_second = Route::plain(second).open()?;
    on_second.exchange(&Request::get("/"))?;
    on_first.exchange(&Request::get("/"))?;
    // The first one goes while a request on it is in flight.
    thread::scope(|scope| -> Result<()> {
        let in_flight = scope.spawn(move || Route::plain(first).send(&Request::get("/held")));
        proxy.upstream.wait()?;
        proxy.reload(|policy| {
            policy["listeners"] = json!([{"name": "second", "address": "127.0.0.1:0"}])
        })?;
        until(BOUND, "the socket to be closed", || {
            Ok(TcpStream::connect(first).is_err())
        })?;
        expect_close(&mut on_first).context("an idle connection outlives its listener")?;
        proxy.upstream.let_go.send(())?;
        let answer = in_flight
            .join()
            .map_err(|_| anyhow::anyhow!("the client panicked"))??;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    })?;
    ensure!(proxy.address("second")? == second);
    on_second.exchange(&Request::get("/"))?;
    // A port that is freed can be taken again, the admin's too.
    let admin = proxy.running()?.admin().context("no admin")?;
    let mut on_admin = Route::plain(admin).open()?;
    let mut ready = Request::get("/ready");
    ready.authority = admin.to_string().into_bytes();
    ensure!(on_admin.exchange(&ready)?.status == 200);
    proxy.reload(|policy| {
        policy["listeners"] = json!([
            {"name": "second", "address": "127.0.0.1:0"}, {"name": "plain", "address": first.to_string()},
        ]);
        policy["admin"] = json!({"address": free_address().unwrap().to_string()});
    })?;
    ensure!(proxy.address("plain")? == first);
    ensure!(edition_of(&proxy.ask("/")?)? == 1);
    ensure!(proxy.admin("/ready")?.status == 200);
    until(BOUND, "the old admin page to close", || {
        Ok(TcpStream::connect(admin).is_err())
    })?;
    expect_close(&mut on_admin).context("the old admin page goes on to answer")?;
    // Two listeners cannot change places at once, and are told so.
    let error = proxy
        .reload(|policy| {
            policy["listeners"] =
                json!([{"name": "wide", "address": format!("0.0.0.0:{}", first.port())}])
        })
        .expect_err("an address in use")
        .to_string();
    ensure!(
        error.contains("by listener `plain` of the policy that runs"),
        "{error}"
    );
    ensure!(edition_of(&proxy.ask("/")?)? == 1);
    Ok(())
}

#[test]
fn certificates_are_read_again() -> Result<()> {
    let mut made = None;
    let mut proxy = Reloaded::start(|policy, folder| {
        let certificates = Certificates::make(folder).unwrap();
        let tls = json!({"certificate_chain": certificates.chain, "private_key": certificates.key});
        policy["listeners"] = json!([{"name": "plain", "address": "127.0.0.1:0", "tls": tls}]);
        made = Some(certificates);
    })?;
    let old = made.context("no certificates")?;
    let address = proxy.address("plain")?;
    let mut kept = Route::tls(address, Security::Tls13, &old).open()?;
    ensure!(edition_of(&kept.exchange(&Request::get("/"))?)? == 1);
    // Others in the same files.
    let new = Certificates::make(proxy.folder.path())?;
    proxy.reload(|policy| set_edition(policy, 2))?;
    ensure!(proxy.address("plain")? == address);
    let answer = Route::tls(address, Security::Tls13, &new).send(&Request::get("/"))?;
    ensure!(edition_of(&answer)? == 2);
    ensure!(
        Route::tls(address, Security::Tls13, &old).open().is_err(),
        "the old certificate is shown"
    );
    ensure!(
        edition_of(&kept.exchange(&Request::get("/"))?)? == 2,
        "an open connection goes on"
    );
    let mut http2 = Route::tls(address, Security::Tls13, &new);
    http2.protocol = Protocol::Http2;
    ensure!(edition_of(&http2.send(&Request::get("/"))?)? == 2);
    // From now on clients need certificates: those that have none are not to stay.
    let authority: PathBuf = new.authority.clone();
    proxy.reload(|policy| {
        policy["listeners"][0]["tls"]["client_ca"] = json!(authority);
        policy["listeners"][0]["tls"]["require_client_certificate"] = true.into();
    })?;
    expect_close(&mut kept).context("a client without a certificate stays")?;
    let refused = Route::tls(address, Security::Tls13, &new).send(&Request::get("/"));
    ensure!(refused.is_err(), "a client without a certificate gets in");
    Ok(())
}

#[test]
fn a_connection_to_the_upstream_outlives_a_reload() -> Result<()> {
    let mut proxy = Reloaded::start(|policy, _| policy["workers"] = 1.into())?;
    let opened = |proxy: &Reloaded| -> Result<String> {
        let metrics = proxy.admin("/metrics")?.text();
        let line = metrics
            .lines()
            .find(|line| line.starts_with("portcullis_upstream_connects_total"));
        Ok(line
            .context("no connects")?
            .rsplit(' ')
            .next()
            .unwrap_or_default()
            .to_owned())
    };
    for edition in 2..5 {
        ensure!(proxy.ask("/")?.status == 200);
        ensure!(opened(&proxy)? == "1", "edition {edition}");
        proxy.reload(|policy| set_edition(policy, edition))?;
    }
    // Another time-out, another cluster; it counts on.
    proxy.reload(|policy| policy["clusters"][0]["idle_timeout"] = "1m".into())?;
    ensure!(proxy.ask("/")?.status == 200);
    ensure!(opened(&proxy)? == "2");
    Ok(())
}

#[test]
fn an_access_log_is_opened_anew_after_a_rotation() -> Result<()> {
    let mut proxy = Reloaded::start(|policy, folder| {
        policy["access_log"] = json!(folder.join("log"));
    })?;
    let (log, rotated) = (
        proxy.folder.path().join("log"),
        proxy.folder.path().join("log.1"),
    );
    let lines = |path: &Path| fs::read_to_string(path).map_or(0, |text| text.lines().count());
    proxy.ask("/")?;
    until(BOUND, "a line", || Ok(lines(&log) == 1))?;
    fs::rename(&log, &rotated)?;
    proxy.ask("/")?;
    until(BOUND, "a line in the old file", || Ok(lines(&rotated) == 2))?;
    proxy.reload(|_| {})?;
    proxy.ask("/")?;
    until(BOUND, "a line in the new file", || Ok(lines(&log) == 1))?;
    ensure!(lines(&rotated) == 2);
    Ok(())
}

#[test]
fn tcp_connections_go_on() -> Result<()> {
    let mut proxy = Reloaded::start(|_, _| {})?;
    let upstream = proxy.upstream.address();
    let tcp = json!({"name": "tcp", "address": "127.0.0.1:0", "tcp": {"cluster": "upstream"}});
    proxy.reload(|policy| {
        policy["listeners"] = json!([policy["listeners"][0], tcp]);
    })?;
    let address = proxy.address("tcp")?;
    let mut kept = Route::plain(address).open()?;
    ensure!(
        kept.exchange(&Request::get("/"))?.status == 200,
        "{upstream}"
    );
    proxy.reload(|policy| set_edition(policy, 2))?;
    ensure!(kept.exchange(&Request::get("/"))?.status == 200);
    // No filter of HTTP sees what passes.
    let answer = Route::plain(address).send(&Request::get("/"))?;
    ensure!(
        answer.status == 200 && answer.header("x-edition").is_none(),
        "{answer:?}"
    );
    proxy.reload(|policy| {
        policy["listeners"].as_array_mut().map(Vec::pop);
    })?;
    until(BOUND, "the socket to be closed", || {
        Ok(TcpStream::connect(address).is_err())
    })?;
    // It cannot be asked to end: it does when one of its ends closes.
    ensure!(kept.exchange(&Request::get("/"))?.status == 200);
    Ok(())
}
