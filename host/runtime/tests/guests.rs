//! Small guests in WAT, driven through the public interface with an in-memory embedder.
#![expect(
    clippy::unwrap_used,
    reason = "fixtures outside of test functions, which may panic as those do"
)]

#[path = "guests/grpc.rs"]
mod grpc;
#[path = "guests/tcp.rs"]
mod tcp;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use portcullis_runtime::{
    CalloutError, CalloutId, Chain, ConnectionInfo, Direction, Embedder, Exchange, FailurePolicy,
    FieldList, Fields as _, GrpcCall, HttpCall, HttpCallResponse, HttpStream, Limits, LoadError,
    LogLevel, Module, ModuleCache, NoCache, Plugin, PluginId, PluginSpec, Progress, Protocol,
    QueueTarget, RouteInfo, Runtime, RuntimeOptions, Shared, StartError, StartFailure, Status,
    StreamInfo, StreamToken, TrapKind, UnknownImports, limits::UNKNOWN_IMPORTS_MAX,
};

// --- the embedder -------------------------------------------------------------------------------------------------------

/// Keeps what the runtime tells it. Its clocks stand still, but for CPU time, of which each look takes a step.
#[derive(Default)]
struct Memory {
    log: RefCell<Vec<String>>,
    calls: RefCell<Vec<(CalloutId, HttpCall)>>,
    cancelled: Cell<u32>,
    grpc_calls: RefCell<Vec<(CalloutId, GrpcCall)>>,
    grpc_sent: RefCell<Vec<(CalloutId, Option<Bytes>, bool)>>,
    grpc_cancelled: RefCell<Vec<CalloutId>>,
    /// Takes no more messages.
    grpc_is_full: Cell<bool>,
    woken: RefCell<Vec<StreamToken>>,
    queues: RefCell<Vec<QueueTarget>>,
    tick_period: Cell<Option<Duration>>,
    now_ns: Cell<u64>,
    cpu_ns: Cell<u64>,
    cpu_step_ns: Cell<u64>,
}

impl Embedder for Memory {
    fn unix_time_ns(&self) -> u64 {
        1_700_000_000_000_000_000
    }
    fn monotonic_ns(&self) -> u64 {
        self.now_ns.get()
    }
    fn thread_cpu_ns(&self) -> u64 {
        self.cpu_ns.set(self.cpu_ns.get() + self.cpu_step_ns.get());
        self.cpu_ns.get()
    }
    fn random(&self, out: &mut [u8]) {
        out.fill(0x5a);
    }
    fn log(&self, _: &PluginSpec, _: LogLevel, message: &[u8]) {
        self.log
            .borrow_mut()
            .push(String::from_utf8_lossy(message).into_owned());
    }
    fn log_level(&self) -> LogLevel {
        LogLevel::Trace
    }
    fn set_tick_period(&self, _: PluginId, period: Option<Duration>) {
        self.tick_period.set(period);
    }
    fn start_http_call(
        &self,
        _: PluginId,
        id: CalloutId,
        call: HttpCall,
    ) -> Result<(), CalloutError> {
        self.calls.borrow_mut().push((id, call));
        Ok(())
    }
    fn start_grpc(&self, _: PluginId, id: CalloutId, call: GrpcCall) -> Result<(), CalloutError> {
        self.grpc_calls.borrow_mut().push((id, call));
        Ok(())
    }
    fn send_grpc(
        &self,
        _: PluginId,
        id: CalloutId,
        message: Option<Bytes>,
        is_last: bool,
    ) -> Result<(), CalloutError> {
        if self.grpc_is_full.get() {
            return Err(CalloutError::Overloaded);
        }
        self.grpc_sent.borrow_mut().push((id, message, is_last));
        Ok(())
    }
    fn cancel_grpc(&self, _: PluginId, id: CalloutId) {
        self.grpc_cancelled.borrow_mut().push(id);
    }
    fn cancel_calls(&self, _: PluginId) {
        self.cancelled.set(self.cancelled.get() + 1);
        self.calls.borrow_mut().clear();
    }
    fn wake(&self, stream: StreamToken) {
        self.woken.borrow_mut().push(stream);
    }
    fn notify_queue(&self, target: QueueTarget) {
        self.queues.borrow_mut().push(target);
    }
    fn foreign_function(&self, name: &str, arguments: &[u8]) -> Result<Vec<u8>, Status> {
        match name {
            "reverse" => Ok(arguments.iter().rev().copied().collect()),
            _ => Err(Status::NotFound),
        }
    }
}

/// One engine for all tests: a process has address space for about thirty pools.
fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let mut options = RuntimeOptions::default();
        options.vms_max = 64;
        Runtime::new(options).unwrap()
    })
}

fn load(wat: &str) -> Result<Arc<Module>, LoadError> {
    runtime().load(&wat::parse_str(wat).unwrap(), &NoCache)
}

fn spec(name: &str) -> PluginSpec {
    PluginSpec {
        name: name.into(),
        root_id: "root".into(),
        vm_id: String::new(),
        vm_configuration: Bytes::from("vm"),
        configuration: Bytes::from("plugin configuration"),
        failure_policy: FailurePolicy::Closed,
        limits: Limits::default(),
        clusters: vec!["c".into()],
    }
}

fn start_with(
    spec: PluginSpec,
    wat: &str,
    embedder: &Rc<Memory>,
) -> Result<Rc<Plugin>, StartError> {
    let embedder: Rc<dyn Embedder> = Rc::<Memory>::clone(embedder);
    Plugin::start(
        PluginId(1),
        load(wat).unwrap(),
        Arc::new(spec),
        Arc::default(),
        embedder,
    )
}

fn start(wat: &str, embedder: &Rc<Memory>) -> Rc<Plugin> {
    start_with(spec("p"), wat, embedder).unwrap()
}

fn list(fields: &[(&str, &str)]) -> FieldList {
    let mut list = FieldList::new();
    for (name, value) in fields {
        list.push(name.to_string(), value.to_string());
    }
    list
}

fn exchange(fields: &[(&str, &str)]) -> Exchange {
    let mut headers = list(&[
        (":method", "GET"),
        (":path", "/p"),
        (":authority", "h"),
        ("x-request-id", "0123456789abcdef"),
    ]);
    for (name, value) in fields {
        headers.push(name.to_string(), value.to_string());
    }
    let info = StreamInfo {
        connection: Rc::new(ConnectionInfo {
            id: 7,
            source: "127.0.0.1:1".parse().unwrap(),
            destination: "127.0.0.1:2".parse().unwrap(),
            tls: None,
            state: Default::default(),
        }),
        route: Rc::new(RouteInfo::default()),
        protocol: Protocol::Http11,
        start_unix_ns: 0,
        request_size: 0,
        response_size: 0,
        duration_ns: None,
        response_code: None,
        response_flags: 0,
        upstream_address: None,
    };
    Exchange::new(Box::new(headers), info)
}

fn stream(plugins: &[&Rc<Plugin>], fields: &[(&str, &str)]) -> HttpStream {
    let chain = Chain::new(plugins.iter().map(|plugin| Rc::clone(plugin)).collect());
    HttpStream::new(&chain, exchange(fields), StreamToken(9))
}

fn answer(stream: &mut HttpStream, fields: &[(&str, &str)]) {
    stream.exchange_mut().response_headers = Some(Box::new(list(fields)));
}

fn header(stream: &HttpStream, name: &str) -> Option<String> {
    let exchange = stream.exchange();
    let headers = exchange.response_headers.as_ref()?;
    headers
        .get(name.as_bytes())
        .map(|value| String::from_utf8_lossy(value).into_owned())
}

// --- guests -------------------------------------------------------------------------------------------------------------

/// What every guest has: memory, a bump allocator, and one import to tell what happens.
fn guest(imports: &str, body: &str) -> String {
    format!(
        r#"(module
        (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))
        {imports}
        (memory (export "memory") 2)
        (global $heap (mut i32) (i32.const 70000))
        (func (export "proxy_abi_version_0_2_1"))
        (func $allocate (export "proxy_on_memory_allocate") (param i32) (result i32)
            (global.get $heap)
            (global.set $heap (i32.add (global.get $heap) (local.get 0))))
        (func $say (param $at i32) (param $len i32)
            (drop (call $log (i32.const 2) (local.get $at) (local.get $len))))
        {body})"#
    )
}

