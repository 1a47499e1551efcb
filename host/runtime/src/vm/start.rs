//! How VMs come to stand: from the start, beside a neighbour, or from a snapshot.

use std::{
    cell::RefCell,
    rc::{Rc, Weak},
};

use wasmtime::{AsContextMut as _, Instance, InstancePre, Store};

use super::{Image, Live, Shell, Vm};
use crate::{
    abi::{Callback, Callbacks, LogLevel, TrapKind},
    bounds::trap_kind,
    context::ROOT_CONTEXT,
    exports::{Exports, callback_of, function},
    module::Module,
    state::{Mode, Owner, Role, VmState},
};

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

/// A failure, and the error lines that the plugin logged meanwhile.
pub(crate) type Failed = (StartFailure, Vec<String>);

impl Vm {
    /// Instantiates, starts and configures, in Envoy's order.
    pub(crate) fn start(
        module: &Module,
        owner: &Rc<Owner>,
        role: Role,
    ) -> Result<Rc<Self>, Failed> {
        let (abi, callbacks) = (module.abi_version(), module.callbacks());
        let state = VmState::new(Rc::clone(owner), role, abi);
        let mut store = store(module, module.instance(), state);
        let result = instantiate(module.instance(), &mut store).and_then(|instance| {
            initialize(&instance, &mut store, owner)?;
            store.data_mut().mode = Mode::Running;
            let exports = Exports::find(&instance, &mut store, abi, callbacks);
            let place = (&instance, &exports, callbacks);
            configure(place, &mut store, owner, ROOT_CONTEXT)?;
            Ok((instance, exports))
        });
        let log = store.data_mut().start_log.take().unwrap_or_default();
        match result {
            Ok((instance, exports)) => Ok(Self::standing(store, instance, exports, owner)),
            Err(failure) => {
                if role == Role::Standing {
                    owner.embedder.set_tick_period(owner.id, None);
                }
                Err((failure, log))
            }
        }
    }

    /// Takes a plugin into the VM of a neighbour: a root context more, started and configured. If it traps, the VM is gone for both.
    pub(crate) fn join(
        shell: &Rc<Shell>,
        module: &Module,
        owner: &Rc<Owner>,
    ) -> Result<Rc<Self>, Failed> {
        let none = || {
            (
                StartFailure::Instantiate("the neighbour's vm is gone".into()),
                vec![],
            )
        };
        let mut guard = shell.try_borrow_mut().map_err(|_| none())?;
        let live = guard.as_mut().ok_or_else(none)?;
        let (store, instance) = (&mut live.store, live.instance);
        let ids = || {
            (
                StartFailure::Instantiate("its context ids are used up".into()),
                vec![],
            )
        };
        let root = store.data_mut().admit(owner).ok_or_else(ids)?;
        store.data_mut().start_log = Some(Vec::new());
        let place = (&instance, &live.exports, module.callbacks());
        let result = configure(place, store, owner, root);
        let log = store.data_mut().start_log.take().unwrap_or_default();
        let vm = Self {
            owner: Rc::clone(owner),
            root,
            shell: Rc::clone(shell),
            image: Weak::new(),
        };
        match result {
            Ok(()) => {
                drop(guard);
                Ok(Rc::new(vm))
            }
            Err(failure @ StartFailure::Trap { .. }) => {
                let live = guard.take();
                drop(guard);
                vm.bury(live, None);
                Err((failure, log))
            }
            Err(failure) => {
                if store.data().role == Role::Standing {
                    owner.embedder.set_tick_period(owner.id, None);
                }
                store.data_mut().dismiss(root);
                Err((failure, log))
            }
        }
    }

    /// A VM as a snapshot has it, for one exchange: nothing of the guest runs.
    pub(crate) fn awaken(
        image: &Rc<Image>,
        module: &Module,
        owner: &Rc<Owner>,
    ) -> Result<Rc<Self>, StartFailure> {
        let mut state = VmState::new(Rc::clone(owner), Role::Request, module.abi_version());
        state.limiter.has_cards = image.initial.is_some();
        let mut store = store(module, &image.pre, state);
        let instance = instantiate(&image.pre, &mut store)?;
        let (abi, callbacks) = (module.abi_version(), module.callbacks());
        let exports = Exports::find(&instance, &mut store, abi, callbacks);
        store.data_mut().apply(&image.template);
        let globals = match &image.initial {
            Some(initial) => initial.find(&instance, &mut store).unwrap_or_default(),
            None => Vec::new(),
        };
        let live = Live {
            store,
            exports,
            instance,
            globals,
        };
        Ok(Self::of_image(image, live, owner))
    }

    /// A VM that served an exchange before, and was made new.
    pub(crate) fn again(image: &Rc<Image>, owner: &Rc<Owner>) -> Option<Rc<Self>> {
        let live = image.take()?;
        Some(Self::of_image(image, live, owner))
    }

