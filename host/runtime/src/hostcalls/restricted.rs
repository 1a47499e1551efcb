//! Hostcalls of a plugin that may not use all of them: stubs and checked forms, linked over the ordinary ones.

use std::sync::Arc;

use wasmtime::{Caller, ImportType, Linker, Val};

use super::{When, answer, foreign, properties};
use crate::{
    abi::{Failure, Status},
    allow::Allow,
    limits::PROPERTY_PATH_BYTES_MAX,
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
        if (import.module(), name) == ("env", "proxy_set_property") {
            deny_properties_of_others(linker)?;
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
        linker.func_new(import.module(), name, ty, move |caller, _, results| {
            caller
                .data()
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
                if asked.len() <= PROPERTY_PATH_BYTES_MAX && !readable.covers(asked) {
                    call.state().deny(DenialKind::Property, asked);
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
                if asked.len() <= PROPERTY_PATH_BYTES_MAX
                    && !paths.covers(asked)
                    && asked != OWNED_REQUEST_HEADERS
                {
                    call.state().deny(DenialKind::Property, asked);
                    return Err(Failure::Status(Status::InternalFailure));
                }
                properties::set_property(call, path, len, value, value_len)
            })
        },
    )?;
    Ok(())
}

/// The capability to set properties is denied. What a plugin tells the host of itself is set all the same: without it, nobody would remove the
/// headers that clients forge where the plugin is off.
fn deny_properties_of_others(linker: &mut Linker<VmState>) -> wasmtime::Result<()> {
    linker.func_wrap(
        "env",
        "proxy_set_property",
        |caller: Caller<'_, VmState>, path: u32, len: u32, value: u32, value_len: u32| {
            answer("proxy_set_property", When::Running, caller, |call| {
                if call.bytes(path, len)? != OWNED_REQUEST_HEADERS {
                    call.state()
                        .deny(DenialKind::Capability, b"proxy_set_property");
                    return Err(Failure::Status(Status::InternalFailure));
                }
                properties::set_property(call, path, len, value, value_len)
            })
        },
    )?;
    Ok(())
}

/// The foreign function that writes properties under names of its own: a list of properties denies it, unless it is allowed by name.
const WRITES_PROPERTIES: &str = "set_envoy_filter_state";

fn check_foreign_functions(linker: &mut Linker<VmState>, allow: &Allow) -> wasmtime::Result<()> {
    let names = allow.foreign_functions.clone();
    if names.is_none() && allow.properties.is_none() {
        return Ok(());
    }
    let allows = move |asked: &str| {
        names
            .as_ref()
            .map_or(asked != WRITES_PROPERTIES, |names| names.contains(asked))
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
                    if !std::str::from_utf8(asked).is_ok_and(&allows) {
                        call.state().deny(DenialKind::ForeignFunction, asked);
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
