//! Policies that must be refused: `file:line: key: reason`, exit status 1, and no port bound.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Output;

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::free_port::free_address;

use crate::hostile::guest;
use crate::served;

/// A policy that is right but for `LISTENER`, `FILTER` and `ROUTE`, each a part of a line.
const POLICY: &str = "listeners:
  - name: plain
    address: ADDRESS
    LISTENER
clusters:
  - name: upstream
    endpoints: [\"127.0.0.1:9\"]
filters:
  - name: control
    FILTER
routes:
  - name: all
    cluster: ROUTE
";

/// What is wrong, how, and what must be said: the line, the key, words of the reason.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    listener: &'static str,
    filter: &'static str,
    route: &'static str,
    line: u32,
    key: &'static str,
    words: &'static [&'static str],
}

pub(crate) const RIGHT: Row = Row {
    name: "right",
    listener: "",
    filter: "module: builtin:tls-policy",
    route: "upstream",
    line: 0,
    key: "",
    words: &[],
};

pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "unknown key",
        listener: "adress: nowhere",
        line: 4,
        key: "adress",
        words: &["unknown"],
        ..RIGHT
    },
    Row {
        name: "missing certificate",
        listener: "tls: {certificate_chain: no-such.pem, private_key: no-such.key}",
        line: 4,
        key: "certificate_chain",
        words: &["no-such.pem"],
        ..RIGHT
    },
    Row {
        name: "missing module",
        filter: "module: no-such.wasm",
        line: 10,
        key: "module",
        words: &["no-such.wasm"],
        ..RIGHT
    },
    Row {
        name: "no such control",
        filter: "module: builtin:no-such",
        line: 10,
        key: "module",
        words: &["no-such"],
        ..RIGHT
    },
    Row {
        name: "not wasm",
        filter: "module: not.wasm",
        line: 10,
        key: "module",
        words: &["not a Wasm module"],
        ..RIGHT
    },
    Row {
        name: "broken wasm",
        filter: "module: broken.wasm",
        line: 10,
        key: "module",
        words: &[],
        ..RIGHT
    },
    Row {
        name: "wrong sha256",
        filter: "{module: innocent.wasm, sha256: \"0000000000000000000000000000000000000000000000000000000000000000\"}",
        line: 10,
        key: "sha256",
        words: &["sha256"],
        ..RIGHT
    },
    Row {
        name: "refused configuration",
        filter: "{module: builtin:tls-policy, configuration: {minimum_version: \"1.9\"}}",
        line: 10,
        key: "minimum_version",
        words: &[],
        ..RIGHT
    },
    Row {
        name: "unknown key of a control",
        filter: "{module: builtin:tls-policy, configuration: {minimum_versoin: \"1.3\"}}",
        line: 10,
        key: "configuration",
        words: &["minimum_versoin"],
        ..RIGHT
    },
    Row {
        name: "unknown cluster",
        route: "no-such",
        line: 13,
        key: "cluster",
        words: &["no-such"],
        ..RIGHT
    },
    Row {
        name: "fails open where it authenticates",
        filter: "{module: builtin:jwt-auth, failure_policy: open}",
        line: 10,
        key: "failure_policy",
        words: &["open"],
        ..RIGHT
    },
    Row {
        name: "refuses to start",
        filter: "module: refuses.wasm",
        line: 9,
        key: "",
        words: &[],
        ..RIGHT
    },
    Row {
        name: "traps when configured",
        filter: "module: traps.wasm",
        line: 9,
        key: "",
        words: &[],
        ..RIGHT
    },
    Row {
        name: "loops when configured",
        filter: "{module: loops.wasm, limits: {start_time: 200ms}}",
        line: 9,
        key: "",
        words: &[],
        ..RIGHT
    },
    Row {
        name: "loops when instantiated",
        filter: "{module: loops-at-start.wasm, limits: {start_time: 200ms}}",
        line: 9,
        key: "",
        words: &[],
        ..RIGHT
    },
    Row {
        name: "no proxy-wasm",
        filter: "module: no-abi.wasm",
        line: 10,
        key: "",
        words: &["proxy_abi_version"],
        ..RIGHT
    },
    Row {
        name: "unknown import",
        filter: "module: unknown-import.wasm",
        line: 10,
        key: "",
        words: &["proxy_make_coffee"],
        ..RIGHT
    },
    Row {
        name: "unknown choice for unknown imports",
        filter: "module: builtin:tls-policy\n    unknown_imports: ignore",
        line: 11,
        key: "filters[0].unknown_imports",
        words: &["`refuse` or `trap`"],
        ..RIGHT
    },
    Row {
        name: "bad signature",
        filter: "module: bad-signature.wasm",
        line: 10,
        key: "",
        words: &["proxy_on_request_headers"],
        ..RIGHT
    },
    Row {
        name: "no allocator",
        filter: "module: no-allocator.wasm",
        line: 10,
        key: "",
        words: &["proxy_on_memory_allocate"],
        ..RIGHT
    },
    Row {
        name: "wants 4 GiB",
        filter: "module: huge.wasm",
        line: 10,
        key: "",
        words: &["memory"],
        ..RIGHT
    },
];

#[test]
fn refused_by_serve_and_by_check() -> Result<()> {
    let folder = tempfile::tempdir()?;
    write_modules(folder.path())?;
    let mut failures = String::new();
    for row in ROWS {
        for command in ["serve", "check"] {
            if let Err(error) = refused(row, command, folder.path()) {
                failures.push_str(&format!("{} ({command}): {error:#}\n\n", row.name));
            }
        }
    }
    assert!(failures.is_empty(), "{failures}");
    Ok(())
}

