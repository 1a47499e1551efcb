//! Compiled modules: the engine of the process, what a module must and must not have, and the cache of compiled code.
//!
//! The only `unsafe` of the crate stands here: [`Runtime::load`] hands bytes from the embedder's cache to wasmtime.

use std::{
    collections::BTreeSet,
    fmt::{self, Write as _},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    num::NonZeroUsize,
    sync::Arc,
};

use sha2::{Digest as _, Sha256};
use wasmtime::{
    Config, Engine, ExternType, ImportType, InstanceAllocationStrategy, InstancePre, Linker,
    PoolingAllocationConfig, WasmBacktraceDetails,
};

use crate::{
    abi::{AbiVersion, Callback, Callbacks},
    allow::Allow,
    hostcalls,
    imports::{self, UnknownImports, Unlinked},
    limits::{
        BACKTRACE_FRAMES, MEMORY_BYTES_MAX, MODULE_BYTES_MAX, STACK_BYTES, TABLE_ELEMENTS_MAX,
        TABLES_MAX, VMS_MAX,
    },
    metadata::Metadata,
    signature,
    state::VmState,
};

/// Where compiled code may be kept between runs. The embedder does the files: readable and writable by its own user alone, since
/// compiled code is trusted. The runtime checks what it reads for damage, and compiles again where there is any.
pub trait ModuleCache {
    /// What was written under `key`. A key is file-name safe: the module's SHA-256 and a hash of the engine.
    fn read(&self, key: &str) -> Option<Vec<u8>>;
    /// Keeps `compiled`. Failures are the embedder's to log.
    fn write(&self, key: &str, compiled: &[u8]);
}

/// Keeps nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoCache;

impl ModuleCache for NoCache {
    fn read(&self, _key: &str) -> Option<Vec<u8>> {
        None
    }

    fn write(&self, _key: &str, _compiled: &[u8]) {}
}

/// How to set up the engine.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RuntimeOptions {
    /// Most VMs at once, in all workers. Costs address space (4 GiB each), not memory.
    pub vms_max: u32,
    /// No pools: slower starts (three times), but works under valgrind and where address space is limited.
    pub on_demand: bool,
}

impl Default for RuntimeOptions {
    fn default() -> Self {
        Self {
            vms_max: VMS_MAX,
            on_demand: false,
        }
    }
}

/// The engine cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up wasmtime: {0}")]
pub struct RuntimeError(String);

/// A module that cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// Larger than any module should be.
    #[error("module has {0} bytes, more than {MODULE_BYTES_MAX}")]
    TooLarge(usize),
    /// Not Wasm, or Wasm that is not valid here.
    #[error("not a valid wasm module: {0}")]
    Invalid(String),
    /// No marker of an ABI version that is known.
    #[error(
        "no known proxy-wasm abi version: the module exports none of proxy_abi_version_0_1_0, _0_2_0, _0_2_1, _0_2_100"
    )]
    NoAbiVersion,
    /// Imports what this host does not have.
    #[error(
        "unknown import {} (abi {}): no hostcall of this host; a module that never calls it loads with `unknown_imports: trap`",
        .imports.join(", "), .abi.as_str()
    )]
    UnknownImport {
        /// As `module.name`; the first [`UNKNOWN_IMPORTS_MAX`](crate::limits::UNKNOWN_IMPORTS_MAX) of them, and no more behind one that is not a function.
        imports: Vec<String>,
        /// The module's ABI version.
        abi: AbiVersion,
    },
    /// Imports a hostcall under another signature.
    #[error("{0}")]
    BadImport(String),
    /// Lacks what every plugin must export.
    #[error("missing export: {0}")]
    MissingExport(&'static str),
    /// Exports a callback under another signature.
    #[error("export {name} has signature {found}, not {expected}")]
    BadExport {
        /// The export.
        name: String,
        /// As the ABI has it.
        expected: String,
        /// As the module has it.
        found: String,
    },
    /// A capability that no ABI version has.
    #[error("`{0}` is no hostcall, WASI function or callback")]
    UnknownCapability(String),
    /// The section `portcullis` is not what it should be.
    #[error("custom section portcullis: {0}")]
    BadMetadata(String),
}

