//! A chain of Proxy-Wasm plugins as a `tower` layer: in front of any service that takes `http` requests, such as axum's `Router`.
//!
//! Everything of a chain stays on its thread, so the layer's services and futures are not `Send`: put the layer around the finished service
//! (`layer.layer(router)`), not into `Router::layer`, and serve it on a `LocalSet` or tokio's `LocalRuntime`, one a thread. What the wrapped
//! service is given is `Send` if the client's body is, so that a `Router` fits.
//!
//! ```text
//! request ─> request headers ─> body, trailers ─> service ─> response headers ─> body, trailers ─> log, done, delete
//!                 │ local response      │ 413                     │
//!                 └─────────────────────┴─────────────────────────┴─> response headers of the filters entered ─> client
//! ```
//!
//! A service that fronts others must make paths canonical before this layer sees them: filters judge the path as it stands.

mod body;
mod fields;
mod stream;
mod world;

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response, header};
use http_body::Body;
use portcullis_runtime::{Chain, Direction, RouteInfo};
use tower_layer::Layer;
use tower_service::Service;

pub(crate) use body::{RequestBody, ResponseBody};
pub(crate) use stream::Peer;
pub(crate) use world::World;

use stream::{Settled, Stream};

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How often one exchange's answer may be replaced by a filter's before it is given up: each filter once is more than any chain needs.
const LOCAL_RESPONSES_MAX: usize = 16;

/// An exchange that ends without an answer. A server closes its connection or resets its stream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilterError {
    /// A filter closed the exchange, or broke once headers had gone.
    #[error("reset by a filter")]
    Reset,
    /// A filter held the exchange for too long.
    #[error("held by a filter for too long")]
    TooLong,
    /// The server told nothing of the connection; a filter is not to guess.
    #[error("no connection facts in the request's extensions")]
    NoPeer,
    /// What filters made of the message is none.
    #[error("not a valid message after the filters")]
    Invalid,
    /// The service failed, or a body on its way.
    #[error(transparent)]
    Inner(BoxError),
}

/// What all exchanges of a layer share.
pub(crate) struct Gate {
    chain: Chain,
    world: Rc<World>,
    route: Rc<RouteInfo>,
}

/// Puts a chain in front of services.
#[derive(Clone)]
pub(crate) struct FilterLayer(Rc<Gate>);

impl FilterLayer {
    /// `world` is what the chain's plugins were started with. They are to have `allow_on_headers_stop_iteration: Some(false)`: this layer shows no
    /// body before its headers have passed.
    pub(crate) fn new(chain: Chain, world: Rc<World>, route: RouteInfo) -> Self {
        let route = Rc::new(route);
        Self(Rc::new(Gate {
            chain,
            world,
            route,
        }))
    }
}

impl<S> Layer<S> for FilterLayer {
    type Service = FilterService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        FilterService {
            gate: Rc::clone(&self.0),
            inner,
        }
    }
}

/// A service behind a chain.
#[derive(Clone)]
pub(crate) struct FilterService<S> {
    gate: Rc<Gate>,
    inner: S,
}

type Answered<R> = Result<Response<ResponseBody<R>>, FilterError>;

impl<S, B, R> Service<Request<B>> for FilterService<S>
where
    S: Service<Request<RequestBody<B>>, Response = Response<R>> + Clone + 'static,
    S::Error: Into<BoxError>,
    B: Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<BoxError>,
    R: Body<Data = Bytes> + Unpin + 'static,
    R::Error: Into<BoxError>,
{
    type Response = Response<ResponseBody<R>>;
    type Error = FilterError;
    type Future = Pin<Box<dyn Future<Output = Answered<R>>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), FilterError>> {
        self.inner
            .poll_ready(context)
            .map_err(|error| FilterError::Inner(error.into()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The one that was asked for readiness serves; its copy stays.
        let next = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, next);
        Box::pin(run(Rc::clone(&self.gate), inner, request))
    }
}

async fn run<S, B, R>(gate: Rc<Gate>, mut inner: S, request: Request<B>) -> Answered<R>
where
    S: Service<Request<RequestBody<B>>, Response = Response<R>>,
    S::Error: Into<BoxError>,
    B: Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<BoxError>,
    R: Body<Data = Bytes> + Unpin,
    R::Error: Into<BoxError>,
{
    let (mut parts, body) = request.into_parts();
    let peer = parts.extensions.get::<Peer>().ok_or(FilterError::NoPeer)?;
    let stream = Stream::enter(&gate, peer, &parts);
    let end_of_stream = body.is_end_stream();
    let settled = stream.settle(Direction::Request, |http| {
        http.request_headers(end_of_stream)
    });
    if settled.await? == Settled::Respond {
        return respond(&stream).await;
    }
    stream
        .with(|http| fields::write_request(&mut parts, &*http.exchange().request_headers))
        .ok_or(FilterError::Reset)?
        .map_err(|_| FilterError::Invalid)?;
    let body = RequestBody::new(body, &stream, &gate.chain);
    let answered = {
        let mut serving = pin!(inner.call(Request::from_parts(parts, body)));
        // A filter may end the exchange while the service is at work, from a timer or over the body: then it counts, not the answer.
        poll_fn(|context| {
            let served = serving.as_mut().poll(context);
            match stream.poll_end(context) {
                Some(end) => Poll::Ready(Err(end)),
                None => served.map(Ok),
            }
        })
        .await
    };
    let response = match answered {
        Ok(answered) => answered.map_err(|error| FilterError::Inner(error.into()))?,
        Err(Settled::Respond) => return respond(&stream).await,
        Err(_) => return Err(FilterError::Reset),
    };
    let (mut parts, body) = response.into_parts();
    let end_of_stream = body.is_end_stream();
    let settled = stream.settle(Direction::Response, |http| {
        {
            let mut exchange = http.exchange_mut();
            exchange.response_headers = Some(Box::new(fields::of_response(&parts)));
            exchange.info.response_code = Some(parts.status.as_u16());
        }
        http.response_headers(end_of_stream)
    });
    if settled.await? == Settled::Respond {
        return respond(&stream).await;
    }
    stream.write_response(&mut parts)?;
    Ok(Response::from_parts(
        parts,
        ResponseBody::streamed(body, stream),
    ))
}

/// A filter's answer, through the response phases of the filters that the request had entered.
async fn respond<R>(stream: &Rc<Stream>) -> Answered<R>
where
    R: Body<Data = Bytes> + Unpin,
    R::Error: Into<BoxError>,
{
    for _ in 0..LOCAL_RESPONSES_MAX {
        let mut body = stream
            .with(|http| http.take_local_body())
            .ok_or(FilterError::Reset)?;
        let end_of_stream = body.is_empty();
        let settled = stream.settle(Direction::Response, |http| {
            http.response_headers(end_of_stream)
        });
        if settled.await? == Settled::Respond {
            continue;
        }
        let (mut parts, ()) = Response::new(()).into_parts();
        stream.write_response(&mut parts)?;
        if !end_of_stream {
            let settled = stream.settle(Direction::Response, |http| http.response_body(body, true));
            if settled.await? == Settled::Respond {
                return Err(FilterError::Reset);
            }
            body = stream.take_body(Direction::Response);
            // A filter may have changed the body.
            parts
                .headers
                .insert(header::CONTENT_LENGTH, body.len().into());
        }
        return Ok(Response::from_parts(
            parts,
            ResponseBody::whole(body, Rc::clone(stream)),
        ));
    }
    Err(FilterError::Reset)
}
