//! The headers that belong to one hop, and those that tell the upstream about the client: taken off and put on as Envoy does with
//! `use_remote_address: true` and no trusted hops (source/common/http/conn_manager_utility.cc).
//!
//! What a client says about itself is never believed: `x-forwarded-proto` and `x-request-id` are ours, the client's address is appended to
//! `x-forwarded-for` (the last entry is the one to trust), `x-envoy-*` and `x-forwarded-client-cert` go.

use std::net::IpAddr;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::fields::Scheme;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_CLIENT_CERT: &str = "x-forwarded-client-cert";
const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");
const UPGRADE: HeaderValue = HeaderValue::from_static("upgrade");
const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");

/// Whether the message asks for, or agrees to, a change to the websocket protocol: the only one that is passed on. `h2c` in particular
/// is not, since it would carry requests past the filters.
pub(crate) fn is_websocket(headers: &HeaderMap) -> bool {
    let named = |value: &HeaderValue, token: &str| {
        let mut tokens = value.as_bytes().split(|byte| *byte == b',');
        tokens.any(|found| found.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    };
    headers
        .get(header::UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && headers
            .get_all(header::CONNECTION)
            .iter()
            .any(|value| named(value, "upgrade"))
}

/// Removes what belongs to this hop only (RFC 9110 §7.6.1), on requests and responses; `websocket` keeps the upgrade.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap, websocket: bool) {
    // Most messages have none of them: a look at each name costs less than a search for each of these.
    if headers.keys().any(is_of_the_hop) {
        remove_what_is_of_the_hop(headers);
    }
    if websocket {
        headers.insert(header::CONNECTION, UPGRADE);
        headers.insert(header::UPGRADE, WEBSOCKET);
    }
}

fn is_of_the_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection" | "keep-alive" | "proxy-connection" | "te" | "transfer-encoding" | "upgrade"
    )
}

fn remove_what_is_of_the_hop(headers: &mut HeaderMap) {
    let mut names: Vec<HeaderName> = Vec::new();
    for (name, value) in &*headers {
        if *name == header::CONNECTION {
            let tokens = value.as_bytes().split(|byte| *byte == b',');
            let tokens = tokens.map(<[u8]>::trim_ascii);
            // What nearly every `Connection` says is no field, or removed if there is one.
            let tokens = tokens.filter(|token| !matches!(*token, b"close" | b"keep-alive"));
            names.extend(tokens.filter_map(|token| HeaderName::from_bytes(token).ok()));
        }
        if is_of_the_hop(name) {
            names.push(name.clone());
        }
    }
    for name in names {
        if name != header::TE {
            headers.remove(name);
        }
    }
    if let Some(te) = headers.get(header::TE) {
        let mut tokens = te.as_bytes().split(|byte| *byte == b',');
        if tokens.any(|token| token.trim_ascii().eq_ignore_ascii_case(b"trailers")) {
            headers.insert(header::TE, TRAILERS);
        } else {
            headers.remove(header::TE);
        }
    }
}

/// Who asks, as the upstream is told.
#[derive(Debug)]
pub(crate) struct Client {
    address: HeaderValue,
    scheme: Scheme,
}

impl Client {
    /// The one at this address.
    pub(crate) fn new(address: IpAddr, scheme: Scheme) -> Self {
        // An address has no byte that a field's value may not have.
        let address =
            HeaderValue::from_maybe_shared(Bytes::from(address.to_canonical().to_string()));
        Self {
            address: address.unwrap_or_else(|_| HeaderValue::from_static("unknown")),
            scheme,
        }
    }
}

/// A request's fields as the filters see them: those of this hop taken off, those about the client put on, and none that a filter owns which is off on
/// the route (`owned_elsewhere`).
pub(crate) fn make_ours(
    headers: &mut HeaderMap,
    websocket: bool,
    client: &Client,
    request_id: &HeaderValue,
    owned_elsewhere: &[HeaderName],
) {
    remove_hop_by_hop(headers, websocket);
    describe_client(headers, client, request_id);
    for name in owned_elsewhere {
        headers.remove(name);
    }
}

/// Puts on what the upstream is to know, and takes off what only Envoys say to each other.
fn describe_client(headers: &mut HeaderMap, client: &Client, request_id: &HeaderValue) {
    append_forwarded_for(headers, &client.address);
    let proto = match client.scheme {
        Scheme::Http => const { HeaderValue::from_static("http") },
        Scheme::Https => const { HeaderValue::from_static("https") },
    };
    headers.insert(X_FORWARDED_PROTO, proto);
    headers.insert(X_REQUEST_ID, request_id.clone());
    if headers.keys().any(is_envoys) {
        let envoys: Vec<_> = headers
            .keys()
            .filter(|name| is_envoys(name))
            .cloned()
            .collect();
        for name in envoys {
            headers.remove(name);
        }
    }
}

fn is_envoys(name: &HeaderName) -> bool {
    name.as_str().starts_with("x-envoy-") || name == X_FORWARDED_CLIENT_CERT
}

/// One field, the client last. Values that came in several fields are joined first, as Envoy does, so that the last entry is ours.
fn append_forwarded_for(headers: &mut HeaderMap, client: &HeaderValue) {
    if !headers.contains_key(X_FORWARDED_FOR) {
        headers.insert(X_FORWARDED_FOR, client.clone());
        return;
    }
    let mut joined = BytesMut::new();
    for value in headers.get_all(X_FORWARDED_FOR) {
        if !value.is_empty() {
            joined.extend_from_slice(value.as_bytes());
            joined.put_u8(b',');
        }
    }
    joined.extend_from_slice(client.as_bytes());
    if let Ok(value) = HeaderValue::from_maybe_shared(joined.freeze()) {
        headers.insert(X_FORWARDED_FOR, value);
    }
}

