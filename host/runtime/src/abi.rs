//! The vocabulary of the Proxy-Wasm ABI: numbers and names, nothing that acts.
//!
//! Sources: proxy-wasm/spec `abi-versions/{v0.1.0,v0.2.0,v0.2.1}/README.md`; where it is silent or wrong, what Envoy does
//! (proxy-wasm-cpp-host `include/proxy-wasm/`).

/// The ABI version a module was built for, from its marker export `proxy_abi_version_X_Y_Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum AbiVersion {
    /// 0.1.0: Rust SDK 0.1, old TinyGo.
    V0_1_0,
    /// 0.2.0: both Go SDKs.
    V0_2_0,
    /// 0.2.1: Rust SDK 0.2, C++ SDK.
    V0_2_1,
    /// 0.2.100: 0.2.1 with Higress' additions (higress-group/proxy-wasm-cpp-host `src/wasm.cc`), its Go SDK.
    V0_2_100,
}

impl AbiVersion {
    /// Every version this host speaks, with its marker export.
    pub(crate) const MARKERS: &'static [(&'static str, Self)] = &[
        ("proxy_abi_version_0_1_0", Self::V0_1_0),
        ("proxy_abi_version_0_2_0", Self::V0_2_0),
        ("proxy_abi_version_0_2_1", Self::V0_2_1),
        ("proxy_abi_version_0_2_100", Self::V0_2_100),
    ];

    /// `0.2.1` and so on.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_2_1 => "0.2.1",
            Self::V0_2_100 => "0.2.100",
        }
    }
}

/// What a hostcall answers. Numbers 5, 9 and 11 stand only in the C++ SDK's `proxy_wasm_common.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[repr(u32)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// No such key, property, queue, metric, function.
    NotFound = 1,
    /// An argument that makes no sense here.
    BadArgument = 2,
    /// A value that cannot be put into the ABI's encoding.
    SerializationFailure = 3,
    /// Bytes that are not what they should be.
    ParseFailure = 4,
    /// A pointer outside of the guest's memory.
    InvalidMemoryAccess = 6,
    /// A queue without entries.
    Empty = 7,
    /// Shared data changed since it was read.
    CasMismatch = 8,
    /// The host is at fault, or at a bound.
    InternalFailure = 10,
    /// A callout's connection broke.
    BrokenConnection = 11,
    /// Not served by this host.
    Unimplemented = 12,
}

/// Why a guest is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TrapKind {
    /// `unreachable`: a panic or abort in the guest, an allocation that failed included.
    Unreachable,
    /// A wild access to memory or a table.
    OutOfBounds,
    /// The guest's stack is exhausted.
    StackOverflow,
    /// A callback ran longer than its bound.
    OutOfTime,
    /// A hostcall where none is allowed: inside the guest's allocator, or during `_initialize`.
    Restricted,
    /// An import that this host does not have, loaded with [`UnknownImports::Trap`](crate::UnknownImports::Trap), was called.
    UnknownImport,
    /// Any other: division by zero, a bad indirect call, …
    Other,
}

impl TrapKind {
    /// All kinds, in the order of their index.
    pub const ALL: &'static [Self] = &[
        Self::Unreachable,
        Self::OutOfBounds,
        Self::StackOverflow,
        Self::OutOfTime,
        Self::Restricted,
        Self::UnknownImport,
        Self::Other,
    ];

    /// A label for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::OutOfBounds => "out_of_bounds",
            Self::StackOverflow => "stack_overflow",
            Self::OutOfTime => "out_of_time",
            Self::Restricted => "restricted_hostcall",
            Self::UnknownImport => "unknown_import",
            Self::Other => "other",
        }
    }
}

/// The two ways in which a hostcall fails: a status for the guest, or the end of the guest. `hostcalls::answer` is the one
/// place that tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    Status(Status),
    Trap(TrapKind),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

