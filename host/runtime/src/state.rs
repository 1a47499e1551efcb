//! What a VM's store holds: everything a hostcall may need.
//!
//! Nothing here is borrowed from outside of the store; what an exchange lends stands behind `Rc` (see `stream.rs`).

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use wasmtime::{Memory, TypedFunc, UpdateDeadline};

use crate::{
    abi::{AbiVersion, Callback, LogLevel, Status},
    bounds::{Deadline, Limiter},
    callout::{Answer, CalloutId, CalloutIds, CalloutKind, InFlight, Place},
    context::{Contexts, ROOT_CONTEXT, StreamContext},
    embedder::{Embedder, StreamToken},
    fields::FieldList,
    filter_state::{Declarations, Properties},
    grpc::GrpcCallouts,
    limits::{
        CALLOUTS_MAX, DENIALS_NAMED_MAX, LOG_BYTES_MAX, LOG_LINES_PER_CALLBACK, MEMORY_BYTES_MAX,
        PROPERTY_PATH_BYTES_MAX, START_LOG_LINES,
    },
    log_rate::LogRate,
    metrics::{Metric, Metrics},
    recorder::Recorder,
    shared_data::{Namespace, SharedData},
    shared_queue::SharedQueues,
    spec::{PluginId, PluginSpec},
    stats::{DenialKind, PluginStats, StatsTable},
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
    /// What the host counts, by worker and plugin.
    pub stats: StatsTable,
}

/// What belongs to a plugin on one worker, whatever VM serves it.
pub(crate) struct Owner {
    pub(crate) id: PluginId,
    pub(crate) spec: Arc<PluginSpec>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) namespace: Arc<Namespace>,
    pub(crate) embedder: Rc<dyn Embedder>,
    pub(crate) stats: Arc<PluginStats>,
    /// Shared with the plugins that may stand in the same VM: there each id is told but once.
    pub(crate) callout_ids: Rc<CalloutIds>,
    pub(crate) log_rate: LogRate,
    /// Callouts under way, whichever VM made them.
    pub(crate) callouts: InFlight,
    /// What was denied and has been warned of.
    pub(crate) denied: RefCell<Vec<(DenialKind, Box<[u8]>)>>,
    /// VMs alive that serve it.
    pub(crate) vms: Cell<u32>,
    /// No VM stands, and none can be started now.
    pub(crate) is_waiting: Cell<bool>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.set_waiting(false);
    }
}

impl Owner {
    fn count_vm(&self) {
        self.vms.set(self.vms.get().saturating_add(1));
        self.stats.count_vm(true);
    }

    fn uncount_vm(&self) {
        self.vms.set(self.vms.get().saturating_sub(1));
        self.stats.count_vm(false);
    }

    pub(crate) fn set_waiting(&self, waits: bool) {
        if self.is_waiting.replace(waits) != waits {
            self.stats.count_waiting(waits);
        }
    }

    /// A place for one more callout of any kind, if that stays within the plugin's bound.
    pub(crate) fn place_for_callout(&self) -> Result<Place, Status> {
        let most = self.spec.limits.callouts_in_flight.min(CALLOUTS_MAX);
        self.callouts.enter(most).ok_or(Status::InternalFailure)
    }

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

/// What a VM is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The plugin's own: its timers and queues, and its exchanges where these share a VM.
    Standing,
    /// To take over from the standing one. Its timer is noted, and runs from then on.
    Spare,
    /// One exchange. A timer that it sets is not set.
    Request,
}