    fn of_image(image: &Rc<Image>, live: Live, owner: &Rc<Owner>) -> Rc<Self> {
        Rc::new(Self {
            owner: Rc::clone(owner),
            root: ROOT_CONTEXT,
            shell: Rc::new(RefCell::new(Some(live))),
            image: Rc::downgrade(image),
        })
    }

    fn standing(
        store: Store<VmState>,
        instance: Instance,
        exports: Exports,
        owner: &Rc<Owner>,
    ) -> Rc<Self> {
        let live = Live {
            store,
            exports,
            instance,
            globals: Vec::new(),
        };
        Rc::new(Self {
            owner: Rc::clone(owner),
            root: ROOT_CONTEXT,
            shell: Rc::new(RefCell::new(Some(live))),
            image: Weak::new(),
        })
    }
}

fn store(module: &Module, image: &InstancePre<VmState>, state: VmState) -> Store<VmState> {
    let mut store = Store::new(image.module().engine(), state);
    // wasmtime asks the limiter here how many memories there may be.
    store.limiter(|state| &mut state.limiter);
    store.epoch_deadline_callback(|mut context| context.data_mut().tick());
    store.set_epoch_deadline(1);
    if module.counts_operators {
        // More than it can use: only what is used is looked at. It fails where no fuel is counted, which is not here.
        let _ = store.set_fuel(u64::MAX);
    }
    store
}

fn instantiate(
    image: &InstancePre<VmState>,
    store: &mut Store<VmState>,
) -> Result<Instance, StartFailure> {
    let instance = image
        .instantiate(store.as_context_mut())
        .map_err(|error| StartFailure::Instantiate(format!("{error:#}")))?;
    let memory = instance.get_memory(&mut *store, "memory");
    let allocate = ["malloc", "proxy_on_memory_allocate"]
        .iter()
        .find_map(|name| function(&instance, store, name));
    let state = store.data_mut();
    state.memory = memory;
    state.allocate = allocate.map(Rc::new);
    Ok(instance)
}

fn initialize(
    instance: &Instance,
    store: &mut Store<VmState>,
    owner: &Owner,
) -> Result<(), StartFailure> {
    let run = |name,
               store: &mut Store<VmState>,
               call: &mut dyn FnMut(&mut Store<VmState>) -> wasmtime::Result<()>| {
        begin(store, owner, ROOT_CONTEXT, Callback::VmStart, name, call)
    };
    if let Some(initialize) = function::<(), ()>(instance, store, "_initialize") {
        run("_initialize", store, &mut |store| {
            initialize.call(store, ())
        })?;
        if let Some(main) = function::<(u32, u32), u32>(instance, store, "main") {
            run("main", store, &mut |store| {
                main.call(store, (0, 0)).map(drop)
            })?;
        } else if let Some(main) = function::<(), u32>(instance, store, "__main_void") {
            run("__main_void", store, &mut |store| {
                main.call(store, ()).map(drop)
            })?;
        }
    } else if let Some(start) = function::<(), ()>(instance, store, "_start") {
        run("_start", store, &mut |store| start.call(store, ()))?;
    }
    Ok(())
}

/// Makes a plugin's root context, and starts and configures it.
fn configure(
    (instance, exports, callbacks): (&Instance, &Exports, Callbacks),
    store: &mut Store<VmState>,
    owner: &Owner,
    root: u32,
) -> Result<(), StartFailure> {
    if let Some(create) = &exports.context_create {
        let name = Callback::ContextCreate.name();
        begin(store, owner, root, Callback::VmStart, name, |store| {
            create.call(store, (root, 0))
        })?;
    }
    let steps = [
        (
            Callback::VmStart,
            &owner.spec.vm_configuration,
            StartFailure::VmStartRefused,
        ),
        (
            Callback::Configure,
            &owner.spec.configuration,
            StartFailure::ConfigurationRefused,
        ),
    ];
    for (callback, configuration, refused) in steps {
        let size = u32::try_from(configuration.len()).unwrap_or(u32::MAX);
        if let Some(run) = callback_of::<(u32, u32), u32>(instance, store, callbacks, callback)
            && begin(store, owner, root, callback, callback.name(), |store| {
                run.call(store, (root, size))
            })? == 0
        {
            return Err(refused);
        }
    }
    store.data_mut().end();
    Ok(())
}

/// Runs one export while the plugin starts.
fn begin<R>(
    store: &mut Store<VmState>,
    owner: &Owner,
    root: u32,
    callback: Callback,
    name: &'static str,
    run: impl FnOnce(&mut Store<VmState>) -> wasmtime::Result<R>,
) -> Result<R, StartFailure> {
    let began = owner.embedder.monotonic_ns();
    store.data_mut().begin(callback, root, None);
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
