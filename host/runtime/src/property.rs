//! Properties: facts of an exchange under Envoy's names and encodings. What filters leave for later ones stands in `filter_state.rs`.
//!
//! A path is its segments joined by NUL; one trailing NUL is tolerated. Strings and bytes stand as they are, numbers in 8 bytes
//! little-endian, booleans in one byte, times and durations as i64 ns. Names and absences follow Envoy 1.40 (`attributes.rst`, and what
//! it was seen to answer): `route_name`, `cluster_name`, `node.id` are not found there, so not here.

use std::net::{IpAddr, SocketAddr};

use crate::{
    abi::Status,
    exchange::{Exchange, Protocol, TlsInfo},
    filter_state, local_response,
    spec::PluginSpec,
    stream::Open,
};

/// The property under which a plugin, while it is configured, names the request headers that it alone sets: lower-case, joined by NUL.
pub(crate) const OWNED_REQUEST_HEADERS: &[u8] = b"portcullis.owned_request_headers";

/// A value to hand out: borrowed where it can be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    Bytes(&'a [u8]),
    Number([u8; 8]),
    Bool(bool),
    Owned(Vec<u8>),
}

impl Value<'_> {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Number(bytes) => bytes,
            Self::Bool(true) => &[1],
            Self::Bool(false) => &[0],
            Self::Owned(bytes) => bytes,
        }
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Bytes(text.as_bytes())
    }
}

impl From<u64> for Value<'_> {
    fn from(number: u64) -> Self {
        Self::Number(number.to_le_bytes())
    }
}

impl From<SocketAddr> for Value<'_> {
    fn from(address: SocketAddr) -> Self {
        Self::Owned(address.to_string().into_bytes())
    }
}

/// The key of a property that a plugin set: Envoy looks up the first segment alone, so a key with a NUL in it is never found again.
/// What it set also stands in the filter state, under this prefix.
pub(crate) fn key(path: &[u8]) -> Option<&[u8]> {
    let path = path.strip_suffix(b"\0").unwrap_or(path);
    if filter_state::is_object(path) {
        return Some(path);
    }
    let key = path.strip_prefix(b"filter_state\0wasm.").unwrap_or(path);
    (!key.contains(&0)).then_some(key)
}

/// The value at `path`. `exchange` is absent in a root context. What comes from a map is found while the filter is shown that map.
pub(crate) fn find<'a>(
    path: &[u8],
    spec: &'a PluginSpec,
    exchange: Option<&'a Exchange>,
    open: Open,
) -> Result<Value<'a>, Status> {
    // An empty path, and a bare map: Envoy cannot serialize those.
    if path.is_empty() {
        return Err(Status::SerializationFailure);
    }
    let path = path.strip_suffix(b"\0").unwrap_or(path);
    let mut segments = path.splitn(3, |byte| *byte == 0);
    let (root, leaf, rest) = (
        segments.next().unwrap_or_default(),
        segments.next(),
        segments.next(),
    );
    let found = match (root, leaf, rest) {
        (b"plugin_name", None, _) => Some(Value::from(spec.name.as_str())),
        (b"plugin_root_id", None, _) => Some(Value::from(spec.root_id.as_str())),
        (b"plugin_vm_id", None, _) => Some(Value::from(spec.vm_id.as_str())),
        _ => match exchange {
            Some(exchange) => of_exchange(root, leaf, rest, exchange, open)?,
            None => None,
        },
    };
    found.ok_or(Status::NotFound)
}

fn of_exchange<'a>(
    root: &[u8],
    leaf: Option<&[u8]>,
    rest: Option<&[u8]>,
    exchange: &'a Exchange,
    open: Open,
) -> Result<Option<Value<'a>>, Status> {
    let info = &exchange.info;
    if root == b"connection_id" && leaf.is_none() {
        return Ok(Some(info.connection.id.into()));
    }
    let Some(leaf) = leaf else {
        return match root {
            b"request" | b"response" | b"connection" | b"source" | b"destination" | b"upstream"
            | b"xds" => Err(Status::SerializationFailure),
            _ => Ok(None),
        };
    };
    let source = info.connection.source;
    let destination = info.connection.destination;
    Ok(match (root, rest) {
        (b"request" | b"response", Some(name)) => of_header(root, leaf, name, exchange, open),
        (_, Some(_)) => None,
        (b"request", None) => of_request(leaf, exchange, open)?,
        (b"response", None) => of_response(leaf, exchange, open)?,
        (b"source", None) => of_address(leaf, source),
        (b"destination", None) => of_address(leaf, destination),
        (b"connection", None) => match leaf {
            b"id" => Some(info.connection.id.into()),
            b"mtls" => Some(Value::Bool(
                info.connection.tls.as_ref().is_some_and(|tls| tls.mtls),
            )),
            _ => match &info.connection.tls {
                Some(tls) => of_tls(leaf, tls),
                None => (leaf == b"requested_server_name").then(|| "".into()),
            },
        },
        (b"upstream", None) if leaf == b"transport_failure_reason" => {
            info.upstream_address.map(|_| "".into())
        }
        (b"upstream", None) => info
            .upstream_address
            .and_then(|address| of_address(leaf, address)),
        (b"xds", None) => match leaf {
            b"route_name" => Some(info.route.name.as_str().into()),
            b"cluster_name" => Some(info.route.cluster.as_str().into()),
            b"virtual_host_name" => Some(info.route.virtual_host.as_str().into()),
            _ => None,
        },
        _ => None,
    })
}

