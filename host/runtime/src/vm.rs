//! One VM: an instance of a module, started and configured for one plugin on one worker.
//!
//! Invariant: a VM whose callback failed is dropped before [`Vm::enter`] returns. Nothing can enter it again; its streams are marked
//! broken and woken; its callouts and its timer are gone.

mod grpc;
mod tcp;

use std::{cell::RefCell, rc::Rc};

use bytes::Bytes;
use wasmtime::{AsContextMut as _, Store};

use crate::{
    abi::{Action, Callback, Callbacks, LogLevel, TrapKind},
    callout::{Answer, CalloutId, HttpCallResponse},
    context::{ROOT_CONTEXT, StreamContext},
    exports::{Exports, Phase, call_one, function},
    fields::Fields as _,
    limits::LATENCY_SAMPLING,
    module::Module,
    state::{Ended, Mode, Owner, VmState, trap_kind},
};

/// The VM broke in this callback, or had broken before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Broken;

/// Why a VM did not come to stand.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartFailure {
    /// No memory, or no place in the pools.
    #[error("cannot instantiate: {0}")]
    Instantiate(String),
    /// It trapped.
    #[error("{callback} failed: {}", kind.as_str())]
    Trap {
        /// The export that failed.
        callback: &'static str,
        /// How.
        kind: TrapKind,
    },
    /// `proxy_on_vm_start` answered false.
    #[error("proxy_on_vm_start refused")]
    VmStartRefused,
    /// `proxy_on_configure` answered false.
    #[error("proxy_on_configure refused the configuration")]
    ConfigurationRefused,
}

struct Live {
    store: Store<VmState>,
    exports: Exports,
}

pub(crate) struct Vm {
    owner: Owner,
    live: RefCell<Option<Live>>,
}

impl Vm {
    /// Instantiates, starts and configures, in Envoy's order. Error lines that the plugin logged meanwhile come with a failure.
    pub(crate) fn start(
        module: &Module,
        owner: Owner,
    ) -> Result<Rc<Self>, (StartFailure, Vec<String>)> {
        let mut store = Store::new(
            module.instance().module().engine(),
            VmState::new(owner.clone(), module.abi_version()),
        );
        let result = Self::bring_up(module, &mut store, &owner);
        let log = store.data_mut().start_log.take().unwrap_or_default();
        match result {
            Ok(exports) => Ok(Rc::new(Self {
                owner,
                live: RefCell::new(Some(Live { store, exports })),
            })),
            Err(failure) => {
                // What it began while it started ends with it.
                owner.embedder.cancel_calls(owner.id);
                owner.embedder.set_tick_period(owner.id, None);
                owner.stats.set_memory_bytes(0);
                Err((failure, log))
            }
        }
    }

