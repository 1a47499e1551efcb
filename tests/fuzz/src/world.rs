//! The embedder: hands out scripts, keeps what the guest tells, answers callouts, and stands still otherwise.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use portcullis_runtime::{
    CalloutError, CalloutId, ConnectionInfo, Embedder, FieldList, GrpcCall, HttpCall,
    HttpCallResponse, Isolation, LogLevel, Module, NoCache, Plugin, PluginId, PluginSpec, Protocol,
    QueueTarget, RouteInfo, Runtime, RuntimeOptions, Shared, SnapshotWork, Status, StreamInfo,
    StreamToken, UnknownImports,
};

use crate::guest::{self, CALLBACKS, Call};
use crate::{Input, Script};

/// What the guest told.
#[derive(Clone, Debug)]
pub(crate) enum Told {
    /// It was called.
    Callback(u8),
    /// What a call of its script in this callback gave.
    Status {
        callback: u8,
        call: Option<Call>,
        status: u8,
    },
}

pub(crate) struct World(Rc<Inner>);

#[derive(Default)]
struct Inner {
    scripts: RefCell<Vec<(u8, Vec<Call>)>>,
    running: Cell<bool>,
    told: RefCell<Vec<Told>>,
    calls: RefCell<Vec<CalloutId>>,
    woken: Cell<bool>,
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let mut options = RuntimeOptions::default();
        options.vms_max = 8;
        let runtime = Runtime::new(options).expect("a runtime");
        // A guest that hangs would be a finding: it must be stopped, as in production.
        let tick = runtime.ticker();
        std::thread::spawn(move || {
            while tick() {
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        runtime
    })
}

fn module() -> Arc<Module> {
    static MODULE: OnceLock<Arc<Module>> = OnceLock::new();
    Arc::clone(MODULE.get_or_init(|| {
        let wasm = wat::parse_str(guest::wat()).expect("the guest is Wasm");
        runtime().load(&wasm, &NoCache).expect("the guest loads")
    }))
}

/// A plugin that serves one input after the other, each in a VM that was made new after the last, and what it is embedded in.
fn lasting() -> (Rc<Inner>, Rc<Plugin>) {
    thread_local! {
        static LASTING: (Rc<Inner>, Rc<Plugin>) = {
            let inner = Rc::new(Inner::default());
            let wasm = wat::parse_str(guest::wat()).expect("the guest is Wasm");
            let module = runtime().load_for_snapshots(&wasm, &NoCache, UnknownImports::Refuse);
            let plugin = start(&inner, module.expect("the guest loads"), Isolation::Request);
            plugin.tend();
            plugin.tend();
            assert_eq!(plugin.stats().snapshots(), 1, "no snapshot");
            (inner, plugin)
        };
    }
    LASTING.with(|(inner, plugin)| (Rc::clone(inner), Rc::clone(plugin)))
}

fn start(inner: &Rc<Inner>, module: Arc<Module>, isolation: Isolation) -> Rc<Plugin> {
    let mut spec = PluginSpec::new("fuzzed");
    spec.clusters = vec!["c".into()];
    spec.limits.body_bytes = 1 << 20;
    spec.isolation = isolation;
    let embedder: Rc<dyn Embedder> = Rc::<Inner>::clone(inner);
    let shared = Arc::new(Shared::default());
    Plugin::start(PluginId(1), module, Arc::new(spec), shared, embedder).expect("the guest starts")
}

pub(crate) fn info() -> StreamInfo {
    let address = |port| std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let connection = ConnectionInfo::new(7, address(1), address(2));
    StreamInfo::new(
        Rc::new(connection),
        Rc::new(RouteInfo::default()),
        Protocol::Http11,
        0,
    )
}

impl World {
    /// With a plugin of its own: nothing of one input is left for the next.
    pub(crate) fn fresh(input: &Input) -> (Self, Rc<Plugin>) {
        let world = Self(Rc::new(Inner::default()));
        world.take(input);
        let plugin = start(&world.0, module(), Isolation::Plugin);
        (world, plugin)
    }

    /// With the plugin of the inputs before: the runtime itself sees to it that nothing of them is left in its VMs' memory.
    pub(crate) fn lasting(input: &Input) -> (Self, Rc<Plugin>) {
        let (inner, plugin) = lasting();
        let world = Self(inner);
        world.take_told();
        world.take_wake();
        world.0.calls.take();
        world.take(input);
        (world, plugin)
    }

