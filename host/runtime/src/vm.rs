//! One VM: an instance of a module on one worker, started and configured for one plugin, or for several that share it.
//!
//! Invariant: a VM whose callback failed is dropped before [`Vm::enter`] returns. Nothing can enter it again; its streams are marked
//! broken and woken; its callouts and its timer are gone.

mod grpc;
mod image;
mod redis;
mod start;
mod tcp;

use std::{
    cell::RefCell,
    rc::{Rc, Weak},
};

use bytes::Bytes;
use wasmtime::{Global, Instance, Store};

pub(crate) use image::{Image, Initial};
pub(crate) use start::Failed;
pub use start::StartFailure;

use crate::{
    abi::{Action, Callback, Callbacks, LogLevel, TrapKind},
    bounds::{Ended, trap_kind},
    callout::{Answer, CalloutId, HttpCallResponse},
    context::StreamContext,
    exports::{Exports, Phase, call_one},
    fields::Fields as _,
    limits::LATENCY_SAMPLING,
    recorder::Recorder,
    state::{Owner, Role, Root, VmState},
};

/// The VM broke in this callback, or had broken before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Broken;

pub(crate) struct Live {
    store: Store<VmState>,
    exports: Exports,
    instance: Instance,
    /// What it can change beside its memory, where its writes are marked; in the order of [`Initial::globals`].
    globals: Vec<Global>,
}

/// Where a VM stands, until it breaks.
pub(crate) type Shell = RefCell<Option<Live>>;

/// A plugin's part in a VM: as a rule all of it.
pub(crate) struct Vm {
    owner: Rc<Owner>,
    /// Its root context.
    root: u32,
    shell: Rc<Shell>,
    /// Where it waits for the next exchange after its own.
    image: Weak<Image>,
}

impl Drop for Vm {
    /// What served an exchange is kept for the next, if it can be made new. A VM that broke is gone already.
    fn drop(&mut self) {
        let Some(image) = self.image.upgrade() else {
            return;
        };
        let taken = self.shell.try_borrow_mut();
        if let Some(live) = taken.ok().and_then(|mut live| live.take()) {
            image.keep(live);
        }
    }
}

impl Vm {
    /// Where it stands, for neighbours.
    pub(crate) fn shell(&self) -> &Rc<Shell> {
        &self.shell
    }

    /// From a spare becomes the standing one.
    pub(crate) fn stand(&self) {
        let Ok(mut live) = self.shell.try_borrow_mut() else {
            return;
        };
        let Some(live) = live.as_mut() else { return };
        let state = live.store.data_mut();
        state.role = Role::Standing;
        if let Some(root) = state.root_mut(self.root) {
            let period = root.tick_period;
            self.owner.embedder.set_tick_period(self.owner.id, period);
        }
    }

    /// Looks at a VM that nothing runs in.
    pub(crate) fn inspect<R>(
        &self,
        look: impl FnOnce(&mut Store<VmState>, &Instance) -> R,
    ) -> Option<R> {
        let mut live = self.shell.try_borrow_mut().ok()?;
        live.as_mut()
            .map(|live| look(&mut live.store, &live.instance))
    }

    /// Has `recorder` see what happens in it from now on; whether it stands.
    pub(crate) fn record(&self, recorder: Rc<dyn Recorder>) -> bool {
        let put = |store: &mut Store<VmState>, _: &Instance| {
            store.data_mut().recorder = Some(recorder);
        };
        self.inspect(put).is_some()
    }

    fn root<R>(&self, look: impl FnOnce(&mut Root) -> R) -> Option<R> {
        self.inspect(|store, _| store.data_mut().root_mut(self.root).map(look))
            .flatten()
    }

    /// Whether nothing can enter it any more.
    pub(crate) fn is_broken(&self) -> bool {
        // While a callback runs it cannot be broken yet.
        self.shell.try_borrow().is_ok_and(|live| live.is_none())
    }

