//! A filter's keys.

use std::ops::RangeInclusive;

use serde_json::{Value, json};

use super::super::limits;
use super::super::module::builtin_names;
use super::shapes::{
    bytes, choice, duration, integer, name, path, reference, section, string, text, with_default,
};

pub(super) fn filter() -> Value {
    let builtins: Vec<_> = builtin_names()
        .split(", ")
        .map(|name| format!("builtin:{name}"))
        .collect();
    section(
        "One filter of a chain: a module and how it is run.",
        &["name", "module"],
        vec![
            (
                "name",
                "Unique; also the plugin's `vm_id`, the scope of its shared data.",
                name(),
            ),
            (
                "module",
                "`builtin:NAME`, a path to a Proxy-Wasm module, or `oci://HOST/REPOSITORY@sha256:…`, an image in a registry.",
                json!({
                    "type": "string",
                    "minLength": 1,
                    "examples": builtins,
                    "anyOf": [
                        {"enum": builtins},
                        {"pattern": "^oci://[^/]+/.+@sha256:[0-9a-f]{64}$"},
                        {"not": {"pattern": "^(builtin:|oci://)"}},
                    ],
                }),
            ),
            (
                "sha256",
                "The module's digest; another one is refused. Not checked if absent.",
                text("^[0-9A-Fa-f]{64}$"),
            ),
            (
                "signature",
                "Who must have signed the module. Not checked if absent.",
                reference("signature"),
            ),
            (
                "root_id",
                "Which root context, for modules with several.",
                json!({"type": "string", "default": ""}),
            ),
            (
                "failure_policy",
                "While no VM stands: `closed` answers 503, `open` lets requests by. `open` is refused for controls that authenticate.",
                choice(&["closed", "open"], "closed"),
            ),
            (
                "unknown_imports",
                "Of a module that imports functions which this host does not have: `refuse` it, or load it and `trap` when one is called.",
                choice(&["refuse", "trap"], "refuse"),
            ),
            (
                "isolation",
                "What the plugin shares a VM with.",
                choice(&["shared", "plugin", "request"], "plugin"),
            ),
            (
                "allow_on_headers_stop_iteration",
                "Whether the plugin may hold headers alone, while it is shown the body. Left out: for modules of ABI 0.2.100 and controls that await bodies.",
                json!({"type": "boolean"}),
            ),
            (
                "configuration",
                "The plugin's own, handed over as JSON; see the control's contract.",
                json!({"type": "object"}),
            ),
            ("limits", "The plugin's bounds.", reference("limits")),
            (
                "allow",
                "What of the host the plugin may use; all if absent.",
                reference("allow"),
            ),
            (
                "clusters",
                "The clusters that it may call; a control that authenticates may only call those with `tls`, or on loopback addresses.",
                json!({"type": "array", "items": string()}),
            ),
        ],
    )
}

pub(super) fn filter_limits() -> Value {
    let defaults = portcullis_runtime::Limits::default();
    let whole = |bounds: &RangeInclusive<u64>, default: u64| {
        let mut schema = integer(bounds);
        if let Some(schema) = schema.as_object_mut() {
            schema.insert("default".into(), default.into());
        }
        schema
    };
    let callouts = u64::try_from(defaults.callouts_in_flight).unwrap_or(u64::MAX);
    let milliseconds = |ms: u64| with_default(duration(), &format!("{ms}ms"));
    section(
        "Bounds on a plugin.",
        &[],
        vec![
            (
                "memory",
                "Linear memory of one VM.",
                bytes(&limits::MEMORY_BYTES, defaults.memory_bytes),
            ),
            (
                "body",
                "Bytes of a body held while the plugin pauses.",
                bytes(&limits::BODY_BYTES, defaults.body_bytes),
            ),
            (
                "callback_time",
                "CPU time of one callback on a request.",
                milliseconds(defaults.callback_cpu_ms),
            ),
            (
                "request_time",
                "CPU time of all callbacks on one request, counted in steps of 5 ms; past it the request gets 503.",
                milliseconds(defaults.request_cpu_ms),
            ),
            (
                "start_time",
                "CPU time of start and configure.",
                milliseconds(defaults.start_cpu_ms),
            ),
            (
                "vms",
                "VMs at once on one worker; only `isolation: request` makes more than two.",
                whole(&limits::VMS, defaults.vms.into()),
            ),
            (
                "spare_vms",
                "VMs kept ready to take over, on each worker.",
                whole(&limits::SPARE_VMS, defaults.spare_vms.into()),
            ),
            (
                "callouts_in_flight",
                "HTTP, gRPC and Redis callouts of the plugin under way on one worker; further ones fail.",
                whole(&limits::CALLOUTS, callouts),
            ),
            (
                "log_lines_per_second",
                "Log lines of the plugin on one worker; further ones are dropped and counted.",
                whole(&limits::LOG_LINES, defaults.log_lines_per_second.into()),
            ),
        ],
    )
}

pub(super) fn signature() -> Value {
    section(
        "Who must have signed the module, in minisign's format.",
        &["minisign_public_key", "file"],
        vec![
            (
                "minisign_public_key",
                "The second line of minisign.pub, 56 characters of base64.",
                text("^[A-Za-z0-9+/]{56}$"),
            ),
            (
                "file",
                "The signature: prehashed, four lines and nothing behind them.",
                path(),
            ),
        ],
    )
}

pub(super) fn allow() -> Value {
    let names = json!({"type": ["string", "number"], "minLength": 1});
    section(
        "What of the host a plugin may use.",
        &[],
        vec![
            (
                "capabilities",
                "Hostcalls, WASI functions and callbacks, by the names of Envoy's `allowed_capabilities`.",
                json!({"type": "array", "minItems": 1, "items": names}),
            ),
            (
                "properties",
                "The properties it may read and set, each with all below it: `request.headers.x-user`, `source`.",
                json!({"type": "array", "items": names}),
            ),
            (
                "foreign_functions",
                "The foreign functions it may call: `verify_signature`.",
                json!({"type": "array", "items": names}),
            ),
        ],
    )
}
