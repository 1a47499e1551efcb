//! Modules that are a crime before they run, or while they start: `check` refuses each by name, in time, in little memory, and
//! without a panic. Those that are merely large are loaded or refused, but never a trouble.

use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::served;

/// The time of a start is bounded by 5 s; compiling the large ones takes seconds, too.
const ENDS_IN: Duration = Duration::from_secs(60);

/// What a module has that is none of the crimes.
const REST: &str = r#"(func (export "proxy_abi_version_0_2_1"))
    (func (export "malloc") (param i32) (result i32) (i32.const 8))"#;

/// A crime in text, and a part of the reason that it is refused with.
const REFUSED: &[(&str, &str, &str)] = &[
    (
        "no-abi-version",
        r#"(memory (export "memory") 1) (func (export "malloc") (param i32) (result i32) (i32.const 8))"#,
        "no known proxy-wasm abi version",
    ),
    (
        "no-allocator",
        r#"(memory (export "memory") 1) (func (export "proxy_abi_version_0_2_1"))"#,
        "missing export",
    ),
    ("no-memory", "REST", "missing export: memory"),
    (
        "memory-that-is-a-function",
        r#"(func (export "memory")) REST"#,
        "memory",
    ),
    (
        "callback-with-another-signature",
        r#"(memory (export "memory") 1) REST (func (export "proxy_on_request_headers") (param i64) (result i64) (local.get 0))"#,
        "proxy_on_request_headers has signature",
    ),
    (
        "allocator-with-another-signature",
        r#"(memory (export "memory") 1) (func (export "proxy_abi_version_0_2_1")) (func (export "malloc") (param i64) (result i64) (local.get 0))"#,
        "malloc has signature",
    ),
    (
        "import-with-another-signature",
        r#"(import "env" "proxy_log" (func (param i64))) (memory (export "memory") 1) REST"#,
        "proxy_log",
    ),
    (
        "import-of-nobody",
        r#"(import "env" "proxy_take_over" (func)) (memory (export "memory") 1) REST"#,
        "unknown import env.proxy_take_over",
    ),
    (
        "import-of-another-world",
        r#"(import "host" "system" (func (param i32))) (memory (export "memory") 1) REST"#,
        "unknown import host.system",
    ),
    (
        "import-of-a-later-version",
        r#"(import "env" "proxy_get_log_level" (func (param i32) (result i32))) (memory (export "memory") 1) (func (export "proxy_abi_version_0_2_0")) (func (export "malloc") (param i32) (result i32) (i32.const 8))"#,
        "proxy_get_log_level",
    ),
    (
        "memory-from-outside",
        r#"(import "env" "memory" (memory 1)) (export "memory" (memory 0)) REST"#,
        "env.memory",
    ),
    (
        "memory-of-all-there-is",
        r#"(memory (export "memory") 65536) REST"#,
        "",
    ),
    (
        "two-memories",
        r#"(memory (export "memory") 1) (memory 1) REST"#,
        "",
    ),
    (
        "shared-memory",
        r#"(memory (export "memory") 1 1 shared) REST"#,
        "",
    ),
    (
        "memory-of-64-bits",
        r#"(memory (export "memory") i64 1) REST"#,
        "",
    ),
    (
        "table-of-all-there-is",
        r#"(memory (export "memory") 1) (table 0xffffffff funcref) REST"#,
        "",
    ),
    (
        "twenty-tables",
        r#"(memory (export "memory") 1) (table 9999 funcref) (table 9999 funcref) (table 9999 funcref) (table 9999 funcref) (table 9999 funcref) (table 9999 funcref) (table 9999 funcref) (table 9999 funcref) (table 9999 funcref) (table 9999 funcref) (table 9999 funcref) (table 9999 funcref) (table 9999 funcref) (table 9999 funcref) (table 9999 funcref) (table 9999 funcref) (table 9999 funcref) (table 9999 funcref) (table 9999 funcref) (table 9999 funcref) REST"#,
        "",
    ),
    (
        "data-beyond-memory",
        r#"(memory (export "memory") 1) (data (i32.const 0xfffffff0) "out of range") REST"#,
        "cannot instantiate",
    ),
    (
        "elements-beyond-table",
        r#"(memory (export "memory") 1) (table 1 funcref) (func $f) (elem (i32.const 1000) $f) REST"#,
        "cannot instantiate",
    ),
    (
        "start-that-loops",
        r#"(memory (export "memory") 1) REST (func $start (loop $ever (br $ever))) (start $start)"#,
        "cannot instantiate",
    ),
    (
        "start-that-traps",
        r#"(memory (export "memory") 1) REST (func $start unreachable) (start $start)"#,
        "cannot instantiate",
    ),
    (
        "initialize-that-loops",
        r#"(memory (export "memory") 1) REST (func (export "_initialize") (loop $ever (br $ever)))"#,
        "_initialize failed: out_of_time",
    ),
    (
        "initialize-that-recurses",
        r#"(memory (export "memory") 1) REST (func $deeper (export "_initialize") (call $deeper) (call $deeper))"#,
        "_initialize failed: stack_overflow",
    ),
    (
        "hostcall-in-initialize",
        r#"(import "env" "proxy_set_tick_period_milliseconds" (func $tick (param i32) (result i32))) (memory (export "memory") 1) REST (func (export "_initialize") (drop (call $tick (i32.const 1))))"#,
        "_initialize failed: restricted_hostcall",
    ),
    (
        "exit-in-main",
        r#"(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32))) (memory (export "memory") 1) REST (func (export "_start") (call $exit (i32.const 3)))"#,
        "_start failed: restricted_hostcall",
    ),
    (
        "vm-start-that-traps",
        r#"(memory (export "memory") 1) REST (func (export "proxy_on_vm_start") (param i32 i32) (result i32) unreachable)"#,
        "proxy_on_vm_start failed: unreachable",
    ),
    (
        "configure-that-refuses",
        r#"(memory (export "memory") 1) REST (func (export "proxy_on_configure") (param i32 i32) (result i32) (i32.const 0))"#,
        "proxy_on_configure refused",
    ),
    (
        "configure-that-loops",
        r#"(memory (export "memory") 1) REST (func (export "proxy_on_configure") (param i32 i32) (result i32) (loop $ever (br $ever)) (i32.const 1))"#,
        "proxy_on_configure failed: out_of_time",
    ),
    (
        "configure-that-grows",
        r#"(memory (export "memory") 1) REST (func (export "proxy_on_configure") (param i32 i32) (result i32) (loop $more (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) unreachable)"#,
        "proxy_on_configure failed: unreachable",
    ),
];

