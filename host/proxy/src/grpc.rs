//! Plugins' gRPC calls and streams to HTTP/2 clusters: framing, metadata, and the one status that every end comes to.
//!
//! Sources: the gRPC project's `PROTOCOL-HTTP2.md` and `http-grpc-status-mapping.md`, read as Envoy 1.40 reads them: a status that is none
//! is the highest number there is, no answer in time is `INTERNAL`, and no connection looks like an answer of trailers only. Messages
//! are the upstream's own; what Envoy adds to them in braces is its own diary.

use std::cell::Cell;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use portcullis_runtime::{CalloutError, FieldList, GrpcCall, GrpcEvent, GrpcStatus, limits};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use crate::body::RequestBody;
use crate::limits::{CALLOUT_TIMEOUT_MAX, GRPC_QUEUED_BYTES_MAX};
use crate::policy::UpstreamProtocol;
use crate::upstream::{Upstream, UpstreamFault};

/// Status codes of gRPC.
mod code {
    pub(super) const UNKNOWN: u32 = 2;
    pub(super) const PERMISSION_DENIED: u32 = 7;
    pub(super) const RESOURCE_EXHAUSTED: u32 = 8;
    pub(super) const UNIMPLEMENTED: u32 = 12;
    pub(super) const INTERNAL: u32 = 13;
    pub(super) const UNAVAILABLE: u32 = 14;
    pub(super) const UNAUTHENTICATED: u32 = 16;
    /// The last one there is.
    pub(super) const MAX: u32 = UNAUTHENTICATED;
    /// What came in the place of one.
    pub(super) const INVALID: u32 = u32::MAX;
}

/// The length-prefix of a message: a flag and four bytes.
const PREFIX_BYTES: usize = 5;

/// What both halves of a conversation know.
struct Flow {
    /// Bytes handed over by the plugin and not yet taken by the connection.
    queued: Cell<usize>,
    /// When a byte last went in or out.
    active: Cell<Instant>,
}

/// A plugin's side of a conversation.
pub(crate) struct Outgoing {
    frames: Option<UnboundedSender<Bytes>>,
    flow: Rc<Flow>,
}

/// What goes to the upstream, message by message.
pub(crate) struct GrpcBody {
    frames: UnboundedReceiver<Bytes>,
    flow: Rc<Flow>,
}

/// The two ends of what a plugin sends.
pub(crate) fn channel() -> (Outgoing, GrpcBody) {
    let (sender, frames) = unbounded_channel();
    let flow = Rc::new(Flow {
        queued: Cell::new(0),
        active: Cell::new(Instant::now()),
    });
    let outgoing = Outgoing {
        frames: Some(sender),
        flow: Rc::clone(&flow),
    };
    (outgoing, GrpcBody { frames, flow })
}

impl Outgoing {
    /// Frames a message and queues it.
    ///
    /// # Errors
    ///
    /// The upstream takes what is queued too slowly, or nothing at all any more.
    pub(crate) fn send(
        &mut self,
        message: Option<Bytes>,
        is_last: bool,
    ) -> Result<(), CalloutError> {
        if let Some(message) = message {
            let frame = framed(&message).ok_or(CalloutError::Overloaded)?;
            let queued = self.flow.queued.get().saturating_add(frame.len());
            if queued > GRPC_QUEUED_BYTES_MAX {
                return Err(CalloutError::Overloaded);
            }
            let frames = self.frames.as_ref().ok_or(CalloutError::Overloaded)?;
            // Fails only where the upstream has ended the stream, of which the plugin is about to be told.
            frames.send(frame).ok();
            self.flow.queued.set(queued);
        }
        if is_last {
            self.frames = None;
        }
        Ok(())
    }
}

fn framed(message: &Bytes) -> Option<Bytes> {
    let mut frame = BytesMut::with_capacity(message.len().saturating_add(PREFIX_BYTES));
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).ok()?);
    frame.put_slice(message);
    Some(frame.freeze())
}