/// Imports of hostcalls with nothing but i32.
fn import(name: &str, params: usize) -> String {
    let params = "i32 ".repeat(params);
    format!(r#"(import "env" "{name}" (func ${name} (param {params}) (result i32)))"#)
}

/// Logs each callback by name, with its context: a digit at 0.
const LIFECYCLE: &str = r#"
    (data (i32.const 100) "create vm_start configure request response log done delete ")
    (func $told (param $at i32) (param $len i32) (param $context i32)
        (i32.store8 (i32.const 0) (i32.add (i32.const 48) (local.get $context)))
        (memory.copy (i32.const 1) (local.get $at) (local.get $len))
        (call $say (i32.const 0) (i32.add (i32.const 1) (local.get $len))))
    (func (export "_initialize") (call $say (i32.const 100) (i32.const 3)))
    (func (export "proxy_on_context_create") (param i32 i32) (call $told (i32.const 100) (i32.const 6) (local.get 0)))
    (func (export "proxy_on_vm_start") (param i32 i32) (result i32) (call $told (i32.const 107) (i32.const 8) (local.get 0)) (i32.const 1))
    (func (export "proxy_on_configure") (param i32 i32) (result i32) (call $told (i32.const 116) (i32.const 9) (local.get 0)) (i32.const 1))
    (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (call $told (i32.const 126) (i32.const 7) (local.get 0)) (i32.const 0))
    (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32) (call $told (i32.const 134) (i32.const 8) (local.get 0)) (i32.const 0))
    (func (export "proxy_on_log") (param i32) (call $told (i32.const 143) (i32.const 3) (local.get 0)))
    (func (export "proxy_on_done") (param i32) (result i32) (call $told (i32.const 147) (i32.const 4) (local.get 0)) (i32.const 1))
    (func (export "proxy_on_delete") (param i32) (call $told (i32.const 152) (i32.const 6) (local.get 0)))
"#;

#[test]
fn the_lifecycle_has_envoy_s_order() {
    let embedder = Rc::new(Memory::default());
    let plugin = start(&guest("", LIFECYCLE), &embedder);
    assert_eq!(
        embedder.log.take(),
        ["cre", "1create", "1vm_start", "1configure"]
    );
    for id in 2..4 {
        let mut stream = stream(&[&plugin], &[]);
        assert_eq!(stream.request_headers(true), Progress::Continue);
        answer(&mut stream, &[(":status", "200")]);
        assert_eq!(stream.response_headers(true), Progress::Continue);
        stream.finish();
        let expected = ["create", "request", "response", "log", "done", "delete"]
            .map(|callback| format!("{id}{callback}"));
        assert_eq!(embedder.log.take(), expected);
    }
    drop(stream(&[&plugin], &[]));
    assert_eq!(
        embedder.log.take(),
        ["4create", "4log", "4done", "4delete"],
        "a filter that was never entered logs, as in Envoy"
    );
    plugin.shut_down();
    assert_eq!(embedder.log.take(), ["1done", "1delete"]);
    let mut stream = stream(&[&plugin], &[]);
    assert_eq!(stream.request_headers(true), Progress::Respond, "ended");
}

// --- failure ------------------------------------------------------------------------------------------------------------

/// Traps, recurses, loops or grows without end if the request has the header `x-do` with this letter.
fn hostile() -> String {
    let body = r#"
    (data (i32.const 100) "x-do")
    (func $recurse (result i32) (i32.add (call $recurse) (i32.const 1)))
    (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
        (local $what i32)
        (if (call $proxy_get_header_map_value (i32.const 0) (i32.const 100) (i32.const 4) (i32.const 8) (i32.const 12))
            (then (return (i32.const 0))))
        (local.set $what (i32.load8_u (i32.load (i32.const 8))))
        (if (i32.eq (local.get $what) (i32.const 116)) (then unreachable))
        (if (i32.eq (local.get $what) (i32.const 114)) (then (drop (call $recurse))))
        (if (i32.eq (local.get $what) (i32.const 108)) (then (loop $l (br $l))))
        (if (i32.eq (local.get $what) (i32.const 119)) (then (drop (i32.load (i32.const -8)))))
        (if (i32.eq (local.get $what) (i32.const 100)) (then (drop (i32.div_u (i32.const 1) (i32.const 0)))))
        (if (i32.eq (local.get $what) (i32.const 103)) (then
            (loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) unreachable))
        (i32.const 0))"#;
    guest(&import("proxy_get_header_map_value", 5), body)
}

/// Ticks the engine for as long as `run` takes.
fn with_ticks<R>(run: impl FnOnce() -> R) -> R {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                runtime().tick();
                std::thread::yield_now();
            }
        });
        let result = run();
        done.store(true, Ordering::Relaxed);
        result
    })
}

#[test]
fn a_vm_that_breaks_costs_one_request() {
    for (what, kind) in [
        ("t", TrapKind::Unreachable),
        ("r", TrapKind::StackOverflow),
        ("l", TrapKind::OutOfTime),
        ("w", TrapKind::OutOfBounds),
        ("d", TrapKind::Other),
        ("g", TrapKind::Unreachable),
    ] {
        for policy in [FailurePolicy::Closed, FailurePolicy::Open] {
            let embedder = Rc::new(Memory::default());
            // Only the one that loops uses up its time, however often the clock ticks.
            embedder.cpu_step_ns.set(if kind == TrapKind::OutOfTime {
                6_000_000
            } else {
                0
            });
            let plugin = start_with(
                PluginSpec {
                    failure_policy: policy,
                    ..spec("p")
                },
                &hostile(),
                &embedder,
            )
            .unwrap();
            for round in 1..3u64 {
                let mut broken = stream(&[&plugin], &[("x-do", what)]);
                assert_eq!(
                    with_ticks(|| broken.request_headers(true)),
                    Progress::Respond,
                    "{what} {policy:?}"
                );
                assert_eq!(header(&broken, ":status").as_deref(), Some("503"));
                assert_eq!(
                    header(&broken, "content-type").as_deref(),
                    Some("application/problem+json")
                );
                assert_eq!(
                    header(&broken, "x-policy-decision-id").as_deref(),
                    Some("0123456789abcdef")
                );
                let body = broken.take_local_body();
                assert!(
                    body.ends_with(br#""status":503,"decision_id":"0123456789abcdef"}"#),
                    "{body:?}"
                );
                assert_eq!(broken.response_headers(false), Progress::Continue);
                assert_eq!(broken.response_body(body.clone(), true), Progress::Continue);
                assert_eq!(broken.take_response_body(), body);
                broken.finish();
                assert_eq!(
                    stream(&[&plugin], &[]).request_headers(true),
                    Progress::Continue,
                    "the next one is served"
                );
                assert_eq!(plugin.stats().restarts(), round);
                assert_eq!(
                    plugin.stats().traps().find(|(k, _)| *k == kind),
                    Some((kind, round)),
                    "{what}: {:?}",
                    embedder.log.borrow()
                );
                assert_eq!(plugin.stats().refused(), round);
            }
        }
    }
}

#[test]
fn a_throttled_guest_is_not_a_looping_one() {
    let embedder = Rc::new(Memory::default());
    let body = r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
        (local $n i32)
        (loop $l (br_if $l (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 50000000))))
        (i32.const 0))"#;
    let plugin = start(&guest("", body), &embedder);
    // Its CPU time stands still while many ticks pass.
    assert_eq!(
        with_ticks(|| stream(&[&plugin], &[]).request_headers(true)),
        Progress::Continue
    );
    assert_eq!(plugin.stats().restarts(), 0);
}

#[test]
fn the_memory_bound_is_obeyed_and_violated() {
    let grow = |pages| {
        let body = format!(
            r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (if (i32.eq (memory.grow (i32.const {pages})) (i32.const -1)) (then unreachable))
            (i32.const 0))"#
        );
        guest("", &body)
    };
    for (pages, expected) in [(14, Progress::Continue), (15, Progress::Respond)] {
        let limits = Limits {
            memory_bytes: 16 << 16,
            ..Limits::default()
        };
        let plugin = start_with(
            PluginSpec {
                limits,
                ..spec("p")
            },
            &grow(pages),
            &Rc::default(),
        )
        .unwrap();
        assert_eq!(
            stream(&[&plugin], &[]).request_headers(true),
            expected,
            "2 + {pages} pages of 16"
        );
        assert_eq!(
            plugin.stats().memory_denials(),
            u64::from(expected == Progress::Respond)
        );
    }
    let limits = Limits {
        memory_bytes: 1 << 16,
        ..Limits::default()
    };
    let error = start_with(
        PluginSpec {
            limits,
            ..spec("p")
        },
        &grow(0),
        &Rc::default(),
    )
    .err()
    .unwrap();
    assert!(
        matches!(error.failure, StartFailure::Instantiate(_)),
        "{error}"
    );
}

