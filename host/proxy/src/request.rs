//! One exchange: the request through the filters to the upstream, the answer through the filters back.
//!
//! ```text
//! read head ─> route ─> request filters ─> upstream ─> response filters ─> client
//!    │400        │404        │local response   │502 503 504     │
//!    └───────────┴───────────┴─────────────────┴────────────────┴─> response filters ─> client
//! ```

use std::pin::Pin;
use std::rc::Rc;
use std::time::Instant;

use http::header::{HeaderMap, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, StatusCode, Version};
use hyper::body::{Body as _, Incoming};
use hyper::upgrade::OnUpgrade;
use portcullis_runtime::{Direction, Exchange, Protocol};

use crate::body::RequestBody;
use crate::connection::{Begun, Turn};
use crate::edition::Stay;
use crate::fields::{HttpFields, Pseudo};
use crate::filtered::Filtered;
use crate::forward::{Forwarded, flags_of, forward, upstream_request};
use crate::forwarded;
use crate::head::{host_of, read_head};
use crate::local::Problem;
use crate::phase::{Answered, Reset, Settled, settle_headers, settle_with_body, stream_info};
use crate::reroute;
use crate::response::{answer, held_too_long, relay, respond};
use crate::stream::{Diversion, Flags, Record, Stream};
use crate::upstream::UpstreamFault;

/// Serves one request; none is begun where the connection is to take no more.
///
/// What needs no waiting is done at once, outside the future, and the future is in a box: hyper moves that of an HTTP/2 request nine times before
/// it is polled first.
///
/// # Errors
///
/// [`Reset`] where there is to be no answer.
pub(crate) fn serve(begun: Option<Begun>, request: Request<Incoming>) -> Answering {
    match begun {
        Some((edition, connection)) => begin(edition, connection, request),
        None => Box::pin(std::future::ready(Err(Reset))),
    }
}

/// The future of an answer.
pub(crate) type Answering = Pin<Box<dyn Future<Output = Answered>>>;

fn begin(edition: Stay, connection: Turn, mut request: Request<Incoming>) -> Answering {
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
        begun_unix_ns: edition.embedder.unix_ns(),
    };
    let mut fields = match read_head(parts, connection.scheme, connection.info.source) {
        Ok(fields) => fields,
        Err(problem) => {
            record.flags.insert(Flags::DOWNSTREAM_PROTOCOL);
            let route = Rc::clone(&edition.refused);
            let stream = Stream::new(edition, route, connection, record);
            return Box::pin(refuse(stream, problem));
        }
    };
    let Pseudo::Request {
        authority, path, ..
    } = &fields.pseudo
    else {
        return Box::pin(std::future::ready(Err(Reset)));
    };
    record.path = Some(path.clone());
    let route = edition.route(&host_of(authority), path.path());
    let upgrade = upgrade.filter(|_| !route.reads_request_body && !route.reads_response_body);
    forwarded::make_ours(
        &mut fields.headers,
        upgrade.is_some(),
        &connection.client,
        &id,
        &route.owned_elsewhere,
    );
    let stream = Stream::new(edition, route, connection, record);
    if incoming.is_end_stream() {
        stream.request_is_read();
    }
    let plain = if stream.route.is_filtered {
        let info = stream_info(&stream);
        stream.start(Exchange::new(Box::new(fields), info));
        None
    } else {
        Some(fields)
    };
    Box::pin(run(stream, plain, incoming, upgrade))
}

async fn run(
    stream: Rc<Stream>,
    plain: Option<HttpFields>,
    incoming: Incoming,
    upgrade: Option<OnUpgrade>,
) -> Answered {
    let end_of_stream = incoming.is_end_stream();
    let mut incoming = Some(incoming);
    let mut begun = None;
    if stream.route.is_filtered {
        let mut settled = settle_headers(&stream, Direction::Request, |http| {
            http.request_headers(end_of_stream)
        })
        .await;
        if matches!(settled, Settled::WantsBody)
            && let Some(incoming) = incoming.take()
        {
            let mut body = Filtered::new(incoming, Rc::clone(&stream), Direction::Request);
            settled = settle_with_body(|context| body.poll_headers(context)).await;
            begun = Some(body);
        }
        match settled {
            Settled::Passed => {}
            Settled::Respond => return respond(&stream).await,
            Settled::Reset if stream.is_request_broken() => {
                return no_answer(&stream, UpstreamFault::Request).await;
            }
            Settled::Reset | Settled::WantsBody => return Err(Reset),
            Settled::TooLong => return held_too_long(&stream).await,
        }
    }
    let route = match reroute::onward(&stream) {
        Ok(route) => route,
        Err(problem) => return answer(&stream, &problem).await,
    };
    let Some(upstream) = &route.upstream else {
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
    let body = match (begun, incoming) {
        (Some(begun), _) => RequestBody::Filtered(begun),
        (None, Some(incoming)) if !end_of_stream => {
            if stream.route.reads_request_body {
                let stream = Rc::clone(&stream);
                RequestBody::Filtered(Filtered::new(incoming, stream, Direction::Request))
            } else {
                RequestBody::Plain(incoming, Rc::clone(&stream))
            }
        }
        _ => RequestBody::Empty,
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
            let cluster = &upstream.cluster.policy.name;
            tracing::debug!(cluster, %fault, "no answer from upstream");
            no_answer(&stream, fault).await
        }
        Forwarded::Diverted(Diversion::Respond) => respond(&stream).await,
        Forwarded::Diverted(Diversion::Reset) => Err(Reset),
    }
}

/// Tells the client that no answer of an upstream is to be had.
async fn no_answer(stream: &Rc<Stream>, fault: UpstreamFault) -> Answered {
    stream.flag(flags_of(fault));
    answer(stream, &Problem::from(fault)).await
}

/// A request that cannot be routed, answered all the same with the headers that filters put on answers. These see an empty GET in its
/// place: what was sent is not fit to be looked at.
async fn refuse(stream: Rc<Stream>, problem: Problem) -> Answered {
    let pseudo = Pseudo::Request {
        method: Method::GET,
        scheme: stream.connection.scheme,
        authority: HeaderValue::from_static("invalid"),
        path: PathAndQuery::from_static("/"),
    };
    let fields = HttpFields {
        pseudo,
        headers: HeaderMap::new(),
    };
    if stream.route.is_filtered {
        stream.start(Exchange::new(Box::new(fields), stream_info(&stream)));
        match settle_headers(&stream, Direction::Request, |http| {
            http.request_headers(true)
        })
        .await
        {
            Settled::Passed => {}
            Settled::Respond => return respond(&stream).await,
            Settled::WantsBody | Settled::Reset | Settled::TooLong => return Err(Reset),
        }
    }
    answer(&stream, &problem).await
}
