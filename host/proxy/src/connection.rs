//! One client connection: the TLS handshake, HTTP/1 and HTTP/2 on it, and how long it may stand still.
//!
//! Time-outs are looked after by the worker's sweep, once a second for all connections, rather than by a timer a request.

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::Deref;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use portcullis_runtime::ConnectionInfo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;

use crate::acceptor::Terms;
use crate::edition::Stay;
use crate::fields::Scheme;
use crate::forwarded::Client;
use crate::limits::{
    CLOSE_GRACE, CONNECTION_IDLE_TIMEOUT, CONNECTION_STALL_TIMEOUT, FIRST_REQUEST_TIMEOUT,
    H2_CONNECTION_WINDOW, H2_LOCAL_RESETS_MAX, H2_PENDING_RESETS_MAX, H2_SEND_BUFFER,
    H2_STREAM_WINDOW, H2_STREAMS_MAX, LINGER_BYTES_MAX, LINGER_TIMEOUT, REQUEST_HEAD_BYTES_MAX,
    REQUEST_HEADERS_MAX, TLS_HANDSHAKE_TIMEOUT,
};
use crate::request;
use crate::spawn::Local;
use crate::tcp::{self, TcpRoute};
use crate::worker::Worker;

/// A connection as it comes from the acceptor.
#[derive(Debug)]
pub(crate) struct Accepted {
    /// The socket.
    pub(crate) stream: std::net::TcpStream,
    /// Facts about it, without TLS.
    pub(crate) source: std::net::SocketAddr,
    /// The listener's end.
    pub(crate) destination: std::net::SocketAddr,
    /// What its listener asked for then.
    pub(crate) terms: Arc<Terms>,
    /// Unique in the process.
    pub(crate) id: u64,
    /// Gives the place back when dropped.
    pub(crate) place: Place,
}

/// A connection's place among those of its worker and of the process.
#[derive(Debug)]
pub(crate) struct Place {
    /// Open connections of the worker.
    pub(crate) worker: Arc<AtomicUsize>,
    /// One of the process's [`CONNECTIONS_MAX`](crate::limits::CONNECTIONS_MAX); given back when dropped.
    pub(crate) _permit: tokio::sync::OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.worker.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An open connection.
pub(crate) struct Connection {
    /// Facts, for properties.
    pub(crate) info: Rc<ConnectionInfo>,
    /// By the connection.
    pub(crate) scheme: Scheme,
    /// The same and the other end, for upstreams.
    pub(crate) client: Client,
    open: Cell<usize>,
    served: Cell<bool>,
    idle_since: Cell<Instant>,
    /// Reads and writes so far.
    moved: Arc<AtomicU64>,
    moved_seen: Cell<u64>,
    moved_at: Cell<Instant>,
    /// How long nothing may move while something is open.
    stall_timeout: Duration,
    closing: Cell<Closing>,
    close: Notify,
    terms: Arc<Terms>,
    _place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closing {
    No,
    Graceful(Instant),
    Abort,
}

/// A request on its connection; over when dropped, if not before.
pub(crate) struct Turn {
    connection: Rc<Connection>,
    over: Cell<bool>,
}

impl Turn {
    /// It is over, now.
    pub(crate) fn end(&self, now: Instant) {
        if self.over.replace(true) {
            return;
        }
        let open = self.open.get().saturating_sub(1);
        self.open.set(open);
        if open == 0 {
            self.idle_since.set(now);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.over.get() {
            self.end(Instant::now());
        }
    }
}

impl Deref for Turn {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

/// A request from the moment it is handed over: what it runs on, and its place on the connection.
pub(crate) type Begun = (Stay, Turn);

impl Connection {
    /// A request begins.
    pub(crate) fn enter(self: &Rc<Self>) -> Turn {
        self.open.set(self.open.get().saturating_add(1));
        self.served.set(true);
        Turn {
            connection: Rc::clone(self),
            over: Cell::new(false),
        }
    }

    /// A request begins, unless its client had to be gone by now: one that does not let HTTP/2 end could go on for as long as it keeps a stream
    /// open, under a policy that may not let it in.
    fn admit(self: &Rc<Self>) -> Option<Turn> {
        if self.terms.have_ended() {
            let now = Instant::now();
            self.close_gracefully(now);
            if self.grace_is_over(now) {
                return None;
            }
        }
        Some(self.enter())
    }

    fn grace_is_over(&self, now: Instant) -> bool {
        match self.closing.get() {
            Closing::No => false,
            Closing::Graceful(since) => now.saturating_duration_since(since) >= CLOSE_GRACE,
            Closing::Abort => true,
        }
    }

