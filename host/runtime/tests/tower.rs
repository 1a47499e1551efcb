//! The `tower` layer of `examples/tower`, as an embedder would use it: guests in WAT in front of services in memory.
#![expect(
    clippy::unwrap_used,
    reason = "fixtures outside of test functions, which may panic as those do"
)]

#[path = "../examples/tower/filter/mod.rs"]
mod filter;

use std::{
    cell::RefCell,
    collections::VecDeque,
    convert::Infallible,
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use portcullis_runtime::{
    Chain, NoCache, Plugin, PluginId, PluginSpec, RouteInfo, Runtime, RuntimeOptions, Shared,
};
use tower_layer::Layer as _;
use tower_service::Service;

use filter::{BoxError, FilterError, FilterLayer, Peer, RequestBody, ResponseBody, World};

// --- guests -------------------------------------------------------------------------------------------------------------

/// Names, values and room for answers of all guests; `$is` compares the first byte of the request header `x-do`.
fn guest(body: &str) -> Vec<u8> {
    let wat = format!(
        r#"(module
        (import "env" "proxy_get_header_map_value" (func $get (param i32 i32 i32 i32 i32) (result i32)))
        (import "env" "proxy_add_header_map_value" (func $add (param i32 i32 i32 i32 i32) (result i32)))
        (import "env" "proxy_send_local_response"
            (func $answer (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
        (import "env" "proxy_continue_stream" (func $continue (param i32) (result i32)))
        (import "env" "proxy_close_stream" (func $close (param i32) (result i32)))
        (import "env" "proxy_set_effective_context" (func $act_on (param i32) (result i32)))
        (import "env" "proxy_set_tick_period_milliseconds" (func $tick (param i32) (result i32)))
        (import "env" "proxy_set_buffer_bytes" (func $write (param i32 i32 i32 i32 i32) (result i32)))
        (import "env" "proxy_http_call"
            (func $call (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 16) "x-seen") (data (i32.const 32) "yes") (data (i32.const 48) "denied") (data (i32.const 64) "cluster")
        ;; Three pairs, :method GET, :path /, :authority a, as the ABI serializes a map.
        (data (i32.const 256) "\03\00\00\00\07\00\00\00\03\00\00\00\05\00\00\00\01\00\00\00\0a\00\00\00\01\00\00\00")
        (data (i32.const 284) ":method\00GET\00:path\00/\00:authority\00a\00")
        (global $heap (mut i32) (i32.const 4096))
        (func (export "malloc") (param i32) (result i32)
            (global.set $heap (i32.add (global.get $heap) (local.get 0)))
            (i32.sub (global.get $heap) (local.get 0)))
        (func (export "proxy_abi_version_0_2_1"))
        (func (export "proxy_on_log") (param i32))
        (func (export "proxy_on_done") (param i32) (result i32) (i32.const 1))
        (func (export "proxy_on_delete") (param i32))
        (func $mark (param $map i32)
            (if (call $add (local.get $map) (i32.const 16) (i32.const 6) (i32.const 32) (i32.const 3)) (then unreachable)))
        (func $deny (param $status i32)
            (if (call $answer (local.get $status) (i32.const 0) (i32.const 0) (i32.const 48) (i32.const 6)
                (i32.const 0) (i32.const 0) (i32.const -1)) (then unreachable)))
        {body})"#
    );
    wat::parse_str(wat).unwrap()
}

const PHASE: &str = "(param i32 i32 i32) (result i32)";

// --- the program around the layer ---------------------------------------------------------------------------------------

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let mut options = RuntimeOptions::default();
        options.on_demand = true;
        Runtime::new(options).unwrap()
    })
}

struct Edge {
    world: Rc<World>,
    plugin: Rc<Plugin>,
    layer: FilterLayer,
}

fn edge(guest: &[u8], body_bytes: usize) -> Edge {
    let mut spec = PluginSpec::new("guest");
    spec.limits.body_bytes = body_bytes;
    spec.clusters.push("cluster".into());
    spec.allow_on_headers_stop_iteration = Some(false);
    let module = runtime().load(guest, &NoCache).unwrap();
    let world = World::new(0);
    let lent = Rc::<World>::clone(&world);
    let shared = Arc::new(Shared::default());
    let plugin = Plugin::start(PluginId(0), module, Arc::new(spec), shared, lent).unwrap();
    world.register(&plugin);
    let chain = Chain::new(vec![Rc::clone(&plugin)]);
    let layer = FilterLayer::new(chain, Rc::clone(&world), RouteInfo::default());
    Edge {
        world,
        plugin,
        layer,
    }
}

impl Edge {
    /// How often the plugin's callback of this name was called.
    fn calls(&self, callback: &str) -> u64 {
        let latencies = self.plugin.stats().latencies();
        let found = latencies.iter().find(|l| l.callback.name() == callback);
        found.map_or(0, |latency| latency.calls)
    }

    #[track_caller]
    fn assert_ended(&self, exchanges: u64) {
        for callback in ["proxy_on_log", "proxy_on_done", "proxy_on_delete"] {
            assert_eq!(self.calls(callback), exchanges, "{callback}");
        }
    }
}

/// Notes what it is given, and gives the body and the trailers back.
#[derive(Clone, Default)]
struct Echo {
    seen: Rc<RefCell<Vec<HeaderMap>>>,
    body: Rc<RefCell<Vec<u8>>>,
    /// Reads all and never answers.
    is_stuck: bool,
}

impl<B> Service<Request<RequestBody<B>>> for Echo
where
    B: Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Frames>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Frames>, BoxError>>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<RequestBody<B>>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            this.seen.borrow_mut().push(request.headers().clone());
            let collected = request.into_body().collect().await?;
            let trailers = collected.trailers().cloned();
            let bytes = collected.to_bytes();
            this.body.borrow_mut().extend_from_slice(&bytes);
            if this.is_stuck {
                std::future::pending::<()>().await;
            }
            Ok(Response::new(Frames::new(&bytes, trailers)))
        })
    }
}