#[test]
fn a_start_that_fails_backs_off_and_says_why() {
    // Refuses to be configured from the second VM on: shared data keeps count.
    let body = r#"
        (data (i32.const 100) "count") (data (i32.const 110) "bad key: x")
        (func (export "proxy_on_configure") (param i32 i32) (result i32)
            (if (i32.eqz (call $proxy_get_shared_data (i32.const 100) (i32.const 5) (i32.const 8) (i32.const 12) (i32.const 16)))
                (then (drop (call $log (i32.const 4) (i32.const 110) (i32.const 10))) (return (i32.const 0))))
            (drop (call $proxy_set_shared_data (i32.const 100) (i32.const 5) (i32.const 100) (i32.const 5) (i32.const 0)))
            (i32.const 1))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) unreachable)"#;
    let wat = guest(
        &(import("proxy_get_shared_data", 5) + &import("proxy_set_shared_data", 5)),
        body,
    );
    for (policy, expected) in [
        (FailurePolicy::Closed, Progress::Respond),
        (FailurePolicy::Open, Progress::Continue),
    ] {
        let embedder = Rc::new(Memory::default());
        let shared = Arc::new(Shared::default());
        let module = load(&wat).unwrap();
        let begin = || {
            let spec = Arc::new(PluginSpec {
                failure_policy: policy,
                ..spec("p")
            });
            Plugin::start(
                PluginId(1),
                Arc::clone(&module),
                spec,
                Arc::clone(&shared),
                Rc::<Memory>::clone(&embedder),
            )
        };
        let plugin = begin().unwrap();
        let error = begin().err().unwrap();
        assert_eq!(error.failure, StartFailure::ConfigurationRefused);
        assert_eq!(error.log, ["bad key: x"]);
        assert_eq!(
            error.to_string(),
            "plugin p: proxy_on_configure refused the configuration: bad key: x"
        );

        assert_eq!(
            stream(&[&plugin], &[]).request_headers(true),
            Progress::Respond,
            "the request that broke it, even when open"
        );
        assert_eq!(
            stream(&[&plugin], &[]).request_headers(true),
            expected,
            "{policy:?}"
        );
        assert_eq!(plugin.stats().start_failures(), 1);
        assert!(!plugin.is_ready());
        stream(&[&plugin], &[]).request_headers(true);
        assert_eq!(plugin.stats().start_failures(), 1, "it waits");
        embedder.now_ns.set(2_000_000_000);
        stream(&[&plugin], &[]).request_headers(true);
        assert_eq!(plugin.stats().start_failures(), 2, "it tries again");
    }
}

#[test]
fn streams_of_a_broken_vm_are_woken_and_refused() {
    let body = r#"
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (i32.const 1))
        (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32) (i32.const 0))
        (func (export "proxy_on_tick") (param i32) unreachable)"#;
    let embedder = Rc::new(Memory::default());
    let plugin = start(&guest("", body), &embedder);
    let mut paused = stream(&[&plugin], &[]);
    assert_eq!(paused.request_headers(true), Progress::Pause);
    plugin.on_tick();
    assert_eq!(embedder.woken.take(), [StreamToken(9)]);
    assert_eq!(embedder.cancelled.get(), 1);
    assert_eq!(paused.resume(Direction::Request), Progress::Respond);
    assert_eq!(header(&paused, ":status").as_deref(), Some("503"));
    plugin.on_tick();
    assert_eq!(
        plugin.stats().traps().map(|(_, count)| count).sum::<u64>(),
        1,
        "a broken vm is never entered again"
    );
}

// --- phases -------------------------------------------------------------------------------------------------------------

/// Logs its letter with each phase, and answers `code` from `callback`.
fn answering(letter: char, callback: &str, code: u16) -> String {
    let phase = |name: &str, mark: char, params: &str| {
        let act = if name == callback {
            format!(
                "(drop (call $proxy_send_local_response (i32.const {code}) (i32.const 0) (i32.const 0) (i32.const 100) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const -1)))"
            )
        } else {
            String::new()
        };
        let result = if name.ends_with("log") || name.ends_with("tick") {
            ""
        } else {
            "(result i32)"
        };
        let value = if result.is_empty() {
            ""
        } else {
            "(i32.const 0)"
        };
        format!(
            r#"(func (export "{name}") (param {params}) {result}
            (i32.store8 (i32.const 101) (i32.const {})) (call $say (i32.const 100) (i32.const 2)) {act} {value})"#,
            u32::from(mark)
        )
    };
    let phases = [
        phase("proxy_on_request_headers", 'q', "i32 i32 i32"),
        phase("proxy_on_request_body", 'b', "i32 i32 i32"),
        phase("proxy_on_response_headers", 's', "i32 i32 i32"),
        phase("proxy_on_response_body", 'd', "i32 i32 i32"),
        phase("proxy_on_log", 'l', "i32"),
        phase("proxy_on_tick", 't', "i32"),
    ];
    guest(
        &import("proxy_send_local_response", 8),
        &format!(r#"(data (i32.const 100) "{letter}") {}"#, phases.concat()),
    )
}

/// Three filters, of which B answers from a phase: who is called, and what comes of it.
#[test]
fn a_local_response_goes_back_the_way_the_request_came() {
    #[track_caller]
    fn check(callback: &str, expected: &[Progress], called: &str) {
        let embedder = Rc::new(Memory::default());
        let plugins = [('A', ""), ('B', callback), ('C', "")]
            .map(|(letter, callback)| start(&answering(letter, callback, 418), &embedder));
        let mut stream = stream(&plugins.each_ref(), &[]);
        let mut progress = vec![stream.request_headers(false)];
        if progress == [Progress::Continue] {
            progress.push(stream.request_body(Bytes::from("body"), true));
        }
        if *progress.last().unwrap() == Progress::Continue {
            answer(&mut stream, &[(":status", "200")]);
            progress.push(stream.response_headers(false));
            if *progress.last().unwrap() == Progress::Continue {
                progress.push(stream.response_body(Bytes::from("answer"), true));
            }
        }
        if *progress.last().unwrap() == Progress::Respond {
            assert_eq!(header(&stream, ":status").as_deref(), Some("418"));
            let body = stream.take_local_body();
            assert_eq!(body, "B");
            progress.push(stream.response_headers(false));
            progress.push(stream.response_body(body, true));
        }
        stream.finish();
        assert_eq!(progress, expected, "{callback}");
        assert_eq!(embedder.log.take().join(" "), called, "{callback}");
    }
    use Progress::{Continue, Reset, Respond};
    check(
        "",
        &[Continue; 4],
        "Aq Bq Cq Ab Bb Cb Cs Bs As Cd Bd Ad Al Bl Cl",
    );
    check(
        "proxy_on_request_headers",
        &[Respond, Continue, Continue],
        "Aq Bq Bs As Bd Ad Al Bl Cl",
    );
    check(
        "proxy_on_request_body",
        &[Continue, Respond, Continue, Continue],
        "Aq Bq Cq Ab Bb Cs Bs As Cd Bd Ad Al Bl Cl",
    );
    check(
        "proxy_on_response_headers",
        &[Continue, Continue, Respond, Continue, Continue],
        "Aq Bq Cq Ab Bb Cb Cs Bs As Ad Al Bl Cl",
    );
    check(
        "proxy_on_response_body",
        &[Continue, Continue, Continue, Reset],
        "Aq Bq Cq Ab Bb Cb Cs Bs As Cd Bd Al Bl Cl",
    );
    check(
        "proxy_on_log",
        &[Continue; 4],
        "Aq Bq Cq Ab Bb Cb Cs Bs As Cd Bd Ad Al Bl Cl",
    );
}

#[test]
fn an_answer_where_there_is_no_stream_does_nothing() {
    let embedder = Rc::new(Memory::default());
    let plugin = start(&answering('A', "proxy_on_tick", 418), &embedder);
    plugin.on_tick();
    assert_eq!(embedder.log.take(), ["At"]);
    assert_eq!(
        stream(&[&plugin], &[]).request_headers(true),
        Progress::Continue
    );
}