/// `request.headers.NAME` and `response.headers.NAME`: repeated values joined by a comma, unlike in the header hostcalls.
fn of_header<'a>(
    root: &[u8],
    leaf: &[u8],
    name: &[u8],
    exchange: &'a Exchange,
    open: Open,
) -> Option<Value<'a>> {
    let (map, opened) = match (root, leaf) {
        (b"request", b"headers") => (Some(&exchange.request_headers), Open::REQUEST_HEADERS),
        (b"request", b"trailers") => (exchange.request_trailers.as_ref(), Open::REQUEST_TRAILERS),
        (b"response", b"headers") => (exchange.response_headers.as_ref(), Open::RESPONSE_HEADERS),
        (b"response", b"trailers") => {
            (exchange.response_trailers.as_ref(), Open::RESPONSE_TRAILERS)
        }
        _ => return None,
    };
    let map = map.filter(|_| open.has(opened.with(Open::LOG)))?;
    let mut name = name.to_ascii_lowercase();
    if opened == Open::REQUEST_HEADERS && name == b"host" {
        name = b":authority".to_vec();
    }
    let first = map.get(&name)?;
    let mut joined: Option<Vec<u8>> = None;
    let mut seen = 0;
    map.for_each(&mut |n, value| {
        if n == name {
            seen += 1;
            if seen > 1 {
                let joined = joined.get_or_insert_with(|| first.to_vec());
                joined.push(b',');
                joined.extend_from_slice(value);
            }
        }
    });
    Some(joined.map_or(Value::Bytes(first), Value::Owned))
}

fn of_request<'a>(
    leaf: &[u8],
    exchange: &'a Exchange,
    open: Open,
) -> Result<Option<Value<'a>>, Status> {
    let headers = &exchange.request_headers;
    let is_fact = matches!(
        leaf,
        b"protocol" | b"time" | b"duration" | b"size" | b"total_size"
    );
    if !is_fact && !open.has(Open::REQUEST_HEADERS.with(Open::LOG)) {
        return Ok(None);
    }
    let header = |name: &[u8]| headers.get(name).map(Value::Bytes);
    let path = || headers.get(b":path");
    Ok(match leaf {
        b"path" => header(b":path"),
        b"url_path" => path()
            .map(|path| Value::Bytes(path.split(|byte| *byte == b'?').next().unwrap_or_default())),
        b"query" => path().and_then(|path| {
            let at = path.iter().position(|byte| *byte == b'?')?;
            Some(Value::Bytes(path.get(at + 1..).unwrap_or_default()))
        }),
        b"host" => header(b":authority"),
        b"method" => header(b":method"),
        b"scheme" => header(b":scheme"),
        b"referer" => header(b"referer"),
        b"useragent" => header(b"user-agent"),
        b"id" => header(b"x-request-id"),
        b"protocol" if exchange.info.protocol == Protocol::Tcp => None,
        b"protocol" => Some(exchange.info.protocol.as_str().into()),
        b"time" => Some(exchange.info.start_unix_ns.into()),
        b"duration" => exchange.info.duration_ns.map(Value::from),
        b"size" => Some(exchange.info.request_size.into()),
        b"total_size" => Some((exchange.info.request_size + headers.byte_size() as u64).into()),
        b"headers" => Some(Value::Owned(serialized(headers.as_ref())?)),
        _ => None,
    })
}

