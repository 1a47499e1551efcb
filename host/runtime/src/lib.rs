//! A Proxy-Wasm host as a library: it runs HTTP and TCP filters built for the Proxy-Wasm ABI (0.1.0, 0.2.0, 0.2.1), as Envoy runs them.
//!
//! It has no sockets, no files, no clock, no async runtime and no HTTP types, so that any Rust proxy can embed it. The embedder lends
//! header maps ([`Fields`]), tells the time and makes callouts ([`Embedder`]), and keeps compiled code ([`ModuleCache`]).
//!
//! # The life of a request
//!
//! [`Runtime::load`] compiles a module once a process; [`Plugin::start`] makes and configures a VM once a worker; a [`Chain`] orders the
//! plugins of a route; an [`HttpStream`] takes one exchange through it, phase by phase. Each phase answers with a [`Progress`]. A
//! [`TcpStream`] takes a connection through it byte by byte. [`Plugin::tend`], called every second or so, keeps a spare VM, or the snapshot
//! that VMs of single exchanges begin from ([`Isolation`]).
//!
//! `examples/tower` in this crate's folder is a program that does all of it: a chain as a `tower` layer in front of any `http` service, with
//! bodies, trailers, timers and answers of filters, on tokio and hyper. Take its folder `filter` as it is, or to see what an embedder owes.
//!
//! # What the embedder owes
//!
//! | what | when |
//! |---|---|
//! | [`Runtime::tick`] or [`Runtime::ticker`] | every 5 ms, from a thread that is never held up |
//! | paths and forwarding headers made canonical | before [`HttpStream::new`]: filters judge what they are shown |
//! | [`HttpStream::resume`], both directions | after [`Embedder::wake`], once the runtime has returned |
//! | the body, before the headers have passed | while [`HttpStream::wants_body`], which plugins with [`PluginSpec::allow_on_headers_stop_iteration`] cause |
//! | [`Plugin::tend`] | every second or so |
//! | [`Plugin::on_tick`], [`Plugin::on_queue_ready`], [`Plugin::on_http_call_response`] | as [`Embedder`] says |
//! | a bound on how long an exchange may be held | always: a filter may pause for ever |
//! | [`HttpStream::finish`], or its drop | at the end of each exchange, also of those that broke off |
//! | [`Plugin::retire`] at once, [`Plugin::shut_down`] after its last exchange | where another plugin takes a plugin's place |
//! | [`SharedQueues::leave`], and a call of [`Plugin::on_queue_ready`] of each that it names | once that plugin has shut down: whoever had its queues before is told again |
//! | [`Plugin::owned_request_headers`] removed from requests | on routes where that plugin does not run |
//!
//! # What holds always
//!
//! 1. Nothing that a guest does can panic, hang or exhaust the host: every bound stands in [`limits`] with its reason. A thread must
//!    call [`Runtime::tick`] every 5 ms, or a guest that loops is not stopped.
//! 2. Everything of one worker (plugins, chains, streams) stays on its thread; [`Runtime`], [`Module`], [`Shared`] and
//!    [`PluginStats`] are shared by all.
//! 3. A VM that traps or overruns its time is dropped at once and never entered again. The request that broke it is refused, the next
//!    one gets a fresh VM.
//! 4. A local response is final.
//! 5. Where the ABI text and Envoy differ, Envoy counts; where Envoy is unsafe, we are not: header names and values that could split a
//!    message are refused, as are status codes that are none; a reply from `proxy_on_log` does nothing.
//!
//! # What may change
//!
//! Types marked `#[non_exhaustive]` grow in minor versions: make them through `new` or `Default` and set fields. [`Embedder`] and [`Fields`] grow only
//! by methods with a body. No type of wasmtime is part of the interface, so its versions may change in minor versions, too; the compiled code
//! in a [`ModuleCache`] is then made anew. Numbers in [`limits`] are behaviour, not interface. [`Progress`] and [`Direction`] are complete: a
//! further way for an exchange to go on would be a major version.
//!
//! # Example
//!
//! ```
//! use std::{rc::Rc, sync::Arc, time::Duration};
//!
//! use portcullis_runtime::*;
//!
//! /// A program without clusters, timers and crypto.
//! struct World;
//!
//! impl Embedder for World {
//!     fn worker(&self) -> u32 { 0 }
//!     fn unix_time_ns(&self) -> u64 { 1_700_000_000_000_000_000 }
//!     fn monotonic_ns(&self) -> u64 { 0 }
//!     fn thread_cpu_ns(&self) -> u64 { 0 }
//!     fn random(&self, out: &mut [u8]) { out.fill(4) }
//!     fn log(&self, plugin: &PluginSpec, level: LogLevel, message: &[u8]) {
//!         eprintln!("{level:?} {}: {}", plugin.name, message.escape_ascii());
//!     }
//!     fn set_tick_period(&self, _: PluginId, _: Option<Duration>) {}
//!     fn start_http_call(&self, _: PluginId, _: CalloutId, _: HttpCall) -> Result<(), CalloutError> {
//!         Err(CalloutError::UnknownCluster)
//!     }
//!     fn cancel_calls(&self, _: PluginId) {}
//!     fn wake(&self, _: StreamToken) {}
//!     fn notify_queue(&self, _: QueueTarget) {}
//!     fn foreign_function(&self, _: &str, _: &[u8]) -> Result<Vec<u8>, Status> { Err(Status::NotFound) }
//! }
//!
//! // A plugin that answers every request with 403.
//! let wasm = wat::parse_str(r#"(module
//!     (import "env" "proxy_send_local_response"
//!         (func $answer (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
//!     (memory (export "memory") 1)
//!     (func (export "proxy_abi_version_0_2_1"))
//!     (func (export "malloc") (param i32) (result i32) (i32.const 8))
//!     (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
//!         (call $answer (i32.const 403) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
//!             (i32.const 0) (i32.const 0) (i32.const -1))))"#)?;
//!
//! let runtime = Runtime::new(RuntimeOptions::default())?;
//! let module = runtime.load(&wasm, &NoCache)?;
//! let mut spec = PluginSpec::new("refuse");
//! spec.limits.memory_bytes = 1 << 20;
//! let plugin = Plugin::start(PluginId(1), module, Arc::new(spec), Arc::new(Shared::default()), Rc::new(World))?;
//! let chain = Chain::new(vec![plugin]);
//!
//! let mut headers = FieldList::new();
//! for (name, value) in [(":method", "GET"), (":path", "/"), (":authority", "example.com")] {
//!     headers.push(name, value);
//! }
//! let connection = ConnectionInfo::new(1, "192.0.2.1:4711".parse()?, "192.0.2.2:80".parse()?);
//! let route = RouteInfo::default();
//! let info = StreamInfo::new(Rc::new(connection), Rc::new(route), Protocol::Http11, World.unix_time_ns());
//! let mut stream = HttpStream::new(&chain, Exchange::new(Box::new(headers), info), StreamToken(1));
//! assert_eq!(stream.request_headers(true), Progress::Respond);
//! assert_eq!(stream.response_headers(true), Progress::Continue);
//! let status = stream.exchange().response_headers.as_ref().and_then(|headers| headers.get(b":status").map(<[u8]>::to_vec));
//! assert_eq!(status.as_deref(), Some(&b"403"[..]));
//! let body = stream.take_local_body(); // sent after these headers; empty here
//! stream.finish(); // `proxy_on_log`, `proxy_on_done`, `proxy_on_delete`
//! # assert!(body.is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![warn(missing_debug_implementations)]