pub(crate) struct VmState {
    /// Of the plugin at work.
    pub(crate) owner: Rc<Owner>,
    pub(crate) role: Role,
    pub(crate) abi: AbiVersion,
    pub(crate) limiter: Limiter,
    pub(crate) deadline: Deadline,
    /// Present once the module is instantiated.
    pub(crate) memory: Option<Memory>,
    /// Where writes to that memory are marked, if they are: see `cards.rs`.
    pub(crate) cards: Option<Memory>,
    pub(crate) allocate: Option<Rc<TypedFunc<u32, u32>>>,
    pub(crate) mode: Mode,
    pub(crate) callback: Callback,
    /// The stream of the callback; `None` in a callback of the plugin itself.
    pub(crate) current: Option<StreamContext>,
    pub(crate) effective: Effective,
    pub(crate) contexts: Contexts,
    /// Of the plugin at work.
    pub(crate) root: Root,
    /// The root of the plugin whose callback runs.
    callback_root: u32,
    /// Other plugins that stand in this VM.
    others: Vec<(Rc<Owner>, Root)>,
    /// Metric `id` stands at `id >> 2`; each definition makes an entry, as in Envoy. What a snapshot has defined, all its VMs share.
    pub(crate) metrics: Rc<Vec<Arc<Metric>>>,
    /// The guest was given random bytes, which it may keep.
    pub(crate) drew_random: bool,
    /// Streams that another's callback acted on; woken when the VM has returned.
    pub(crate) wakes: Vec<StreamToken>,
    pub(crate) log_lines: u32,
    /// Sees what happens here.
    pub(crate) recorder: Option<Rc<dyn Recorder>>,
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

/// A plugin's own context.
pub(crate) struct Root {
    pub(crate) id: u32,
    /// What the plugin told this host of itself.
    pub(crate) properties: Properties,
    pub(crate) declarations: Declarations,
    pub(crate) tick_period: Option<Duration>,
    /// HTTP and Redis callouts under way, each with its place among the plugin's.
    pub(crate) calls: Vec<(u32, Place)>,
    /// The answer whose callback runs.
    pub(crate) answer: Option<Rc<Answer>>,
    pub(crate) grpc: GrpcCallouts,
    /// What of gRPC or Redis the callback that runs may read.
    pub(crate) received: Received,
    /// What `proxy_get_status` tells.
    pub(crate) status: (u32, Bytes),
    /// `proxy_on_done` answered *not yet*.
    pub(crate) done_pending: bool,
    /// `proxy_done` came after that.
    pub(crate) done: bool,
}

/// What came for a gRPC or Redis callout, while its callback runs.
#[derive(Default)]
pub(crate) enum Received {
    #[default]
    Nothing,
    InitialMetadata(Rc<FieldList>),
    Message(Bytes),
    TrailingMetadata(Rc<FieldList>),
    /// Empty where there was none.
    RedisReply(Bytes),
}

impl Root {
    pub(crate) fn new(id: u32) -> Self {
        Self {
            id,
            properties: Properties::default(),
            declarations: Declarations::default(),
            tick_period: None,
            calls: Vec::new(),
            answer: None,
            grpc: GrpcCallouts::default(),
            received: Received::Nothing,
            status: (0, Bytes::new()),
            done_pending: false,
            done: false,
        }
    }

    /// Callouts that are waited for.
    pub(crate) fn callouts(&self) -> impl Iterator<Item = CalloutId> + '_ {
        let calls = self.calls.iter().map(|(id, _)| CalloutId(*id));
        calls.chain(self.grpc.under_way())
    }
}

impl VmState {
    pub(crate) fn new(owner: Rc<Owner>, role: Role, abi: AbiVersion) -> Self {
        let limiter = Limiter {
            memory_max: owner.spec.limits.memory_bytes.min(MEMORY_BYTES_MAX),
            memory_bytes: 0,
            has_cards: false,
            memories: 0,
            stats: Arc::clone(&owner.stats),
        };
        owner.count_vm();
        Self {
            deadline: Deadline::start(&owner.spec.limits),
            owner,
            role,
            abi,
            limiter,
            memory: None,
            cards: None,
            allocate: None,
            mode: Mode::Initializing,
            callback: Callback::VmStart,
            current: None,
            effective: Effective::Current,
            contexts: Contexts::default(),
            root: Root::new(ROOT_CONTEXT),
            callback_root: ROOT_CONTEXT,
            others: Vec::new(),
            metrics: Rc::default(),
            drew_random: false,
            wakes: Vec::new(),
            log_lines: 0,
            recorder: None,
            start_log: Some(Vec::new()),
        }
    }

    /// Takes in one more plugin: the id of its root context.
    pub(crate) fn admit(&mut self, owner: &Rc<Owner>) -> Option<u32> {
        let id = self.contexts.next_root()?;
        owner.count_vm();
        self.others.push((Rc::clone(owner), Root::new(id)));
        Some(id)
    }

    /// Lets a plugin that [`VmState::admit`] took in go again.
    pub(crate) fn dismiss(&mut self, root: u32) {
        // Whichever is left is as good: no callback runs.
        if self.root.id == root
            && let Some((_, other)) = self.others.first()
        {
            let other = other.id;
            self.seat(other);
        }
        self.others.retain(|(owner, other)| {
            let stays = other.id != root;
            if !stays {
                owner.uncount_vm();
            }
            stays
        });
    }

    /// Has hostcalls act for the plugin of this root context; whether there is one.
    pub(crate) fn seat(&mut self, root: u32) -> bool {
        if self.root.id == root {
            return true;
        }
        let Some((owner, other)) = self.others.iter_mut().find(|(_, other)| other.id == root)
        else {
            return false;
        };
        std::mem::swap(&mut self.owner, owner);
        std::mem::swap(&mut self.root, other);
        true
    }

    /// All plugins that stand here.
    pub(crate) fn roots(&self) -> impl Iterator<Item = (&Rc<Owner>, &Root)> {
        let others = self.others.iter().map(|(owner, root)| (owner, root));
        std::iter::once((&self.owner, &self.root)).chain(others)
    }

    pub(crate) fn root_mut(&mut self, id: u32) -> Option<&mut Root> {
        if self.root.id == id {
            return Some(&mut self.root);
        }
        self.others
            .iter_mut()
            .map(|(_, root)| root)
            .find(|root| root.id == id)
    }

