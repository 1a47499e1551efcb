//! `listeners`: where clients come in.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::cluster::Cluster;
use super::pem::{self, TrustedCertificates};
use super::place::{Place, Problem};
use super::reader::Field;
use super::scalar;
use super::tcp::{self, TcpParts, TcpProxy};

/// A socket that clients connect to.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Unique among the listeners.
    pub name: String,
    /// Where it listens; port 0 lets the system choose.
    pub address: SocketAddr,
    /// TLS; plaintext if absent.
    pub tls: Option<DownstreamTls>,
    /// Not HTTP: bytes are passed on as they are.
    pub tcp: Option<TcpProxy>,
    /// The listener's `address`.
    pub place: Place,
}

/// TLS towards clients.
#[derive(Clone, Debug)]
pub struct DownstreamTls {
    /// Absolute path of the chain's PEM file.
    pub certificate_chain_file: PathBuf,
    /// Absolute path of the key's PEM file.
    pub private_key_file: PathBuf,
    /// Chain (end entity first) and the key that matches it.
    pub certificate: Arc<CertifiedKey>,
    /// Older versions are refused in the handshake.
    pub minimum_version: TlsVersion,
    /// Who signs client certificates; none are asked for if absent.
    pub client_ca: Option<TrustedCertificates>,
    /// Whether a client without a certificate is refused in the handshake. Needs `client_ca`.
    pub require_client_certificate: bool,
}

impl DownstreamTls {
    /// Whether it is the same to clients, certificates included.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.asks_the_same(other) && self.certificate.cert == other.certificate.cert
    }

    /// Whether a client that one lets in gets into the other.
    pub(crate) fn asks_the_same(&self, other: &Self) -> bool {
        let client_ca = match (&self.client_ca, &other.client_ca) {
            (None, None) => true,
            (Some(one), Some(other)) => one.is_same(other),
            _ => false,
        };
        client_ca
            && self.minimum_version == other.minimum_version
            && self.require_client_certificate == other.require_client_certificate
    }
}

/// The TLS versions that rustls speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// RFC 5246.
    Tls12,
    /// RFC 8446.
    Tls13,
}

pub(super) const KEYS: &[&str] = &["name", "address", "tls", "tcp"];
const TLS_KEYS: &[&str] = &[
    "certificate_chain",
    "private_key",
    "minimum_version",
    "client_ca",
    "require_client_certificate",
];

/// A listener, and its TCP part, which is not in its place yet.
pub(super) fn read(
    field: &Field<'_>,
    clusters: &[Arc<Cluster>],
    cluster_names: &[&str],
) -> Option<(Listener, Option<TcpParts>)> {
    let section = field.section(KEYS)?;
    let name = section
        .required("name")
        .and_then(|field| field.parse(scalar::name));
    let address_field = section.required("address");
    let address = address_field.and_then(|field| field.parse(scalar::socket_address));
    let tls = match section.optional("tls") {
        Some(field) => Some(read_tls(field)?),
        None => None,
    };
    let tcp = match section.optional("tcp") {
        Some(field) => Some(tcp::read(field, clusters, cluster_names)?),
        None => None,
    };
    let listener = Listener {
        name: name?,
        address: address?,
        tls,
        tcp: None,
        place: address_field?.place(),
    };
    Some((listener, tcp))
}

fn read_tls(field: &Field<'_>) -> Option<DownstreamTls> {
    let section = field.section(TLS_KEYS)?;
    let chain = section.required("certificate_chain");
    let key = section.required("private_key");
    let certified = match (chain, key) {
        (Some(chain), Some(key)) => pem::certified_key(chain, key),
        _ => None,
    };
    let minimum_version = match section.optional("minimum_version") {
        Some(field) => field.parse(|text| match text {
            "1.2" => Ok(TlsVersion::Tls12),
            "1.3" => Ok(TlsVersion::Tls13),
            _ => Err(format!(
                "`{text}` is not a TLS version, it may be \"1.2\" or \"1.3\""
            )),
        }),
        None => Some(TlsVersion::Tls13),
    };
    let client_ca = match section.optional("client_ca") {
        Some(field) => pem::trusted(field).map(Some),
        None => Some(None),
    };
    let require = match section.optional("require_client_certificate") {
        Some(field) => {
            let require = field.boolean();
            if require == Some(true) && section.optional("client_ca").is_none() {
                field.refuse("`client_ca` is missing: nobody could sign a client's certificate");
            }
            require
        }
        None => Some(false),
    };
    let (certificate_chain_file, private_key_file, certificate) = certified?;
    Some(DownstreamTls {
        certificate_chain_file,
        private_key_file,
        certificate,
        minimum_version: minimum_version?,
        client_ca: client_ca?,
        require_client_certificate: require?,
    })
}

/// Listeners (the admin's among them) that could not be bound together.
pub(super) fn refuse_overlaps(addresses: &[(SocketAddr, Place)], refuse: impl Fn(Problem)) {
    for (index, (address, place)) in addresses.iter().enumerate() {
        let earlier = addresses
            .iter()
            .take(index)
            .find(|(other, _)| overlap(*address, *other));
        if let Some((other, other_place)) = earlier {
            refuse(place.problem(format!(
                "{address} overlaps with {other} on line {}",
                other_place.line
            )));
        }
    }
}

/// Whether two sockets compete: same port, and equal or covering addresses. `[::]` is taken to cover IPv4 too, as on Linux.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let covers = |wide: SocketAddr, narrow: SocketAddr| {
        wide.ip().is_unspecified() && (wide.is_ipv6() || narrow.is_ipv4())
    };
    a.port() != 0 && a.port() == b.port() && (a.ip() == b.ip() || covers(a, b) || covers(b, a))
}

impl DownstreamTls {
    /// What is wrong with the time of the certificate at `now`, seconds since 1970.
    pub(super) fn validity_fault(&self, now: i64) -> Option<&'static str> {
        let leaf = self.certificate.cert.first()?;
        let (_, leaf) = X509Certificate::from_der(leaf).ok()?;
        if leaf.validity().not_after.timestamp() < now {
            return Some("has expired");
        }
        (leaf.validity().not_before.timestamp() > now).then_some("is not valid yet")
    }
}