/// A body of single bytes, so that there is something to hold, and trailers.
struct Frames(VecDeque<Frame<Bytes>>);

impl Frames {
    fn new(bytes: &[u8], trailers: Option<HeaderMap>) -> Self {
        let data = bytes.chunks(1).map(Bytes::copy_from_slice).map(Frame::data);
        Self(data.chain(trailers.map(Frame::trailers)).collect())
    }
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.get_mut().0.pop_front().map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }
}

fn request(body: &str, trailers: Option<HeaderMap>) -> Request<Frames> {
    let peer = Peer {
        id: 1,
        source: "192.0.2.1:4711".parse().unwrap(),
        destination: "192.0.2.2:80".parse().unwrap(),
        tls: None,
    };
    Request::post("/path?query")
        .header("host", "example.com")
        .extension(peer)
        .body(Frames::new(body.as_bytes(), trailers))
        .unwrap()
}

async fn send(
    edge: &Edge,
    service: &Echo,
    request: Request<Frames>,
) -> Result<Response<ResponseBody<Frames>>, FilterError> {
    let mut service = edge.layer.layer(service.clone());
    poll_fn(|context| Service::<Request<Frames>>::poll_ready(&mut service, context)).await?;
    service.call(request).await
}

/// Runs on one thread, as the layer must, and not for ever.
fn run(future: impl Future<Output = ()>) {
    let local = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(Default::default())
        .unwrap();
    local.block_on(async {
        tokio::time::timeout(Duration::from_secs(60), future)
            .await
            .unwrap()
    });
}

fn trailers() -> HeaderMap {
    HeaderMap::from_iter([(
        HeaderName::from_static("x-sum"),
        HeaderValue::from_static("1"),
    )])
}

// --- tests --------------------------------------------------------------------------------------------------------------

