//! One exchange, shared by the futures that carry it: the one that waits for the service's answer, and the two bodies on their way. The last
//! of them to go ends it, so that filters see log, done and delete of a client that went away, too.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    net::SocketAddr,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Version, request, response};
use portcullis_runtime::{
    ConnectionInfo, Direction, Embedder as _, Exchange, Fields, HttpStream, Progress, Protocol,
    StreamInfo, StreamToken, TlsInfo,
};

use super::{FilterError, Gate, World, fields};

/// How long filters may hold headers. A callout's answer or a tick that has not come by then does not come.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// What the server knows of a connection; it puts it into each request's extensions.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Unique in the process.
    pub(crate) id: u64,
    /// The client.
    pub(crate) source: SocketAddr,
    /// This end.
    pub(crate) destination: SocketAddr,
    /// Present if, and only if, the connection is TLS.
    pub(crate) tls: Option<TlsInfo>,
}

/// How a phase ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    Passed,
    Respond,
    Reset,
}

pub(super) struct Stream {
    http: RefCell<Option<HttpStream>>,
    world: Rc<World>,
    token: StreamToken,
    begun_ns: u64,
    /// By direction: a plugin has something for it, and who waits to hear that.
    woken: [Cell<bool>; 2],
    wakers: [Cell<Option<Waker>>; 2],
    /// How a filter of a body ended the exchange.
    end: Cell<Option<Settled>>,
}

fn side<T>([request, response]: &[T; 2], direction: Direction) -> &T {
    match direction {
        Direction::Request => request,
        Direction::Response => response,
    }
}

impl Stream {
    pub(super) fn enter(gate: &Gate, peer: &Peer, parts: &request::Parts) -> Rc<Self> {
        let world = Rc::clone(&gate.world);
        let mut connection = ConnectionInfo::new(peer.id, peer.source, peer.destination);
        connection.tls.clone_from(&peer.tls);
        let protocol = match parts.version {
            Version::HTTP_10 => Protocol::Http10,
            Version::HTTP_2 => Protocol::Http2,
            _ => Protocol::Http11,
        };
        let info = StreamInfo::new(
            Rc::new(connection),
            Rc::clone(&gate.route),
            protocol,
            world.unix_time_ns(),
        );
        let headers = fields::of_request(parts, peer.tls.is_some());
        let exchange = Exchange::new(Box::new(headers), info);
        Rc::new_cyclic(|stream| {
            let token = world.admit(stream.clone());
            Self {
                http: RefCell::new(Some(HttpStream::new(&gate.chain, exchange, token))),
                begun_ns: world.monotonic_ns(),
                world,
                token,
                woken: Default::default(),
                wakers: Default::default(),
                end: Cell::new(None),
            }
        })
    }

