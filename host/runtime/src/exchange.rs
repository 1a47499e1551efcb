//! What one HTTP exchange lends to its filters: maps, and facts about the connection, the route and the message.

use std::{fmt, net::SocketAddr, rc::Rc};

use crate::{
    fields::{FieldList, Fields},
    filter_state::ConnectionState,
};
use bytes::Bytes;

/// One HTTP exchange, as its filters see it.
#[non_exhaustive]
pub struct Exchange {
    /// The request's headers, pseudo-headers first.
    pub request_headers: Box<dyn Fields>,
    /// Set before [`HttpStream::request_trailers`](crate::HttpStream::request_trailers); a filter may set it at the end of a body.
    pub request_trailers: Option<Box<dyn Fields>>,
    /// The embedder's map for an upstream's answer, a [`FieldList`] for a local response (`:status` first).
    pub response_headers: Option<Box<dyn Fields>>,
    /// Set before [`HttpStream::response_trailers`](crate::HttpStream::response_trailers); a filter may set it at the end of a body.
    pub response_trailers: Option<Box<dyn Fields>>,
    /// Facts, for properties.
    pub info: StreamInfo,
    /// Why a response was made here, for property `response.code_details`.
    pub(crate) local_details: Option<Bytes>,
}

/// Header values are secrets often enough: only their number is told.
impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |map: &Option<Box<dyn Fields>>| map.as_ref().map(|map| map.len());
        f.debug_struct("Exchange")
            .field("request_headers", &self.request_headers.len())
            .field("request_trailers", &count(&self.request_trailers))
            .field("response_headers", &count(&self.response_headers))
            .field("response_trailers", &count(&self.response_trailers))
            .field("info", &self.info)
            .finish()
    }
}

impl Exchange {
    /// An exchange whose request has these headers, and nothing else yet.
    pub fn new(request_headers: Box<dyn Fields>, info: StreamInfo) -> Self {
        Self {
            request_headers,
            request_trailers: None,
            response_headers: None,
            response_trailers: None,
            info,
            local_details: None,
        }
    }

    /// The response's map, made when there is none.
    pub(crate) fn response_headers_mut(&mut self) -> &mut Box<dyn Fields> {
        self.response_headers
            .get_or_insert_with(|| Box::new(FieldList::new()))
    }
}

/// Facts about an exchange. What is not known yet is `None` or 0, as Envoy has it.
#[derive(Clone, Debug)]
pub struct StreamInfo {
    /// The connection it came over.
    pub connection: Rc<ConnectionInfo>,
    /// Where it goes.
    pub route: Rc<RouteInfo>,
    /// The HTTP version downstream.
    pub protocol: Protocol,
    /// When it began, ns since 1970.
    pub start_unix_ns: u64,
    /// Bytes of the request body received so far.
    pub request_size: u64,
    /// Bytes of the response body sent so far.
    pub response_size: u64,
    /// How long it took, ns; known at the end.
    pub duration_ns: Option<u64>,
    /// The status answered; known once there is a response.
    pub response_code: Option<u16>,
    /// Envoy's response flags.
    pub response_flags: u64,
    /// The endpoint the request went to.
    pub upstream_address: Option<SocketAddr>,
}

impl StreamInfo {
    /// An exchange of which only its beginning is known.
    pub fn new(
        connection: Rc<ConnectionInfo>,
        route: Rc<RouteInfo>,
        protocol: Protocol,
        start_unix_ns: u64,
    ) -> Self {
        Self {
            connection,
            route,
            protocol,
            start_unix_ns,
            request_size: 0,
            response_size: 0,
            duration_ns: None,
            response_code: None,
            response_flags: 0,
            upstream_address: None,
        }
    }
}

/// One downstream connection.
#[derive(Debug)]
pub struct ConnectionInfo {
    /// Unique in the process.
    pub id: u64,
    /// The peer.
    pub source: SocketAddr,
    /// The listener's end.
    pub destination: SocketAddr,
    /// Present if, and only if, the connection is TLS.
    pub tls: Option<TlsInfo>,
    /// What filters left on it; empty at first.
    pub state: ConnectionState,
}

impl ConnectionInfo {
    /// A plaintext connection; set [`ConnectionInfo::tls`] where a handshake was done.
    pub fn new(id: u64, source: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            id,
            source,
            destination,
            tls: None,
            state: ConnectionState::default(),
        }
    }
}

/// What a TLS handshake verified.
#[derive(Clone, Debug)]
pub struct TlsInfo {
    /// The version agreed.
    pub version: TlsVersion,
    /// SNI.
    pub requested_server_name: Option<String>,
    /// Whether the peer showed a certificate that was verified.
    pub mtls: bool,
    /// Our own certificate's subject, RFC 2253.
    pub subject_local_certificate: Option<String>,
    /// The peer's subject, RFC 2253.
    pub subject_peer_certificate: Option<String>,
    /// The peer's first DNS name.
    pub dns_san_peer_certificate: Option<String>,
    /// The peer's first URI.
    pub uri_san_peer_certificate: Option<String>,
    /// SHA-256 of the peer's certificate, 64 lower-case hex digits.
    pub sha256_peer_certificate_digest: Option<String>,
    /// The peer's certificate, PEM.
    pub peer_certificate_pem: Option<String>,
}

impl TlsInfo {
    /// A handshake that agreed on this version, and that showed no name and no certificate.
    pub fn new(version: TlsVersion) -> Self {
        Self {
            version,
            requested_server_name: None,
            mtls: false,
            subject_local_certificate: None,
            subject_peer_certificate: None,
            dns_san_peer_certificate: None,
            uri_san_peer_certificate: None,
            sha256_peer_certificate_digest: None,
            peer_certificate_pem: None,
        }
    }
}

/// TLS versions under Envoy's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum TlsVersion {
    /// 1.0
    V1_0,
    /// 1.1
    V1_1,
    /// 1.2
    V1_2,
    /// 1.3
    V1_3,
}

impl TlsVersion {
    /// `TLSv1.3`, `TLSv1.2`, `TLSv1.1`, `TLSv1`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V1_0 => "TLSv1",
            Self::V1_1 => "TLSv1.1",
            Self::V1_2 => "TLSv1.2",
            Self::V1_3 => "TLSv1.3",
        }
    }
}

/// The route an exchange took.
#[derive(Clone, Debug, Default)]
pub struct RouteInfo {
    /// Property `xds.route_name`.
    pub name: String,
    /// Property `xds.cluster_name`.
    pub cluster: String,
    /// Property `xds.virtual_host_name`.
    pub virtual_host: String,
}

/// HTTP versions under Envoy's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Protocol {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
    /// HTTP/2
    Http2,
    /// None: a TCP connection whose bytes are not looked at. Property `request.protocol` is then absent.
    Tcp,
}

impl Protocol {
    /// `HTTP/1.0`, `HTTP/1.1`, `HTTP/2`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
            Self::Tcp => "TCP",
        }
    }
}

/// Which half of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Downstream to upstream.
    Request,
    /// Upstream to downstream.
    Response,
}