#[test]
fn a_refusal_reaches_the_client_and_not_the_service() {
    let guest = guest(&format!(
        r#"(func (export "proxy_on_request_headers") {PHASE} (call $deny (i32.const 403)) (i32.const 1))"#
    ));
    run(async {
        let (edge, service) = (edge(&guest, 1024), Echo::default());
        for exchange in 1..3 {
            let response = send(&edge, &service, request("body", None)).await.unwrap();
            assert_eq!(response.status(), StatusCode::FORBIDDEN);
            assert_eq!(response.headers()["content-length"], "6");
            assert_eq!(response.headers()["content-type"], "text/plain");
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, "denied");
            edge.assert_ended(exchange);
        }
        assert!(service.seen.borrow().is_empty());
        assert_eq!(edge.plugin.stats().local_responses(), 2);
    });
}

#[test]
fn heads_bodies_and_trailers_pass_both_ways() {
    let mark = |callback: &str, params: &str, map: u32| {
        format!(
            r#"(func (export "{callback}") (param {params}) (result i32) (call $mark (i32.const {map})) (i32.const 0))"#
        )
    };
    let marking = [
        mark("proxy_on_request_headers", "i32 i32 i32", 0),
        mark("proxy_on_request_trailers", "i32 i32", 1),
        mark("proxy_on_response_headers", "i32 i32 i32", 2),
        mark("proxy_on_response_trailers", "i32 i32", 3),
    ];
    run(async {
        for (body, filters) in [
            ("", &marking[..]),
            ("abc", &marking),
            ("abc", &marking[..1]),
        ] {
            let (edge, service) = (edge(&guest(&filters.concat()), 1024), Echo::default());
            let sent = (!body.is_empty()).then(trailers);
            let response = send(&edge, &service, request(body, sent)).await.unwrap();
            assert_eq!(service.seen.borrow()[0]["x-seen"], "yes");
            assert_eq!(service.seen.borrow()[0]["host"], "example.com");
            let all = filters.len() > 1;
            assert_eq!(response.headers().contains_key("x-seen"), all);
            let collected = response.into_body().collect().await.unwrap();
            let count = collected
                .trailers()
                .map(|t| (t.len(), t.get_all("x-seen").iter().count()));
            let expected = (!body.is_empty()).then_some(if all { (3, 2) } else { (1, 0) });
            assert_eq!(
                count, expected,
                "the request's, and one more on the way back"
            );
            assert_eq!(collected.to_bytes(), body);
            edge.assert_ended(1);
        }
    });
}

#[test]
fn a_filter_holds_a_body_within_its_bound() {
    // Pauses until the end, then puts `yes` in place of what it holds.
    let holding = |callback: &str, buffer: u32| {
        guest(&format!(
            r#"(func (export "{callback}") {PHASE}
                (if (i32.eqz (local.get 2)) (then (return (i32.const 1))))
                (drop (call $write (i32.const {buffer}) (i32.const 0) (i32.const 9) (i32.const 32) (i32.const 3)))
                (i32.const 0))"#
        ))
    };
    run(async {
        let (edge, service) = (
            edge(&holding("proxy_on_request_body", 0), 3),
            Echo::default(),
        );
        let response = send(&edge, &service, request("abc", None)).await.unwrap();
        assert_eq!(*service.body.borrow(), b"yes");
        drop(response);
        let response = send(&edge, &service, request("abcd", None)).await.unwrap();
        assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(*service.body.borrow(), b"yes", "nothing more");
        drop(response);
        edge.assert_ended(2);
    });
    run(async {
        let (edge, service) = (
            edge(&holding("proxy_on_response_body", 1), 3),
            Echo::default(),
        );
        let response = send(&edge, &service, request("abc", None)).await.unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "yes");
        // The head has gone: past the bound the body can only break off.
        let response = send(&edge, &service, request("abcd", None)).await.unwrap();
        let error = response.into_body().collect().await.err().unwrap();
        assert_eq!(error.to_string(), "reset by a filter");
        edge.assert_ended(2);
    });
}