/// The engine, of which a process has one.
pub struct Runtime {
    engine: Engine,
    /// One for each ABI version.
    linkers: [(AbiVersion, Arc<Linker<VmState>>); 4],
    /// What can be allowed or denied.
    capabilities: BTreeSet<&'static str>,
    is_pooling: bool,
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
        let mut hasher = DefaultHasher::new();
        self.engine
            .precompile_compatibility_hash()
            .hash(&mut hasher);
        let key = format!("{digest}-{:016x}", hasher.finish());
        if let Some(entry) = cache.read(&key) {
            if let Some(module) = unseal(&entry).and_then(|compiled| self.deserialize(compiled)) {
                return Ok(module);
            }
            tracing::warn!(key, "damaged entry in the module cache, compiling again");
        }
        let module = wasmtime::Module::new(&self.engine, wasm)
            .map_err(|error| LoadError::Invalid(format!("{error:#}")))?;
        match module.serialize() {
            Ok(compiled) => cache.write(&key, &seal(&compiled)),
            Err(error) => tracing::warn!(%error, "compiled module cannot be serialized"),
        }
        Ok(module)
    }

    fn deserialize(&self, compiled: &[u8]) -> Option<wasmtime::Module> {
        // SAFETY: `deserialize` asks for bytes that `Module::serialize` made. These were made by it, in `compiled` above, are whole (their
        // digest was checked by `unseal`), are of this very wasmtime and configuration (the key holds the engine's compatibility hash, and
        // wasmtime checks it again), and come from a place that only the embedder's user may write (the contract of `ModuleCache`).
        #[expect(
            unsafe_code,
            reason = "loading compiled code is what the module cache is for; see the safety comment"
        )]
        let module = unsafe { wasmtime::Module::deserialize(&self.engine, compiled) };
        module
            .inspect_err(|error| tracing::warn!(%error, "compiled module refused"))
            .ok()
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
        .epoch_interruption(true)
        .max_wasm_stack(STACK_BYTES)
        .wasm_backtrace_max_frames(NonZeroUsize::new(BACKTRACE_FRAMES))
        .wasm_backtrace_details(WasmBacktraceDetails::Disable)
        // What no Proxy-Wasm SDK uses only makes the host larger to attack. Threads, components and GC are not compiled in.
        .wasm_memory64(false)
        .wasm_multi_memory(false)
        .wasm_tail_call(false)
        .wasm_relaxed_simd(false)
        .wasm_custom_page_sizes(false)
        .wasm_wide_arithmetic(false)
        .wasm_stack_switching(false)
        .concurrency_support(false);
    config
}

fn pools(vms_max: u32) -> InstanceAllocationStrategy {
    let mut pools = PoolingAllocationConfig::new();
    // No `pagemap_scan`: wasmtime 48 takes a dirty page that the kernel is just moving, or has swapped out, for a clean one, and the next VM
    // in that place would see what the last one wrote.
    pools
        .total_core_instances(vms_max)
        .total_memories(vms_max)
        .total_tables(vms_max.saturating_mul(2))
        .max_memories_per_module(1)
        .max_tables_per_module(u32::try_from(TABLES_MAX).unwrap_or(u32::MAX))
        .table_elements(TABLE_ELEMENTS_MAX)
        .max_memory_size(MEMORY_BYTES_MAX)
        // The functions of large Go modules.
        .max_core_instance_size(4 << 20);
    InstanceAllocationStrategy::Pooling(pools)
}

/// The digest of `compiled`, then `compiled`.
fn seal(compiled: &[u8]) -> Vec<u8> {
    let mut sealed = Sha256::digest(compiled).to_vec();
    sealed.extend_from_slice(compiled);
    sealed
}

fn unseal(entry: &[u8]) -> Option<&[u8]> {
    let (digest, compiled) = entry.split_first_chunk::<32>()?;
    (Sha256::digest(compiled)[..] == digest[..]).then_some(compiled)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What exports are called that were added to look into a VM.
pub(crate) const INSTRUMENTED: &str = "__wizer_";

/// Whether VMs of a module can be made from snapshots.
#[derive(Clone)]
pub(crate) enum Origin {
    /// It was not loaded for that.
    Plain,
    /// Yes: these are its bytes. What was compiled exports all its globals besides.
    Instrumented(Arc<[u8]>),
    /// No, for this reason.
    Unfit(String),
}

/// A module checked and compiled; shared by all threads.
pub struct Module {
    instance: InstancePre<VmState>,
    linker: Arc<Linker<VmState>>,
    origin: Origin,
    abi: AbiVersion,
    digest: String,
    metadata: Option<Metadata>,
    callbacks: Callbacks,
    imports: Vec<String>,
    unknown: UnknownImports,
    unknown_imports: Vec<String>,
    exports: Vec<String>,
    size: usize,
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Module")
            .field("abi", &self.abi)
            .field("digest", &self.digest)
            .field("metadata", &self.metadata)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl Module {
    /// What a Wasm module says of itself in its custom section `portcullis`, where there is one; nothing is compiled.
    ///
    /// # Errors
    ///
    /// [`LoadError::Invalid`] where the binary cannot be walked, [`LoadError::BadMetadata`] where the section is wrong or comes twice: another
    /// reader could then take the module for another control.
    pub fn metadata_of(wasm: &[u8]) -> Result<Option<Metadata>, LoadError> {
        let mut found = None;
        for payload in wasmparser::Parser::new(0).parse_all(wasm) {
            match payload.map_err(|error| LoadError::Invalid(error.message().to_owned()))? {
                wasmparser::Payload::CustomSection(section)
                    if section.name() == Metadata::SECTION =>
                {
                    let metadata =
                        Metadata::parse(section.data()).map_err(LoadError::BadMetadata)?;
                    if found.replace(metadata).is_some() {
                        return Err(LoadError::BadMetadata("there are two".to_owned()));
                    }
                }
                _ => {}
            }
        }
        Ok(found)
    }

    /// The ABI version it was built for.
    pub fn abi_version(&self) -> AbiVersion {
        self.abi
    }

    /// SHA-256 of the Wasm bytes, 64 lower-case hex digits.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// From the custom section `portcullis`, where there is one.
    pub fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }

    /// The callbacks it exports and may be called for.
    pub fn callbacks(&self) -> Callbacks {
        self.callbacks
    }

    /// What it imports, as `module.name`.
    pub fn imports(&self) -> &[String] {
        &self.imports
    }

    /// Which of these answer `UNIMPLEMENTED` whatever they are asked: hostcalls of other hosts that this one knows and does not serve.
    pub fn unserved_imports(&self) -> impl Iterator<Item = &str> {
        self.imports.iter().map(String::as_str).filter(|import| {
            import
                .strip_prefix("env.")
                .is_some_and(|name| hostcalls::UNSERVED.contains(&name))
        })
    }

    /// Which of these trap when they are called: see [`UnknownImports::Trap`].
    pub fn unknown_imports(&self) -> &[String] {
        &self.unknown_imports
    }

    /// What it exports.
    pub fn exports(&self) -> &[String] {
        &self.exports
    }

    /// Bytes of the Wasm module.
    pub fn size(&self) -> usize {
        self.size
    }

    pub(crate) fn instance(&self) -> &InstancePre<VmState> {
        &self.instance
    }

    pub(crate) fn linker(&self) -> &Arc<Linker<VmState>> {
        &self.linker
    }

    /// What its unknown imports were linked to, as those of its snapshots are.
    pub(crate) fn unknown(&self) -> UnknownImports {
        self.unknown
    }

    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }
}

