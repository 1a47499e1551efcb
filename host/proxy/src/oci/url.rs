//! Where a request to a registry goes: `https`, or `http` to this machine itself.

use std::fmt;
use std::fmt::Write as _;

use http::Uri;

/// How a registry is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    Https,
    /// Only to loopback addresses.
    Http,
}

/// An absolute address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) scheme: Scheme,
    /// Without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// Begins with `/`.
    pub(super) path_and_query: String,
}

impl Url {
    /// A path on a host (with a port if it is not the scheme's own).
    pub(super) fn new(scheme: Scheme, authority: &str, path: &str) -> Result<Self, String> {
        let name = match scheme {
            Scheme::Https => "https",
            Scheme::Http => "http",
        };
        Self::parse(&format!("{name}://{authority}{path}"))
    }

    /// An absolute URL, as `WWW-Authenticate` and `Location` have it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            let shown: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
            format!("`{shown}` is not a URL that is followed")
        };
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let (scheme, port) = match uri.scheme_str() {
            Some("https") => (Scheme::Https, 443),
            Some("http") => (Scheme::Http, 80),
            _ => return Err(wrong()),
        };
        let authority = uri.authority().ok_or_else(wrong)?;
        if authority.as_str().contains('@') {
            return Err("a URL with credentials in it is not followed".into());
        }
        let host = authority.host().trim_matches(['[', ']']);
        if scheme == Scheme::Http && !is_loopback(host) {
            return Err(format!(
                "`http://{host}` is not followed: TLS is needed to everywhere but this machine"
            ));
        }
        Ok(Self {
            scheme,
            host: host.to_ascii_lowercase(),
            port: authority.port_u16().unwrap_or(port),
            path_and_query: uri
                .path_and_query()
                .map_or("/", |it| it.as_str())
                .to_owned(),
        })
    }

    /// What `Location` says: an absolute URL, or a path of the same server.
    pub(super) fn follow(&self, location: &str) -> Result<Self, String> {
        if !location.starts_with('/') || location.starts_with("//") {
            let next = Self::parse(location)?;
            if self.scheme == Scheme::Https && next.scheme == Scheme::Http {
                return Err("it leads from https to http, which is not followed".into());
            }
            return Ok(next);
        }
        let next: Uri = location
            .parse()
            .map_err(|_| "it leads to no valid path".to_owned())?;
        Ok(Self {
            path_and_query: next
                .path_and_query()
                .map_or("/", |it| it.as_str())
                .to_owned(),
            ..self.clone()
        })
    }

    /// Whether both are the same server.
    pub(super) fn is_same_server(&self, other: &Self) -> bool {
        (self.scheme, &self.host, self.port) == (other.scheme, &other.host, other.port)
    }

    /// With these added to its query.
    #[must_use]
    pub(super) fn with_query(mut self, pairs: &[(&str, &str)]) -> Self {
        self.path_and_query
            .push(match self.path_and_query.contains('?') {
                true => '&',
                false => '?',
            });
        self.path_and_query.push_str(&form(pairs));
        self
    }

    /// As the `Host` header has it.
    pub(super) fn authority(&self) -> String {
        match (self.scheme, self.port) {
            (Scheme::Https, 443) | (Scheme::Http, 80) => self.bracketed(),
            _ => self.host_and_port(),
        }
    }

    /// As a proxy is asked for it.
    pub(super) fn host_and_port(&self) -> String {
        format!("{}:{}", self.bracketed(), self.port)
    }

    fn bracketed(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        }
    }
}

impl fmt::Display for Url {
    /// Without the query, which may hold a signature.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Https => "https",
            Scheme::Http => "http",
        };
        let path = self.path_and_query.split('?').next().unwrap_or_default();
        write!(f, "{scheme}://{}{path}", self.authority())
    }
}

/// `localhost`, or an address of this machine to itself; what a name leads to is looked at again when it is connected to.
pub(super) fn is_loopback(host: &str) -> bool {
    let address = host.parse::<std::net::IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|it| it.is_loopback())
}

/// `application/x-www-form-urlencoded`, as queries and token requests have it.
pub(super) fn form(pairs: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (key, value) in pairs {
        if !text.is_empty() {
            text.push('&');
        }
        text.push_str(key);
        text.push('=');
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    text.push(char::from(byte));
                }
                // Writing to a String cannot fail.
                _ => drop(write!(text, "%{byte:02X}")),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_followed_within_bounds() {
        let here = Url::parse("https://registry.example/v2/a/blobs/x?y=1").unwrap();
        let there = here.follow("https://cdn.example:444/b?sig=s").unwrap();
        assert_eq!(there.to_string(), "https://cdn.example:444/b");
        assert!(!there.is_same_server(&here));
        let path = here.follow("/v2/up?state=1").unwrap();
        assert!(path.is_same_server(&here));
        assert_eq!(
            path.with_query(&[("digest", "sha256:1")]).path_and_query,
            "/v2/up?state=1&digest=sha256%3A1"
        );
        for (location, words) in [
            ("http://registry.example/x", "TLS is needed"),
            ("http://127.0.0.1/x", "from https to http"),
            ("//other.example/x", "not a URL"),
            ("file:///etc/passwd", "not a URL"),
            ("https://me:secret@registry.example/", "with credentials"),
            ("x", "not a URL"),
            ("", "not a URL"),
        ] {
            let reason = here.follow(location).expect_err(location);
            assert!(reason.contains(words), "{location}: {reason}");
            assert!(!reason.contains("secret"), "{reason}");
        }
    }

    #[test]
    fn plain_http_is_for_this_machine() {
        for host in ["127.0.0.1:5000", "localhost", "127.8.8.8", "[::1]:5000"] {
            let url = Url::new(Scheme::Http, host, "/v2/").unwrap();
            assert_eq!(url.authority(), host);
        }
        for host in [
            "10.0.0.1",
            "registry.example",
            "localhost.example",
            "[::2]",
            "0.0.0.0",
        ] {
            assert!(Url::new(Scheme::Http, host, "/v2/").is_err(), "{host}");
        }
        assert!(Url::new(Scheme::Http, "localhost@evil.example", "/").is_err());
    }
}
