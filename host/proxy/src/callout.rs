//! Plugins' HTTP calls to named clusters: one request, the whole answer, in bounded time and size.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use portcullis_runtime::{FieldList, Fields as _, HttpCall, HttpCallResponse};

use crate::body::RequestBody;
use crate::limits::{CALLOUT_BODY_BYTES_MAX, CALLOUT_TIMEOUT_MAX};
use crate::policy::UpstreamProtocol;
use crate::upstream::{Upstream, UpstreamFault};

/// Makes the call. As in Envoy: no connection, and one that breaks before the answer's headers, is a 503; no answer in time a 504; an
/// answer that breaks off, or is too large, a reset.
pub(crate) async fn call(upstream: &Rc<Upstream>, call: HttpCall) -> HttpCallResponse {
    let timeout = call.timeout.min(CALLOUT_TIMEOUT_MAX);
    let Some(request) = request_of(upstream, call) else {
        return HttpCallResponse::Reset;
    };
    let answered = tokio::time::timeout(timeout, async {
        let (response, lease) = upstream.send(request, None).await?;
        let answer = read(response).await;
        if answer.is_some() {
            lease.give_back();
        }
        Ok(answer)
    });
    match answered.await {
        Ok(Ok(Some(answer))) => answer,
        Ok(Ok(None)) => HttpCallResponse::Reset,
        Ok(Err(UpstreamFault::NoAddress | UpstreamFault::Connect)) => {
            unavailable("no healthy upstream")
        }
        Ok(Err(_)) => unavailable(
            "upstream connect error or disconnect/reset before headers. reset reason: connection termination",
        ),
        Err(_) => HttpCallResponse::Timeout,
    }
}

fn request_of(upstream: &Upstream, call: HttpCall) -> Option<Request<RequestBody>> {
    let HttpCall {
        headers: fields,
        body,
        ..
    } = call;
    let method = Method::from_bytes(fields.get(b":method")?).ok()?;
    let path = PathAndQuery::try_from(fields.get(b":path")?).ok()?;
    let authority = fields.get(b":authority")?.to_vec();
    let mut headers = HeaderMap::with_capacity(fields.len());
    for (name, value) in &fields {
        if name.starts_with(b":") {
            continue;
        }
        let name = HeaderName::from_bytes(name).ok()?;
        // The message is framed here.
        if name != header::CONTENT_LENGTH
            && name != header::TRANSFER_ENCODING
            && name != header::CONNECTION
            && name != header::HOST
        {
            headers
                .try_append(name, HeaderValue::from_bytes(value).ok()?)
                .ok()?;
        }
    }
    let mut request = Request::new(RequestBody::Whole(Some(body)));
    *request.method_mut() = method;
    match upstream.cluster.policy.protocol {
        UpstreamProtocol::Http1 => {
            *request.uri_mut() = Uri::from(path);
            headers.insert(header::HOST, HeaderValue::from_bytes(&authority).ok()?);
        }
        UpstreamProtocol::Http2 => {
            *request.version_mut() = Version::HTTP_2;
            let scheme = if upstream.cluster.tls.is_some() {
                "https"
            } else {
                "http"
            };
            *request.uri_mut() = Uri::builder()
                .scheme(scheme)
                .authority(authority)
                .path_and_query(path)
                .build()
                .ok()?;
        }
    }
    *request.headers_mut() = headers;
    Some(request)
}

/// The whole answer; `None` where it breaks off or is too large.
async fn read(response: Response<Incoming>) -> Option<HttpCallResponse> {
    let (parts, mut incoming) = response.into_parts();
    let mut headers = FieldList::new();
    headers.push(
        ":status",
        Bytes::copy_from_slice(parts.status.as_str().as_bytes()),
    );
    push_all(&mut headers, &parts.headers);
    let mut body = BytesMut::new();
    let mut trailers = FieldList::new();
    while let Some(frame) = incoming.frame().await {
        match frame.ok()?.into_data() {
            Ok(data) => {
                if body.len().saturating_add(data.len()) > CALLOUT_BODY_BYTES_MAX {
                    return None;
                }
                body.extend_from_slice(&data);
            }
            Err(frame) => push_all(&mut trailers, &frame.into_trailers().ok()?),
        }
    }
    let body = body.freeze();
    Some(HttpCallResponse::Answer {
        headers,
        body,
        trailers,
    })
}

fn push_all(list: &mut FieldList, map: &HeaderMap) {
    for (name, value) in map {
        list.push(
            Bytes::copy_from_slice(name.as_str().as_bytes()),
            Bytes::copy_from_slice(value.as_bytes()),
        );
    }
}

/// What Envoy gives a plugin where there is no answer.
fn unavailable(body: &'static str) -> HttpCallResponse {
    let mut headers = FieldList::new();
    headers.push(
        ":status",
        StatusCode::SERVICE_UNAVAILABLE.as_str().to_owned(),
    );
    headers.push("content-length", body.len().to_string());
    headers.push("content-type", "text/plain");
    let body = Bytes::from_static(body.as_bytes());
    let trailers = FieldList::new();
    HttpCallResponse::Answer {
        headers,
        body,
        trailers,
    }
}