    /// `proxy_set_effective_context`: hostcalls act on this context, and for its plugin, until the callback returns.
    pub(crate) fn set_effective(&mut self, context: u32) -> Result<(), Status> {
        let effective = match context {
            0 => {
                self.seat(self.callback_root);
                Effective::Current
            }
            id if self.seat(id) => Effective::Root,
            id => {
                let stream = self.contexts.get(id).ok_or(Status::BadArgument)?.clone();
                self.seat(stream.cell()?.root.get());
                Effective::Stream(stream)
            }
        };
        self.effective = effective;
        Ok(())
    }

    /// Before each callback, of the plugin of this root context.
    pub(crate) fn begin(&mut self, callback: Callback, root: u32, context: Option<&StreamContext>) {
        self.seat(root);
        self.callback_root = root;
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

    /// At an epoch tick within a callback: charges it to the exchange, and says whether the callback may go on.
    pub(crate) fn tick(&mut self) -> wasmtime::Result<UpdateDeadline> {
        let spent_ns = self.deadline.check(self.owner.embedder.as_ref())?;
        // The exchange whose callback it is, whatever the plugin calls its effective context: it may not spend another's time.
        let charged = self.current.as_ref().or_else(|| self.stream());
        if let Some(cell) = charged.and_then(|context| context.cell().ok()) {
            cell.cpu_ns.set(cell.cpu_ns.get().saturating_add(spent_ns));
        }
        Ok(UpdateDeadline::Continue(1))
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
        if level < self.owner.embedder.log_level() {
            return;
        }
        if self.log_lines >= LOG_LINES_PER_CALLBACK {
            self.owner.stats.count_log_drop();
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
        let Owner {
            embedder,
            spec,
            stats,
            log_rate,
            ..
        } = &*self.owner;
        match log_rate.take(embedder.monotonic_ns()) {
            Some(0) => embedder.log(spec, level, message),
            Some(dropped) => {
                if LogLevel::Warn >= embedder.log_level() {
                    let lines =
                        format!("{dropped} log lines dropped: more than its bound a second");
                    embedder.log(spec, LogLevel::Warn, lines.as_bytes());
                }
                embedder.log(spec, level, message);
            }
            None => stats.count_log_drop(),
        }
    }

    /// The guest asked for what it may not use: counted each time, and said once a plugin and name, whatever VM asks.
    pub(crate) fn deny(&self, kind: DenialKind, name: &[u8]) {
        let Owner {
            embedder,
            spec,
            stats,
            denied,
            ..
        } = &*self.owner;
        stats.count_denial(kind);
        let name = name.get(..PROPERTY_PATH_BYTES_MAX).unwrap_or(name);
        let same = |(of, known): &(DenialKind, Box<[u8]>)| *of == kind && **known == *name;
        let mut denied = denied.borrow_mut();
        if denied.len() >= DENIALS_NAMED_MAX || denied.iter().any(same) {
            return;
        }
        denied.push((kind, name.into()));
        drop(denied);
        let shown = String::from_utf8_lossy(name).replace('\0', ".");
        let message = format!("{} {shown} is denied: no allow-list has it", kind.as_str());
        embedder.log(spec, LogLevel::Warn, message.as_bytes());
    }
}

/// What the host holds for a VM besides its memory: for those that awake from the same snapshot, copied.
pub(crate) struct Template {
    metrics: Rc<Vec<Arc<Metric>>>,
    declarations: Declarations,
}

impl VmState {
    /// What a VM in this state needs beside its memory. A timer and callouts it has none: those belong to the root VM.
    pub(crate) fn template(&self) -> Template {
        Template {
            metrics: Rc::clone(&self.metrics),
            declarations: self.root.declarations.clone(),
        }
    }

    /// Makes a VM that was just instantiated what it was when the template was made: past its start.
    pub(crate) fn apply(&mut self, template: &Template) {
        self.metrics = Rc::clone(&template.metrics);
        self.root.declarations = template.declarations.clone();
        self.mode = Mode::Running;
        self.start_log = None;
    }

    /// Makes the state of a VM that has served an exchange what [`VmState::apply`] made it. Only what belongs to the instance stays.
    pub(crate) fn renew(&mut self, template: &Template) {
        let mut new = Self::new(Rc::clone(&self.owner), self.role, self.abi);
        new.apply(template);
        new.memory = self.memory;
        new.cards = self.cards;
        new.allocate = self.allocate.take();
        // The very same memory goes on.
        std::mem::swap(&mut new.limiter, &mut self.limiter);
        *self = new;
    }
}

impl Drop for VmState {
    /// What it began ends with it.
    fn drop(&mut self) {
        for (owner, root) in self.roots() {
            owner.uncount_vm();
            for id in root.callouts() {
                owner.embedder.cancel_call(owner.id, id);
            }
        }
        let stats = &self.limiter.stats;
        stats.move_memory_bytes(self.limiter.memory_bytes, 0);
    }
}
