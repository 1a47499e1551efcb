//! Every hostcall under every ABI version: a guest for each version imports them all, calls each while it is configured (so that
//! no stream can come to harm), and answers requests with the statuses.

use std::fmt::Write as _;

use anyhow::Result;

use crate::hostile_pointers::HOSTCALLS;

/// A version, what marks it, and how `proxy_on_request_headers` looks there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Version {
    pub(crate) name: &'static str,
    marker: &'static str,
    request_headers: &'static str,
}

pub(crate) const VERSIONS: [Version; 3] = [
    Version {
        name: "0.1.0",
        marker: "proxy_abi_version_0_1_0",
        request_headers: "(param i32 i32)",
    },
    Version {
        name: "0.2.0",
        marker: "proxy_abi_version_0_2_0",
        request_headers: "(param i32 i32 i32)",
    },
    Version {
        name: "0.2.1",
        marker: "proxy_abi_version_0_2_1",
        request_headers: "(param i32 i32 i32)",
    },
];

/// Hostcalls that only the first version has.
const ONLY_0_1_0: [(&str, &str); 4] = [
    ("proxy_get_configuration", "ii"),
    ("proxy_continue_request", ""),
    ("proxy_continue_response", ""),
    ("proxy_clear_route_cache", ""),
];

/// Hostcalls that came with 0.2.0, and with 0.2.1.
const SINCE_0_2_0: [&str; 2] = ["proxy_continue_stream", "proxy_close_stream"];
const SINCE_0_2_1: [&str; 1] = ["proxy_get_log_level"];

/// All hostcalls of all versions.
pub(crate) fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    HOSTCALLS.iter().copied().chain(ONLY_0_1_0)
}

/// Whether a version has a hostcall.
pub(crate) fn has(version: &str, hostcall: &str) -> bool {
    let only_first = ONLY_0_1_0.iter().any(|(name, _)| *name == hostcall);
    match version {
        "0.1.0" => !SINCE_0_2_0.contains(&hostcall) && !SINCE_0_2_1.contains(&hostcall),
        "0.2.0" => !only_first && !SINCE_0_2_1.contains(&hostcall),
        _ => !only_first,
    }
}

/// The hostcalls of a version, in the order of the answer's bytes.
pub(crate) fn of(version: Version) -> impl Iterator<Item = (&'static str, &'static str)> {
    all().filter(move |(name, _)| has(version.name, name))
}

/// The guest of a version.
pub(crate) fn guest(version: Version) -> Result<Vec<u8>> {
    let (mut imports, mut calls) = (String::new(), String::new());
    for (index, (name, parameters)) in of(version).enumerate() {
        let types: Vec<&str> = parameters
            .chars()
            .map(|kind| if kind == 'l' { "i64" } else { "i32" })
            .collect();
        let mut zeros: Vec<String> = types
            .iter()
            .map(|kind| format!("({kind}.const 0)"))
            .collect();
        // A service of no bytes ends Envoy; one byte that is no message is refused.
        if ["proxy_grpc_call", "proxy_grpc_stream"].contains(&name)
            && let [pointer, len, ..] = &mut zeros[..]
        {
            (*pointer, *len) = ("(i32.const 16)".into(), "(i32.const 1)".into());
        }
        if name == "proxy_send_local_response"
            && let [code, ..] = &mut zeros[..]
        {
            *code = "(i32.const 200)".into();
        }
        writeln!(
            imports,
            "(import \"env\" \"{name}\" (func ${name} (param {}) (result i32)))",
            types.join(" ")
        )?;
        writeln!(
            calls,
            "(i32.store8 (i32.const {}) (call ${name} {}))",
            1024 + index,
            zeros.join(" ")
        )?;
    }
    let count = of(version).count();
    Ok(wat::parse_str(format!(
        r#"(module
{imports}
(memory (export "memory") 2)
(data (i32.const 16) "\ff")
(func (export "{}"))
(func (export "malloc") (param i32) (result i32) (i32.const 65536))
(func (export "proxy_on_configure") (param i32 i32) (result i32)
{calls}
(i32.const 1))
(func (export "proxy_on_request_headers") {} (result i32)
  (call $proxy_send_local_response (i32.const 200) (i32.const 0) (i32.const 0) (i32.const 1024) (i32.const {count})
    (i32.const 0) (i32.const 0) (i32.const -1))))"#,
        version.marker, version.request_headers
    ))?)
}
