//! A plugin on one worker: its VM, and what happens when that breaks.
//!
//! A VM that broke is replaced by the spare when the next request (or anything else) needs one, or by one started at once: a client that can
//! make a control trap must not be able to switch it off. Only where the start itself fails do we back off, with jitter.

mod recovery;

use std::{
    cell::{Cell, OnceCell, RefCell},
    fmt,
    rc::{Rc, Weak},
    sync::Arc,
};

pub(crate) use recovery::NoVm;
use recovery::{Backoff, Group};

use crate::{
    abi::{AbiVersion, Callback, Callbacks},
    callout::{CalloutId, HttpCallResponse, InFlight},
    embedder::Embedder,
    fields::check_name,
    grpc::GrpcEvent,
    log_rate::LogRate,
    module::Module,
    property::OWNED_REQUEST_HEADERS,
    recorder::Recorder,
    redis::RedisReply,
    snapshot::Snapshots,
    spec::{Isolation, PluginId, PluginSpec},
    state::{Owner, Role, Shared},
    stats::PluginStats,
    vm::{StartFailure, Vm},
};

/// A plugin that does not start.
#[derive(Debug, thiserror::Error)]
#[error("plugin {plugin}: {failure}{}", lines(.log))]
#[non_exhaustive]
pub struct StartError {
    /// Its name.
    pub plugin: String,
    /// Why.
    pub failure: StartFailure,
    /// The error lines it logged while it started.
    pub log: Vec<String>,
}

fn lines(log: &[String]) -> String {
    log.iter().map(|line| format!(": {line}")).collect()
}

/// A configured module on one worker. What it counts goes on from a plugin of the same name that stood there before.
pub struct Plugin {
    owner: Rc<Owner>,
    module: Arc<Module>,
    group: Rc<Group>,
    slot: RefCell<Slot>,
    backoff: Cell<Backoff>,
    spare: RefCell<Option<Rc<Vm>>>,
    spare_backoff: Cell<Backoff>,
    snapshots: RefCell<Snapshots>,
    /// VMs of exchanges, some of them gone.
    noted: RefCell<Vec<Weak<Vm>>>,
    is_retired: Cell<bool>,
    /// See [`Plugin::full`].
    full_silent_until_ns: Cell<u64>,
    owned_request_headers: OnceCell<Vec<String>>,
}

enum Slot {
    /// The plugin's own VM. It may have broken.
    Standing(Rc<Vm>),
    /// The last start failed.
    Down,
    /// Asked to end, but it said *not yet*.
    Ending(Rc<Vm>),
    Ended,
}

impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plugin")
            .field("id", &self.owner.id)
            .field("name", &self.owner.spec.name)
            .field("module", &self.module)
            .finish_non_exhaustive()
    }
}

impl Plugin {
    /// Starts and configures the plugin's first VM.
    pub fn start(
        id: PluginId,
        module: Arc<Module>,
        spec: Arc<PluginSpec>,
        shared: Arc<Shared>,
        embedder: Rc<dyn Embedder>,
    ) -> Result<Rc<Self>, StartError> {
        Self::start_in(Rc::default(), id, module, spec, shared, embedder)
    }

    /// Starts a plugin on the worker of another, in the same VM if both are [`Isolation::Shared`] and [`Plugin::may_share`] says that they may.
    pub fn start_beside(
        neighbour: &Self,
        id: PluginId,
        spec: Arc<PluginSpec>,
    ) -> Result<Rc<Self>, StartError> {
        let group = if neighbour.may_share(&neighbour.module, &spec) {
            Rc::clone(&neighbour.group)
        } else {
            Rc::default()
        };
        Self::start_in(
            group,
            id,
            Arc::clone(&neighbour.module),
            spec,
            Arc::clone(&neighbour.owner.shared),
            Rc::clone(&neighbour.owner.embedder),
        )
    }

    /// Whether another plugin may stand in this one's VM: as in Envoy, `vm_id` and VM configuration are the same; and so are the bounds of
    /// memory and start, which are the VM's, and the module as it was loaded and restricted, since the VM is linked with its allow-lists.
    pub fn may_share(&self, module: &Module, spec: &PluginSpec) -> bool {
        let own = self.spec();
        let bounds = |spec: &PluginSpec| {
            let limits = &spec.limits;
            (
                limits.memory_bytes,
                limits.start_cpu_ms,
                limits.start_wall_ms,
            )
        };
        own.isolation == Isolation::Shared
            && spec.isolation == Isolation::Shared
            && std::ptr::eq(&*self.module, module)
            && own.vm_id == spec.vm_id
            && own.vm_configuration == spec.vm_configuration
            && bounds(own) == bounds(spec)
    }

