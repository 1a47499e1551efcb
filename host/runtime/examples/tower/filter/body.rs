//! Bodies on their way through the filters, chunk by chunk. What a filter holds is bounded by the runtime
//! (`Limits::body_bytes`); what is not polled for stays with the sender.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use portcullis_runtime::{Chain, Direction, Progress};
use tokio::sync::mpsc;

use super::{
    BoxError, FilterError,
    stream::{Settled, Stream},
};

type FramePoll = Poll<Option<Result<Frame<Bytes>, BoxError>>>;

/// What the service reads. It is `Send` if the client's body is: a chain is not, so a task on the chain's thread filters.
pub(crate) enum RequestBody<B> {
    /// No filter reads it.
    Plain(B),
    /// Through the filters.
    Filtered(mpsc::Receiver<Result<Frame<Bytes>, BoxError>>),
}

impl<B> RequestBody<B>
where
    B: Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    pub(super) fn new(body: B, stream: &Rc<Stream>, chain: &Chain) -> Self {
        let is_read = chain.reads_request_body() || chain.reads_request_trailers();
        if !is_read || body.is_end_stream() {
            return Self::Plain(body);
        }
        // One frame ahead of the service, no more.
        let (frames, receiver) = mpsc::channel(1);
        let mut filtered = Filtered::new(body, Rc::clone(stream), Direction::Request);
        tokio::task::spawn_local(async move {
            loop {
                let frame = tokio::select! {
                    frame = filtered.frame() => frame,
                    // The service wants no more.
                    () = frames.closed() => return,
                };
                let Some(frame) = frame else { return };
                if frames.send(frame).await.is_err() {
                    return;
                }
            }
        });
        Self::Filtered(receiver)
    }
}

impl<B> Body for RequestBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> FramePoll {
        match self.get_mut() {
            Self::Plain(body) => {
                let frame = ready!(Pin::new(body).poll_frame(context));
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            Self::Filtered(frames) => frames.poll_recv(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Plain(body) => body.is_end_stream(),
            Self::Filtered(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Plain(body) => body.size_hint(),
            Self::Filtered(_) => SizeHint::default(),
        }
    }
}

/// What the client reads. At its end, or when it is dropped, the exchange is over.
pub(crate) struct ResponseBody<R>(Source<R>, Rc<Stream>);

enum Source<R> {
    Whole(Bytes),
    Streamed(Filtered<R>),
}

impl<R> ResponseBody<R> {
    pub(super) fn whole(bytes: Bytes, stream: Rc<Stream>) -> Self {
        Self(Source::Whole(bytes), stream)
    }
}

impl<R> ResponseBody<R>
where
    R: Body<Data = Bytes> + Unpin,
    R::Error: Into<BoxError>,
{
    pub(super) fn streamed(body: R, stream: Rc<Stream>) -> Self {
        let filtered = Filtered::new(body, Rc::clone(&stream), Direction::Response);
        Self(Source::Streamed(filtered), stream)
    }
}

impl<R> Body for ResponseBody<R>
where
    R: Body<Data = Bytes> + Unpin,
    R::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> FramePoll {
        let Self(source, stream) = self.get_mut();
        let polled = match source {
            Source::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Source::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Source::Streamed(filtered) => {
                let polled = Pin::new(filtered).poll_frame(context);
                // The head has gone: whatever a filter wants in its place, only the end of the body can tell the client.
                match stream.take_end() {
                    Some(_) => Poll::Ready(Some(Err(FilterError::Reset.into()))),
                    None => polled,
                }
            }
        };
        if matches!(polled, Poll::Ready(None)) {
            stream.finish();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Source::Whole(bytes) => bytes.is_empty(),
            Source::Streamed(filtered) => filtered.done,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Source::Whole(bytes) => {
                SizeHint::with_exact(u64::try_from(bytes.len()).unwrap_or(u64::MAX))
            }
            Source::Streamed(_) => SizeHint::default(),
        }
    }
}

impl<R> Drop for ResponseBody<R> {
    fn drop(&mut self) {
        self.1.finish();
    }
}

/// A body of one direction, through its filters.
struct Filtered<B> {
    body: B,
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

impl<B: Body<Data = Bytes>> Filtered<B> {
    fn new(body: B, stream: Rc<Stream>, direction: Direction) -> Self {
        Self {
            // The headers' phase has told the filters that there is none.
            done: body.is_end_stream(),
            body,
            stream,
            direction,
            read: false,
            held: false,
            trailers: None,
        }
    }

    fn feed(&mut self, frame: Option<Frame<Bytes>>) -> Progress {
        let Some(frame) = frame else {
            self.read = true;
            return self.stream.body(self.direction, Bytes::new(), true);
        };
        match frame.into_data() {
            Ok(data) => {
                self.read = self.body.is_end_stream();
                self.stream.body(self.direction, data, self.read)
            }
            Err(frame) => match frame.into_trailers() {
                Ok(trailers) => {
                    self.read = true;
                    self.stream.trailers(self.direction, &trailers)
                }
                // `http_body` knows no third kind yet.
                Err(_) => Progress::Reset,
            },
        }
    }
}

impl<B> Body for Filtered<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> FramePoll {
        let this = self.get_mut();
        loop {
            if let Some(trailers) = this.trailers.take() {
                this.done = true;
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
            if this.done {
                return Poll::Ready(None);
            }
            let waits = this.held && this.read;
            let progress = if waits || this.stream.is_woken(this.direction) {
                match this.stream.poll_resume(this.direction, context) {
                    Poll::Ready(progress) => progress,
                    Poll::Pending if this.read => return Poll::Pending,
                    Poll::Pending => Progress::Pause,
                }
            } else {
                this.stream.watch(this.direction, context);
                let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
                match frame.transpose() {
                    Ok(frame) => this.feed(frame),
                    Err(error) => {
                        this.done = true;
                        return Poll::Ready(Some(Err(error.into())));
                    }
                }
            };
            let end = match progress {
                Progress::Continue => {
                    this.held = false;
                    let out = this.stream.take_body(this.direction);
                    if this.read {
                        this.trailers = this.stream.take_trailers(this.direction);
                        this.done = this.trailers.is_none();
                    }
                    if out.is_empty() {
                        continue;
                    }
                    return Poll::Ready(Some(Ok(Frame::data(out))));
                }
                Progress::Pause => {
                    this.held = true;
                    continue;
                }
                Progress::Respond => Settled::Respond,
                Progress::Reset => Settled::Reset,
            };
            this.done = true;
            this.stream.divert(end);
            return Poll::Ready(Some(Err(FilterError::Reset.into())));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.done
    }
}
