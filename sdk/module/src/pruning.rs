//! What is cut from a linked module: callbacks that the control does not use, and panics.

use walrus::{FunctionBuilder, FunctionId, FunctionKind, Module};

use crate::error::ModuleError;

/// Exports that stay, whatever a control implements: the life of contexts (without `on_delete` they would leak) and
/// memory.
const EXPORTS_KEPT: [&str; 7] = [
    "_initialize",
    "memory",
    "proxy_abi_version_0_2_1",
    "proxy_on_configure",
    "proxy_on_context_create",
    "proxy_on_delete",
    "proxy_on_memory_allocate",
];

/// Parts of the (mangled) names of functions that never return: a panic, and the checks that end in one.
const PANICS: [&str; 14] = [
    "4core9panicking",
    "3std9panicking11begin_panic",
    "3std9panicking15panic_with_hook",
    "3std9panicking13panic_handler",
    "4core4cell22panic_already_borrowed",
    "4core4cell30panic_already_mutably_borrowed",
    "4core6option13expect_failed",
    "4core6option13unwrap_failed",
    "4core6result13unwrap_failed",
    "5alloc18handle_alloc_error",
    "8rust_oom",
    "slice_error_fail",
    "slice_index_fail",
    "18panic_access_error",
];

/// What only the report of a panic uses: its look-up of `RUST_BACKTRACE`, and standard error.
const PANIC_REPORT: [&str; 6] = [
    "3std3env7__var_os",
    "3std3sys5stdio4unix6Stderr",
    "3std3sys9backtrace",
    "3std5alloc24default_alloc_error_hook",
    "3std5panic19get_backtrace_style",
    "3std2io17default_write_fmt",
];

/// Functions that would use standard output or error for a purpose of their own.
const PRINTS: [&str; 2] = ["3std2io5stdio6__print", "3std2io5stdio7__eprint"];

/// Cuts what the control does not use.
pub(crate) fn prune(module: &mut Module, callbacks: &[String]) -> Result<(), ModuleError> {
    cut_exports(module, callbacks);
    silence(module)?;
    walrus::passes::gc::run(module);
    let prints = |name: &str| PRINTS.iter().any(|print| name.contains(print));
    let mut functions = module.funcs.iter();
    if functions.any(|function| function.name.as_deref().is_some_and(prints)) {
        return Err(ModuleError::Prints);
    }
    Ok(())
}

/// Cuts more callbacks from a module that was pruned before.
pub(crate) fn narrow(module: &mut Module, callbacks: &[String]) {
    cut_exports(module, callbacks);
    walrus::passes::gc::run(module);
}

fn cut_exports(module: &mut Module, callbacks: &[String]) {
    let unused: Vec<_> = module
        .exports
        .iter()
        .filter(|export| {
            let name = export.name.as_str();
            !EXPORTS_KEPT.contains(&name) && !callbacks.iter().any(|callback| callback == name)
        })
        .map(|export| export.id())
        .collect();
    for export in unused {
        module.exports.delete(export);
    }
}

/// Puts a bare `unreachable` in the place of each function that every panic passes through.
fn silence(module: &mut Module) -> Result<(), ModuleError> {
    let mut panics = 0_u32;
    let mut found = Vec::new();
    for (id, function) in module.funcs.iter_local() {
        let name = module.funcs.get(id).name.as_deref().unwrap_or_default();
        let never_returns = module.types.results(function.ty()).is_empty();
        let panic = never_returns && PANICS.iter().any(|panic| name.contains(panic));
        panics += u32::from(panic);
        if panic || PANIC_REPORT.iter().any(|report| name.contains(report)) {
            found.push(id);
        }
    }
    if panics == 0 {
        return Err(ModuleError::Nameless);
    }
    for id in found {
        trap_instead(module, id);
    }
    Ok(())
}

fn trap_instead(module: &mut Module, id: FunctionId) {
    let ty = module.funcs.get(id).ty();
    let (params, results) = (
        module.types.params(ty).to_vec(),
        module.types.results(ty).to_vec(),
    );
    let arguments = params
        .iter()
        .map(|param| module.locals.add(*param))
        .collect();
    let mut builder = FunctionBuilder::new(&mut module.types, &params, &results);
    builder.func_body().unreachable();
    module.funcs.get_mut(id).kind = FunctionKind::Local(builder.local_func(arguments));
}
