//! Snapshots: what a plugin's VM is after it was configured, as a module of its own, so that a VM for one exchange begins there.
//!
//! The *root VM* of a plugin with [`Isolation::Request`](crate::Isolation::Request) is started and configured like any other, and takes ticks,
//! queues and the answers to its callouts. Its memory and globals are copied on the worker and made into a module by
//! [`wasmtime_wizer`], which is compiled on a thread that the embedder lends; meanwhile the last snapshot serves.
//!
//! Invariants:
//! - A snapshot is begun only after the root VM has run since the last one, at most once in [`SNAPSHOT_PERIOD_MS`], and only while the root
//!   VM waits for no callout: whoever awakes from it waits for nothing that will never come.
//! - A root VM that was ever given random bytes is not frozen: what it made of them (seeds, keys, a generator's state) would be the same in
//!   every VM. Its plugin is configured for each exchange instead.
//! - No exchange ever runs in a root VM, so none leaves anything in a snapshot.
//! - Snapshots stay in this process's memory: they are never serialized.

use std::{
    pin::pin,
    rc::Rc,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    task::{Context, Poll, Waker},
};

use wasmtime::{InstancePre, Linker, Val};
use wasmtime_wizer::{InstanceState, SnapshotVal, ValType, Wizer};

use crate::{
    abi::LogLevel,
    cards,
    embedder::SnapshotWork,
    imports::{self, UnknownImports},
    limits::{SNAPSHOT_BYTES_MAX, SNAPSHOT_PERIOD_MS},
    module::{INSTRUMENTED, LoadError, Module, Origin},
    module_cache::ModuleCache,
    runtime::Runtime,
    state::{Owner, Template, VmState},
    vm::{Image, Initial, Vm},
};

impl Runtime {
    /// Loads a module whose plugins get a VM for each exchange, made from snapshots where that can be done. As [`Runtime::load_with`] else; a
    /// module that cannot be snapshotted (one that changes its tables, say) is loaded all the same.
    pub fn load_for_snapshots(
        &self,
        wasm: &[u8],
        cache: &dyn ModuleCache,
        unknown: UnknownImports,
    ) -> Result<Arc<Module>, LoadError> {
        // Its own checks come first, so that what is no module is refused in the same words.
        Module::metadata_of(wasm)?;
        let instrumented = match cards::check(wasm) {
            Ok(()) => Wizer::new()
                .instrument(wasm)
                .map_err(|error| format!("{error:#}")),
            // What wizer has not heard of may not be given to it: it panics at the import of a tag.
            Err(error) => Err(error.message().to_owned()),
        };
        match instrumented {
            Ok((_, code)) => {
                let origin = Origin::Instrumented(wasm.into());
                self.load_as(wasm, &code, origin, cache, unknown)
            }
            Err(reason) => self.load_as(wasm, wasm, Origin::Unfit(reason), cache, unknown),
        }
    }
}

/// The snapshots of one plugin on one worker.
#[derive(Default)]
pub(crate) struct Snapshots {
    ready: Option<Rc<Image>>,
    making: Option<Making>,
    /// The root VM ran since the last one was begun.
    is_stale: bool,
    /// None is begun before this time.
    next_ns: u64,
    /// None is made any more; why was logged.
    is_given_up: bool,
}

struct Making {
    template: Template,
    job: Arc<Job>,
}

/// What the lent thread works on. It belongs to the plugin, so that one which has ended frees the copy at once, however many wait before it.
struct Job {
    wasm: Arc<[u8]>,
    linker: Arc<Linker<VmState>>,
    unknown: UnknownImports,
    frozen: Mutex<Option<Frozen>>,
    result: OnceLock<Result<Made, String>>,
}

/// A snapshot as a module; and what its VMs can be made new from, unless that is not to be had of this module.
type Made = (InstancePre<VmState>, Option<Initial>);

impl Job {
    fn run(&self) {
        let frozen = self.frozen.lock();
        let frozen = frozen.unwrap_or_else(PoisonError::into_inner).take();
        if let Some(frozen) = frozen {
            let made = make(&self.wasm, frozen, &self.linker, self.unknown);
            // Set by nobody else.
            let _ = self.result.set(made);
        }
    }
}

