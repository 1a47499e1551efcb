//! A server around a case that runs over sockets: what requests reach, or what the plugin calls.

use std::cell::RefCell;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::spawn_local;

use crate::explain::Answers;

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
    pub(super) async fn start(cluster: &str, answers: Answers) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let state = Rc::new(RefCell::new(State {
            cluster: cluster.to_owned(),
            answers,
            seen: Vec::new(),
        }));
        spawn_local(accept(listener, Rc::clone(&state)));
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

async fn accept(listener: TcpListener, state: Rc<RefCell<State>>) {
    loop {
        // A connection that is gone before it is accepted is its client's loss.
        let Ok((stream, _)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        let state = Rc::clone(&state);
        spawn_local(async move {
            let service = service_fn(|request| answer(request, &state));
            // Envoy sees the same error on its end, and says so.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    state: &RefCell<State>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    // What is broken off was seen as far as it came: not at all.
    let body = body.collect().await.map(|body| body.to_bytes());
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut state = state.borrow_mut();
    let State {
        cluster, answers, ..
    } = &mut *state;
    let told = answers.take(cluster, path.as_bytes());
    let seen = Request::from_parts(head, body.unwrap_or_default());
    state.seen.push(seen);
    let mut response = Response::new(Full::new(told.body));
    *response.status_mut() = told.status;
    *response.headers_mut() = told.headers;
    Ok(response)
}