    fn start_in(
        group: Rc<Group>,
        id: PluginId,
        module: Arc<Module>,
        spec: Arc<PluginSpec>,
        shared: Arc<Shared>,
        embedder: Rc<dyn Embedder>,
    ) -> Result<Rc<Self>, StartError> {
        let namespace = shared.data.namespace(&spec.vm_id);
        let stats = shared.stats.of(embedder.worker(), &spec.name);
        let log_rate = LogRate::new(spec.limits.log_lines_per_second);
        let owner = Rc::new(Owner {
            id,
            spec,
            shared,
            namespace,
            embedder,
            stats,
            callout_ids: Rc::clone(&group.callout_ids),
            log_rate,
            callouts: InFlight::default(),
            denied: RefCell::default(),
            vms: Cell::new(0),
            is_waiting: Cell::new(false),
        });
        let plugin = Self {
            owner,
            module,
            group,
            slot: RefCell::new(Slot::Down),
            backoff: Cell::default(),
            spare: RefCell::default(),
            spare_backoff: Cell::default(),
            snapshots: RefCell::default(),
            noted: RefCell::default(),
            is_retired: Cell::new(false),
            full_silent_until_ns: Cell::new(0),
            owned_request_headers: OnceCell::new(),
        };
        let vm = plugin
            .start_vm(Role::Standing)
            .map_err(|(failure, log)| StartError {
                plugin: plugin.owner.spec.name.clone(),
                failure,
                log,
            })?;
        let owned = vm
            .root_property(OWNED_REQUEST_HEADERS)
            .map(|names| owned_headers(&names))
            .unwrap_or_default();
        *plugin.slot.borrow_mut() = Slot::Standing(vm);
        let plugin = Self {
            owned_request_headers: OnceCell::from(owned),
            ..plugin
        };
        Ok(Rc::new(plugin))
    }

    /// The plugin's timer. The spare is told too: what a plugin does from time to time (fetch keys, say) must be done there when it takes over.
    pub fn on_tick(&self) {
        self.run(|vm| vm.tick().is_ok());
        let spare = self.spare.borrow().clone();
        if let Some(spare) = spare
            && spare.tick().is_err()
        {
            self.owner.embedder.tend_soon(self.owner.id);
        }
    }

    /// A callout was answered. What was not asked for, or was asked for by a VM that is gone, is dropped.
    pub fn on_http_call_response(&self, id: CalloutId, response: HttpCallResponse) {
        self.run_caller(id, |vm| vm.http_call_response(id, response).is_ok());
    }

    /// Something happened to a gRPC callout. What was not asked for, or was asked for by a VM that is gone, is dropped.
    pub fn on_grpc_event(&self, id: CalloutId, event: GrpcEvent) {
        self.run_caller(id, |vm| vm.grpc_event(id, event).is_ok());
    }

    /// A Redis callout was answered, or failed. What was not asked for, or was asked for by a VM that is gone, is dropped.
    pub fn on_redis_reply(&self, id: CalloutId, reply: RedisReply) {
        self.run_caller(id, |vm| vm.redis_reply(id, reply).is_ok());
    }

    fn run_caller(&self, id: CalloutId, call: impl FnOnce(&Vm) -> bool) {
        let Some(vm) = self.caller(id) else { return };
        if self.stands_in(&vm) {
            self.run(call);
        } else {
            // A VM that breaks here has been dropped, counted and logged.
            call(&vm);
        }
    }

    /// A queue that the plugin registered has an entry.
    pub fn on_queue_ready(&self, queue: u32) {
        // A queue wakes a plugin whose VM broke: its entries would lie there otherwise.
        let _ = self.standing_vm();
        self.run(|vm| vm.queue_ready(queue).is_ok());
    }

    fn stands_in(&self, vm: &Rc<Vm>) -> bool {
        match &*self.slot.borrow() {
            Slot::Standing(own) | Slot::Ending(own) => Rc::ptr_eq(own, vm),
            Slot::Down | Slot::Ended => false,
        }
    }

    /// Calls the VM if one stands. A failure needs no word here: the VM has been dropped, counted and logged.
    fn run(&self, call: impl FnOnce(&Vm) -> bool) {
        let vm = match &*self.slot.borrow() {
            Slot::Standing(vm) | Slot::Ending(vm) => Rc::clone(vm),
            Slot::Down | Slot::Ended => return,
        };
        self.snapshots.borrow_mut().mark_stale();
        if call(&vm) && vm.is_done() {
            self.end(&vm);
        }
    }

    /// Names of the request headers that this plugin alone sets, lower-case. Inbound copies must be removed, also where it is off.
    pub fn owned_request_headers(&self) -> Vec<String> {
        self.owned_request_headers
            .get()
            .cloned()
            .unwrap_or_default()
    }

    /// Another plugin has taken this one's place. It serves what it has begun, and makes nothing ready any more: no spare, no snapshot. Whether
    /// it waits for a VM is no concern of health checks from here on.
    pub fn retire(&self) {
        self.is_retired.set(true);
        *self.spare.borrow_mut() = None;
        self.snapshots.borrow_mut().retire();
        self.owner.set_waiting(false);
    }

