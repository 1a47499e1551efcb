//! One exchange's state, shared by the three futures that carry it: the one that waits for the answer, the request body on its way to the
//! upstream, and the response body on its way to the client. All run on one thread.
//!
//! The exchange ends when its answer has been sent, or when the last of the three is dropped: an aborted client leaves nothing behind, and
//! its filters still see log, done and delete.

use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method};
use portcullis_runtime::{Direction, Exchange, HttpStream, Progress, Protocol, StreamToken};

use crate::connection::Turn;
use crate::edition::{RouteState, Stay};
use crate::fields::{HttpFields, to_header_map};

/// What is written about an exchange when it is over.
#[derive(Debug)]
pub(crate) struct Record {
    /// `x-request-id`, which is also the decision id in answers.
    pub(crate) id: HeaderValue,
    /// As received.
    pub(crate) method: Method,
    /// Normalised. Its query may hold secrets and is not for the log.
    pub(crate) path: Option<PathAndQuery>,
    /// The status sent; 0 where none was.
    pub(crate) status: u16,
    /// Envoy's response flags.
    pub(crate) flags: Flags,
    /// Bytes of the request body received.
    pub(crate) request_size: u64,
    /// Bytes of the response body sent.
    pub(crate) response_size: u64,
    /// The endpoint.
    pub(crate) upstream: Option<SocketAddr>,
    /// The protocol downstream.
    pub(crate) protocol: Protocol,
    /// When it began.
    pub(crate) begun: Instant,
    /// The same, ns since 1970.
    pub(crate) begun_unix_ns: u64,
}

/// Envoy's response flags (envoy/stream_info/stream_info.h), bit by bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags(pub(crate) u64);

impl Flags {
    /// `UH`: no address known.
    pub(crate) const NO_UPSTREAM: Self = Self(1 << 1);
    /// `UT`: no answer in time.
    pub(crate) const UPSTREAM_TIMEOUT: Self = Self(1 << 2);
    /// `UF`: no connection.
    pub(crate) const CONNECT_FAILURE: Self = Self(1 << 5);
    /// `UC`: the connection broke.
    pub(crate) const UPSTREAM_CLOSED: Self = Self(1 << 6);
    /// `NR`: no route.
    pub(crate) const NO_ROUTE: Self = Self(1 << 8);
    /// `DC`: the client went away.
    pub(crate) const DOWNSTREAM_CLOSED: Self = Self(1 << 14);
    /// `SI`: nothing moved for too long.
    pub(crate) const STREAM_IDLE: Self = Self(1 << 16);
    /// `DPE`: the client broke the protocol.
    pub(crate) const DOWNSTREAM_PROTOCOL: Self = Self(1 << 18);
    /// `UPE`: the upstream broke the protocol.
    pub(crate) const UPSTREAM_PROTOCOL: Self = Self(1 << 23);

    const NAMES: [(Self, &'static str); 9] = [
        (Self::NO_UPSTREAM, "UH"),
        (Self::UPSTREAM_TIMEOUT, "UT"),
        (Self::CONNECT_FAILURE, "UF"),
        (Self::UPSTREAM_CLOSED, "UC"),
        (Self::NO_ROUTE, "NR"),
        (Self::DOWNSTREAM_CLOSED, "DC"),
        (Self::STREAM_IDLE, "SI"),
        (Self::DOWNSTREAM_PROTOCOL, "DPE"),
        (Self::UPSTREAM_PROTOCOL, "UPE"),
    ];

    /// With these too.
    pub(crate) const fn insert(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Envoy's short names, with commas between.
    pub(crate) fn to_names(self) -> String {
        let set = Self::NAMES.iter().filter(|(flag, _)| self.0 & flag.0 != 0);
        set.map(|(_, name)| *name).collect::<Vec<_>>().join(",")
    }
}

/// Whether what came cannot be read (hyper tells it of chunks by the kind of an I/O error), rather than that nothing more comes.
fn is_malformed(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|it| it.downcast_ref::<io::Error>());
    source.is_some_and(|it| {
        matches!(
            it.kind(),
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData
        )
    })
}

/// How a filter ended an exchange out of turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Diversion {
    /// It answers itself; the answer stands in the exchange.
    Respond,
    /// No answer.
    Reset,
}