mod abi;
mod allow;
mod body;
mod bounds;
mod callout;
mod cards;
mod chain;
mod context;
mod embedder;
mod exchange;
mod exports;
mod fields;
mod filter_state;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod grpc;
mod grpc_service;
mod hostcalls;
mod imports;
pub mod limits;
mod local_response;
mod log_rate;
mod memory;
mod metadata;
mod metrics;
mod module;
mod module_cache;
mod pairs;
mod plugin;
mod property;
mod recorder;
mod redis;
mod runtime;
mod shared_data;
mod shared_queue;
mod signature;
mod snapshot;
mod spec;
mod state;
mod stats;
mod stream;
mod vm;

pub use abi::{AbiVersion, Callback, Callbacks, LogLevel, MetricKind, Status, TrapKind};
pub use allow::{Allow, PropertyPaths};
pub use callout::{CalloutError, CalloutId, CalloutKind, HttpCall, HttpCallResponse};
pub use chain::{Chain, HttpStream, Observer, Peer, Progress, TcpProgress, TcpStream, Verdict};
pub use embedder::{Embedder, SnapshotWork, StreamToken};
pub use exchange::{
    ConnectionInfo, Direction, Exchange, Protocol, RouteInfo, StreamInfo, TlsInfo, TlsVersion,
};
pub use fields::{FieldList, Fields, InvalidField};
pub use filter_state::ConnectionState;
pub use grpc::{GrpcCall, GrpcEvent, GrpcStatus};
pub use imports::UnknownImports;
pub use limits::Limits;
pub use metadata::Metadata;
pub use metrics::{HISTOGRAM_BOUNDS, MetricSnapshot, MetricValue, Metrics};
pub use module::{LoadError, Module};
pub use module_cache::{ModuleCache, NoCache};
pub use plugin::{Plugin, StartError};
pub use recorder::Recorder;
pub use redis::{RedisCall, RedisOptions, RedisReply};
pub use runtime::{Runtime, RuntimeError, RuntimeOptions};
pub use shared_data::SharedData;
pub use shared_queue::{QueueTarget, SharedQueues};
pub use spec::{FailurePolicy, Isolation, PluginId, PluginSpec};
pub use state::Shared;
pub use stats::{DenialKind, LATENCY_BOUNDS_NS, LatencySnapshot, PluginStats, StatsTable};
pub use vm::StartFailure;
