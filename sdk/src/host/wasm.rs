//! The host around a Wasm module: the ABI's imports, declared raw.
//!
//! The `proxy-wasm` crate wraps the same imports, but panics on every status that it does not expect, so that a call
//! in the wrong phase would end the VM, and clients could bring that about; it also sends no details with a local
//! response.
//!
//! Safety of every call: the host reads and writes only where the pointers say, within the given lengths, while the
//! call lasts. What it returns it has allocated with `proxy_on_memory_allocate`, that is, as a boxed slice of exactly
//! that length, which is handed over.

#![expect(
    unsafe_code,
    reason = "imports are foreign functions; this is the one file that calls them"
)]

use std::ptr::null_mut;

use crate::error::Status;
use crate::fields;
use crate::foreign::grpc_target;
use crate::host::{Buffer, Host, Level, Map, MetricKind};

/// The host that runs this module. It has no size: all it knows is outside.
#[derive(Clone, Debug)]
pub struct WasmHost;

impl WasmHost {
    /// The one there is.
    pub const fn new() -> Self {
        Self
    }
}

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn proxy_log(level: u32, data: *const u8, size: usize) -> u32;
    fn proxy_get_current_time_nanoseconds(time: *mut u64) -> u32;
    fn proxy_set_tick_period_milliseconds(period: u32) -> u32;
    fn proxy_get_buffer_bytes(
        buffer: u32,
        start: usize,
        max: usize,
        data: *mut *mut u8,
        size: *mut usize,
    ) -> u32;
    fn proxy_set_buffer_bytes(
        buffer: u32,
        start: usize,
        size: usize,
        data: *const u8,
        data_size: usize,
    ) -> u32;
    fn proxy_get_header_map_pairs(map: u32, data: *mut *mut u8, size: *mut usize) -> u32;
    fn proxy_get_header_map_value(
        map: u32,
        name: *const u8,
        name_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
    ) -> u32;
    fn proxy_add_header_map_value(
        map: u32,
        name: *const u8,
        name_size: usize,
        value: *const u8,
        value_size: usize,
    ) -> u32;
    fn proxy_replace_header_map_value(
        map: u32,
        name: *const u8,
        name_size: usize,
        value: *const u8,
        value_size: usize,
    ) -> u32;
    fn proxy_remove_header_map_value(map: u32, name: *const u8, name_size: usize) -> u32;
    fn proxy_get_property(
        path: *const u8,
        path_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
    ) -> u32;
    fn proxy_set_property(
        path: *const u8,
        path_size: usize,
        value: *const u8,
        value_size: usize,
    ) -> u32;
    fn proxy_get_shared_data(
        key: *const u8,
        key_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
        cas: *mut u32,
    ) -> u32;
    fn proxy_set_shared_data(
        key: *const u8,
        key_size: usize,
        value: *const u8,
        value_size: usize,
        cas: u32,
    ) -> u32;
    fn proxy_send_local_response(
        status: u32,
        details: *const u8,
        details_size: usize,
        body: *const u8,
        body_size: usize,
        headers: *const u8,
        headers_size: usize,
        grpc_status: i32,
    ) -> u32;
    fn proxy_http_call(
        cluster: *const u8,
        cluster_size: usize,
        headers: *const u8,
        headers_size: usize,
        body: *const u8,
        body_size: usize,
        trailers: *const u8,
        trailers_size: usize,
        timeout: u32,
        id: *mut u32,
    ) -> u32;
    fn proxy_grpc_call(
        target: *const u8,
        target_size: usize,
        service: *const u8,
        service_size: usize,
        method: *const u8,
        method_size: usize,
        metadata: *const u8,
        metadata_size: usize,
        message: *const u8,
        message_size: usize,
        timeout: u32,
        id: *mut u32,
    ) -> u32;
    fn proxy_get_status(code: *mut u32, data: *mut *mut u8, size: *mut usize) -> u32;
    fn proxy_set_effective_context(id: u32) -> u32;
    fn proxy_continue_stream(stream: u32) -> u32;
    fn proxy_call_foreign_function(
        name: *const u8,
        name_size: usize,
        arguments: *const u8,
        arguments_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
    ) -> u32;
    fn proxy_define_metric(kind: u32, name: *const u8, name_size: usize, id: *mut u32) -> u32;
    fn proxy_increment_metric(id: u32, offset: i64) -> u32;
    fn proxy_record_metric(id: u32, value: u64) -> u32;
    fn proxy_get_metric(id: u32, value: *mut u64) -> u32;
}

#[link(wasm_import_module = "wasi_snapshot_preview1")]
unsafe extern "C" {
    fn random_get(data: *mut u8, size: usize) -> u32;
}

/// Hosts refuse more random bytes at a time (`exports.cc` of proxy-wasm-cpp-host).
const RANDOM_BYTES_MAX: usize = 64 * 1024;