/// Declares a `#[repr(u32)]` enum that is read from a guest's number.
macro_rules! guest_enum {
    ($(#[$doc:meta])* $vis:vis enum $name:ident { $($(#[$vdoc:meta])* $variant:ident = $number:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u32)]
        $vis enum $name { $($(#[$vdoc])* $variant = $number,)+ }

        impl $name {
            /// The value with this number in the ABI.
            $vis fn from_u32(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

guest_enum! {
    /// How grave a log line is.
    pub enum LogLevel {
        /// Steps.
        Trace = 0,
        /// For the author.
        Debug = 1,
        /// For the operator.
        Info = 2,
        /// Odd, but served.
        Warn = 3,
        /// Failed.
        Error = 4,
        /// Cannot go on.
        Critical = 5,
    }
}

guest_enum! {
    pub(crate) enum StreamType {
        Request = 0,
        Response = 1,
        Downstream = 2,
        Upstream = 3,
    }
}

guest_enum! {
    pub(crate) enum BufferType {
        RequestBody = 0,
        ResponseBody = 1,
        DownstreamData = 2,
        UpstreamData = 3,
        HttpCallResponseBody = 4,
        GrpcReceive = 5,
        VmConfiguration = 6,
        PluginConfiguration = 7,
        CallData = 8,
        /// Higress' own.
        RedisReply = 9,
    }
}

guest_enum! {
    pub(crate) enum MapType {
        RequestHeaders = 0,
        RequestTrailers = 1,
        ResponseHeaders = 2,
        ResponseTrailers = 3,
        GrpcInitialMetadata = 4,
        GrpcTrailingMetadata = 5,
        HttpCallResponseHeaders = 6,
        HttpCallResponseTrailers = 7,
    }
}

guest_enum! {
    /// What a plugin-defined metric counts.
    pub enum MetricKind {
        /// Only grows.
        Counter = 0,
        /// Goes up and down.
        Gauge = 1,
        /// Sorts values into buckets.
        Histogram = 2,
    }
}

/// What a phase callback of a filter decided, after Envoy's reading of the number it returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Continue,
    Pause,
    /// Pause the headers and go on with the body (headers only; `StopIteration` of the C++ SDK). A pause, unless the plugin may.
    PauseHeaders,
    /// Pause and forget the bytes of this call (body only; `StopIterationNoBuffer` of the C++ SDK).
    PauseAndDrop,
}

impl Action {
    /// Envoy reads 2 as *continue*; anything above 4 pauses (both observed in Envoy 1.40).
    pub(crate) fn of_headers(number: u32) -> Self {
        match number {
            0 | 2 => Self::Continue,
            1 => Self::PauseHeaders,
            _ => Self::Pause,
        }
    }

    /// Numbers that no SDK knows pause: what is not understood is not let by.
    pub(crate) fn of_body(number: u32) -> Self {
        match number {
            0 => Self::Continue,
            3 => Self::PauseAndDrop,
            _ => Self::Pause,
        }
    }

    pub(crate) fn of_trailers(number: u32) -> Self {
        match number {
            0 => Self::Continue,
            _ => Self::Pause,
        }
    }

    pub(crate) fn of_tcp(number: u32) -> Self {
        Self::of_trailers(number)
    }
}

/// Declares the callbacks this host calls.
macro_rules! callbacks {
    ($($(#[$doc:meta])* $variant:ident = $bit:literal $name:literal,)+) => {
        /// A callback this host calls.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[repr(u8)]
        pub enum Callback { $($(#[$doc])* $variant = $bit,)+ }

        impl Callback {
            /// All, in the order of their index.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name under which a module exports it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

callbacks! {
    /// A context is made.
    ContextCreate = 0 "proxy_on_context_create",
    /// The VM starts.
    VmStart = 1 "proxy_on_vm_start",
    /// The plugin is configured.
    Configure = 2 "proxy_on_configure",
    /// The plugin's timer.
    Tick = 3 "proxy_on_tick",
    /// Request headers came.
    RequestHeaders = 4 "proxy_on_request_headers",
    /// Request body bytes came.
    RequestBody = 5 "proxy_on_request_body",
    /// Request trailers came.
    RequestTrailers = 6 "proxy_on_request_trailers",
    /// Response headers came.
    ResponseHeaders = 7 "proxy_on_response_headers",
    /// Response body bytes came.
    ResponseBody = 8 "proxy_on_response_body",
    /// Response trailers came.
    ResponseTrailers = 9 "proxy_on_response_trailers",
    /// A callout was answered.
    HttpCallResponse = 10 "proxy_on_http_call_response",
    /// A shared queue has an entry.
    QueueReady = 11 "proxy_on_queue_ready",
    /// The exchange is over: write the access log.
    Log = 12 "proxy_on_log",
    /// The context may finish.
    Done = 13 "proxy_on_done",
    /// The context is gone.
    Delete = 14 "proxy_on_delete",
    /// The head of a gRPC stream's answer came.
    GrpcReceiveInitialMetadata = 15 "proxy_on_grpc_receive_initial_metadata",
    /// A gRPC message came.
    GrpcReceive = 16 "proxy_on_grpc_receive",
    /// A gRPC stream's trailers came.
    GrpcReceiveTrailingMetadata = 17 "proxy_on_grpc_receive_trailing_metadata",
    /// A gRPC call failed, or a stream ended.
    GrpcClose = 18 "proxy_on_grpc_close",
    /// A TCP connection was accepted.
    NewConnection = 19 "proxy_on_new_connection",
    /// Bytes came from the client of a TCP connection.
    DownstreamData = 20 "proxy_on_downstream_data",
    /// Bytes came from its upstream.
    UpstreamData = 21 "proxy_on_upstream_data",
    /// The connection to the client is closed.
    DownstreamConnectionClose = 22 "proxy_on_downstream_connection_close",
    /// The connection to the upstream is closed.
    UpstreamConnectionClose = 23 "proxy_on_upstream_connection_close",
    /// A Redis callout was answered, or failed.
    RedisCallResponse = 24 "proxy_on_redis_call_response",
}

/// A set of callbacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Callbacks(u32);

impl Callbacks {
    /// Whether `callback` is in the set.
    pub fn contains(self, callback: Callback) -> bool {
        self.0 & (1 << callback as u32) != 0
    }

    /// The set with `callback`.
    #[must_use]
    pub fn with(self, callback: Callback) -> Self {
        Self(self.0 | (1 << callback as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callbacks_are_a_set() {
        let set = Callbacks::default()
            .with(Callback::Log)
            .with(Callback::ContextCreate);
        for callback in Callback::ALL {
            let expected = matches!(callback, Callback::Log | Callback::ContextCreate);
            assert_eq!(set.contains(*callback), expected, "{}", callback.name());
        }
    }

    #[test]
    fn actions_are_read_as_envoy_reads_them() {
        let headers: Vec<_> = (0..6).map(Action::of_headers).collect();
        assert_eq!(
            headers,
            [
                Action::Continue,
                Action::PauseHeaders,
                Action::Continue,
                Action::Pause,
                Action::Pause,
                Action::Pause
            ]
        );
        let body: Vec<_> = (0..5).map(Action::of_body).collect();
        assert_eq!(
            body,
            [
                Action::Continue,
                Action::Pause,
                Action::Pause,
                Action::PauseAndDrop,
                Action::Pause
            ]
        );
    }
}
