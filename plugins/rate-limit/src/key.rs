//! Whom a request counts for.

use std::net::IpAddr;

use portcullis_sdk::{Error, Request};

/// Longest name of a property or header, in bytes.
const NAME_BYTES_MAX: usize = 128;

/// The first segments of the attributes that a proxy gives; they are paths. Any other property is one name, dots and
/// all.
const ATTRIBUTES: [&str; 5] = ["connection", "destination", "request", "source", "xds"];

/// One source of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A property, by its path.
    Property(Vec<String>),
    /// A request header, in lower case.
    Header(String),
    /// The client's address.
    Address,
}

impl Source {
    /// From a name such as `jwt.sub` or `connection.uri_san_peer_certificate`; none if it cannot be one.
    pub(crate) fn property(name: &str) -> Option<Self> {
        let plain = (1..=NAME_BYTES_MAX).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_graphic());
        let attribute = name
            .split_once('.')
            .is_some_and(|(first, _)| ATTRIBUTES.contains(&first));
        let path = if attribute {
            name.split('.').map(str::to_owned).collect()
        } else {
            vec![name.to_owned()]
        };
        plain.then_some(Self::Property(path))
    }

    /// From a header's name; none if it is none that a proxy would hand on.
    pub(crate) fn header(name: &str) -> Option<Self> {
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        let plain = (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(token);
        plain.then(|| Self::Header(name.to_ascii_lowercase()))
    }
}

/// What was found of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// The bytes that tell this client from all others of the instance.
    Key(Vec<u8>),
    /// No source is present.
    Missing,
    /// The header comes more than once, and whoever reads it later may take another value than this control.
    Ambiguous,
}

/// The sources, in order.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    sources: Vec<Source>,
    ipv6_prefix: u8,
}

impl Key {
    /// `ipv6_prefix` at most 128.
    pub(crate) fn new(sources: Vec<Source>, ipv6_prefix: u8) -> Self {
        Self {
            sources,
            ipv6_prefix,
        }
    }

    #[cfg(test)]
    pub(crate) fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// The key of a request: its value in the first source where it is neither absent nor empty. One hostcall a source.
    pub(crate) fn find(&self, request: &Request<'_>) -> Result<Found, Error> {
        for (number, source) in (0_u8..).zip(&self.sources) {
            let value = match source {
                Source::Property(path) => match path.as_slice() {
                    [name] => request.property(&[name])?,
                    path => {
                        request.property(&path.iter().map(String::as_str).collect::<Vec<_>>())?
                    }
                },
                Source::Header(name) => {
                    let headers = request.all_headers()?;
                    let mut values = headers.all(name);
                    let first = values.next().map(<[u8]>::to_vec);
                    if values.next().is_some() {
                        return Ok(Found::Ambiguous);
                    }
                    first
                }
                Source::Address => {
                    let address = request.connection().source_address()?;
                    address.map(|address| network(address, self.ipv6_prefix))
                }
            };
            if let Some(mut key) = value.filter(|value| !value.is_empty()) {
                // A user called `\x7f\0\0\x01` is not the client at 127.0.0.1.
                key.push(number);
                return Ok(Found::Key(key));
            }
        }
        Ok(Found::Missing)
    }
}

/// The network that an address stands for: an IPv4 address whole (mapped into IPv6 or not), of an IPv6 address the
/// leading bits.
fn network(address: IpAddr, ipv6_prefix: u8) -> Vec<u8> {
    match address.to_canonical() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => {
            let host_bits = 128_u32.saturating_sub(u32::from(ipv6_prefix));
            let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
            (address.to_bits() & mask).to_be_bytes().to_vec()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_network_are_one_client() {
        let rows = [
            ("192.0.2.7", "192.0.2.7", 64, true),
            ("192.0.2.7", "192.0.2.8", 64, false),
            ("192.0.2.7", "::ffff:192.0.2.7", 64, true),
            ("192.0.2.7", "::ffff:192.0.2.8", 64, false),
            ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", 64, true),
            ("2001:db8::1", "2001:db8:0:1::1", 64, false),
            ("2001:db8::1", "2001:db8:0:ff::1", 56, true),
            ("2001:db8::1", "2001:db8:0:100::1", 56, false),
            ("2001:db8::1", "2001:db8::2", 128, false),
            ("2001:db8::1", "2001:db8::1", 128, true),
            // Sixteen zero bytes of an IPv6 network are not four of an IPv4 address.
            ("0.0.0.0", "::", 32, false),
        ];
        for (one, other, prefix, same) in rows {
            let [first, second] = [one, other].map(|text| network(text.parse().unwrap(), prefix));
            assert_eq!(first == second, same, "{one} and {other} at /{prefix}");
        }
    }

    #[test]
    fn attributes_are_paths_and_other_properties_names() {
        let rows: [(&str, Option<&[&str]>); 5] = [
            ("jwt.sub", Some(&["jwt.sub"])),
            (
                "connection.uri_san_peer_certificate",
                Some(&["connection", "uri_san_peer_certificate"]),
            ),
            (
                "request.headers.x-tenant",
                Some(&["request", "headers", "x-tenant"]),
            ),
            ("", None),
            ("two words", None),
        ];
        for (name, path) in rows {
            let expected = path.map(|path| {
                Source::Property(path.iter().map(|segment| (*segment).into()).collect())
            });
            assert_eq!(Source::property(name), expected, "{name}");
        }
    }
}
