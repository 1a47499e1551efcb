//! One worker's way to one cluster: endpoints in turn, connections kept for reuse, time-outs, and which fault was whose.
//!
//! A request goes out on a pooled connection if there is one. Upstreams close idle connections when they like, so a request can meet one
//! that is just being closed: it is sent once more if no byte of it had left, or if it has no body and its method is idempotent
//! (RFC 9110 §9.2.2).

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::body::RequestBody;
use crate::cluster::Cluster;
use crate::limits::{
    H2_CONNECTION_WINDOW, H2_STREAM_WINDOW, POOL_H2_STREAMS_MAX, POOL_IDLE_MAX,
    REQUEST_HEADERS_MAX, RESPONSE_HEAD_BYTES_MAX,
};
use crate::policy::UpstreamProtocol;
use crate::spawn::Local;

/// One worker's connections to one cluster.
pub(crate) struct Upstream {
    /// The cluster.
    pub(crate) cluster: Arc<Cluster>,
    generation: Cell<u64>,
    addresses: RefCell<Arc<[SocketAddr]>>,
    turn: Cell<usize>,
    swept: Cell<Option<Instant>>,
    idle: RefCell<Vec<Idle>>,
    streams: RefCell<Vec<Rc<Multiplexed>>>,
}

/// An HTTP/1 connection with nothing on it.
struct Idle {
    sender: http1::SendRequest<RequestBody>,
    address: SocketAddr,
    since: Instant,
}

/// An HTTP/2 connection.
struct Multiplexed {
    sender: http2::SendRequest<RequestBody>,
    address: SocketAddr,
    open: Cell<usize>,
    since: Cell<Instant>,
}

/// One stream's place on an HTTP/2 connection.
struct Seat(Rc<Multiplexed>);

impl Seat {
    fn on(connection: Rc<Multiplexed>) -> Self {
        connection.open.set(connection.open.get().saturating_add(1));
        Self(connection)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get().saturating_sub(1));
        self.0.since.set(Instant::now());
    }
}

/// A connection that a request is on. Given back when the answer has been read to its end; dropped before, the request is cancelled and
/// an HTTP/1 connection closed.
pub(crate) struct Lease {
    upstream: Rc<Upstream>,
    /// Where it leads.
    pub(crate) address: SocketAddr,
    connection: Connection,
}

enum Connection {
    Http1(http1::SendRequest<RequestBody>),
    Http2(Seat),
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UpstreamFault {
    /// No address is known.
    #[error("no address of the cluster is known")]
    NoAddress,
    /// No connection could be made: refused, unreachable, too slow, or its certificate was not good.
    #[error("no connection")]
    Connect,
    /// The connection broke before the answer.
    #[error("connection closed before the answer")]
    Closed,
    /// What came was no HTTP.
    #[error("the answer is not valid")]
    Protocol,
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
    /// It has no fault: the client's body is no HTTP, or broke off, so the request could not be sent to its end.
    #[error("the request's body cannot be read")]
    Request,
}

/// A connection without HTTP on it.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Duplex for T {}

/// A connection of [`Upstream::open`].
pub(crate) struct Opened {
    /// Where it leads.
    pub(crate) address: SocketAddr,
    /// Its bytes.
    pub(crate) io: Box<dyn Duplex>,
    /// To be held for as long as it is open.
    pub(crate) seat: OpenSeat,
}

/// Counts a connection as closed when it is dropped.
pub(crate) struct OpenSeat(Arc<Cluster>);

impl Drop for OpenSeat {
    fn drop(&mut self) {
        self.0.stats.closed.fetch_add(1, Ordering::Relaxed);
    }
}

/// A connection as it was dialled.
enum Dialled {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// An answer whose body is still to be read, and the connection it comes over.
pub(crate) type Answer = (Response<Incoming>, Lease);

impl Upstream {
    /// No connection yet.
    pub(crate) fn new(cluster: Arc<Cluster>) -> Rc<Self> {
        Rc::new(Self {
            generation: Cell::new(cluster.generation()),
            addresses: RefCell::new(cluster.addresses()),
            cluster,
            turn: Cell::new(0),
            swept: Cell::new(None),
            idle: RefCell::default(),
            streams: RefCell::default(),
        })
    }