    /// Does something to the runtime's stream; `None` once the exchange is over.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut HttpStream) -> T) -> Option<T> {
        self.http.borrow_mut().as_mut().map(act)
    }

    /// Runs a phase of headers, or a body that is here as a whole, and waits while a filter holds it.
    pub(super) async fn settle(
        &self,
        direction: Direction,
        act: impl FnOnce(&mut HttpStream) -> Progress,
    ) -> Result<Settled, FilterError> {
        let mut progress = self.with(act).unwrap_or(Progress::Reset);
        if progress == Progress::Pause {
            let resumed = poll_fn(|context| self.poll_resume(direction, context));
            progress = tokio::time::timeout(PAUSE_MAX, resumed)
                .await
                .map_err(|_| FilterError::TooLong)?;
        }
        match progress {
            Progress::Continue => Ok(Settled::Passed),
            Progress::Respond => Ok(Settled::Respond),
            Progress::Reset | Progress::Pause => Err(FilterError::Reset),
        }
    }

    /// What has become of a held phase; `Pending` while it is held.
    pub(super) fn poll_resume(
        &self,
        direction: Direction,
        context: &Context<'_>,
    ) -> Poll<Progress> {
        self.watch(direction, context);
        if !side(&self.woken, direction).replace(false) {
            return Poll::Pending;
        }
        match self.with(|http| http.resume(direction)) {
            Some(Progress::Pause) => Poll::Pending,
            Some(progress) => Poll::Ready(progress),
            None => Poll::Ready(Progress::Reset),
        }
    }

    /// How a filter of a body has ended the exchange, if it has. Once told, it is forgotten.
    pub(super) fn take_end(&self) -> Option<Settled> {
        self.end.take()
    }

    /// The same, or from elsewhere: a timer, another exchange.
    pub(super) fn poll_end(&self, context: &Context<'_>) -> Option<Settled> {
        if let Some(end) = self.take_end() {
            return Some(end);
        }
        match self.poll_resume(Direction::Response, context) {
            Poll::Ready(Progress::Respond) => Some(Settled::Respond),
            Poll::Ready(Progress::Reset) => Some(Settled::Reset),
            Poll::Ready(Progress::Continue | Progress::Pause) | Poll::Pending => None,
        }
    }

    /// A filter of a body ends the exchange: tells whoever carries the answer.
    pub(super) fn divert(&self, end: Settled) {
        self.end.set(Some(end));
        // Where the service's head is held, the runtime tells the same.
        side(&self.woken, Direction::Response).set(true);
        if let Some(waker) = side(&self.wakers, Direction::Response).take() {
            waker.wake();
        }
    }

    /// Has the current task polled when there is news for this direction.
    pub(super) fn watch(&self, direction: Direction, context: &Context<'_>) {
        side(&self.wakers, direction).set(Some(context.waker().clone()));
    }

    pub(super) fn is_woken(&self, direction: Direction) -> bool {
        side(&self.woken, direction).get()
    }

    /// A plugin has something for this exchange.
    pub(super) fn wake(&self) {
        for (woken, waker) in self.woken.iter().zip(&self.wakers) {
            woken.set(true);
            if let Some(waker) = waker.take() {
                waker.wake();
            }
        }
    }

    /// Runs body bytes through the filters.
    pub(super) fn body(&self, direction: Direction, chunk: Bytes, end_of_stream: bool) -> Progress {
        let bytes = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        let progress = self.with(|http| match direction {
            Direction::Request => {
                http.exchange_mut().info.request_size += bytes;
                http.request_body(chunk, end_of_stream)
            }
            Direction::Response => {
                http.exchange_mut().info.response_size += bytes;
                http.response_body(chunk, end_of_stream)
            }
        });
        progress.unwrap_or(Progress::Reset)
    }

    /// Runs trailers through the filters.
    pub(super) fn trailers(&self, direction: Direction, trailers: &HeaderMap) -> Progress {
        let fields: Box<dyn Fields> = Box::new(fields::of_trailers(trailers));
        let progress = self.with(|http| match direction {
            Direction::Request => {
                http.exchange_mut().request_trailers = Some(fields);
                http.request_trailers()
            }
            Direction::Response => {
                http.exchange_mut().response_trailers = Some(fields);
                http.response_trailers()
            }
        });
        progress.unwrap_or(Progress::Reset)
    }

    /// Body bytes that have passed the filters.
    pub(super) fn take_body(&self, direction: Direction) -> Bytes {
        let body = self.with(|http| match direction {
            Direction::Request => http.take_request_body(),
            Direction::Response => http.take_response_body(),
        });
        body.unwrap_or_default()
    }

    /// The trailers as filters left or made them.
    pub(super) fn take_trailers(&self, direction: Direction) -> Option<HeaderMap> {
        let trailers = self.with(|http| {
            let exchange = http.exchange();
            let trailers = match direction {
                Direction::Request => &exchange.request_trailers,
                Direction::Response => &exchange.response_trailers,
            };
            trailers.as_deref().map(fields::headers_of)
        });
        trailers.flatten().filter(|trailers| !trailers.is_empty())
    }

    /// Puts the response's head as filters left it into `parts`.
    pub(super) fn write_response(&self, parts: &mut response::Parts) -> Result<(), FilterError> {
        let written = self.with(|http| {
            let mut exchange = http.exchange_mut();
            let written = exchange
                .response_headers
                .as_deref()
                .map(|fields| fields::write_response(parts, fields));
            exchange.info.response_code = Some(parts.status.as_u16());
            written
        });
        match written.flatten() {
            Some(Ok(())) => Ok(()),
            Some(Err(_)) => Err(FilterError::Invalid),
            None => Err(FilterError::Reset),
        }
    }

    /// The exchange is over: log, done, delete. Does its work once.
    pub(super) fn finish(&self) {
        let Some(mut http) = self.http.borrow_mut().take() else {
            return;
        };
        let duration = self.world.monotonic_ns().saturating_sub(self.begun_ns);
        http.exchange_mut().info.duration_ns = Some(duration);
        http.finish();
        self.world.dismiss(self.token);
        // Whoever still waits for a filter waits in vain.
        self.wake();
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.finish();
    }
}
