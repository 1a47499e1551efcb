//! A filter that answers while the request's body still comes and a filter holds the headers of the upstream's answer, which came early.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::child::until;
use portcullis_tests::raw_upstream::RawUpstream;
use serde_json::json;

use crate::reloaded::{BOUND, Reloaded, metric};

/// Holds what the upstream answers, for ever. Answers with 418, or closes the stream, once the body's end is there, or from its timer.
fn filter(from: &str, act: &str) -> Result<Vec<u8>> {
    let (at_end, pause, in_timer) = match from {
        "body" => (act, 0, ""),
        _ => ("", 1, act),
    };
    let text = format!(
        r#"(module
  (import "env" "proxy_send_local_response" (func $answer (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_close_stream" (func $close (param i32) (result i32)))
  (import "env" "proxy_set_tick_period_milliseconds" (func $tick (param i32) (result i32)))
  (import "env" "proxy_set_effective_context" (func $act_on (param i32) (result i32)))
  (memory (export "memory") 1)
  (global $stream (mut i32) (i32.const 0))
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 8))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (global.set $stream (local.get 0)) (i32.const 0))
  (func (export "proxy_on_request_body") (param i32 i32) (param $end i32) (result i32)
    (if (local.get $end) (then {at_end}))
    (i32.const {pause}))
  (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
    (drop (call $tick (i32.const 20)))
    (i32.const 1))
  (func (export "proxy_on_tick") (param i32)
    (drop (call $tick (i32.const 0)))
    (drop (call $act_on (global.get $stream)))
    {in_timer}))"#
    );
    Ok(wat::parse_str(text)?)
}

/// What a client reads that sends half of its body, and the rest when the upstream's headers are held.
fn ask(from: &str, act: &str) -> Result<String> {
    let upstream = RawUpstream::start(|_, _, stream| {
        stream
            .get_mut()
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nupstream")?;
        // Until the proxy gives up.
        stream.read_to_end(&mut Vec::new())?;
        Ok(false)
    })?;
    let wasm = filter(from, act)?;
    let mut written = Ok(());
    let proxy = Reloaded::start(|policy, folder| {
        written = fs::write(folder.join("early.wasm"), wasm);
        policy["workers"] = 1.into();
        policy["clusters"] =
            json!([{"name": "upstream", "endpoints": [upstream.address().to_string()]}]);
        policy["filters"] = json!([{"name": "early", "module": "early.wasm"}]);
    })?;
    written?;
    let mut client = TcpStream::connect(proxy.address("plain")?)?;
    client.set_read_timeout(Some(BOUND))?;
    client.write_all(
        b"POST / HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\ncontent-length: 4\r\n\r\nab",
    )?;
    until(BOUND, "the upstream's headers to be held", || {
        let parts = [
            "portcullis_plugin_callbacks_total",
            "proxy_on_response_headers",
        ];
        Ok(metric(&proxy, &parts)? == 1.0)
    })?;
    if from == "body" {
        client.write_all(b"cd")?;
    }
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).context("no answer")?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[test]
fn an_answer_takes_the_place_of_headers_that_are_held() -> Result<()> {
    let answer = "(drop (call $answer (i32.const 418) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1)))";
    for from in ["body", "timer"] {
        let read = ask(from, answer)?;
        ensure!(read.starts_with("HTTP/1.1 418 "), "{from}: {read}");
        ensure!(!read.contains("upstream"), "{from}: {read}");
    }
    Ok(())
}

#[test]
fn a_reset_is_waited_for_by_nobody() -> Result<()> {
    for from in ["body", "timer"] {
        let read = ask(from, "(drop (call $close (i32.const 0)))")?;
        ensure!(read.is_empty(), "{from}: {read}");
    }
    Ok(())
}
