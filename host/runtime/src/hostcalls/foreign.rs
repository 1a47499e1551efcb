//! Foreign functions: those of Envoy's that concern the exchange at hand are served here, all others by the embedder.
//!
//! Shapes and answers: Envoy `source/extensions/common/wasm/foreign.cc` and `ext/*.proto` beside it. The three for CEL expressions (`expr_create`,
//! `expr_evaluate`, `expr_delete`) are not served: `NOT_FOUND`, as for any name that nobody knows. No crate evaluates what a guest may write within
//! bounds: with `cel` 0.15, 230 bytes of nested comprehensions run for seconds and cannot be ended, each further `.map(x, x + x)` doubles the memory, and a
//! sum of 2,000 terms overflows the stack, which ends the process; `cel-cxx` is all of the C++ library, where a fault is the host's.

use std::rc::Rc;

use prost::Message;

use super::{Call, streams};
use crate::{
    abi::{Failure, Status},
    filter_state::{self, LifeSpan, Prototype},
    limits::FOREIGN_RESULT_BYTES_MAX,
};

/// Arguments of `declare_property`; fields that change nothing here (type, schema) are read over.
#[derive(Clone, PartialEq, Message)]
struct DeclarePropertyArguments {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bool, tag = "2")]
    readonly: bool,
    #[prost(int32, tag = "5")]
    span: i32,
}

/// Arguments of `set_envoy_filter_state`.
#[derive(Clone, PartialEq, Message)]
struct SetEnvoyFilterStateArguments {
    #[prost(string, tag = "1")]
    path: String,
    #[prost(string, tag = "2")]
    value: String,
    #[prost(int32, tag = "3")]
    span: i32,
}

/// Envoy's numbers: 0 the filter chain, 1 the request, 2 the connection; others are read as 0.
fn life_span(number: i32) -> LifeSpan {
    match number {
        2 => LifeSpan::Connection,
        _ => LifeSpan::Exchange,
    }
}

/// Both places for the result may be null: then the guest does not want it.
pub(super) fn call_foreign_function(
    call: &mut Call<'_>,
    name: u32,
    name_len: u32,
    arguments: u32,
    arguments_len: u32,
    results: u32,
    results_len: u32,
) -> Result<(), Failure> {
    let embedder = Rc::clone(&call.state().owner.embedder);
    let name = call.bytes(name, name_len)?;
    let arguments = call.bytes(arguments, arguments_len)?;
    let answer = match name {
        b"clear_route_cache" => streams::clear_route_cache(call).map(|()| Vec::new()),
        b"declare_property" => decoded(arguments).and_then(|it| declare_property(call, &it)),
        b"set_envoy_filter_state" => {
            decoded(arguments).and_then(|it| set_envoy_filter_state(call, &it))
        }
        _ => {
            let name = std::str::from_utf8(name).map_err(|_| Status::NotFound)?;
            match embedder.foreign_function(name, arguments) {
                Err(Status::NotFound) => return Err(Status::NotFound.into()),
                answer => answer.map_err(Failure::from),
            }
        }
    };
    for place in [results, results_len] {
        if place != 0 {
            call.check_out(place)?;
        }
    }
    // As in Envoy, the result of a function that fails is empty, and written.
    let result = answer.as_deref().unwrap_or_default();
    if result.len() > FOREIGN_RESULT_BYTES_MAX {
        return Err(Status::InternalFailure.into());
    }
    let len = u32::try_from(result.len()).map_err(|_| Status::InternalFailure)?;
    if results != 0 {
        let pointer = if len == 0 { 0 } else { call.allocate(len)? };
        if len > 0 {
            call.write(pointer, result)?;
        }
        call.write_u32(results, pointer)?;
    }
    if results_len != 0 {
        call.write_u32(results_len, len)?;
    }
    answer.map(|_| ())
}

fn decoded<M: Message + Default>(arguments: &[u8]) -> Result<M, Failure> {
    M::decode(arguments).map_err(|_| Status::BadArgument.into())
}

/// Holds for what the plugin sets from now on. In a stream's callback it holds for nothing: Envoy looks only at what the plugin itself declared.
fn declare_property(
    call: &mut Call<'_>,
    arguments: &DeclarePropertyArguments,
) -> Result<Vec<u8>, Failure> {
    let state = call.state_mut();
    if state.stream().is_none() {
        let prototype = Prototype {
            readonly: arguments.readonly,
            span: life_span(arguments.span),
        };
        state
            .root
            .declarations
            .add(arguments.name.as_bytes(), prototype)?;
    }
    Ok(Vec::new())
}

fn set_envoy_filter_state(
    call: &mut Call<'_>,
    arguments: &SetEnvoyFilterStateArguments,
) -> Result<Vec<u8>, Failure> {
    let path = filter_state::object_path(&arguments.path, &arguments.value)?;
    let context = call.stream().ok_or(Status::NotFound)?;
    let prototype = Prototype {
        readonly: false,
        span: life_span(arguments.span),
    };
    filter_state::set(
        &context.stream.properties,
        &context.exchange()?.info.connection.state,
        &path,
        arguments.value.as_bytes(),
        prototype,
    )?;
    Ok(Vec::new())
}
