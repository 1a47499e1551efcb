//! The request's last step: in the upstream's protocol, on its way, until the head of an answer, a filter's word or the time-out comes.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use http::header::{self, HeaderValue};
use http::{Request, Uri, Version};
use portcullis_runtime::{Direction, Progress};

use crate::body::RequestBody;
use crate::fields::{HttpFields, Pseudo};
use crate::policy::UpstreamProtocol;
use crate::stream::{Diversion, Flags, Stream};
use crate::upstream::{Answer, Upstream, UpstreamFault};

pub(crate) enum Forwarded {
    Answer(Box<(Answer, Option<Duration>)>),
    Fault(UpstreamFault),
    Diverted(Diversion),
}

/// Sends the request and waits for the head of the answer, a filter's word, or the time-out: whichever comes first.
pub(crate) async fn forward(
    stream: &Rc<Stream>,
    upstream: &Rc<Upstream>,
    request: Request<RequestBody>,
    again: Option<&dyn Fn() -> Option<Request<RequestBody>>>,
) -> Forwarded {
    let timeout = upstream.cluster.policy.request_timeout;
    let filtered = stream.route.is_filtered;
    let mut sending = pin!(upstream.send(request, again));
    // Runs once the request has been read to its end, which for most is now.
    let due = |read: Instant| Some(read.checked_add(timeout?)?.into());
    let mut alarm = pin!(
        stream
            .request_read
            .get()
            .and_then(due)
            .map(tokio::time::sleep_until)
    );
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
                Err(_) if stream.is_request_broken() => Forwarded::Fault(UpstreamFault::Request),
                Err(fault) => Forwarded::Fault(fault),
            });
        }
        if alarm.is_none()
            && let Some(due) = stream.request_read.get().and_then(due)
        {
            alarm.set(Some(tokio::time::sleep_until(due)));
        }
        if let Some(alarm) = alarm.as_mut().as_pin_mut()
            && alarm.poll(context).is_ready()
        {
            return Poll::Ready(Forwarded::Fault(UpstreamFault::Timeout));
        }
        Poll::Pending
    })
    .await
}

/// The request in the upstream's protocol.
pub(crate) fn upstream_request(
    fields: &HttpFields,
    upstream: &Upstream,
    body: RequestBody,
) -> Option<Request<RequestBody>> {
    request_in(upstream.cluster.policy.protocol, fields, body)
}

/// The request in this protocol.
pub(crate) fn request_in<B>(
    protocol: UpstreamProtocol,
    fields: &HttpFields,
    body: B,
) -> Option<Request<B>> {
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
    match protocol {
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

pub(crate) fn flags_of(fault: UpstreamFault) -> Flags {
    match fault {
        UpstreamFault::NoAddress => Flags::NO_UPSTREAM,
        UpstreamFault::Connect => Flags::CONNECT_FAILURE,
        UpstreamFault::Closed => Flags::UPSTREAM_CLOSED,
        UpstreamFault::Protocol => Flags::UPSTREAM_PROTOCOL,
        UpstreamFault::Timeout => Flags::UPSTREAM_TIMEOUT,
        // Set where the body broke: only there it is known how.
        UpstreamFault::Request => Flags::default(),
    }
}
