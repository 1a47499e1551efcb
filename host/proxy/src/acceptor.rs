//! The front thread: accepts connections and hands each to the least-loaded worker, keeps names resolved, answers the admin listener.
//!
//! `SO_REUSEPORT` alone would leave a few HTTP/2 connections on one core (design, §3).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::connection::{Accepted, Place};
use crate::limits::{ACCEPT_BACKLOG, CONNECTIONS_MAX};
use crate::tls::ServerTls;
use crate::worker::{Command, WorkerRef};

/// A bound socket and the TLS spoken on it.
#[derive(Debug)]
pub(crate) struct Bound {
    /// Where it listens, the port chosen by the system included.
    pub(crate) address: SocketAddr,
    listener: std::net::TcpListener,
    tls: Option<Arc<ServerTls>>,
    /// Its place in the policy; what the admin page listens on has none.
    pub(crate) index: usize,
}

impl Bound {
    /// Binds and listens.
    ///
    /// # Errors
    ///
    /// The address is in use or not this machine's.
    pub(crate) fn new(address: SocketAddr, tls: Option<Arc<ServerTls>>) -> io::Result<Self> {
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
        Ok(Self {
            address,
            listener,
            tls,
            index: usize::MAX,
        })
    }

    /// As a tokio listener, for the admin page.
    ///
    /// # Errors
    ///
    /// The event loop takes no more.
    pub(crate) fn into_tokio(self) -> io::Result<TcpListener> {
        TcpListener::from_std(self.listener)
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

    /// Accepts until it is dropped.
    pub(crate) async fn accept(self: Arc<Self>, bound: Bound) {
        let (destination, tls, index) = (bound.address, bound.tls.clone(), bound.index);
        let listener = match bound.into_tokio() {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(address = %destination, %error, "listener lost");
                return;
            }
        };
        loop {
            let Ok(permit) = Arc::clone(&self.places).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, source)) => {
                    let local = stream.local_addr().unwrap_or(destination);
                    let Ok(stream) = stream.into_std() else {
                        continue;
                    };
                    let worker = self
                        .workers
                        .iter()
                        .min_by_key(|worker| worker.connections.load(Ordering::Relaxed));
                    let Some(worker) = worker else { return };
                    worker.connections.fetch_add(1, Ordering::Relaxed);
                    let place = Place {
                        worker: Arc::clone(&worker.connections),
                        _permit: permit,
                    };
                    let accepted = Accepted {
                        stream,
                        source,
                        destination: local,
                        tls: tls.clone(),
                        listener: index,
                        id: self.next_id.fetch_add(1, Ordering::Relaxed),
                        place,
                    };
                    if worker
                        .commands
                        .send(Command::Serve(Box::new(accepted)))
                        .is_err()
                    {
                        tracing::error!("a worker is gone");
                    }
                }
                Err(error) => {
                    // Out of file descriptors, mostly: connections have to end before there are more.
                    tracing::warn!(address = %destination, %error, "connection cannot be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}
