//! One exchange: the request through the filters to the upstream, the answer through the filters back.
//!
//! ```text
//! read head ─> route ─> request filters ─> upstream ─> response filters ─> client
//!    │400        │404        │local response   │502 503 504     │
//!    └───────────┴───────────┴─────────────────┴────────────────┴─> response filters ─> client
//! ```

use std::borrow::Cow;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::{Body as _, Incoming};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use portcullis_runtime::{Direction, Exchange, HttpStream, Progress, Protocol, StreamInfo};

use crate::body::{Filtered, RequestBody, ResponseBody};
use crate::connection::Connection;
use crate::fields::{HttpFields, Pseudo, to_header_map};
use crate::forwarded;
use crate::limits::{LOCAL_RESPONSES_MAX, PAUSE_TIMEOUT, REQUEST_HEADERS_MAX};
use crate::local::Problem;
use crate::path;
use crate::policy::UpstreamProtocol;
use crate::stream::{Diversion, Flags, Record, Stream};
use crate::upstream::{Answer, Upstream, UpstreamFault};
use crate::worker::Worker;

/// No answer: the stream, or an HTTP/1 connection, is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the exchange was reset")]
pub(crate) struct Reset;

type Answered = Result<Response<ResponseBody>, Reset>;

/// What came of a phase.
enum Settled {
    Passed,
    Respond,
    Reset,
    TooLong,
}

/// Serves one request.
///
/// # Errors
///
/// [`Reset`] where there is to be no answer.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    connection: Rc<Connection>,
    mut request: Request<Incoming>,
) -> Answered {
    let begun = Instant::now();
    let id = forwarded::request_id();
    let protocol = match request.version() {
        Version::HTTP_2 => Protocol::Http2,
        Version::HTTP_10 => Protocol::Http10,
        _ => Protocol::Http11,
    };
    let websocket = protocol == Protocol::Http11
        && request.method() == Method::GET
        && request.body().is_end_stream()
        && forwarded::is_websocket(request.headers());
    let upgrade = websocket.then(|| hyper::upgrade::on(&mut request));
    let (parts, incoming) = request.into_parts();
    let mut record = Record {
        id: id.clone(),
        method: parts.method.clone(),
        path: None,
        status: 0,
        flags: Flags::default(),
        request_size: 0,
        response_size: 0,
        upstream: None,
        protocol,
        begun,
        begun_unix_ns: worker.embedder.unix_ns(),
    };
    let mut fields = match read_head(parts, &connection) {
        Ok(fields) => fields,
        Err(problem) => {
            record.flags.insert(Flags::DOWNSTREAM_PROTOCOL);
            return refuse(worker, connection, record, problem).await;
        }
    };
    let Pseudo::Request {
        authority, path, ..
    } = &fields.pseudo
    else {
        return Err(Reset);
    };
    record.path = Some(path.clone());
    let route = worker.route(&host_of(authority), path.path());
    let upgrade = upgrade.filter(|_| !route.reads_request_body && !route.reads_response_body);
    forwarded::remove_hop_by_hop(&mut fields.headers, upgrade.is_some());
    forwarded::describe_client(
        &mut fields.headers,
        connection.info.source.ip(),
        connection.scheme,
        &id,
    );
    for name in &route.owned_elsewhere {
        fields.headers.remove(name);
    }
    let stream = Stream::new(worker, route, connection, record);
    run(stream, fields, incoming, upgrade).await
}

