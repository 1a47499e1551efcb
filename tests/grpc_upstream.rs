//! A gRPC server on loopback whose methods each do one thing that a client must understand: answer, refuse, break off, stand still.
//!
//! Framing by hand (a flag, a length of four bytes, the message), so that it can also be wrong. `te`, `content-type` and `x-md` of the
//! request are in the answer of `Unary`.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsAcceptor;

/// A server on a thread of its own; it ends when it is dropped.
#[derive(Debug)]
pub struct GrpcUpstream {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What a call is answered with.
#[derive(Clone, Debug)]
pub struct GrpcAnswer {
    /// `/SERVICE/METHOD`; any, if there is none.
    pub path: Option<String>,
    /// The message where the status is 0.
    pub message: Vec<u8>,
    /// The gRPC status.
    pub status: u32,
    /// What is said of another status.
    pub status_message: String,
}

impl GrpcUpstream {
    /// Starts one; over TLS where there is a configuration for it.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn start(tls: Option<Arc<ServerConfig>>) -> Result<Self> {
        Self::start_with(tls, Vec::new())
    }

    /// Starts one that gives these answers, the first that fits, and has no methods of its own.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn answering(answers: Vec<GrpcAnswer>) -> Result<Self> {
        Self::start_with(None, answers)
    }

    fn start_with(tls: Option<Arc<ServerConfig>>, answers: Vec<GrpcAnswer>) -> Result<Self> {
        let answers = Arc::new(answers);
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .context("no port for the gRPC upstream")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                // Without a listener every test that needs this upstream fails by itself.
                if let Ok(listener) = TcpListener::from_std(listener) {
                    tokio::select! {
                        () = serve(listener, tls, answers) => {}
                        _ = stopped => {}
                    }
                }
            });
        });
        Ok(Self {
            address,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for GrpcUpstream {
    fn drop(&mut self) {
        // The other end learns of it.
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

async fn serve(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    answers: Arc<Vec<GrpcAnswer>>,
) {
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, answers) = (tls.clone(), answers.clone());
        tokio::spawn(async move {
            // A client that goes away is none of the upstream's business.
            if let Some(config) = tls {
                if let Ok(stream) = TlsAcceptor::from(config).accept(stream).await {
                    drop(connection(stream, answers).await);
                }
            } else {
                drop(connection(stream, answers).await);
            }
        });
    }
}

async fn connection<T>(stream: T, answers: Arc<Vec<GrpcAnswer>>) -> hyper::Result<()>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| {
        let answers = answers.clone();
        // Not before it is polled: what an answer does must not come before its headers.
        async move {
            Ok::<_, Infallible>(match answers.is_empty() {
                true => answer(request),
                false => given(request, &answers),
            })
        }
    });
    http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await
}

/// What is sent, as it comes; an error resets the stream.
struct Frames(mpsc::UnboundedReceiver<Result<Frame<Bytes>, std::io::Error>>);

impl Body for Frames {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_closed() && self.0.is_empty()
    }
}

/// The sending side of one answer.
struct Sending(mpsc::UnboundedSender<Result<Frame<Bytes>, std::io::Error>>);

impl Sending {
    fn data(&self, bytes: impl Into<Bytes>) {
        drop(self.0.send(Ok(Frame::data(bytes.into()))));
    }

    fn message(&self, message: &[u8]) {
        self.data(framed(0, message));
    }

    fn trailers(&self, fields: &[(&'static str, &'static str)]) {
        let mut trailers = HeaderMap::new();
        for (name, value) in fields {
            trailers.insert(*name, HeaderValue::from_static(value));
        }
        drop(self.0.send(Ok(Frame::trailers(trailers))));
    }

    fn ok(&self) {
        self.trailers(&[("grpc-status", "0"), ("x-trailing", "t")]);
    }

    fn reset(&self) {
        drop(
            self.0
                .send(Err(std::io::Error::other("as the test wants it"))),
        );
    }
}

fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
    let mut frame = vec![flag];
    frame.extend_from_slice(
        &u32::try_from(message.len())
            .unwrap_or(u32::MAX)
            .to_be_bytes(),
    );
    frame.extend_from_slice(message);
    frame
}

/// The answer that was asked for; a method without one is not implemented.
fn given(request: Request<Incoming>, answers: &[GrpcAnswer]) -> Response<Frames> {
    let path = request.uri().path();
    let fits = |answer: &&GrpcAnswer| answer.path.as_ref().is_none_or(|known| known == path);
    let found = answers.iter().find(fits).cloned();
    let (sender, receiver) = mpsc::unbounded_channel();
    let sending = Sending(sender);
    tokio::spawn(async move {
        let mut question = Messages {
            body: request.into_body(),
            buffer: BytesMut::new(),
        };
        question.next().await;
        let Some(answer) = found else {
            return sending.trailers(&[("grpc-status", "12")]);
        };
        if answer.status == 0 {
            sending.message(&answer.message);
            return sending.ok();
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from(answer.status));
        if let Ok(text) = HeaderValue::from_str(&answer.status_message) {
            trailers.insert("grpc-message", text);
        }
        drop(sending.0.send(Ok(Frame::trailers(trailers))));
    });
    let mut response = Response::new(Frames(receiver));
    let content_type = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert("content-type", content_type);
    response
}

