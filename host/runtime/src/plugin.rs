//! A plugin on one worker: its VM, and what happens when that breaks.
//!
//! A VM that broke is replaced when the next request (or anything else) needs one, at once and without a wait: a client that can
//! make a control trap must not be able to switch it off. Only where the start itself fails do we back off, with jitter.

use std::{
    cell::{OnceCell, RefCell},
    fmt,
    rc::Rc,
    sync::Arc,
};

use crate::{
    abi::{Callback, Callbacks, LogLevel},
    callout::{CalloutId, HttpCallResponse},
    embedder::Embedder,
    fields::check_name,
    grpc::GrpcEvent,
    limits::{BACKOFF_MS_MAX, BACKOFF_MS_MIN},
    module::Module,
    spec::{PluginId, PluginSpec},
    state::{Owner, Shared},
    stats::PluginStats,
    vm::{StartFailure, Vm},
};

/// The property under which a plugin, while it is configured, names the request headers that it alone sets: lower-case, joined by NUL.
const OWNED_REQUEST_HEADERS: &[u8] = b"portcullis.owned_request_headers";

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

/// A configured module on one worker.
pub struct Plugin {
    owner: Owner,
    module: Arc<Module>,
    slot: RefCell<Slot>,
    owned_request_headers: OnceCell<Vec<String>>,
}

enum Slot {
    Standing(Rc<Vm>),
    /// The last start failed, and the next is not tried before this time.
    Waiting {
        until_ns: u64,
        failures: u32,
    },
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
        let namespace = shared.data.namespace(&spec.vm_id);
        let owner = Owner {
            id,
            spec,
            shared,
            namespace,
            embedder,
            stats: Arc::new(PluginStats::default()),
            callout_ids: Rc::default(),
        };
        let vm = Vm::start(&module, owner.clone()).map_err(|(failure, log)| StartError {
            plugin: owner.spec.name.clone(),
            failure,
            log,
        })?;
        owner.stats.count_start();
        let owned = vm
            .root_property(OWNED_REQUEST_HEADERS)
            .map(|names| owned_headers(&names))
            .unwrap_or_default();
        Ok(Rc::new(Self {
            owner,
            module,
            slot: RefCell::new(Slot::Standing(vm)),
            owned_request_headers: OnceCell::from(owned),
        }))
    }

    /// The plugin's timer.
    pub fn on_tick(&self) {
        self.run(|vm| vm.tick().is_ok());
    }

    /// A callout was answered. What was not asked for, or was asked for by a VM that broke, is dropped.
    pub fn on_http_call_response(&self, id: CalloutId, response: HttpCallResponse) {
        self.run(|vm| vm.http_call_response(id, response).is_ok());
    }

    /// Something happened to a gRPC callout. What was not asked for, or was asked for by a VM that broke, is dropped.
    pub fn on_grpc_event(&self, id: CalloutId, event: GrpcEvent) {
        self.run(|vm| vm.grpc_event(id, event).is_ok());
    }

    /// A queue that the plugin registered has an entry.
    pub fn on_queue_ready(&self, queue: u32) {
        // A queue wakes a plugin whose VM broke: its entries would lie there otherwise.
        let _ = self.vm();
        self.run(|vm| vm.queue_ready(queue).is_ok());
    }

    /// Calls the VM if one stands. A failure needs no word here: the VM has been dropped, counted and logged.
    fn run(&self, call: impl FnOnce(&Vm) -> bool) {
        let vm = match &*self.slot.borrow() {
            Slot::Standing(vm) | Slot::Ending(vm) => Rc::clone(vm),
            Slot::Waiting { .. } | Slot::Ended => return,
        };
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

    /// Ends the plugin: `proxy_on_done`, and `proxy_on_delete` once it agrees. No VM is started from here on.
    pub fn shut_down(&self) {
        let Slot::Standing(vm) = self.slot.replace(Slot::Ended) else {
            return;
        };
        match vm.root_done() {
            Ok(true) => self.end(&vm),
            Ok(false) => *self.slot.borrow_mut() = Slot::Ending(vm),
            Err(_) => {}
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
        matches!(&*self.slot.borrow(), Slot::Standing(_) | Slot::Ending(_))
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

    /// A VM that stands; where the last one broke, a new one is started, unless starts have failed a moment ago.
    pub(crate) fn vm(&self) -> Option<Rc<Vm>> {
        let failures = match &*self.slot.borrow() {
            Slot::Standing(vm) | Slot::Ending(vm) if !vm.is_broken() => return Some(Rc::clone(vm)),
            Slot::Standing(_) => 0,
            Slot::Waiting { until_ns, .. } if self.owner.embedder.monotonic_ns() < *until_ns => {
                return None;
            }
            Slot::Waiting { failures, .. } => *failures,
            Slot::Ending(_) | Slot::Ended => return None,
        };
        match Vm::start(&self.module, self.owner.clone()) {
            Ok(vm) => {
                self.owner.stats.count_start();
                *self.slot.borrow_mut() = Slot::Standing(Rc::clone(&vm));
                Some(vm)
            }
            Err((failure, _)) => {
                self.owner.stats.count_start_failure();
                let wait_ms = self.wait_ms(failures);
                let message = format!("no vm: {failure}; next start in {wait_ms} ms");
                self.owner
                    .embedder
                    .log(&self.owner.spec, LogLevel::Error, message.as_bytes());
                let until_ns = self
                    .owner
                    .embedder
                    .monotonic_ns()
                    .saturating_add(wait_ms.saturating_mul(1_000_000));
                *self.slot.borrow_mut() = Slot::Waiting {
                    until_ns,
                    failures: failures.saturating_add(1),
                };
                None
            }
        }
    }

    /// Doubles with each failure, ± 25 % so that workers do not start in step.
    fn wait_ms(&self, failures: u32) -> u64 {
        let base = BACKOFF_MS_MIN
            .saturating_mul(1 << failures.min(10))
            .min(BACKOFF_MS_MAX);
        let mut random = [0; 1];
        self.owner.embedder.random(&mut random);
        base * (75 + u64::from(random[0]) * 50 / 255) / 100
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
