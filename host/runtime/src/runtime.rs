//! The engine of the process: how it is set up, and how modules are loaded into it.

use std::{
    collections::BTreeSet,
    fmt::{self, Write as _},
    num::NonZeroUsize,
    sync::Arc,
};

use sha2::{Digest as _, Sha256};
use wasmtime::{
    Config, Engine, ImportType, InstanceAllocationStrategy, Linker, PoolingAllocationConfig,
    WasmBacktraceDetails, WasmFeatures,
};

use crate::{
    abi::{AbiVersion, Callback, Callbacks},
    allow::Allow,
    bounds::IdleRoom,
    hostcalls,
    imports::{self, UnknownImports, Unlinked},
    limits::{
        BACKTRACE_FRAMES, IDLE_VMS_PART, MEMORY_BYTES_MAX, MODULE_BYTES_MAX, STACK_BYTES,
        TABLE_ELEMENTS_MAX, TABLES_MAX, VMS_MAX,
    },
    module::{INSTRUMENTED, LoadError, Module, Origin, abi_version, check_exports},
    module_cache::{self, ModuleCache},
    signature,
    state::VmState,
};

/// How to set up the engine.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RuntimeOptions {
    /// Most VMs at once, in all workers. Costs address space (8 GiB each), not memory.
    pub vms_max: u32,
    /// No pools: slower starts (three times), but works under valgrind and where address space is limited.
    pub on_demand: bool,
    /// Wasm operators are counted for a [`Recorder`](crate::Recorder). Code is slower by it (by a quarter, or twice): to count, not to serve.
    pub count_operators: bool,
}

impl Default for RuntimeOptions {
    fn default() -> Self {
        Self {
            vms_max: VMS_MAX,
            on_demand: false,
            count_operators: false,
        }
    }
}

/// The engine cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up wasmtime: {0}")]
pub struct RuntimeError(String);

/// The engine, of which a process has one.
pub struct Runtime {
    engine: Engine,
    /// One for each ABI version.
    linkers: [(AbiVersion, Arc<Linker<VmState>>); 4],
    /// What can be allowed or denied.
    capabilities: BTreeSet<&'static str>,
    is_pooling: bool,
    counts_operators: bool,
    idle_room: Arc<IdleRoom>,
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime")
            .field("is_pooling", &self.is_pooling)
            .finish_non_exhaustive()
    }
}

impl Runtime {
    /// Sets up the engine, with pools where they can be had.
    pub fn new(options: RuntimeOptions) -> Result<Self, RuntimeError> {
        let config = || {
            let mut config = config();
            config.consume_fuel(options.count_operators);
            config
        };
        let pooled = if options.on_demand {
            None
        } else {
            Some(Engine::new(
                config().allocation_strategy(pools(options.vms_max)),
            ))
        };
        let (engine, is_pooling) = match pooled {
            Some(Ok(engine)) => (engine, true),
            Some(Err(error)) => {
                tracing::warn!(%error, "no pools for vms, going on without: starts will be slower");
                (Engine::new(&config()).map_err(refused)?, false)
            }
            None => (
                Engine::new(config().allocation_strategy(InstanceAllocationStrategy::OnDemand))
                    .map_err(refused)?,
                false,
            ),
        };
        let mut capabilities = signature::callbacks().collect::<BTreeSet<_>>();
        let mut linker = |abi| {
            let mut linker = Linker::new(&engine);
            capabilities.append(&mut hostcalls::register(&mut linker, abi).map_err(refused)?);
            Ok((abi, Arc::new(linker)))
        };
        let linkers = [
            linker(AbiVersion::V0_1_0)?,
            linker(AbiVersion::V0_2_0)?,
            linker(AbiVersion::V0_2_1)?,
            linker(AbiVersion::V0_2_100)?,
        ];
        Ok(Self {
            engine,
            linkers,
            capabilities,
            is_pooling,
            counts_operators: options.count_operators,
            idle_room: Arc::new(IdleRoom::new(options.vms_max / IDLE_VMS_PART)),
        })
    }

    /// One tick of the clock that bounds callbacks: to be called by a thread every 5 ms.
    pub fn tick(&self) {
        self.engine.increment_epoch();
    }