impl GrpcBody {
    /// The next message for the wire.
    pub(crate) fn poll_message(&mut self, context: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        let Some(frame) = ready!(self.frames.poll_recv(context)) else {
            return Poll::Ready(None);
        };
        let flow = &self.flow;
        flow.queued
            .set(flow.queued.get().saturating_sub(frame.len()));
        flow.active.set(Instant::now());
        Poll::Ready(Some(Frame::data(frame)))
    }

    /// Whether all has been sent.
    pub(crate) fn is_over(&self) -> bool {
        self.frames.is_closed() && self.frames.is_empty()
    }
}

/// Carries a call or a stream through to its end, and tells of all that happens on the way.
pub(crate) async fn converse(
    upstream: &Rc<Upstream>,
    call: GrpcCall,
    body: GrpcBody,
    mut tell: impl FnMut(GrpcEvent),
) {
    let timeout = call.timeout;
    let is_call = call.message.is_some();
    let flow = Rc::clone(&body.flow);
    let idle_timeout = upstream.cluster.policy.idle_timeout;
    let bound = async {
        if is_call {
            let timeout = timeout.filter(|timeout| !timeout.is_zero());
            tokio::time::sleep(timeout.unwrap_or(CALLOUT_TIMEOUT_MAX)).await;
            status(code::INTERNAL, "response_timeout")
        } else {
            while let Some(left) = idle_timeout.checked_sub(flow.active.get().elapsed()) {
                tokio::time::sleep(left.max(Duration::from_millis(1))).await;
            }
            status(code::UNAVAILABLE, "stream stood still")
        }
    };
    let ended = tokio::select! {
        ended = exchange(upstream, &call, body, Rc::clone(&flow), &mut tell) => ended,
        ended = bound => ended,
    };
    tell(GrpcEvent::Close(ended));
}

async fn exchange(
    upstream: &Rc<Upstream>,
    call: &GrpcCall,
    body: GrpcBody,
    flow: Rc<Flow>,
    tell: &mut impl FnMut(GrpcEvent),
) -> GrpcStatus {
    if upstream.cluster.policy.protocol != UpstreamProtocol::Http2 {
        return status(code::UNAVAILABLE, "the cluster does not speak HTTP/2");
    }
    let Some(request) = request_of(upstream, call, body) else {
        return status(code::INTERNAL, "not a request that HTTP can carry");
    };
    // The seat on the connection is held until the end.
    let (response, _lease) = match upstream.send(request, None).await {
        Ok(answer) => answer,
        Err(fault) => return unanswered(fault, tell),
    };
    flow.active.set(Instant::now());
    read(response, &flow, tell).await
}

fn request_of(
    upstream: &Upstream,
    call: &GrpcCall,
    body: GrpcBody,
) -> Option<Request<RequestBody>> {
    let mut headers = HeaderMap::with_capacity(call.metadata.iter().len());
    for (name, value) in &call.metadata {
        let name = HeaderName::from_bytes(name).ok()?;
        if !is_framing(&name) {
            headers
                .try_append(name, HeaderValue::from_bytes(value).ok()?)
                .ok()?;
        }
    }
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    if let Some(timeout) = call.timeout {
        let value = HeaderValue::try_from(format!("{}m", timeout.as_millis())).ok()?;
        headers.insert("grpc-timeout", value);
    }
    let scheme = if upstream.cluster.tls.is_some() {
        "https"
    } else {
        "http"
    };
    let mut request = Request::new(RequestBody::Grpc(body));
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = Uri::builder()
        .scheme(scheme)
        .authority(call.authority.as_str())
        .path_and_query(PathAndQuery::try_from(call.path.as_str()).ok()?)
        .build()
        .ok()?;
    *request.headers_mut() = headers;
    Some(request)
}

