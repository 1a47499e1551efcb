//! The downstream connection, from the host's properties. TLS is what the host's TLS stack says, never a header.
//!
//! Encodings: Envoy gives text raw, and one byte for a boolean; ngx_wasm_module gives everything as text. Both are read.

use std::net::{IpAddr, SocketAddr};

use crate::error::Error;
use crate::host::Host;
use crate::scope::Scope;

/// A TLS version; the order is the order of age.
///
/// ```
/// use portcullis_sdk::TlsVersion;
///
/// assert!(TlsVersion::Tls12 < TlsVersion::Tls13);
/// assert_eq!(TlsVersion::parse(b"TLSv1.3"), Ok(TlsVersion::Tls13));
/// assert!(TlsVersion::parse(b"TLSv1.4").is_err());
/// assert_eq!(TlsVersion::Tls10.as_str(), "TLSv1");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TlsVersion {
    /// TLS 1.0 (and anything older that a stack reports as SSL).
    Tls10,
    /// TLS 1.1.
    Tls11,
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

impl TlsVersion {
    /// Reads `TLSv1.3` and its kin (`TLSv1.3`, `TLS1.3`, `TLSv1_3`, any case; `TLSv1` is 1.0). What is unknown is an
    /// error: a version that cannot be read cannot be held to a floor.
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        const MALFORMED: Error = Error::Malformed("connection.tls_version");
        if text
            .get(..3)
            .is_some_and(|start| start.eq_ignore_ascii_case(b"ssl"))
        {
            return Ok(Self::Tls10);
        }
        let (start, rest) = text.split_at_checked(3).ok_or(MALFORMED)?;
        if !start.eq_ignore_ascii_case(b"tls") {
            return Err(MALFORMED);
        }
        let rest = rest
            .strip_prefix(b"v")
            .or_else(|| rest.strip_prefix(b"V"))
            .unwrap_or(rest);
        match rest {
            b"1" | b"1.0" | b"1_0" => Ok(Self::Tls10),
            b"1.1" | b"1_1" => Ok(Self::Tls11),
            b"1.2" | b"1_2" => Ok(Self::Tls12),
            b"1.3" | b"1_3" => Ok(Self::Tls13),
            _ => Err(MALFORMED),
        }
    }

    /// As Envoy writes it: `TLSv1.3`; 1.0 is `TLSv1`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tls10 => "TLSv1",
            Self::Tls11 => "TLSv1.1",
            Self::Tls12 => "TLSv1.2",
            Self::Tls13 => "TLSv1.3",
        }
    }
}

/// The connection that the request came on. Each function is one hostcall.
///
/// ```
/// use portcullis_sdk::prelude::*;
///
/// /// Only workloads of this mesh, over mutual TLS.
/// fn is_ours(request: &Request) -> Result<bool, Error> {
///     let connection = request.connection();
///     let name = connection.uri_san_peer_certificate()?.unwrap_or_default();
///     Ok(connection.mtls()? && name.starts_with(b"spiffe://example.org/"))
/// }
/// ```
#[derive(Debug)]
pub struct Connection<'a> {
    scope: &'a Scope,
}

impl<'a> Connection<'a> {
    pub(crate) fn new(scope: &'a Scope) -> Self {
        Self { scope }
    }

    /// The negotiated TLS version; `None` on plaintext. In a policy module a hostcall once an exchange, whichever control asks.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// A floor: what is absent is plaintext.
    /// fn example(request: &Request) -> Result<bool, Error> {
    ///     Ok(request.connection().tls_version()? >= Some(TlsVersion::Tls13))
    /// }
    /// ```
    pub fn tls_version(&self) -> Result<Option<TlsVersion>, Error> {
        present(self.scope.tls_version()?)
            .as_deref()
            .map(TlsVersion::parse)
            .transpose()
    }

    /// Whether the connection is TLS: whether it has a TLS version, whichever.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// Whether HSTS may be sent.
    /// fn example(request: &Request) -> Result<bool, Error> {
    ///     request.connection().is_tls()
    /// }
    /// ```
    pub fn is_tls(&self) -> Result<bool, Error> {
        Ok(present(self.scope.tls_version()?).is_some())
    }

    /// The address that the connection came from; behind a trusted hop, the one that the host found for it. `None`
    /// where the host knows none; an error where it is no IP address (a Unix socket).
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// Whether the client is on this machine.
    /// fn example(request: &Request) -> Result<bool, Error> {
    ///     Ok(request.connection().source_address()?.is_some_and(|address| address.is_loopback()))
    /// }
    /// ```
    pub fn source_address(&self) -> Result<Option<IpAddr>, Error> {
        self.text(b"source\0address")?
            .as_deref()
            .map(parse_address)
            .transpose()
    }

    /// Whether the client showed a certificate that was verified.
    pub fn mtls(&self) -> Result<bool, Error> {
        match self.text(b"connection\0mtls")?.as_deref() {
            None | Some(b"\0" | b"false" | b"0") => Ok(false),
            Some(b"\x01" | b"true" | b"1") => Ok(true),
            Some(_) => Err(Error::Malformed("connection.mtls")),
        }
    }