#[test]
fn the_first_answer_wins_and_codes_are_checked() {
    let send = |code: u32| {
        format!(
            "(call $told (call $proxy_send_local_response (i32.const {code}) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1)))"
        )
    };
    let body = format!(
        r#"(func $told (param i32) (i32.store8 (i32.const 0) (i32.add (i32.const 48) (local.get 0))) (call $say (i32.const 0) (i32.const 1)))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) {} (i32.const 0))"#,
        [199, 600, 65_736, 403, 500].map(send).concat()
    );
    let embedder = Rc::new(Memory::default());
    let plugin = start(
        &guest(&import("proxy_send_local_response", 8), &body),
        &embedder,
    );
    let mut stream = stream(&[&plugin], &[]);
    assert_eq!(stream.request_headers(true), Progress::Respond);
    assert_eq!(embedder.log.take(), ["2", "2", "2", "0", "0"]);
    assert_eq!(header(&stream, ":status").as_deref(), Some("403"));
    assert_eq!(header(&stream, "content-length").as_deref(), Some("0"));
    assert_eq!(
        stream.request_body(Bytes::new(), true),
        Progress::Respond,
        "it is final"
    );
}

#[test]
fn grpc_requests_get_trailers_only() {
    let plugin = start(
        &answering('A', "proxy_on_request_headers", 403),
        &Rc::default(),
    );
    let mut stream = stream(&[&plugin], &[("content-type", "application/grpc+proto")]);
    assert_eq!(stream.request_headers(false), Progress::Respond);
    let expected = [
        (":status", "200"),
        ("content-type", "application/grpc"),
        ("grpc-status", "7"),
        ("grpc-message", "A"),
    ];
    for (name, value) in expected {
        assert_eq!(header(&stream, name).as_deref(), Some(value), "{name}");
    }
    assert!(stream.take_local_body().is_empty());
}

/// Pauses each phase; a tick lets the request of context 2 go on, its callout's answer as well.
const PAUSING: &str = r#"
    (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (i32.const 1))
    (func (export "proxy_on_request_body") (param i32 i32 i32) (result i32)
        (i32.store8 (i32.const 0) (i32.add (i32.const 48) (local.get 1)))
        (i32.store8 (i32.const 1) (i32.add (i32.const 48) (local.get 2)))
        (call $say (i32.const 0) (i32.const 2))
        (i32.eqz (local.get 2)))
    (func (export "proxy_on_request_trailers") (param i32 i32) (result i32) (i32.const 1))
    (func (export "proxy_on_tick") (param i32)
        (drop (call $proxy_set_effective_context (i32.const 2)))
        (drop (call $proxy_continue_stream (i32.const 0))))"#;

#[test]
fn pauses_hold_and_let_go() {
    let embedder = Rc::new(Memory::default());
    let imports = import("proxy_set_effective_context", 1) + &import("proxy_continue_stream", 1);
    let (pausing, plain) = (
        start(&guest(&imports, PAUSING), &embedder),
        start(&answering('A', "", 0), &embedder),
    );
    let mut stream = stream(&[&pausing, &plain], &[]);
    assert_eq!(stream.request_headers(false), Progress::Pause);
    assert_eq!(
        stream.resume(Direction::Request),
        Progress::Pause,
        "nobody asked"
    );
    assert_eq!(embedder.log.take(), [""; 0]);
    pausing.on_tick();
    assert_eq!(embedder.woken.take(), [StreamToken(9)]);
    assert_eq!(stream.resume(Direction::Request), Progress::Continue);
    assert_eq!(embedder.log.take(), ["Aq"]);

    assert_eq!(
        stream.request_body(Bytes::from("ab"), false),
        Progress::Pause
    );
    assert_eq!(
        stream.request_body(Bytes::from("cd"), false),
        Progress::Pause
    );
    assert_eq!(embedder.log.take(), ["20", "40"], "the total is told");
    assert_eq!(stream.take_request_body(), "");
    pausing.on_tick();
    assert_eq!(stream.resume(Direction::Request), Progress::Continue);
    assert_eq!(stream.take_request_body(), "abcd");
    assert_eq!(embedder.log.take(), ["Ab"]);
    assert_eq!(
        stream.request_body(Bytes::from("e"), false),
        Progress::Pause
    );
    stream.exchange_mut().request_trailers = Some(Box::new(list(&[("t", "1")])));
    assert_eq!(stream.request_trailers(), Progress::Pause);
    pausing.on_tick();
    assert_eq!(stream.resume(Direction::Request), Progress::Continue);
    assert_eq!(
        stream.take_request_body(),
        "e",
        "trailers take the body along"
    );
}

#[test]
fn a_pausing_filter_holds_no_more_than_its_bound() {
    let imports = import("proxy_set_effective_context", 1) + &import("proxy_continue_stream", 1);
    let limits = Limits {
        body_bytes: 8,
        ..Limits::default()
    };
    let body = PAUSING.replace(
        "(result i32) (i32.const 1))\n    (func (export \"proxy_on_request_body",
        "(result i32) (i32.const 0))\n    (func (export \"proxy_on_request_body",
    );
    let plugin = start_with(
        PluginSpec {
            limits,
            ..spec("p")
        },
        &guest(&imports, &body),
        &Rc::default(),
    )
    .unwrap();
    let mut stream = stream(&[&plugin], &[]);
    assert_eq!(stream.request_headers(false), Progress::Continue);
    assert_eq!(
        stream.request_body(Bytes::from("12345678"), false),
        Progress::Pause
    );
    assert_eq!(
        stream.request_body(Bytes::from("9"), false),
        Progress::Respond
    );
    assert_eq!(header(&stream, ":status").as_deref(), Some("413"));
    assert_eq!(stream.take_request_body(), "");
}

#[test]
fn a_callout_s_answer_lets_a_request_go_on() {
    let pairs = |fields: &[(&str, &str)]| {
        let mut bytes = u32::try_from(fields.len()).unwrap().to_le_bytes().to_vec();
        for (name, value) in fields {
            for part in [name, value] {
                bytes.extend(u32::try_from(part.len()).unwrap().to_le_bytes());
            }
        }
        for (name, value) in fields {
            for part in [name, value] {
                bytes.extend(part.bytes().chain([0]));
            }
        }
        bytes
    };
    let headers = pairs(&[(":method", "GET"), (":path", "/k"), (":authority", "c")]);
    let escaped: String = headers.iter().map(|byte| format!("\\{byte:02x}")).collect();
    let body = format!(
        r#"
        (data (i32.const 100) "c") (data (i32.const 110) "{escaped}") (data (i32.const 400) ":status")
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (i32.store8 (i32.const 0) (i32.add (i32.const 48) (call $proxy_http_call (i32.const 100) (i32.const 1) (i32.const 110) (i32.const {len})
                (i32.const 100) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 500) (i32.const 20))))
            (call $say (i32.const 0) (i32.const 1))
            (i32.const 1))
        (func (export "proxy_on_http_call_response") (param i32 i32 i32 i32 i32)
            (if (local.get 2) (then
                (drop (call $proxy_get_header_map_value (i32.const 6) (i32.const 400) (i32.const 7) (i32.const 8) (i32.const 12)))
                (call $say (i32.load (i32.const 8)) (i32.load (i32.const 12)))
                (drop (call $proxy_get_buffer_bytes (i32.const 4) (i32.const 0) (i32.const 99) (i32.const 8) (i32.const 12)))
                (call $say (i32.load (i32.const 8)) (i32.load (i32.const 12)))))
            (drop (call $proxy_get_status (i32.const 24) (i32.const 8) (i32.const 12)))
            (call $say (i32.load (i32.const 8)) (i32.load (i32.const 12)))
            (drop (call $proxy_set_effective_context (i32.const 2)))
            (drop (call $proxy_continue_stream (i32.const 0))))"#,
        len = headers.len()
    );
    let imports = [
        ("proxy_http_call", 10),
        ("proxy_get_header_map_value", 5),
        ("proxy_get_buffer_bytes", 5),
        ("proxy_get_status", 3),
        ("proxy_set_effective_context", 1),
        ("proxy_continue_stream", 1),
    ];
    let wat = guest(
        &imports.map(|(name, params)| import(name, params)).concat(),
        &body,
    );
    let ok = HttpCallResponse::Answer {
        headers: list(&[(":status", "200")]),
        body: Bytes::from("keys"),
        trailers: FieldList::new(),
    };
    for (response, expected) in [
        (ok, &["200", "keys", ""][..]),
        (
            HttpCallResponse::Timeout,
            &["504", "upstream request timeout", ""],
        ),
        (HttpCallResponse::Reset, &["reset"]),
    ] {
        let embedder = Rc::new(Memory::default());
        let plugin = start(&wat, &embedder);
        let mut stream = stream(&[&plugin], &[]);
        assert_eq!(stream.request_headers(true), Progress::Pause);
        let (id, call) = embedder.calls.take().pop().unwrap();
        assert_eq!(
            (id, call.cluster.as_str(), call.timeout),
            (CalloutId(4), "c", Duration::from_millis(500))
        );
        assert_eq!(call.headers.get(b":path"), Some(&b"/k"[..]));
        assert_eq!(embedder.log.take(), ["0"]);
        plugin.on_http_call_response(CalloutId(8), HttpCallResponse::Reset);
        plugin.on_http_call_response(id, response);
        plugin.on_http_call_response(id, HttpCallResponse::Reset);
        assert_eq!(embedder.log.take(), expected);
        assert_eq!(embedder.woken.take(), [StreamToken(9)]);
        assert_eq!(stream.resume(Direction::Request), Progress::Continue);
    }
    // A cluster that the operator did not allow.
    let embedder = Rc::new(Memory::default());
    let plugin = start_with(
        PluginSpec {
            clusters: vec![],
            ..spec("p")
        },
        &wat,
        &embedder,
    )
    .unwrap();
    stream(&[&plugin], &[]).request_headers(true);
    assert_eq!(embedder.log.take(), ["2"]);
}