    /// Sends a request and waits for the head of the answer. `again` makes the same request once more, for requests that may be repeated.
    ///
    /// # Errors
    ///
    /// See [`UpstreamFault`]; the time-out is the caller's.
    pub(crate) async fn send(
        self: &Rc<Self>,
        request: Request<RequestBody>,
        again: Option<&dyn Fn() -> Option<Request<RequestBody>>>,
    ) -> Result<Answer, UpstreamFault> {
        let mut request = request;
        let mut may_repeat = true;
        loop {
            let (address, mut connection, reused) = self.connection(may_repeat).await?;
            let mut fault = match connection.send(request).await {
                Ok(answer) => {
                    let upstream = Rc::clone(self);
                    return Ok((
                        answer,
                        Lease {
                            upstream,
                            address,
                            connection,
                        },
                    ));
                }
                Err(fault) => fault,
            };
            let unsent = fault.take_message();
            let error = fault.error();
            tracing::debug!(cluster = self.cluster.policy.name, %address, %error, reused, "request failed");
            request = match unsent {
                Some(unsent) if reused && may_repeat => unsent,
                None if reused && may_repeat && was_closed(error) => again
                    .and_then(|again| again())
                    .ok_or(UpstreamFault::Closed)?,
                _ => return Err(judge(error)),
            };
            // Once only, and on a fresh connection, so that a restarted upstream costs no chain of failures.
            may_repeat = false;
            self.cluster.stats.retried.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Connects to the endpoint whose turn it is, or to the next one that can be reached, for bytes that are not HTTP.
    ///
    /// # Errors
    ///
    /// None can be reached in time.
    pub(crate) async fn open(&self) -> Result<Opened, UpstreamFault> {
        let addresses = self.current();
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        let first = turn.checked_rem(addresses.len()).unwrap_or(0);
        let deadline = tokio::time::Instant::now() + self.cluster.policy.connect_timeout;
        let mut fault = UpstreamFault::NoAddress;
        let in_turn = addresses.iter().cycle().skip(first).take(addresses.len());
        for &address in in_turn {
            let stats = &self.cluster.stats;
            match tokio::time::timeout_at(deadline, self.dial(address)).await {
                Ok(Ok(dialled)) => {
                    stats.opened.fetch_add(1, Ordering::Relaxed);
                    let io: Box<dyn Duplex> = match dialled {
                        Dialled::Plain(stream) => Box::new(stream),
                        Dialled::Tls(stream) => stream,
                    };
                    let seat = OpenSeat(Arc::clone(&self.cluster));
                    return Ok(Opened { address, io, seat });
                }
                Ok(Err(error)) => {
                    stats.failed.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(cluster = self.cluster.policy.name, %address, error = &*error, "connecting failed");
                    fault = UpstreamFault::Connect;
                }
                Err(_) => {
                    stats.failed.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(cluster = self.cluster.policy.name, %address, "connecting took too long");
                    return Err(UpstreamFault::Connect);
                }
            }
        }
        Err(fault)
    }

    /// Closes what has been idle for too long, and forgets what the other side closed.
    pub(crate) fn sweep(&self, now: Instant) {
        // Several editions may have it, and each of them asks.
        if self.swept.replace(Some(now)) == Some(now) {
            return;
        }
        let timeout = self.cluster.policy.idle_timeout;
        let addresses = self.current();
        let fresh = |since: Instant| now.saturating_duration_since(since) < timeout;
        let known = |address: &SocketAddr| addresses.contains(address);
        self.idle
            .borrow_mut()
            .retain(|idle| !idle.sender.is_closed() && fresh(idle.since) && known(&idle.address));
        self.streams.borrow_mut().retain(|connection| {
            let in_use = connection.open.get() > 0;
            !connection.sender.is_closed()
                && (in_use || fresh(connection.since.get()))
                && known(&connection.address)
        });
    }

    fn current(&self) -> Arc<[SocketAddr]> {
        let generation = self.cluster.generation();
        if self.generation.replace(generation) != generation {
            *self.addresses.borrow_mut() = self.cluster.addresses();
        }
        Arc::clone(&self.addresses.borrow())
    }

    /// A connection to the endpoint whose turn it is, or to the next one that can be reached.
    async fn connection(
        self: &Rc<Self>,
        may_reuse: bool,
    ) -> Result<(SocketAddr, Connection, bool), UpstreamFault> {
        let addresses = self.current();
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        let mut fault = UpstreamFault::NoAddress;
        let mut deadline = None;
        for step in 0..addresses.len() {
            let index = turn
                .wrapping_add(step)
                .checked_rem(addresses.len())
                .unwrap_or(0);
            let Some(&address) = addresses.get(index) else {
                break;
            };
            if may_reuse && let Some(connection) = self.reuse(address) {
                return Ok((address, connection, true));
            }
            let deadline = *deadline.get_or_insert_with(|| {
                tokio::time::Instant::now() + self.cluster.policy.connect_timeout
            });
            // In a box of its own: handshakes take kilobytes, and an HTTP/2 request's future is moved some nine times.
            match tokio::time::timeout_at(deadline, Box::pin(self.connect(address))).await {
                Ok(Ok(connection)) => return Ok((address, connection, false)),
                Ok(Err(error)) => {
                    self.cluster.stats.failed.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(cluster = self.cluster.policy.name, %address, error = &*error, "connecting failed");
                    fault = UpstreamFault::Connect;
                }
                Err(_) => {
                    self.cluster.stats.failed.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(cluster = self.cluster.policy.name, %address, "connecting took too long");
                    return Err(UpstreamFault::Connect);
                }
            }
        }
        Err(fault)
    }

    fn reuse(&self, address: SocketAddr) -> Option<Connection> {
        match self.cluster.policy.protocol {
            UpstreamProtocol::Http1 => {
                let mut idle = self.idle.borrow_mut();
                // The last one used is the least likely to have been closed.
                let mut index = idle.len();
                while index > 0 {
                    index -= 1;
                    let Some(candidate) = idle.get(index) else {
                        break;
                    };
                    if candidate.sender.is_closed() {
                        idle.swap_remove(index);
                    } else if candidate.address == address && candidate.sender.is_ready() {
                        return Some(Connection::Http1(idle.swap_remove(index).sender));
                    }
                }
                None
            }
            UpstreamProtocol::Http2 => {
                let streams = self.streams.borrow();
                let free = streams.iter().find(|connection| {
                    connection.address == address
                        && !connection.sender.is_closed()
                        && connection.open.get() < POOL_H2_STREAMS_MAX
                });
                free.map(|connection| Connection::Http2(Seat::on(Rc::clone(connection))))
            }
        }
    }

    async fn connect(
        self: &Rc<Self>,
        address: SocketAddr,
    ) -> Result<Connection, Box<dyn std::error::Error + Send + Sync>> {
        Ok(match self.dial(address).await? {
            Dialled::Plain(stream) => self.handshake(address, stream).await?,
            Dialled::Tls(stream) => self.handshake(address, *stream).await?,
        })
    }

    async fn dial(
        &self,
        address: SocketAddr,
    ) -> Result<Dialled, Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let policy = &self.cluster.policy;
        let (Some(config), Some(tls)) = (&self.cluster.tls, &policy.tls) else {
            return Ok(Dialled::Plain(stream));
        };
        let connector = TlsConnector::from(Arc::clone(config));
        let stream = connector
            .connect(ServerName::DnsName(tls.sni.clone()), stream)
            .await?;
        let wants_h2 = policy.protocol == UpstreamProtocol::Http2;
        if wants_h2 && stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err("the upstream does not speak HTTP/2".into());
        }
        Ok(Dialled::Tls(Box::new(stream)))
    }