    /// Runs one callback. On failure the VM is gone when this returns.
    fn enter<R>(
        &self,
        callback: Callback,
        context: Option<&StreamContext>,
        run: impl FnOnce(&mut Store<VmState>, &Exports) -> wasmtime::Result<R>,
    ) -> Result<R, Broken> {
        // Taken only if the embedder called back from within a hostcall, against its contract: that call fails, this VM goes on.
        let mut guard = self.shell.try_borrow_mut().map_err(|_| Broken)?;
        let live = guard.as_mut().ok_or(Broken)?;
        let stats = &self.owner.stats;
        let sampled = stats
            .count_call(callback)
            .is_multiple_of(u64::from(LATENCY_SAMPLING));
        let recorder = live.store.data().recorder.clone();
        let is_timed = sampled || recorder.is_some();
        let fuel = recorder.as_ref().and_then(|_| live.store.get_fuel().ok());
        let began = if is_timed {
            self.owner.embedder.monotonic_ns()
        } else {
            0
        };
        live.store.data_mut().begin(callback, self.root, context);
        live.store.set_epoch_deadline(1);
        let result = run(&mut live.store, &live.exports);
        if is_timed {
            let ns = self.owner.embedder.monotonic_ns().saturating_sub(began);
            if sampled {
                stats.time_call(callback, ns);
            }
            if let Some(recorder) = recorder {
                let left = live.store.get_fuel().ok();
                let used = fuel.zip(left).map(|(fuel, left)| fuel.saturating_sub(left));
                recorder.callback(callback, ns, used);
            }
        }
        let state = live.store.data_mut();
        state.end();
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
                let kind = trap_kind(&error);
                stats.count_trap(kind);
                let message = format!(
                    "{} failed: {}; the vm is dropped: {error:#}",
                    callback.name(),
                    kind.as_str()
                );
                let owner = &self.owner;
                owner
                    .embedder
                    .log(&owner.spec, LogLevel::Error, message.as_bytes());
                self.bury(live, context);
                Err(Broken)
            }
        }
    }

    /// Drops the VM, whatever it holds, as if it had broken.
    pub(crate) fn abandon(&self) {
        let taken = self.shell.try_borrow_mut();
        let live = taken.ok().and_then(|mut live| live.take());
        self.bury(live, None);
    }

    /// What follows a failure: streams marked and woken, timers ended, memory freed; callouts end with the VM's state.
    fn bury(&self, live: Option<Live>, context: Option<&StreamContext>) {
        let embedder = &self.owner.embedder;
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
        if state.role == Role::Standing {
            for (owner, _) in state.roots() {
                owner.embedder.set_tick_period(owner.id, None);
                owner.embedder.tend_soon(owner.id);
            }
        }
        drop(live);
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
                cell.root.set(self.root);
            }
            match &exports.context_create {
                Some(create) => create.call(store, (id, self.root)),
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
        self.inspect(|store, _| store.data_mut().contexts.remove(id));
        Ok(())
    }

    pub(crate) fn tick(&self) -> Result<(), Broken> {
        self.enter(Callback::Tick, None, |store, exports| {
            call_one(&exports.tick, store, self.root)
        })
    }

    pub(crate) fn queue_ready(&self, queue: u32) -> Result<(), Broken> {
        self.enter(
            Callback::QueueReady,
            None,
            |store, exports| match &exports.queue_ready {
                Some(function) => function.call(store, (self.root, queue)),
                None => Ok(()),
            },
        )
    }

    /// Whether it waits for the answer to this callout.
    pub(crate) fn awaits(&self, id: CalloutId) -> bool {
        self.root(|root| root.calls.iter().any(|(call, _)| *call == id.0) || root.grpc.is_known(id))
            == Some(true)
    }

    /// Callouts under way.
    pub(crate) fn calls(&self) -> usize {
        self.root(|root| root.callouts().count())
            .unwrap_or_default()
    }

    /// An answer to a callout of another VM, or one that came twice, is dropped.
    pub(crate) fn http_call_response(
        &self,
        id: CalloutId,
        response: HttpCallResponse,
    ) -> Result<(), Broken> {
        let expected = self.root(|root| {
            let position = root.calls.iter().position(|(call, _)| *call == id.0);
            position.map(|position| root.calls.swap_remove(position))
        });
        if expected.flatten().is_none() {
            return Ok(());
        }
        let answer = Rc::new(Answer::from(response));
        let size = |size: usize| u32::try_from(size).unwrap_or(u32::MAX);
        let arguments = (
            self.root,
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
            let is_done = done.call(&mut *store, self.root)? != 0;
            Ok(is_done || store.data().root.done)
        })
    }

    pub(crate) fn root_delete(&self) -> Result<(), Broken> {
        self.enter(Callback::Delete, None, |store, exports| {
            call_one(&exports.delete, store, self.root)
        })
    }

    /// Whether `proxy_done` was called since the plugin was asked to end.
    pub(crate) fn is_done(&self) -> bool {
        self.root(|root| root.done) == Some(true)
    }

    /// A property that the plugin set on its own context.
    pub(crate) fn root_property(&self, path: &[u8]) -> Option<Bytes> {
        self.root(|root| root.properties.get(path).cloned())
            .flatten()
    }
}