/// Headers of the message itself, which are made here, and those that HTTP/2 forbids (RFC 9113 §8.2.2).
fn is_framing(name: &HeaderName) -> bool {
    const OTHERS: [&str; 3] = ["grpc-timeout", "keep-alive", "proxy-connection"];
    [
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::CONTENT_TYPE,
        header::HOST,
        header::TE,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ]
    .contains(name)
        || OTHERS.contains(&name.as_str())
}

/// Reads an answer to its end.
async fn read(
    response: Response<Incoming>,
    flow: &Flow,
    tell: &mut impl FnMut(GrpcEvent),
) -> GrpcStatus {
    let (head, mut incoming) = response.into_parts();
    if incoming.is_end_stream() {
        // Trailers only: the head is both.
        tell(GrpcEvent::InitialMetadata(FieldList::new()));
        if head.status != StatusCode::OK && !head.headers.contains_key(GRPC_STATUS) {
            tell(GrpcEvent::TrailingMetadata(FieldList::new()));
            return status(of_http(head.status), "");
        }
        tell(GrpcEvent::TrailingMetadata(fields(
            Some(head.status),
            &head.headers,
        )));
        return of_trailers(&head.headers);
    }
    tell(GrpcEvent::InitialMetadata(fields(
        Some(head.status),
        &head.headers,
    )));
    let ended = if head.status == StatusCode::OK {
        messages(&mut incoming, flow, tell).await
    } else {
        Err(status(of_http(head.status), ""))
    };
    match ended {
        Ok(trailers) => {
            tell(GrpcEvent::TrailingMetadata(fields(None, &trailers)));
            of_trailers(&trailers)
        }
        Err(ended) => {
            tell(GrpcEvent::TrailingMetadata(FieldList::new()));
            ended
        }
    }
}

/// Tells of every message, up to the trailers.
async fn messages(
    incoming: &mut Incoming,
    flow: &Flow,
    tell: &mut impl FnMut(GrpcEvent),
) -> Result<HeaderMap, GrpcStatus> {
    let mut buffer = BytesMut::new();
    while let Some(frame) = incoming.frame().await {
        flow.active.set(Instant::now());
        let frame = frame.map_err(|_| status(code::INTERNAL, ""))?;
        match frame.into_data() {
            Ok(data) => {
                buffer.extend_from_slice(&data);
                while let Some(message) = next(&mut buffer)? {
                    tell(GrpcEvent::Message(message));
                    // A frame may hold thousands of empty messages; others' requests go on meanwhile.
                    tokio::task::consume_budget().await;
                }
            }
            Err(frame) => return Ok(frame.into_trailers().unwrap_or_default()),
        }
    }
    Err(status(code::UNKNOWN, ""))
}

/// The next whole message. Compression was not offered, so a compressed one is a fault.
fn next(buffer: &mut BytesMut) -> Result<Option<Bytes>, GrpcStatus> {
    let Some((&[flag, a, b, c, d], rest)) = buffer.split_first_chunk::<PREFIX_BYTES>() else {
        return Ok(None);
    };
    let len = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    if flag != 0 && len > 0 {
        return Err(status(code::INTERNAL, ""));
    }
    if len > limits::GRPC_MESSAGE_BYTES_MAX {
        return Err(status(code::RESOURCE_EXHAUSTED, "message too large"));
    }
    if rest.len() < len {
        return Ok(None);
    }
    buffer.advance(PREFIX_BYTES);
    Ok(Some(buffer.split_to(len).freeze()))
}

const GRPC_STATUS: &str = "grpc-status";
const GRPC_MESSAGE: &str = "grpc-message";

fn of_trailers(trailers: &HeaderMap) -> GrpcStatus {
    let code = match trailers.get(GRPC_STATUS) {
        Some(value) => value
            .to_str()
            .ok()
            .and_then(|text| text.parse().ok())
            .filter(|code| *code <= code::MAX)
            .unwrap_or(code::INVALID),
        None => code::UNKNOWN,
    };
    let message = trailers.get(GRPC_MESSAGE).map_or(Bytes::new(), |value| {
        Bytes::copy_from_slice(value.as_bytes())
    });
    GrpcStatus { code, message }
}