fn answer(request: Request<Incoming>) -> Response<Frames> {
    let method = request
        .uri()
        .path()
        .strip_prefix("/test.Service/")
        .unwrap_or_default()
        .to_owned();
    let (sender, receiver) = mpsc::unbounded_channel();
    let sending = Sending(sender);
    let mut response = Response::new(Frames(receiver));
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    headers.insert("x-initial", HeaderValue::from_static("i"));
    match method.as_str() {
        "TrailersOnly" => {
            headers.insert("grpc-status", HeaderValue::from_static("7"));
            headers.insert("grpc-message", HeaderValue::from_static("not you"));
        }
        "TrailersOnlyOk" => {
            headers.insert("grpc-status", HeaderValue::from_static("0"));
        }
        plain if plain.starts_with("Http") => {
            headers.insert("content-type", HeaderValue::from_static("text/plain"));
            let status = plain.trim_start_matches("Http").trim_end_matches("Refused");
            if plain.ends_with("Refused") {
                headers.insert("grpc-status", HeaderValue::from_static("9"));
            }
            *response.status_mut() =
                StatusCode::from_bytes(status.as_bytes()).unwrap_or(StatusCode::BAD_REQUEST);
        }
        _ => {
            tokio::spawn(run(method, request, sending));
        }
    }
    response
}

async fn run(method: String, request: Request<Incoming>, sending: Sending) {
    let told = told(request.headers());
    let mut messages = Messages {
        body: request.into_body(),
        buffer: BytesMut::new(),
    };
    let question = messages.next().await.unwrap_or_default();
    match method.as_str() {
        "Unary" => {
            sending.message(format!("{told} {}", String::from_utf8_lossy(&question)).as_bytes());
            sending.ok();
        }
        "Fail" => sending.trailers(&[
            ("grpc-status", "5"),
            ("grpc-message", "no%20such thing"),
            ("x-trailing", "t"),
        ]),
        "FailAfterMessage" => {
            sending.message(b"lost");
            sending.trailers(&[("grpc-status", "6"), ("grpc-message", "after")]);
        }
        "NoMessage" => sending.ok(),
        "NoTrailers" => sending.message(b"alone"),
        "NoStatus" => {
            sending.message(b"m");
            sending.trailers(&[("x-trailing", "t")]);
        }
        "OddStatus" => sending.trailers(&[("grpc-status", "no number")]),
        "HighStatus" => sending.trailers(&[("grpc-status", "77")]),
        "Empty" => {
            sending.message(b"");
            sending.ok();
        }
        "Two" => {
            sending.message(b"first");
            sending.message(b"second");
            sending.ok();
        }
        "Split" => {
            let frame = framed(0, b"in pieces");
            for byte in frame {
                sending.data(vec![byte]);
            }
            sending.ok();
        }
        "Compressed" => {
            sending.data(framed(1, b"squeezed"));
            sending.ok();
        }
        "Cut" => {
            let frame = framed(0, b"whole");
            sending.data(frame.get(..7).unwrap_or_default().to_vec());
            sending.ok();
        }
        "Reset" => sending.reset(),
        "Huge" => {
            // Says four gigabytes, and sends none of them.
            sending.data(vec![0, 0xff, 0xff, 0xff, 0xff, 1]);
            sending.0.closed().await;
        }
        // Holds the answer open until the client gives up.
        "Slow" => sending.0.closed().await,
        "Chat" => {
            let mut question = Some(question);
            let mut number = 0;
            while let Some(message) = question {
                number += 1;
                let text = format!("{number}:{}", String::from_utf8_lossy(&message));
                sending.message(text.as_bytes());
                question = messages.next().await;
            }
            sending.ok();
        }
        _ => sending.trailers(&[("grpc-status", "12")]),
    }
}

/// What of the request's headers the protocol asks for, and the metadata.
fn told(headers: &HeaderMap) -> String {
    let value = |name: &str| {
        headers
            .get(name)
            .map_or("-", |value| value.to_str().unwrap_or("?"))
            .to_owned()
    };
    format!(
        "te={} type={} md={} timeout={}",
        value("te"),
        value("content-type"),
        value("x-md"),
        value("grpc-timeout")
    )
}

struct Messages {
    body: Incoming,
    buffer: BytesMut,
}

impl Messages {
    /// The next whole message; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(message) = self.take() {
                return Some(message);
            }
            let frame = self.body.frame().await?.ok()?;
            self.buffer.extend_from_slice(&frame.into_data().ok()?);
        }
    }

    fn take(&mut self) -> Option<Bytes> {
        let (head, rest) = self.buffer.split_at_checked(5)?;
        let len = u32::from_be_bytes(*head.get(1..)?.first_chunk::<4>()?);
        let len = usize::try_from(len).ok()?;
        if rest.len() < len {
            return None;
        }
        self.buffer.advance(5);
        Some(self.buffer.split_to(len).freeze())
    }
}
