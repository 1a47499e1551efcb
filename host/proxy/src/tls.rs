//! TLS towards clients: the server's configuration, and what a handshake proved, in the words of Envoy's `connection.*` attributes.

use std::fmt::Write as _;
use std::sync::Arc;

use aws_lc_rs::digest;
use base64::Engine as _;
use portcullis_runtime::{TlsInfo, TlsVersion};
use rustls::crypto::aws_lc_rs::{Ticketer, default_provider};
use rustls::pki_types::CertificateDer;
use rustls::server::{ResolvesServerCert, ServerConfig, ServerConnection, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use x509_parser::der_parser::asn1_rs::Tag;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::{self, Oid};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

use crate::policy::{self, DownstreamTls};

/// A listener's TLS, shared by the workers.
#[derive(Debug)]
pub(crate) struct ServerTls {
    /// rustls' configuration.
    pub(crate) config: Arc<ServerConfig>,
    /// What the operator wrote.
    pub(crate) policy: DownstreamTls,
    local_subject: Option<String>,
}

/// One certificate for every name.
#[derive(Debug)]
struct OneCertificate(Arc<CertifiedKey>);

impl ResolvesServerCert for OneCertificate {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

impl ServerTls {
    /// What the policy says, as rustls' configuration: these protocols by ALPN, stateless resumption.
    ///
    /// # Errors
    ///
    /// rustls refuses the client CA or has no random numbers; the reason is ready to be shown.
    pub(crate) fn new(tls: &DownstreamTls, alpn: &[&[u8]]) -> Result<Self, String> {
        let provider = Arc::new(default_provider());
        let versions: &[&rustls::SupportedProtocolVersion] = match tls.minimum_version {
            policy::TlsVersion::Tls12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
            policy::TlsVersion::Tls13 => &[&rustls::version::TLS13],
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .map_err(|error| error.to_string())?;
        let builder = match &tls.client_ca {
            Some(trusted) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(
                    Arc::clone(&trusted.roots),
                    provider,
                );
                let verifier = if tls.require_client_certificate {
                    verifier
                } else {
                    verifier.allow_unauthenticated()
                };
                builder
                    .with_client_cert_verifier(verifier.build().map_err(|error| error.to_string())?)
            }
            None => builder.with_no_client_auth(),
        };
        let mut config =
            builder.with_cert_resolver(Arc::new(OneCertificate(Arc::clone(&tls.certificate))));
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config.ticketer = Ticketer::new().map_err(|error| error.to_string())?;
        Ok(Self {
            config: Arc::new(config),
            policy: tls.clone(),
            local_subject: tls.certificate.cert.first().and_then(subject),
        })
    }

    /// What the handshake agreed on and proved.
    pub(crate) fn facts(&self, connection: &ServerConnection) -> TlsInfo {
        let version = match connection.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => TlsVersion::V1_3,
            // rustls knows no other; were it to learn one, it is not to pass for better than it is.
            _ => TlsVersion::V1_2,
        };
        let peer = connection.peer_certificates().and_then(<[_]>::first);
        self.facts_of(version, connection.server_name(), peer)
    }

    /// The same of a handshake that agreed on this version, with this name asked for and this certificate shown.
    pub(crate) fn facts_of(
        &self,
        version: TlsVersion,
        server_name: Option<&str>,
        peer: Option<&CertificateDer<'_>>,
    ) -> TlsInfo {
        let parsed = peer
            .and_then(|der| X509Certificate::from_der(der).ok())
            .map(|(_, certificate)| certificate);
        let (dns, uri) = parsed.as_ref().map(alternative_names).unwrap_or_default();
        TlsInfo {
            version,
            requested_server_name: server_name.map(str::to_owned),
            mtls: peer.is_some(),
            subject_local_certificate: self.local_subject.clone(),
            subject_peer_certificate: parsed
                .as_ref()
                .map(|certificate| rfc2253(certificate.subject())),
            dns_san_peer_certificate: dns,
            uri_san_peer_certificate: uri,
            sha256_peer_certificate_digest: peer
                .map(|der| hex(digest::digest(&digest::SHA256, der).as_ref())),
            peer_certificate_pem: peer.map(pem),
        }
    }
}

fn subject(der: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(rfc2253(certificate.subject()))
}

/// The first DNS name and the first URI.
fn alternative_names(certificate: &X509Certificate<'_>) -> (Option<String>, Option<String>) {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names
        .map(|extension| extension.value.general_names.as_slice())
        .unwrap_or_default();
    let dns = names.iter().find_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    });
    let uri = names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    });
    (dns, uri)
}

/// A name as RFC 2253 writes it and BoringSSL prints it (`XN_FLAG_RFC2253`): the last part first, bytes outside ASCII as `\C3`.
fn rfc2253(name: &X509Name<'_>) -> String {
    let parts: Vec<_> = name.iter().collect();
    let mut out = String::new();
    for (index, part) in parts.iter().rev().enumerate() {
        if index > 0 {
            out.push(',');
        }
        for (index, attribute) in part.iter().enumerate() {
            if index > 0 {
                out.push('+');
            }
            write_attribute(attribute, &mut out);
        }
    }
    out
}

