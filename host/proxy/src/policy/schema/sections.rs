//! The policy's own keys, section by section, in the order of `docs/policy.md`.

use serde_json::{Map, Value, json};

use super::super::limits;
use super::filters::{allow, filter, filter_limits, signature};
use super::shapes::{
    address, choice, duration, integer, list, name, off, path, reference, section, string, text,
    with_default,
};

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
