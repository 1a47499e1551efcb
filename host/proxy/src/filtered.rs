//! A body that is run through the filters' body and trailer callbacks, and held while a filter pauses. What a filter holds is bounded by the
//! runtime.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use portcullis_runtime::{Direction, Progress};

use crate::body::{BodyFault, FramePoll};
use crate::stream::{Diversion, Stream};

/// A body that passes the filters of its direction.
pub(crate) struct Filtered {
    incoming: Incoming,
    stream: Rc<Stream>,
    direction: Direction,
    /// Nothing more comes in.
    read: bool,
    /// A filter holds what came in.
    held: bool,
    /// All that came in has passed, and nobody took it yet.
    passed: bool,
    /// Nothing more goes out but these.
    trailers: Option<HeaderMap>,
    done: bool,
}

impl Filtered {
    /// Of `incoming`, whose headers have passed, or will in [`Filtered::poll_headers`].
    pub(crate) fn new(incoming: Incoming, stream: Rc<Stream>, direction: Direction) -> Self {
        Self {
            incoming,
            stream,
            direction,
            read: false,
            held: false,
            passed: false,
            trailers: None,
            done: false,
        }
    }

    /// Whether nothing more comes in.
    pub(crate) fn is_read(&self) -> bool {
        self.read
    }

    /// Whether nothing more goes out.
    pub(crate) fn is_done(&self) -> bool {
        self.done
    }

    /// What comes out.
    pub(crate) fn poll_frame(&mut self, context: &mut Context<'_>) -> FramePoll {
        loop {
            if let Some(trailers) = self.trailers.take() {
                self.done = true;
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
            if self.done {
                return Poll::Ready(None);
            }
            let progress = if std::mem::take(&mut self.passed) {
                Progress::Continue
            } else if self.stream.is_woken(self.direction) || (self.held && self.read) {
                match self.stream.poll_resume(self.direction, context) {
                    Poll::Ready(progress) => progress,
                    Poll::Pending if self.read => return Poll::Pending,
                    Poll::Pending => Progress::Pause,
                }
            } else {
                match ready!(self.poll_incoming(context)) {
                    Ok(progress) => progress,
                    Err(fault) => return Poll::Ready(Some(Err(fault))),
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

    /// One step of headers that a filter holds alone: shows the filters what comes next of the body, or goes on where they paused. `Continue`
    /// once the headers have passed, `Pause` where another step is needed.
    pub(crate) fn poll_headers(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Progress, BodyFault>> {
        let direction = self.direction;
        loop {
            if self.stream.has_passed_headers(direction) {
                return Poll::Ready(Ok(Progress::Continue));
            }
            let feeds = self.stream.wants_body(direction) && !self.read;
            let was_woken = self.stream.is_woken(direction);
            let progress = if feeds && !was_woken {
                ready!(self.poll_incoming(context))?
            } else {
                match self.stream.poll_resume(direction, context) {
                    Poll::Ready(progress) => progress,
                    Poll::Pending if was_woken => Progress::Pause,
                    Poll::Pending => return Poll::Pending,
                }
            };
            if matches!(progress, Progress::Respond | Progress::Reset) {
                return Poll::Ready(Ok(progress));
            }
            self.passed = progress == Progress::Continue;
            self.held = !self.passed;
            if feeds && !was_woken {
                return Poll::Ready(Ok(Progress::Pause));
            }
        }
    }

    /// What becomes of the next frame.
    fn poll_incoming(&mut self, context: &mut Context<'_>) -> Poll<Result<Progress, BodyFault>> {
        self.stream.watch(self.direction, context);
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(context));
        Poll::Ready(match frame {
            Some(Err(error)) => {
                if self.direction == Direction::Request {
                    self.stream.request_is_broken(&error);
                }
                Err(error.into())
            }
            Some(Ok(frame)) => Ok(self.run(frame)),
            None => {
                self.end();
                Ok(self.stream.body(self.direction, Bytes::new(), true))
            }
        })
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
