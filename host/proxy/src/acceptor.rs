//! Listening sockets: binds them, accepts connections and hands each to the least-loaded worker.
//!
//! `SO_REUSEPORT` alone would leave a few HTTP/2 connections on one core (design, §3).

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::connection::{Accepted, Place};
use crate::limits::{ACCEPT_BACKLOG, CONNECTIONS_MAX};
use crate::policy::Listener;
use crate::tls::ServerTls;
use crate::worker::{Command, WorkerRef};

/// A bound socket.
#[derive(Debug)]
pub(crate) struct Bound {
    /// Where it listens, the port chosen by the system included.
    pub(crate) address: SocketAddr,
    listener: std::net::TcpListener,
}

impl Bound {
    /// Binds and listens.
    ///
    /// # Errors
    ///
    /// The address is in use or not this machine's.
    pub(crate) fn new(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(ACCEPT_BACKLOG)?;
        let listener = std::net::TcpListener::from(socket);
        let address = listener.local_addr()?;
        Ok(Self { address, listener })
    }

    /// As a tokio listener.
    ///
    /// # Errors
    ///
    /// The event loop takes no more.
    pub(crate) fn into_tokio(self) -> io::Result<TcpListener> {
        TcpListener::from_std(self.listener)
    }
}

/// What a listener is, and asks of its clients. A reload that changes it puts other terms in their place; connections keep theirs.
#[derive(Debug)]
pub(crate) struct Terms {
    /// Its name.
    pub(crate) listener: String,
    /// Whether bytes are passed on as they are.
    pub(crate) is_tcp: bool,
    /// The TLS spoken.
    pub(crate) tls: Option<Arc<ServerTls>>,
    /// Shared with the terms before that let in the same clients.
    end: Arc<End>,
}

/// Whether terms are over.
#[derive(Debug, Default)]
struct End {
    ended: AtomicBool,
    /// Others are let in on the same socket now, or served otherwise.
    replaced: AtomicBool,
}

impl Terms {
    /// Those of a listener.
    pub(crate) fn new(listener: &Listener, tls: Option<&Arc<ServerTls>>) -> Self {
        Self {
            listener: listener.name.clone(),
            is_tcp: listener.tcp.is_some(),
            tls: tls.cloned(),
            end: Arc::default(),
        }
    }

    /// These are followed by `next`: where they let in others, or serve them otherwise, they end.
    pub(crate) fn be_followed_by(&self, next: Self) -> Self {
        if self.ask_the_same(&next) {
            let end = Arc::clone(&self.end);
            return Self { end, ..next };
        }
        self.end.replaced.store(true, Ordering::Relaxed);
        self.end();
        next
    }

    /// Has the HTTP connections under these terms closed, each after the requests it has open.
    pub(crate) fn end(&self) {
        self.end.ended.store(true, Ordering::Relaxed);
    }

    /// Whether they have ended.
    pub(crate) fn have_ended(&self) -> bool {
        self.end.ended.load(Ordering::Relaxed)
    }

    /// Whether they have ended since others are let in now: TCP connections are closed for that, and not for a listener that is taken out.
    pub(crate) fn are_replaced(&self) -> bool {
        self.end.replaced.load(Ordering::Relaxed)
    }

    /// Whether a client that these let in is let in by those too, and served by the same means.
    fn ask_the_same(&self, other: &Self) -> bool {
        let tls = match (&self.tls, &other.tls) {
            (None, None) => true,
            (Some(one), Some(other)) => one.policy.asks_the_same(&other.policy),
            _ => false,
        };
        tls && self.is_tcp == other.is_tcp
    }
}

/// What becomes of a socket while it listens.
#[derive(Debug)]
pub(crate) struct Control {
    /// For the connections to come.
    pub(crate) terms: RefCell<Arc<Terms>>,
    stop: Notify,
}

impl Control {
    /// Listen, on these terms.
    pub(crate) fn new(terms: Terms) -> Rc<Self> {
        Rc::new(Self {
            terms: RefCell::new(Arc::new(terms)),
            stop: Notify::new(),
        })
    }

    /// Other terms from now on.
    pub(crate) fn follow(&self, next: Terms) {
        let mut terms = self.terms.borrow_mut();
        let next = terms.be_followed_by(next);
        if terms.have_ended() {
            tracing::info!(
                listener = next.listener,
                "connections from before are closed, those of HTTP after their requests: others are let in now"
            );
        }
        *terms = Arc::new(next);
    }

    /// Accept what waits already, and then no more. What is open is closed after its requests.
    pub(crate) fn stop(&self) {
        self.terms.borrow().end();
        self.stop.notify_one();
    }
}

