//! Listeners, their HTTP connection managers and routes, as Envoy writes them.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::limits;
use crate::policy::{
    AccessLog, DownstreamTls, Listener, Policy, Route, TcpProxy, TlsVersion, VirtualHost,
};

use super::Findings;
use super::filter;
use super::tree::{Map, Tree};

/// Bytes that Envoy holds for one connection before it stops reading, and for one body while a filter pauses. Our host's default body
/// limit.
pub(super) const BUFFER_BYTES: u32 = 1 << 20;

/// How many further addresses Envoy tries. Our host tries all within the connect timeout; Envoy wants a number.
const ADDRESS_RETRIES: u32 = 3;

/// RE2, against the whole path: `.` or `..`, then a semicolon, each of them perhaps escaped.
const DOTS_WITH_PARAMETERS: &str = "(?i).*/(\\.|%2e){1,2}(;|%3b).*";

/// An address and its port.
pub(super) fn socket_address(address: SocketAddr) -> Map {
    Map::new().with(
        "socket_address",
        Map::new()
            .with("address", address.ip().to_string())
            .with("port_value", address.port()),
    )
}

pub(super) fn listener(
    policy: &Policy,
    listener: &Listener,
    findings: &Findings,
    modules: &Path,
) -> Tree {
    let filters = match &listener.tcp {
        Some(tcp) => tcp_filters(listener, tcp, modules),
        None => vec![
            Map::new()
                .with("name", "envoy.filters.network.http_connection_manager")
                .with(
                    "typed_config",
                    connection_manager(policy, listener, findings, modules),
                ),
        ],
    };
    let alpn: &[&str] = match listener.tcp {
        Some(_) => &[],
        None => &["h2", "http/1.1"],
    };
    let mut chain = Map::new();
    if let Some(tls) = &listener.tls {
        chain = chain
            .with(
                "transport_socket_connect_timeout",
                limits::TLS_HANDSHAKE_TIMEOUT,
            )
            .with("transport_socket", transport_socket(tls, alpn));
    }
    let chain = chain.with("filters", filters);
    // Without the inspector plugins cannot see the requested server name.
    let inspector = listener.tls.as_ref().map(|_| {
        vec![
            Map::new()
                .with("name", "envoy.filters.listener.tls_inspector")
                .with(
                    "typed_config",
                    Map::typed("envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"),
                ),
        ]
    });
    Map::new()
        .with("name", listener.name.as_str())
        .with("address", socket_address(listener.address))
        .with("per_connection_buffer_limit_bytes", BUFFER_BYTES)
        .maybe("listener_filters", inspector)
        .with("filter_chains", vec![chain])
        .into()
}

/// The filters of a TCP listener, and what passes the bytes on.
fn tcp_filters(listener: &Listener, tcp: &TcpProxy, modules: &Path) -> Vec<Map> {
    let proxy = Map::typed("envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy")
        .with("stat_prefix", listener.name.as_str())
        .with("cluster", tcp.cluster.name.as_str())
        .with("idle_timeout", tcp.idle_timeout);
    let proxy = Map::new()
        .with("name", "envoy.filters.network.tcp_proxy")
        .with("typed_config", proxy);
    let filters = tcp.chain.iter();
    filters
        .map(|instance| filter::network_filter(instance, modules))
        .chain([proxy])
        .collect()
}

fn transport_socket(tls: &DownstreamTls, alpn: &[&str]) -> Map {
    let file = |path: &Path| Map::new().with("filename", path.display().to_string());
    let minimum = match tls.minimum_version {
        TlsVersion::Tls12 => "TLSv1_2",
        TlsVersion::Tls13 => "TLSv1_3",
    };
    let validation = tls
        .client_ca
        .as_ref()
        .map(|ca| Map::new().with("trusted_ca", file(&ca.file)));
    let common = Map::new()
        .with(
            "tls_params",
            Map::new()
                .with("tls_minimum_protocol_version", minimum)
                .with("tls_maximum_protocol_version", "TLSv1_3"),
        )
        .maybe("alpn_protocols", (!alpn.is_empty()).then(|| alpn.to_vec()))
        .with(
            "tls_certificates",
            vec![
                Map::new()
                    .with("certificate_chain", file(&tls.certificate_chain_file))
                    .with("private_key", file(&tls.private_key_file)),
            ],
        )
        .maybe("validation_context", validation);
    let context = Map::typed("envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext")
        .with("require_client_certificate", tls.require_client_certificate)
        .with("common_tls_context", common);
    Map::new()
        .with("name", "envoy.transport_sockets.tls")
        .with("typed_config", context)
}

