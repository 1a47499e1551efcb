//! Wild pointers and lengths at every argument of every hostcall.

use std::fmt::Write as _;

use anyhow::Result;

use crate::hostile::Verdict::Passes;
use crate::hostile::{Crime, commit_all, guest};

/// Every hostcall of ABI 0.2.1 by its parameters: `i` for i32, `l` for i64.
pub(crate) const HOSTCALLS: &[(&str, &str)] = &[
    ("proxy_log", "iii"),
    ("proxy_get_log_level", "i"),
    ("proxy_get_current_time_nanoseconds", "i"),
    ("proxy_set_tick_period_milliseconds", "i"),
    ("proxy_done", ""),
    ("proxy_set_effective_context", "i"),
    ("proxy_get_buffer_bytes", "iiiii"),
    ("proxy_get_buffer_status", "iii"),
    ("proxy_set_buffer_bytes", "iiiii"),
    ("proxy_get_header_map_size", "ii"),
    ("proxy_get_header_map_pairs", "iii"),
    ("proxy_set_header_map_pairs", "iii"),
    ("proxy_get_header_map_value", "iiiii"),
    ("proxy_add_header_map_value", "iiiii"),
    ("proxy_replace_header_map_value", "iiiii"),
    ("proxy_remove_header_map_value", "iii"),
    ("proxy_continue_stream", "i"),
    ("proxy_close_stream", "i"),
    ("proxy_get_status", "iii"),
    ("proxy_send_local_response", "iiiiiiii"),
    ("proxy_http_call", "iiiiiiiiii"),
    ("proxy_grpc_call", "iiiiiiiiiiii"),
    ("proxy_grpc_stream", "iiiiiiiii"),
    ("proxy_grpc_send", "iiii"),
    ("proxy_grpc_cancel", "i"),
    ("proxy_grpc_close", "i"),
    ("proxy_set_shared_data", "iiiii"),
    ("proxy_get_shared_data", "iiiii"),
    ("proxy_register_shared_queue", "iii"),
    ("proxy_resolve_shared_queue", "iiiii"),
    ("proxy_enqueue_shared_queue", "iii"),
    ("proxy_dequeue_shared_queue", "iii"),
    ("proxy_define_metric", "iiii"),
    ("proxy_record_metric", "il"),
    ("proxy_increment_metric", "il"),
    ("proxy_get_metric", "ii"),
    ("proxy_get_property", "iiii"),
    ("proxy_set_property", "iiii"),
    ("proxy_call_foreign_function", "iiiiii"),
];

/// The WASI functions that Rust and Go guests import, which take pointers.
const WASI: &[(&str, &str)] = &[
    ("args_get", "ii"),
    ("args_sizes_get", "ii"),
    ("clock_time_get", "ili"),
    ("environ_get", "ii"),
    ("environ_sizes_get", "ii"),
    ("fd_fdstat_get", "ii"),
    ("fd_prestat_get", "ii"),
    ("fd_read", "iiii"),
    ("fd_write", "iiii"),
    ("poll_oneoff", "iiii"),
    ("random_get", "ii"),
];

/// Arguments that point nowhere: what stands for the first argument, and for all others.
const WILD: &[(i32, i32)] = &[
    (-1, -1),
    (i32::MAX, i32::MAX),
    (0, -1),
    (1, -1),
    (2, -1),
    (7, -1),
    (0, 0x0001_fff0),
    (0, -16),
    (-16, 64),
];

#[test]
fn wild_pointers_in_every_hostcall() -> Result<()> {
    let mut imports = String::new();
    let mut calls = String::new();
    for (module, functions) in [("env", HOSTCALLS), ("wasi_snapshot_preview1", WASI)] {
        for (name, parameters) in functions {
            let types: Vec<&str> = parameters
                .chars()
                .map(|kind| if kind == 'l' { "i64" } else { "i32" })
                .collect();
            writeln!(
                imports,
                "(import \"{module}\" \"{name}\" (func $wild_{name} (param {}) (result i32)))",
                types.join(" ")
            )?;
            for (first, others) in WILD {
                // These two do what they are asked to with a valid stream.
                if ["proxy_close_stream", "proxy_continue_stream"].contains(name)
                    && (0..=3).contains(first)
                {
                    continue;
                }
                write!(calls, "(drop (call $wild_{name}")?;
                for (index, kind) in types.iter().enumerate() {
                    write!(
                        calls,
                        " ({kind}.const {})",
                        if index == 0 { first } else { others }
                    )?;
                }
                writeln!(calls, "))")?;
            }
        }
    }
    let mut crimes = Vec::new();
    for callback in [
        "proxy_on_request_headers",
        "proxy_on_request_body",
        "proxy_on_response_headers",
        "proxy_on_response_body",
    ] {
        let judge = if callback == "proxy_on_request_headers" {
            "(call $judge)"
        } else {
            ""
        };
        let text = format!(
            "(func (export \"{callback}\") (param i32 i32 i32) (result i32) {judge}\n(if (global.get $guilt) (then\n{calls})) (i32.const 0))"
        );
        let name = format!(
            "wild-pointers-in-{}",
            callback.trim_start_matches("proxy_on_").replace('_', "-")
        );
        crimes.push(Crime {
            module: guest(&imports, &text)?,
            name,
            verdict: Passes,
            counted: false,
        });
    }
    commit_all(&crimes)
}
