//! The calls that a control can make: [`Host`], stated once and served twice: by the proxy around a Wasm module
//! (`wasm`) and by memory (`native`, for tests).
//!
//! [`ActiveHost`] is a type, not a trait object: in a module it has no size, every call is static, and the hostcalls a
//! control does not use vanish at link. Names and behaviour are the ABI's (Proxy-Wasm 0.2.1) as Envoy really has them.

#[cfg(not(target_arch = "wasm32"))]
pub(crate) mod native;
#[cfg(target_arch = "wasm32")]
mod wasm;

#[cfg(target_arch = "wasm32")]
pub use wasm::{allocate, construct};

use crate::error::Status;

/// The host this build runs on.
#[cfg(not(target_arch = "wasm32"))]
pub type ActiveHost = native::NativeHost;
/// The host this build runs on.
#[cfg(target_arch = "wasm32")]
pub type ActiveHost = wasm::WasmHost;

/// How grave a line is, by the ABI's number.
///
/// ```
/// use portcullis_sdk::Level;
///
/// assert!(Level::Warn < Level::Error);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Level {
    /// Every step.
    Trace = 0,
    /// For whoever looks for a fault.
    Debug = 1,
    /// What an operator wants to read: decisions.
    Info = 2,
    /// It works, but not as wished.
    Warn = 3,
    /// It does not work.
    Error = 4,
    /// Nothing works.
    Critical = 5,
}

/// A header map of the exchange, by the ABI's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Map {
    /// Of the request; readable from the request phase on, writable in it.
    Request = 0,
    /// Of the response; readable and writable in the response phase.
    Response = 2,
    /// Of an answered HTTP callout, while it is delivered.
    HttpCall = 6,
}

/// A buffer, by the ABI's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Buffer {
    /// What is held of the request's body.
    RequestBody = 0,
    /// What is held of the response's body.
    ResponseBody = 1,
    /// The body of an answered HTTP callout.
    HttpCallBody = 4,
    /// The message that answers a gRPC callout.
    GrpcMessage = 5,
    /// The plugin's configuration, while it is configured.
    Configuration = 7,
}

/// A metric's kind, by the ABI's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum MetricKind {
    /// Only grows.
    Counter = 0,
    /// Goes up and down.
    Gauge = 1,
    /// Distribution of recorded values.
    Histogram = 2,
}

/// What a control can ask of the host that runs it. One method a hostcall; a method returns what the host said.
pub(crate) trait Host: Clone + 'static {
    /// Writes a line to the host's log. A line the host refuses is lost: a log never changes a decision.
    fn log(&self, level: Level, message: &str);
    /// Nanoseconds since 1970. A host that has no time ends the module: no number would be safe.
    fn now_ns(&self) -> u64;
    /// Fills `out` with random bytes. A host that has none ends the module.
    fn random(&self, out: &mut [u8]);
    /// Ends the module here and now; the proxy answers the exchange with 503.
    fn trap(&self) -> !;

    /// Calls `on_tick` every `period_ms` from now on; 0 ends it.
    fn set_tick_period(&self, period_ms: u32) -> Result<(), Status>;
    /// At most `max` bytes of a buffer from `start` on; empty where the buffer is not there.
    fn buffer(&self, buffer: Buffer, start: usize, max: usize) -> Result<Vec<u8>, Status>;
    /// Replaces `size` bytes from `start` on by `value`. Envoy allows only start 0, or a start at the end.
    fn set_buffer(
        &self,
        buffer: Buffer,
        start: usize,
        size: usize,
        value: &[u8],
    ) -> Result<(), Status>;

    /// The map in the ABI's pair encoding (see `fields`); empty where the map is not there.
    fn field_pairs(&self, map: Map) -> Result<Vec<u8>, Status>;
    /// The first value of a header.
    fn field(&self, map: Map, name: &str) -> Result<Option<Vec<u8>>, Status>;
    /// Adds a value.
    fn add_field(&self, map: Map, name: &str, value: &[u8]) -> Result<(), Status>;
    /// Puts one value in the place of all.
    fn replace_field(&self, map: Map, name: &str, value: &[u8]) -> Result<(), Status>;
    /// Removes every value.
    fn remove_field(&self, map: Map, name: &str) -> Result<(), Status>;

    /// A property; `path` has its segments joined by NUL.
    fn property(&self, path: &[u8]) -> Result<Option<Vec<u8>>, Status>;
    /// Sets a property of one segment, for the filters behind this one.
    fn set_property(&self, name: &str, value: &[u8]) -> Result<(), Status>;

    /// A value shared by all VMs with this one's id, and its version.
    fn shared_data(&self, key: &str) -> Result<Option<(Vec<u8>, u32)>, Status>;
    /// Stores a shared value; with a version other than 0, only if it is still the present one.
    fn set_shared_data(&self, key: &str, value: &[u8], cas: u32) -> Result<(), Status>;

    /// Answers the exchange. `pairs` are headers in the pair encoding, `details` goes to the proxy's access log.
    fn send_local_response(
        &self,
        status: u16,
        details: &str,
        body: &[u8],
        pairs: &[u8],
    ) -> Result<(), Status>;
    /// Starts an HTTP call to a cluster; the answer comes to `on_http_call_response`.
    fn http_call(
        &self,
        cluster: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        timeout_ms: u32,
    ) -> Result<u32, Status>;
    /// Starts a gRPC call of one message to a cluster; the answer comes to `on_grpc_receive` or `on_grpc_close`.
    fn grpc_call(
        &self,
        cluster: &str,
        service: &str,
        method: &str,
        message: &[u8],
        timeout_ms: u32,
    ) -> Result<u32, Status>;
    /// The status of the gRPC call that ended, and its message.
    fn grpc_status(&self) -> Result<(u32, Vec<u8>), Status>;
    /// Makes hostcalls act on another context of this VM, until the callback is over.
    fn set_effective_context(&self, id: u32) -> Result<(), Status>;
    /// Lets the request of the effective context go on.
    fn continue_request(&self) -> Result<(), Status>;
    /// Calls a function that this host has beyond the ABI.
    fn call_foreign_function(&self, name: &str, arguments: &[u8]) -> Result<Vec<u8>, Status>;

    /// Defines a metric, or finds the one of that name.
    fn define_metric(&self, kind: MetricKind, name: &str) -> Result<u32, Status>;
    /// Adds to a counter (above 0 only) or a gauge.
    fn increment_metric(&self, id: u32, offset: i64) -> Result<(), Status>;
    /// Sets a gauge, records into a histogram.
    fn record_metric(&self, id: u32, value: u64) -> Result<(), Status>;
    /// The value of a counter or a gauge.
    fn metric(&self, id: u32) -> Result<u64, Status>;
}
