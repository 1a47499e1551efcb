//! What a VM's store holds: everything a hostcall may need.
//!
//! Nothing here is borrowed from outside of the store; what an exchange lends stands behind `Rc` (see `stream.rs`).

use std::{rc::Rc, sync::Arc};

use bytes::Bytes;
use wasmtime::{Memory, ResourceLimiter, TypedFunc, UpdateDeadline};

use crate::{
    abi::{AbiVersion, Callback, LogLevel, TrapKind},
    callout::{Answer, CalloutIds, CalloutKind},
    context::{Contexts, StreamContext},
    embedder::{Embedder, StreamToken},
    fields::FieldList,
    filter_state::{Declarations, Properties},
    grpc::GrpcCallouts,
    limits::{
        LOG_BYTES_MAX, LOG_LINES_PER_CALLBACK, Limits, MEMORY_BYTES_MAX, START_LOG_LINES,
        TABLE_ELEMENTS_MAX, TABLES_MAX,
    },
    metrics::{Metric, Metrics},
    shared_data::{Namespace, SharedData},
    shared_queue::SharedQueues,
    spec::{PluginId, PluginSpec},
    stats::PluginStats,
};

/// What all plugins of the process share.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Shared {
    /// Keys and values, by `vm_id`.
    pub data: SharedData,
    /// Queues, by `vm_id` and name.
    pub queues: SharedQueues,
    /// Plugin-defined metrics.
    pub metrics: Metrics,
}

/// What belongs to a plugin on one worker, whatever VM serves it.
#[derive(Clone)]
pub(crate) struct Owner {
    pub(crate) id: PluginId,
    pub(crate) spec: Arc<PluginSpec>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) namespace: Arc<Namespace>,
    pub(crate) embedder: Rc<dyn Embedder>,
    pub(crate) stats: Arc<PluginStats>,
    pub(crate) callout_ids: Rc<CalloutIds>,
}

impl Owner {
    /// Counts on across VMs, so that no late answer to a broken VM's callout reaches the next one. Never 0.
    pub(crate) fn next_callout(&self, kind: CalloutKind) -> u32 {
        self.callout_ids.next(kind)
    }
}

/// Which hostcalls are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    /// All.
    Running,
    /// `_initialize` and `main`: no context exists yet.
    Initializing,
    /// The guest's allocator runs inside of a hostcall: only what touches nothing that the hostcall holds.
    Allocating,
}

pub(crate) struct VmState {
    pub(crate) owner: Owner,
    pub(crate) abi: AbiVersion,
    pub(crate) limiter: Limiter,
    pub(crate) deadline: Deadline,
    /// Present once the module is instantiated.
    pub(crate) memory: Option<Memory>,
    pub(crate) allocate: Option<Rc<TypedFunc<u32, u32>>>,
    pub(crate) mode: Mode,
    pub(crate) callback: Callback,
    /// The stream of the callback; `None` in a callback of the plugin itself.
    pub(crate) current: Option<StreamContext>,
    pub(crate) effective: Effective,
    pub(crate) contexts: Contexts,
    pub(crate) root: Root,
    /// Metric `id` stands at `id >> 2`; each definition makes an entry, as in Envoy.
    pub(crate) metrics: Vec<Arc<Metric>>,
    /// Streams that another's callback acted on; woken when the VM has returned.
    pub(crate) wakes: Vec<StreamToken>,
    pub(crate) log_lines: u32,
    /// Error lines while the plugin starts, for whoever started it.
    pub(crate) start_log: Option<Vec<String>>,
}

/// The context that hostcalls act on.
#[derive(Clone)]
pub(crate) enum Effective {
    /// That of the callback.
    Current,
    Root,
    Stream(StreamContext),
}

/// The plugin's own context.
#[derive(Default)]
pub(crate) struct Root {
    /// What the plugin told this host of itself.
    pub(crate) properties: Properties,
    pub(crate) declarations: Declarations,
    /// Callouts in flight.
    pub(crate) calls: Vec<u32>,
    /// The answer whose callback runs.
    pub(crate) answer: Option<Rc<Answer>>,
    pub(crate) grpc: GrpcCallouts,
    /// What of gRPC the callback that runs may read.
    pub(crate) received: Received,
    /// What `proxy_get_status` tells.
    pub(crate) status: (u32, Bytes),
    /// `proxy_on_done` answered *not yet*.
    pub(crate) done_pending: bool,
    /// `proxy_done` came after that.
    pub(crate) done: bool,
}

/// What came for a gRPC callout, while its callback runs.
#[derive(Default)]
pub(crate) enum Received {
    #[default]
    Nothing,
    InitialMetadata(Rc<FieldList>),
    Message(Bytes),
    TrailingMetadata(Rc<FieldList>),
}

impl VmState {
    pub(crate) fn new(owner: Owner, abi: AbiVersion) -> Self {
        let limiter = Limiter {
            memory_max: owner.spec.limits.memory_bytes.min(MEMORY_BYTES_MAX),
            stats: Arc::clone(&owner.stats),
        };
        Self {
            deadline: Deadline::start(&owner.spec.limits),
            owner,
            abi,
            limiter,
            memory: None,
            allocate: None,
            mode: Mode::Initializing,
            callback: Callback::VmStart,
            current: None,
            effective: Effective::Current,
            contexts: Contexts::default(),
            root: Root::default(),
            metrics: Vec::new(),
            wakes: Vec::new(),
            log_lines: 0,
            start_log: Some(Vec::new()),
        }
    }

