//! Hostcalls while a VM starts and inside of the guest's allocator: the same few are served in Portcullis and in Envoy, any other one ends the
//! VM. The one difference stands at the end.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::client::Route;
use portcullis_tests::envoy::{self, Envoy};
use portcullis_tests::http1::Request;
use portcullis_tests::report;
use portcullis_tests::upstream::Upstream;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::places::{ANY_PORT, Here, export, in_both};
use crate::probe;

/// A guest that makes one hostcall where the test says, and has the host allocate in each request.
fn guest(import: &str, at_start: &str, at_allocation: &str, at_request: &str) -> Result<Vec<u8>> {
    Ok(wat::parse_str(format!(
        r#"(module
        (import {import})
        (import "env" "proxy_get_header_map_pairs" (func $pairs (param i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (func (export "proxy_abi_version_0_2_1"))
        (func (export "_initialize") {at_start})
        (func (export "malloc") (param i32) (result i32) {at_allocation} (i32.const 1024))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (drop (call $pairs (i32.const 0) (i32.const 8) (i32.const 12)))
            {at_request}
            (i32.const 0)))"#
    ))?)
}

const FD_CLOSE: &str = r#""wasi_snapshot_preview1" "fd_close" (func $f (param i32) (result i32))"#;
const FD_WRITE: &str =
    r#""wasi_unstable" "fd_write" (func $f (param i32 i32 i32 i32) (result i32))"#;
const CLOCK: &str =
    r#""wasi_snapshot_preview1" "clock_res_get" (func $f (param i32 i32) (result i32))"#;
const EXIT: &str = r#""wasi_snapshot_preview1" "proc_exit" (func $f (param i32))"#;
const TIME: &str =
    r#""env" "proxy_get_current_time_nanoseconds" (func $f (param i32) (result i32))"#;
const GROWTH: &str = r#""env" "emscripten_notify_memory_growth" (func $f (param i32))"#;

const CALL_1: &str = "(drop (call $f (i32.const 64)))";
const CALL_2: &str = "(drop (call $f (i32.const 0) (i32.const 64)))";
const CALL_4: &str = "(drop (call $f (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 64)))";
const TELL: &str = "(call $f (i32.const 0))";

fn policy(upstream: &Upstream, folder: &TempDir, module: &[u8]) -> Result<Value> {
    let path = folder.path().join("module.wasm");
    fs::write(&path, module)?;
    Ok(json!({
        "workers": 1,
        "listeners": [{"name": "plain", "address": ANY_PORT}],
        "clusters": [{"name": "upstream", "endpoints": [upstream.address().to_string()]}],
        "filters": [{"name": "guest", "module": path}],
        "routes": [{"name": "all", "cluster": "upstream"}],
    }))
}

/// Whether the place refused the module, for the right reason, if it should have.
fn judge(
    import: &str,
    place: &str,
    refused: Option<anyhow::Error>,
    loads: bool,
    word: &str,
) -> Result<()> {
    let reason = refused.map(|error| format!("{error:#}"));
    let as_expected = match &reason {
        None => loads,
        Some(reason) => !loads && reason.contains(word),
    };
    ensure!(as_expected, "{import} in {place}: {reason:?}");
    Ok(())
}

#[test]
fn what_is_served_while_a_vm_starts_is_what_envoy_serves() -> Result<()> {
    let upstream = Upstream::start()?;
    for (import, call, loads) in [
        (FD_WRITE, CALL_4, true),
        (CLOCK, CALL_2, true),
        (FD_CLOSE, CALL_1, false),
        (TIME, CALL_1, false),
        (EXIT, TELL, false),
    ] {
        let folder = tempfile::tempdir()?;
        let good = policy(&upstream, &folder, &probe::module(&[], &[])?)?;
        let config = export(&good, folder.path())?;
        let module = guest(import, call, "", "")?;
        let policy = policy(&upstream, &folder, &module)?;
        let refused = Here::start(&policy, folder.path()).err();
        judge(import, "Portcullis", refused, loads, "restricted_hostcall")?;
        if let Some(why) = envoy::left_out() {
            report::not_run(&format!("{import} in Envoy"), why);
            continue;
        }
        // In place of the module that was exported: `export` itself would refuse it.
        fs::write(folder.path().join("guest.wasm"), &module)?;
        let refused = Envoy::start(&config, envoy::Options::default()).err();
        judge(import, "Envoy", refused, loads, "restricted_callback")?;
    }
    Ok(())
}

#[test]
fn what_is_served_in_the_allocator_is_what_envoy_serves() -> Result<()> {
    let upstream = Upstream::start()?;
    for (import, at_allocation, at_request, status) in [
        (FD_WRITE, CALL_4, "", 200),
        (CLOCK, CALL_2, "", 503),
        (TIME, CALL_1, "", 503),
        // Not in the allocator: it returns, and the guest goes on.
        (EXIT, "", "(call $f (i32.const 3))", 200),
    ] {
        let folder = tempfile::tempdir()?;
        let policy = policy(
            &upstream,
            &folder,
            &guest(import, "", at_allocation, at_request)?,
        )?;
        in_both(import, &policy, "plain", |address| {
            for _ in 0..2 {
                let answer = Route::plain(address).send(&Request::get("/"))?;
                ensure!(answer.status == status, "got {}", answer.status);
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Envoy ends an emscripten guest whose allocator must grow its memory: it says so through a hostcall that is not served there.
#[test]
fn an_allocator_may_say_that_memory_grew() -> Result<()> {
    let upstream = Upstream::start()?;
    let folder = tempfile::tempdir()?;
    let policy = policy(&upstream, &folder, &guest(GROWTH, "", TELL, "")?)?;
    let status =
        |address| -> Result<u16> { Ok(Route::plain(address).send(&Request::get("/"))?.status) };
    let here = Here::start(&policy, folder.path())?;
    ensure!(status(here.listener("plain")?)? == 200, "not in Portcullis");
    if let Some(why) = envoy::left_out() {
        report::not_run("memory growth in Envoy's allocator", why);
        return Ok(());
    }
    let envoy = Envoy::start(&export(&policy, folder.path())?, envoy::Options::default())?;
    let there = status(envoy.listener("plain")?).context("in Envoy")?;
    ensure!(there == 503, "Envoy has learnt better: {there}");
    Ok(())
}