/// Pauses in the request's headers, unless `x-do` is there; a tick then does `act` to the last exchange.
fn ticking(pauses: bool, act: &str) -> Vec<u8> {
    guest(&format!(
        r#"(global $last (mut i32) (i32.const 0))
        (func (export "proxy_on_configure") (param i32 i32) (result i32) (drop (call $tick (i32.const 10))) (i32.const 1))
        (func (export "proxy_on_context_create") (param i32 i32)
            (if (local.get 1) (then (global.set $last (local.get 0)))))
        (func (export "proxy_on_request_headers") {PHASE} (i32.const {}))
        (func (export "proxy_on_tick") (param i32)
            (if (global.get $last) (then
                (drop (call $tick (i32.const 0)))
                (drop (call $act_on (global.get $last)))
                {act})))"#,
        u32::from(pauses)
    ))
}

#[test]
fn a_timer_goes_on_with_an_exchange_or_answers_it() {
    let goes_on = ticking(true, "(drop (call $continue (i32.const 0)))");
    let answers = ticking(true, "(call $deny (i32.const 429))");
    let interrupts = ticking(false, "(call $deny (i32.const 429))");
    run(async {
        for (guest, is_stuck, expected) in [
            (goes_on, false, StatusCode::OK),
            (answers, false, StatusCode::TOO_MANY_REQUESTS),
            (interrupts, true, StatusCode::TOO_MANY_REQUESTS),
        ] {
            let edge = edge(&guest, 1024);
            let service = Echo {
                is_stuck,
                ..Echo::default()
            };
            let response = send(&edge, &service, request("abc", None)).await.unwrap();
            assert_eq!(response.status(), expected);
            assert_eq!(
                service.seen.borrow().len(),
                usize::from(is_stuck || expected == StatusCode::OK)
            );
            drop(response);
            edge.assert_ended(1);
            edge.world.stop();
        }
    });
}

#[test]
fn callouts_are_refused_with_a_status() {
    let guest = guest(&format!(
        r#"(func (export "proxy_on_request_headers") {PHASE}
            (call $deny (i32.add (i32.const 500) (call $call (i32.const 64) (i32.const 7) (i32.const 256) (i32.const 61)
                (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1000) (i32.const 128))))
            (i32.const 1))"#
    ));
    run(async {
        let response = send(&edge(&guest, 1024), &Echo::default(), request("", None)).await;
        // 2 is `BadArgument`, what Envoy says of a cluster it does not know.
        assert_eq!(response.unwrap().status(), StatusCode::BAD_GATEWAY);
    });
}

#[test]
fn a_filter_that_closes_and_a_client_that_goes_leave_nothing_behind() {
    let closing = guest(&format!(
        r#"(func (export "proxy_on_request_headers") {PHASE} (drop (call $close (i32.const 0))) (i32.const 1))"#
    ));
    let pausing = guest(&format!(
        r#"(func (export "proxy_on_request_headers") {PHASE} (i32.const 1))"#
    ));
    run(async {
        let (edge, service) = (edge(&closing, 1024), Echo::default());
        let error = send(&edge, &service, request("", None))
            .await
            .err()
            .unwrap();
        assert!(matches!(error, FilterError::Reset), "{error:?}");
        edge.assert_ended(1);
        let mut nobody = request("", None);
        nobody.extensions_mut().clear();
        let error = send(&edge, &service, nobody).await.err().unwrap();
        assert!(matches!(error, FilterError::NoPeer), "{error:?}");
        edge.assert_ended(1);
    });
    run(async {
        let (edge, service) = (edge(&pausing, 1024), Echo::default());
        let mut paused = std::pin::pin!(send(&edge, &service, request("abc", None)));
        let once = poll_fn(|context| Poll::Ready(paused.as_mut().poll(context).is_pending()));
        assert!(once.await, "held by the filter");
        assert_eq!(edge.calls("proxy_on_log"), 0);
        // `pin!` hides the future's end: a new one in its place drops it.
        paused.set(send(&edge, &service, request("", None)));
        edge.assert_ended(1);
    });
}

/// axum's `Router` and hyper's clients want bodies that may change threads.
#[test]
fn what_the_service_is_given_is_send() {
    fn is_send<T: Send + 'static>() {}
    is_send::<Request<RequestBody<Frames>>>();
    is_send::<FilterError>();
}