    /// Before each callback.
    pub(crate) fn begin(&mut self, callback: Callback, context: Option<&StreamContext>) {
        self.callback = callback;
        self.current = context.cloned();
        self.effective = Effective::Current;
        self.log_lines = 0;
        self.deadline = match callback {
            Callback::VmStart | Callback::Configure => Deadline::start(&self.owner.spec.limits),
            _ => Deadline::callback(&self.owner.spec.limits),
        };
    }

    /// After each callback: lets go of the exchange.
    pub(crate) fn end(&mut self) {
        self.current = None;
        self.effective = Effective::Current;
    }

    /// The stream that hostcalls act on; `None` is the plugin itself.
    pub(crate) fn stream(&self) -> Option<&StreamContext> {
        match &self.effective {
            Effective::Current => self.current.as_ref(),
            Effective::Root => None,
            Effective::Stream(context) => Some(context),
        }
    }

    /// Has the stream that was acted on woken, unless its own callback runs: then the chain looks by itself.
    pub(crate) fn wake(&mut self) {
        let Some(context) = self.stream() else { return };
        let token = context.stream.token;
        let own = self
            .current
            .as_ref()
            .is_some_and(|current| Rc::ptr_eq(&current.stream, &context.stream));
        if !own && !self.wakes.contains(&token) {
            self.wakes.push(token);
        }
    }

    pub(crate) fn log(&mut self, level: LogLevel, message: &[u8]) {
        if level < self.owner.embedder.log_level() || self.log_lines >= LOG_LINES_PER_CALLBACK {
            return;
        }
        self.log_lines += 1;
        let message = message.get(..LOG_BYTES_MAX).unwrap_or(message);
        if let Some(lines) = &mut self.start_log
            && level >= LogLevel::Error
            && lines.len() < START_LOG_LINES
        {
            lines.push(String::from_utf8_lossy(message).into_owned());
        }
        self.owner.embedder.log(&self.owner.spec, level, message);
    }
}

/// Memory and table bounds of one store.
pub(crate) struct Limiter {
    memory_max: usize,
    stats: Arc<PluginStats>,
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let granted = desired <= self.memory_max;
        if granted {
            self.stats.set_memory_bytes(desired);
        } else {
            self.stats.count_memory_denial();
        }
        Ok(granted)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS_MAX)
    }

    fn instances(&self) -> usize {
        1
    }

    fn memories(&self) -> usize {
        1
    }

    fn tables(&self) -> usize {
        TABLES_MAX
    }
}

/// The time bound of a callback. Clocks are read only at epoch ticks, so a callback that ends before the first one pays nothing; the first
/// tick starts both counts, hence a guest may have up to one tick more than its bound.
pub(crate) struct Deadline {
    cpu_ns_max: u64,
    wall_ns_max: u64,
    /// CPU and wall clock at the first tick.
    began: Option<(u64, u64)>,
}

impl Deadline {
    fn start(limits: &Limits) -> Self {
        Self::new(limits.start_cpu_ms, limits.start_wall_ms)
    }

    fn callback(limits: &Limits) -> Self {
        Self::new(limits.callback_cpu_ms, limits.callback_wall_ms)
    }

    fn new(cpu_ms: u64, wall_ms: u64) -> Self {
        Self {
            cpu_ns_max: cpu_ms.saturating_mul(1_000_000),
            wall_ns_max: wall_ms.saturating_mul(1_000_000),
            began: None,
        }
    }

    /// At an epoch tick: one more, or the end.
    pub(crate) fn check(&mut self, embedder: &dyn Embedder) -> wasmtime::Result<UpdateDeadline> {
        let (cpu, wall) = (embedder.thread_cpu_ns(), embedder.monotonic_ns());
        let (cpu_began, wall_began) = *self.began.get_or_insert((cpu, wall));
        if cpu.saturating_sub(cpu_began) >= self.cpu_ns_max
            || wall.saturating_sub(wall_began) >= self.wall_ns_max
        {
            return Err(Ended(TrapKind::OutOfTime).into());
        }
        Ok(UpdateDeadline::Continue(1))
    }
}

/// The host ends the guest.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("ended by the host: {}", .0.as_str())]
pub(crate) struct Ended(pub(crate) TrapKind);

/// Why a call into the guest failed.
pub(crate) fn trap_kind(error: &wasmtime::Error) -> TrapKind {
    use wasmtime::Trap;
    if let Some(Ended(kind)) = error.downcast_ref::<Ended>() {
        return *kind;
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::UnreachableCodeReached) => TrapKind::Unreachable,
        Some(Trap::MemoryOutOfBounds | Trap::TableOutOfBounds | Trap::HeapMisaligned) => {
            TrapKind::OutOfBounds
        }
        Some(Trap::StackOverflow) => TrapKind::StackOverflow,
        Some(Trap::Interrupt) => TrapKind::OutOfTime,
        _ => TrapKind::Other,
    }
}
