//! One phase of an exchange run through its filters, and waited for while one of them holds it.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};

use http::Response;
use portcullis_runtime::{Direction, HttpStream, Progress, StreamInfo};

use crate::body::{BodyFault, ResponseBody};
use crate::limits::PAUSE_TIMEOUT;
use crate::stream::Stream;

/// No answer: the stream, or an HTTP/1 connection, is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the exchange was reset")]
pub(crate) struct Reset;

pub(crate) type Answered = Result<Response<ResponseBody>, Reset>;

/// What came of a phase.
pub(crate) enum Settled {
    Passed,
    /// A filter holds the headers alone: see [`settle_with_body`].
    WantsBody,
    Respond,
    Reset,
    TooLong,
}

/// Runs a phase, and waits while a filter holds it.
pub(crate) async fn settle(
    stream: &Rc<Stream>,
    direction: Direction,
    act: impl FnOnce(&mut HttpStream) -> Progress,
) -> Settled {
    settle_until(stream, direction, act, |_| false).await
}

/// The same for headers: waits no longer once a filter holds them alone.
pub(crate) async fn settle_headers(
    stream: &Rc<Stream>,
    direction: Direction,
    act: impl FnOnce(&mut HttpStream) -> Progress,
) -> Settled {
    settle_until(stream, direction, act, |stream| {
        stream.wants_body(direction)
    })
    .await
}

async fn settle_until(
    stream: &Rc<Stream>,
    direction: Direction,
    act: impl FnOnce(&mut HttpStream) -> Progress,
    wants_body: impl Fn(&Stream) -> bool,
) -> Settled {
    let mut progress = stream.with(act).unwrap_or(Progress::Reset);
    if progress == Progress::Pause && !wants_body(stream) {
        let resumed = poll_fn(|context| match stream.poll_resume(direction, context) {
            Poll::Pending if wants_body(stream) => Poll::Ready(Progress::Pause),
            polled => polled,
        });
        match tokio::time::timeout(PAUSE_TIMEOUT, resumed).await {
            Ok(resumed) => progress = resumed,
            Err(_) => return Settled::TooLong,
        }
    }
    match progress {
        Progress::Continue => Settled::Passed,
        Progress::Pause => Settled::WantsBody,
        Progress::Respond => Settled::Respond,
        Progress::Reset => Settled::Reset,
    }
}

/// Runs steps of [`Filtered::poll_headers`](crate::filtered::Filtered) until the filters have let the headers go. What has passed of the body by then
/// comes out of it first. Each frame may be as long in coming as a filter may hold an exchange.
pub(crate) async fn settle_with_body(
    mut poll_headers: impl FnMut(&mut Context<'_>) -> Poll<Result<Progress, BodyFault>>,
) -> Settled {
    loop {
        match tokio::time::timeout(PAUSE_TIMEOUT, poll_fn(&mut poll_headers)).await {
            Ok(Ok(Progress::Pause)) => {}
            Ok(Ok(Progress::Continue)) => return Settled::Passed,
            Ok(Ok(Progress::Respond)) => return Settled::Respond,
            Ok(Ok(Progress::Reset) | Err(_)) => return Settled::Reset,
            Err(_) => return Settled::TooLong,
        }
    }
}

pub(crate) fn stream_info(stream: &Stream) -> StreamInfo {
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
