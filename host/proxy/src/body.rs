//! Bodies on their way through: streamed, and run through the filters where there are any that look at them. What nobody reads stays in the
//! sender's socket.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use portcullis_runtime::{Direction, Progress};
use tokio::time::{Instant, Sleep};

use crate::filtered::Filtered;
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

pub(crate) type FramePoll = Poll<Option<Result<Frame<Bytes>, BodyFault>>>;

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
                if let Some(Err(error)) = &frame {
                    stream.request_is_broken(error);
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
            Self::Filtered(filtered) => filtered.is_done(),
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

/// What goes to a client.
pub(crate) struct ResponseBody {
    source: Source,
    stream: Option<Rc<Stream>>,
}

enum Source {
    Whole(Option<Bytes>),
    Upstream(Box<UpstreamBody>),
}

/// An upstream's, with what bounds its coming.
pub(crate) struct UpstreamBody {
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
            let stream = Rc::clone(&stream);
            Either::Filtered(Filtered::new(incoming, stream, Direction::Response))
        } else {
            Either::Plain(incoming)
        };
        Self::begun(UpstreamBody::new(body, lease, deadline), stream)
    }

    /// The rest of one that filters have let the headers wait for.
    pub(crate) fn begun(body: UpstreamBody, stream: Rc<Stream>) -> Self {
        Self {
            source: Source::Upstream(Box::new(body)),
            stream: Some(stream),
        }
    }
}

impl UpstreamBody {
    /// One that filters see before its headers have passed.
    pub(crate) fn filtered(
        incoming: Incoming,
        lease: Lease,
        stream: &Rc<Stream>,
        deadline: Option<Instant>,
    ) -> Self {
        let body = Filtered::new(incoming, Rc::clone(stream), Direction::Response);
        Self::new(Either::Filtered(body), lease, deadline)
    }

    fn new(body: Either, lease: Lease, deadline: Option<Instant>) -> Self {
        Self {
            body,
            lease: Some(lease),
            deadline,
            alarm: None,
            still: false,
        }
    }

    /// As [`Filtered::poll_headers`], in the time that an upstream has.
    pub(crate) fn poll_headers(
        &mut self,
        stream: &Stream,
        context: &mut Context<'_>,
    ) -> Poll<Result<Progress, BodyFault>> {
        if let Some(diversion) = stream.diversion() {
            stream.clear_diversion();
            return Poll::Ready(Ok(match diversion {
                Diversion::Respond => Progress::Respond,
                Diversion::Reset => Progress::Reset,
            }));
        }
        let Either::Filtered(filtered) = &mut self.body else {
            return Poll::Ready(Ok(Progress::Continue));
        };
        let polled = filtered.poll_headers(context);
        if filtered.is_read()
            && let Some(lease) = self.lease.take()
        {
            lease.give_back();
        }
        match polled {
            Poll::Ready(polled) => {
                self.still = false;
                if polled.is_err() {
                    stream.flag(Flags::UPSTREAM_CLOSED);
                }
                Poll::Ready(polled)
            }
            Poll::Pending => self.poll_alarm(stream, context).map(Err),
        }
    }

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
                if filtered.is_read()
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
            .map(|fault| Some(Err(fault)))
    }

    /// Nothing came: how long may that last?
    fn poll_alarm(&mut self, stream: &Stream, context: &mut Context<'_>) -> Poll<BodyFault> {
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
        Poll::Ready(BodyFault::Idle)
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
            Either::Filtered(filtered) => filtered.is_done(),
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
