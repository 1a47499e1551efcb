//! The upstream of every peer: one thread that answers each request with 200 and 102 bytes, as fast as it can. It listens on two ports:
//! HTTP/1.1 on plaintext for the proxies, and HTTP/1.1 or HTTP/2 over TLS 1.3 for who comes without one.

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;
use tokio::net::TcpListener;

/// What every answer brings.
pub const BODY: &[u8; 102] = &[b'x'; 102];
/// Headers that tell what answers, for controls to take off.
pub const TELLTALES: [(&str, &str); 2] = [("server", "upstream/1.0"), ("x-powered-by", "hyper")];

/// A running upstream.
#[derive(Clone, Copy, Debug)]
pub struct Upstream {
    /// Where proxies reach it.
    pub address: SocketAddr,
    /// Where it is reached without a proxy.
    pub direct: SocketAddr,
    /// Its thread in this process.
    thread: i32,
}

impl Upstream {
    /// Starts it for the rest of the process' life, on the processors of the calling thread.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn start(tls: Arc<rustls::ServerConfig>) -> Result<Self> {
        let (listener, direct) = (listen()?, listen()?);
        let addresses = (listener.local_addr()?, direct.local_addr()?);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            // Whoever starts it waits for this.
            let _ = tell.send(rustix::thread::gettid().as_raw_nonzero().get());
            tokio::task::LocalSet::new().block_on(&runtime, async move {
                let plain = serve(TcpListener::from_std(listener)?, None);
                let secure = serve(TcpListener::from_std(direct)?, Some(tls));
                tokio::try_join!(plain, secure).map(drop)
            })
        });
        Ok(Self {
            address: addresses.0,
            direct: addresses.1,
            thread: told.recv().context("the upstream's thread did not start")?,
        })
    }

    /// The CPU time that it has taken so far.
    ///
    /// # Errors
    /// Where the kernel does not say.
    pub fn cpu(&self) -> Result<Duration> {
        crate::process::cpu_of_thread(self.thread)
    }
}

fn listen() -> Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .context("no port for the upstream")?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Takes connections until one cannot be taken. What goes wrong on a connection ends it, and only that.
async fn serve(
    listener: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
) -> std::io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        match tls.clone().map(tokio_rustls::TlsAcceptor::from) {
            None => {
                tokio::task::spawn_local(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service_fn(answer)),
                );
            }
            Some(acceptor) => {
                tokio::task::spawn_local(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service_fn(answer))
                        .await;
                });
            }
        }
    }
}

async fn answer(_: http::Request<Incoming>) -> Result<http::Response<Full<Bytes>>, Infallible> {
    let mut response = http::Response::new(Full::new(Bytes::from_static(BODY)));
    for (name, value) in TELLTALES {
        response
            .headers_mut()
            .insert(name, http::HeaderValue::from_static(value));
    }
    Ok(response)
}