/// Gives connections out.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    workers: Vec<WorkerRef>,
    places: Arc<Semaphore>,
    next_id: AtomicU64,
}

impl Dispatcher {
    /// To these workers.
    pub(crate) fn new(workers: Vec<WorkerRef>) -> Self {
        Self {
            workers,
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            next_id: AtomicU64::new(1),
        }
    }

    /// Accepts until it is told to stop.
    pub(crate) async fn accept(self: Arc<Self>, bound: Bound, control: Rc<Control>) {
        let address = bound.address;
        let listener = match bound.into_tokio() {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%address, %error, "listener lost");
                return;
            }
        };
        loop {
            let next = async {
                let permit = Arc::clone(&self.places).acquire_owned().await.ok()?;
                Some((permit, listener.accept().await))
            };
            let next = tokio::select! {
                biased;
                () = control.stop.notified() => break,
                next = next => next,
            };
            match next {
                None => return,
                Some((permit, Ok((stream, source)))) => {
                    if let Ok(stream) = stream.into_std() {
                        self.give(stream, source, address, permit, &control);
                    }
                }
                Some((_, Err(error))) => {
                    // Out of file descriptors, mostly: connections have to end before there are more.
                    tracing::warn!(%address, %error, "connection cannot be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        if let Err(error) = self.accept_waiting(listener, address, &control) {
            tracing::warn!(%address, %error, "connections that waited are lost");
        }
    }

    /// Accepts those that wait, and no more: clients that the system has told that they are connected are not to be told otherwise. By the
    /// system's own call, since what tokio knows of the socket may be old, and it hands out so many at a time only.
    fn accept_waiting(
        &self,
        listener: TcpListener,
        address: SocketAddr,
        control: &Control,
    ) -> io::Result<()> {
        let listener = listener.into_std()?;
        while let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() {
            match listener.accept() {
                Ok((stream, source)) => {
                    stream.set_nonblocking(true)?;
                    self.give(stream, source, address, permit, control);
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => break,
                    // That one has gone again.
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => {}
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }

    fn give(
        &self,
        stream: std::net::TcpStream,
        source: SocketAddr,
        address: SocketAddr,
        permit: OwnedSemaphorePermit,
        control: &Control,
    ) {
        let destination = stream.local_addr().unwrap_or(address);
        let worker = self
            .workers
            .iter()
            .min_by_key(|worker| worker.connections.load(Ordering::Relaxed));
        let Some(worker) = worker else { return };
        worker.connections.fetch_add(1, Ordering::Relaxed);
        let accepted = Accepted {
            stream,
            source,
            destination,
            terms: Arc::clone(&control.terms.borrow()),
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            place: Place {
                worker: Arc::clone(&worker.connections),
                _permit: permit,
            },
        };
        if worker
            .commands
            .send(Command::Serve(Box::new(accepted)))
            .is_err()
        {
            tracing::error!("a worker is gone");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc::unbounded_channel;

    #[test]
    fn whoever_waits_when_a_listener_stops_is_accepted() {
        // More than tokio hands out at a time.
        const WAITING: usize = 300;
        let bound = Bound::new(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = bound.address;
        let waiting: Vec<_> = (0..WAITING)
            .map(|_| std::net::TcpStream::connect(address).unwrap())
            .collect();
        let (commands, mut given) = unbounded_channel();
        let worker = WorkerRef {
            commands,
            connections: Arc::default(),
            editions: Arc::default(),
            ended: Arc::default(),
            stats: Arc::default(),
        };
        let control = Control::new(Terms {
            listener: "plain".into(),
            is_tcp: false,
            tls: None,
            end: Arc::default(),
        });
        control.stop();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let dispatcher = Arc::new(Dispatcher::new(vec![worker]));
        runtime.block_on(dispatcher.accept(bound, control));
        let mut sources = Vec::new();
        while let Ok(Command::Serve(accepted)) = given.try_recv() {
            sources.push(accepted.source);
        }
        for client in &waiting {
            assert!(sources.contains(&client.local_addr().unwrap()));
        }
        assert_eq!(sources.len(), WAITING);
    }

    #[test]
    fn terms_end_in_two_ways() {
        let terms = |is_tcp| Terms {
            listener: "plain".into(),
            is_tcp,
            tls: None,
            end: Arc::default(),
        };
        let first = terms(true);
        let same = first.be_followed_by(terms(true));
        assert!(!first.have_ended());
        let other = same.be_followed_by(terms(false));
        assert!(first.have_ended() && first.are_replaced());
        assert!(!other.have_ended());
        other.end();
        assert!(other.have_ended() && !other.are_replaced());
    }
}