    fn bring_up(
        module: &Module,
        store: &mut Store<VmState>,
        owner: &Owner,
    ) -> Result<Exports, StartFailure> {
        store.limiter(|state| &mut state.limiter);
        store.epoch_deadline_callback(|mut context| {
            let state = context.data_mut();
            state.deadline.check(state.owner.embedder.as_ref())
        });
        store.set_epoch_deadline(1);
        let instance = module
            .instance()
            .instantiate(store.as_context_mut())
            .map_err(|error| StartFailure::Instantiate(format!("{error:#}")))?;
        let memory = instance.get_memory(&mut *store, "memory");
        let allocate = ["malloc", "proxy_on_memory_allocate"]
            .iter()
            .find_map(|name| function(&instance, store, name));
        let state = store.data_mut();
        state.memory = memory;
        state.allocate = allocate.map(Rc::new);

        if let Some(initialize) = function::<(), ()>(&instance, store, "_initialize") {
            begin(store, owner, Callback::VmStart, "_initialize", |store| {
                initialize.call(store, ())
            })?;
            if let Some(main) = function::<(u32, u32), u32>(&instance, store, "main") {
                begin(store, owner, Callback::VmStart, "main", |store| {
                    main.call(store, (0, 0))
                })?;
            } else if let Some(main) = function::<(), u32>(&instance, store, "__main_void") {
                begin(store, owner, Callback::VmStart, "__main_void", |store| {
                    main.call(store, ())
                })?;
            }
        } else if let Some(start) = function::<(), ()>(&instance, store, "_start") {
            begin(store, owner, Callback::VmStart, "_start", |store| {
                start.call(store, ())
            })?;
        }
        store.data_mut().mode = Mode::Running;

        let exports = Exports::find(&instance, store, module.abi_version());
        if let Some(create) = &exports.context_create {
            begin(
                store,
                owner,
                Callback::VmStart,
                Callback::ContextCreate.name(),
                |store| create.call(store, (ROOT_CONTEXT, 0)),
            )?;
        }
        let size = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if let Some(vm_start) =
            function::<(u32, u32), u32>(&instance, store, Callback::VmStart.name())
        {
            let arguments = (ROOT_CONTEXT, size(&owner.spec.vm_configuration));
            let callback = Callback::VmStart;
            if begin(store, owner, callback, callback.name(), |store| {
                vm_start.call(store, arguments)
            })? == 0
            {
                return Err(StartFailure::VmStartRefused);
            }
        }
        if let Some(configure) =
            function::<(u32, u32), u32>(&instance, store, Callback::Configure.name())
        {
            let arguments = (ROOT_CONTEXT, size(&owner.spec.configuration));
            let callback = Callback::Configure;
            if begin(store, owner, callback, callback.name(), |store| {
                configure.call(store, arguments)
            })? == 0
            {
                return Err(StartFailure::ConfigurationRefused);
            }
        }
        store.data_mut().end();
        Ok(exports)
    }

    /// Whether nothing can enter it any more.
    pub(crate) fn is_broken(&self) -> bool {
        // While a callback runs it cannot be broken yet.
        self.live.try_borrow().is_ok_and(|live| live.is_none())
    }

    /// Runs one callback. On failure the VM is gone when this returns.
    fn enter<R>(
        &self,
        callback: Callback,
        context: Option<&StreamContext>,
        run: impl FnOnce(&mut Store<VmState>, &Exports) -> wasmtime::Result<R>,
    ) -> Result<R, Broken> {
        // Taken only if the embedder called back from within a hostcall, against its contract: that call fails, this VM goes on.
        let mut guard = self.live.try_borrow_mut().map_err(|_| Broken)?;
        let live = guard.as_mut().ok_or(Broken)?;
        let stats = &self.owner.stats;
        let sampled = stats
            .count_call(callback)
            .is_multiple_of(u64::from(LATENCY_SAMPLING));
        let began = if sampled {
            self.owner.embedder.monotonic_ns()
        } else {
            0
        };
        live.store.data_mut().begin(callback, context);
        live.store.set_epoch_deadline(1);
        let result = run(&mut live.store, &live.exports);
        let state = live.store.data_mut();
        state.end();
        if sampled {
            stats.time_call(
                callback,
                self.owner.embedder.monotonic_ns().saturating_sub(began),
            );
        }
        match result {
            Ok(value) => {
                if !state.wakes.is_empty() {
                    let wakes = std::mem::take(&mut state.wakes);
                    drop(guard);
                    wakes
                        .into_iter()
                        .for_each(|token| self.owner.embedder.wake(token));
                }
                Ok(value)
            }
            Err(error) => {
                let live = guard.take();
                drop(guard);
                self.bury(live, callback.name(), &error, context);
                Err(Broken)
            }
        }
    }

