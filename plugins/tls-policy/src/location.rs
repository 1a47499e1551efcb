//! The https address of a plaintext request: same host, same path, nothing else.
//!
//! The authority is the client's word. Whatever in it could make a browser go to another host than the one that it asked is no
//! authority here: user information, a path, a port that is none, an escape.
//!
//! Sources: RFC 3986 §3.2 (authority), RFC 1123 §2.1 (host names), RFC 9110 §10.2.2 (`Location`).

use std::net::Ipv6Addr;

use crate::limits::{HOST_BYTES_MAX, LOCATION_BYTES_MAX};

/// `https://HOST[:PORT]PATH`, or `None` where authority or path is not plain.
pub(crate) fn https(authority: &[u8], path: &[u8], port: u16) -> Option<Vec<u8>> {
    let host = host(authority)?;
    if path.first() != Some(&b'/') || !path.iter().all(u8::is_ascii_graphic) {
        return None;
    }
    let mut location = format!("https://{}", host.to_ascii_lowercase());
    if port != 443 {
        location.push(':');
        location.push_str(&port.to_string());
    }
    let mut location = location.into_bytes();
    location.extend_from_slice(path);
    (location.len() <= LOCATION_BYTES_MAX).then_some(location)
}

/// The host of an authority, without its port: a name, or an address in brackets.
fn host(authority: &[u8]) -> Option<&str> {
    let authority = std::str::from_utf8(authority).ok()?;
    let end = match authority.strip_prefix('[') {
        Some(rest) => rest.find(']')?.checked_add(2)?,
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let (host, port) = authority.split_at_checked(end)?;
    let port_is_plain = match port.strip_prefix(':') {
        Some(digits) => {
            digits.bytes().all(|byte| byte.is_ascii_digit()) && digits.parse::<u16>().is_ok()
        }
        None => port.is_empty(),
    };
    (port_is_plain && (is_ipv6(host) || is_name(host))).then_some(host)
}

fn is_ipv6(host: &str) -> bool {
    let address = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    address.is_some_and(|address| address.parse::<Ipv6Addr>().is_ok())
}

/// Labels of letters, digits, `-` and `_`; an IPv4 address is one too. A dot at the end makes a name absolute.
fn is_name(host: &str) -> bool {
    let labels = host.strip_suffix('.').unwrap_or(host);
    host.len() <= HOST_BYTES_MAX
        && labels.split('.').all(|label| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
            !label.is_empty() && label.bytes().all(plain)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_names_the_host_that_was_asked() {
        let long = vec![b'a'; LOCATION_BYTES_MAX];
        let long_host = vec![b'a'; HOST_BYTES_MAX + 1];
        let table: &[(&[u8], &[u8], Option<&str>)] = &[
            (b"example.test", b"/", Some("https://example.test/")),
            (
                b"Example.Test:80",
                b"/a?b=c",
                Some("https://example.test/a?b=c"),
            ),
            (b"example.test.", b"/", Some("https://example.test./")),
            (b"127.0.0.1:8080", b"/", Some("https://127.0.0.1/")),
            (b"[2001:DB8::1]:80", b"/", Some("https://[2001:db8::1]/")),
            (
                b"my_host-1",
                b"//evil.test/..",
                Some("https://my_host-1//evil.test/.."),
            ),
            (b"", b"/", None),
            (b".", b"/", None),
            (b".example.test", b"/", None),
            (b"a..b", b"/", None),
            (b"user@evil.test", b"/", None),
            (b"example.test:80@evil.test", b"/", None),
            (b"example.test:", b"/", None),
            (b"example.test:99999", b"/", None),
            (b"example.test:+80", b"/", None),
            (b"example.test:80:80", b"/", None),
            (b"example.test/evil", b"/", None),
            (b"example.test\\evil", b"/", None),
            (b"example.test?x", b"/", None),
            (b"example.test#x", b"/", None),
            (b"ex%61mple.test", b"/", None),
            (b"a,b", b"/", None),
            (b"a b", b"/", None),
            (b"ex\xffample", b"/", None),
            ("bücher.test".as_bytes(), b"/", None),
            (b"[::1", b"/", None),
            (b"[::1]x", b"/", None),
            (b"[::1%25eth0]", b"/", None),
            (b"[evil.test]", b"/", None),
            (b"::1", b"/", None),
            (b"example.test", b"", None),
            (b"example.test", b"*", None),
            (b"example.test", b"@evil.test/", None),
            (b"example.test", b".evil.test/", None),
            (b"example.test", b"http://evil.test/", None),
            (b"example.test", b"/a b", None),
            (b"example.test", b"/\r\nset-cookie: a=b", None),
            (b"example.test", b"/\xc3\xbc", None),
            (b"example.test", &long, None),
            (&long_host, b"/", None),
        ];
        for (authority, path, expected) in table {
            let location = https(authority, path, 443);
            assert_eq!(
                location.as_deref(),
                expected.map(str::as_bytes),
                "{} {}",
                authority.escape_ascii(),
                path.escape_ascii()
            );
        }
        let other = https(b"example.test:8080", b"/", 8443);
        assert_eq!(
            other.as_deref(),
            Some(b"https://example.test:8443/".as_slice())
        );
        let fits = [
            b"/".as_slice(),
            &long[..LOCATION_BYTES_MAX - "https://a/".len()],
        ]
        .concat();
        assert_eq!(
            https(b"a", &fits, 443).map(|location| location.len()),
            Some(LOCATION_BYTES_MAX)
        );
        assert!(https(&long_host[1..], b"/", 443).is_some());
        assert_eq!(https(b"a", &[fits.as_slice(), b"a"].concat(), 443), None);
    }
}
