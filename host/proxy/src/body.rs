//! Bodies on their way through: streamed, run through the filters' body and trailer callbacks where there are any, held while a filter
//! pauses. What a filter holds is bounded by the runtime; what nobody reads stays in the sender's socket.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use portcullis_runtime::{Direction, Progress};
use tokio::time::{Instant, Sleep};

use crate::grpc::GrpcBody;
use crate::stream::{Diversion, Flags, Stream};
use crate::upstream::Lease;

/// Why a body ends before its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyFault {
    /// The connection it comes over.
    #[error(transparent)]
    Source(#[from] hyper::Error),
    /// A filter ended the exchange.
    #[error("ended by a filter")]
    Filter,
    /// The upstream stood still for too long.
    #[error("upstream stood still")]
    Idle,
    /// The exchange is over.
    #[error("exchange is over")]
    Over,
}

type FramePoll = Poll<Option<Result<Frame<Bytes>, BodyFault>>>;

/// What goes to an upstream.
pub(crate) enum RequestBody {
    /// Nothing.
    Empty,
    /// A callout's body.
    Whole(Option<Bytes>),
    /// A gRPC callout's messages.
    Grpc(GrpcBody),
    /// A client's, as it is.
    Plain(Incoming, Rc<Stream>),
    /// A client's, through the filters.
    Filtered(Filtered),
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyFault;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> FramePoll {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(
                bytes
                    .take()
                    .filter(|bytes| !bytes.is_empty())
                    .map(|bytes| Ok(Frame::data(bytes))),
            ),
            Self::Grpc(body) => body.poll_message(context).map(|frame| frame.map(Ok)),
            Self::Plain(incoming, stream) => {
                let frame = ready!(Pin::new(&mut *incoming).poll_frame(context));
                if let Some(Ok(frame)) = &frame
                    && let Some(data) = frame.data_ref()
                {
                    stream.count(Direction::Request, data.len());
                }
                if frame.is_none() || incoming.is_end_stream() {
                    stream.request_is_read();
                }
                Poll::Ready(frame.map(|frame| frame.map_err(BodyFault::from)))
            }
            Self::Filtered(filtered) => filtered.poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Grpc(body) => body.is_over(),
            Self::Plain(incoming, _) => incoming.is_end_stream(),
            Self::Filtered(filtered) => filtered.done,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(bytes) => exact(bytes.as_ref().map_or(0, Bytes::len)),
            Self::Plain(incoming, _) => incoming.size_hint(),
            Self::Grpc(_) | Self::Filtered(_) => SizeHint::default(),
        }
    }
}

fn exact(bytes: usize) -> SizeHint {
    SizeHint::with_exact(u64::try_from(bytes).unwrap_or(u64::MAX))
}

/// A body that passes the filters of its direction.
pub(crate) struct Filtered {
    incoming: Incoming,
    stream: Rc<Stream>,
    direction: Direction,
    /// Nothing more comes in.
    read: bool,
    /// A filter holds what came in.
    held: bool,
    /// Nothing more goes out but these.
    trailers: Option<HeaderMap>,
    done: bool,
}

impl Filtered {
    /// Of `incoming`, whose headers have passed.
    pub(crate) fn new(incoming: Incoming, stream: Rc<Stream>, direction: Direction) -> Self {
        Self {
            incoming,
            stream,
            direction,
            read: false,
            held: false,
            trailers: None,
            done: false,
        }
    }

    fn poll_frame(&mut self, context: &mut Context<'_>) -> FramePoll {
        loop {
            if let Some(trailers) = self.trailers.take() {
                self.done = true;
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
            if self.done {
                return Poll::Ready(None);
            }
            let progress = if self.stream.is_woken(self.direction) || (self.held && self.read) {
                match self.stream.poll_resume(self.direction, context) {
                    Poll::Ready(progress) => progress,
                    Poll::Pending if self.read => return Poll::Pending,
                    Poll::Pending => Progress::Pause,
                }
            } else {
                self.stream.watch(self.direction, context);
                match ready!(Pin::new(&mut self.incoming).poll_frame(context)) {
                    Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                    Some(Ok(frame)) => self.run(frame),
                    None => {
                        self.end();
                        self.stream.body(self.direction, Bytes::new(), true)
                    }
                }
            };
            match progress {
                Progress::Continue => {
                    self.held = false;
                    let out = self.stream.take_body(self.direction);
                    if self.read {
                        self.trailers = self.stream.take_trailers(self.direction);
                        self.done = self.trailers.is_none();
                    }
                    if !out.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(out))));
                    }
                }
                Progress::Pause => self.held = true,
                Progress::Respond => {
                    self.stream.divert(Diversion::Respond);
                    return Poll::Ready(Some(Err(BodyFault::Filter)));
                }
                Progress::Reset => {
                    self.stream.divert(Diversion::Reset);
                    return Poll::Ready(Some(Err(BodyFault::Filter)));
                }
            }
        }
    }

    fn run(&mut self, frame: Frame<Bytes>) -> Progress {
        match frame.into_data() {
            Ok(data) => {
                let last = self.incoming.is_end_stream();
                if last {
                    self.end();
                }
                self.stream.count(self.direction, data.len());
                self.stream.body(self.direction, data, last)
            }
            Err(frame) => match frame.into_trailers() {
                Ok(trailers) => {
                    self.end();
                    self.stream.trailers(self.direction, trailers)
                }
                Err(_) => Progress::Pause,
            },
        }
    }

    fn end(&mut self) {
        self.read = true;
        if self.direction == Direction::Request {
            self.stream.request_is_read();
        }
    }
}

/// What goes to a client.
pub(crate) struct ResponseBody {
    source: Source,
    stream: Option<Rc<Stream>>,
}