    /// What follows a failure: streams marked and woken, callouts and timer ended, memory freed.
    fn bury(
        &self,
        live: Option<Live>,
        callback: &'static str,
        error: &wasmtime::Error,
        context: Option<&StreamContext>,
    ) {
        let Owner {
            id,
            spec,
            embedder,
            stats,
            ..
        } = &self.owner;
        let kind = trap_kind(error);
        stats.count_trap(kind);
        stats.set_memory_bytes(0);
        let message = format!(
            "{callback} failed: {}; the vm is dropped: {error:#}",
            kind.as_str()
        );
        embedder.log(spec, LogLevel::Error, message.as_bytes());
        let Some(mut live) = live else { return };
        let own = context.map(|context| context.stream.token);
        let state = live.store.data_mut();
        let mut wakes = std::mem::take(&mut state.wakes);
        for context in state.contexts.drain() {
            if let Ok(cell) = context.cell() {
                cell.broken.set(true);
            }
            wakes.push(context.stream.token);
        }
        drop(live);
        embedder.cancel_calls(*id);
        embedder.set_tick_period(*id, None);
        wakes
            .into_iter()
            .filter(|token| Some(*token) != own)
            .for_each(|token| embedder.wake(token));
    }

    /// Makes the context of one filter in one exchange.
    pub(crate) fn create_context(&self, context: &StreamContext) -> Result<(), Broken> {
        self.enter(Callback::ContextCreate, Some(context), |store, exports| {
            let id = store
                .data_mut()
                .contexts
                .insert(context.clone())
                .ok_or(Ended(TrapKind::Other))?;
            if let Ok(cell) = context.cell() {
                cell.context.set(id);
            }
            match &exports.context_create {
                Some(create) => create.call(store, (id, ROOT_CONTEXT)),
                None => Ok(()),
            }
        })
    }

    /// Runs a phase callback: `size` is the number of headers, or the bytes of the body.
    pub(crate) fn phase(
        &self,
        callback: Callback,
        context: &StreamContext,
        size: usize,
        end_of_stream: bool,
    ) -> Result<Action, Broken> {
        let id = context.cell().map_or(0, |cell| cell.context.get());
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        let number = self.enter(callback, Some(context), |store, exports| {
            match exports.phase(callback) {
                Some(Phase::Three(function)) => {
                    function.call(store, (id, size, u32::from(end_of_stream)))
                }
                Some(Phase::Two(function)) => function.call(store, (id, size)),
                None => Ok(0),
            }
        })?;
        Ok(match callback {
            Callback::RequestHeaders | Callback::ResponseHeaders => Action::of_headers(number),
            Callback::RequestBody | Callback::ResponseBody => Action::of_body(number),
            Callback::DownstreamData | Callback::UpstreamData => Action::of_tcp(number),
            _ => Action::of_trailers(number),
        })
    }

    pub(crate) fn log(&self, context: &StreamContext) -> Result<(), Broken> {
        let id = context.cell().map_or(0, |cell| cell.context.get());
        self.enter(Callback::Log, Some(context), |store, exports| {
            call_one(&exports.log, store, id)
        })
    }

    /// Stream contexts end at once, whatever `proxy_on_done` answers, as in Envoy. A TCP connection logs between the two.
    pub(crate) fn finish(
        &self,
        context: &StreamContext,
        callbacks: Callbacks,
    ) -> Result<(), Broken> {
        let id = context.cell().map_or(0, |cell| cell.context.replace(0));
        if callbacks.contains(Callback::Done) {
            self.enter(
                Callback::Done,
                Some(context),
                |store, exports| match &exports.done {
                    Some(done) => done.call(store, id).map(|_| ()),
                    None => Ok(()),
                },
            )?;
        }
        if context.stream.is_tcp && callbacks.contains(Callback::Log) {
            self.enter(Callback::Log, Some(context), |store, exports| {
                call_one(&exports.log, store, id)
            })?;
        }
        if callbacks.contains(Callback::Delete) {
            self.enter(Callback::Delete, Some(context), |store, exports| {
                call_one(&exports.delete, store, id)
            })?;
        }
        if let Ok(mut live) = self.live.try_borrow_mut()
            && let Some(live) = live.as_mut()
        {
            live.store.data_mut().contexts.remove(id);
        }
        Ok(())
    }

    pub(crate) fn tick(&self) -> Result<(), Broken> {
        self.enter(Callback::Tick, None, |store, exports| {
            call_one(&exports.tick, store, ROOT_CONTEXT)
        })
    }