    /// What ticks, without the runtime: for a thread that must not keep it alive.
    #[must_use = "nothing ticks until it is called, again and again"]
    pub fn ticker(&self) -> impl Fn() -> bool + Send + Sync + 'static {
        let engine = self.engine.weak();
        move || {
            engine
                .upgrade()
                .map(|engine| engine.increment_epoch())
                .is_some()
        }
    }

    /// Whether VMs come from pools.
    pub fn is_pooling(&self) -> bool {
        self.is_pooling
    }

    /// Compiles a module, or takes it from the cache, and checks it against the ABI. Compiling takes 0.1–1 s on all cores.
    pub fn load(&self, wasm: &[u8], cache: &dyn ModuleCache) -> Result<Arc<Module>, LoadError> {
        self.load_with(wasm, cache, UnknownImports::Refuse)
    }

    /// The same, for modules that may import what this host does not have.
    pub fn load_with(
        &self,
        wasm: &[u8],
        cache: &dyn ModuleCache,
        unknown: UnknownImports,
    ) -> Result<Arc<Module>, LoadError> {
        self.load_as(wasm, wasm, Origin::Plain, cache, unknown)
    }

    /// Loads what stands in `code` for the module `wasm`.
    pub(crate) fn load_as(
        &self,
        wasm: &[u8],
        code: &[u8],
        origin: Origin,
        cache: &dyn ModuleCache,
        unknown: UnknownImports,
    ) -> Result<Arc<Module>, LoadError> {
        if wasm.len() > MODULE_BYTES_MAX {
            return Err(LoadError::TooLarge(wasm.len()));
        }
        let metadata = Module::metadata_of(wasm)?;
        let digest = hex(&Sha256::digest(wasm));
        let compiled = match origin {
            Origin::Instrumented(_) => self.compiled(code, &hex(&Sha256::digest(code)), cache)?,
            Origin::Plain | Origin::Unfit(_) => self.compiled(wasm, &digest, cache)?,
        };
        // wasmtime is set up to accept a second one, for `cards.rs`.
        if compiled.resources_required().num_memories > 1 {
            return Err(LoadError::Invalid("more than one memory".to_owned()));
        }
        let abi = abi_version(&compiled).ok_or(LoadError::NoAbiVersion)?;
        let linker = Arc::clone(self.linker(abi)?);
        let callbacks = check_exports(&compiled, abi)?;
        let (instance, unknown_imports) =
            imports::link(&linker, &compiled, unknown).map_err(|error| unlinked(error, abi))?;
        let imports = compiled
            .imports()
            .map(|import| format!("{}.{}", import.module(), import.name()))
            .collect();
        let exports = compiled
            .exports()
            .map(|export| export.name().to_owned())
            .filter(|name| !name.starts_with(INSTRUMENTED))
            .collect();
        Ok(Arc::new(Module {
            instance,
            linker,
            origin,
            abi,
            digest,
            metadata,
            callbacks,
            imports,
            unknown,
            unknown_imports,
            exports,
            size: wasm.len(),
            counts_operators: self.counts_operators,
            idle_room: Arc::clone(&self.idle_room),
        }))
    }

    /// The same module, linked so that it may use no more than `allow` says. Compiles nothing.
    ///
    /// # Errors
    ///
    /// [`LoadError::UnknownCapability`] for a name that no ABI version knows: a misspelt one would deny what it was to allow.
    pub fn restrict(&self, module: &Arc<Module>, allow: &Allow) -> Result<Arc<Module>, LoadError> {
        if allow.is_everything() {
            return Ok(Arc::clone(module));
        }
        let unknown = allow
            .capabilities
            .iter()
            .flatten()
            .find(|name| !self.capabilities.contains(name.as_str()));
        if let Some(name) = unknown {
            return Err(LoadError::UnknownCapability(name.clone()));
        }
        let compiled = module.instance.module();
        let mut linker = Linker::clone(self.linker(module.abi)?);
        linker.allow_shadowing(true);
        // What no hostcall is goes on as it was loaded: it traps.
        let is_capability = |import: &ImportType<'_>| self.capabilities.contains(import.name());
        let imports = compiled.imports().filter(is_capability);
        hostcalls::restricted::register(&mut linker, imports, allow)
            .map_err(|error| LoadError::BadImport(format!("{error:#}")))?;
        let (instance, unknown_imports) = imports::link(&linker, compiled, module.unknown)
            .map_err(|error| unlinked(error, module.abi))?;
        let allowed = Callback::ALL.iter().filter(|callback| {
            module.callbacks.contains(**callback) && allow.has_capability(callback.name())
        });
        Ok(Arc::new(Module {
            instance,
            // Its snapshots are linked with it too.
            linker: Arc::new(linker),
            origin: module.origin.clone(),
            callbacks: allowed.fold(Callbacks::default(), |set, callback| set.with(*callback)),
            digest: module.digest.clone(),
            metadata: module.metadata.clone(),
            imports: module.imports.clone(),
            unknown_imports,
            exports: module.exports.clone(),
            idle_room: Arc::clone(&module.idle_room),
            ..**module
        }))
    }

    fn linker(&self, abi: AbiVersion) -> Result<&Arc<Linker<VmState>>, LoadError> {
        self.linkers
            .iter()
            .find(|(version, _)| *version == abi)
            .map(|(_, linker)| linker)
            .ok_or(LoadError::NoAbiVersion)
    }

    fn compiled(
        &self,
        wasm: &[u8],
        digest: &str,
        cache: &dyn ModuleCache,
    ) -> Result<wasmtime::Module, LoadError> {
        module_cache::compiled(&self.engine, wasm, digest, cache)
            .map_err(|error| LoadError::Invalid(format!("{error:#}")))
    }
}