    /// Lets requests under way end, and takes no more.
    pub(crate) fn close_gracefully(&self, now: Instant) {
        if self.closing.get() == Closing::No {
            self.closing.set(Closing::Graceful(now));
            self.close.notify_one();
        }
    }

    /// Closes at once.
    pub(crate) fn abort(&self) {
        self.closing.set(Closing::Abort);
        self.close.notify_one();
    }

    /// Resolves when the connection is to be closed at once.
    pub(crate) async fn aborted(&self) {
        while self.closing.get() != Closing::Abort {
            self.close.notified().await;
        }
    }

    /// Closes what has stood still for too long.
    pub(crate) fn sweep(&self, now: Instant) {
        if self.terms.have_ended() {
            match (self.terms.is_tcp, self.terms.are_replaced()) {
                (false, _) => self.close_gracefully(now),
                // There is no request to wait for.
                (true, true) => return self.abort(),
                (true, false) => {}
            }
        }
        let moved = self.moved.load(Ordering::Relaxed);
        if self.moved_seen.replace(moved) != moved {
            self.moved_at.set(now);
        }
        if self.open.get() > 0 {
            if now.saturating_duration_since(self.moved_at.get()) >= self.stall_timeout {
                self.abort();
            }
            return;
        }
        let idle = now.saturating_duration_since(self.idle_since.get());
        match self.closing.get() {
            Closing::Graceful(_) if self.grace_is_over(now) => self.abort(),
            Closing::No if !self.served.get() && idle >= FIRST_REQUEST_TIMEOUT => self.abort(),
            Closing::No if idle >= CONNECTION_IDLE_TIMEOUT => self.close_gracefully(now),
            _ => {}
        }
    }
}

/// What carries a TCP connection.
type Carrier = (Stay, Rc<TcpRoute>);

/// Serves a connection until it ends.
pub(crate) fn serve(worker: Rc<Worker>, accepted: Accepted) -> impl Future<Output = ()> {
    // Taken now, and not after the handshake: the listener has this name in the policy that runs now.
    let terms = &accepted.terms;
    let carrier = terms.is_tcp.then(|| {
        let edition = worker.edition();
        let route = edition.tcp_route(&terms.listener)?;
        Some(Box::new((edition.stay(), route)))
    });
    async move {
        match carrier {
            None => shake_hands(worker, accepted, None).await,
            Some(Some(carrier)) => shake_hands(worker, accepted, Some(carrier)).await,
            // No listener of this name: none that is taken out is accepted from after the switch.
            Some(None) => {
                tracing::error!(source = %accepted.source, "a TCP listener without a route")
            }
        }
    }
}

async fn shake_hands(worker: Rc<Worker>, accepted: Accepted, carrier: Option<Box<Carrier>>) {
    let Accepted {
        stream,
        source,
        destination,
        terms,
        id,
        place,
    } = accepted;
    let stream = match stream
        .set_nodelay(true)
        .and_then(|()| TcpStream::from_std(stream))
    {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%source, %error, "connection lost");
            return;
        }
    };
    let info = ConnectionInfo {
        id,
        source,
        destination,
        tls: None,
        state: Default::default(),
    };
    match terms.tls.clone() {
        None => run((worker, terms, place), carrier, stream, info, Scheme::Http).await,
        Some(tls) => {
            let acceptor = TlsAcceptor::from(Arc::clone(&tls.config));
            match tokio::time::timeout(TLS_HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    let info = ConnectionInfo {
                        tls: Some(tls.facts(stream.get_ref().1)),
                        ..info
                    };
                    run((worker, terms, place), carrier, stream, info, Scheme::Https).await;
                }
                Ok(Err(error)) => {
                    worker.stats.count_handshake_failure();
                    tracing::debug!(%source, %error, "TLS handshake failed");
                }
                Err(_) => {
                    worker.stats.count_handshake_failure();
                    tracing::debug!(%source, "TLS handshake took too long");
                }
            }
        }
    }
}

async fn run<S>(
    (worker, terms, place): (Rc<Worker>, Arc<Terms>, Place),
    carrier: Option<Box<Carrier>>,
    stream: S,
    info: ConnectionInfo,
    scheme: Scheme,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let moved = Arc::new(AtomicU64::new(0));
    let now = Instant::now();
    let connection = Rc::new(Connection {
        client: Client::new(info.source.ip(), scheme),
        info: Rc::new(info),
        scheme,
        open: Cell::new(0),
        served: Cell::new(false),
        idle_since: Cell::new(now),
        moved: Arc::clone(&moved),
        moved_seen: Cell::new(0),
        moved_at: Cell::new(now),
        stall_timeout: carrier
            .as_ref()
            .map_or(CONNECTION_STALL_TIMEOUT, |carrier| carrier.1.idle_timeout),
        closing: Cell::new(Closing::No),
        close: Notify::new(),
        terms,
        _place: place,
    });
    worker.connections.add(&connection);
    if let Some(carrier) = carrier {
        let (edition, route) = &*carrier;
        // In a box of its own: an HTTP connection's task is no larger for it.
        return Box::pin(tcp::serve(edition, route, &connection, stream, &moved)).await;
    }
    let service = service_fn(|request| {
        // Now, and not when the request's task first runs: the policy may be replaced and the connection swept in between.
        let begun = connection
            .admit()
            .map(|turn| (worker.edition().stay(), turn));
        request::serve(begun, request)
    });
    let io = Watched::new(stream, moved);
    let mut serving = std::pin::pin!(worker.http.serve_connection_with_upgrades(io, service));
    loop {
        tokio::select! {
            biased;
            ended = serving.as_mut() => {
                if let Err(error) = ended {
                    if let Some(error) = error.downcast_ref() {
                        worker.stats.count_end(error);
                    }
                    tracing::debug!(source = %connection.info.source, error = &*error, "connection ended");
                }
                return;
            }
            () = connection.close.notified() => match connection.closing.get() {
                Closing::No => {}
                Closing::Graceful(_) => serving.as_mut().graceful_shutdown(),
                Closing::Abort => return,
            },
        }
    }
}

/// hyper's server, configured once a worker.
pub(crate) fn http_builder() -> auto::Builder<Local> {
    let mut builder = auto::Builder::new(Local);
    builder
        .http1()
        .timer(TokioTimer::new())
        // The sweep bounds how long a head may take, without a timer a request.
        .header_read_timeout(None)
        .max_headers(REQUEST_HEADERS_MAX)
        // Not `pipeline_flush`: with unread bytes behind a bad head, hyper would close without sending its 400.
        .max_buf_size(REQUEST_HEAD_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(H2_STREAMS_MAX)
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_send_buf_size(H2_SEND_BUFFER)
        .max_header_list_size(u32::try_from(REQUEST_HEAD_BYTES_MAX).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(H2_PENDING_RESETS_MAX)
        .max_local_error_reset_streams(H2_LOCAL_RESETS_MAX);
    builder
}

/// The open connections of one worker.
#[derive(Default)]
pub(crate) struct Connections(RefCell<Vec<Weak<Connection>>>);

impl Connections {
    fn add(&self, connection: &Rc<Connection>) {
        self.0.borrow_mut().push(Rc::downgrade(connection));
    }

    /// Does something to each, and forgets those that are closed. Tells how many are open.
    pub(crate) fn each(&self, act: impl Fn(&Connection)) -> usize {
        let mut connections = self.0.borrow_mut();
        connections.retain(|connection| {
            connection
                .upgrade()
                .inspect(|connection| act(connection))
                .is_some()
        });
        connections.len()
    }
}

/// The socket under hyper: counts reads and writes, so that the sweep sees whether a connection moves, and lingers when it is closed.
///
/// A socket closed with unread bytes is reset, and a reset takes away the answer that says why (400, 413, 431). So what still comes is
/// read and dropped for a moment first, as nginx does with `lingering_close`.
struct Watched<S> {
    inner: TokioIo<S>,
    moved: Arc<AtomicU64>,
    lingering: Option<Pin<Box<Sleep>>>,
    dropped: usize,
}

impl<S> Watched<S> {
    fn new(stream: S, moved: Arc<AtomicU64>) -> Self {
        Self {
            inner: TokioIo::new(stream),
            moved,
            lingering: None,
            dropped: 0,
        }
    }

    fn count<T>(&self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            // One thread writes: no locked add is needed.
            let moved = self.moved.load(Ordering::Relaxed);
            self.moved.store(moved.wrapping_add(1), Ordering::Relaxed);
        }
        polled
    }
}

impl<S: AsyncRead + Unpin> Watched<S> {
    /// Reads until the other side closes, or for as long and as much as the bounds say.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let alarm = self
            .lingering
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER_TIMEOUT)));
        if alarm.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        let mut scratch = [0; 4096];
        while self.dropped < LINGER_BYTES_MAX {
            let mut buffer = tokio::io::ReadBuf::new(&mut scratch);
            match Pin::new(self.inner.inner_mut()).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    self.dropped = self.dropped.saturating_add(buffer.filled().len());
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(())
    }
}

impl<S: AsyncRead + Unpin> Read for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_read(context, buffer);
        self.count(polled)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Write for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.count(polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            ready!(Pin::new(&mut self.inner).poll_shutdown(context))?;
        }
        ready!(self.poll_linger(context));
        Poll::Ready(Ok(()))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(context, bytes);
        self.count(polled)
    }
}