fn of_response<'a>(
    leaf: &[u8],
    exchange: &'a Exchange,
    open: Open,
) -> Result<Option<Value<'a>>, Status> {
    let is_shown = open.has(Open::RESPONSE_HEADERS.with(Open::LOG));
    Ok(match leaf {
        b"code" => exchange
            .info
            .response_code
            .map(|code| u64::from(code).into()),
        b"code_details" => code_details(exchange).map(Value::Bytes),
        b"grpc_status" => grpc_status(exchange).map(Value::from),
        b"flags" => Some(exchange.info.response_flags.into()),
        b"size" => Some(exchange.info.response_size.into()),
        b"total_size" => {
            let headers = exchange
                .response_headers
                .as_ref()
                .map_or(0, |headers| headers.byte_size());
            Some((exchange.info.response_size + headers as u64).into())
        }
        b"headers" => match &exchange.response_headers {
            Some(headers) if is_shown => Some(Value::Owned(serialized(headers.as_ref())?)),
            _ => None,
        },
        _ => None,
    })
}

/// Who answered, and why.
fn code_details(exchange: &Exchange) -> Option<&[u8]> {
    let local = exchange.local_details.as_deref();
    local.or_else(|| {
        exchange
            .response_headers
            .as_ref()
            .map(|_| &b"via_upstream"[..])
    })
}

/// What the answer says, in its trailers or its headers, or what its code stands for.
fn grpc_status(exchange: &Exchange) -> Option<u64> {
    let said = [&exchange.response_trailers, &exchange.response_headers]
        .into_iter()
        .flatten()
        .find_map(|map| {
            std::str::from_utf8(map.get(b"grpc-status")?)
                .ok()?
                .parse()
                .ok()
        });
    said.or_else(|| match exchange.info.response_code? {
        // Without a status of its own an answer is no success.
        200 => Some(2),
        code => Some(local_response::grpc_status(code).into()),
    })
}

fn serialized(map: &dyn crate::fields::Fields) -> Result<Vec<u8>, Status> {
    let mut bytes = vec![0; crate::pairs::encoded_len(map)];
    crate::pairs::encode(map, &mut bytes)
        .map(|()| bytes)
        .ok_or(Status::SerializationFailure)
}

fn of_address<'a>(leaf: &[u8], address: SocketAddr) -> Option<Value<'a>> {
    match leaf {
        // An IPv4 client of a dual-stack listener is an IPv4 client.
        b"address" => Some(SocketAddr::new(plain(address.ip()), address.port()).into()),
        b"port" => Some(u64::from(address.port()).into()),
        _ => None,
    }
}

fn plain(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

fn of_tls<'a>(leaf: &[u8], tls: &'a TlsInfo) -> Option<Value<'a>> {
    let text = match leaf {
        b"tls_version" => return Some(tls.version.as_str().into()),
        // Envoy has subjects on every TLS connection, empty without a certificate; the rest is missing then.
        b"subject_local_certificate" => {
            return Some(text_or_empty(&tls.subject_local_certificate));
        }
        b"subject_peer_certificate" => return Some(text_or_empty(&tls.subject_peer_certificate)),
        b"requested_server_name" => &tls.requested_server_name,
        b"dns_san_peer_certificate" => &tls.dns_san_peer_certificate,
        b"uri_san_peer_certificate" => &tls.uri_san_peer_certificate,
        b"sha256_peer_certificate_digest" => &tls.sha256_peer_certificate_digest,
        b"peer_certificate" => &tls.peer_certificate_pem,
        _ => return None,
    };
    text.as_deref().map(Value::from)
}

