//! The answer on its way to the client: an upstream's, a filter's or the proxy's own, all through the response filters.

use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Response, StatusCode};
use hyper::body::{Body as _, Incoming};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use portcullis_runtime::{Direction, HttpStream};

use crate::body::{ResponseBody, UpstreamBody};
use crate::fields::{HttpFields, Pseudo, to_header_map};
use crate::forwarded;
use crate::limits::LOCAL_RESPONSES_MAX;
use crate::local::Problem;
use crate::phase::{Answered, Reset, Settled, settle, settle_headers, settle_with_body};
use crate::stream::{Flags, Stream};
use crate::upstream::{Answer, Lease, UpstreamFault};

/// An upstream's answer on its way to the client.
pub(crate) async fn relay(
    stream: &Rc<Stream>,
    answered: (Answer, Option<Duration>),
    upgrade: Option<OnUpgrade>,
) -> Answered {
    let ((mut response, lease), timeout) = answered;
    stream.record.borrow_mut().upstream = Some(lease.address);
    let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let tunnel = match upgrade {
        Some(upgrade) if switched && forwarded::is_websocket(response.headers()) => {
            Some((upgrade, hyper::upgrade::on(&mut response)))
        }
        _ if switched => {
            stream.flag(Flags::UPSTREAM_PROTOCOL);
            return answer(stream, &Problem::from(UpstreamFault::Protocol)).await;
        }
        _ => None,
    };
    let (parts, incoming) = response.into_parts();
    let mut headers = parts.headers;
    forwarded::remove_hop_by_hop(&mut headers, tunnel.is_some());
    headers.remove(header::TE);
    let pseudo = Pseudo::Response {
        status: parts.status,
    };
    let end_of_stream = incoming.is_end_stream();
    // Of a request that is read meanwhile, too.
    let deadline = || {
        let read = stream.request_read.get()?;
        Some(read.checked_add(timeout?)?.into())
    };
    let passed = pass_head(stream, HttpFields { pseudo, headers }, end_of_stream).await;
    let (passed, body) = match passed {
        Err(Settled::WantsBody) => {
            let mut body = UpstreamBody::filtered(incoming, lease, stream, deadline());
            let settled = settle_with_body(|context| body.poll_headers(stream, context));
            let passed = match settled.await {
                Settled::Passed => take_head(stream).ok_or(Settled::Reset),
                other => Err(other),
            };
            (passed, Coming::Begun(body))
        }
        other => (other, Coming::Untouched(incoming, lease)),
    };
    let (status, headers) = match passed {
        Ok(head) => head,
        Err(Settled::Respond) => return respond(stream).await,
        Err(Settled::TooLong) => return held_too_long(stream).await,
        Err(_) => return Err(Reset),
    };
    stream.set_answered(status.as_u16());
    let body = match (tunnel, body) {
        (Some((downstream, upstream)), _) => {
            tokio::task::spawn_local(carry(Rc::clone(stream), downstream, upstream));
            ResponseBody::whole(Bytes::new(), None)
        }
        (None, Coming::Begun(body)) => ResponseBody::begun(body, Rc::clone(stream)),
        (None, Coming::Untouched(incoming, lease)) => {
            ResponseBody::upstream(incoming, lease, Rc::clone(stream), deadline())
        }
    };
    Ok(reply(status, headers, body))
}

/// An upstream's body, of which filters may have seen something before its head passed.
enum Coming {
    Untouched(Incoming, Lease),
    Begun(UpstreamBody),
}

/// A head through the response filters. What comes out may be moved out of the exchange, unless a filter will want to see it again.
async fn pass_head(
    stream: &Rc<Stream>,
    fields: HttpFields,
    end_of_stream: bool,
) -> Result<(StatusCode, HeaderMap), Settled> {
    if !stream.is_filtered() {
        let Pseudo::Response { status } = fields.pseudo else {
            return Err(Settled::Reset);
        };
        return Ok((status, fields.headers));
    }
    let settled = settle_headers(stream, Direction::Response, |http| {
        let upstream_address = stream.record.borrow().upstream;
        let mut exchange = http.exchange_mut();
        if let Pseudo::Response { status } = fields.pseudo {
            exchange.info.response_code = Some(status.as_u16());
        }
        exchange.info.upstream_address = upstream_address;
        exchange.response_headers = Some(Box::new(fields));
        drop(exchange);
        http.response_headers(end_of_stream)
    });
    match settled.await {
        Settled::Passed => take_head(stream).ok_or(Settled::Reset),
        other => Err(other),
    }
}

/// The response's head as the filters left it.
fn take_head(stream: &Stream) -> Option<(StatusCode, HeaderMap)> {
    let keep = stream.route.reads_head_late;
    let head = stream.with(|http| {
        let mut exchange = http.exchange_mut();
        let status = exchange
            .response_headers
            .as_ref()?
            .get(b":status")
            .and_then(|value| StatusCode::from_bytes(value).ok())?;
        exchange.info.response_code = Some(status.as_u16());
        if keep {
            return Some((
                status,
                to_header_map(&**exchange.response_headers.as_ref()?),
            ));
        }
        let fields = exchange.response_headers.take()?;
        if fields.as_any().is::<HttpFields>() {
            let own = fields.into_any().downcast::<HttpFields>().ok()?;
            return Some((status, own.headers));
        }
        Some((status, to_header_map(&*fields)))
    });
    head.flatten()
}

