//! Reloads of plugins in every isolation: VMs and snapshots of an earlier policy end with its last request, and hold nobody up.

use std::fs;
use std::thread;

use anyhow::{Result, ensure};
use portcullis_tests::child::until;
use portcullis_tests::client::Route;
use portcullis_tests::http1::Request;
use serde_json::{Value, json};

use crate::reloaded::{BOUND, Reloaded, edition_of, metric, set_edition};

const ALL: [&str; 3] = ["shared", "plugin", "request"];

fn earlier_end(proxy: &Reloaded) -> Result<()> {
    until(BOUND, "earlier policies to end", || {
        Ok(metric(proxy, &["portcullis_earlier_policies{"])? == 0.0)
    })
}

#[test]
fn requests_in_flight_keep_their_vm() -> Result<()> {
    for isolation in ALL {
        let mut proxy = Reloaded::start(|policy, _| {
            policy["workers"] = 1.into();
            policy["filters"][0]["isolation"] = isolation.into();
        })?;
        let address = proxy.address("plain")?;
        for edition in 1..=3 {
            if isolation == "request" {
                // So that each edition's requests begin from its own snapshot.
                let made = edition as f64;
                until(BOUND, "the snapshot", || {
                    Ok(metric(&proxy, &["portcullis_plugin_snapshots_total"])? >= made)
                })?;
            }
            thread::scope(|scope| -> Result<()> {
                let asked = scope.spawn(move || Route::plain(address).send(&Request::get("/held")));
                proxy.upstream.wait()?;
                proxy.reload(|policy| set_edition(policy, edition + 1))?;
                ensure!(edition_of(&proxy.ask("/")?)? == edition + 1, "{isolation}");
                proxy.upstream.let_go.send(())?;
                let answer = asked
                    .join()
                    .map_err(|_| anyhow::anyhow!("the client panicked"))??;
                ensure!(edition_of(&answer)? == edition, "{isolation}");
                Ok(())
            })?;
        }
        earlier_end(&proxy)?;
        // The root VM alone, or the standing one and its spare.
        let vms = if isolation == "request" { 1.0 } else { 2.0 };
        until(BOUND, "no vm but the last policy's", || {
            Ok(metric(&proxy, &["portcullis_plugin_vms{"])? == vms)
        })?;
        ensure!(metric(&proxy, &["portcullis_plugin_restarts_total"])? == 0.0);
        ensure!(proxy.admin("/ready")?.status == 200);
    }
    Ok(())
}

#[test]
fn a_reload_changes_the_isolation() -> Result<()> {
    let mut proxy = Reloaded::start(|policy, _| policy["workers"] = 1.into())?;
    let mut edition = 1;
    for isolation in ["request", "shared", "plugin", "request", "plugin"] {
        edition += 1;
        proxy.reload(|policy| {
            set_edition(policy, edition);
            policy["filters"][0]["isolation"] = isolation.into();
        })?;
        ensure!(edition_of(&proxy.ask("/")?)? == edition, "{isolation}");
        earlier_end(&proxy)?;
        let vms = if isolation == "request" { 1.0 } else { 2.0 };
        until(BOUND, isolation, || {
            Ok(metric(&proxy, &["portcullis_plugin_vms{"])? == vms)
        })?;
        let told: Value = serde_json::from_slice(&proxy.admin("/policy")?.body)?;
        ensure!(told["filters"][0]["isolation"] == isolation, "{told}");
    }
    Ok(())
}

#[test]
fn configurations_of_one_filter_share_a_vm_in_each_policy() -> Result<()> {
    let mut proxy = Reloaded::start(|policy, _| {
        policy["workers"] = 1.into();
        policy["filters"][0]["isolation"] = "shared".into();
        policy["routes"] = json!([
            {"name": "all", "cluster": "upstream"},
            {"name": "other", "prefix": "/other", "cluster": "upstream", "filters": {
                "edition": {"configuration": {"edition": 101}},
            }},
        ]);
    })?;
    for edition in 1..=5 {
        if edition > 1 {
            proxy.reload(|policy| {
                set_edition(policy, edition);
                policy["routes"][1]["filters"]["edition"]["configuration"]["edition"] =
                    (edition + 100).into();
            })?;
        }
        // The guest keeps one configuration in its memory: that of the plugin that was configured last.
        let answers = [proxy.ask("/")?, proxy.ask("/other/x")?];
        for answer in answers {
            ensure!(answer.status == 200, "{answer:?}");
            let said = answer.header("x-edition").unwrap_or_default();
            ensure!(
                said.starts_with(&(edition + 100).to_string()),
                "{said} in edition {edition}"
            );
        }
    }
    earlier_end(&proxy)
}

/// Traps on `/crime`, and is configured but once with a configuration of less than 16 bytes.
const ONCE: &str = r#"(module
  (import "env" "proxy_get_header_map_value" (func $header (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_get_shared_data" (func $shared (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_set_shared_data" (func $share (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (data (i32.const 1024) "x-crimek")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 65536))
  (func (export "proxy_on_configure") (param i32 i32) (result i32) (local $found i32)
    (local.set $found (call $shared (i32.const 1031) (i32.const 1) (i32.const 0) (i32.const 4) (i32.const 8)))
    (drop (call $share (i32.const 1031) (i32.const 1) (i32.const 1031) (i32.const 1) (i32.const 0)))
    (i32.or (i32.ne (local.get $found) (i32.const 0)) (i32.ge_u (local.get 1) (i32.const 16))))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (if (i32.eqz (call $header (i32.const 0) (i32.const 1024) (i32.const 7) (i32.const 0) (i32.const 4))) (then unreachable))
    (i32.const 0)))"#;

#[test]
fn a_plugin_that_does_not_start_is_missed_until_a_reload_mends_it() -> Result<()> {
    for isolation in ALL {
        let mut proxy = Reloaded::start(|policy, folder| {
            fs::write(folder.join("once.wasm"), wat::parse_str(ONCE).unwrap()).unwrap();
            policy["workers"] = 1.into();
            policy["filters"] = json!([{
                "name": "once", "module": "once.wasm", "isolation": isolation, "configuration": {"a": 1},
            }]);
        })?;
        ensure!(
            proxy.admin("/ready")?.status == 200,
            "{isolation}: at first"
        );
        let crime = Request::get("/").header("x-crime", "trap");
        let answer = Route::plain(proxy.address("plain")?).send(&crime)?;
        ensure!(answer.status == 503, "{answer:?}");
        if isolation != "request" {
            until(BOUND, "the plugin to be missed", || {
                Ok(proxy.admin("/ready")?.status == 503)
            })?;
            let text = proxy.admin("/ready")?.text();
            ensure!(
                text.contains("plugin once does not start on 1 of 1 workers"),
                "{text}"
            );
            ensure!(proxy.ask("/")?.status == 503);
        }
        proxy.reload(|policy| {
            policy["filters"][0]["configuration"] = json!({"a": "long enough to be taken"});
        })?;
        ensure!(proxy.ask("/")?.status == 200, "{isolation}");
        until(BOUND, "the proxy to be ready again", || {
            Ok(proxy.admin("/ready")?.status == 200)
        })?;
        ensure!(metric(&proxy, &["portcullis_plugin_waiting{"])? == 0.0);
    }
    Ok(())
}
