//! Between `http`'s messages and the runtime's own lists. Names and values are copied; a proxy that wants to save that implements
//! [`Fields`] for its own maps.

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header, request, response,
};
use portcullis_runtime::{FieldList, Fields, InvalidField};

/// A request's headers, pseudo-headers first. `is_tls` alone says what the scheme is: a client can write what it likes.
pub(super) fn of_request(parts: &request::Parts, is_tls: bool) -> FieldList {
    let host = parts.headers.get(header::HOST).map(HeaderValue::as_bytes);
    let authority = match parts.uri.authority() {
        Some(authority) => authority.as_str().as_bytes(),
        None => host.unwrap_or_default(),
    };
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut list = FieldList::new();
    list.push(":authority", Bytes::copy_from_slice(authority));
    list.push(":path", path.to_owned());
    list.push(":method", parts.method.as_str().to_owned());
    list.push(":scheme", if is_tls { "https" } else { "http" });
    extend(&mut list, &parts.headers);
    list
}

/// A response's headers, `:status` first.
pub(super) fn of_response(parts: &response::Parts) -> FieldList {
    let mut list = FieldList::new();
    list.push(":status", parts.status.as_str().to_owned());
    extend(&mut list, &parts.headers);
    list
}

/// Trailers.
pub(super) fn of_trailers(trailers: &HeaderMap) -> FieldList {
    let mut list = FieldList::new();
    extend(&mut list, trailers);
    list
}

/// `host` is `:authority` to a filter.
fn extend(list: &mut FieldList, headers: &HeaderMap) {
    for (name, value) in headers {
        if name != header::HOST {
            list.push(
                name.as_str().to_owned(),
                Bytes::copy_from_slice(value.as_bytes()),
            );
        }
    }
}

/// Puts a request's head as the filters left it into `parts`; version and extensions stay.
pub(super) fn write_request(
    parts: &mut request::Parts,
    fields: &dyn Fields,
) -> Result<(), InvalidField> {
    let pseudo = |name: &[u8]| fields.get(name).unwrap_or_default();
    let (method, path) = (pseudo(b":method"), pseudo(b":path"));
    let authority = HeaderValue::from_bytes(pseudo(b":authority")).map_err(|_| InvalidField)?;
    parts.method = Method::from_bytes(method).map_err(|_| InvalidField)?;
    let mut uri = Uri::builder().path_and_query(path);
    if let Some(scheme) = parts.uri.scheme().cloned() {
        uri = uri.scheme(scheme).authority(authority.as_bytes());
    }
    parts.uri = uri.build().map_err(|_| InvalidField)?;
    parts.headers = headers_of(fields);
    if parts.version < Version::HTTP_2 && !authority.is_empty() {
        parts.headers.insert(header::HOST, authority);
    }
    Ok(())
}

/// Puts a response's head as the filters left it into `parts`; version and extensions stay.
pub(super) fn write_response(
    parts: &mut response::Parts,
    fields: &dyn Fields,
) -> Result<(), InvalidField> {
    let status = fields.get(b":status").ok_or(InvalidField)?;
    parts.status = StatusCode::from_bytes(status).map_err(|_| InvalidField)?;
    parts.headers = headers_of(fields);
    Ok(())
}

/// All but the pseudo-headers. The runtime has checked what filters wrote; what `http` takes all the same for no field is left out.
pub(super) fn headers_of(fields: &dyn Fields) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(fields.len());
    fields.for_each(&mut |name, value| {
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
        {
            // Past 32,768 fields the map is full: the rest is lost, the message stays whole.
            headers.try_append(name, value).ok();
        }
    });
    headers
}
