//! What a module wants of the host: linked where the host has it, refused by name where not, or stood in for by a trap.

use wasmtime::{ExternType, InstancePre, Linker, UnknownImportError};

use crate::{abi::TrapKind, bounds::Ended, limits::UNKNOWN_IMPORTS_MAX, state::VmState};

/// What becomes of a module that imports functions which this host does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum UnknownImports {
    /// It is not loaded: what it needs is missing, and better now than under a request.
    #[default]
    Refuse,
    /// It is loaded, and a call of such a function ends the VM ([`TrapKind::UnknownImport`]). For modules that never call what
    /// their SDK declares.
    Trap,
}

/// Why a module does not link.
pub(crate) enum Unlinked {
    /// It imports these, as `module.name`.
    Unknown(Vec<String>),
    /// Something else, in wasmtime's words.
    Bad(String),
}

/// A module ready to be instantiated, and the imports that trap.
pub(crate) type Linked = (InstancePre<VmState>, Vec<String>);

pub(crate) fn link(
    linker: &Linker<VmState>,
    module: &wasmtime::Module,
    unknown: UnknownImports,
) -> Result<Linked, Unlinked> {
    let bad = |error: wasmtime::Error| Unlinked::Bad(format!("{error:#}"));
    let mut own: Option<Linker<VmState>> = None;
    let mut names = Vec::new();
    loop {
        let error = match own.as_ref().unwrap_or(linker).instantiate_pre(module) {
            Ok(_) if unknown == UnknownImports::Refuse && !names.is_empty() => {
                return Err(Unlinked::Unknown(names));
            }
            Ok(instance) => return Ok((instance, names)),
            Err(error) => error,
        };
        // wasmtime names one at a time; a stub in its place makes it name the next.
        let Some(import) = error.downcast_ref::<UnknownImportError>() else {
            return Err(bad(error));
        };
        names.push(format!("{}.{}", import.module(), import.name()));
        let ExternType::Func(ty) = import.ty() else {
            return Err(Unlinked::Unknown(names));
        };
        if names.len() >= UNKNOWN_IMPORTS_MAX {
            return Err(Unlinked::Unknown(names));
        }
        own.get_or_insert_with(|| linker.clone())
            .func_new(import.module(), import.name(), ty, |_, _, _| {
                Err(Ended(TrapKind::UnknownImport).into())
            })
            .map_err(bad)?;
    }
}