/// An answer of the proxy's own, through the response filters like an upstream's. In a box, so that the futures that may end in one are small.
pub(crate) fn answer<'a>(
    stream: &'a Rc<Stream>,
    problem: &'a Problem,
) -> Pin<Box<dyn Future<Output = Answered> + 'a>> {
    Box::pin(answer_in_place(stream, problem))
}

async fn answer_in_place(stream: &Rc<Stream>, problem: &Problem) -> Answered {
    let (fields, body) = {
        let record = stream.record.borrow();
        problem.write(&record.id, &record.method)
    };
    match pass_head(stream, fields, body.is_empty()).await {
        Ok((status, headers)) => finish(stream, status, headers, body).await,
        Err(Settled::WantsBody) => match pass_with_body(stream, body).await {
            Settled::Passed => send_passed(stream),
            Settled::Respond => respond(stream).await,
            _ => Err(Reset),
        },
        Err(Settled::Respond) => respond(stream).await,
        Err(_) => Err(Reset),
    }
}

/// A filter's local response, through the filters before it. One of these may put its own in place, but not for ever.
pub(crate) fn respond(stream: &Rc<Stream>) -> Pin<Box<dyn Future<Output = Answered> + '_>> {
    Box::pin(respond_in_place(stream))
}

async fn respond_in_place(stream: &Rc<Stream>) -> Answered {
    for _ in 0..LOCAL_RESPONSES_MAX {
        let body = stream.with(HttpStream::take_local_body).unwrap_or_default();
        let mut settled = settle_headers(stream, Direction::Response, |http| {
            http.response_headers(body.is_empty())
        })
        .await;
        match settled {
            Settled::Passed => {
                let (status, headers) = take_head(stream).ok_or(Reset)?;
                return finish(stream, status, headers, body).await;
            }
            Settled::WantsBody => settled = pass_with_body(stream, body).await,
            _ => {}
        }
        match settled {
            Settled::Passed => return send_passed(stream),
            Settled::Respond => {}
            Settled::WantsBody | Settled::Reset | Settled::TooLong => return Err(Reset),
        }
    }
    Err(Reset)
}

/// A body that is here as a whole to filters of which one holds the head alone: what comes of head and body.
async fn pass_with_body(stream: &Rc<Stream>, body: Bytes) -> Settled {
    settle(stream, Direction::Response, |http| {
        http.response_body(body, true)
    })
    .await
}

/// An answer whose head and body have passed the filters together.
fn send_passed(stream: &Rc<Stream>) -> Answered {
    let (status, headers) = take_head(stream).ok_or(Reset)?;
    let body = stream.take_body(Direction::Response);
    Ok(send_whole(stream, status, headers, body))
}

/// The body of an answer that is here as a whole, through the response filters.
async fn finish(
    stream: &Rc<Stream>,
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
) -> Answered {
    let mut body = body;
    if !body.is_empty() && stream.is_filtered() && stream.route.reads_response_body {
        match settle(stream, Direction::Response, |http| {
            http.response_body(body, true)
        })
        .await
        {
            Settled::Passed => body = stream.take_body(Direction::Response),
            // The head has passed the filters: nothing can take its place any more.
            _ => return Err(Reset),
        }
    }
    Ok(send_whole(stream, status, headers, body))
}

fn send_whole(
    stream: &Rc<Stream>,
    status: StatusCode,
    mut headers: HeaderMap,
    mut body: Bytes,
) -> Response<ResponseBody> {
    let head = stream.record.borrow().method == Method::HEAD;
    if !head && !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    if head {
        body = Bytes::new();
    }
    // What a filter copies from an upstream's answer must not break this one.
    headers.remove(header::TRANSFER_ENCODING);
    headers.remove(header::CONNECTION);
    stream.set_answered(status.as_u16());
    reply(
        status,
        headers,
        ResponseBody::whole(body, Some(Rc::clone(stream))),
    )
}

pub(crate) async fn held_too_long(stream: &Rc<Stream>) -> Answered {
    stream.flag(Flags::STREAM_IDLE);
    Err(Reset)
}

fn reply(status: StatusCode, headers: HeaderMap, body: ResponseBody) -> Response<ResponseBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// Both ways between two upgraded connections, until either ends.
async fn carry(stream: Rc<Stream>, downstream: OnUpgrade, upstream: OnUpgrade) {
    let carrying = async {
        let (downstream, upstream) = (downstream.await?, upstream.await?);
        let (mut downstream, mut upstream) = (TokioIo::new(downstream), TokioIo::new(upstream));
        let copied = tokio::io::copy_bidirectional(&mut downstream, &mut upstream).await;
        Ok::<_, hyper::Error>(copied)
    };
    tokio::select! {
        _ = carrying => {}
        () = stream.connection.aborted() => {}
    }
    stream.finish();
}