fn text_or_empty(text: &Option<String>) -> Value<'_> {
    text.as_deref().unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use bytes::Bytes;

    use super::*;
    use crate::{
        exchange::{ConnectionInfo, Protocol, RouteInfo, StreamInfo, TlsVersion},
        fields::FieldList,
        limits::Limits,
        spec::FailurePolicy,
    };

    fn exchange(tls: bool) -> Exchange {
        let mut headers = FieldList::new();
        for (name, value) in [
            (":method", "GET"),
            (":path", "/a/b?c=d?e"),
            (":authority", "h"),
            ("x-r", "1"),
            ("x-r", "2"),
            ("x-bin", "\u{e9}"),
        ] {
            headers.push(name, value);
        }
        let tls = tls.then(|| TlsInfo {
            version: TlsVersion::V1_3,
            requested_server_name: Some("server.example".into()),
            mtls: true,
            subject_local_certificate: None,
            subject_peer_certificate: Some("O=Acme,CN=edge.example".into()),
            dns_san_peer_certificate: None,
            uri_san_peer_certificate: Some("spiffe://x/y".into()),
            sha256_peer_certificate_digest: Some("ab".repeat(32)),
            peer_certificate_pem: None,
        });
        let connection = ConnectionInfo {
            id: 7,
            source: "[::ffff:127.0.0.1]:39276".parse().unwrap(),
            destination: "[2001:db8::1]:443".parse().unwrap(),
            tls,
            state: Default::default(),
        };
        let info = StreamInfo {
            connection: Rc::new(connection),
            route: Rc::new(RouteInfo {
                name: "all".into(),
                cluster: "c".into(),
                virtual_host: "v".into(),
            }),
            protocol: Protocol::Http2,
            start_unix_ns: 9,
            request_size: 0,
            response_size: 0,
            duration_ns: None,
            response_code: Some(204),
            response_flags: 0,
            upstream_address: None,
        };
        Exchange::new(Box::new(headers), info)
    }

    fn spec() -> PluginSpec {
        PluginSpec {
            name: "p".into(),
            root_id: "r".into(),
            vm_id: String::new(),
            vm_configuration: Bytes::new(),
            configuration: Bytes::new(),
            isolation: crate::spec::Isolation::Plugin,
            failure_policy: FailurePolicy::Closed,
            limits: Limits::default(),
            clusters: Vec::new(),
            allow_on_headers_stop_iteration: None,
        }
    }

    #[test]
    fn paths_and_encodings_as_in_envoy() {
        let (spec, secure, plain) = (spec(), exchange(true), exchange(false));
        #[track_caller]
        fn check(
            spec: &PluginSpec,
            exchange: &Exchange,
            path: &str,
            expected: Result<&[u8], Status>,
        ) {
            let found = find(
                path.replace('.', "\0").as_bytes(),
                spec,
                Some(exchange),
                Open::LOG,
            );
            assert_eq!(
                found.as_ref().map(Value::as_bytes).map_err(|s| *s),
                expected,
                "{path}"
            );
        }
        let u64s: [[u8; 8]; 5] = [7, 204, 443, 39276, 9].map(u64::to_le_bytes);
        let not_found = Err(Status::NotFound);
        for (path, expected) in [
            ("plugin_name", Ok(&b"p"[..])),
            ("plugin_root_id", Ok(b"r")),
            ("plugin_vm_id", Ok(b"")),
            ("plugin_name.x", not_found),
            ("request.path", Ok(b"/a/b?c=d?e")),
            ("request.path.", Ok(b"/a/b?c=d?e")),
            ("request.url_path", Ok(b"/a/b")),
            ("request.query", Ok(b"c=d?e")),
            ("request.host", Ok(b"h")),
            ("request.scheme", not_found),
            ("request.protocol", Ok(b"HTTP/2")),
            ("request.time", Ok(&u64s[4])),
            ("request.duration", not_found),
            ("request.size", Ok(&[0; 8])),
            ("request.headers.x-r", Ok(b"1,2")),
            ("request.headers.X-R", Ok(b"1,2")),
            ("request.headers.x-bin", Ok("\u{e9}".as_bytes())),
            ("request.headers.none", not_found),
            ("request", Err(Status::SerializationFailure)),
            ("", Err(Status::SerializationFailure)),
            ("response.code", Ok(&u64s[1])),
            ("response.headers.a", not_found),
            ("source.address", Ok(b"127.0.0.1:39276")),
            ("source.port", Ok(&u64s[3])),
            ("destination.address", Ok(b"[2001:db8::1]:443")),
            ("destination.port", Ok(&u64s[2])),
            ("connection.id", Ok(&u64s[0])),
            ("connection_id", Ok(&u64s[0])),
            ("connection.mtls", Ok(&[1])),
            ("connection.tls_version", Ok(b"TLSv1.3")),
            ("connection.requested_server_name", Ok(b"server.example")),
            (
                "connection.subject_peer_certificate",
                Ok(b"O=Acme,CN=edge.example"),
            ),
            ("connection.uri_san_peer_certificate", Ok(b"spiffe://x/y")),
            ("connection.dns_san_peer_certificate", not_found),
            ("connection.cipher", not_found),
            ("xds.route_name", Ok(b"all")),
            ("xds.cluster_name", Ok(b"c")),
            ("xds.virtual_host_name", Ok(b"v")),
            ("route_name", not_found),
            ("cluster_name", not_found),
            ("upstream.address", not_found),
            ("a.b.c.d", not_found),
        ] {
            check(&spec, &secure, path, expected);
        }
        check(&spec, &plain, "connection.tls_version", not_found);
        check(&spec, &plain, "connection.mtls", Ok(&[0]));
        assert_eq!(
            find(b"request.path", &spec, Some(&plain), Open::LOG),
            not_found.map(Value::Bytes),
            "a dotted single string"
        );
        assert_eq!(
            find(b"request\0path", &spec, None, Open::LOG),
            not_found.map(Value::Bytes),
            "a root context"
        );
        let pairs = find(b"request\0headers", &spec, Some(&plain), Open::LOG).unwrap();
        assert_eq!(
            crate::pairs::decode(pairs.as_bytes()).unwrap().len(),
            plain.request_headers.len()
        );
    }
}
