//! TCP listeners: connections passed on byte by byte, through filters that see the bytes as Envoy's network filters do.
//!
//! As in Envoy, nothing is read from a client before its upstream is connected, each side may close its half alone, and past what a filter
//! may hold nothing more is read. One loop moves both directions; what a branch of it loses when another wins is nothing but a poll.

use std::future::pending;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes, BytesMut};
use portcullis_runtime::{
    Chain, Direction, Peer, Protocol, RouteInfo, StreamInfo, TcpProgress, TcpStream,
};
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf, split,
};
use tokio::sync::Notify;

use crate::connection::Connection;
use crate::edition::Edition;
use crate::limits::{CLOSE_GRACE, TCP_BUFFER_BYTES, TCP_READ_BYTES};
use crate::upstream::{Duplex, Opened, Upstream, UpstreamFault};

/// A TCP listener as one worker runs it.
pub(crate) struct TcpRoute {
    /// For properties.
    pub(crate) info: Rc<RouteInfo>,
    /// Its filters.
    pub(crate) chain: Chain,
    /// Where it leads.
    pub(crate) upstream: Rc<Upstream>,
    /// How long nothing may move.
    pub(crate) idle_timeout: Duration,
}

/// Carries one client's connection through to its end. `moved` counts what happens on it, so that the sweep sees it stand still.
pub(crate) async fn serve<S>(
    edition: &Edition,
    route: &TcpRoute,
    connection: &Rc<Connection>,
    client: S,
    moved: &AtomicU64,
) where
    S: AsyncRead + AsyncWrite,
{
    let turn = connection.enter();
    edition.stats.count_tcp_connection();
    let begun = Instant::now();
    let info = StreamInfo {
        connection: Rc::clone(&connection.info),
        route: Rc::clone(&route.info),
        protocol: Protocol::Tcp,
        start_unix_ns: edition.embedder.unix_ns(),
        request_size: 0,
        response_size: 0,
        duration_ns: None,
        response_code: None,
        response_flags: 0,
        upstream_address: None,
    };
    let news = Rc::new(Notify::new());
    let token = edition.embedder.admit_tcp(Rc::downgrade(&news));
    let mut passage = Passage {
        stream: TcpStream::new(&route.chain, info, token),
        client: Side::new(client),
        upstream: None,
        moved,
    };
    let by = tokio::select! {
        by = passage.run(route, &news) => by,
        () = connection.aborted() => Peer::Local,
    };
    passage.last_words(by).await;
    let mut stream = passage.stream;
    stream.info_mut().duration_ns = u64::try_from(begun.elapsed().as_nanos()).ok();
    stream.close(by);
    edition.embedder.dismiss(token);
    turn.end(Instant::now());
}

/// One end.
struct Side<S> {
    inlet: Inlet<S>,
    outlet: Outlet<S>,
}

impl<S: AsyncRead + AsyncWrite> Side<S> {
    fn new(stream: S) -> Self {
        let (reader, writer) = split(stream);
        let inlet = Inlet {
            reader,
            buffer: BytesMut::new(),
            is_over: false,
        };
        let outlet = Outlet {
            writer,
            out: BytesMut::new(),
            is_unflushed: false,
            is_last: false,
            is_shut: false,
        };
        Self { inlet, outlet }
    }
}

/// What comes from an end.
struct Inlet<S> {
    reader: ReadHalf<S>,
    buffer: BytesMut,
    /// Nothing more will come.
    is_over: bool,
}

impl<S: AsyncRead> Inlet<S> {
    /// What has come; nothing at the end.
    async fn read(&mut self) -> io::Result<Bytes> {
        self.buffer.reserve(TCP_READ_BYTES);
        self.reader.read_buf(&mut self.buffer).await?;
        Ok(self.buffer.split().freeze())
    }
}

/// What is still to be sent to an end.
struct Outlet<S> {
    writer: WriteHalf<S>,
    out: BytesMut,
    /// Written, but maybe not sent: TLS may keep a record back.
    is_unflushed: bool,
    /// Nothing comes after what is in `out`.
    is_last: bool,
    is_shut: bool,
}

impl<S: AsyncWrite> Outlet<S> {
    fn push(&mut self, (bytes, is_last): (Bytes, bool)) {
        self.out.extend_from_slice(&bytes);
        self.is_last |= is_last;
    }

    fn has_room(&self) -> bool {
        self.out.len() < TCP_BUFFER_BYTES
    }

    fn has_work(&self) -> bool {
        !self.out.is_empty() || self.is_unflushed || (self.is_last && !self.is_shut)
    }

    /// One step of sending.
    async fn step(&mut self) -> io::Result<()> {
        if !self.out.is_empty() {
            match self.writer.write(&self.out).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                sent => self.out.advance(sent),
            }
            self.is_unflushed = true;
        } else if self.is_unflushed {
            self.writer.flush().await?;
            self.is_unflushed = false;
        } else {
            self.writer.shutdown().await?;
            self.is_shut = true;
        }
        Ok(())
    }

    /// Sends all that is left, and the end.
    async fn finish(&mut self) {
        self.is_last = true;
        while self.has_work() {
            if self.step().await.is_err() {
                return;
            }
        }
    }
}

/// A client, its filters, and its upstream once there is one.
struct Passage<'a, S> {
    stream: TcpStream,
    client: Side<S>,
    upstream: Option<Side<Box<dyn Duplex>>>,
    moved: &'a AtomicU64,
}