/// A fresh id, a random UUID. It names the request in logs and answers; nothing rests on its being hard to guess.
pub(crate) fn request_id() -> HeaderValue {
    request_id_of(fastrand::u128(..))
}

/// The one made of these random bits.
pub(crate) fn request_id_of(random: u128) -> HeaderValue {
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    let id = uuid::Builder::from_random_bytes(random.to_le_bytes()).into_uuid();
    id.as_hyphenated().encode_lower(&mut text);
    HeaderValue::from_maybe_shared(Bytes::copy_from_slice(&text))
        .unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        map
    }

    fn list(map: &HeaderMap) -> Vec<(&str, &str)> {
        let mut list: Vec<_> = map
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        list.sort_unstable();
        list
    }

    type List = &'static [(&'static str, &'static str)];

    #[test]
    fn hop_by_hop_fields_are_dropped() {
        let rows: &[(List, bool, List)] = &[
            (
                &[
                    ("accept", "a"),
                    ("connection", "keep-alive"),
                    ("keep-alive", "5"),
                ],
                false,
                &[("accept", "a")],
            ),
            (
                &[
                    ("connection", "x-a, X-B"),
                    ("connection", "x-c"),
                    ("x-a", "1"),
                    ("x-b", "1"),
                    ("x-c", "1"),
                    ("x-d", "1"),
                ],
                false,
                &[("x-d", "1")],
            ),
            (
                &[
                    ("proxy-connection", "x"),
                    ("transfer-encoding", "gzip"),
                    ("upgrade", "h2c"),
                ],
                false,
                &[],
            ),
            (
                &[("te", "trailers"), ("connection", "te")],
                false,
                &[("te", "trailers")],
            ),
            (
                &[("te", "gzip, trailers;q=0.5, trailers")],
                false,
                &[("te", "trailers")],
            ),
            (&[("te", "gzip")], false, &[]),
            (
                &[
                    ("connection", "Upgrade, x-a"),
                    ("upgrade", "WebSocket"),
                    ("x-a", "1"),
                ],
                true,
                &[("connection", "upgrade"), ("upgrade", "websocket")],
            ),
            (&[("connection", ",, ,"), ("x", "1")], false, &[("x", "1")]),
        ];
        for (fields, websocket, expected) in rows {
            let mut headers = map(fields);
            remove_hop_by_hop(&mut headers, *websocket);
            assert_eq!(list(&headers), *expected, "{fields:?}");
        }
    }

    #[test]
    fn only_websocket_is_an_upgrade() {
        let rows: &[(List, bool)] = &[
            (&[("connection", "Upgrade"), ("upgrade", "websocket")], true),
            (
                &[
                    ("connection", "keep-alive, upgrade"),
                    ("upgrade", "WebSocket"),
                ],
                true,
            ),
            (
                &[("connection", "keep-alive"), ("upgrade", "websocket")],
                false,
            ),
            (&[("connection", "upgrade"), ("upgrade", "h2c")], false),
            (
                &[("connection", "upgrade"), ("upgrade", "websocket, h2c")],
                false,
            ),
            (&[("upgrade", "websocket")], false),
        ];
        for (fields, expected) in rows {
            assert_eq!(is_websocket(&map(fields)), *expected, "{fields:?}");
        }
    }

    #[test]
    fn the_client_is_described_by_us_alone() {
        let rows: &[(List, &str, Scheme, List)] = &[
            (
                &[],
                "192.0.2.1",
                Scheme::Http,
                &[
                    ("x-forwarded-for", "192.0.2.1"),
                    ("x-forwarded-proto", "http"),
                    ("x-request-id", "id"),
                ],
            ),
            (
                &[
                    ("x-forwarded-for", "1.1.1.1, 2.2.2.2"),
                    ("x-forwarded-for", "3.3.3.3"),
                    ("x-forwarded-proto", "https"),
                    ("x-request-id", "mine"),
                ],
                "192.0.2.1",
                Scheme::Http,
                &[
                    ("x-forwarded-for", "1.1.1.1, 2.2.2.2,3.3.3.3,192.0.2.1"),
                    ("x-forwarded-proto", "http"),
                    ("x-request-id", "id"),
                ],
            ),
            (
                &[
                    ("x-envoy-internal", "true"),
                    ("x-envoy-retry-on", "5xx"),
                    ("x-forwarded-client-cert", "By=me"),
                    ("x-envoyed", "1"),
                ],
                "::ffff:192.0.2.1",
                Scheme::Https,
                &[
                    ("x-envoyed", "1"),
                    ("x-forwarded-for", "192.0.2.1"),
                    ("x-forwarded-proto", "https"),
                    ("x-request-id", "id"),
                ],
            ),
            (
                &[],
                "2001:db8::1",
                Scheme::Https,
                &[
                    ("x-forwarded-for", "2001:db8::1"),
                    ("x-forwarded-proto", "https"),
                    ("x-request-id", "id"),
                ],
            ),
        ];
        for (fields, client, scheme, expected) in rows {
            let mut headers = map(fields);
            let client = Client::new(client.parse().unwrap(), *scheme);
            describe_client(&mut headers, &client, &HeaderValue::from_static("id"));
            assert_eq!(list(&headers), *expected, "{fields:?}");
        }
    }

    #[test]
    fn ids_are_uuids_and_differ() {
        let (a, b) = (request_id(), request_id());
        assert_ne!(a, b);
        assert_eq!(
            uuid::Uuid::parse_str(a.to_str().unwrap())
                .unwrap()
                .get_version_num(),
            4
        );
    }
}