unsafe extern "C" {
    fn __wasm_call_ctors();
}

/// Runs the module's constructors. They only set up libc's state, so a second run changes nothing.
pub fn construct() {
    // SAFETY: the linker makes it; `_initialize` is the one export that calls it.
    unsafe { __wasm_call_ctors() };
}

/// The stream's direction in `proxy_continue_stream`.
const REQUEST: u32 = 0;

/// Memory for bytes that the host writes and hands over (`proxy_on_memory_allocate`): a boxed slice of that length.
pub fn allocate(size: usize) -> *mut u8 {
    Box::into_raw(Box::<[u8]>::new_uninit_slice(size)).cast()
}

fn done(status: u32) -> Result<(), Status> {
    match Status(status) {
        Status::OK => Ok(()),
        status => Err(status),
    }
}

/// Calls for bytes, and takes them over.
fn bytes(call: impl FnOnce(*mut *mut u8, *mut usize) -> u32) -> Result<Vec<u8>, Status> {
    let (mut data, mut size) = (null_mut::<u8>(), 0_usize);
    done(call(&raw mut data, &raw mut size))?;
    if data.is_null() {
        return Ok(Vec::new());
    }
    // SAFETY: not null, so the host has allocated it (see above) and handed it over.
    Ok(unsafe { Vec::from_raw_parts(data, size, size) })
}

/// NOT_FOUND is an answer, not a failure.
fn found<T>(result: Result<T, Status>) -> Result<Option<T>, Status> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Status::NOT_FOUND) => Ok(None),
        Err(status) => Err(status),
    }
}

impl Host for WasmHost {
    fn log(&self, level: Level, message: &str) {
        // SAFETY: see above.
        unsafe { proxy_log(level as u32, message.as_ptr(), message.len()) };
    }

    fn now_ns(&self) -> u64 {
        let mut time = 0;
        // SAFETY: see above.
        match unsafe { proxy_get_current_time_nanoseconds(&raw mut time) } {
            0 => time,
            _ => self.trap(),
        }
    }

    fn random(&self, out: &mut [u8]) {
        for chunk in out.chunks_mut(RANDOM_BYTES_MAX) {
            // SAFETY: see above.
            if unsafe { random_get(chunk.as_mut_ptr(), chunk.len()) } != 0 {
                self.trap();
            }
        }
    }

    fn trap(&self) -> ! {
        std::process::abort()
    }

    fn set_tick_period(&self, period_ms: u32) -> Result<(), Status> {
        // SAFETY: see above.
        done(unsafe { proxy_set_tick_period_milliseconds(period_ms) })
    }

    fn buffer(&self, buffer: Buffer, start: usize, max: usize) -> Result<Vec<u8>, Status> {
        // SAFETY: see above.
        bytes(|data, size| unsafe { proxy_get_buffer_bytes(buffer as u32, start, max, data, size) })
    }

    fn set_buffer(
        &self,
        buffer: Buffer,
        start: usize,
        size: usize,
        value: &[u8],
    ) -> Result<(), Status> {
        // SAFETY: see above.
        done(unsafe {
            proxy_set_buffer_bytes(buffer as u32, start, size, value.as_ptr(), value.len())
        })
    }

    fn field_pairs(&self, map: Map) -> Result<Vec<u8>, Status> {
        // SAFETY: see above.
        bytes(|data, size| unsafe { proxy_get_header_map_pairs(map as u32, data, size) })
    }

    fn field(&self, map: Map, name: &str) -> Result<Option<Vec<u8>>, Status> {
        // SAFETY: see above.
        found(bytes(|data, size| unsafe {
            proxy_get_header_map_value(map as u32, name.as_ptr(), name.len(), data, size)
        }))
    }

    fn add_field(&self, map: Map, name: &str, value: &[u8]) -> Result<(), Status> {
        // SAFETY: see above.
        done(unsafe {
            proxy_add_header_map_value(
                map as u32,
                name.as_ptr(),
                name.len(),
                value.as_ptr(),
                value.len(),
            )
        })
    }

    fn replace_field(&self, map: Map, name: &str, value: &[u8]) -> Result<(), Status> {
        // SAFETY: see above.
        done(unsafe {
            proxy_replace_header_map_value(
                map as u32,
                name.as_ptr(),
                name.len(),
                value.as_ptr(),
                value.len(),
            )
        })
    }

    fn remove_field(&self, map: Map, name: &str) -> Result<(), Status> {
        // SAFETY: see above.
        done(unsafe { proxy_remove_header_map_value(map as u32, name.as_ptr(), name.len()) })
    }

    fn property(&self, path: &[u8]) -> Result<Option<Vec<u8>>, Status> {
        // SAFETY: see above.
        found(bytes(|data, size| unsafe {
            proxy_get_property(path.as_ptr(), path.len(), data, size)
        }))
    }