/// One exchange.
pub(crate) struct Stream {
    /// The policy it runs under, from its beginning to its end.
    pub(crate) edition: Stay,
    /// Where it goes.
    pub(crate) route: Rc<RouteState>,
    /// What it came over.
    pub(crate) connection: Turn,
    /// What will be written about it.
    pub(crate) record: RefCell<Record>,
    /// When the last of the request was read.
    pub(crate) request_read: Cell<Option<Instant>>,
    /// Where it goes in place of `route`, if a filter had that chosen anew.
    onward: OnceCell<Rc<RouteState>>,
    http: RefCell<Option<HttpStream>>,
    token: Cell<Option<StreamToken>>,
    diversion: Cell<Option<Diversion>>,
    request_broken: Cell<bool>,
    answered: Cell<bool>,
    finished: Cell<bool>,
    woken: [Cell<bool>; 2],
    wakers: [Cell<Option<Waker>>; 2],
}

impl Stream {
    /// An exchange that no filter has seen yet.
    pub(crate) fn new(
        edition: Stay,
        route: Rc<RouteState>,
        connection: Turn,
        record: Record,
    ) -> Rc<Self> {
        Rc::new(Self {
            edition,
            route,
            connection,
            record: RefCell::new(record),
            request_read: Cell::new(None),
            onward: OnceCell::new(),
            http: RefCell::new(None),
            token: Cell::new(None),
            diversion: Cell::new(None),
            request_broken: Cell::new(false),
            answered: Cell::new(false),
            finished: Cell::new(false),
            woken: Default::default(),
            wakers: Default::default(),
        })
    }

    /// Puts the exchange on its chain.
    pub(crate) fn start(self: &Rc<Self>, exchange: Exchange) {
        let token = self.edition.embedder.admit(Rc::downgrade(self));
        self.token.set(Some(token));
        *self.http.borrow_mut() = Some(HttpStream::new(&self.route.chain, exchange, token));
    }

