//! Values that a policy writes as text.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::limits::NAME_BYTES_MAX;

/// `10ms`, `2.5s`, `1m`, `1h`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let units = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let seconds = units.iter().find_map(|(unit, seconds)| {
        let number = decimal(text.strip_suffix(unit)?)?;
        Some(number * seconds)
    });
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| format!("`{text}` is not a duration such as 10ms, 2.5s, 1m or 1h"))
}

/// `64MiB`, `512KiB`, `1GiB` or a number of bytes.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let units = [
        ("KiB", 1_u64 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("", 1),
    ];
    let value = units.iter().find_map(|(unit, factor)| {
        let digits = text.strip_suffix(unit)?;
        digits.parse::<u64>().ok()?.checked_mul(*factor)
    });
    value.ok_or_else(|| format!("`{text}` is not a size such as 512KiB, 64MiB or 1GiB"))
}

/// A non-negative decimal without sign or exponent.
fn decimal(text: &str) -> Option<f64> {
    let plain = text.starts_with(|c: char| c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_digit() || c == '.');
    if plain { text.parse().ok() } else { None }
}

/// `127.0.0.1:8080` or `[::1]:8080`; what we bind is an address, never a name.
pub(super) fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("`{text}` is not an address and a port such as 127.0.0.1:8080 or [::]:8443")
    })
}

/// A name of ours: it becomes a metric label, a file name and an Envoy name.
pub(super) fn name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || c == '.';
    let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    if starts && text.len() <= NAME_BYTES_MAX && text.chars().all(allowed) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "`{text}` is not a name: up to {NAME_BYTES_MAX} letters, digits, `-`, `_` and `.`, a letter or digit first"
    ))
}

/// The name of a cluster. Istio and Higress make theirs of `|` and what is known of the service; their plugins call clusters by these.
pub(super) fn cluster_name(text: &str) -> Result<String, String> {
    match name(&text.replace('|', "-")) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(format!(
            "`{text}` is not a cluster's name: up to {NAME_BYTES_MAX} letters, digits, `-`, `_`, `.` and `|`, a letter or digit first"
        )),
    }
}

/// Where an upstream listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Address or DNS name.
    pub host: EndpointHost,
    /// Port, never 0.
    pub port: u16,
}

/// The host of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EndpointHost {
    /// A fixed address.
    Address(IpAddr),
    /// A DNS name, lower case, to be resolved again and again.
    Name(String),
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.host {
            EndpointHost::Address(address) => SocketAddr::new(*address, self.port).fmt(f),
            EndpointHost::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

/// `10.0.0.7:8080`, `[::1]:8080` or `api.internal:8080`.
pub(super) fn endpoint(text: &str) -> Result<Endpoint, String> {
    let wrong =
        || format!("`{text}` is not a host and a port such as 10.0.0.7:8080 or api.internal:8080");
    if let Ok(address) = text.parse::<SocketAddr>() {
        if address.port() == 0 || address.ip().is_unspecified() {
            return Err(wrong());
        }
        return Ok(Endpoint {
            host: EndpointHost::Address(address.ip()),
            port: address.port(),
        });
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port = port
        .parse()
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(wrong)?;
    // A last label of digits is a mistyped address, not a name (RFC 1123 §2.1).
    let last = host.rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let host = EndpointHost::Name(dns_name(host).map_err(|_| wrong())?);
    Ok(Endpoint { host, port })
}

/// A DNS name, lower-cased.
pub(super) fn dns_name(text: &str) -> Result<String, String> {
    let label = |label: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        (1..=63).contains(&label.len())
            && label.chars().all(allowed)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.len() <= 253 && text.split('.').all(label) {
        return Ok(text.to_ascii_lowercase());
    }
    Err(format!("`{text}` is not a DNS name"))
}
