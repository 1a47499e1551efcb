//! Hostcalls of a plugin that may not use all of them: stubs and checked forms, linked over the ordinary ones.

use std::sync::Arc;

use wasmtime::{Caller, ImportType, Linker, Val};

use super::{When, answer, foreign, properties};
use crate::{
    abi::{Failure, Status},
    allow::Allow,
    property::OWNED_REQUEST_HEADERS,
    state::VmState,
    stats::DenialKind,
};

/// What a WASI function that is denied answers: `ENOTCAPABLE`, as in proxy-wasm-cpp-host (`exports.h`).
const NOT_CAPABLE: i32 = 76;

/// Puts what `allow` denies of `imports`, which are all capabilities, over the functions in `linker`, which must allow shadowing.
pub(crate) fn register<'m>(
    linker: &mut Linker<VmState>,
    imports: impl Iterator<Item = ImportType<'m>>,
    allow: &Allow,
) -> wasmtime::Result<()> {
    check_properties(linker, allow)?;
    check_foreign_functions(linker, allow)?;
    for import in imports {
        let name = import.name();
        if allow.has_capability(name) {
            continue;
        }
        let Some(ty) = import.ty().func().cloned() else {
            continue;
        };
        let denied: Arc<str> = name.into();
        let number = match import.module() {
            "env" => i32::try_from(Status::InternalFailure as u32).unwrap_or(i32::MAX),
            _ => NOT_CAPABLE,
        };
        linker.func_new(import.module(), name, ty, move |mut caller, _, results| {
            caller
                .data_mut()
                .deny(DenialKind::Capability, denied.as_bytes());
            if let Some(result) = results.first_mut() {
                *result = Val::I32(number);
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Denied, a property is not there to be read: the one absence that every SDK takes. A write fails loudly: nobody must believe it done.
fn check_properties(linker: &mut Linker<VmState>, allow: &Allow) -> wasmtime::Result<()> {
    let Some(paths) = allow.properties.clone().map(Arc::new) else {
        return Ok(());
    };
    let readable = Arc::clone(&paths);
    linker.func_wrap(
        "env",
        "proxy_get_property",
        move |caller: Caller<'_, VmState>, path: u32, len: u32, out: u32, out_len: u32| {
            answer("proxy_get_property", When::Running, caller, |call| {
                let asked = call.bytes(path, len)?;
                if !readable.covers(asked) {
                    let asked = asked.to_vec();
                    call.state().deny(DenialKind::Property, &asked);
                    return Err(Failure::Status(Status::NotFound));
                }
                properties::property(call, path, len, out, out_len)
            })
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_set_property",
        move |caller: Caller<'_, VmState>, path: u32, len: u32, value: u32, value_len: u32| {
            answer("proxy_set_property", When::Running, caller, |call| {
                let asked = call.bytes(path, len)?;
                // What a plugin tells the host of itself is none of the properties that lists are about.
                if !paths.covers(asked) && asked != OWNED_REQUEST_HEADERS {
                    let asked = asked.to_vec();
                    call.state().deny(DenialKind::Property, &asked);
                    return Err(Failure::Status(Status::InternalFailure));
                }
                properties::set_property(call, path, len, value, value_len)
            })
        },
    )?;
    Ok(())
}

fn check_foreign_functions(linker: &mut Linker<VmState>, allow: &Allow) -> wasmtime::Result<()> {
    let Some(names) = allow.foreign_functions.clone() else {
        return Ok(());
    };
    linker.func_wrap(
        "env",
        "proxy_call_foreign_function",
        move |caller: Caller<'_, VmState>,
              name: u32,
              name_len: u32,
              arguments: u32,
              arguments_len: u32,
              results: u32,
              results_len: u32| {
            answer(
                "proxy_call_foreign_function",
                When::Running,
                caller,
                |call| {
                    let asked = call.bytes(name, name_len)?;
                    let known = std::str::from_utf8(asked).is_ok_and(|asked| names.contains(asked));
                    if !known {
                        let asked = asked.to_vec();
                        call.state().deny(DenialKind::ForeignFunction, &asked);
                        return Err(Failure::Status(Status::NotFound));
                    }
                    foreign::call_foreign_function(
                        call,
                        name,
                        name_len,
                        arguments,
                        arguments_len,
                        results,
                        results_len,
                    )
                },
            )
        },
    )?;
    Ok(())
}