enum Source {
    Whole(Option<Bytes>),
    Upstream(Box<Upstream>),
}

struct Upstream {
    body: Either,
    lease: Option<Lease>,
    /// When the whole answer is due.
    deadline: Option<Instant>,
    /// Runs while nothing comes; made when that first happens.
    alarm: Option<Pin<Box<Sleep>>>,
    still: bool,
}

enum Either {
    Plain(Incoming),
    Filtered(Filtered),
}

impl ResponseBody {
    /// These bytes.
    pub(crate) fn whole(bytes: Bytes, stream: Option<Rc<Stream>>) -> Self {
        let source = Source::Whole(Some(bytes).filter(|bytes| !bytes.is_empty()));
        Self { source, stream }
    }

    /// An upstream's, through the filters if any of them reads it. The whole of it is due at `deadline`.
    pub(crate) fn upstream(
        incoming: Incoming,
        lease: Lease,
        stream: Rc<Stream>,
        deadline: Option<Instant>,
    ) -> Self {
        if incoming.is_end_stream() {
            lease.give_back();
            return Self::whole(Bytes::new(), Some(stream));
        }
        let body = if stream.route.reads_response_body {
            Either::Filtered(Filtered::new(
                incoming,
                Rc::clone(&stream),
                Direction::Response,
            ))
        } else {
            Either::Plain(incoming)
        };
        let upstream = Upstream {
            body,
            lease: Some(lease),
            deadline,
            alarm: None,
            still: false,
        };
        Self {
            source: Source::Upstream(Box::new(upstream)),
            stream: Some(stream),
        }
    }
}

impl Upstream {
    fn poll_frame(&mut self, stream: &Rc<Stream>, context: &mut Context<'_>) -> FramePoll {
        let polled = match &mut self.body {
            Either::Plain(incoming) => {
                let polled = Pin::new(&mut *incoming)
                    .poll_frame(context)
                    .map_err(BodyFault::from);
                if let Poll::Ready(Some(Ok(frame))) = &polled
                    && let Some(data) = frame.data_ref()
                {
                    stream.count(Direction::Response, data.len());
                }
                let ended = matches!(polled, Poll::Ready(None)) || incoming.is_end_stream();
                if ended && let Some(lease) = self.lease.take() {
                    lease.give_back();
                }
                polled
            }
            Either::Filtered(filtered) => {
                let polled = filtered.poll_frame(context);
                if filtered.read
                    && let Some(lease) = self.lease.take()
                {
                    lease.give_back();
                }
                polled
            }
        };
        if polled.is_ready() {
            self.still = false;
            return polled;
        }
        self.poll_alarm(stream, context)
    }

    /// Nothing came: how long may that last?
    fn poll_alarm(&mut self, stream: &Stream, context: &mut Context<'_>) -> FramePoll {
        // Without a lease the upstream has done its part.
        let Some(lease) = &self.lease else {
            return Poll::Pending;
        };
        if !self.still {
            self.still = true;
            let idle = Instant::now().checked_add(lease.idle_timeout());
            let due = [idle, self.deadline].into_iter().flatten().min();
            match (due, &mut self.alarm) {
                (Some(due), Some(alarm)) => alarm.as_mut().reset(due),
                (Some(due), None) => self.alarm = Some(Box::pin(tokio::time::sleep_until(due))),
                (None, _) => {}
            }
        }
        let Some(alarm) = &mut self.alarm else {
            return Poll::Pending;
        };
        ready!(alarm.as_mut().poll(context));
        stream.flag(Flags::UPSTREAM_TIMEOUT);
        Poll::Ready(Some(Err(BodyFault::Idle)))
    }

    fn is_ended_by_filter(&self, stream: &Stream, context: &Context<'_>) -> bool {
        if stream.diversion().is_some() {
            return true;
        }
        // A filtered body looks after itself.
        matches!(self.body, Either::Plain(_))
            && matches!(
                stream.poll_resume(Direction::Response, context),
                Poll::Ready(Progress::Respond | Progress::Reset)
            )
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            Either::Plain(incoming) => incoming.is_end_stream(),
            Either::Filtered(filtered) => filtered.done,
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyFault;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> FramePoll {
        let this = self.get_mut();
        let Some(stream) = &this.stream else {
            return match &mut this.source {
                Source::Whole(bytes) => {
                    Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes))))
                }
                Source::Upstream(_) => Poll::Ready(Some(Err(BodyFault::Over))),
            };
        };
        let polled = match &mut this.source {
            Source::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| {
                stream.count(Direction::Response, bytes.len());
                Ok(Frame::data(bytes))
            })),
            Source::Upstream(upstream) => {
                let polled = upstream.poll_frame(stream, context);
                // A filter may end the exchange from the request's side, or from a timer.
                if stream.route.is_filtered && upstream.is_ended_by_filter(stream, context) {
                    Poll::Ready(Some(Err(BodyFault::Filter)))
                } else {
                    polled
                }
            }
        };
        match &polled {
            Poll::Ready(Some(Err(BodyFault::Source(_)))) => stream.flag(Flags::UPSTREAM_CLOSED),
            Poll::Ready(None) => stream.finish(),
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Whole(bytes) => bytes.is_none(),
            Source::Upstream(upstream) => upstream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Whole(bytes) => exact(bytes.as_ref().map_or(0, Bytes::len)),
            Source::Upstream(upstream) => match &upstream.body {
                Either::Plain(incoming) => incoming.size_hint(),
                Either::Filtered(_) => SizeHint::default(),
            },
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            let ended = self.is_end_stream() || stream.record.borrow().flags != Flags::default();
            if !ended {
                stream.flag(Flags::DOWNSTREAM_CLOSED);
            }
            stream.finish();
        }
    }
}