    fn set_property(&self, name: &str, value: &[u8]) -> Result<(), Status> {
        // SAFETY: see above.
        done(unsafe { proxy_set_property(name.as_ptr(), name.len(), value.as_ptr(), value.len()) })
    }

    fn shared_data(&self, key: &str) -> Result<Option<(Vec<u8>, u32)>, Status> {
        let mut cas = 0;
        // SAFETY: see above.
        let value = found(bytes(|data, size| unsafe {
            proxy_get_shared_data(key.as_ptr(), key.len(), data, size, &raw mut cas)
        }))?;
        Ok(value.map(|value| (value, cas)))
    }

    fn set_shared_data(&self, key: &str, value: &[u8], cas: u32) -> Result<(), Status> {
        // SAFETY: see above.
        done(unsafe {
            proxy_set_shared_data(key.as_ptr(), key.len(), value.as_ptr(), value.len(), cas)
        })
    }

    fn send_local_response(
        &self,
        status: u16,
        details: &str,
        body: &[u8],
        pairs: &[u8],
    ) -> Result<(), Status> {
        // SAFETY: see above.
        done(unsafe {
            proxy_send_local_response(
                u32::from(status),
                details.as_ptr(),
                details.len(),
                body.as_ptr(),
                body.len(),
                pairs.as_ptr(),
                pairs.len(),
                -1, // no gRPC status: the proxy derives it
            )
        })
    }

    fn http_call(
        &self,
        cluster: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        timeout_ms: u32,
    ) -> Result<u32, Status> {
        let pairs = headers
            .iter()
            .map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        let pairs = fields::encode(pairs);
        let no_trailers = fields::encode([].into_iter());
        let mut id = 0;
        // SAFETY: see above.
        done(unsafe {
            proxy_http_call(
                cluster.as_ptr(),
                cluster.len(),
                pairs.as_ptr(),
                pairs.len(),
                body.as_ptr(),
                body.len(),
                no_trailers.as_ptr(),
                no_trailers.len(),
                timeout_ms,
                &raw mut id,
            )
        })?;
        Ok(id)
    }

    fn grpc_call(
        &self,
        cluster: &str,
        service: &str,
        method: &str,
        message: &[u8],
        timeout_ms: u32,
    ) -> Result<u32, Status> {
        let target = grpc_target(cluster);
        let no_metadata = fields::encode([].into_iter());
        let mut id = 0;
        // SAFETY: see above.
        done(unsafe {
            proxy_grpc_call(
                target.as_ptr(),
                target.len(),
                service.as_ptr(),
                service.len(),
                method.as_ptr(),
                method.len(),
                no_metadata.as_ptr(),
                no_metadata.len(),
                message.as_ptr(),
                message.len(),
                timeout_ms,
                &raw mut id,
            )
        })?;
        Ok(id)
    }

    fn grpc_status(&self) -> Result<(u32, Vec<u8>), Status> {
        let mut code = 0;
        // SAFETY: see above.
        let message = bytes(|data, size| unsafe { proxy_get_status(&raw mut code, data, size) })?;
        Ok((code, message))
    }

    fn set_effective_context(&self, id: u32) -> Result<(), Status> {
        // SAFETY: see above.
        done(unsafe { proxy_set_effective_context(id) })
    }

    fn continue_request(&self) -> Result<(), Status> {
        // SAFETY: see above.
        done(unsafe { proxy_continue_stream(REQUEST) })
    }

    fn call_foreign_function(&self, name: &str, arguments: &[u8]) -> Result<Vec<u8>, Status> {
        // SAFETY: see above.
        bytes(|data, size| unsafe {
            proxy_call_foreign_function(
                name.as_ptr(),
                name.len(),
                arguments.as_ptr(),
                arguments.len(),
                data,
                size,
            )
        })
    }

    fn define_metric(&self, kind: MetricKind, name: &str) -> Result<u32, Status> {
        let mut id = 0;
        // SAFETY: see above.
        done(unsafe { proxy_define_metric(kind as u32, name.as_ptr(), name.len(), &raw mut id) })?;
        Ok(id)
    }

    fn increment_metric(&self, id: u32, offset: i64) -> Result<(), Status> {
        // SAFETY: see above.
        done(unsafe { proxy_increment_metric(id, offset) })
    }

    fn record_metric(&self, id: u32, value: u64) -> Result<(), Status> {
        // SAFETY: see above.
        done(unsafe { proxy_record_metric(id, value) })
    }

    fn metric(&self, id: u32) -> Result<u64, Status> {
        let mut value = 0;
        // SAFETY: see above.
        done(unsafe { proxy_get_metric(id, &raw mut value) })?;
        Ok(value)
    }
}