// --- hostcalls ----------------------------------------------------------------------------------------------------------

/// What a guest sees when it makes one hostcall in a request's headers. Arguments: `W` is a wild pointer or length, `L` the same in 64 bits.
fn status_of(module: &str, name: &str, arguments: &str) -> String {
    let types: String = arguments
        .split_whitespace()
        .map(|a| if a == "L" { "i64 " } else { "i32 " })
        .collect();
    let values: String = arguments
        .split_whitespace()
        .map(|argument| match argument {
            "W" => "(i32.const -1)".to_owned(),
            "L" => "(i64.const -1)".to_owned(),
            number => format!("(i32.const {number})"),
        })
        .collect();
    let (import, target) = match name {
        "proxy_log" => (String::new(), "$log"),
        _ => (
            format!(r#"(import "{module}" "{name}" (func $f (param {types}) (result i32)))"#),
            "$f",
        ),
    };
    let body = format!(
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (local $status i32)
            (local.set $status (call {target} {values}))
            (i32.store8 (i32.const 0) (i32.add (i32.const 48) (i32.div_u (local.get $status) (i32.const 10))))
            (i32.store8 (i32.const 1) (i32.add (i32.const 48) (i32.rem_u (local.get $status) (i32.const 10))))
            (call $say (i32.const 0) (i32.const 2))
            (i32.const 0))"#
    );
    let embedder = Rc::new(Memory::default());
    let plugin = start(&guest(&import, &body), &embedder);
    assert_eq!(
        stream(&[&plugin], &[]).request_headers(true),
        Progress::Continue,
        "{name}"
    );
    assert_eq!(plugin.stats().restarts(), 0);
    let mut log = embedder.log.take();
    assert_eq!(log.len(), 1, "{name}: {log:?}");
    log.remove(0)
}

#[test]
fn wild_pointers_are_refused() {
    for (name, arguments, expected) in [
        ("proxy_log", "2 W W", 6),
        ("proxy_log", "W 0 0", 2),
        ("proxy_get_log_level", "W", 6),
        ("proxy_get_current_time_nanoseconds", "W", 6),
        ("proxy_set_tick_period_milliseconds", "W", 0),
        ("proxy_done", "", 1),
        ("proxy_set_effective_context", "W", 2),
        ("proxy_get_status", "W W W", 6),
        ("proxy_call_foreign_function", "W W W W W W", 6),
        ("proxy_call_foreign_function", "0 1 0 1 0 0", 1),
        ("proxy_get_buffer_bytes", "0 W W W W", 6),
        ("proxy_get_buffer_bytes", "6 0 W W W", 6),
        ("proxy_get_buffer_bytes", "W W W W W", 2),
        ("proxy_get_buffer_bytes", "4 0 9 8 12", 1),
        ("proxy_get_buffer_bytes", "7 0 9 8 12", 1),
        ("proxy_get_buffer_bytes", "0 0 9 8 12", 0),
        ("proxy_get_buffer_status", "0 W W", 6),
        ("proxy_set_buffer_bytes", "0 W W W W", 6),
        ("proxy_set_buffer_bytes", "0 0 0 0 1", 2),
        ("proxy_set_buffer_bytes", "6 0 0 0 1", 2),
        ("proxy_get_header_map_size", "0 W", 6),
        ("proxy_get_header_map_size", "2 8", 2),
        ("proxy_get_header_map_pairs", "0 W W", 6),
        ("proxy_get_header_map_pairs", "2 8 12", 0),
        ("proxy_get_header_map_pairs", "W 8 12", 2),
        ("proxy_set_header_map_pairs", "0 W W", 6),
        ("proxy_set_header_map_pairs", "0 0 3", 2),
        ("proxy_get_header_map_value", "0 W W W W", 6),
        ("proxy_get_header_map_value", "0 0 1 W W", 1),
        ("proxy_get_header_map_value", "2 0 1 8 12", 2),
        ("proxy_get_header_map_value", "0 0 9999 8 12", 1),
        ("proxy_add_header_map_value", "0 W W W W", 6),
        ("proxy_add_header_map_value", "0 0 1 0 1", 2),
        ("proxy_add_header_map_value", "2 100 1 0 0", 2),
        ("proxy_replace_header_map_value", "0 W W W W", 6),
        ("proxy_replace_header_map_value", "0 0 0 0 0", 2),
        ("proxy_remove_header_map_value", "0 W W", 6),
        ("proxy_send_local_response", "200 W W W W W W W", 6),
        ("proxy_send_local_response", "W 0 0 0 0 0 0 0", 2),
        ("proxy_continue_stream", "W", 2),
        ("proxy_continue_stream", "3", 12),
        ("proxy_close_stream", "W", 2),
        ("proxy_get_property", "W W W W", 6),
        ("proxy_get_property", "0 0 8 12", 3),
        ("proxy_set_property", "W W W W", 6),
        ("proxy_http_call", "W W W W W W W W W W", 6),
        ("proxy_http_call", "0 1 0 0 0 0 0 0 9 8", 2),
        ("proxy_grpc_call", "W W W W W W W W W W W W", 6),
        ("proxy_grpc_stream", "W W W W W W W W W", 6),
        ("proxy_grpc_send", "W W W W", 6),
        ("proxy_grpc_send", "6 0 0 0", 1),
        ("proxy_grpc_cancel", "W", 2),
        ("proxy_grpc_cancel", "5", 1),
        ("proxy_grpc_close", "W", 2),
        ("proxy_grpc_close", "6", 1),
        ("proxy_set_shared_data", "W W W W W", 6),
        ("proxy_get_shared_data", "W W W W W", 6),
        ("proxy_get_shared_data", "0 1 8 12 16", 1),
        ("proxy_register_shared_queue", "W W W", 6),
        ("proxy_resolve_shared_queue", "W W W W W", 6),
        ("proxy_enqueue_shared_queue", "W W W", 6),
        ("proxy_enqueue_shared_queue", "W 0 1", 1),
        ("proxy_dequeue_shared_queue", "W W W", 6),
        ("proxy_dequeue_shared_queue", "W 8 12", 1),
        ("proxy_define_metric", "0 W W W", 6),
        ("proxy_define_metric", "W 0 1 8", 2),
        ("proxy_increment_metric", "W L", 2),
        ("proxy_record_metric", "0 L", 1),
        ("proxy_get_metric", "W W", 2),
        ("pthread_equal", "W W", 1),
    ] {
        assert_eq!(
            status_of("env", name, arguments),
            format!("{expected:02}"),
            "{name}({arguments})"
        );
    }
}