fn write_attribute(attribute: &AttributeTypeAndValue<'_>, out: &mut String) {
    let value = attribute.attr_value();
    match short_name(attribute.attr_type()) {
        Some(name) => out.push_str(name),
        None => out.push_str(&attribute.attr_type().to_id_string()),
    }
    out.push('=');
    let bytes = match value.tag() {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String | Tag::NumericString => {
            value.data.to_vec()
        }
        // One byte a character, by Latin-1, as BoringSSL takes it.
        Tag::T61String => value
            .data
            .iter()
            .map(|byte| char::from(*byte))
            .collect::<String>()
            .into_bytes(),
        Tag::BmpString => {
            let units = value
                .data
                .chunks_exact(2)
                .filter_map(|pair| Some(u16::from_be_bytes(pair.try_into().ok()?)));
            char::decode_utf16(units)
                .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
                .collect::<String>()
                .into_bytes()
        }
        _ => {
            out.push('#');
            // The whole value in DER: tag, length, contents.
            let mut der = vec![u8::try_from(value.tag().0).unwrap_or(0)];
            match u8::try_from(value.data.len()) {
                Ok(length) if length < 0x80 => der.push(length),
                Ok(length) => der.extend([0x81, length]),
                Err(_) => der.extend([0x80]),
            }
            der.extend_from_slice(value.data);
            out.push_str(&hex(&der).to_ascii_uppercase());
            return;
        }
    };
    let last = bytes.len().saturating_sub(1);
    for (index, byte) in bytes.iter().copied().enumerate() {
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => out.extend(['\\', char::from(byte)]),
            b'#' if index == 0 => out.push_str("\\#"),
            b' ' if index == 0 || index == last => out.push_str("\\ "),
            0..=0x1f | 0x7f.. => {
                write!(out, "\\{byte:02X}").ok();
            }
            _ => out.push(char::from(byte)),
        }
    }
}

/// The names BoringSSL prints.
fn short_name(oid: &Oid<'_>) -> Option<&'static str> {
    let names = [
        (oid_registry::OID_X509_COMMON_NAME, "CN"),
        (oid_registry::OID_X509_SURNAME, "SN"),
        (oid_registry::OID_X509_SERIALNUMBER, "serialNumber"),
        (oid_registry::OID_X509_COUNTRY_NAME, "C"),
        (oid_registry::OID_X509_LOCALITY_NAME, "L"),
        (oid_registry::OID_X509_STATE_OR_PROVINCE_NAME, "ST"),
        (oid_registry::OID_X509_STREET_ADDRESS, "street"),
        (oid_registry::OID_X509_ORGANIZATION_NAME, "O"),
        (oid_registry::OID_X509_ORGANIZATIONAL_UNIT, "OU"),
        (oid_registry::OID_X509_TITLE, "title"),
        (oid_registry::OID_X509_NAME, "name"),
        (oid_registry::OID_X509_GIVEN_NAME, "GN"),
        (oid_registry::OID_X509_INITIALS, "initials"),
        (oid_registry::OID_DOMAIN_COMPONENT, "DC"),
        (oid_registry::OID_USERID, "UID"),
        (oid_registry::OID_PKCS9_EMAIL_ADDRESS, "emailAddress"),
    ];
    names
        .into_iter()
        .find(|(known, _)| known == oid)
        .map(|(_, name)| name)
}

fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        write!(out, "{byte:02x}").ok();
    }
    out
}

fn pem(der: &CertificateDer<'_>) -> String {
    let encoded = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = after;
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_written_as_rfc_2253_has_them() {
        use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
        let rows: &[(&[(DnType, &str)], &str)] = &[
            (
                &[
                    (DnType::CommonName, "client.example"),
                    (DnType::OrganizationName, "Spike client"),
                ],
                "O=Spike client,CN=client.example",
            ),
            (
                &[
                    (DnType::CountryName, "DE"),
                    (DnType::CommonName, "a,b+c\"d\\e<f>g;h"),
                ],
                "CN=a\\,b\\+c\\\"d\\\\e\\<f\\>g\\;h,C=DE",
            ),
            (&[(DnType::CommonName, "#x ")], "CN=\\#x\\ "),
            (&[(DnType::CommonName, "\u{e9}\u{1}")], "CN=\\C3\\A9\\01"),
            (
                &[(DnType::CustomDnType(vec![1, 2, 3, 4]), "x")],
                "1.2.3.4=x",
            ),
            (&[], ""),
        ];
        let key = KeyPair::generate().unwrap();
        for (parts, expected) in rows {
            let mut params = CertificateParams::new(vec!["client.example".into()]).unwrap();
            params.distinguished_name = DistinguishedName::new();
            for (kind, value) in *parts {
                params.distinguished_name.push(kind.clone(), *value);
            }
            let certificate = params.self_signed(&key).unwrap();
            assert_eq!(subject(certificate.der()).as_deref(), Some(*expected));
            let (_, parsed) = X509Certificate::from_der(certificate.der()).unwrap();
            assert_eq!(
                alternative_names(&parsed),
                (Some("client.example".into()), None)
            );
            assert_eq!(
                pem(certificate.der()),
                certificate.pem().replace("\r\n", "\n")
            );
        }
    }
}