    /// Ends the plugin: `proxy_on_done`, and `proxy_on_delete` once it agrees. No VM is started from here on.
    pub fn shut_down(&self) {
        let slot = self.slot.replace(Slot::Ended);
        *self.spare.borrow_mut() = None;
        self.snapshots.take();
        self.owner.set_waiting(false);
        let Slot::Standing(vm) = slot else {
            return;
        };
        match vm.root_done() {
            Ok(true) => self.end(&vm),
            Ok(false) => *self.slot.borrow_mut() = Slot::Ending(vm),
            Err(_) => {}
        }
    }

    /// Ends the plugin without asking it: what its VMs hold is refused, as if they had broken. Neighbours in the same VM lose it too.
    pub fn abandon(&self) {
        *self.spare.borrow_mut() = None;
        self.snapshots.take();
        self.owner.set_waiting(false);
        let of_exchanges = self.noted.take();
        let slot = self.slot.replace(Slot::Ended);
        if let Slot::Standing(vm) | Slot::Ending(vm) = slot {
            vm.abandon();
        }
        for vm in of_exchanges.iter().filter_map(Weak::upgrade) {
            vm.abandon();
        }
    }

    /// Whether it has ended, and agreed to it, or broke before it could.
    pub fn has_ended(&self) -> bool {
        match &*self.slot.borrow() {
            Slot::Ending(vm) => vm.is_broken(),
            Slot::Ended => true,
            Slot::Standing(_) | Slot::Down => false,
        }
    }

    fn end(&self, vm: &Vm) {
        // A VM that breaks here has been dropped already.
        let _ = vm.root_delete();
        self.owner.embedder.cancel_calls(self.owner.id);
        self.owner.embedder.set_tick_period(self.owner.id, None);
        *self.slot.borrow_mut() = Slot::Ended;
    }

    /// What was counted; may be read by any thread.
    pub fn stats(&self) -> Arc<PluginStats> {
        Arc::clone(&self.owner.stats)
    }

    /// Has `recorder` see what the VM does that stands now, until it goes: exchanges with VMs of their own ([`Isolation::Request`]) are not seen.
    /// `false` where none stands. It costs a branch a callback and a hostcall where there is none.
    pub fn record(&self, recorder: Rc<dyn Recorder>) -> bool {
        self.standing_vm().is_ok_and(|vm| vm.record(recorder))
    }

    /// Its id.
    pub fn id(&self) -> PluginId {
        self.owner.id
    }

    /// Its specification.
    pub fn spec(&self) -> &PluginSpec {
        &self.owner.spec
    }

    /// Its module.
    pub fn module(&self) -> &Module {
        &self.module
    }

    /// Whether a VM stands, or can be started now. For health checks; starts none.
    pub fn is_ready(&self) -> bool {
        !matches!(&*self.slot.borrow(), Slot::Down | Slot::Ended)
    }

    pub(crate) fn stats_ref(&self) -> &PluginStats {
        &self.owner.stats
    }

    pub(crate) fn embedder(&self) -> &dyn Embedder {
        self.owner.embedder.as_ref()
    }

    pub(crate) fn callbacks(&self) -> Callbacks {
        self.module.callbacks()
    }

    /// Whether it takes part in exchanges at all: a plugin of ticks and queues needs no stream contexts.
    pub(crate) fn has_streams(&self) -> bool {
        let of_streams = |callback: &&Callback| {
            (Callback::RequestHeaders as u8..=Callback::ResponseTrailers as u8)
                .contains(&(**callback as u8))
                || **callback == Callback::Log
        };
        Callback::ALL
            .iter()
            .filter(of_streams)
            .any(|callback| self.callbacks().contains(*callback))
    }

    /// What 1 from its headers callbacks means: headers held alone, or all.
    pub(crate) fn stops_headers_alone(&self) -> bool {
        let by_module = self.module.abi_version() == AbiVersion::V0_2_100
            || self.module.metadata().is_some_and(|it| it.awaits_body);
        self.spec()
            .allow_on_headers_stop_iteration
            .unwrap_or(by_module)
    }

    /// Whether it takes part in TCP connections at all.
    pub(crate) fn has_connections(&self) -> bool {
        let all = [
            Callback::NewConnection,
            Callback::DownstreamData,
            Callback::UpstreamData,
            Callback::DownstreamConnectionClose,
            Callback::UpstreamConnectionClose,
            Callback::Log,
        ];
        all.iter()
            .any(|callback| self.callbacks().contains(*callback))
    }
}

fn owned_headers(names: &[u8]) -> Vec<String> {
    let names = names
        .split(|byte| *byte == 0)
        .map(<[u8]>::to_ascii_lowercase);
    names
        .filter(|name| check_name(name).is_ok())
        .filter_map(|name| String::from_utf8(name).ok())
        .collect()
}
