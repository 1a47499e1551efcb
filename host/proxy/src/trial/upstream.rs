//! A server around a case that runs over sockets: what requests reach, or what the plugin calls.

use std::cell::RefCell;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::spawn_local;

use crate::explain::{Answers, GrpcAnswer};

/// A server on loopback that answers what it was told to, and keeps what it saw.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) address: SocketAddr,
    state: Rc<RefCell<State>>,
}

#[derive(Debug)]
struct State {
    cluster: String,
    answers: Answers,
    seen: Vec<Request<Bytes>>,
}

impl Upstream {
    /// Starts one for a cluster, on the `LocalSet` that this is called on.
    ///
    /// Where it answers gRPC calls it speaks HTTP/2 alone, as proxies do to such a cluster.
    pub(super) async fn start(cluster: &str, answers: Answers) -> std::io::Result<Self> {
        let version = match answers.has_grpc(cluster) {
            true => Version::HTTP_2,
            false => Version::HTTP_11,
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let state = Rc::new(RefCell::new(State {
            cluster: cluster.to_owned(),
            answers,
            seen: Vec::new(),
        }));
        spawn_local(accept(listener, version, Rc::clone(&state)));
        Ok(Self { address, state })
    }

    /// What it answers from now on.
    pub(super) fn answer(&self, answers: Answers) {
        self.state.borrow_mut().answers = answers;
    }

    /// The request that it saw last, since this was last asked.
    pub(super) fn take_seen(&self) -> Option<Request<Bytes>> {
        std::mem::take(&mut self.state.borrow_mut().seen).pop()
    }
}

async fn accept(listener: TcpListener, version: Version, state: Rc<RefCell<State>>) {
    loop {
        // A connection that is gone before it is accepted is its client's loss.
        let Ok((stream, _)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        let state = Rc::clone(&state);
        spawn_local(async move {
            let service = service_fn(move |request| answer(request, Rc::clone(&state)));
            // Envoy sees the same error on its end, and says so.
            let _ = match version {
                Version::HTTP_2 => {
                    let builder = http2::Builder::new(OnThisThread);
                    builder
                        .serve_connection(TokioIo::new(stream), service)
                        .await
                }
                _ => {
                    let builder = http1::Builder::new();
                    builder
                        .serve_connection(TokioIo::new(stream), service)
                        .await
                }
            };
        });
    }
}

/// What it serves stays on its thread.
#[derive(Clone, Copy, Debug)]
struct OnThisThread;

impl<F: Future + 'static> hyper::rt::Executor<F> for OnThisThread {
    fn execute(&self, future: F) {
        spawn_local(async move {
            future.await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    state: Rc<RefCell<State>>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let (head, body) = request.into_parts();
    // What is broken off was seen as far as it came: not at all.
    let body = body.collect().await.map(|body| body.to_bytes());
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut state = state.borrow_mut();
    let State {
        cluster, answers, ..
    } = &mut *state;
    let grpc = head.headers.get(CONTENT_TYPE);
    let is_grpc = grpc.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    let response = match is_grpc {
        true => of_grpc(answers.take_grpc(cluster, path.as_bytes())),
        false => {
            let told = answers.take_http(cluster, path.as_bytes());
            let mut response = Response::new(Full::new(told.body).boxed());
            *response.status_mut() = told.status;
            *response.headers_mut() = told.headers;
            response
        }
    };
    let seen = Request::from_parts(head, body.unwrap_or_default());
    state.seen.push(seen);
    Ok(response)
}

/// A message in its frame, if there is one, and the status in the trailers (the gRPC project's PROTOCOL-HTTP2.md).
fn of_grpc(answer: GrpcAnswer) -> Response<BoxBody<Bytes, Infallible>> {
    let mut framed = Vec::new();
    if let (0, Ok(len)) = (answer.status, u32::try_from(answer.body.len())) {
        framed.push(0);
        framed.extend_from_slice(&len.to_be_bytes());
        framed.extend_from_slice(&answer.body);
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(answer.status));
    let escaped = answer.message.bytes().map(|byte| match byte {
        b' '..=b'~' if byte != b'%' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    });
    if let Ok(message) = HeaderValue::from_str(&escaped.collect::<String>()) {
        trailers.insert("grpc-message", message);
    }
    let body = Full::new(Bytes::from(framed)).with_trailers(async { Some(Ok(trailers)) });
    let mut response = Response::new(body.boxed());
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, grpc);
    response
}