#[test]
fn wasi_answers_as_envoy_does() {
    for (name, arguments, expected) in [
        ("args_get", "W W", 0),
        ("args_sizes_get", "W W", 21),
        ("environ_get", "W W", 0),
        ("environ_sizes_get", "8 W", 21),
        ("clock_time_get", "0 L W", 21),
        ("clock_time_get", "1 L 8", 0),
        ("clock_time_get", "2 L 8", 58),
        ("clock_res_get", "0 W", 21),
        ("random_get", "W 8", 21),
        ("random_get", "0 W", 28),
        ("random_get", "0 65536", 0),
        ("sched_yield", "", 0),
        ("poll_oneoff", "W W W W", 21),
        ("poll_oneoff", "0 0 1 8", 0),
        ("fd_write", "1 W 1 W", 21),
        ("fd_write", "1 W W 8", 28),
        ("fd_write", "3 W W W", 8),
        ("fd_pwrite", "0 W W L W", 8),
        ("fd_read", "W W W W", 52),
        ("fd_pread", "W W W L W", 52),
        ("fd_seek", "W L W W", 0),
        ("fd_tell", "1 W", 21),
        ("fd_tell", "9 W", 8),
        ("fd_close", "W", 0),
        ("fd_sync", "1", 0),
        ("fd_datasync", "0", 8),
        ("fd_advise", "W L L W", 0),
        ("fd_allocate", "W L L", 8),
        ("fd_fdstat_get", "1 W", 21),
        ("fd_fdstat_get", "0 8", 8),
        ("fd_fdstat_set_flags", "W W", 52),
        ("fd_fdstat_set_rights", "2 L L", 0),
        ("fd_filestat_get", "W W", 8),
        ("fd_filestat_set_size", "1 L", 0),
        ("fd_filestat_set_times", "W L L W", 8),
        ("fd_prestat_get", "3 W", 8),
        ("fd_prestat_dir_name", "W W W", 52),
        ("fd_readdir", "W W W L W", 21),
        ("fd_readdir", "W W W L 8", 20),
        ("fd_renumber", "1 2", 58),
        ("path_open", "W W W W W L L W W", 44),
        ("path_create_directory", "W W W", 58),
        ("path_filestat_get", "W W W W W", 58),
        ("path_filestat_set_times", "W W W W L L W", 58),
        ("path_link", "W W W W W W W", 58),
        ("path_readlink", "W W W W W W", 21),
        ("path_remove_directory", "W W W", 58),
        ("path_rename", "W W W W W W", 58),
        ("path_symlink", "W W W W W", 58),
        ("path_unlink_file", "W W W", 58),
        ("sock_accept", "W W W", 21),
        ("sock_recv", "W W W W W W", 21),
        ("sock_send", "W W W W 8", 58),
        ("sock_shutdown", "W W", 58),
    ] {
        for module in ["wasi_snapshot_preview1", "wasi_unstable"] {
            assert_eq!(
                status_of(module, name, arguments),
                format!("{expected:02}"),
                "{module}.{name}({arguments})"
            );
        }
    }
}

/// An allocator that makes the hostcall `name` with zeros: what becomes of the VM when the host wants memory.
#[test]
fn the_allocator_may_log_and_look_at_the_clock_but_nothing_else() {
    for (module, name, params, allowed) in [
        ("wasi_snapshot_preview1", "poll_oneoff", 4, true),
        ("wasi_unstable", "fd_write", 4, true),
        ("env", "proxy_get_current_time_nanoseconds", 1, false),
        ("env", "proxy_get_log_level", 1, false),
        ("env", "pthread_equal", 2, false),
        ("wasi_snapshot_preview1", "sched_yield", 0, false),
        ("wasi_snapshot_preview1", "clock_res_get", 2, false),
        ("env", "proxy_get_header_map_value", 5, false),
        ("env", "proxy_get_property", 4, false),
        ("env", "proxy_set_effective_context", 1, false),
        ("env", "proxy_send_local_response", 8, false),
        ("env", "proxy_remove_header_map_value", 3, false),
        ("wasi_snapshot_preview1", "random_get", 2, false),
    ] {
        let types = "i32 ".repeat(params);
        let zeros = "(i32.const 8) ".repeat(params);
        let wat = format!(
            r#"(module
            (import "{module}" "{name}" (func $f (param {types}) (result i32)))
            (import "env" "proxy_get_header_map_pairs" (func $pairs (param i32 i32 i32) (result i32)))
            (memory (export "memory") 2)
            (func (export "proxy_abi_version_0_2_1"))
            (func (export "malloc") (param i32) (result i32) (drop (call $f {zeros})) (i32.const 1024))
            (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
                (drop (call $pairs (i32.const 0) (i32.const 0) (i32.const 4))) (i32.const 0)))"#
        );
        let plugin = start(&wat, &Rc::default());
        let expected = if allowed {
            Progress::Continue
        } else {
            Progress::Respond
        };
        assert_eq!(
            stream(&[&plugin], &[]).request_headers(true),
            expected,
            "{name}"
        );
        let restricted = plugin
            .stats()
            .traps()
            .find(|(kind, _)| *kind == TrapKind::Restricted);
        assert_eq!(
            restricted,
            Some((TrapKind::Restricted, u64::from(!allowed))),
            "{name}"
        );
    }
}

#[test]
fn before_the_start_a_guest_gets_what_its_language_needs() {
    const WASI: &str = "wasi_snapshot_preview1";
    for (module, name, params, allowed) in [
        ("env", "proxy_log", 3, true),
        (WASI, "clock_time_get", 3, true),
        (WASI, "random_get", 2, true),
        (WASI, "fd_prestat_get", 2, true),
        (WASI, "sock_shutdown", 2, true),
        ("wasi_unstable", "environ_get", 2, true),
        ("env", "proxy_get_current_time_nanoseconds", 1, false),
        ("env", "proxy_set_tick_period_milliseconds", 1, false),
        ("env", "proxy_get_log_level", 1, false),
        ("env", "proxy_define_metric", 4, false),
        ("env", "pthread_equal", 2, false),
        (WASI, "sched_yield", 0, false),
        (WASI, "fd_close", 1, false),
        (WASI, "fd_read", 4, false),
        (WASI, "proc_exit", 1, false),
        ("wasi_unstable", "path_open", 9, false),
    ] {
        for start_export in ["_initialize", "_start"] {
            let types: String = match name {
                "clock_time_get" => "i32 i64 i32 ".into(),
                "path_open" => "i32 i32 i32 i32 i32 i64 i64 i32 i32".into(),
                _ => "i32 ".repeat(params),
            };
            let values: String = types
                .split_whitespace()
                .map(|ty| format!("({ty}.const 1) "))
                .collect();
            let (result, dropped) = match name {
                "proc_exit" => ("", ""),
                _ => ("(result i32)", "drop"),
            };
            let wat = format!(
                r#"(module (import "{module}" "{name}" (func $f (param {types}) {result}))
                (memory (export "memory") 1)
                (func (export "proxy_abi_version_0_2_1"))
                (func (export "malloc") (param i32) (result i32) (i32.const 1024))
                (func (export "{start_export}") (call $f {values}) {dropped}))"#
            );
            let result = start_with(spec("p"), &wat, &Rc::default());
            let failure = result.err().map(|error| error.failure);
            let expected = (!allowed).then_some(StartFailure::Trap {
                callback: start_export,
                kind: TrapKind::Restricted,
            });
            assert_eq!(failure, expected, "{name} in {start_export}");
        }
    }
}

/// As in Envoy, where the guest goes on; what a language puts behind the call ends most.
#[test]
fn proc_exit_returns_once_requests_are_served() {
    let body = r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
        (call $exit (i32.const 3)) (i32.const 0))"#;
    let import = r#"(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))"#;
    let embedder = Rc::new(Memory::default());
    let plugin = start(&guest(import, body), &embedder);
    assert_eq!(
        stream(&[&plugin], &[]).request_headers(true),
        Progress::Continue
    );
    assert_eq!(embedder.log.take(), ["proc_exit(3)"]);
}

/// Reads all pairs and writes them back, then adds, replaces and removes.
#[test]
fn header_maps_are_changed_in_place() {
    let body = r#"
        (data (i32.const 100) "X-Addadd") (data (i32.const 120) "x-old") (data (i32.const 130) "x-gone") (data (i32.const 140) "x-bad\n")
        (func $told (param i32) (i32.store8 (i32.const 0) (i32.add (i32.const 48) (local.get 0))) (call $say (i32.const 0) (i32.const 1)))
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (call $told (call $proxy_get_header_map_pairs (i32.const 0) (i32.const 8) (i32.const 12)))
            (call $told (call $proxy_set_header_map_pairs (i32.const 0) (i32.load (i32.const 8)) (i32.load (i32.const 12))))
            (call $told (call $proxy_add_header_map_value (i32.const 0) (i32.const 100) (i32.const 5) (i32.const 105) (i32.const 3)))
            (call $told (call $proxy_replace_header_map_value (i32.const 0) (i32.const 120) (i32.const 5) (i32.const 105) (i32.const 3)))
            (call $told (call $proxy_remove_header_map_value (i32.const 0) (i32.const 130) (i32.const 6)))
            (call $told (call $proxy_add_header_map_value (i32.const 0) (i32.const 140) (i32.const 6) (i32.const 105) (i32.const 3)))
            (call $told (call $proxy_add_header_map_value (i32.const 0) (i32.const 100) (i32.const 5) (i32.const 140) (i32.const 6)))
            (i32.const 0))"#;
    let imports = [
        ("proxy_get_header_map_pairs", 3),
        ("proxy_set_header_map_pairs", 3),
        ("proxy_add_header_map_value", 5),
        ("proxy_replace_header_map_value", 5),
        ("proxy_remove_header_map_value", 3),
    ];
    let embedder = Rc::new(Memory::default());
    let plugin = start(
        &guest(
            &imports.map(|(name, params)| import(name, params)).concat(),
            body,
        ),
        &embedder,
    );
    let mut stream = stream(
        &[&plugin],
        &[("x-old", "1"), ("x-gone", "2"), ("x-old", "3")],
    );
    assert_eq!(stream.request_headers(true), Progress::Continue);
    assert_eq!(embedder.log.take().concat(), "0000022");
    let mut fields = Vec::new();
    stream
        .exchange()
        .request_headers
        .for_each(&mut |name, value| {
            fields.push(format!("{}={}", name.escape_ascii(), value.escape_ascii()))
        });
    assert_eq!(fields[4..], ["x-old=add", "x-add=add"]);
}

