//! `routes`: which request goes to which cluster through which filters.
//!
//! The host is chosen first, the most specific one that matches; among its routes the longest prefix wins. There is no falling back from a
//! host to a wider one, and the order in the file does not matter. Both as in Envoy's virtual hosts, so an export behaves the same. How a
//! route is found: `route_table.rs`.

use std::sync::Arc;

use super::cluster::Cluster;
use super::filter::{Filter, FilterInstance};
use super::place::Place;
use super::scalar;

/// One route.
#[derive(Clone, Debug)]
pub struct Route {
    /// Unique among the routes.
    pub name: String,
    /// Which hosts.
    pub host: HostPattern,
    /// Which paths.
    pub prefix: PathPrefix,
    /// Where to.
    pub cluster: Arc<Cluster>,
    /// The filters that run here, in order.
    pub chain: Vec<Arc<FilterInstance>>,
    /// The filters that are off here. Request headers that they own are removed all the same, lest a client set them.
    pub off: Vec<Arc<Filter>>,
    /// The route itself.
    pub place: Place,
}

/// A route's `host`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostPattern {
    /// `api.example.com`; lower case.
    Exact(String),
    /// `*.example.com`, kept as `.example.com`: one or more labels before it.
    Below(String),
    /// No `host`: every host that no other route names.
    Any,
}

impl std::fmt::Display for HostPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Below(suffix) => write!(f, "*{suffix}"),
            Self::Any => f.write_str("*"),
        }
    }
}

/// A route's `prefix`: `/`, or a path without a trailing slash that matches itself and what lies below it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PathPrefix(String);

impl PathPrefix {
    /// As written, without a trailing slash unless it is `/`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a normalised path (without query) is the prefix or lies below it: `/api` has `/api` and `/api/x`, not `/apix`.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        let Some(rest) = path.strip_prefix(self.0.trim_end_matches('/')) else {
            return false;
        };
        rest.is_empty() || rest.starts_with('/')
    }
}

pub(super) fn host(text: &str) -> Result<HostPattern, String> {
    let wrong = |_| {
        format!("`{text}` is not a host such as api.example.com or *.example.com, without a port")
    };
    if let Ok(address) = text.trim_matches(['[', ']']).parse::<std::net::Ipv6Addr>() {
        return Ok(HostPattern::Exact(format!("[{address}]")));
    }
    match text.strip_prefix('*') {
        Some("") => Ok(HostPattern::Any),
        Some(suffix) => {
            let name = suffix
                .strip_prefix('.')
                .ok_or_else(String::new)
                .map_err(wrong)?;
            Ok(HostPattern::Below(format!(
                ".{}",
                scalar::dns_name(name).map_err(wrong)?
            )))
        }
        None => scalar::dns_name(text)
            .map(HostPattern::Exact)
            .map_err(wrong),
    }
}

pub(super) fn prefix(text: &str) -> Result<PathPrefix, String> {
    let refuse = |reason: &str| Err(format!("`{text}` is not a path prefix: {reason}"));
    if !text.starts_with('/') {
        return refuse("it must start with `/`");
    }
    if text.contains(|c: char| !c.is_ascii_graphic() || matches!(c, '?' | '#' | '*' | '\\' | '%')) {
        return refuse("only plain path characters, no query, pattern, escape or backslash");
    }
    let trimmed = text.trim_end_matches('/');
    let segments = trimmed.split('/').skip(1);
    if segments
        .clone()
        .any(|segment| matches!(segment, "" | "." | ".."))
    {
        return refuse("empty and dot segments never reach a route, paths are normalised first");
    }
    Ok(PathPrefix(if trimmed.is_empty() {
        "/".into()
    } else {
        trimmed.into()
    }))
}