/// The request as filters see it, or why it is refused.
fn read_head(parts: Parts, connection: &Connection) -> Result<HttpFields, Problem> {
    let Parts {
        method,
        uri,
        version,
        mut headers,
        ..
    } = parts;
    let bad = |title| Problem::new(StatusCode::BAD_REQUEST, title);
    if method == Method::CONNECT {
        return Err(Problem::new(
            StatusCode::NOT_IMPLEMENTED,
            "CONNECT is not served",
        ));
    }
    // HTTP/1's parser counts them itself.
    if headers.len() > REQUEST_HEADERS_MAX {
        return Err(Problem::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "too many header fields",
        ));
    }
    let host = headers.remove(header::HOST);
    let authority = match (uri.authority(), host, version) {
        (_, None, Version::HTTP_11) => return Err(bad("host is missing")),
        (Some(authority), host, _) => {
            // RFC 9112 §3.2.2: the absolute form wins. RFC 9113 §8.3.1: in HTTP/2 the two must not differ.
            let differs = |host: HeaderValue| {
                !host
                    .as_bytes()
                    .eq_ignore_ascii_case(authority.as_str().as_bytes())
            };
            if version == Version::HTTP_2 && host.is_some_and(differs) {
                return Err(bad("host and authority differ"));
            }
            HeaderValue::from_str(authority.as_str()).map_err(|_| bad("invalid host"))?
        }
        (None, Some(host), _) => host,
        (None, None, _) => return Err(bad("host is missing")),
    };
    if !is_authority(authority.as_bytes()) {
        return Err(bad("invalid host"));
    }
    let target = uri.path_and_query().ok_or(bad("invalid path"))?;
    let path = match path::normalise(target.as_str()) {
        Ok(Cow::Borrowed(_)) => target.clone(),
        Ok(Cow::Owned(path)) => {
            PathAndQuery::from_maybe_shared(Bytes::from(path)).map_err(|_| bad("invalid path"))?
        }
        Err(fault) => {
            tracing::debug!(source = %connection.info.source, %fault, "path refused");
            return Err(bad("invalid path"));
        }
    };
    if let Some(expect) = headers.remove(header::EXPECT) {
        // hyper says 100 to the client as soon as the body is asked for; the upstream is not asked.
        if !expect.as_bytes().eq_ignore_ascii_case(b"100-continue") {
            return Err(Problem::new(
                StatusCode::EXPECTATION_FAILED,
                "unknown expectation",
            ));
        }
    }
    let scheme = connection.scheme;
    Ok(HttpFields {
        pseudo: Pseudo::Request {
            method,
            scheme,
            authority,
            path,
        },
        headers,
    })
}

/// Whether `text` is a host, a port perhaps after it: never userinfo, which some servers would take for the host.
fn is_authority(text: &[u8]) -> bool {
    !text.is_empty()
        && text.iter().all(|byte| {
            byte.is_ascii_alphanumeric()
                || matches!(byte, b'-' | b'.' | b'_' | b'~' | b':' | b'[' | b']')
        })
}

/// The host of an authority in lower case, without a port.
fn host_of(authority: &HeaderValue) -> Cow<'_, str> {
    let text = authority.to_str().unwrap_or_default();
    let end = match text.strip_prefix('[') {
        Some(rest) => rest
            .find(']')
            .map_or(text.len(), |end| end.saturating_add(2)),
        None => text.find(':').unwrap_or(text.len()),
    };
    let host = text.get(..end).unwrap_or(text);
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