#[test]
fn modules_that_are_a_crime_are_refused() -> Result<()> {
    let mut failures = String::new();
    let mut note = |name: &str, result: Result<()>| {
        if let Err(error) = result {
            // Writing to a string does not fail.
            let _ = writeln!(failures, "{name}: {error:#}\n");
        }
    };
    for (name, text, reason) in REFUSED {
        let text = format!("(module {})", text.replace("REST", REST));
        let module = wat::parse_str(&text).with_context(|| format!("{name}: {text}"))?;
        note(name, refuse(name, &module, Some(reason)));
    }
    let whole = wat::parse_str(format!("(module (memory (export \"memory\") 1) {REST})"))?;
    let half = whole.get(..whole.len() / 2).unwrap_or_default();
    note(
        "half-a-module",
        refuse("half-a-module", half, Some("unexpected end-of-file")),
    );
    note(
        "nothing",
        refuse("nothing", b"", Some("is not a Wasm module")),
    );
    note(
        "no-module",
        refuse(
            "no-module",
            b"#!/bin/sh\nrm -rf /\n",
            Some("is not a Wasm module"),
        ),
    );
    // A component, by its header.
    let component = b"\0asm\x0d\0\x01\0";
    note(
        "component",
        refuse("component", component, Some("is a Wasm component")),
    );
    for (name, module) in large()? {
        note(name, refuse(name, &module, None));
    }
    assert!(failures.is_empty(), "{failures}");
    Ok(())
}

/// Modules that are valid, and large in one way each.
fn large() -> Result<Vec<(&'static str, Vec<u8>)>> {
    let module = |text: String| -> Result<Vec<u8>> {
        Ok(wat::parse_str(format!(
            "(module (memory (export \"memory\") 1) {REST} {text})"
        ))?)
    };
    let targets = "0 ".repeat(100_000);
    let blocks = 20_000;
    Ok(vec![
        (
            "thirty-thousand-functions",
            module("(func (result i32) (i32.const 7))".repeat(30_000))?,
        ),
        (
            "flood-of-branches",
            module(format!(
                "(func (param i32) (block (br_table {targets} 0 (local.get 0))))"
            ))?,
        ),
        (
            "deep-blocks",
            module(format!(
                "(func {} {})",
                "(block ".repeat(blocks),
                ")".repeat(blocks)
            ))?,
        ),
        (
            "fifty-thousand-locals",
            module(format!("(func (local {}))", "i64 ".repeat(49_000)))?,
        ),
        (
            "long-function",
            module(format!(
                "(func (local i64) {})",
                "(local.set 0 (i64.add (local.get 0) (i64.const 1)))".repeat(50_000)
            ))?,
        ),
        (
            "many-exports",
            module(
                (0..30_000)
                    .map(|n| format!("(func (export \"e{n}\"))"))
                    .collect(),
            )?,
        ),
    ])
}

/// Runs `check` on a policy with the module; `reason` is what it is to be refused with, `None` where it may pass.
fn refuse(name: &str, module: &[u8], reason: Option<&str>) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join(format!("{name}.wasm"));
    fs::write(&path, module)?;
    let policy = folder.path().join("policy.yaml");
    let text = json!({
        "listeners": [{"name": "plain", "address": "127.0.0.1:0"}],
        "clusters": [{"name": "upstream", "endpoints": ["127.0.0.1:1"]}],
        "filters": [{"name": "guest", "module": path}],
        "routes": [{"name": "all", "cluster": "upstream"}],
    });
    fs::write(&policy, serde_json::to_string_pretty(&text)?)?;
    let began = Instant::now();
    let output = served::run(&["check", &policy.display().to_string()])?;
    let took = began.elapsed();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(took < ENDS_IN, "it took {took:?}");
    ensure!(!said.contains("panicked"), "it panicked:\n{said}");
    // A signal has no code: it would be the end of a host that serves.
    ensure!(
        output.status.code().is_some(),
        "it died ({}):\n{said}",
        output.status
    );
    if let Some(reason) = reason {
        ensure!(!output.status.success(), "it was taken:\n{said}");
        ensure!(
            said.contains("filters[0]") && said.contains(reason),
            "{reason:?} is not why it was refused:\n{said}"
        );
    }
    Ok(())
}