    fn take(&self, input: &Input) {
        let scripts = (0..CALLBACKS.len()).map(|callback| {
            let of = |script: &&Script| usize::from(script.callback) % CALLBACKS.len() == callback;
            let action = input
                .scripts
                .iter()
                .find(of)
                .map_or(0, |script| script.action);
            let calls = input
                .scripts
                .iter()
                .filter(of)
                .flat_map(|script| script.calls.clone());
            (action, calls.take(24).collect())
        });
        *self.0.scripts.borrow_mut() = scripts.collect();
    }

    pub(crate) fn begin(&self) {
        self.0.running.set(true);
    }

    pub(crate) fn end(&self) {
        self.0.running.set(false);
    }

    pub(crate) fn request_headers(&self) -> Vec<(&'static str, &'static str)> {
        vec![
            (":method", "GET"),
            (":path", "/"),
            (":authority", "h"),
            ("x-request-id", "0123456789abcdef"),
            ("x-b", "1"),
            ("x-b", "2"),
        ]
    }

    pub(crate) fn take_told(&self) -> Vec<Told> {
        self.0.told.take()
    }

    pub(crate) fn take_wake(&self) -> bool {
        self.0.woken.take()
    }

    pub(crate) fn answer_calls(&self, plugin: &Plugin) {
        let calls = self.0.calls.take();
        for id in calls {
            let mut headers = FieldList::new();
            headers.push(":status", "200");
            let response = HttpCallResponse::Answer {
                headers,
                body: Bytes::from_static(b"answer"),
                trailers: FieldList::new(),
            };
            plugin.on_http_call_response(id, response);
        }
    }
}

impl Embedder for Inner {
    fn worker(&self) -> u32 {
        0
    }
    fn unix_time_ns(&self) -> u64 {
        1_700_000_000_000_000_000
    }
    fn monotonic_ns(&self) -> u64 {
        0
    }
    fn thread_cpu_ns(&self) -> u64 {
        0
    }
    fn random(&self, out: &mut [u8]) {
        out.fill(0x5a);
    }
    fn log(&self, _: &PluginSpec, _: LogLevel, _: &[u8]) {}
    fn log_level(&self) -> LogLevel {
        LogLevel::Trace
    }
    fn set_tick_period(&self, _: PluginId, _: Option<Duration>) {}
    fn start_http_call(&self, _: PluginId, id: CalloutId, _: HttpCall) -> Result<(), CalloutError> {
        self.calls.borrow_mut().push(id);
        Ok(())
    }
    fn start_grpc(&self, _: PluginId, _: CalloutId, _: GrpcCall) -> Result<(), CalloutError> {
        Ok(())
    }
    fn send_grpc(
        &self,
        _: PluginId,
        _: CalloutId,
        _: Option<Bytes>,
        _: bool,
    ) -> Result<(), CalloutError> {
        Ok(())
    }
    fn cancel_calls(&self, _: PluginId) {
        self.calls.borrow_mut().clear();
    }
    fn cancel_call(&self, _: PluginId, id: CalloutId) {
        self.calls.borrow_mut().retain(|other| *other != id);
    }
    fn wake(&self, _: StreamToken) {
        self.woken.set(true);
    }
    fn notify_queue(&self, _: QueueTarget) {}
    fn lend_thread(&self, work: SnapshotWork) {
        work.run();
    }
    fn foreign_function(&self, name: &str, arguments: &[u8]) -> Result<Vec<u8>, Status> {
        if !self.running.get() {
            return Ok(Vec::new());
        }
        match (name, arguments) {
            ("script", [callback]) => {
                self.told.borrow_mut().push(Told::Callback(*callback));
                let scripts = self.scripts.borrow();
                let script = scripts.get(usize::from(*callback));
                let (action, calls) = script.ok_or(Status::BadArgument)?;
                Ok(guest::script(*action, calls.iter()))
            }
            ("status", [callback, index, status]) => {
                let scripts = self.scripts.borrow();
                let call = scripts
                    .get(usize::from(*callback))
                    .and_then(|(_, calls)| calls.get(usize::from(*index)))
                    .cloned();
                self.told.borrow_mut().push(Told::Status {
                    callback: *callback,
                    call,
                    status: *status,
                });
                Ok(Vec::new())
            }
            _ => Err(Status::NotFound),
        }
    }
}