/// What happened next.
enum Event {
    News,
    Connected(Result<Opened, UpstreamFault>),
    FromClient(io::Result<Bytes>),
    FromUpstream(io::Result<Bytes>),
    ToClient(io::Result<()>),
    ToUpstream(io::Result<()>),
}

type Dial<'a> = Pin<Box<dyn Future<Output = Result<Opened, UpstreamFault>> + 'a>>;

impl<S: AsyncRead + AsyncWrite> Passage<'_, S> {
    /// Runs until the connection is to be closed; tells by whom.
    async fn run(&mut self, route: &TcpRoute, news: &Notify) -> Peer {
        let mut dial: Option<Dial<'_>> = None;
        // Counted as open until it is dropped.
        let mut _seat = None;
        let mut is_client_last = false;
        let mut progress = self.stream.new_connection();
        loop {
            self.collect();
            if progress == TcpProgress::Close {
                return Peer::Local;
            }
            if self.stream.is_open() && self.upstream.is_none() && dial.is_none() {
                dial = Some(Box::pin(route.upstream.open()));
            }
            let is_upstream_shut = self
                .upstream
                .as_ref()
                .is_some_and(|upstream| upstream.outlet.is_shut);
            if is_upstream_shut && self.client.outlet.is_shut {
                // Both halves are closed; whose end was the last to come is taken to have closed it, as Envoy tells it.
                return if is_client_last {
                    Peer::Remote
                } else {
                    Peer::Local
                };
            }
            let event = self.next(&mut dial, news).await;
            self.moved.store(
                self.moved.load(Ordering::Relaxed).wrapping_add(1),
                Ordering::Relaxed,
            );
            match event {
                Event::News => progress = self.stream.resume(),
                Event::Connected(Ok(opened)) => {
                    dial = None;
                    self.stream.info_mut().upstream_address = Some(opened.address);
                    self.upstream = Some(Side::new(opened.io));
                    _seat = Some(opened.seat);
                }
                Event::Connected(Err(fault)) => {
                    tracing::warn!(cluster = route.upstream.cluster.policy.name, %fault, "no upstream for a TCP connection");
                    return Peer::Local;
                }
                Event::FromClient(Ok(bytes)) => {
                    let is_end = bytes.is_empty();
                    self.client.inlet.is_over |= is_end;
                    is_client_last = is_end;
                    let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                    add(&mut self.stream.info_mut().request_size, size);
                    progress = self.stream.downstream_data(bytes, is_end);
                }
                Event::FromUpstream(Ok(bytes)) => {
                    let is_end = bytes.is_empty();
                    if let Some(upstream) = &mut self.upstream {
                        upstream.inlet.is_over |= is_end;
                    }
                    is_client_last &= !is_end;
                    let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                    add(&mut self.stream.info_mut().response_size, size);
                    progress = self.stream.upstream_data(bytes, is_end);
                }
                Event::ToClient(Ok(())) | Event::ToUpstream(Ok(())) => {}
                Event::FromClient(Err(_)) | Event::ToClient(Err(_)) => return Peer::Remote,
                Event::FromUpstream(Err(_)) | Event::ToUpstream(Err(_)) => return Peer::Local,
            }
        }
    }

    /// Hands on what has passed the filters.
    fn collect(&mut self) {
        self.client.outlet.push(self.stream.take_upstream());
        if let Some(upstream) = &mut self.upstream {
            upstream.outlet.push(self.stream.take_downstream());
        }
    }

    async fn next(&mut self, dial: &mut Option<Dial<'_>>, news: &Notify) -> Event {
        let Side { inlet, outlet } = &mut self.client;
        let (upstream_inlet, upstream_outlet) = match &mut self.upstream {
            Some(side) => (Some(&mut side.inlet), Some(&mut side.outlet)),
            None => (None, None),
        };
        let reads_client = !inlet.is_over
            && self.stream.has_room(Direction::Request)
            && upstream_outlet.as_ref().is_some_and(|it| it.has_room());
        let reads_upstream = self.stream.has_room(Direction::Response) && outlet.has_room();
        let connected = async {
            match dial {
                Some(dial) => dial.as_mut().await,
                None => pending().await,
            }
        };
        let from_client = async {
            match reads_client {
                true => inlet.read().await,
                false => pending().await,
            }
        };
        let from_upstream = async {
            match upstream_inlet {
                Some(inlet) if reads_upstream && !inlet.is_over => inlet.read().await,
                _ => pending().await,
            }
        };
        let to_client = async {
            match outlet.has_work() {
                true => outlet.step().await,
                false => pending().await,
            }
        };
        let to_upstream = async {
            match upstream_outlet {
                Some(outlet) if outlet.has_work() => outlet.step().await,
                _ => pending().await,
            }
        };
        tokio::select! {
            () = news.notified() => Event::News,
            opened = connected => Event::Connected(opened),
            read = from_client => Event::FromClient(read),
            read = from_upstream => Event::FromUpstream(read),
            sent = to_client => Event::ToClient(sent),
            sent = to_upstream => Event::ToUpstream(sent),
        }
    }

    /// What was let pass before the close is still sent to the side that did not close, for a moment.
    async fn last_words(&mut self, by: Peer) {
        self.collect();
        let sending = async {
            match (by, &mut self.upstream) {
                (Peer::Remote, Some(upstream)) => upstream.outlet.finish().await,
                (Peer::Remote, None) => {}
                _ => self.client.outlet.finish().await,
            }
        };
        tokio::time::timeout(CLOSE_GRACE, sending).await.ok();
    }
}

fn add(size: &mut u64, bytes: u64) {
    *size = size.saturating_add(bytes);
}
