//! `clusters`: the upstreams that routes lead to and plugins may call.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::DnsName;

use super::limits::TIMEOUT;
use super::pem::{self, TrustedCertificates};
use super::place::Place;
use super::reader::Field;
use super::scalar::{self, Endpoint, EndpointHost};

/// A group of equal upstreams.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Unique among the clusters.
    pub name: String,
    /// At least one.
    pub endpoints: Vec<Endpoint>,
    /// What is spoken to them.
    pub protocol: UpstreamProtocol,
    /// TCP and TLS handshake together; default 5 s.
    pub connect_timeout: Duration,
    /// From the whole request sent to the whole response received; default 15 s, as in Envoy. `None`: no bound (`request_timeout: off`),
    /// for streams.
    pub request_timeout: Option<Duration>,
    /// After how long without a byte a stream or a pooled connection is closed; default 5 min.
    pub idle_timeout: Duration,
    /// TLS; plaintext if absent.
    pub tls: Option<UpstreamTls>,
    /// The cluster itself.
    pub place: Place,
}

/// What is spoken to an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, without negotiation on plaintext ("prior knowledge").
    Http2,
}

/// TLS towards an upstream. Its certificate is always verified, and so is its name.
#[derive(Clone, Debug)]
pub struct UpstreamTls {
    /// Sent as SNI and expected in the certificate.
    pub sni: DnsName<'static>,
    /// Whom to trust.
    pub ca: TrustedCa,
}

/// Whom to trust for an upstream.
#[derive(Clone, Debug)]
pub enum TrustedCa {
    /// The roots of the operating system.
    System,
    /// The certificates of a file.
    File(TrustedCertificates),
}

impl Cluster {
    /// Whether connections to the one serve for the other.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let tls = match (&self.tls, &other.tls) {
            (None, None) => true,
            (Some(one), Some(other)) => one.sni == other.sni && one.ca.is_same(&other.ca),
            _ => false,
        };
        tls && self.name == other.name
            && self.endpoints == other.endpoints
            && self.protocol == other.protocol
            && self.connect_timeout == other.connect_timeout
            && self.request_timeout == other.request_timeout
            && self.idle_timeout == other.idle_timeout
    }
}

impl TrustedCa {
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::System, Self::System) => true,
            (Self::File(one), Self::File(other)) => one.is_same(other),
            _ => false,
        }
    }
}

const KEYS: &[&str] = &[
    "name",
    "endpoints",
    "protocol",
    "connect_timeout",
    "request_timeout",
    "idle_timeout",
    "tls",
];
const TLS_KEYS: &[&str] = &["sni", "ca"];

pub(super) fn read(field: &Field<'_>) -> Option<Cluster> {
    let section = field.section(KEYS)?;
    let name = section
        .required("name")
        .and_then(|field| field.parse(scalar::cluster_name));
    let endpoints = section.required("endpoints").and_then(read_endpoints);
    let protocol = match section.optional("protocol") {
        Some(field) => field.parse(|text| match text {
            "http1" => Ok(UpstreamProtocol::Http1),
            "http2" => Ok(UpstreamProtocol::Http2),
            _ => Err(format!(
                "`{text}` is not a protocol, it may be `http1` or `http2`"
            )),
        }),
        None => Some(UpstreamProtocol::Http1),
    };
    let timeout = |key: &str, default: Duration| match section.optional(key) {
        Some(field) => field.duration(TIMEOUT),
        None => Some(default),
    };
    let connect_timeout = timeout("connect_timeout", Duration::from_secs(5));
    let idle_timeout = timeout("idle_timeout", Duration::from_secs(300));
    let request_timeout = match section.optional("request_timeout") {
        Some(field) if field.is_off() => Some(None),
        _ => timeout("request_timeout", Duration::from_secs(15)).map(Some),
    };
    let tls = match section.optional("tls") {
        Some(field) => read_tls(field, endpoints.as_deref()).map(Some),
        None => Some(None),
    };
    Some(Cluster {
        name: name?,
        endpoints: endpoints?,
        protocol: protocol?,
        connect_timeout: connect_timeout?,
        request_timeout: request_timeout?,
        idle_timeout: idle_timeout?,
        tls: tls?,
        place: field.place(),
    })
}

/// The cluster that a field names.
pub(super) fn find(
    field: &Field<'_>,
    clusters: &[Arc<Cluster>],
    cluster_names: &[&str],
) -> Option<Arc<Cluster>> {
    let name = field.string()?;
    let found = clusters.iter().find(|cluster| cluster.name == name);
    if found.is_none() && !cluster_names.contains(&name) {
        field.refuse(format!("there is no cluster `{name}`"));
    }
    found.cloned()
}

fn read_endpoints(field: &Field<'_>) -> Option<Vec<Endpoint>> {
    let items = field.items();
    if items.is_empty() {
        field.refuse("at least one endpoint is needed");
        return None;
    }
    let endpoints: Vec<_> = items
        .iter()
        .map(|item| item.parse(scalar::endpoint))
        .collect();
    endpoints.into_iter().collect()
}

fn read_tls(field: &Field<'_>, endpoints: Option<&[Endpoint]>) -> Option<UpstreamTls> {
    let section = field.section(TLS_KEYS)?;
    let sni = match (section.optional("sni"), endpoints) {
        (Some(field), _) => field.parse(scalar::dns_name),
        (None, Some(endpoints)) => {
            let name = common_name(endpoints);
            if name.is_none() {
                field.refuse("`sni` is missing: the endpoints do not share one DNS name to expect in the certificate");
            }
            name
        }
        (None, None) => None,
    };
    let sni = sni.and_then(|name| match DnsName::try_from(name) {
        Ok(name) => Some(name),
        Err(_) => {
            field.refuse("`sni` is not a DNS name that a certificate can carry");
            None
        }
    });
    let ca = match section.optional("ca") {
        Some(field) if field.string() == Some("system") => Some(TrustedCa::System),
        Some(field) => pem::trusted(field).map(TrustedCa::File),
        None => Some(TrustedCa::System),
    };
    Some(UpstreamTls { sni: sni?, ca: ca? })
}

/// The DNS name that all endpoints have.
fn common_name(endpoints: &[Endpoint]) -> Option<String> {
    let mut names = endpoints.iter().map(|endpoint| match &endpoint.host {
        EndpointHost::Name(name) => Some(name),
        EndpointHost::Address(_) => None,
    });
    let first = names.next()??;
    names.all(|name| name == Some(first)).then(|| first.clone())
}