    async fn handshake<T>(
        self: &Rc<Self>,
        address: SocketAddr,
        stream: T,
    ) -> hyper::Result<Connection>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(stream);
        let cluster = Arc::clone(&self.cluster);
        match self.cluster.policy.protocol {
            UpstreamProtocol::Http1 => {
                let mut builder = http1::Builder::new();
                builder
                    .max_buf_size(RESPONSE_HEAD_BYTES_MAX)
                    .max_headers(REQUEST_HEADERS_MAX * 2);
                let (sender, connection) = builder.handshake(io).await?;
                cluster.stats.opened.fetch_add(1, Ordering::Relaxed);
                spawn_local(async move {
                    connection.with_upgrades().await.ok();
                    cluster.stats.closed.fetch_add(1, Ordering::Relaxed);
                });
                Ok(Connection::Http1(sender))
            }
            UpstreamProtocol::Http2 => {
                let mut builder = http2::Builder::new(Local);
                builder
                    .initial_stream_window_size(H2_STREAM_WINDOW)
                    .initial_connection_window_size(H2_CONNECTION_WINDOW)
                    .max_header_list_size(
                        u32::try_from(RESPONSE_HEAD_BYTES_MAX).unwrap_or(u32::MAX),
                    );
                let (sender, connection) = builder.handshake(io).await?;
                cluster.stats.opened.fetch_add(1, Ordering::Relaxed);
                spawn_local(async move {
                    connection.await.ok();
                    cluster.stats.closed.fetch_add(1, Ordering::Relaxed);
                });
                let connection = Rc::new(Multiplexed {
                    sender,
                    address,
                    open: Cell::new(0),
                    since: Cell::new(Instant::now()),
                });
                self.streams.borrow_mut().push(Rc::clone(&connection));
                Ok(Connection::Http2(Seat::on(connection)))
            }
        }
    }
}

impl Connection {
    async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        match self {
            Self::Http1(sender) => sender.try_send_request(request).await,
            Self::Http2(seat) => seat.0.sender.clone().try_send_request(request).await,
        }
    }
}

impl Lease {
    /// The answer has been read to its end: the connection may take the next request.
    pub(crate) fn give_back(self) {
        if let Connection::Http1(sender) = self.connection {
            let mut idle = self.upstream.idle.borrow_mut();
            if idle.len() < POOL_IDLE_MAX && !sender.is_closed() {
                let (address, since) = (self.address, Instant::now());
                idle.push(Idle {
                    sender,
                    address,
                    since,
                });
            }
        }
    }

    /// How long the cluster lets a stream stand still.
    pub(crate) fn idle_timeout(&self) -> Duration {
        self.upstream.cluster.policy.idle_timeout
    }
}

/// Whether the connection went away under the request, rather than answering something wrong.
fn was_closed(error: &hyper::Error) -> bool {
    error.is_incomplete_message() || error.is_closed() || error.is_canceled() || is_io(error)
}

fn is_io(error: &hyper::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<std::io::Error>())
}

fn judge(error: &hyper::Error) -> UpstreamFault {
    if was_closed(error) {
        UpstreamFault::Closed
    } else {
        UpstreamFault::Protocol
    }
}