fn connection_manager(
    policy: &Policy,
    listener: &Listener,
    findings: &Findings,
    modules: &Path,
) -> Map {
    let mut filters = filter::http_filters(policy, modules);
    let router = Map::new().with("name", "envoy.filters.http.router").with(
        "typed_config",
        // No x-envoy-upstream-service-time and its kin.
        Map::typed("envoy.extensions.filters.http.router.v3.Router")
            .with("suppress_envoy_headers", true),
    );
    filters.push(router.into());
    let head_kib = u32::try_from(limits::REQUEST_HEAD_BYTES_MAX / 1024).unwrap_or(u32::MAX);
    let headers = u32::try_from(limits::REQUEST_HEADERS_MAX).unwrap_or(u32::MAX);
    Map::typed("envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager")
        .with("stat_prefix", listener.name.as_str())
        .with("codec_type", "AUTO")
        // The client is who connects; forwarding headers count from nobody.
        .with("use_remote_address", true)
        .with("xff_num_trusted_hops", 0_u32)
        .with("internal_address_config", nobody_internal())
        .with("forward_client_cert_details", "SANITIZE")
        // What is routed is what the upstream gets.
        .with("normalize_path", true)
        .with("merge_slashes", true)
        .with("path_with_escaped_slashes_action", "REJECT_REQUEST")
        .with("server_header_transformation", "PASS_THROUGH")
        .with("max_request_headers_kb", head_kib)
        .with("request_headers_timeout", limits::FIRST_REQUEST_TIMEOUT)
        .with("stream_idle_timeout", limits::CONNECTION_STALL_TIMEOUT)
        .with("drain_timeout", policy.drain_timeout)
        .with(
            "common_http_protocol_options",
            Map::new()
                .with("idle_timeout", limits::CONNECTION_IDLE_TIMEOUT)
                .with("max_headers_count", headers),
        )
        .with(
            "http2_protocol_options",
            Map::new()
                .with("max_concurrent_streams", limits::H2_STREAMS_MAX)
                .with("initial_stream_window_size", limits::H2_STREAM_WINDOW)
                .with(
                    "initial_connection_window_size",
                    limits::H2_CONNECTION_WINDOW,
                ),
        )
        .maybe("access_log", access_log(&policy.access_log))
        .maybe("local_reply_config", local_reply(listener, findings))
        .with("http_filters", filters)
        .with(
            "route_config",
            Map::new()
                .with("name", "policy")
                .with("ignore_port_in_host_matching", true)
                .with(
                    "virtual_hosts",
                    policy
                        .table
                        .hosts()
                        .iter()
                        .map(|host| virtual_host(policy, host, findings))
                        .collect::<Tree>(),
                ),
        )
}

/// To Envoy, clients in private networks and on this machine are internal, and may send `x-envoy-*`, unless there are ranges that say
/// otherwise. An empty list counts as none; this one names an address that nobody has.
fn nobody_internal() -> Map {
    let nobody = Map::new()
        .with("address_prefix", "0.0.0.0")
        .with("prefix_len", 32_u32);
    Map::new()
        .with("unix_sockets", false)
        .with("cidr_ranges", vec![nobody])
}

/// The security headers on answers that Envoy makes before a filter runs (400 for bad framing, 404 without a route).
fn local_reply(listener: &Listener, findings: &Findings) -> Option<Map> {
    let headers = match listener.tls {
        Some(_) => &findings.reply_headers_tls,
        None => &findings.reply_headers_plaintext,
    };
    let add = |(name, value): &(String, String)| {
        Map::new()
            .with(
                "header",
                Map::new()
                    .with("key", name.as_str())
                    .with("value", value.replace('%', "%%")),
            )
            .with("append_action", "ADD_IF_ABSENT")
            .into()
    };
    let every_status = Map::new().with(
        "status_code_filter",
        Map::new().with(
            "comparison",
            Map::new().with("op", "GE").with(
                "value",
                Map::new()
                    .with("default_value", 100_u32)
                    .with("runtime_key", "portcullis.local_reply"),
            ),
        ),
    );
    let mapper = Map::new()
        .with("filter", every_status)
        .with("headers_to_add", headers.iter().map(add).collect::<Tree>());
    (!headers.is_empty()).then(|| Map::new().with("mappers", vec![mapper]))
}

