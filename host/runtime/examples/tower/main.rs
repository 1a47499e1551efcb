//! A Proxy-Wasm plugin in front of a service, on tokio's `LocalRuntime`: loads a module, puts it before a service that echoes, and serves
//! HTTP/1 and HTTP/2 on a loopback port.
//!
//! ```console
//! $ cargo run --release -p portcullis-runtime --example tower -- MODULE.wasm [CONFIGURATION.json]
//! ```
//!
//! [`filter`] is the layer, to be taken as it is; a program with several threads has one `World`, plugin and chain on each.

mod filter;

use std::{
    convert::Infallible,
    env,
    error::Error,
    fs,
    future::poll_fn,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::{rt::TokioIo, server::conn::auto};
use portcullis_runtime::{
    Chain, NoCache, Plugin, PluginId, PluginSpec, RouteInfo, Runtime, RuntimeOptions, Shared,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::spawn_local,
};
use tower_layer::Layer as _;
use tower_service::Service;

use filter::{FilterLayer, FilterService, Peer, World};

/// How often callbacks are checked for their time bound.
const TICK: Duration = Duration::from_millis(5);

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args_os().skip(1);
    let path = arguments
        .next()
        .ok_or("usage: tower MODULE.wasm [CONFIGURATION.json]")?;
    let wasm = fs::read(path)?;
    let configuration = arguments.next().map(fs::read).transpose()?;

    // Once a process: the engine, its clock, the compiled module.
    let runtime = Runtime::new(RuntimeOptions::default())?;
    let tick = runtime.ticker();
    std::thread::spawn(move || {
        while tick() {
            std::thread::sleep(TICK);
        }
    });
    let module = runtime.load(&wasm, &NoCache)?;
    let mut spec = PluginSpec::new("plugin");
    spec.configuration = configuration.unwrap_or_default().into();
    spec.allow_on_headers_stop_iteration = Some(false);
    let (spec, shared) = (Arc::new(spec), Arc::new(Shared::default()));

    // Once a thread: the rest.
    let local = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(Default::default())?;
    local.block_on(async {
        let world = World::new(0);
        let lent = Rc::<World>::clone(&world);
        let plugin = Plugin::start(PluginId(0), module, spec, shared, lent)?;
        world.register(&plugin);
        let layer = FilterLayer::new(
            Chain::new(vec![plugin]),
            Rc::clone(&world),
            RouteInfo::default(),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("serving on http://{}", listener.local_addr()?);
        let mut stop = pin!(tokio::signal::ctrl_c());
        let mut connections = 0;
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let (stream, source) = accepted?;
                    connections += 1;
                    let destination = stream.local_addr()?;
                    let peer = Peer { id: connections, source, destination, tls: None };
                    spawn_local(serve(stream, peer, layer.layer(Echo)));
                }
                stopped = &mut stop => {
                    stopped?;
                    break;
                }
            }
        }
        world.stop();
        Ok(())
    })
}

/// One connection.
async fn serve(stream: TcpStream, peer: Peer, service: FilterService<Echo>) {
    let service = hyper::service::service_fn(|mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        let mut service = service.clone();
        async move {
            poll_fn(|context| Service::<Request<Incoming>>::poll_ready(&mut service, context))
                .await?;
            service.call(request).await
        }
    });
    let served = auto::Builder::new(Local)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        eprintln!("connection {}: {error}", peer.id);
    }
}

/// Where hyper's tasks run: on this thread.
#[derive(Clone, Copy)]
struct Local;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        spawn_local(future);
    }
}

/// Gives the request's body and trailers back. An axum `Router` stands here as well.
#[derive(Clone)]
struct Echo;

impl<B> Service<Request<B>> for Echo {
    type Response = Response<B>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<B>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        std::future::ready(Ok(Response::new(request.into_body())))
    }
}
