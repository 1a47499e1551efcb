//! The policy's own keys, section by section, in the order of `docs/policy.md`.

use std::ops::RangeInclusive;

use serde_json::{Map, Value, json};

use super::super::limits;
use super::super::module::builtin_names;

/// A key, what it is for, and what it may hold.
type Key = (&'static str, &'static str, Value);

/// A mapping of these keys and no others.
fn section(about: &str, required: &[&str], keys: Vec<Key>) -> Value {
    let properties: Map<String, Value> = keys
        .into_iter()
        .map(|(name, about, mut schema)| {
            if let Some(schema) = schema.as_object_mut() {
                schema.insert("title".into(), name.into());
                schema.insert("description".into(), about.into());
            }
            (name.to_owned(), schema)
        })
        .collect();
    json!({
        "type": "object",
        "description": about,
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

/// The whole file.
pub(super) fn policy() -> Value {
    let mut policy = section(
        "Who listens, which controls run where, and where requests go.",
        &["listeners"],
        vec![
            (
                "listeners",
                "Where clients come in. No two may overlap.",
                list("listener", 1),
            ),
            (
                "clusters",
                "The upstreams that routes lead to and plugins may call.",
                list("cluster", 0),
            ),
            (
                "filters",
                "The controls, in the order in which requests pass them; answers pass them in reverse.",
                list("filter", 0),
            ),
            (
                "routes",
                "Which request goes to which cluster through which filters. The most specific host is chosen first, then the longest prefix; the order does not matter.",
                list("route", 0),
            ),
            (
                "admin",
                "Where `/ready`, `/metrics` and `/policy` are served. Off if absent.",
                reference("admin"),
            ),
            (
                "access_log",
                "One JSON line a request: `off`, `stdout`, or a file to append to.",
                json!({"anyOf": [off(), {"type": "string", "minLength": 1}], "default": "off"}),
            ),
            (
                "workers",
                "Threads; each has its own VMs. One a processor if absent.",
                integer(&limits::WORKERS),
            ),
            (
                "drain_timeout",
                "How long requests in flight may take after SIGTERM, or hold up a reload.",
                with_default(duration(), "30s"),
            ),
        ],
    );
    if let Some(policy) = policy.as_object_mut() {
        policy.insert("title".into(), "Portcullis policy".into());
        let http = json!({"contains": {"type": "object", "not": {"required": ["tcp"]}}});
        let needed = json!({"properties": {"listeners": http}});
        let routes = json!({"required": ["routes"], "properties": {"routes": {"minItems": 1}}});
        policy.insert("if".into(), needed);
        policy.insert("then".into(), routes);
    }
    policy
}

/// What the whole refers to.
pub(super) fn definitions() -> Map<String, Value> {
    let all = [
        ("listener", listener()),
        ("downstream_tls", downstream_tls()),
        ("tcp", tcp()),
        ("cluster", cluster()),
        ("upstream_tls", upstream_tls()),
        ("filter", filter()),
        ("limits", filter_limits()),
        ("signature", signature()),
        ("allow", allow()),
        ("route", route()),
        ("override", route_override()),
        ("admin", admin()),
    ];
    all.into_iter()
        .map(|(name, schema)| (name.to_owned(), schema))
        .collect()
}

fn listener() -> Value {
    section(
        "A socket that clients connect to.",
        &["name", "address"],
        vec![
            ("name", "Unique among the listeners.", name()),
            (
                "address",
                "An address and a port: `127.0.0.1:8443`, `[::]:443`.",
                address(),
            ),
            (
                "tls",
                "Without it the listener is plaintext; `check` warns of that where others can reach it.",
                reference("downstream_tls"),
            ),
            (
                "tcp",
                "Not HTTP: connections are passed on byte by byte.",
                reference("tcp"),
            ),
        ],
    )
}

fn downstream_tls() -> Value {
    let mut tls = section(
        "TLS towards clients.",
        &["certificate_chain", "private_key"],
        vec![
            (
                "certificate_chain",
                "PEM file, the server's certificate first.",
                path(),
            ),
            (
                "private_key",
                "PEM file; the key must fit the certificate.",
                path(),
            ),
            (
                "minimum_version",
                "Older versions are refused in the handshake. rustls knows none below 1.2.",
                json!({"enum": ["1.2", "1.3", 1.2, 1.3], "default": "1.3"}),
            ),
            (
                "client_ca",
                "PEM file: who signs client certificates. None are asked for if absent.",
                path(),
            ),
            (
                "require_client_certificate",
                "Refuse handshakes without a client certificate; needs `client_ca`.",
                json!({"type": "boolean", "default": false}),
            ),
        ],
    );
    if let Some(tls) = tls.as_object_mut() {
        let required = json!({
            "required": ["require_client_certificate"],
            "properties": {"require_client_certificate": {"const": true}},
        });
        tls.insert("if".into(), required);
        tls.insert("then".into(), json!({"required": ["client_ca"]}));
    }
    tls
}

fn tcp() -> Value {
    section(
        "What a TCP listener does with a connection.",
        &["cluster"],
        vec![
            ("cluster", "Where to: a cluster's name.", string()),
            (
                "idle_timeout",
                "After how long without a byte either way the connection is closed.",
                with_default(duration(), "1h"),
            ),
            (
                "filters",
                "A client's bytes pass them in order, an upstream's in reverse.",
                list("filter", 0),
            ),
        ],
    )
}

fn cluster() -> Value {
    section(
        "A group of equal upstreams.",
        &["name", "endpoints"],
        vec![
            (
                "name",
                "Unique among the clusters; `|` may stand in it, as in the names that Higress and Istio give.",
                text("^[A-Za-z0-9][A-Za-z0-9._|-]{0,63}$"),
            ),
            (
                "endpoints",
                "`10.0.0.7:8080`, `api.internal:443`; names are resolved again every 5 s.",
                json!({"type": "array", "minItems": 1, "items": {"type": "string", "pattern": "^.+:[0-9]{1,5}$"}}),
            ),
            (
                "protocol",
                "What is spoken to them: `http1`, or `http2` (without negotiation on plaintext).",
                choice(&["http1", "http2"], "http1"),
            ),
            (
                "connect_timeout",
                "TCP and TLS handshake together.",
                with_default(duration(), "5s"),
            ),
            (
                "request_timeout",
                "From the whole request sent to the whole answer received; `off` for none.",
                json!({"anyOf": [off(), duration()], "default": "15s"}),
            ),
            (
                "idle_timeout",
                "Of a pooled connection, one to Redis, and a plugin's gRPC stream on which nothing moves.",
                with_default(duration(), "300s"),
            ),
            (
                "tls",
                "TLS towards them; their certificate is always verified.",
                reference("upstream_tls"),
            ),
        ],
    )
}

fn upstream_tls() -> Value {
    section(
        "TLS towards an upstream.",
        &[],
        vec![
            (
                "sni",
                "The name sent and expected in the certificate; the endpoints' name if absent.",
                text("^[A-Za-z0-9_-]+(\\.[A-Za-z0-9_-]+)*$"),
            ),
            (
                "ca",
                "PEM file of whom to trust, or `system`.",
                with_default(path(), "system"),
            ),
        ],
    )
}

fn filter() -> Value {
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
                "`builtin:NAME`, or a path to a Proxy-Wasm module.",
                json!({
                    "type": "string",
                    "minLength": 1,
                    "examples": builtins,
                    "anyOf": [{"enum": builtins}, {"not": {"pattern": "^builtin:"}}],
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

fn filter_limits() -> Value {
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

fn signature() -> Value {
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

fn allow() -> Value {
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

fn route() -> Value {
    section(
        "One route.",
        &["name", "cluster"],
        vec![
            ("name", "Unique among the routes.", name()),
            (
                "host",
                "`api.example.com`, `*.example.com` for one or more labels before it, or `*`. Every host that no other route names if absent.",
                text("^(\\*|\\[?[0-9A-Fa-f:.]+\\]?|(\\*\\.)?[A-Za-z0-9_-]+(\\.[A-Za-z0-9_-]+)*)$"),
            ),
            (
                "prefix",
                "Whole path segments: `/api` has `/api` and `/api/x`, not `/apix`.",
                with_default(text("^/[^?#*\\\\%\\s]*$"), "/"),
            ),
            ("cluster", "Where to: a cluster's name.", string()),
            (
                "filters",
                "What is other here, by filter name: `off`, or another configuration, which replaces the filter's own whole.",
                json!({"type": "object", "additionalProperties": reference("override")}),
            ),
        ],
    )
}

fn route_override() -> Value {
    let configured = section(
        "Another configuration of the filter.",
        &["configuration"],
        vec![(
            "configuration",
            "The plugin's own; it replaces the filter's whole.",
            json!({"type": "object"}),
        )],
    );
    json!({"anyOf": [off(), configured]})
}

fn admin() -> Value {
    section(
        "Where `/ready`, `/metrics` and `/policy` are served.",
        &["address"],
        vec![(
            "address",
            "A loopback address and a port: `127.0.0.1:9901`.",
            address(),
        )],
    )
}

fn list(definition: &str, items_min: u64) -> Value {
    json!({"type": "array", "minItems": items_min, "items": reference(definition)})
}

fn reference(definition: &str) -> Value {
    json!({"$ref": format!("#/$defs/{definition}")})
}

fn string() -> Value {
    json!({"type": "string"})
}

/// What is read as text may be written as a number.
fn text(pattern: &str) -> Value {
    json!({"type": ["string", "number"], "pattern": pattern})
}

fn name() -> Value {
    text("^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
}

fn address() -> Value {
    json!({"type": "string", "pattern": "^(\\[[0-9A-Fa-f:.%]+\\]|[0-9.]+):[0-9]{1,5}$"})
}

fn path() -> Value {
    json!({"type": "string", "minLength": 1})
}

fn off() -> Value {
    json!({"enum": ["off", false]})
}

fn duration() -> Value {
    json!({"type": "string", "pattern": "^[0-9]+(\\.[0-9]*)?(ms|s|m|h)$"})
}

fn bytes(bounds: &RangeInclusive<u64>, default: usize) -> Value {
    json!({
        "anyOf": [
            {"type": "string", "pattern": "^[0-9]+(KiB|MiB|GiB)?$"},
            {"type": "integer", "minimum": bounds.start(), "maximum": bounds.end()},
        ],
        "default": default,
    })
}

fn integer(bounds: &RangeInclusive<u64>) -> Value {
    json!({"type": "integer", "minimum": bounds.start(), "maximum": bounds.end()})
}

fn choice(all: &[&str], default: &str) -> Value {
    json!({"enum": all, "default": default})
}

fn with_default(mut schema: Value, default: &str) -> Value {
    if let Some(schema) = schema.as_object_mut() {
        schema.insert("default".into(), default.into());
    }
    schema
}
