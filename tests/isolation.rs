//! Isolation and recovery in the running proxy: VMs of single requests from snapshots, spares, and what the admin page says of both.

use std::time::Duration;

use anyhow::{Context as _, Result};
use portcullis_tests::child::until;
use portcullis_tests::client::Route;
use portcullis_tests::free_port::free_address;
use portcullis_tests::http1::{Answer, Request};
use portcullis_tests::upstream::Upstream;
use serde_json::{Value, json};

use crate::served::Served;

/// Snapshots of four controls on a busy machine.
const MADE_BOUND: Duration = Duration::from_secs(60);

fn policy(upstream: &Upstream, listener: &str, filters: &Value) -> Value {
    json!({
        "listeners": [{"name": "plain", "address": listener}],
        "clusters": [{"name": "upstream", "endpoints": [upstream.address().to_string()]}],
        "filters": filters,
        "routes": [{"name": "all", "cluster": "upstream"}],
        "workers": 1,
    })
}

fn get(listener: std::net::SocketAddr, headers: &[(&str, &str)]) -> Result<Answer> {
    let mut request = Request::get("/");
    for (name, value) in headers {
        request
            .headers
            .push(((*name).into(), value.as_bytes().to_vec()));
    }
    Route::plain(listener).send(&request)
}

#[test]
fn controls_decide_the_same_from_snapshots() -> Result<()> {
    let upstream = Upstream::start()?;
    let listener = free_address()?;
    let limit = json!({"key": "address", "limits": [{"name": "few", "requests": 2, "per": "1h"}]});
    let issuer = json!({"providers": [{"issuer": "https://idp.test", "audiences": ["a"], "jwks": {"keys": [{"alg": "ES256", "crv": "P-256", "kid": "demo-1", "kty": "EC", "use": "sig", "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4", "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}}]});
    let rows = [
        (
            "security-headers",
            json!({"profile": "api"}),
            [200, 200, 200],
        ),
        ("tls-policy", json!({}), [403, 403, 403]),
        ("jwt-auth", issuer, [401, 401, 401]),
        ("rate-limit", limit, [200, 200, 429]),
    ];
    for (control, configuration, expected) in rows {
        let filters = json!([{
            "name": control,
            "module": format!("builtin:{control}"),
            "isolation": "request",
            "configuration": configuration,
            // A machine that stalls is no verdict of the control.
            "limits": {"callback_time": "1s"},
        }]);
        let served = Served::start(&policy(&upstream, &listener.to_string(), &filters))
            .with_context(|| control.to_owned())?;
        until(MADE_BOUND, "the snapshot", || {
            Ok(served.metric(&["portcullis_plugin_snapshots_total"])? >= 1.0)
        })
        .with_context(|| control.to_owned())?;
        let starts = served.metric(&["portcullis_plugin_callbacks_total", "proxy_on_configure"])?;
        for status in expected {
            let answer = get(listener, &[])?;
            let words = || served.process.last_words();
            assert_eq!(answer.status, status, "{control}: {answer:?}\n{}", words());
            if control == "security-headers" {
                assert!(
                    answer.header("x-content-type-options").is_some(),
                    "{answer:?}"
                );
            }
        }
        let after = served.metric(&["portcullis_plugin_callbacks_total", "proxy_on_configure"])?;
        assert_eq!(
            after, starts,
            "{control}: nothing was configured for a request"
        );
        let vms = || served.metric(&["portcullis_plugin_vms", control]);
        let one_waits = || Ok(vms()? == 2.0);
        until(
            MADE_BOUND,
            "the requests to be served by one vm, which waits",
            one_waits,
        )?;
    }
    Ok(())
}

/// Refuses to be configured from the third time on; traps on a request with `x-crime`.
const FRAGILE: &str = r#"(module
  (import "env" "proxy_get_header_map_value" (func $header (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_define_metric" (func $define (param i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_increment_metric" (func $increment (param i32 i64) (result i32)))
  (import "env" "proxy_get_metric" (func $metric (param i32 i32) (result i32)))
  (memory (export "memory") 2)
  (data (i32.const 1024) "x-crime")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 65536))
  (func (export "proxy_on_configure") (param i32 i32) (result i32)
    (drop (call $define (i32.const 0) (i32.const 1026) (i32.const 5) (i32.const 16)))
    (drop (call $increment (i32.load (i32.const 16)) (i64.const 1)))
    (drop (call $metric (i32.load (i32.const 16)) (i32.const 24)))
    (i64.le_u (i64.load (i32.const 24)) (i64.const 2)))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (if (i32.eqz (call $header (i32.const 0) (i32.const 1024) (i32.const 7) (i32.const 0) (i32.const 4))) (then unreachable))
    (i32.const 0)))"#;

#[test]
fn a_spare_stands_ready_and_a_failing_start_shows() -> Result<()> {
    let upstream = Upstream::start()?;
    for (failure_policy, ready, status) in [("closed", 503, 503), ("open", 200, 200)] {
        let listener = free_address()?;
        let folder = tempfile::tempdir()?;
        let module = folder.path().join("fragile.wasm");
        std::fs::write(&module, wat::parse_str(FRAGILE)?)?;
        let filters =
            json!([{"name": "fragile", "module": module, "failure_policy": failure_policy}]);
        let served = Served::start(&policy(&upstream, &listener.to_string(), &filters))?;
        let vms = || served.metric(&["portcullis_plugin_vms"]);
        until(MADE_BOUND, "the spare", || Ok(vms()? == 2.0))?;
        assert_eq!(get(listener, &[("x-crime", "trap")])?.status, 503);
        assert_eq!(get(listener, &[])?.status, 200, "the spare answers");
        assert_eq!(served.metric(&["portcullis_plugin_restarts_total"])?, 1.0);
        assert_eq!(served.admin("/ready")?.status, 200, "a vm stands");

        assert_eq!(get(listener, &[("x-crime", "trap")])?.status, 503);
        until(MADE_BOUND, "the plugin to be missed", || {
            Ok(served.metric(&["portcullis_plugin_waiting"])? == 1.0)
        })?;
        assert_eq!(get(listener, &[])?.status, status, "{failure_policy}");
        let answer = served.admin("/ready")?;
        assert_eq!(answer.status, ready, "{failure_policy}");
        let text = answer.text();
        assert!(
            text.contains("plugin fragile does not start on 1 of 1 workers"),
            "{text}"
        );
    }
    Ok(())
}

#[test]
fn an_export_says_what_envoy_cannot_do() -> Result<()> {
    let upstream = Upstream::start()?;
    let filters = json!([
        {"name": "tls-policy", "module": "builtin:tls-policy", "isolation": "request"},
        {"name": "rate-limit", "module": "builtin:rate-limit", "isolation": "shared"},
    ]);
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("policy.yaml");
    let policy = policy(&upstream, "127.0.0.1:8080", &filters);
    std::fs::write(&path, serde_json::to_string(&policy)?)?;
    let (policy, out) = (path.display().to_string(), folder.path().join("out"));
    let output = crate::served::run(&[
        "export",
        "envoy",
        &policy,
        "--out",
        &out.display().to_string(),
    ])?;
    assert!(output.status.success());
    let warning = "filter tls-policy: Envoy has no counterpart of `isolation: request`";
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains(&format!("warning: {warning}")), "{told}");
    assert!(!told.contains("rate-limit"), "{told}");
    let written = std::fs::read_to_string(out.join("envoy.yaml"))?;
    assert!(written.contains(&format!("# {warning}")), "{written}");
    Ok(())
}
