//! An embedder in memory, and what small guests and their exchanges are made of.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use portcullis_runtime::{
    CalloutError, CalloutId, CalloutKind, Chain, ConnectionInfo, Embedder, Exchange, FailurePolicy,
    FieldList, GrpcCall, HttpCall, HttpStream, Isolation, Limits, LoadError, LogLevel, Module,
    NoCache, Plugin, PluginId, PluginSpec, Protocol, QueueTarget, RedisCall, RedisOptions,
    RouteInfo, Runtime, RuntimeOptions, SnapshotWork, StartError, Status, StreamInfo, StreamToken,
};

/// Keeps what the runtime tells it. Its clocks stand still, but for the step that each look takes.
#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) log: RefCell<Vec<String>>,
    pub(crate) calls: RefCell<Vec<(CalloutId, HttpCall)>>,
    pub(crate) cancelled: Cell<u32>,
    pub(crate) grpc_calls: RefCell<Vec<(CalloutId, GrpcCall)>>,
    pub(crate) grpc_sent: RefCell<Vec<(CalloutId, Option<Bytes>, bool)>>,
    pub(crate) grpc_cancelled: RefCell<Vec<CalloutId>>,
    /// Takes no more messages.
    pub(crate) grpc_is_full: Cell<bool>,
    pub(crate) redis_options: RefCell<Vec<(String, RedisOptions)>>,
    pub(crate) redis_calls: RefCell<Vec<(CalloutId, RedisCall)>>,
    pub(crate) redis_cancelled: RefCell<Vec<CalloutId>>,
    pub(crate) tended: Cell<u32>,
    pub(crate) works: RefCell<Vec<SnapshotWork>>,
    pub(crate) woken: RefCell<Vec<StreamToken>>,
    pub(crate) queues: RefCell<Vec<QueueTarget>>,
    pub(crate) tick_period: Cell<Option<Duration>>,
    pub(crate) now_ns: Cell<u64>,
    pub(crate) now_step_ns: Cell<u64>,
    pub(crate) cpu_ns: Cell<u64>,
    pub(crate) cpu_step_ns: Cell<u64>,
    /// Each line that a guest logs is an epoch tick.
    pub(crate) ticks_on_log: Cell<bool>,
    /// How much later, in ns, each line that a guest logs makes the CPU clock and the other one.
    pub(crate) step_on_log_ns: Cell<(u64, u64)>,
}

impl Embedder for Memory {
    fn worker(&self) -> u32 {
        0
    }
    fn unix_time_ns(&self) -> u64 {
        1_700_000_000_000_000_000
    }
    fn monotonic_ns(&self) -> u64 {
        self.now_ns.set(self.now_ns.get() + self.now_step_ns.get());
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
        let (cpu_ns, now_ns) = self.step_on_log_ns.get();
        self.cpu_ns.set(self.cpu_ns.get() + cpu_ns);
        self.now_ns.set(self.now_ns.get() + now_ns);
        if self.ticks_on_log.get() {
            runtime().tick();
        }
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
    fn set_redis(
        &self,
        _: PluginId,
        cluster: String,
        options: RedisOptions,
    ) -> Result<(), CalloutError> {
        self.redis_options.borrow_mut().push((cluster, options));
        Ok(())
    }
    fn start_redis(&self, _: PluginId, id: CalloutId, call: RedisCall) -> Result<(), CalloutError> {
        self.redis_calls.borrow_mut().push((id, call));
        Ok(())
    }
    fn cancel_call(&self, _: PluginId, id: CalloutId) {
        match id.kind() {
            CalloutKind::Http => {
                self.cancelled.set(self.cancelled.get() + 1);
                self.calls.borrow_mut().retain(|(other, _)| *other != id);
            }
            CalloutKind::GrpcCall | CalloutKind::GrpcStream => {
                self.grpc_cancelled.borrow_mut().push(id);
            }
            CalloutKind::Redis => self.redis_cancelled.borrow_mut().push(id),
        }
    }
    fn tend_soon(&self, _: PluginId) {
        self.tended.set(self.tended.get() + 1);
    }
    fn lend_thread(&self, work: SnapshotWork) {
        self.works.borrow_mut().push(work);
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
pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let mut options = RuntimeOptions::default();
        options.vms_max = 64;
        Runtime::new(options).unwrap()
    })
}

pub(crate) fn load(wat: &str) -> Result<Arc<Module>, LoadError> {
    runtime().load(&wat::parse_str(wat).unwrap(), &NoCache)
}

pub(crate) fn spec(name: &str) -> PluginSpec {
    PluginSpec {
        name: name.into(),
        root_id: "root".into(),
        vm_id: String::new(),
        vm_configuration: Bytes::from("vm"),
        configuration: Bytes::from("plugin configuration"),
        failure_policy: FailurePolicy::Closed,
        isolation: Isolation::Plugin,
        limits: Limits::default(),
        clusters: vec!["c".into()],
        allow_on_headers_stop_iteration: None,
    }
}

pub(crate) fn start_with(
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

pub(crate) fn start(wat: &str, embedder: &Rc<Memory>) -> Rc<Plugin> {
    start_with(spec("p"), wat, embedder).unwrap()
}

pub(crate) fn list(fields: &[(&str, &str)]) -> FieldList {
    let mut list = FieldList::new();
    for (name, value) in fields {
        list.push(name.to_string(), value.to_string());
    }
    list
}

pub(crate) fn exchange(fields: &[(&str, &str)]) -> Exchange {
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

pub(crate) fn stream(plugins: &[&Rc<Plugin>], fields: &[(&str, &str)]) -> HttpStream {
    let chain = Chain::new(plugins.iter().map(|plugin| Rc::clone(plugin)).collect());
    HttpStream::new(&chain, exchange(fields), StreamToken(9))
}

pub(crate) fn answer(stream: &mut HttpStream, fields: &[(&str, &str)]) {
    stream.exchange_mut().response_headers = Some(Box::new(list(fields)));
}

pub(crate) fn header(stream: &HttpStream, name: &str) -> Option<String> {
    let exchange = stream.exchange();
    let headers = exchange.response_headers.as_ref()?;
    headers
        .get(name.as_bytes())
        .map(|value| String::from_utf8_lossy(value).into_owned())
}

/// What every guest has: memory, a bump allocator, and one import to tell what happens.
pub(crate) fn guest(imports: &str, body: &str) -> String {
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
pub(crate) fn import(name: &str, params: usize) -> String {
    let params = "i32 ".repeat(params);
    format!(r#"(import "env" "{name}" (func ${name} (param {params}) (result i32)))"#)
}

/// Logs each callback by name, with its context: a digit at 0.
pub(crate) const LIFECYCLE: &str = r#"
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

/// Ticks the engine for as long as `run` takes.
pub(crate) fn with_ticks<R>(run: impl FnOnce() -> R) -> R {
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
