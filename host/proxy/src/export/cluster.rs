//! Clusters, as Envoy writes them.

use crate::limits;
use crate::policy::{Cluster, Endpoint, EndpointHost, TrustedCa, UpstreamProtocol, UpstreamTls};

use super::listener::BUFFER_BYTES;
use super::tree::{Map, Tree};

/// Where Linux distributions keep the roots of the system; the first that exists here is written.
const SYSTEM_ROOTS: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

pub(super) fn cluster(cluster: &Cluster) -> Tree {
    let named = cluster
        .endpoints
        .iter()
        .any(|it| matches!(it.host, EndpointHost::Name(_)));
    let endpoints = cluster.endpoints.iter().map(endpoint).collect::<Tree>();
    let mut map = Map::new()
        .with("name", cluster.name.as_str())
        .with("type", if named { "STRICT_DNS" } else { "STATIC" });
    if named {
        map = map
            .with("dns_lookup_family", "ALL")
            .with("dns_refresh_rate", limits::DNS_PERIOD);
    }
    map.with("lb_policy", "ROUND_ROBIN")
        .with("connect_timeout", cluster.connect_timeout)
        .with("per_connection_buffer_limit_bytes", BUFFER_BYTES)
        .with(
            "load_assignment",
            Map::new().with("cluster_name", cluster.name.as_str()).with(
                "endpoints",
                vec![Map::new().with("lb_endpoints", endpoints)],
            ),
        )
        .with(
            "typed_extension_protocol_options",
            Map::new().with(
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                protocol(cluster),
            ),
        )
        .maybe(
            "transport_socket",
            cluster
                .tls
                .as_ref()
                .map(|tls| transport_socket(tls, cluster.protocol)),
        )
        .into()
}

fn endpoint(endpoint: &Endpoint) -> Tree {
    let host = match &endpoint.host {
        EndpointHost::Address(address) => address.to_string(),
        EndpointHost::Name(name) => name.clone(),
    };
    let address = Map::new().with(
        "socket_address",
        Map::new()
            .with("address", host)
            .with("port_value", endpoint.port),
    );
    Map::new()
        .with("endpoint", Map::new().with("address", address))
        .into()
}

fn protocol(cluster: &Cluster) -> Map {
    let explicit = match cluster.protocol {
        UpstreamProtocol::Http1 => Map::new().with("http_protocol_options", Map::new()),
        UpstreamProtocol::Http2 => Map::new().with(
            "http2_protocol_options",
            Map::new()
                .with("initial_stream_window_size", limits::H2_STREAM_WINDOW)
                .with(
                    "initial_connection_window_size",
                    limits::H2_CONNECTION_WINDOW,
                ),
        ),
    };
    Map::typed("envoy.extensions.upstreams.http.v3.HttpProtocolOptions")
        .with(
            "common_http_protocol_options",
            Map::new().with("idle_timeout", cluster.idle_timeout),
        )
        .with("explicit_http_config", explicit)
}

fn transport_socket(tls: &UpstreamTls, protocol: UpstreamProtocol) -> Map {
    let ca = match &tls.ca {
        TrustedCa::File(certificates) => certificates.file.display().to_string(),
        TrustedCa::System => {
            let exists = |path: &&&str| std::path::Path::new(path).exists();
            let found = SYSTEM_ROOTS.iter().find(exists).or(SYSTEM_ROOTS.first());
            found.copied().unwrap_or_default().to_owned()
        }
    };
    let alpn = match protocol {
        UpstreamProtocol::Http1 => "http/1.1",
        UpstreamProtocol::Http2 => "h2",
    };
    let common = Map::new()
        .with(
            "tls_params",
            Map::new()
                .with("tls_minimum_protocol_version", "TLSv1_2")
                .with("tls_maximum_protocol_version", "TLSv1_3"),
        )
        .with("alpn_protocols", vec![alpn])
        .with(
            "validation_context",
            Map::new().with("trusted_ca", Map::new().with("filename", ca)),
        );
    let context = Map::typed("envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext")
        .with("sni", tls.sni.as_ref())
        .with("auto_sni_san_validation", true)
        .with("common_tls_context", common);
    Map::new()
        .with("name", "envoy.transport_sockets.tls")
        .with("typed_config", context)
}
