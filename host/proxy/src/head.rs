//! A request's head as it came, as the filters are to see it: one method, one authority, one path in normal form. What cannot be read in
//! one way only is refused.

use std::borrow::Cow;
use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, StatusCode, Version};

use crate::fields::{HttpFields, Pseudo, Scheme};
use crate::limits::REQUEST_HEADERS_MAX;
use crate::local::Problem;
use crate::path;

/// The request as filters see it, or why it is refused. `scheme` and `source` are the connection's.
pub(crate) fn read_head(
    parts: Parts,
    scheme: Scheme,
    source: SocketAddr,
) -> Result<HttpFields, Problem> {
    let Parts {
        method,
        uri,
        version,
        mut headers,
        ..
    } = parts;
    let bad = |title| Problem::new(StatusCode::BAD_REQUEST, title);
    if method == Method::CONNECT {
        return Err(Problem::new(
            StatusCode::NOT_IMPLEMENTED,
            "CONNECT is not served",
        ));
    }
    // HTTP/1's parser counts them itself.
    if headers.len() > REQUEST_HEADERS_MAX {
        return Err(Problem::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "too many header fields",
        ));
    }
    let host = headers.remove(header::HOST);
    let authority = match (uri.authority(), host, version) {
        (_, None, Version::HTTP_11) => return Err(bad("host is missing")),
        (Some(authority), host, _) => {
            // RFC 9112 §3.2.2: the absolute form wins. RFC 9113 §8.3.1: in HTTP/2 the two must not differ.
            let differs = |host: HeaderValue| {
                !host
                    .as_bytes()
                    .eq_ignore_ascii_case(authority.as_str().as_bytes())
            };
            if version == Version::HTTP_2 && host.is_some_and(differs) {
                return Err(bad("host and authority differ"));
            }
            HeaderValue::from_str(authority.as_str()).map_err(|_| bad("invalid host"))?
        }
        (None, Some(host), _) => host,
        (None, None, _) => return Err(bad("host is missing")),
    };
    if !is_authority(authority.as_bytes()) {
        return Err(bad("invalid host"));
    }
    let target = uri.path_and_query().ok_or(bad("invalid path"))?;
    let path = match path::normalise(target.as_str()) {
        Ok(Cow::Borrowed(_)) => target.clone(),
        Ok(Cow::Owned(path)) => {
            PathAndQuery::from_maybe_shared(Bytes::from(path)).map_err(|_| bad("invalid path"))?
        }
        Err(fault) => {
            tracing::debug!(%source, %fault, "path refused");
            return Err(bad(fault.title()));
        }
    };
    if let Some(expect) = headers.remove(header::EXPECT) {
        // hyper says 100 to the client as soon as the body is asked for; the upstream is not asked.
        if !expect.as_bytes().eq_ignore_ascii_case(b"100-continue") {
            return Err(Problem::new(
                StatusCode::EXPECTATION_FAILED,
                "unknown expectation",
            ));
        }
    }
    Ok(HttpFields {
        pseudo: Pseudo::Request {
            method,
            scheme,
            authority,
            path,
        },
        headers,
    })
}

/// Whether `text` is a host, a port perhaps after it: never userinfo, which some servers would take for the host.
fn is_authority(text: &[u8]) -> bool {
    !text.is_empty()
        && text.iter().all(|byte| {
            byte.is_ascii_alphanumeric()
                || matches!(byte, b'-' | b'.' | b'_' | b'~' | b':' | b'[' | b']')
        })
}

/// The host of an authority in lower case, without a port.
pub(crate) fn host_of(authority: &HeaderValue) -> Cow<'_, str> {
    let text = authority.to_str().unwrap_or_default();
    let end = match text.strip_prefix('[') {
        Some(rest) => rest
            .find(']')
            .map_or(text.len(), |end| end.saturating_add(2)),
        None => text.find(':').unwrap_or(text.len()),
    };
    let host = text.get(..end).unwrap_or(text);
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_compared_without_case_and_port() {
        let rows = [
            ("example.com", "example.com"),
            ("Example.COM:8443", "example.com"),
            ("[::1]", "[::1]"),
            ("[2001:DB8::1]:80", "[2001:db8::1]"),
            ("[::1", "[::1"),
            (":80", ""),
        ];
        for (authority, host) in rows {
            assert_eq!(
                host_of(&HeaderValue::from_static(authority)),
                host,
                "{authority}"
            );
        }
    }

    #[test]
    fn an_authority_is_a_host_and_a_port() {
        let rows: &[(&[u8], bool)] = &[
            (b"example.com", true),
            (b"example.com:80", true),
            (b"[::1]:80", true),
            (b"a_b~c.example", true),
            (b"", false),
            (b"user@example.com", false),
            (b"a b", false),
            (b"a/b", false),
            (b"a,b", false),
            (b"a%2fb", false),
            (b"\xff", false),
        ];
        for (text, expected) in rows {
            assert_eq!(is_authority(text), *expected, "{text:?}");
        }
    }
}
