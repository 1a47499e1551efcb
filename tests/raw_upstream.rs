//! An upstream that answers by hand, byte for byte: for endless bodies, trailers, and dying half-way.

use std::io::BufReader;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};

use crate::http1::{Headers, read_request_head};

/// What is done with one request: its first line, its headers, and the connection; `false` closes it.
pub type Serve = dyn Fn(&str, &Headers, &mut BufReader<TcpStream>) -> Result<bool> + Send + Sync;

/// A server with one thread a connection; it takes no more when it is dropped.
#[derive(Debug)]
pub struct RawUpstream {
    address: SocketAddr,
    stopping: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl RawUpstream {
    /// Starts it. A connection on which `serve` fails is closed.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn start(
        serve: impl Fn(&str, &Headers, &mut BufReader<TcpStream>) -> Result<bool>
        + Send
        + Sync
        + 'static,
    ) -> Result<Self> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port for the upstream")?;
        let address = listener.local_addr()?;
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopping);
        let serve: Arc<Serve> = Arc::new(serve);
        let acceptor = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || {
                    // The test sees in the answer what went wrong here.
                    drop(connection(stream, &*serve));
                });
            }
        });
        Ok(Self {
            address,
            stopping,
            acceptor: Some(acceptor),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

fn connection(stream: TcpStream, serve: &Serve) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::with_capacity(256 * 1024, stream);
    while let Some((line, headers)) = read_request_head(&mut stream)? {
        if !serve(&line, &headers, &mut stream)? {
            break;
        }
    }
    Ok(())
}

impl Drop for RawUpstream {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        // Wakes the acceptor; if that fails it is gone already.
        drop(TcpStream::connect(self.address));
        if let Some(acceptor) = self.acceptor.take() {
            drop(acceptor.join());
        }
    }
}