    /// The server name that the client asked for (SNI).
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// Whether the name of the handshake is that of the request.
    /// fn example(request: &Request) -> Result<bool, Error> {
    ///     Ok(request.connection().requested_server_name()? == Some(request.authority()?))
    /// }
    /// ```
    pub fn requested_server_name(&self) -> Result<Option<Vec<u8>>, Error> {
        self.text(b"connection\0requested_server_name")
    }

    /// The subject of the client's certificate, as RFC 2253 writes it.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// One client, by its subject.
    /// fn example(request: &Request) -> Result<bool, Error> {
    ///     Ok(request.connection().subject_peer_certificate()?.as_deref() == Some(b"CN=batch,O=Example"))
    /// }
    /// ```
    pub fn subject_peer_certificate(&self) -> Result<Option<Vec<u8>>, Error> {
        self.text(b"connection\0subject_peer_certificate")
    }

    /// The first URI among the subject alternative names of the client's certificate.
    pub fn uri_san_peer_certificate(&self) -> Result<Option<Vec<u8>>, Error> {
        self.text(b"connection\0uri_san_peer_certificate")
    }

    /// The first DNS name among the subject alternative names of the client's certificate.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// Clients of one domain.
    /// fn example(request: &Request) -> Result<bool, Error> {
    ///     Ok(request.connection().dns_san_peer_certificate()?.is_some_and(|name| name.ends_with(b".example.org")))
    /// }
    /// ```
    pub fn dns_san_peer_certificate(&self) -> Result<Option<Vec<u8>>, Error> {
        self.text(b"connection\0dns_san_peer_certificate")
    }

    /// The SHA-256 of the client's certificate, 64 lower-case hex digits.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// One certificate, pinned.
    /// fn example(request: &Request) -> Result<bool, Error> {
    ///     Ok(request.connection().sha256_peer_certificate_digest()?.is_some_and(|digest| digest.starts_with(b"9f86d081")))
    /// }
    /// ```
    pub fn sha256_peer_certificate_digest(&self) -> Result<Option<Vec<u8>>, Error> {
        self.text(b"connection\0sha256_peer_certificate_digest")
    }

    fn text(&self, path: &'static [u8]) -> Result<Option<Vec<u8>>, Error> {
        let value = self
            .scope
            .host
            .property(path)
            .map_err(Error::host("proxy_get_property"))?;
        Ok(present(value))
    }
}

/// Empty counts as absent, as Envoy gives some absent properties as empty.
fn present(value: Option<Vec<u8>>) -> Option<Vec<u8>> {
    value.filter(|value| !value.is_empty())
}

/// Reads `192.0.2.7:443`, `[2001:db8::1]:443`, and either without a port. An IPv4 address mapped into IPv6 is IPv4.
pub(crate) fn parse_address(text: &[u8]) -> Result<IpAddr, Error> {
    let text = std::str::from_utf8(text).map_err(|_| Error::Malformed("source.address"))?;
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address.ip().to_canonical());
    }
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .unwrap_or(text);
    bare.parse::<IpAddr>()
        .map(|address| address.to_canonical())
        .map_err(|_| Error::Malformed("source.address"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn tls_versions_of_every_host() {
        for (text, version) in [
            ("TLSv1.3", Some(TlsVersion::Tls13)),
            ("TLSv1_3", Some(TlsVersion::Tls13)),
            ("tls1.2", Some(TlsVersion::Tls12)),
            ("TLSv1.1", Some(TlsVersion::Tls11)),
            ("TLSv1", Some(TlsVersion::Tls10)),
            ("SSLv3", Some(TlsVersion::Tls10)),
            ("TLSv1.30", None),
            ("TLSv1.4", None),
            ("TLSv2", None),
            ("DTLSv1.2", None),
            ("TLS", None),
            ("", None),
        ] {
            assert_eq!(TlsVersion::parse(text.as_bytes()).ok(), version, "{text}");
        }
        for version in [
            TlsVersion::Tls10,
            TlsVersion::Tls11,
            TlsVersion::Tls12,
            TlsVersion::Tls13,
        ] {
            assert_eq!(TlsVersion::parse(version.as_str().as_bytes()), Ok(version));
        }
    }

    #[test]
    fn addresses_with_and_without_a_port() {
        for (text, address) in [
            ("192.0.2.7:443", Some("192.0.2.7")),
            ("192.0.2.7", Some("192.0.2.7")),
            ("[2001:db8::1]:443", Some("2001:db8::1")),
            ("[2001:db8::1]", Some("2001:db8::1")),
            ("2001:db8::1", Some("2001:db8::1")),
            ("[::ffff:192.0.2.7]:1", Some("192.0.2.7")),
            ("/run/socket", None),
            ("192.0.2.7:x", None),
        ] {
            let expected: Option<IpAddr> = address.map(|address| address.parse().unwrap());
            assert_eq!(parse_address(text.as_bytes()).ok(), expected, "{text}");
        }
        let mut random = Random::new(5);
        for _ in 0..100_000 {
            let bytes = random.bytes(24);
            let _ = (parse_address(&bytes), TlsVersion::parse(&bytes));
        }
    }
}
