//! Every bound of the runtime, with its reason. [`Limits`] may be set per plugin; the constants hold for all.

/// The bounds of one plugin that an operator may move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Linear memory of one VM, bytes. 64 MiB: ten times what our controls need, and 4 GiB for 64 VMs. At most [`MEMORY_BYTES_MAX`].
    pub memory_bytes: usize,
    /// CPU time of one stream callback, tick, or callout answer, ms. 10 ms: five times the slowest honest work known (RSA in
    /// the guest) on a slow core. Checked at epoch ticks, so a guest dies up to two ticks later;
    /// a tick stands for at most one and a half periods, so what a hypervisor takes from the thread at once is not the guest's.
    pub callback_cpu_ms: u64,
    /// Wall time of the same, ms. A throttled machine may stretch 10 ms of CPU; beyond 1 s clients have gone.
    pub callback_wall_ms: u64,
    /// CPU time of `_initialize`, `proxy_on_vm_start` and `proxy_on_configure`, each, ms. Rule sets are compiled here; 5 s.
    pub start_cpu_ms: u64,
    /// Wall time of the same, ms. Four times the CPU bound, for machines that are throttled while all workers start.
    pub start_wall_ms: u64,
    /// CPU time of all callbacks of one exchange together, ms. 100 ms: ten callbacks that use up their own bound, so that what each may do
    /// cannot be had for every chunk of a body. Counted at epoch ticks, each of which stands for [`EPOCH_MS`]; checked before a callback.
    pub request_cpu_ms: u64,
    /// Bytes of one body held for one filter while it pauses. 1 MiB: Envoy's default buffer limit.
    pub body_bytes: usize,
    /// Callouts in flight on one worker, HTTP, gRPC and Redis together; further ones fail. 64: more means that the upstream is down, and the plugin should see it. At most
    /// [`CALLOUTS_MAX`].
    pub callouts_in_flight: usize,
    /// Log lines a second on one worker, and as many at once; further ones are dropped and counted. 1,000: an access log of a line a request
    /// at a rate where nobody reads them, and under 4 MiB a second.
    pub log_lines_per_second: u32,
    /// VMs alive at once on one worker, the standing one and the spare included. Only [`Isolation::Request`](crate::Isolation::Request) makes
    /// more than those two: one for each exchange under way. 256: twice the streams of a busy HTTP/2 connection, and some 25 MiB for a
    /// guest that writes to 100 KiB.
    pub vms: u32,
    /// Spare VMs kept ready on one worker, 0 or 1: one takes over while the next is made.
    pub spare_vms: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 64 << 20,
            callback_cpu_ms: 10,
            callback_wall_ms: 1_000,
            start_cpu_ms: 5_000,
            start_wall_ms: 20_000,
            request_cpu_ms: 100,
            body_bytes: 1 << 20,
            callouts_in_flight: 64,
            log_lines_per_second: 1_000,
            vms: 256,
            spare_vms: 1,
        }
    }
}

/// Most that [`Limits::memory_bytes`] may be. 1 GiB, the bound compiled into Envoy.
pub const MEMORY_BYTES_MAX: usize = 1 << 30;
/// Elements of a guest's tables. Envoy's wasmtime integration allows 10 000; Go guests come near.
pub const TABLE_ELEMENTS_MAX: usize = 20_000;
/// Tables of a guest. One is usual; reference types may add some.
pub const TABLES_MAX: usize = 4;
/// VMs that the pools of one process hold: 16 plugins × 32 workers × 2 for spares × 2, since a reload stands beside the old policy; and as many
/// for exchanges with VMs of their own, and for policies from before that still have requests. 32 TiB of the 128 that a process can address,
/// since a VM has two memories (see `cards.rs`).
pub const VMS_MAX: u32 = 4096;
/// VMs of one snapshot that wait, made new, for their next exchange. 32: what finishes and what begins between two looks at a worker's sockets
/// differ by less, and some 5 MiB for a guest that writes to 100 KiB. What nobody needed for a second goes, but for one.
pub const IDLE_VMS_MAX: usize = 32;
/// Cards of 1 KiB that a VM has written and may yet be kept: more take longer to set back than a fresh VM takes to make.
pub const CARDS_RENEWED_MAX: usize = 1024;
/// The part of [`VMS_MAX`] that may wait so in all: an eighth. They hold places in the pools that other plugins may need.
pub const IDLE_VMS_PART: u32 = 8;
/// Bytes of a Wasm module. Go modules of 6 MiB are seen; compiling takes memory many times the size.
pub const MODULE_BYTES_MAX: usize = 32 << 20;
/// Imports unknown to the host that a module may have; each costs a walk through all of its imports. The largest vendor ABI known
/// adds twenty.
pub const UNKNOWN_IMPORTS_MAX: usize = 64;
/// Guest stack. wasmtime's default, fits worker threads of 2 MiB.
pub const STACK_BYTES: usize = 512 << 10;
/// Frames of a trap's backtrace in the log: enough to name the place, small enough to read.
pub const BACKTRACE_FRAMES: usize = 8;

/// Bytes of a serialized header map from the guest, as in Envoy.
pub const PAIRS_BYTES_MAX: usize = 1 << 20;
/// Pairs of a serialized header map from the guest, as in Envoy.
pub const PAIRS_MAX: usize = 1024;
/// Bytes of names and values in one header map after a guest's write. Double of what proxies accept from clients.
pub const HEADER_BYTES_MAX: usize = 128 << 10;
/// Headers in one map after a guest's write. Envoy's default is 100 for what comes in.
pub const HEADERS_MAX: usize = 256;
/// Bytes of one header name. The longest registered one has 45.
pub const HEADER_NAME_BYTES_MAX: usize = 256;

