//! Hostcalls of certain hosts, known by name and signature so that modules which import them load, and not served: each answers
//! `UNIMPLEMENTED`, for a plugin that asks and goes on without.
//!
//! Sources: `envoy_resolve_dns` of Envoy (source/extensions/common/wasm/wasm.cc); the others of Higress (higress-group/proxy-wasm-cpp-host
//! `include/proxy-wasm/exports.h`), which offers them whatever a module's ABI version.

use wasmtime::Caller;

use super::{Call, Register, When, answer};
use crate::{
    abi::{Failure, Status},
    state::VmState,
};

/// Their names, all in `env`.
pub(crate) const UNSERVED: [&str; 4] = [
    "envoy_resolve_dns",
    "proxy_get_upstream_hosts",
    "proxy_inject_encoded_data_to_filter_chain",
    "proxy_set_upstream_override_host",
];

pub(super) fn register(linker: &mut Register<'_>) -> wasmtime::Result<()> {
    table! { linker, "env";
        Running "envoy_resolve_dns" three, (_address: u32, _len: u32, _token: u32);
        Running "proxy_get_upstream_hosts" two, (_out: u32, _out_len: u32);
        Running "proxy_inject_encoded_data_to_filter_chain" three, (_body: u32, _len: u32, _end_of_stream: u32);
        Running "proxy_set_upstream_override_host" two, (_address: u32, _len: u32);
    }
    Ok(())
}

macro_rules! unimplemented_with {
    ($($name:ident($($argument:ident),*);)+) => {
        $(fn $name(_: &mut Call<'_>, $($argument: u32),*) -> Result<(), Failure> { Err(Status::Unimplemented.into()) })+
    };
}

unimplemented_with! {
    two(_0, _1);
    three(_0, _1, _2);
}
