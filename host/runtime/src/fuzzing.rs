//! Doors for the fuzz targets in `tests/fuzz` to what has no public name. Compiled with `--cfg fuzzing` alone, and no part of the interface.

use std::rc::Rc;

use crate::{
    exchange::{ConnectionInfo, Exchange, Protocol, RouteInfo, StreamInfo, TlsInfo, TlsVersion},
    fields::FieldList,
    filter_state::Properties,
    pairs, property,
    spec::PluginSpec,
    stream::Open,
};

/// Whatever decodes must encode back to the same bytes.
pub fn pairs_round_trip(bytes: &[u8]) {
    let Ok(pairs) = pairs::decode(bytes) else {
        return;
    };
    let mut fields = FieldList::new();
    for (name, value) in pairs {
        fields.push(name.to_vec(), value.to_vec());
    }
    let mut out = vec![0; pairs::encoded_len(&fields)];
    assert!(
        pairs::encode(&fields, &mut out).is_some(),
        "a map that lies"
    );
    // No bytes at all are an empty map as well.
    assert!(out == bytes || bytes.is_empty(), "{bytes:?} became {out:?}");
}

/// Looks a path up wherever one can be, and sets and finds it again. The first byte says what the exchange is like.
pub fn property_path(bytes: &[u8]) {
    let Some((kind, path)) = bytes.split_first() else {
        return;
    };
    let exchange = exchange(kind & 1 == 1, kind & 2 == 2);
    let open = if kind & 4 == 4 {
        Open::LOG
    } else {
        Open::REQUEST_HEADERS
    };
    let spec = PluginSpec::new("p");
    let found = property::find(path, &spec, Some(&exchange), open);
    if let Ok(value) = &found {
        assert!(value.as_bytes().len() <= 4096, "made of nothing: {path:?}");
    }
    let alone = property::find(path, &spec, None, open);
    assert!(
        alone.is_err() || found.is_ok(),
        "known without an exchange only: {path:?}"
    );
    if let Some(key) = property::key(path) {
        let mut properties = Properties::default();
        if properties.set(key, path, true).is_ok() {
            assert_eq!(properties.get(key).map(AsRef::as_ref), Some(path));
            assert!(
                properties.set(key, b"", false).is_err(),
                "read-only: {path:?}"
            );
        }
    }
}

fn exchange(is_tls: bool, is_answered: bool) -> Exchange {
    let mut headers = FieldList::new();
    for (name, value) in [
        (":method", "GET"),
        (":path", "/a/b?c=d"),
        (":authority", "h"),
        ("x-r", "1"),
        ("x-r", "2"),
    ] {
        headers.push(name, value);
    }
    let address = |port| std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let mut connection = ConnectionInfo::new(7, address(1), address(2));
    connection.tls = is_tls.then(|| TlsInfo::new(TlsVersion::V1_3));
    let route = Rc::new(RouteInfo::default());
    let mut info = StreamInfo::new(Rc::new(connection), route, Protocol::Http2, 9);
    let mut response = FieldList::new();
    response.push(":status", "204");
    response.push("grpc-status", "5");
    if is_answered {
        info.response_code = Some(204);
        info.upstream_address = Some(address(3));
    }
    let mut exchange = Exchange::new(Box::new(headers), info);
    if is_answered {
        exchange.response_headers = Some(Box::new(response));
    }
    exchange
}