    /// Does something to the runtime's stream; `None` where no filter stands or the exchange is over.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut HttpStream) -> T) -> Option<T> {
        self.http.borrow_mut().as_mut().map(act)
    }

    /// It goes there; chosen once.
    pub(crate) fn set_onward(&self, route: &Rc<RouteState>) {
        self.onward.set(Rc::clone(route)).ok();
    }

    /// Whether filters see it.
    pub(crate) fn is_filtered(&self) -> bool {
        self.http.borrow().is_some()
    }

    /// A plugin has something for this exchange.
    pub(crate) fn wake(&self) {
        for (woken, waker) in self.woken.iter().zip(&self.wakers) {
            woken.set(true);
            if let Some(waker) = waker.take() {
                waker.wake();
            }
        }
    }

    fn slot<T>(of: &[T; 2], direction: Direction) -> &T {
        let [request, response] = of;
        match direction {
            Direction::Request => request,
            Direction::Response => response,
        }
    }

    /// Has the current task polled when there is news for this direction.
    pub(crate) fn watch(&self, direction: Direction, context: &Context<'_>) {
        Self::slot(&self.wakers, direction).set(Some(context.waker().clone()));
    }

    /// What has become of a held phase; `Pending` while it is held.
    pub(crate) fn poll_resume(
        &self,
        direction: Direction,
        context: &Context<'_>,
    ) -> Poll<Progress> {
        self.watch(direction, context);
        if !Self::slot(&self.woken, direction).replace(false) {
            return Poll::Pending;
        }
        match self.with(|http| http.resume(direction)) {
            Some(Progress::Pause) => Poll::Pending,
            Some(progress) => Poll::Ready(progress),
            None => Poll::Ready(Progress::Reset),
        }
    }

    /// Whether a filter holds the headers alone, and is to be shown the body.
    pub(crate) fn wants_body(&self, direction: Direction) -> bool {
        self.with(|http| http.wants_body(direction))
            .unwrap_or_default()
    }

    /// Whether all filters have let the headers go.
    pub(crate) fn has_passed_headers(&self, direction: Direction) -> bool {
        self.with(|http| http.has_passed_headers(direction))
            .unwrap_or_default()
    }

    /// Whether there is news for this direction that [`Stream::poll_resume`] would act on.
    pub(crate) fn is_woken(&self, direction: Direction) -> bool {
        Self::slot(&self.woken, direction).get()
    }

    /// A filter ends the exchange while another future carries it on: tells that one.
    pub(crate) fn divert(&self, diversion: Diversion) {
        self.diversion.set(Some(diversion));
        // Where the upstream's head is held, the runtime tells the same.
        Self::slot(&self.woken, Direction::Response).set(true);
        if let Some(waker) = Self::slot(&self.wakers, Direction::Response).take() {
            waker.wake();
        }
    }

    /// How the exchange was ended out of turn, if it was.
    pub(crate) fn diversion(&self) -> Option<Diversion> {
        self.diversion.get()
    }

    /// The diversion is being acted on.
    pub(crate) fn clear_diversion(&self) {
        self.diversion.set(None);
    }

    /// The last of the request has been read: the upstream's time begins.
    pub(crate) fn request_is_read(&self) {
        if self.request_read.get().is_none() {
            self.request_read.set(Some(Instant::now()));
            if let Some(waker) = Self::slot(&self.wakers, Direction::Response).take() {
                waker.wake();
            }
        }
    }

    /// The request's body ended before its end: what the client sent is no HTTP, or it went away.
    pub(crate) fn request_is_broken(&self, error: &hyper::Error) {
        self.request_broken.set(true);
        self.flag(if is_malformed(error) {
            Flags::DOWNSTREAM_PROTOCOL
        } else {
            Flags::DOWNSTREAM_CLOSED
        });
    }

    /// Whether it did.
    pub(crate) fn is_request_broken(&self) -> bool {
        self.request_broken.get()
    }

    /// Counts bytes of a body.
    pub(crate) fn count(&self, direction: Direction, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let mut record = self.record.borrow_mut();
        let size = match direction {
            Direction::Request => &mut record.request_size,
            Direction::Response => &mut record.response_size,
        };
        *size = size.saturating_add(bytes);
    }

    /// Runs a chunk through the filters.
    pub(crate) fn body(&self, direction: Direction, chunk: Bytes, end_of_stream: bool) -> Progress {
        let size = {
            let record = self.record.borrow();
            (record.request_size, record.response_size)
        };
        let progress = self.with(|http| {
            {
                let info = &mut http.exchange_mut().info;
                (info.request_size, info.response_size) = size;
            }
            match direction {
                Direction::Request => http.request_body(chunk, end_of_stream),
                Direction::Response => http.response_body(chunk, end_of_stream),
            }
        });
        progress.unwrap_or(Progress::Reset)
    }

    /// What has passed the last filter.
    pub(crate) fn take_body(&self, direction: Direction) -> Bytes {
        let body = self.with(|http| match direction {
            Direction::Request => http.take_request_body(),
            Direction::Response => http.take_response_body(),
        });
        body.unwrap_or_default()
    }

    /// Runs trailers through the filters.
    pub(crate) fn trailers(&self, direction: Direction, trailers: HeaderMap) -> Progress {
        let progress = self.with(|http| {
            let fields = Some(
                Box::new(HttpFields::trailers(trailers)) as Box<dyn portcullis_runtime::Fields>
            );
            match direction {
                Direction::Request => {
                    http.exchange_mut().request_trailers = fields;
                    http.request_trailers()
                }
                Direction::Response => {
                    http.exchange_mut().response_trailers = fields;
                    http.response_trailers()
                }
            }
        });
        progress.unwrap_or(Progress::Reset)
    }

    /// The trailers as the filters left or made them.
    pub(crate) fn take_trailers(&self, direction: Direction) -> Option<HeaderMap> {
        let trailers = self.with(|http| match direction {
            Direction::Request => http
                .exchange()
                .request_trailers
                .as_deref()
                .map(to_header_map),
            Direction::Response => http
                .exchange()
                .response_trailers
                .as_deref()
                .map(to_header_map),
        });
        trailers.flatten().filter(|trailers| !trailers.is_empty())
    }

    /// The head of the answer is on its way to the client; from now on a diversion can only be a reset.
    pub(crate) fn set_answered(&self, status: u16) {
        self.answered.set(true);
        self.record.borrow_mut().status = status;
    }

    /// Adds flags for the log.
    pub(crate) fn flag(&self, flags: Flags) {
        self.record.borrow_mut().flags.insert(flags);
    }

    /// The exchange is over: log, done, delete; counted and written down. Does its work once.
    pub(crate) fn finish(&self) {
        if self.finished.replace(true) {
            return;
        }
        let record = self.record.borrow();
        let now = Instant::now();
        let duration = now.saturating_duration_since(record.begun);
        let http = self.http.borrow_mut().take();
        if let Some(mut http) = http {
            {
                let info = &mut http.exchange_mut().info;
                info.request_size = record.request_size;
                info.response_size = record.response_size;
                info.duration_ns = Some(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
                info.response_code = (record.status != 0).then_some(record.status);
                info.response_flags = record.flags.0;
                info.upstream_address = record.upstream;
            }
            http.finish();
        }
        if let Some(token) = self.token.take() {
            self.edition.embedder.dismiss(token);
        }
        self.connection.end(now);
        self.edition.stats.count(record.status, duration);
        let route = self.onward.get().unwrap_or(&self.route);
        self.edition
            .write_log(&record, duration, &self.connection, route);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.finished.get() {
            if !self.answered.get() {
                self.flag(Flags::DOWNSTREAM_CLOSED);
            }
            self.finish();
        }
    }
}
