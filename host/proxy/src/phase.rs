//! One phase of an exchange run through its filters, and waited for while one of them holds it.

use std::future::poll_fn;
use std::rc::Rc;

use http::Response;
use portcullis_runtime::{Direction, HttpStream, Progress, StreamInfo};

use crate::body::ResponseBody;
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
