//! Hostcalls: what a guest may ask of the host, one file a chapter of the ABI text, under the ABI's own names.
//!
//! Each is an ordinary function `-> Result<_, Failure>`. This file holds the only table that registers them and the only place
//! that turns a [`Failure`] into what a guest sees: a status, or its end.

/// The table's form: when it is served, its name, the function, its arguments.
macro_rules! table {
    ($linker:expr, $module:expr; $($when:ident $name:literal $function:path, ($($argument:ident: $type:ty),*);)+) => {
        {$($linker.func_wrap($module, $name, |caller: Caller<'_, VmState>, $($argument: $type),*| {
            answer($name, When::$when, caller, |call| $function(call, $($argument),*))
        })?;)+}
    };
}

mod buffers;
mod callouts;
mod foreign;
mod grpc;
mod http_fields;
mod metrics;
mod properties;
mod redis;
pub(crate) mod restricted;
mod shared;
mod streams;
mod system;
mod unserved;
mod wasi;

pub(crate) use unserved::UNSERVED;

use std::{collections::BTreeSet, rc::Rc};

use wasmtime::{Caller, IntoFunc, Linker, Memory};

use crate::{
    abi::{AbiVersion, Failure, Status, TrapKind},
    bounds::{Ended, trap_kind},
    cards,
    context::StreamContext,
    memory,
    state::{Mode, VmState},
};

/// When a hostcall is served: as in Envoy (proxy-wasm-cpp-host `setRestrictedCallback` in src/wasm.cc and include/proxy-wasm/wasm.h), where
/// any other one ends the VM.
#[derive(Clone, Copy)]
enum When {
    /// Always, inside of the guest's allocator too.
    Always,
    /// From `_initialize` or `_start` on, but not inside of the allocator.
    Started,
    /// Only once these have returned.
    Running,
}

impl When {
    fn allows(self, mode: Mode) -> bool {
        match self {
            Self::Always => true,
            Self::Started => mode <= Mode::Initializing,
            Self::Running => mode == Mode::Running,
        }
    }
}

/// The answer's vocabulary: proxy statuses, or WASI's error numbers.
trait Reply {
    fn number(self) -> u32;
    fn of_status(status: Status) -> u32;
}

impl Reply for () {
    fn number(self) -> u32 {
        Status::Ok as u32
    }

    fn of_status(status: Status) -> u32 {
        status as u32
    }
}

/// The one place where a failure becomes a status for the guest or its end.
fn answer<R: Reply>(
    name: &'static str,
    when: When,
    caller: Caller<'_, VmState>,
    run: impl FnOnce(&mut Call<'_>) -> Result<R, Failure>,
) -> wasmtime::Result<u32> {
    let state = caller.data();
    let (true, Some(memory)) = (when.allows(state.mode), state.memory) else {
        tracing::debug!(plugin = state.owner.spec.name, hostcall = name, mode = ?state.mode, "hostcall where none is allowed");
        return Err(Ended(TrapKind::Restricted).into());
    };
    if let Some(recorder) = &state.recorder {
        recorder.hostcall(name);
    }
    let mut call = Call { caller, memory };
    match run(&mut call) {
        Ok(reply) => Ok(reply.number()),
        Err(Failure::Status(status)) => {
            tracing::trace!(
                plugin = call.state().owner.spec.name,
                hostcall = name,
                ?status,
                "hostcall refused"
            );
            Ok(R::of_status(status))
        }
        Err(Failure::Trap(kind)) => Err(Ended(kind).into()),
    }
}

/// A linker that is being filled, and the names of what can be allowed or denied.
struct Register<'l> {
    linker: &'l mut Linker<VmState>,
    names: BTreeSet<&'static str>,
}

impl Register<'_> {
    fn func_wrap<Params, Args>(
        &mut self,
        module: &str,
        name: &'static str,
        function: impl IntoFunc<VmState, Params, Args>,
    ) -> wasmtime::Result<()> {
        self.linker.func_wrap(module, name, function)?;
        self.names.insert(name);
        Ok(())
    }
}

