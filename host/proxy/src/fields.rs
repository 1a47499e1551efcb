//! Header and trailer maps as filters see them: hyper's own map with the pseudo-headers in front. Nothing is copied on the way in.
//!
//! Invariant: whatever a filter writes is a valid name and value (RFC 9110 §5), so that no filter can split a message.

use std::any::Any;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, StatusCode};
use portcullis_runtime::{Fields, InvalidField};

use crate::written;

/// Up to so many different fields, a field is found by looking at each.
const FEW: usize = 16;

/// The pseudo-headers of a message (RFC 9113 §8.3), or none for trailers.
#[derive(Debug, Clone)]
pub enum Pseudo {
    /// A request.
    Request {
        /// `:method`
        method: Method,
        /// `:scheme`, by the connection and never by what the client says.
        scheme: Scheme,
        /// `:authority`: the HTTP/1 `Host` or the HTTP/2 pseudo-header.
        authority: HeaderValue,
        /// `:path`: the normal form, query included.
        path: PathAndQuery,
    },
    /// A response.
    Response {
        /// `:status`
        status: StatusCode,
    },
    /// Trailers.
    None,
}

/// `:scheme`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Plaintext.
    Http,
    /// TLS.
    Https,
}

impl Scheme {
    /// As it is written.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// One message's headers, or trailers.
#[derive(Debug, Clone)]
pub struct HttpFields {
    /// The pseudo-headers.
    pub pseudo: Pseudo,
    /// All others.
    pub headers: HeaderMap,
}

impl HttpFields {
    /// Trailers.
    pub(crate) const fn trailers(headers: HeaderMap) -> Self {
        Self {
            pseudo: Pseudo::None,
            headers,
        }
    }

    fn pseudo_value(&self, name: &[u8]) -> Option<&[u8]> {
        match (&self.pseudo, name) {
            (Pseudo::Request { method, .. }, b":method") => Some(method.as_str().as_bytes()),
            (Pseudo::Request { scheme, .. }, b":scheme") => Some(scheme.as_str().as_bytes()),
            (Pseudo::Request { authority, .. }, b":authority") => Some(authority.as_bytes()),
            (Pseudo::Request { path, .. }, b":path") => Some(path.as_str().as_bytes()),
            (Pseudo::Response { status }, b":status") => Some(status.as_str().as_bytes()),
            _ => None,
        }
    }

    fn set_pseudo(&mut self, name: &[u8], value: &[u8]) -> Result<(), InvalidField> {
        match (&mut self.pseudo, name) {
            (Pseudo::Request { method, .. }, b":method") => {
                *method = Method::from_bytes(value).map_err(|_| InvalidField)?;
            }
            (Pseudo::Request { scheme, .. }, b":scheme") => {
                *scheme = match value {
                    b"http" => Scheme::Http,
                    b"https" => Scheme::Https,
                    _ => return Err(InvalidField),
                };
            }
            (Pseudo::Request { authority, .. }, b":authority") => *authority = to_value(value)?,
            (Pseudo::Request { path, .. }, b":path") => {
                let new = PathAndQuery::from_maybe_shared(Bytes::copy_from_slice(value))
                    .map_err(|_| InvalidField)?;
                // `http` cuts a fragment off and takes a missing slash: neither is what the filter wrote.
                if new.as_str().as_bytes() != value || !value.starts_with(b"/") {
                    return Err(InvalidField);
                }
                *path = new;
            }
            (Pseudo::Response { status }, b":status") => {
                let new = StatusCode::from_bytes(value).map_err(|_| InvalidField)?;
                // An interim status cannot be the answer to a request (RFC 9110 §15.2).
                if new.is_informational() && new != StatusCode::SWITCHING_PROTOCOLS {
                    return Err(InvalidField);
                }
                *status = new;
            }
            _ => return Err(InvalidField),
        }
        Ok(())
    }
}

impl Fields for HttpFields {
    fn len(&self) -> usize {
        let pseudo = match self.pseudo {
            Pseudo::Request { .. } => 4,
            Pseudo::Response { .. } => 1,
            Pseudo::None => 0,
        };
        pseudo + self.headers.len()
    }

    fn byte_size(&self) -> usize {
        let mut size = 0_usize;
        self.for_each(&mut |name, value| {
            size = size.saturating_add(name.len()).saturating_add(value.len())
        });
        size
    }

    fn get(&self, name: &[u8]) -> Option<&[u8]> {
        if name.first() == Some(&b':') {
            return self.pseudo_value(name);
        }
        // Names are short and few: to compare them all is less than to check, hash and look up one.
        if self.headers.keys_len() <= FEW {
            let mut fields = self.headers.iter();
            let found = fields.find(|(own, _)| own.as_str().as_bytes() == name);
            return found.map(|(_, value)| value.as_bytes());
        }
        let name = std::str::from_utf8(name).ok()?;
        self.headers.get(name).map(HeaderValue::as_bytes)
    }

    fn for_each(&self, visit: &mut dyn FnMut(&[u8], &[u8])) {
        const REQUEST: [&[u8]; 4] = [b":authority", b":path", b":method", b":scheme"];
        const RESPONSE: [&[u8]; 1] = [b":status"];
        let names: &[&[u8]] = match self.pseudo {
            Pseudo::Request { .. } => &REQUEST,
            Pseudo::Response { .. } => &RESPONSE,
            Pseudo::None => &[],
        };
        for name in names {
            visit(name, self.pseudo_value(name).unwrap_or_default());
        }
        for (name, value) in &self.headers {
            visit(name.as_str().as_bytes(), value.as_bytes());
        }
    }