#[test]
fn a_bad_address_is_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for address in ["127.0.0.1", "127.0.0.1:99999", "somewhere:80", "[::1:80"] {
        let (file, output) = run(&RIGHT, "check", folder.path(), address)?;
        says(&output, &file, 3, "address", &[])?;
    }
    Ok(())
}

#[test]
fn a_port_in_use_is_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let (file, output) = run(
        &RIGHT,
        "serve",
        folder.path(),
        &listener.local_addr()?.to_string(),
    )?;
    says(&output, &file, 3, "address", &["in use"])
}

#[test]
fn the_policy_that_the_rows_spoil_is_right() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (_, output) = run(&RIGHT, "check", folder.path(), &free_address()?.to_string())?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn refused(row: &Row, command: &str, folder: &Path) -> Result<()> {
    let address = free_address()?;
    let (file, output) = run(row, command, folder, &address.to_string())?;
    says(&output, &file, row.line, row.key, row.words)?;
    not_bound(address)
}

/// The row's policy.
pub(crate) fn text(row: &Row, address: &str) -> String {
    // A row may spell several keys of the filter in one go: `{a: 1, b: 2}`.
    let several = row.filter.strip_prefix('{');
    let text = match several {
        None => POLICY.replace("FILTER", row.filter),
        Some(keys) => POLICY.replace(
            "- name: control\n    FILTER",
            &format!("- {{name: control,\n    {keys}"),
        ),
    };
    text.replace("LISTENER", row.listener)
        .replace("ADDRESS", &format!("\"{address}\""))
        .replace("ROUTE", row.route)
}

/// Writes the row's policy and runs `command` on it; returns the policy's path.
fn run(row: &Row, command: &str, folder: &Path, address: &str) -> Result<(String, Output)> {
    let path = folder.join("policy.yaml");
    fs::write(&path, text(row, address))?;
    let file = path.display().to_string();
    let output = served::run(&[command, &file])?;
    Ok((file, output))
}

/// Whether it ended with 1 and said `file:line: key: reason`.
fn says(output: &Output, file: &str, line: u32, key: &str, words: &[&str]) -> Result<()> {
    // What `check` finds is its result; for `serve` it is an error.
    let said = [
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    ]
    .concat();
    ensure!(
        output.status.code() == Some(1),
        "it ended with {} and said:\n{said}",
        output.status
    );
    let prefix = format!("{file}:{line}: ");
    let found = said
        .lines()
        .find(|said| {
            said.contains(&prefix)
                && said.contains(key)
                && words.iter().all(|word| said.contains(word))
        })
        .with_context(|| format!("no line has `{prefix}`, `{key}` and {words:?}:\n{said}"))?;
    let rest = found.split(&prefix).nth(1).unwrap_or_default();
    ensure!(
        rest.contains(": "),
        "the line has no `key: reason`: {found}"
    );
    ensure!(
        !found.ends_with('.'),
        "the message ends with a full stop: {found}"
    );
    Ok(())
}

fn not_bound(address: SocketAddr) -> Result<()> {
    ensure!(TcpStream::connect(address).is_err(), "{address} is bound");
    Ok(())
}

fn write_modules(folder: &Path) -> Result<()> {
    let write = |name: &str, bytes: &[u8]| {
        fs::write(folder.join(name), bytes).with_context(|| format!("cannot write {name}"))
    };
    write("not.wasm", b"#!/bin/sh\necho no\n")?;
    let innocent = guest("", "")?;
    write(
        "broken.wasm",
        innocent.get(..innocent.len() / 2).unwrap_or_default(),
    )?;
    write("innocent.wasm", &innocent)?;
    for (name, text) in [
        (
            "refuses.wasm",
            "(func (export \"proxy_on_vm_start\") (param i32 i32) (result i32) (i32.const 0))",
        ),
        (
            "traps.wasm",
            "(func (export \"proxy_on_configure\") (param i32 i32) (result i32) unreachable)",
        ),
        (
            "loops.wasm",
            "(func (export \"proxy_on_configure\") (param i32 i32) (result i32) (loop $ever (br $ever)) (i32.const 1))",
        ),
        (
            "loops-at-start.wasm",
            "(func $start (loop $ever (br $ever))) (start $start)",
        ),
        (
            "no-abi.wasm",
            "(global (export \"proxy_abi_version_0_2_1\") i32 (i32.const 1))",
        ),
        (
            "bad-signature.wasm",
            "(func (export \"proxy_on_request_headers\") (param f64) (result i32) (i32.const 0))",
        ),
        (
            "no-allocator.wasm",
            "(global (export \"proxy_on_memory_allocate\") i32 (i32.const 1))",
        ),
    ] {
        write(name, &guest("", text)?)?;
    }
    let coffee = "(import \"env\" \"proxy_make_coffee\" (func (param i32) (result i32)))";
    write("unknown-import.wasm", &guest(coffee, "")?)?;
    let huge = "(module (memory (export \"memory\") 65536)
        (func (export \"proxy_abi_version_0_2_1\"))
        (func (export \"proxy_on_memory_allocate\") (param i32) (result i32) (i32.const 0)))";
    write("huge.wasm", &wat::parse_str(huge)?)
}