impl Snapshots {
    pub(crate) fn ready(&self) -> Option<&Rc<Image>> {
        self.ready.as_ref()
    }

    /// Makes no more; what is being made is wanted no more. What is ready serves on, a VM for each exchange.
    pub(crate) fn retire(&mut self) {
        self.making = None;
        if let Some(image) = &self.ready {
            image.retire();
        }
    }

    /// The root VM has run.
    pub(crate) fn mark_stale(&mut self) {
        self.is_stale = true;
    }

    /// Takes up what was made, and begins a new one where it is due.
    pub(crate) fn tend(&mut self, module: &Module, root: Option<&Vm>, owner: &Owner) {
        self.collect(module, owner);
        if let Some(image) = &self.ready {
            image.trim();
        }
        let now_ns = owner.embedder.monotonic_ns();
        let is_due = self.ready.is_none() || self.is_stale;
        if self.is_given_up || self.making.is_some() || !is_due || now_ns < self.next_ns {
            return;
        }
        let wasm = match module.origin() {
            Origin::Instrumented(wasm) => Arc::clone(wasm),
            Origin::Plain => return self.give_up("its module was not loaded for it", owner),
            Origin::Unfit(reason) => return self.give_up(reason, owner),
        };
        let Some(root) = root.filter(|root| root.calls() == 0) else {
            return;
        };
        let (frozen, template) = match freeze(root) {
            Some(Ok(frozen)) => frozen,
            Some(Err(reason)) => return self.give_up(&reason, owner),
            None => return,
        };
        self.is_stale = false;
        self.next_ns = now_ns.saturating_add(SNAPSHOT_PERIOD_MS * 1_000_000);
        let job = Arc::new(Job {
            wasm,
            linker: Arc::clone(module.linker()),
            unknown: module.unknown(),
            frozen: Mutex::new(Some(frozen)),
            result: OnceLock::new(),
        });
        let waiting = Arc::downgrade(&job);
        self.making = Some(Making { template, job });
        owner.embedder.lend_thread(SnapshotWork::new(move || {
            // The plugin may have ended while this waited for its turn.
            if let Some(job) = waiting.upgrade() {
                job.run();
            }
        }));
    }

    fn collect(&mut self, module: &Module, owner: &Owner) {
        let Some(making) = self.making.take() else {
            return;
        };
        let Making { template, job } = making;
        // The work lets go of the job first, then of its name for it: where neither is left, it is done or was dropped.
        if Arc::weak_count(&job) > 0 || Arc::strong_count(&job) > 1 {
            self.making = Some(Making { template, job });
            return;
        }
        match Arc::into_inner(job).and_then(|job| job.result.into_inner()) {
            Some(Ok((pre, initial))) => {
                owner.stats.count_snapshot();
                let room = Arc::clone(module.idle_room());
                self.ready = Some(Rc::new(Image::new(pre, template, initial, room)));
            }
            Some(Err(reason)) => self.give_up(&reason, owner),
            // The embedder lent no thread. The next is due as if there had been none.
            None => {
                owner.stats.count_snapshot_failure();
                self.is_stale = true;
            }
        }
    }

    /// An old one must not outlive the state that it was taken of for ever.
    fn give_up(&mut self, reason: &str, owner: &Owner) {
        self.is_given_up = true;
        self.ready = None;
        owner.stats.count_snapshot_failure();
        let message = format!("no snapshot: {reason}; the plugin is configured for each request");
        owner
            .embedder
            .log(&owner.spec, LogLevel::Warn, message.as_bytes());
    }
}

/// Memory and globals of a VM that nothing runs in.
struct Frozen {
    memory: Vec<u8>,
    globals: Vec<(String, Val)>,
    /// It was asked for something that it does not have.
    is_incomplete: bool,
}