/// An answer that is not gRPC.
fn of_http(status: StatusCode) -> u32 {
    match status.as_u16() {
        400 => code::INTERNAL,
        401 => code::UNAUTHENTICATED,
        403 => code::PERMISSION_DENIED,
        404 => code::UNIMPLEMENTED,
        429 | 502 | 503 | 504 => code::UNAVAILABLE,
        _ => code::UNKNOWN,
    }
}

/// What no answer at all comes to: one that the host makes, of trailers only.
fn unanswered(fault: UpstreamFault, tell: &mut impl FnMut(GrpcEvent)) -> GrpcStatus {
    let message = Bytes::from(fault.to_string());
    let mut trailers = FieldList::new();
    trailers.push(":status", "200");
    trailers.push("content-type", "application/grpc");
    trailers.push(GRPC_STATUS, code::UNAVAILABLE.to_string());
    trailers.push(GRPC_MESSAGE, message.clone());
    tell(GrpcEvent::InitialMetadata(FieldList::new()));
    tell(GrpcEvent::TrailingMetadata(trailers));
    GrpcStatus {
        code: code::UNAVAILABLE,
        message,
    }
}

fn status(code: u32, message: &'static str) -> GrpcStatus {
    GrpcStatus {
        code,
        message: Bytes::from_static(message.as_bytes()),
    }
}

fn fields(status: Option<StatusCode>, map: &HeaderMap) -> FieldList {
    let mut list = FieldList::new();
    if let Some(status) = status {
        list.push(
            ":status",
            Bytes::copy_from_slice(status.as_str().as_bytes()),
        );
    }
    for (name, value) in map {
        list.push(
            Bytes::copy_from_slice(name.as_str().as_bytes()),
            Bytes::copy_from_slice(value.as_bytes()),
        );
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_whole() {
        let mut wire = BytesMut::new();
        for message in ["one", "", "three"] {
            wire.extend_from_slice(&framed(&Bytes::from_static(message.as_bytes())).unwrap());
        }
        // Byte by byte, as a slow upstream sends.
        let mut buffer = BytesMut::new();
        let mut seen = Vec::new();
        for byte in wire {
            buffer.extend_from_slice(&[byte]);
            while let Some(message) = next(&mut buffer).unwrap() {
                seen.push(message);
            }
        }
        assert_eq!(seen, ["one", "", "three"]);
        assert!(buffer.is_empty());
    }

    #[test]
    fn what_is_not_a_message_ends_the_stream() {
        let max = u32::try_from(limits::GRPC_MESSAGE_BYTES_MAX).unwrap();
        for (flag, len, expected) in [
            (0, 1, Ok(None)),
            (0, max, Ok(None)),
            (0, max + 1, Err(code::RESOURCE_EXHAUSTED)),
            (0, u32::MAX, Err(code::RESOURCE_EXHAUSTED)),
            (1, 1, Err(code::INTERNAL)),
            (1, 0, Ok(Some(Bytes::new()))),
        ] {
            let mut buffer = BytesMut::from(&[flag][..]);
            buffer.put_u32(len);
            assert_eq!(
                next(&mut buffer).map_err(|status| status.code),
                expected,
                "{flag} {len}"
            );
        }
    }

    #[test]
    fn what_is_queued_is_bounded() {
        let (mut outgoing, _body) = channel();
        let message = Bytes::from(vec![0; GRPC_QUEUED_BYTES_MAX / 2]);
        assert_eq!(outgoing.send(Some(message.clone()), false), Ok(()));
        assert_eq!(
            outgoing.send(Some(message), false),
            Err(CalloutError::Overloaded)
        );
        assert_eq!(
            outgoing.send(Some(Bytes::from_static(b"small")), true),
            Ok(())
        );
        assert_eq!(
            outgoing.send(Some(Bytes::new()), false),
            Err(CalloutError::Overloaded),
            "after the last"
        );
    }
}
