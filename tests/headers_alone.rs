//! A filter that holds an upstream's headers alone until the body has come (`allow_on_headers_stop_iteration`), and a body that does not.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result, anyhow, ensure};
use portcullis_tests::child::until;
use portcullis_tests::raw_upstream::RawUpstream;
use serde_json::{Value, json};

use crate::reloaded::{BOUND, Reloaded};

/// Lets response headers go with the end of the body.
const HOLDS: &str = r#"(module
  (memory (export "memory") 1)
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 8))
  (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32) (i32.const 1))
  (func (export "proxy_on_response_body") (param i32 i32) (param $end i32) (result i32)
    (i32.eqz (local.get $end))))
"#;

/// A proxy whose filter holds what `upstream` answers, with the access log in a file.
fn start(upstream: &RawUpstream) -> Result<Reloaded> {
    let wasm = wat::parse_str(HOLDS)?;
    let mut written = Ok(());
    let proxy = Reloaded::start(|policy, folder| {
        written = fs::write(folder.join("holds.wasm"), wasm);
        *policy = json!({
            "workers": 1,
            "listeners": [{"name": "plain", "address": "127.0.0.1:0"}],
            "clusters": [{
                "name": "upstream",
                "endpoints": [upstream.address().to_string()],
                "request_timeout": "300ms",
            }],
            "filters": [{
                "name": "holds",
                "module": "holds.wasm",
                "allow_on_headers_stop_iteration": true,
            }],
            "routes": [{"name": "all", "cluster": "upstream"}],
            "access_log": folder.join("access.log"),
        });
    });
    written?;
    proxy
}

/// Waits for the exchange's line in the access log: its flags.
fn flags(proxy: &Reloaded) -> Result<String> {
    let mut line = String::new();
    until(BOUND, "a line in the access log", || {
        line = fs::read_to_string(proxy.folder.path().join("access.log"))?;
        Ok(line.ends_with('\n'))
    })?;
    let line: Value = serde_json::from_str(&line)?;
    let flags = line.get("flags").and_then(Value::as_str);
    Ok(flags.context("no flags")?.to_owned())
}

#[test]
fn an_upstream_that_stands_still_in_its_body_is_given_up() -> Result<()> {
    let upstream = RawUpstream::start(|_, _, stream| {
        stream
            .get_mut()
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")?;
        // Until the proxy gives up.
        stream.read_to_end(&mut Vec::new())?;
        Ok(false)
    })?;
    let proxy = start(&upstream)?;
    let answer = proxy.ask("/");
    ensure!(answer.is_err(), "{answer:?}");
    let flags = flags(&proxy)?;
    ensure!(flags.contains("UT"), "{flags}");
    Ok(())
}

#[test]
fn an_upstream_that_breaks_off_in_its_body_is_told_of() -> Result<()> {
    let upstream = RawUpstream::start(|_, _, stream| {
        stream
            .get_mut()
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")?;
        Ok(false)
    })?;
    let proxy = start(&upstream)?;
    let answer = proxy.ask("/");
    ensure!(answer.is_err(), "{answer:?}");
    let flags = flags(&proxy)?;
    ensure!(flags.contains("UC"), "{flags}");
    Ok(())
}

#[test]
fn the_connection_of_a_body_that_came_whole_serves_the_next_request() -> Result<()> {
    let clients = Arc::new(Mutex::new(BTreeSet::new()));
    let seen = Arc::clone(&clients);
    let upstream = RawUpstream::start(move |_, _, stream| {
        let mut seen = seen.lock().map_err(|_| anyhow!("poisoned"))?;
        seen.insert(stream.get_ref().peer_addr()?);
        stream
            .get_mut()
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwhole")?;
        Ok(true)
    })?;
    let proxy = start(&upstream)?;
    for _ in 0..3 {
        let answer = proxy.ask("/")?;
        ensure!(
            answer.status == 200 && answer.text() == "whole",
            "{answer:?}"
        );
    }
    let count = clients.lock().map_err(|_| anyhow!("poisoned"))?.len();
    ensure!(count == 1, "{count} connections");
    Ok(())
}