    fn add(&mut self, name: &[u8], value: &[u8]) -> Result<(), InvalidField> {
        if name.first() == Some(&b':') {
            return self.set_pseudo(name, value);
        }
        let (name, value) = written::field(name, value)?;
        self.headers
            .try_append(name, value)
            .map_err(|_| InvalidField)?;
        Ok(())
    }

    fn replace(&mut self, name: &[u8], value: &[u8]) -> Result<(), InvalidField> {
        if name.first() == Some(&b':') {
            return self.set_pseudo(name, value);
        }
        let (name, value) = written::field(name, value)?;
        self.headers
            .try_insert(name, value)
            .map_err(|_| InvalidField)?;
        Ok(())
    }

    fn remove(&mut self, name: &[u8]) {
        // A message without its pseudo-headers is none, so they stay.
        if let Ok(name) = std::str::from_utf8(name) {
            self.headers.remove(name);
        }
    }

    fn clear(&mut self) {
        self.headers.clear();
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

fn to_name(name: &[u8]) -> Result<HeaderName, InvalidField> {
    HeaderName::from_bytes(name).map_err(|_| InvalidField)
}

fn to_value(value: &[u8]) -> Result<HeaderValue, InvalidField> {
    HeaderValue::from_bytes(value).map_err(|_| InvalidField)
}

/// Any map as hyper's: the runtime's own lists (local responses, callouts, added trailers) are copied, names and values checked again.
/// Pseudo-headers are left out; what is not a valid field is left out too, since the runtime has refused it already.
pub(crate) fn to_header_map(fields: &dyn Fields) -> HeaderMap {
    if let Some(own) = fields.as_any().downcast_ref::<HttpFields>() {
        return own.headers.clone();
    }
    let mut map = HeaderMap::with_capacity(fields.len());
    fields.for_each(&mut |name, value| {
        if name.first() == Some(&b':') {
            return;
        }
        if let (Ok(name), Ok(value)) = (to_name(name), to_value(value)) {
            // Past 32,768 fields the map is full: the rest is lost, the message stays whole.
            map.try_append(name, value).ok();
        }
    });
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> HttpFields {
        let mut headers = HeaderMap::new();
        headers.insert("accept", HeaderValue::from_static("*/*"));
        headers.append("x-a", HeaderValue::from_static("1"));
        headers.append("x-a", HeaderValue::from_bytes(b"\xff").unwrap());
        let pseudo = Pseudo::Request {
            method: Method::GET,
            scheme: Scheme::Https,
            authority: HeaderValue::from_static("example.com"),
            path: PathAndQuery::from_static("/a?b"),
        };
        HttpFields { pseudo, headers }
    }

    #[test]
    fn a_filter_reads_pseudo_headers_and_bytes() {
        let fields = request();
        let rows: &[(&[u8], Option<&[u8]>)] = &[
            (b":method", Some(b"GET")),
            (b":scheme", Some(b"https")),
            (b":authority", Some(b"example.com")),
            (b":path", Some(b"/a?b")),
            (b":status", None),
            (b"accept", Some(b"*/*")),
            (b"x-a", Some(b"1")),
            (b"x-b", None),
            (b"\xff", None),
        ];
        for (name, value) in rows {
            assert_eq!(fields.get(name), *value, "{name:?}");
        }
        let mut seen = Vec::new();
        fields.for_each(&mut |name, value| seen.push((name.to_vec(), value.to_vec())));
        assert_eq!(seen.len(), fields.len());
        assert_eq!(seen.last(), Some(&(b"x-a".to_vec(), b"\xff".to_vec())));
        assert_eq!(
            fields.byte_size(),
            seen.iter()
                .map(|(name, value)| name.len() + value.len())
                .sum::<usize>()
        );
    }

    #[test]
    fn a_filter_cannot_write_what_is_not_a_field() {
        let rows: &[(&[u8], &[u8], bool)] = &[
            (b"x", b"y", true),
            (b"X", b"y", true),
            (b"x", b"", true),
            (b"x", b"\xff", true),
            (b"x", b"a\r\nb: c", false),
            (b"x", b"\0", false),
            (b"", b"y", false),
            (b"x y", b"z", false),
            (b":path", b"/new", true),
            (b":path", b"/new#f", false),
            (b":path", b"new", false),
            (b":path", b"/a b", false),
            (b":method", b"PO ST", false),
            (b":method", b"POST", true),
            (b":scheme", b"ftp", false),
            (b":status", b"200", false),
            (b":other", b"x", false),
        ];
        for (name, value, valid) in rows {
            let mut fields = request();
            assert_eq!(
                fields.replace(name, value).is_ok(),
                *valid,
                "replace {name:?} {value:?}"
            );
            assert_eq!(
                fields.add(name, value).is_ok(),
                *valid,
                "add {name:?} {value:?}"
            );
        }
        for (status, valid) in [
            ("200", true),
            ("099", false),
            ("1000", false),
            ("100", false),
            ("x", false),
        ] {
            let mut fields = HttpFields {
                pseudo: Pseudo::Response {
                    status: StatusCode::OK,
                },
                headers: HeaderMap::new(),
            };
            assert_eq!(
                fields.replace(b":status", status.as_bytes()).is_ok(),
                valid,
                "{status}"
            );
        }
    }
}
