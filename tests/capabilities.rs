//! A plugin that may use less than it wants, in Portcullis and in Envoy: what it is told, and what is not called.

use std::fs;

use anyhow::{Result, ensure};
use portcullis_tests::client::Route;
use portcullis_tests::free_port::free_address;
use portcullis_tests::http1::Request;
use portcullis_tests::upstream::Upstream;
use serde_json::json;

use crate::places::{ANY_PORT, in_both};
use crate::served::Served;

/// Answers with the statuses of five calls, each a letter from `A` for 0. Its response callback would replace the answer.
const GUEST: &str = r#"(module
  (import "env" "proxy_get_current_time_nanoseconds" (func $now (param i32) (result i32)))
  (import "env" "proxy_get_log_level" (func $log_level (param i32) (result i32)))
  (import "env" "proxy_get_header_map_size" (func $size (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (import "env" "proxy_send_local_response" (func $reply (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 65536))
  (func (export "proxy_on_configure") (param i32 i32) (result i32) (i32.const 0))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (i32.store8 (i32.const 100) (i32.add (i32.const 65) (call $now (i32.const 0))))
    (i32.store8 (i32.const 101) (i32.add (i32.const 65) (call $log_level (i32.const 0))))
    (i32.store8 (i32.const 102) (i32.add (i32.const 65) (call $size (i32.const 0) (i32.const 0))))
    (i32.store8 (i32.const 103) (i32.sub (call $clock (i32.const 0) (i64.const 0) (i32.const 0)) (i32.const 11)))
    (i32.store8 (i32.const 104) (i32.add (i32.const 65) (call $random (i32.const 0) (i32.const 4))))
    (drop (call $reply (i32.const 200) (i32.const 0) (i32.const 0) (i32.const 100) (i32.const 5)
      (i32.const 0) (i32.const 0) (i32.const -1)))
    (i32.const 1))
  (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
    (drop (call $reply (i32.const 500) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
      (i32.const 0) (i32.const 0) (i32.const -1)))
    (i32.const 1)))
"#;

#[test]
fn what_is_denied_answers_as_in_envoy() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let module = folder.path().join("wants-more.wasm");
    fs::write(&module, wat::parse_str(GUEST)?)?;
    let upstream = Upstream::start()?;
    // Neither the clocks nor the log level, nor `proxy_on_configure`, which would refuse to work.
    let allowed = [
        "proxy_on_request_headers",
        "proxy_get_header_map_size",
        "proxy_send_local_response",
        "random_get",
    ];
    let policy = json!({
        "workers": 1,
        "listeners": [{"name": "plain", "address": ANY_PORT}],
        "clusters": [{"name": "upstream", "endpoints": [upstream.address().to_string()]}],
        "filters": [{"name": "wants-more", "module": module, "allow": {"capabilities": allowed}}],
        "routes": [{"name": "all", "cluster": "upstream"}],
    });
    in_both("denied capabilities", &policy, "plain", |address| {
        let answer = Route::plain(address).send(&Request::get("/"))?;
        // 10, 10, 0, 76, 0.
        ensure!(
            answer.status == 200 && answer.text() == "KKAAA",
            "{answer:?}"
        );
        Ok(())
    })
}

#[test]
fn what_is_denied_is_counted_and_said_once() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let module = folder.path().join("wants-more.wasm");
    fs::write(&module, wat::parse_str(GUEST)?)?;
    let upstream = Upstream::start()?;
    let allowed = [
        "proxy_on_request_headers",
        "proxy_send_local_response",
        "random_get",
    ];
    let denied = [
        "proxy_get_current_time_nanoseconds",
        "proxy_get_log_level",
        "proxy_get_header_map_size",
        "clock_time_get",
    ];
    for isolation in ["shared", "plugin", "request"] {
        let address = free_address()?;
        let served = Served::start(&json!({
            "workers": 1,
            "listeners": [{"name": "plain", "address": address.to_string()}],
            "clusters": [{"name": "upstream", "endpoints": [upstream.address().to_string()]}],
            "filters": [{
                "name": "wants-more", "module": module, "isolation": isolation, "allow": {"capabilities": allowed},
            }],
            "routes": [{"name": "all", "cluster": "upstream"}],
        }))?;
        for _ in 0..3 {
            let answer = Route::plain(address).send(&Request::get("/"))?;
            ensure!(answer.text() == "KKKAA", "{isolation}: {answer:?}");
        }
        let counted = served.metric(&["portcullis_plugin_denials_total", "kind=\"capability\""])?;
        ensure!(counted == 12.0, "{isolation}: {counted}");
        let log = served.process.log();
        for name in denied {
            let warning = format!("capability {name} is denied: no allow-list has it");
            let times = log.matches(&warning).count();
            ensure!(times == 1, "{isolation}: {times} times {warning}\n{log}");
        }
    }
    Ok(())
}