async fn run(
    stream: Rc<Stream>,
    fields: HttpFields,
    incoming: Incoming,
    upgrade: Option<OnUpgrade>,
) -> Answered {
    let end_of_stream = incoming.is_end_stream();
    if end_of_stream {
        stream.request_is_read();
    }
    let mut plain = None;
    if !stream.route.is_filtered {
        plain = Some(fields);
    } else {
        let info = stream_info(&stream);
        stream.start(Exchange::new(Box::new(fields), info));
        match settle(&stream, Direction::Request, |http| {
            http.request_headers(end_of_stream)
        })
        .await
        {
            Settled::Passed => {}
            Settled::Respond => return respond(&stream).await,
            Settled::Reset => return Err(Reset),
            Settled::TooLong => return held_too_long(&stream).await,
        }
    }
    let Some(upstream) = &stream.route.upstream else {
        stream.flag(Flags::NO_ROUTE);
        return answer(
            &stream,
            &Problem::new(StatusCode::NOT_FOUND, "no such route"),
        )
        .await;
    };
    let make = |body: RequestBody| match &plain {
        Some(fields) => upstream_request(fields, upstream, body),
        None => stream
            .with(|http| {
                let exchange = http.exchange();
                upstream_request(
                    exchange.request_headers.as_any().downcast_ref()?,
                    upstream,
                    body,
                )
            })
            .flatten(),
    };
    let body = if end_of_stream {
        RequestBody::Empty
    } else if stream.route.reads_request_body {
        RequestBody::Filtered(Filtered::new(
            incoming,
            Rc::clone(&stream),
            Direction::Request,
        ))
    } else {
        RequestBody::Plain(incoming, Rc::clone(&stream))
    };
    let Some(request) = make(body) else {
        return answer(
            &stream,
            &Problem::new(StatusCode::BAD_GATEWAY, "request cannot be forwarded"),
        )
        .await;
    };
    let repeatable = end_of_stream && request.method().is_idempotent();
    let again = || make(RequestBody::Empty);
    let again: Option<&dyn Fn() -> Option<Request<RequestBody>>> =
        if repeatable { Some(&again) } else { None };
    match forward(&stream, upstream, request, again).await {
        Forwarded::Answer(answered) => relay(&stream, *answered, upgrade).await,
        Forwarded::Fault(fault) => {
            stream.flag(flags_of(fault));
            let cluster = &upstream.cluster.policy.name;
            tracing::debug!(cluster, %fault, "no answer from upstream");
            answer(&stream, &Problem::from(fault)).await
        }
        Forwarded::Diverted(Diversion::Respond) => respond(&stream).await,
        Forwarded::Diverted(Diversion::Reset) => Err(Reset),
    }
}

fn stream_info(stream: &Stream) -> StreamInfo {
    let record = stream.record.borrow();
    StreamInfo {
        connection: Rc::clone(&stream.connection.info),
        route: Rc::clone(&stream.route.info),
        protocol: record.protocol,
        start_unix_ns: record.begun_unix_ns,
        request_size: 0,
        response_size: 0,
        duration_ns: None,
        response_code: None,
        response_flags: 0,
        upstream_address: None,
    }
}

fn flags_of(fault: UpstreamFault) -> Flags {
    match fault {
        UpstreamFault::NoAddress => Flags::NO_UPSTREAM,
        UpstreamFault::Connect => Flags::CONNECT_FAILURE,
        UpstreamFault::Closed => Flags::UPSTREAM_CLOSED,
        UpstreamFault::Protocol => Flags::UPSTREAM_PROTOCOL,
        UpstreamFault::Timeout => Flags::UPSTREAM_TIMEOUT,
    }
}

/// Runs a phase, and waits while a filter holds it.
async fn settle(
    stream: &Rc<Stream>,
    direction: Direction,
    act: impl FnOnce(&mut HttpStream) -> Progress,
) -> Settled {
    let mut progress = stream.with(act).unwrap_or(Progress::Reset);
    if progress == Progress::Pause {
        let resumed = poll_fn(|context| stream.poll_resume(direction, context));
        match tokio::time::timeout(PAUSE_TIMEOUT, resumed).await {
            Ok(resumed) => progress = resumed,
            Err(_) => return Settled::TooLong,
        }
    }
    match progress {
        Progress::Continue => Settled::Passed,
        Progress::Respond => Settled::Respond,
        Progress::Reset | Progress::Pause => Settled::Reset,
    }
}