/// Puts every hostcall of `abi` into `linker` and tells their names. Envoy offers each module only the imports of its own ABI version; so do
/// we. Those of certain hosts are there for every version, as they are in these hosts.
pub(crate) fn register(
    linker: &mut Linker<VmState>,
    abi: AbiVersion,
) -> wasmtime::Result<BTreeSet<&'static str>> {
    let names = BTreeSet::new();
    let linker = &mut Register { linker, names };
    table! { linker, "env";
        Always  "proxy_log" system::log, (level: u32, message: u32, len: u32);
        Running "proxy_get_current_time_nanoseconds" system::current_time_nanoseconds, (out: u32);
        Running "proxy_set_tick_period_milliseconds" system::set_tick_period_milliseconds, (period: u32);
        Running "proxy_done" system::done, ();
        Running "proxy_set_effective_context" system::set_effective_context, (context: u32);
        Running "proxy_get_status" system::status, (code: u32, message: u32, len: u32);
        Running "proxy_call_foreign_function" foreign::call_foreign_function, (name: u32, name_len: u32, arguments: u32, arguments_len: u32, results: u32, results_len: u32);

        Running "proxy_get_buffer_bytes" buffers::buffer_bytes, (buffer: u32, start: u32, max: u32, out: u32, out_len: u32);
        Running "proxy_get_buffer_status" buffers::buffer_status, (buffer: u32, len: u32, flags: u32);
        Running "proxy_set_buffer_bytes" buffers::set_buffer_bytes, (buffer: u32, start: u32, size: u32, data: u32, len: u32);

        Running "proxy_get_header_map_size" http_fields::header_map_size, (map: u32, out: u32);
        Running "proxy_get_header_map_pairs" http_fields::header_map_pairs, (map: u32, out: u32, out_len: u32);
        Running "proxy_set_header_map_pairs" http_fields::set_header_map_pairs, (map: u32, pairs: u32, len: u32);
        Running "proxy_get_header_map_value" http_fields::header_map_value, (map: u32, key: u32, key_len: u32, out: u32, out_len: u32);
        Running "proxy_add_header_map_value" http_fields::add_header_map_value, (map: u32, key: u32, key_len: u32, value: u32, len: u32);
        Running "proxy_replace_header_map_value" http_fields::replace_header_map_value, (map: u32, key: u32, key_len: u32, value: u32, len: u32);
        Running "proxy_remove_header_map_value" http_fields::remove_header_map_value, (map: u32, key: u32, key_len: u32);

        Running "proxy_send_local_response" streams::send_local_response, (code: u32, details: u32, details_len: u32, body: u32, body_len: u32, headers: u32, headers_len: u32, grpc_status: u32);

        Running "proxy_get_property" properties::property, (path: u32, path_len: u32, out: u32, out_len: u32);
        Running "proxy_set_property" properties::set_property, (path: u32, path_len: u32, value: u32, len: u32);

        Running "proxy_http_call" callouts::http_call, (cluster: u32, cluster_len: u32, headers: u32, headers_len: u32, body: u32, body_len: u32, trailers: u32, trailers_len: u32, timeout_ms: u32, out: u32);
        Running "proxy_grpc_call" grpc::grpc_call, (service: u32, service_len: u32, name: u32, name_len: u32, method: u32, method_len: u32, metadata: u32, metadata_len: u32, message: u32, message_len: u32, timeout_ms: u32, out: u32);
        Running "proxy_grpc_stream" grpc::grpc_stream, (service: u32, service_len: u32, name: u32, name_len: u32, method: u32, method_len: u32, metadata: u32, metadata_len: u32, out: u32);
        Running "proxy_grpc_send" grpc::grpc_send, (id: u32, message: u32, len: u32, end_of_stream: u32);
        Running "proxy_grpc_cancel" grpc::grpc_cancel, (id: u32);
        Running "proxy_grpc_close" grpc::grpc_close, (id: u32);

        Running "proxy_redis_init" redis::redis_init, (service: u32, service_len: u32, user: u32, user_len: u32, password: u32, password_len: u32, timeout_ms: u32);
        Running "proxy_redis_call" redis::redis_call, (service: u32, service_len: u32, query: u32, query_len: u32, out: u32);

        Running "proxy_set_shared_data" shared::set_shared_data, (key: u32, key_len: u32, value: u32, len: u32, cas: u32);
        Running "proxy_get_shared_data" shared::shared_data, (key: u32, key_len: u32, out: u32, out_len: u32, cas: u32);
        Running "proxy_register_shared_queue" shared::register_shared_queue, (name: u32, len: u32, out: u32);
        Running "proxy_resolve_shared_queue" shared::resolve_shared_queue, (vm_id: u32, vm_id_len: u32, name: u32, len: u32, out: u32);
        Running "proxy_enqueue_shared_queue" shared::enqueue_shared_queue, (queue: u32, data: u32, len: u32);
        Running "proxy_dequeue_shared_queue" shared::dequeue_shared_queue, (queue: u32, out: u32, out_len: u32);

        Running "proxy_define_metric" metrics::define_metric, (kind: u32, name: u32, len: u32, out: u32);
        Running "proxy_increment_metric" metrics::increment_metric, (metric: u32, delta: i64);
        Running "proxy_record_metric" metrics::record_metric, (metric: u32, value: u64);
        Running "proxy_get_metric" metrics::metric, (metric: u32, out: u32);
    }
    match abi {
        AbiVersion::V0_1_0 => table! { linker, "env";
            Running "proxy_get_configuration" buffers::configuration, (out: u32, out_len: u32);
            // The ABI text gives the next three no result, but SDKs and Envoy do.
            Running "proxy_continue_request" streams::continue_request, ();
            Running "proxy_continue_response" streams::continue_response, ();
            Running "proxy_clear_route_cache" streams::clear_route_cache, ();
        },
        AbiVersion::V0_2_0 | AbiVersion::V0_2_1 | AbiVersion::V0_2_100 => table! { linker, "env";
            Running "proxy_continue_stream" streams::continue_stream, (stream: u32);
            Running "proxy_close_stream" streams::close_stream, (stream: u32);
        },
    }
    if abi >= AbiVersion::V0_2_1 {
        table! { linker, "env"; Running "proxy_get_log_level" system::log_level, (out: u32); }
    }
    unserved::register(linker)?;
    wasi::register(linker)?;
    // Parts of the machine rather than of the host: no allow-list is about them.
    let plain = &mut *linker.linker;
    plain.func_wrap(
        "env",
        "pthread_equal",
        |caller: Caller<'_, VmState>, left: u32, right: u32| match caller.data().mode {
            Mode::Running => Ok(u32::from(left == right)),
            _ => Err(wasmtime::Error::from(Ended(TrapKind::Restricted))),
        },
    )?;
    // Not restricted: Envoy ends an emscripten guest whose allocator must grow the memory, which helps nobody.
    plain.func_wrap("env", "emscripten_notify_memory_growth", |_: u32| {})?;
    Ok(std::mem::take(&mut linker.names))
}