#[test]
fn properties_pass_from_filter_to_filter() {
    let set = r#"(data (i32.const 100) "jwt.sub") (data (i32.const 110) "alice")
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (call $proxy_set_property (i32.const 100) (i32.const 7) (i32.const 110) (i32.const 5)))"#;
    let get = r#"(data (i32.const 100) "jwt.sub")
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (if (i32.eqz (call $proxy_get_property (i32.const 100) (i32.const 7) (i32.const 8) (i32.const 12)))
                (then (call $say (i32.load (i32.const 8)) (i32.load (i32.const 12)))))
            (i32.const 0))"#;
    let embedder = Rc::new(Memory::default());
    let (set, get) = (
        start(&guest(&import("proxy_set_property", 4), set), &embedder),
        start(&guest(&import("proxy_get_property", 4), get), &embedder),
    );
    assert_eq!(
        stream(&[&set, &get], &[]).request_headers(true),
        Progress::Continue
    );
    assert_eq!(
        stream(&[&get], &[]).request_headers(true),
        Progress::Continue
    );
    assert_eq!(
        embedder.log.take(),
        ["alice"],
        "and no further than the exchange"
    );
}

#[test]
fn a_plugin_names_the_headers_it_owns() {
    let body = r#"(data (i32.const 100) "portcullis.owned_request_headers") (data (i32.const 140) "X-User\00bad name\00x-roles")
        (func (export "proxy_on_configure") (param i32 i32) (result i32)
            (i32.eqz (call $proxy_set_property (i32.const 100) (i32.const 32) (i32.const 140) (i32.const 23))))"#;
    let plugin = start(
        &guest(&import("proxy_set_property", 4), body),
        &Rc::default(),
    );
    assert_eq!(plugin.owned_request_headers(), ["x-user", "x-roles"]);
}

// --- modules ------------------------------------------------------------------------------------------------------------

#[test]
fn modules_that_cannot_be_served_are_refused_by_name() {
    let refused = |wat: &str| {
        load(wat)
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    };
    let module = |body: &str| {
        format!(
            r#"(module {body} (memory (export "memory") 1) (func (export "malloc") (param i32) (result i32) (i32.const 8)))"#
        )
    };
    assert!(refused(&module("")).starts_with("no known proxy-wasm abi version"));
    let marker = r#"(func (export "proxy_abi_version_0_2_0"))"#;
    let unknown = r#"(import "env" "proxy_get_secret" (func (param i32) (result i32)))"#;
    let unknown2 = r#"(import "env" "proxy_dictionary_get" (func (param i32) (result i32)))"#;
    assert_eq!(
        refused(&module(&format!("{unknown} {unknown2} {marker}"))),
        "unknown import env.proxy_get_secret, env.proxy_dictionary_get (abi 0.2.0): no hostcall of this host; a module that never calls it loads with `unknown_imports: trap`"
    );
    let memory = r#"(import "env" "__linear" (global i32))"#;
    assert!(
        refused(&module(&format!("{memory} {unknown} {marker}")))
            .starts_with("unknown import env.__linear (abi 0.2.0): ")
    );
    let newer = r#"(import "env" "proxy_get_log_level" (func (param i32) (result i32)))"#;
    assert_eq!(
        refused(&module(&format!("{newer} {marker}")))
            .split(':')
            .next(),
        Some("unknown import env.proxy_get_log_level (abi 0.2.0)")
    );
    let mistyped = r#"(import "env" "proxy_log" (func (param i64) (result i32)))"#;
    assert!(refused(&module(&format!("{mistyped} {marker}"))).contains("proxy_log"));
    let callback = r#"(func (export "proxy_on_tick") (param i32) (result i32) (i32.const 0))"#;
    assert_eq!(
        refused(&module(&format!("{marker} {callback}"))),
        "export proxy_on_tick has signature (i32) -> (i32), not (i32) -> ()"
    );
    assert_eq!(
        refused(&format!(
            r#"(module {marker} (memory (export "memory") 1))"#
        )),
        "missing export: proxy_on_memory_allocate or malloc"
    );
    assert_eq!(
        refused(&format!("(module {marker})")),
        "missing export: memory"
    );
    assert!(runtime().load(b"<html>", &NoCache).is_err());
    assert_eq!(refused(&module(marker)), "");
}