/// Copies the state of a VM, or says why that must not be done. `None` where the VM is gone.
fn freeze(vm: &Vm) -> Option<Result<(Frozen, Template), String>> {
    vm.inspect(|store, instance| {
        let state = store.data();
        if state.drew_random {
            return Err("it was given random bytes, which would be the same in every vm".into());
        }
        let template = state.template();
        let memory = state.memory.map(|memory| memory.data(&*store));
        let memory = memory.ok_or("it has no memory")?;
        if memory.len() > SNAPSHOT_BYTES_MAX {
            return Err(format!(
                "its memory has {} bytes, more than {SNAPSHOT_BYTES_MAX}",
                memory.len()
            ));
        }
        let memory = memory.to_vec();
        let exports = instance
            .exports(&mut *store)
            .filter(|export| export.name().starts_with(INSTRUMENTED));
        let globals: Vec<_> = exports
            .filter_map(|export| Some((export.name().to_owned(), export.into_global()?)))
            .collect();
        let globals = globals
            .into_iter()
            .map(|(name, global)| (name, global.get(&mut *store)))
            .collect();
        let frozen = Frozen {
            memory,
            globals,
            is_incomplete: false,
        };
        Ok((frozen, template))
    })
}

/// Makes a module of a state, and compiles it: so that it marks what it writes, if it can be.
fn make(
    wasm: &[u8],
    mut frozen: Frozen,
    linker: &Linker<VmState>,
    unknown: UnknownImports,
) -> Result<Made, String> {
    let text = |error: wasmtime::Error| format!("{error:#}");
    let wizer = Wizer::new();
    let (context, _) = wizer.instrument(wasm).map_err(text)?;
    let module = at_once(wizer.snapshot(&context, &mut frozen))
        .ok_or("the rewriting of its module waits for something")?
        .map_err(text)?;
    if frozen.is_incomplete {
        return Err("its globals are not those of its module".into());
    }
    let compiled = |wasm: &[u8]| {
        let module = wasmtime::Module::new(linker.engine(), wasm).map_err(text)?;
        module.initialize_copy_on_write_image().map_err(text)?;
        // The very same imports linked when the module was loaded.
        imports::link(linker, &module, unknown)
            .map(|(pre, _)| pre)
            .map_err(|_| "it does not link any more".to_owned())
    };
    let tracked = cards::track(&module).map_err(|reason| reason.to_string());
    // Functions at the edge of what is valid may be beyond it with the marking.
    match tracked.and_then(|tracked| compiled(&tracked)) {
        Ok(pre) => Ok((pre, Some(Initial::new(frozen.memory, frozen.globals)))),
        Err(reason) => {
            tracing::debug!(%reason, "vms of this module serve but one exchange");
            compiled(&module).map(|pre| (pre, None))
        }
    }
}

/// The result of a future that waits for nothing.
fn at_once<F: Future>(future: F) -> Option<F::Output> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => Some(result),
        Poll::Pending => None,
    }
}

impl InstanceState for Frozen {
    async fn global_get(&mut self, name: &str, _: ValType) -> SnapshotVal {
        let found = self.globals.iter().find(|(global, _)| global == name);
        match found.map(|(_, value)| value) {
            Some(Val::I32(value)) => SnapshotVal::I32(*value),
            Some(Val::I64(value)) => SnapshotVal::I64(*value),
            Some(Val::F32(bits)) => SnapshotVal::F32(*bits),
            Some(Val::F64(bits)) => SnapshotVal::F64(*bits),
            Some(Val::V128(value)) => SnapshotVal::V128(value.as_u128()),
            // Modules with globals of other types were found unfit when they were loaded.
            _ => {
                self.is_incomplete = true;
                SnapshotVal::I32(0)
            }
        }
    }

    async fn memory_contents(&mut self, _: &str, contents: impl FnOnce(&[u8]) + Send) {
        // A module has one memory, here as in `Config`.
        contents(&self.memory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_future_that_waits_has_no_result() {
        assert_eq!(at_once(async { 7 }), Some(7));
        assert_eq!(at_once(std::future::pending::<u8>()), None);
    }
}
