//! A module that was loaded: what it must have, what it says of itself, and what it is linked to.

use std::{fmt, sync::Arc};

use wasmtime::{ExternType, InstancePre, Linker};

use crate::{
    abi::{AbiVersion, Callback, Callbacks},
    bounds::IdleRoom,
    hostcalls,
    imports::UnknownImports,
    limits::MODULE_BYTES_MAX,
    metadata::Metadata,
    signature,
    state::VmState,
};

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
    pub(crate) instance: InstancePre<VmState>,
    pub(crate) linker: Arc<Linker<VmState>>,
    pub(crate) origin: Origin,
    pub(crate) abi: AbiVersion,
    pub(crate) digest: String,
    pub(crate) metadata: Option<Metadata>,
    pub(crate) callbacks: Callbacks,
    pub(crate) imports: Vec<String>,
    pub(crate) unknown: UnknownImports,
    pub(crate) unknown_imports: Vec<String>,
    pub(crate) exports: Vec<String>,
    pub(crate) size: usize,
    /// Its VMs need fuel, and tell by it what they ran.
    pub(crate) counts_operators: bool,
    pub(crate) idle_room: Arc<IdleRoom>,
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

    /// What the custom section of this name holds, where a Wasm module has one that can be read; the first of several. Nothing is compiled.
    pub fn custom_section<'w>(wasm: &'w [u8], name: &str) -> Option<&'w [u8]> {
        let mut payloads = wasmparser::Parser::new(0).parse_all(wasm);
        payloads.find_map(|payload| match payload {
            Ok(wasmparser::Payload::CustomSection(section)) if section.name() == name => {
                Some(section.data())
            }
            _ => None,
        })
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

    /// Shared by all modules of a runtime.
    pub(crate) fn idle_room(&self) -> &Arc<IdleRoom> {
        &self.idle_room
    }

    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }
}

pub(crate) fn abi_version(module: &wasmtime::Module) -> Option<AbiVersion> {
    let marked = |marker: &str| matches!(module.get_export(marker), Some(ExternType::Func(_)));
    AbiVersion::MARKERS
        .iter()
        .rev()
        .find(|(marker, _)| marked(marker))
        .map(|(_, version)| *version)
}

/// Envoy loads no module with a known export of another signature, and none without an allocator.
pub(crate) fn check_exports(
    module: &wasmtime::Module,
    abi: AbiVersion,
) -> Result<Callbacks, LoadError> {
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
}