#[test]
fn abi_0_1_0_has_its_own_shape() {
    let wat = r#"(module
        (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))
        (import "env" "proxy_get_configuration" (func $configuration (param i32 i32) (result i32)))
        (import "env" "proxy_continue_request" (func $continue (result i32)))
        (import "env" "proxy_get_header_map_value" (func $value (param i32 i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (func (export "proxy_abi_version_0_1_0"))
        (func (export "_start"))
        (func (export "malloc") (param i32) (result i32) (i32.const 1024))
        (func (export "proxy_on_configure") (param i32 i32) (result i32)
            (drop (call $configuration (i32.const 0) (i32.const 4)))
            (i32.eqz (call $log (i32.const 2) (i32.load (i32.const 0)) (i32.load (i32.const 4)))))
        (func (export "proxy_on_request_headers") (param i32 i32) (result i32)
            (if (call $value (i32.const 0) (i32.const 100) (i32.const 4) (i32.const 0) (i32.const 4)) (then unreachable))
            (drop (call $continue))
            (i32.const 1)))"#;
    let embedder = Rc::new(Memory::default());
    let plugin = start(wat, &embedder);
    assert_eq!(embedder.log.take(), ["plugin configuration"]);
    assert_eq!(
        stream(&[&plugin], &[]).request_headers(true),
        Progress::Continue
    );
}

/// What every version has, with its parameters; then what some have.
const HOSTCALLS: &[(&str, &str)] = &[
    ("proxy_log", "iii"),
    ("proxy_get_current_time_nanoseconds", "i"),
    ("proxy_set_tick_period_milliseconds", "i"),
    ("proxy_done", ""),
    ("proxy_set_effective_context", "i"),
    ("proxy_get_buffer_bytes", "iiiii"),
    ("proxy_get_buffer_status", "iii"),
    ("proxy_set_buffer_bytes", "iiiii"),
    ("proxy_get_header_map_size", "ii"),
    ("proxy_get_header_map_pairs", "iii"),
    ("proxy_set_header_map_pairs", "iii"),
    ("proxy_get_header_map_value", "iiiii"),
    ("proxy_add_header_map_value", "iiiii"),
    ("proxy_replace_header_map_value", "iiiii"),
    ("proxy_remove_header_map_value", "iii"),
    ("proxy_get_status", "iii"),
    ("proxy_send_local_response", "iiiiiiii"),
    ("proxy_http_call", "iiiiiiiiii"),
    ("proxy_grpc_call", "iiiiiiiiiiii"),
    ("proxy_grpc_stream", "iiiiiiiii"),
    ("proxy_grpc_send", "iiii"),
    ("proxy_grpc_cancel", "i"),
    ("proxy_grpc_close", "i"),
    ("proxy_set_shared_data", "iiiii"),
    ("proxy_get_shared_data", "iiiii"),
    ("proxy_register_shared_queue", "iii"),
    ("proxy_resolve_shared_queue", "iiiii"),
    ("proxy_enqueue_shared_queue", "iii"),
    ("proxy_dequeue_shared_queue", "iii"),
    ("proxy_define_metric", "iiii"),
    ("proxy_record_metric", "iI"),
    ("proxy_increment_metric", "iI"),
    ("proxy_get_metric", "ii"),
    ("proxy_get_property", "iiii"),
    ("proxy_set_property", "iiii"),
    ("proxy_call_foreign_function", "iiiiii"),
];
const HOSTCALLS_0_1_0: &[(&str, &str)] = &[
    ("proxy_get_configuration", "ii"),
    ("proxy_continue_request", ""),
    ("proxy_continue_response", ""),
    ("proxy_clear_route_cache", ""),
];
const HOSTCALLS_0_2_0: &[(&str, &str)] =
    &[("proxy_continue_stream", "i"), ("proxy_close_stream", "i")];
const HOSTCALLS_0_2_1: &[(&str, &str)] = &[("proxy_get_log_level", "i")];
/// Known by name, whatever the version, and not served.
const HOSTCALLS_UNSERVED: &[(&str, &str)] = &[
    ("envoy_resolve_dns", "iii"),
    ("proxy_redis_init", "iiiiiii"),
    ("proxy_redis_call", "iiiii"),
    ("proxy_inject_encoded_data_to_filter_chain", "iii"),
    ("proxy_get_upstream_hosts", "ii"),
    ("proxy_set_upstream_override_host", "ii"),
];

/// A module that imports all of `hostcalls`, and makes them one by one in a request's headers, each argument -1, and logs their answers as letters, `a` for 0.
fn every_hostcall(marker: &str, hostcalls: &[(&str, &str)]) -> String {
    let (mut imports, mut calls) = (String::new(), String::new());
    for (index, (name, letters)) in hostcalls.iter().enumerate() {
        let types: String = letters
            .chars()
            .map(|letter| if letter == 'i' { "i32 " } else { "i64 " })
            .collect();
        let values: String = types
            .split_whitespace()
            .map(|ty| format!("({ty}.const -1) "))
            .collect();
        imports +=
            &format!(r#"(import "env" "{name}" (func ${name} (param {types}) (result i32)))"#);
        calls += &format!(
            "(i32.store8 (i32.const {index}) (i32.add (i32.const 97) (call ${name} {values})))\n"
        );
    }
    let count = hostcalls.len();
    let end_of_stream = if marker == "0_1_0" { "" } else { "i32" };
    format!(
        r#"(module {imports}
        (memory (export "memory") 2)
        (func (export "proxy_abi_version_{marker}"))
        (func (export "malloc") (param i32) (result i32) (i32.const 1024))
        (func (export "proxy_on_request_headers") (param i32 i32 {end_of_stream}) (result i32)
            {calls} (drop (call $proxy_log (i32.const 2) (i32.const 0) (i32.const {count}))) (i32.const 0)))"#
    )
}

#[test]
fn each_version_has_its_hostcalls_and_all_take_bad_arguments() {
    for (marker, own, count) in [
        ("0_1_0", &[HOSTCALLS_0_1_0][..], 40),
        ("0_2_0", &[HOSTCALLS_0_2_0], 38),
        ("0_2_1", &[HOSTCALLS_0_2_0, HOSTCALLS_0_2_1], 39),
        (
            "0_2_100",
            &[HOSTCALLS_0_2_0, HOSTCALLS_0_2_1, HOSTCALLS_UNSERVED],
            45,
        ),
    ] {
        let all = [&[HOSTCALLS], own].concat().concat();
        assert_eq!(all.len(), count, "{marker}");
        let embedder = Rc::new(Memory::default());
        let plugin = start(&every_hostcall(marker, &all), &embedder);
        assert_eq!(
            plugin.module().unserved_imports().count(),
            if marker == "0_2_100" { 6 } else { 0 },
            "{marker}"
        );
        let progress = stream(&[&plugin], &[]).request_headers(true);
        assert_eq!(progress, Progress::Continue, "{marker}");
        assert_eq!(
            plugin.stats().traps().map(|(_, count)| count).sum::<u64>(),
            0
        );
        let answers = embedder.log.take().concat();
        assert_eq!(answers.len(), count, "{marker}: {answers}");
        for (answer, (name, _)) in answers.bytes().zip(&all) {
            let status = answer - b'a';
            assert!(
                status == 12 || status <= 10,
                "{marker} {name} answers {status}"
            );
            // What takes pointers or numbers takes none such; what takes nothing, or a plain period, is content.
            let content = matches!(
                *name,
                "proxy_set_tick_period_milliseconds"
                    | "proxy_continue_request"
                    | "proxy_continue_response"
                    | "proxy_clear_route_cache"
            );
            assert_eq!(status == 0, content, "{marker} {name} answers {status}");
        }
    }
    // What another version has is unknown.
    for (marker, foreign) in [
        ("0_1_0", HOSTCALLS_0_2_0),
        ("0_1_0", HOSTCALLS_0_2_1),
        ("0_2_0", HOSTCALLS_0_1_0),
        ("0_2_0", HOSTCALLS_0_2_1),
        ("0_2_1", HOSTCALLS_0_1_0),
    ] {
        for hostcall in foreign {
            let loaded = load(&every_hostcall(marker, &[HOSTCALLS[0], *hostcall]));
            assert!(
                matches!(loaded, Err(LoadError::UnknownImport { .. })),
                "{marker} {}",
                hostcall.0
            );
        }
    }
}

#[test]
fn unknown_imports_trap_if_the_operator_says_so_and_they_are_called() {
    let secret = r#"(import "env" "proxy_get_secret" (func $secret (param i32 i64) (result f64)))
        (import "gcore" "proxy_kv_store_open" (func $open (param i32)))"#;
    let body = r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
        (if (i32.eqz (local.get 2)) (then (drop (call $secret (i32.const 0) (i64.const 0)))))
        (i32.const 0))"#;
    let wasm = wat::parse_str(guest(secret, body)).unwrap();
    let load = |unknown| runtime().load_with(&wasm, &NoCache, unknown);
    assert!(load(UnknownImports::Refuse).is_err());
    let module = load(UnknownImports::Trap).unwrap();
    assert_eq!(
        module.unknown_imports(),
        ["env.proxy_get_secret", "gcore.proxy_kv_store_open"]
    );
    let embedder: Rc<dyn Embedder> = Rc::new(Memory::default());
    let plugin = Plugin::start(
        PluginId(1),
        module,
        Arc::new(spec("p")),
        Arc::default(),
        embedder,
    )
    .unwrap();
    for (end_of_stream, expected) in [
        (true, Progress::Continue),
        (false, Progress::Respond),
        (true, Progress::Continue),
    ] {
        let mut stream = stream(&[&plugin], &[]);
        assert_eq!(stream.request_headers(end_of_stream), expected);
    }
    let traps: Vec<_> = plugin.stats().traps().filter(|(_, n)| *n > 0).collect();
    assert_eq!(traps, [(TrapKind::UnknownImport, 1)]);
}

#[test]
fn unknown_imports_are_bounded() {
    let module = |count: usize| {
        let imports: String = (0..count)
            .map(|index| format!(r#"(import "x" "f{index}" (func))"#))
            .collect();
        let wasm = wat::parse_str(guest(&imports, "")).unwrap();
        runtime().load_with(&wasm, &NoCache, UnknownImports::Trap)
    };
    assert!(module(UNKNOWN_IMPORTS_MAX - 1).is_ok());
    assert!(matches!(
        module(UNKNOWN_IMPORTS_MAX),
        Err(LoadError::UnknownImport { imports, .. }) if imports.len() == UNKNOWN_IMPORTS_MAX
    ));
}

#[derive(Default)]
struct Shelf(RefCell<HashMap<String, Vec<u8>>>);

impl ModuleCache for Shelf {
    fn read(&self, key: &str) -> Option<Vec<u8>> {
        self.0.borrow().get(key).cloned()
    }
    fn write(&self, key: &str, compiled: &[u8]) {
        self.0.borrow_mut().insert(key.into(), compiled.into());
    }
}

#[test]
fn a_damaged_cache_entry_is_compiled_again() {
    let shelf = Shelf::default();
    let wasm = wat::parse_str(guest("", LIFECYCLE)).unwrap();
    let first = runtime().load(&wasm, &shelf).unwrap();
    let (key, whole) = shelf
        .0
        .borrow()
        .iter()
        .next()
        .map(|(key, bytes)| (key.clone(), bytes.clone()))
        .unwrap();
    assert!(key.starts_with(first.digest()), "{key}");
    for damaged in [
        Vec::new(),
        whole[..40].to_vec(),
        whole[..whole.len() - 1].to_vec(),
        [&whole[..whole.len() - 1], b"\0"].concat(),
    ] {
        shelf.0.borrow_mut().insert(key.clone(), damaged);
        let module = runtime().load(&wasm, &shelf).unwrap();
        assert_eq!(module.callbacks(), first.callbacks());
        assert_eq!(
            shelf.0.borrow().get(&key),
            Some(&whole),
            "and written again"
        );
    }
    assert!(runtime().load(&wasm, &shelf).is_ok());
}