/// Bytes of a local response's body. It is held in memory at once.
pub const LOCAL_BODY_BYTES_MAX: usize = 1 << 20;
/// Bytes kept of why a local response was sent; the rest is cut. It is a word for the log.
pub const LOCAL_DETAILS_BYTES_MAX: usize = 256;

/// Bytes of one log line; the rest is cut. A body or a token does not belong there.
pub const LOG_BYTES_MAX: usize = 4096;
/// Log lines of one callback; further ones are dropped. A client must not fill the disk.
pub const LOG_LINES_PER_CALLBACK: u32 = 32;
/// Names of denied capabilities, properties and foreign functions that one plugin is warned of on one worker. A guest makes names up as it likes.
pub const DENIALS_NAMED_MAX: usize = 64;
/// Error lines kept for [`StartError`](crate::StartError).
pub const START_LOG_LINES: usize = 32;

/// Bytes of all properties set on one stream or one root context.
pub const PROPERTY_BYTES_MAX: usize = 64 << 10;
/// Bytes of all properties set on one connection: it may live for hours, and there may be thousands.
pub const CONNECTION_PROPERTY_BYTES_MAX: usize = 4 << 10;
/// Properties set on, or declared for, one stream or one root context; they are searched one by one.
pub const PROPERTIES_MAX: usize = 64;
/// Bytes of a property path.
pub const PROPERTY_PATH_BYTES_MAX: usize = 1024;

/// Bytes of keys and values in the shared data of one `vm_id`.
pub const SHARED_DATA_BYTES_MAX: usize = 64 << 20;
/// Keys in the shared data of one `vm_id`.
pub const SHARED_DATA_KEYS_MAX: usize = 1 << 17;
/// Bytes of one shared value. A JWKS or a shard of counters fits.
pub const SHARED_VALUE_BYTES_MAX: usize = 4 << 20;
/// Shared queues in the process.
pub const QUEUES_MAX: usize = 1024;
/// Entries of one shared queue.
pub const QUEUE_ENTRIES_MAX: usize = 1024;
/// Bytes in one shared queue.
pub const QUEUE_BYTES_MAX: usize = 4 << 20;

/// Most that [`Limits::callouts_in_flight`] may be: they are searched one by one.
pub const CALLOUTS_MAX: usize = 1024;
/// Bytes of a callout's body.
pub const CALLOUT_BODY_BYTES_MAX: usize = 1 << 20;
/// gRPC calls and streams of one VM in flight; [`Limits::callouts_in_flight`] bounds them over all VMs of a plugin, with other callouts. Streams live long: one or two a backend are usual.
pub const GRPC_STREAMS_MAX: usize = 64;
/// Streams that ended on the other side and that the plugin has not closed. It may still do so, but most never do.
pub const GRPC_ENDED_MAX: usize = 64;
/// Bytes of one gRPC message, either way. 4 MiB, what gRPC libraries take by default.
pub const GRPC_MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Bytes of a user name or a password for Redis. Tokens that cloud services take for passwords have two or three KiB.
pub const REDIS_SECRET_BYTES_MAX: usize = 16 << 10;
/// Bytes of one Redis reply, as of an HTTP callout's answer: it is held whole, and copied into the guest.
pub const REDIS_REPLY_BYTES_MAX: usize = 1 << 20;
/// Time-out of Redis callouts before `proxy_redis_init`, ms. As in Higress.
pub const REDIS_TIMEOUT_MS: u32 = 1_000;
/// Longest time-out of a callout, ms; a longer one is cut to it.
pub const CALLOUT_TIMEOUT_MS_MAX: u32 = 300_000;
/// Shortest tick period, ms; a shorter one is lengthened. 100 ticks a second are more than any honest plugin needs.
pub const TICK_PERIOD_MS_MIN: u32 = 10;

/// Metrics of the whole process. Each makes a line in the exposition.
pub const METRICS_MAX: usize = 4096;
/// Metric ids of one VM: each `proxy_define_metric` makes one, even for a name known.
pub const METRIC_IDS_MAX: usize = 4096;
/// Bytes of a metric name.
pub const METRIC_NAME_BYTES_MAX: usize = 256;

/// Bytes of `random_get`, as in Envoy.
pub const RANDOM_BYTES_MAX: u32 = 64 << 10;
/// Entries of an I/O vector in `fd_write`. Standard libraries use one or two.
pub const IOVECS_MAX: u32 = 64;
/// Bytes of a foreign function's result.
pub const FOREIGN_RESULT_BYTES_MAX: usize = 4 << 20;

/// Stream contexts of one VM alive at once. Each is an exchange in flight; the proxy bounds those first.
pub const CONTEXTS_MAX: usize = 1 << 16;

/// What one epoch tick stands for where CPU time is counted by ticks, ms: their period (see [`Runtime::tick`](crate::Runtime::tick)).
pub const EPOCH_MS: u64 = 5;

/// Least time between the beginnings of two snapshots of one plugin on one worker, ms. Compiling one takes up to half a second of a
/// core: under 2 % of it.
pub const SNAPSHOT_PERIOD_MS: u64 = 30_000;
/// Bytes of linear memory in a snapshot. What is copied while the worker waits (some ms), and what wasmtime turns into a copy-on-write
/// image however thinly it is filled.
pub const SNAPSHOT_BYTES_MAX: usize = 16 << 20;

/// First wait after a start that failed, ms; it doubles up to [`BACKOFF_MS_MAX`], each time ± 25 %.
pub const BACKOFF_MS_MIN: u64 = 1_000;
/// Longest wait after starts that failed, ms.
pub const BACKOFF_MS_MAX: u64 = 60_000;

/// One callback in this many is timed for the latency histograms: two clock reads (40 ns) are a tenth of a small request.
pub const LATENCY_SAMPLING: u32 = 16;