/// The request in the upstream's protocol.
fn upstream_request(
    fields: &HttpFields,
    upstream: &Upstream,
    body: RequestBody,
) -> Option<Request<RequestBody>> {
    let Pseudo::Request {
        method,
        scheme,
        authority,
        path,
    } = &fields.pseudo
    else {
        return None;
    };
    let mut request = Request::new(body);
    *request.method_mut() = method.clone();
    let mut headers = fields.headers.clone();
    match upstream.cluster.policy.protocol {
        UpstreamProtocol::Http1 => {
            *request.uri_mut() = Uri::from(path.clone());
            headers.insert(header::HOST, authority.clone());
            // RFC 9110 §10.1.4: TE is for the next hop, so Connection has to name it.
            if headers.contains_key(header::TE) && !headers.contains_key(header::CONNECTION) {
                headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
            }
        }
        UpstreamProtocol::Http2 => {
            *request.version_mut() = Version::HTTP_2;
            headers.remove(header::CONNECTION);
            headers.remove(header::UPGRADE);
            let uri = Uri::builder()
                .scheme(scheme.as_str())
                .authority(authority.as_bytes())
                .path_and_query(path.clone());
            *request.uri_mut() = uri.build().ok()?;
        }
    }
    *request.headers_mut() = headers;
    Some(request)
}

enum Forwarded {
    Answer(Box<(Answer, Option<Duration>)>),
    Fault(UpstreamFault),
    Diverted(Diversion),
}

/// Sends the request and waits for the head of the answer, a filter's word, or the time-out: whichever comes first.
async fn forward(
    stream: &Rc<Stream>,
    upstream: &Rc<Upstream>,
    request: Request<RequestBody>,
    again: Option<&dyn Fn() -> Option<Request<RequestBody>>>,
) -> Forwarded {
    let timeout = upstream.cluster.policy.request_timeout;
    let filtered = stream.route.is_filtered;
    let mut sending = pin!(upstream.send(request, again));
    // Polled only once the request has been read to its end, which for most is now.
    let mut alarm = pin!(tokio::time::sleep(timeout.unwrap_or(Duration::MAX)));
    let mut armed = stream.request_read.get().is_some();
    poll_fn(|context| {
        stream.watch(Direction::Response, context);
        if let Some(diversion) = stream.diversion() {
            stream.clear_diversion();
            return Poll::Ready(Forwarded::Diverted(diversion));
        }
        if filtered && stream.is_woken(Direction::Response) {
            match stream.poll_resume(Direction::Response, context) {
                Poll::Ready(Progress::Respond) => {
                    return Poll::Ready(Forwarded::Diverted(Diversion::Respond));
                }
                Poll::Ready(Progress::Reset) => {
                    return Poll::Ready(Forwarded::Diverted(Diversion::Reset));
                }
                _ => {}
            }
        }
        if let Poll::Ready(sent) = sending.as_mut().poll(context) {
            return Poll::Ready(match sent {
                Ok(answer) => Forwarded::Answer(Box::new((answer, timeout))),
                Err(_) if stream.diversion().is_some() => {
                    let diversion = stream.diversion().unwrap_or(Diversion::Reset);
                    stream.clear_diversion();
                    Forwarded::Diverted(diversion)
                }
                Err(fault) => Forwarded::Fault(fault),
            });
        }
        if let (Some(timeout), Some(read)) = (timeout, stream.request_read.get()) {
            if !armed {
                armed = true;
                if let Some(due) = read.checked_add(timeout) {
                    alarm.as_mut().reset(due.into());
                }
            }
            if alarm.as_mut().poll(context).is_ready() {
                return Poll::Ready(Forwarded::Fault(UpstreamFault::Timeout));
            }
        }
        Poll::Pending
    })
    .await
}