    pub(crate) fn queue_ready(&self, queue: u32) -> Result<(), Broken> {
        self.enter(
            Callback::QueueReady,
            None,
            |store, exports| match &exports.queue_ready {
                Some(function) => function.call(store, (ROOT_CONTEXT, queue)),
                None => Ok(()),
            },
        )
    }

    /// An answer to a callout of another VM, or one that came twice, is dropped.
    pub(crate) fn http_call_response(
        &self,
        id: CalloutId,
        response: HttpCallResponse,
    ) -> Result<(), Broken> {
        let expected = match self.live.try_borrow_mut() {
            Ok(mut live) => live.as_mut().is_some_and(|live| {
                let calls = &mut live.store.data_mut().root.calls;
                let position = calls.iter().position(|call| *call == id.0);
                position
                    .map(|position| calls.swap_remove(position))
                    .is_some()
            }),
            Err(_) => false,
        };
        if !expected {
            return Ok(());
        }
        let answer = Rc::new(Answer::from(response));
        let size = |size: usize| u32::try_from(size).unwrap_or(u32::MAX);
        let arguments = (
            ROOT_CONTEXT,
            id.0,
            size(answer.headers.len()),
            size(answer.body.len()),
            size(answer.trailers.len()),
        );
        self.enter(Callback::HttpCallResponse, None, |store, exports| {
            let Some(function) = &exports.http_call_response else {
                return Ok(());
            };
            let root = &mut store.data_mut().root;
            if let Some((status, message)) = answer.failure {
                root.status = (status as u32, Bytes::from_static(message.as_bytes()));
            }
            root.answer = Some(answer);
            let result = function.call(&mut *store, arguments);
            let root = &mut store.data_mut().root;
            root.answer = None;
            // Envoy keeps the number and forgets the text.
            root.status.1.clear();
            result
        })
    }

    /// Asks the plugin to end; false means *not yet*, until it calls `proxy_done`.
    pub(crate) fn root_done(&self) -> Result<bool, Broken> {
        self.enter(Callback::Done, None, |store, exports| {
            let Some(done) = &exports.done else {
                return Ok(true);
            };
            store.data_mut().root.done_pending = true;
            let is_done = done.call(&mut *store, ROOT_CONTEXT)? != 0;
            Ok(is_done || store.data().root.done)
        })
    }

    pub(crate) fn root_delete(&self) -> Result<(), Broken> {
        self.enter(Callback::Delete, None, |store, exports| {
            call_one(&exports.delete, store, ROOT_CONTEXT)
        })
    }

    /// Whether `proxy_done` was called since the plugin was asked to end.
    pub(crate) fn is_done(&self) -> bool {
        self.live.try_borrow().is_ok_and(|live| {
            live.as_ref()
                .is_some_and(|live| live.store.data().root.done)
        })
    }

    /// A property that the plugin set on its own context.
    pub(crate) fn root_property(&self, path: &[u8]) -> Option<Bytes> {
        let live = self.live.try_borrow().ok()?;
        live.as_ref()?
            .store
            .data()
            .root
            .properties
            .get(path)
            .cloned()
    }
}

/// Runs one export while the VM starts.
fn begin<R>(
    store: &mut Store<VmState>,
    owner: &Owner,
    callback: Callback,
    name: &'static str,
    run: impl FnOnce(&mut Store<VmState>) -> wasmtime::Result<R>,
) -> Result<R, StartFailure> {
    let began = owner.embedder.monotonic_ns();
    store.data_mut().begin(callback, None);
    store.set_epoch_deadline(1);
    let result = run(store);
    owner.stats.count_call(callback);
    owner.stats.time_call(
        callback,
        owner.embedder.monotonic_ns().saturating_sub(began),
    );
    result.map_err(|error| {
        let kind = trap_kind(&error);
        owner.stats.count_trap(kind);
        owner.embedder.log(
            &owner.spec,
            LogLevel::Error,
            format!("{name} failed: {}: {error:#}", kind.as_str()).as_bytes(),
        );
        StartFailure::Trap {
            callback: name,
            kind,
        }
    })
}