fn unlinked(error: Unlinked, abi: AbiVersion) -> LoadError {
    match error {
        Unlinked::Unknown(imports) => LoadError::UnknownImport { imports, abi },
        Unlinked::Bad(reason) => LoadError::BadImport(reason),
    }
}

fn refused(error: wasmtime::Error) -> RuntimeError {
    RuntimeError(format!("{error:#}"))
}

fn config() -> Config {
    let mut config = Config::new();
    config
        // For the table of `cards.rs`; guests have one memory.
        .wasm_multi_memory(true)
        .epoch_interruption(true)
        .max_wasm_stack(STACK_BYTES)
        .wasm_backtrace_max_frames(NonZeroUsize::new(BACKTRACE_FRAMES))
        .wasm_backtrace_details(WasmBacktraceDetails::Disable)
        // What no Proxy-Wasm SDK uses only makes the host larger to attack. Threads, components and GC are not compiled in.
        .wasm_memory64(false)
        .wasm_tail_call(false)
        .wasm_relaxed_simd(false)
        .wasm_custom_page_sizes(false)
        .wasm_wide_arithmetic(false)
        .wasm_stack_switching(false)
        // Nor may they come with another crate that has wasmtime compile them in.
        .wasm_features(NEWER, false)
        .concurrency_support(false);
    config
}

/// Not even with features of wasmtime that this crate does not ask for.
const NEWER: WasmFeatures = WasmFeatures::THREADS
    .union(WasmFeatures::SHARED_EVERYTHING_THREADS)
    .union(WasmFeatures::EXCEPTIONS)
    .union(WasmFeatures::GC);

/// Of a table, what is cleared by hand: two thousand elements, more than most guests have.
const TABLE_BYTES_KEPT: usize = 16 << 10;

fn pools(vms_max: u32) -> InstanceAllocationStrategy {
    let mut pools = PoolingAllocationConfig::new();
    // No `pagemap_scan`: wasmtime 48 takes a dirty page that the kernel is just moving, or has swapped out, for a clean one, and the next VM
    // in that place would see what the last one wrote.
    pools
        .total_core_instances(vms_max)
        .total_memories(vms_max.saturating_mul(2))
        .total_tables(vms_max.saturating_mul(2))
        .max_memories_per_module(2)
        .max_tables_per_module(u32::try_from(TABLES_MAX).unwrap_or(u32::MAX))
        .table_elements(TABLE_ELEMENTS_MAX)
        // Tables are small: to clear one is less than to give its page back and to be given one again.
        .table_keep_resident(TABLE_BYTES_KEPT)
        .max_memory_size(MEMORY_BYTES_MAX)
        // The functions of large Go modules.
        .max_core_instance_size(4 << 20);
    InstanceAllocationStrategy::Pooling(pools)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
