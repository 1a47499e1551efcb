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
const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
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
    if headers.contains_key(header::CONNECTION) {
        let named = headers.get_all(header::CONNECTION).iter();
        let named = named.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        let named: Vec<_> = named
            .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
            .collect();
        for name in named {
            if name != header::TE {
                headers.remove(name);
            }
        }
        headers.remove(header::CONNECTION);
    }
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
    headers.remove(header::TRANSFER_ENCODING);
    headers.remove(header::UPGRADE);
    if let Some(te) = headers.get(header::TE) {
        let mut tokens = te.as_bytes().split(|byte| *byte == b',');
        if tokens.any(|token| token.trim_ascii().eq_ignore_ascii_case(b"trailers")) {
            headers.insert(header::TE, TRAILERS);
        } else {
            headers.remove(header::TE);
        }
    }
    if websocket {
        headers.insert(header::CONNECTION, UPGRADE);
        headers.insert(header::UPGRADE, WEBSOCKET);
    }
}

/// A request's fields as the filters see them: those of this hop taken off, those about the client put on, and none that a filter owns which is off on
/// the route (`owned_elsewhere`).
pub(crate) fn make_ours(
    headers: &mut HeaderMap,
    websocket: bool,
    (client, scheme): (IpAddr, Scheme),
    request_id: &HeaderValue,
    owned_elsewhere: &[HeaderName],
) {
    remove_hop_by_hop(headers, websocket);
    describe_client(headers, client, scheme, request_id);
    for name in owned_elsewhere {
        headers.remove(name);
    }
}

/// Puts on what the upstream is to know, and takes off what only Envoys say to each other.
fn describe_client(
    headers: &mut HeaderMap,
    client: IpAddr,
    scheme: Scheme,
    request_id: &HeaderValue,
) {
    append_forwarded_for(headers, client);
    let proto = match scheme {
        Scheme::Http => const { HeaderValue::from_static("http") },
        Scheme::Https => const { HeaderValue::from_static("https") },
    };
    headers.insert(X_FORWARDED_PROTO, proto);
    headers.insert(X_REQUEST_ID, request_id.clone());
    headers.remove(X_FORWARDED_CLIENT_CERT);
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
    name.as_str().starts_with("x-envoy-")
}

/// One field, the client last. Values that came in several fields are joined first, as Envoy does, so that the last entry is ours.
fn append_forwarded_for(headers: &mut HeaderMap, client: IpAddr) {
    let client = client.to_canonical();
    let mut joined = BytesMut::new();
    for value in headers.get_all(X_FORWARDED_FOR) {
        if !joined.is_empty() {
            joined.put_u8(b',');
        }
        joined.extend_from_slice(value.as_bytes());
    }
    if !joined.is_empty() {
        joined.put_u8(b',');
    }
    joined.extend_from_slice(client.to_string().as_bytes());
    if let Ok(value) = HeaderValue::from_maybe_shared(joined.freeze()) {
        headers.insert(X_FORWARDED_FOR, value);
    }
}

/// A fresh id, a random UUID. It names the request in logs and answers; nothing rests on its being hard to guess.
pub(crate) fn request_id() -> HeaderValue {
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    let id = uuid::Builder::from_random_bytes(fastrand::u128(..).to_ne_bytes()).into_uuid();
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
            describe_client(
                &mut headers,
                client.parse().unwrap(),
                *scheme,
                &HeaderValue::from_static("id"),
            );
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