/// An upstream's answer on its way to the client.
async fn relay(
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
    let (status, headers) =
        match pass_head(stream, HttpFields { pseudo, headers }, end_of_stream).await {
            Ok(head) => head,
            Err(Settled::Respond) => return respond(stream).await,
            Err(Settled::TooLong) => return held_too_long(stream).await,
            Err(_) => return Err(Reset),
        };
    stream.set_answered(status.as_u16());
    let body = match tunnel {
        Some((downstream, upstream)) => {
            tokio::task::spawn_local(carry(Rc::clone(stream), downstream, upstream));
            ResponseBody::whole(Bytes::new(), None)
        }
        None => {
            let read = stream.request_read.get();
            let deadline = read
                .zip(timeout)
                .and_then(|(read, timeout)| read.checked_add(timeout));
            ResponseBody::upstream(incoming, lease, Rc::clone(stream), deadline.map(Into::into))
        }
    };
    Ok(reply(status, headers, body))
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
    let settled = settle(stream, Direction::Response, |http| {
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

/// An answer of the proxy's own, through the response filters like an upstream's.
async fn answer(stream: &Rc<Stream>, problem: &Problem) -> Answered {
    let (fields, body) = {
        let record = stream.record.borrow();
        problem.write(&record.id, &record.method)
    };
    match pass_head(stream, fields, body.is_empty()).await {
        Ok((status, headers)) => finish(stream, status, headers, body).await,
        Err(Settled::Respond) => respond(stream).await,
        Err(_) => Err(Reset),
    }
}

/// A filter's local response, through the filters before it. One of these may put its own in place, but not for ever.
async fn respond(stream: &Rc<Stream>) -> Answered {
    for _ in 0..LOCAL_RESPONSES_MAX {
        let body = stream.with(HttpStream::take_local_body).unwrap_or_default();
        let settled = settle(stream, Direction::Response, |http| {
            http.response_headers(body.is_empty())
        })
        .await;
        match settled {
            Settled::Passed => {
                let (status, headers) = take_head(stream).ok_or(Reset)?;
                return finish(stream, status, headers, body).await;
            }
            Settled::Respond => {}
            Settled::Reset | Settled::TooLong => return Err(Reset),
        }
    }
    Err(Reset)
}

/// The body of an answer that is here as a whole, through the response filters.
async fn finish(
    stream: &Rc<Stream>,
    status: StatusCode,
    mut headers: HeaderMap,
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
    Ok(reply(
        status,
        headers,
        ResponseBody::whole(body, Some(Rc::clone(stream))),
    ))
}

async fn held_too_long(stream: &Rc<Stream>) -> Answered {
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
    let connection = Rc::clone(&stream.connection);
    let carrying = async {
        let (downstream, upstream) = (downstream.await?, upstream.await?);
        let (mut downstream, mut upstream) = (TokioIo::new(downstream), TokioIo::new(upstream));
        let copied = tokio::io::copy_bidirectional(&mut downstream, &mut upstream).await;
        Ok::<_, hyper::Error>(copied)
    };
    tokio::select! {
        _ = carrying => {}
        () = connection.aborted() => {}
    }
    stream.finish();
}

/// A request that cannot be routed, answered all the same with the headers that filters put on answers. These see an empty GET in its
/// place: what was sent is not fit to be looked at.
async fn refuse(
    worker: Rc<Worker>,
    connection: Rc<Connection>,
    record: Record,
    problem: Problem,
) -> Answered {
    let route = Rc::clone(&worker.refused);
    let pseudo = Pseudo::Request {
        method: Method::GET,
        scheme: connection.scheme,
        authority: HeaderValue::from_static("invalid"),
        path: PathAndQuery::from_static("/"),
    };
    let fields = HttpFields {
        pseudo,
        headers: HeaderMap::new(),
    };
    let stream = Stream::new(worker, route, connection, record);
    if stream.route.is_filtered {
        stream.start(Exchange::new(Box::new(fields), stream_info(&stream)));
        match settle(&stream, Direction::Request, |http| {
            http.request_headers(true)
        })
        .await
        {
            Settled::Passed => {}
            Settled::Respond => return respond(&stream).await,
            Settled::Reset | Settled::TooLong => return Err(Reset),
        }
    }
    answer(&stream, &problem).await
}