fn abi_version(module: &wasmtime::Module) -> Option<AbiVersion> {
    let marked = |marker: &str| matches!(module.get_export(marker), Some(ExternType::Func(_)));
    AbiVersion::MARKERS
        .iter()
        .rev()
        .find(|(marker, _)| marked(marker))
        .map(|(_, version)| *version)
}

/// Envoy loads no module with a known export of another signature, and none without an allocator.
fn check_exports(module: &wasmtime::Module, abi: AbiVersion) -> Result<Callbacks, LoadError> {
    let mut callbacks = Callbacks::default();
    let (mut allocates, mut has_memory) = (false, false);
    for export in module.exports() {
        let name = export.name();
        match export.ty() {
            ExternType::Func(ty) => {
                let Some(expected) = signature::expected(name, abi) else {
                    continue;
                };
                let found = signature::found(&ty);
                if found != expected {
                    return Err(LoadError::BadExport {
                        name: name.to_owned(),
                        expected: signature::readable(expected),
                        found: signature::readable(&found),
                    });
                }
                allocates |= matches!(name, "malloc" | "proxy_on_memory_allocate");
                if let Some(callback) = Callback::ALL
                    .iter()
                    .find(|callback| callback.name() == name)
                {
                    callbacks = callbacks.with(*callback);
                }
            }
            ExternType::Memory(_) if name == "memory" => has_memory = true,
            _ => {}
        }
    }
    if !has_memory {
        return Err(LoadError::MissingExport("memory"));
    }
    if !allocates {
        return Err(LoadError::MissingExport(
            "proxy_on_memory_allocate or malloc",
        ));
    }
    Ok(callbacks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_says_once_what_it_is() {
        let section = |text: &str| {
            let mut section = vec![0, u8::try_from(text.len() + 11).unwrap(), 10];
            section.extend_from_slice(b"portcullis");
            section.extend_from_slice(text.as_bytes());
            section
        };
        let module = |sections: &[Vec<u8>]| [b"\0asm\x01\0\0\0", &sections.concat()[..]].concat();
        let one = section("name=a\nversion=1\nauthenticates=1\n");
        let other = section("name=a\nversion=1\nauthenticates=0\n");
        let good = Module::metadata_of(&module(std::slice::from_ref(&one))).unwrap();
        assert!(good.is_some_and(|metadata| metadata.authenticates));
        assert!(Module::metadata_of(&module(&[])).unwrap().is_none());
        for (bad, expected) in [
            (
                module(&[one.clone(), other]),
                "custom section portcullis: there are two",
            ),
            (
                module(&[section("version=1\n")]),
                "custom section portcullis: no name",
            ),
            (module(&[one[..20].to_vec()]), "not a valid wasm module: "),
        ] {
            let error = Module::metadata_of(&bad).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn a_sealed_entry_is_whole_or_nothing() {
        let sealed = seal(b"code");
        assert_eq!(unseal(&sealed), Some(&b"code"[..]));
        for at in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[at] ^= 1;
            assert_eq!(unseal(&damaged), None, "byte {at}");
        }
        assert_eq!(unseal(&sealed[..31]), None);
    }
}