/// One hostcall under way: the caller, and its memory.
struct Call<'a> {
    caller: Caller<'a, VmState>,
    memory: Memory,
}

impl Call<'_> {
    fn state(&self) -> &VmState {
        self.caller.data()
    }

    fn state_mut(&mut self) -> &mut VmState {
        self.caller.data_mut()
    }

    /// The stream acted on; `None` is the plugin itself.
    fn stream(&self) -> Option<StreamContext> {
        self.state().stream().cloned()
    }

    fn memory(&self) -> &[u8] {
        self.memory.data(&self.caller)
    }

    /// Guest memory and the state at once.
    fn parts(&mut self) -> (&[u8], &mut VmState) {
        let (memory, state) = self.memory.data_and_store_mut(&mut self.caller);
        (memory, state)
    }

    /// To be called before anything is written there: where a VM's writes are marked, those of the host are too.
    fn mark(&mut self, pointer: u32, len: u32) -> Result<(), Failure> {
        let Some(cards) = self.state().cards else {
            return Ok(());
        };
        memory::range(pointer, len, self.memory.data_size(&self.caller))?;
        cards::mark(cards.data_mut(&mut self.caller), pointer, len)
    }

    /// Guest memory to write to, marked.
    fn memory_mut(&mut self, pointer: u32, len: u32) -> Result<&mut [u8], Failure> {
        self.mark(pointer, len)?;
        memory::slice_mut(self.memory.data_mut(&mut self.caller), pointer, len)
    }

    /// The guest's bytes, for as long as nothing calls the guest.
    fn bytes(&self, pointer: u32, len: u32) -> Result<&[u8], Failure> {
        memory::slice(self.memory(), pointer, len)
    }

    /// Checks a place for a u32 before anything is done.
    fn check_out(&self, pointer: u32) -> Result<(), Failure> {
        memory::range(pointer, 4, self.memory().len()).map(|_| ())
    }

    fn write(&mut self, pointer: u32, bytes: &[u8]) -> Result<(), Failure> {
        let len = u32::try_from(bytes.len()).map_err(|_| Status::InvalidMemoryAccess)?;
        self.memory_mut(pointer, len)?.copy_from_slice(bytes);
        Ok(())
    }

    fn write_u32(&mut self, pointer: u32, value: u32) -> Result<(), Failure> {
        self.write(pointer, &value.to_le_bytes())
    }

    /// Hands `value` to the guest in memory it allocates, and tells it where. An empty value is a null pointer.
    fn give(&mut self, value: &[u8], out: u32, out_len: u32) -> Result<(), Failure> {
        self.give_with(value.len(), out, out_len, |place| {
            place.copy_from_slice(value);
            Some(())
        })
    }

    /// The same, for a value of `len` bytes that `fill` writes in place.
    fn give_with(
        &mut self,
        len: usize,
        out: u32,
        out_len: u32,
        fill: impl FnOnce(&mut [u8]) -> Option<()>,
    ) -> Result<(), Failure> {
        let size = self.memory.data_size(&self.caller);
        memory::range(out, 4, size)?;
        memory::range(out_len, 4, size)?;
        let len = u32::try_from(len).map_err(|_| Status::InternalFailure)?;
        let pointer = if len == 0 { 0 } else { self.allocate(len)? };
        if self.state().cards.is_some() {
            for (pointer, len) in [(pointer, len), (out, 4), (out_len, 4)] {
                self.mark(pointer, len)?;
            }
        }
        let memory = self.memory.data_mut(&mut self.caller);
        if len > 0 {
            fill(memory::slice_mut(memory, pointer, len)?).ok_or(Status::InternalFailure)?;
        }
        memory::slice_mut(memory, out, 4)?.copy_from_slice(&pointer.to_le_bytes());
        memory::slice_mut(memory, out_len, 4)?.copy_from_slice(&len.to_le_bytes());
        Ok(())
    }

    /// Asks the guest for memory. Its allocator runs restricted: re-entry through it is the classic hole.
    fn allocate(&mut self, len: u32) -> Result<u32, Failure> {
        let allocate = self
            .state()
            .allocate
            .as_ref()
            .map(Rc::clone)
            .ok_or(Status::InternalFailure)?;
        if let Some(recorder) = &self.state().recorder {
            recorder.allocation(len);
        }
        let mode = std::mem::replace(&mut self.state_mut().mode, Mode::Allocating);
        let result = allocate.call(&mut self.caller, len);
        self.state_mut().mode = mode;
        match result {
            Ok(0) => Err(Status::InvalidMemoryAccess.into()),
            Ok(pointer) => Ok(pointer),
            Err(error) => Err(Failure::Trap(trap_kind(&error))),
        }
    }
}
