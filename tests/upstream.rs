//! An upstream on loopback that remembers every request it sees and answers as it is told. HTTP/1.1 and HTTP/2.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use crate::certificates::Certificates;
use crate::http1::{Answer, Headers};

/// A request as the upstream saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// `GET` and its like.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Headers; names in lower case, `host` (or `:authority`'s value under that name) among them.
    pub headers: Headers,
    /// The whole body.
    pub body: Bytes,
    /// The trailers.
    pub trailers: Headers,
}

/// A server on a thread of its own; it ends when it is dropped.
#[derive(Debug)]
pub struct Upstream {
    address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    seen: Vec<Seen>,
    answer: Answer,
    by_path: HashMap<String, Answer>,
}

impl Upstream {
    /// Starts one that answers every request with 200 and the body `ok`.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn start() -> Result<Self> {
        Self::start_with(None)
    }

    /// The same behind TLS, with the server's certificate.
    ///
    /// # Errors
    /// When no port can be had, or the certificate cannot be read.
    pub fn start_tls(certificates: &Certificates) -> Result<Self> {
        Self::start_with(Some(TlsAcceptor::from(
            certificates.server(&[b"h2", b"http/1.1"])?,
        )))
    }

    fn start_with(tls: Option<TlsAcceptor>) -> Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .context("no port for the upstream")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Mutex::new(Shared {
            seen: Vec::new(),
            answer: Answer {
                status: 200,
                body: b"ok".to_vec(),
                ..Answer::default()
            },
            by_path: HashMap::new(),
        }));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let state = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                // Without a listener every test that needs this upstream fails by itself.
                if let Ok(listener) = TcpListener::from_std(listener) {
                    tokio::select! {
                        () = serve(listener, tls, state) => {}
                        _ = stopped => {}
                    }
                }
            });
        });
        Ok(Self {
            address,
            shared,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it answers from now on; trailers are sent where there are some.
    pub fn answer(&self, answer: Answer) {
        lock(&self.shared).answer = answer;
    }

    /// What it answers from now on at exactly `path`.
    pub fn answer_at(&self, path: &str, answer: Answer) {
        lock(&self.shared).by_path.insert(path.to_owned(), answer);
    }

    /// The requests seen since the last call, oldest first.
    #[must_use]
    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut lock(&self.shared).seen)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        // The other end learns of it.
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Mutex<Shared>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        match tls.clone() {
            None => drop(tokio::spawn(serve_connection(stream, shared))),
            Some(tls) => drop(tokio::spawn(async move {
                if let Ok(stream) = tls.accept(stream).await {
                    serve_connection(stream, shared).await;
                }
            })),
        }
    }
}

async fn serve_connection<S>(stream: S, shared: Arc<Mutex<Shared>>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(move |request| answer(request, Arc::clone(&shared)));
    // A client that goes away is none of the upstream's business.
    drop(
        auto::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service)
            .await,
    );
}

type AnswerBody = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

async fn answer(
    request: http::Request<Incoming>,
    shared: Arc<Mutex<Shared>>,
) -> Result<http::Response<AnswerBody>, anyhow::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.context("the request broke off")?;
    let trailers = body.trailers().map(lines).unwrap_or_default();
    let path = head
        .uri
        .path_and_query()
        .map_or("/", |path| path.as_str())
        .to_owned();
    let mut headers = lines(&head.headers);
    if let (Some(authority), false) = (head.uri.authority(), head.headers.contains_key("host")) {
        headers.insert(
            0,
            (b"host".to_vec(), authority.as_str().as_bytes().to_vec()),
        );
    }
    let answer = {
        let mut shared = lock(&shared);
        shared.seen.push(Seen {
            method: head.method.to_string(),
            path: path.clone(),
            headers,
            body: body.to_bytes(),
            trailers,
        });
        shared.by_path.get(&path).unwrap_or(&shared.answer).clone()
    };
    let mut response = http::Response::builder().status(answer.status);
    for (name, value) in &answer.headers {
        response = response.header(&name[..], http::HeaderValue::from_bytes(value)?);
    }
    let bytes = Bytes::from(answer.body);
    let body = if answer.trailers.is_empty() {
        Full::new(bytes).boxed_unsync()
    } else {
        let mut trailers = http::HeaderMap::new();
        for (name, value) in &answer.trailers {
            trailers.append(
                http::HeaderName::from_bytes(name)?,
                http::HeaderValue::from_bytes(value)?,
            );
        }
        Full::new(bytes)
            .with_trailers(async move { Some(Ok(trailers)) })
            .boxed_unsync()
    };
    Ok(response.body(body)?)
}

fn lines(headers: &http::HeaderMap) -> Headers {
    headers
        .iter()
        .map(|(name, value)| (name.as_str().as_bytes().to_vec(), value.as_bytes().to_vec()))
        .collect()
}