fn virtual_host(policy: &Policy, host: &VirtualHost, findings: &Findings) -> Tree {
    let pattern = host.host.to_string();
    let routes = host.routes.iter().map(|it| route(policy, it, findings));
    Map::new()
        .with("name", pattern.as_str())
        .with("domains", vec![pattern.as_str()])
        .with(
            "routes",
            std::iter::once(refusal(policy))
                .chain(routes)
                .collect::<Tree>(),
        )
        .into()
}

/// The first route of every virtual host: a dot segment with parameters, which our host refuses. Envoy matches the path in normal form,
/// without its query: 1.40 has resolved plain ones by then (`/a/..;b/c` is `/c`), which its upstream gets, too, and left those with
/// escapes. The filters are off, as for the answers that Envoy makes before there is a route; `local_reply_config` puts the security
/// headers on.
pub(super) fn refusal(policy: &Policy) -> Tree {
    let matching = Map::new().with("safe_regex", Map::new().with("regex", DOTS_WITH_PARAMETERS));
    let answer = Map::new().with("status", 400_u32);
    Map::new()
        .with("name", "dot-segment-with-parameters")
        .with("match", matching)
        .with("direct_response", answer)
        .maybe("typed_per_filter_config", filter::all_off(policy))
        .into()
}

fn route(policy: &Policy, route: &Route, findings: &Findings) -> Tree {
    let matching = match route.prefix.as_str() {
        "/" => Map::new().with("prefix", "/"),
        prefix => Map::new().with("path_separated_prefix", prefix),
    };
    let cluster = &route.cluster;
    let action = Map::new()
        .with("cluster", cluster.name.as_str())
        // 0 s is Envoy's "no bound".
        .with("timeout", cluster.request_timeout.unwrap_or_default())
        .with("idle_timeout", cluster.idle_timeout)
        .with("retry_policy", next_address());
    Map::new()
        .with("name", route.name.as_str())
        .with("match", matching)
        .with("route", action)
        .maybe(
            "request_headers_to_remove",
            filter::request_headers_to_remove(findings, route),
        )
        .maybe(
            "typed_per_filter_config",
            filter::typed_per_filter_config(policy, route),
        )
        .into()
}

/// Where one address cannot be connected to (the IPv6 one of a name, say), another is tried, as our host does.
fn next_address() -> Map {
    let predicate = Map::new()
        .with("name", "envoy.retry_host_predicates.previous_hosts")
        .with(
            "typed_config",
            Map::typed("envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"),
        );
    Map::new()
        .with("retry_on", "connect-failure")
        .with("num_retries", ADDRESS_RETRIES)
        .with("retry_host_predicate", vec![predicate])
        .with("host_selection_retry_max_attempts", 2 * ADDRESS_RETRIES)
        .with(
            "retry_back_off",
            Map::new().with("base_interval", Duration::from_millis(1)),
        )
}

fn access_log(log: &AccessLog) -> Option<Tree> {
    let (name, config) = match log {
        AccessLog::Off => return None,
        AccessLog::Stdout => (
            "envoy.access_loggers.stdout",
            Map::typed("envoy.extensions.access_loggers.stream.v3.StdoutAccessLog"),
        ),
        AccessLog::File(path) => (
            "envoy.access_loggers.file",
            Map::typed("envoy.extensions.access_loggers.file.v3.FileAccessLog")
                .with("path", path.display().to_string()),
        ),
    };
    // The keys of this host's own lines, where Envoy knows the value. The path goes without its query, which may carry tokens.
    let members = [
        ("time", "%START_TIME%"),
        ("request_id", "%REQ(x-request-id)%"),
        ("client", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"),
        ("method", "%REQ(:METHOD)%"),
        ("path", "%PATH(NQ)%"),
        ("protocol", "%PROTOCOL%"),
        ("tls_version", "%DOWNSTREAM_TLS_VERSION%"),
        ("status", "%RESPONSE_CODE%"),
        ("flags", "%RESPONSE_FLAGS%"),
        ("duration_ms", "%DURATION%"),
        ("request_bytes", "%BYTES_RECEIVED%"),
        ("response_bytes", "%BYTES_SENT%"),
        ("route", "%ROUTE_NAME%"),
        ("cluster", "%UPSTREAM_CLUSTER%"),
        ("upstream", "%UPSTREAM_REMOTE_ADDRESS%"),
    ];
    let format = members
        .iter()
        .fold(Map::new(), |map, (key, value)| map.with(*key, *value));
    let config = config.with("log_format", Map::new().with("json_format", format));
    Some(vec![Map::new().with("name", name).with("typed_config", config)].into())
}
