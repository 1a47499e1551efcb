//! Allow-lists: what of the host a plugin may touch.
//!
//! They take effect when a module is linked ([`Runtime::restrict`](crate::Runtime::restrict)), not when a hostcall is made: a plugin without
//! lists runs the very code it would run if there were none.

use std::collections::BTreeSet;

/// What a plugin may use. `None` is everything; an empty list is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Allow {
    /// Hostcalls, WASI functions and callbacks, by the names of Envoy's `capability_restriction_config.allowed_capabilities`: as they are
    /// imported (`proxy_http_call`, `fd_write`) or exported (`proxy_on_request_headers`). A hostcall that is not in it answers
    /// `INTERNAL_FAILURE`, a WASI function 76, as in Envoy; a callback that is not in it is not called.
    pub capabilities: Option<BTreeSet<String>>,
    /// Properties to read and write.
    pub properties: Option<PropertyPaths>,
    /// Foreign functions. One that is not in it answers `NOT_FOUND`, as one that does not exist.
    pub foreign_functions: Option<BTreeSet<String>>,
}

impl Allow {
    /// Whether nothing is restricted.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.capabilities.is_none() && self.properties.is_none() && self.foreign_functions.is_none()
    }

    pub(crate) fn has_capability(&self, name: &str) -> bool {
        self.capabilities
            .as_ref()
            .is_none_or(|names| names.contains(name))
    }
}

/// Property paths, each with everything below it.
///
/// A path is written with dots between its segments (`request.headers.x-user`, `source`), and matches whole segments. What a plugin asks for
/// has NUL between its segments; one segment alone may have dots of its own, as the properties that plugins set for each other often have
/// (`my.state`), and is matched as it is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PropertyPaths(Vec<Box<str>>);

impl PropertyPaths {
    /// These paths and what is below them.
    pub fn new(paths: impl IntoIterator<Item = impl Into<Box<str>>>) -> Self {
        Self(paths.into_iter().map(Into::into).collect())
    }

    /// As they were written.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(AsRef::as_ref)
    }

    /// Whether one of them covers what a plugin asks for.
    pub(crate) fn covers(&self, asked: &[u8]) -> bool {
        let asked = asked.strip_suffix(b"\0").unwrap_or(asked);
        let between = if asked.contains(&0) { 0 } else { b'.' };
        self.iter().any(|path| {
            let mut asked = asked.split(|byte| *byte == between);
            path.split('.')
                .all(|segment| asked.next() == Some(segment.as_bytes()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_cover_whole_segments() {
        let paths =
            PropertyPaths::new(["request.path", "request.headers.x-a", "source", "my.state"]);
        let rows: &[(&[u8], bool)] = &[
            (b"request\0path", true),
            (b"request\0path\0", true),
            (b"request\0path_more", false),
            (b"request\0pat", false),
            (b"request", false),
            (b"request\0headers\0x-a", true),
            (b"request\0headers\0x-a.b", false),
            (b"request\0headers\0x-b", false),
            (b"source", true),
            (b"source\0address", true),
            (b"sources", false),
            (b"my.state", true),
            (b"my.state.more", true),
            (b"my.stat", false),
            (b"my\0state", true),
            (b"", false),
            (b"\0", false),
            (b"\xff\0path", false),
        ];
        for (asked, expected) in rows {
            assert_eq!(paths.covers(asked), *expected, "{}", asked.escape_ascii());
        }
        assert!(!PropertyPaths::default().covers(b"source"));
    }
}
