//! A Proxy-Wasm host as a library.
//!
//! (The crate's documentation follows with the chain.)

mod abi;
mod body;
mod callout;
mod chain;
mod context;
mod embedder;
mod exchange;
mod fields;
mod hostcalls;
pub mod limits;
mod local_response;
mod memory;
mod metrics;
mod module;
mod pairs;
mod plugin;
mod property;
mod shared_data;
mod shared_queue;
mod spec;
mod state;
mod stats;
mod stream;
mod vm;

pub use abi::{AbiVersion, Callback, Callbacks, LogLevel, MetricKind, Status, TrapKind};
pub use chain::{Chain, HttpStream, Progress};
pub use callout::{CalloutError, CalloutId, HttpCall, HttpCallResponse};
pub use embedder::{Embedder, StreamToken};
pub use exchange::{ConnectionInfo, Direction, Exchange, Protocol, RouteInfo, StreamInfo, TlsInfo, TlsVersion};
pub use fields::{FieldList, Fields, InvalidField};
pub use limits::Limits;
pub use metrics::{HISTOGRAM_BOUNDS, MetricSnapshot, MetricValue, Metrics};
pub use module::{LoadError, Metadata, Module, ModuleCache, NoCache, Runtime, RuntimeError, RuntimeOptions};
pub use plugin::{Plugin, StartError};
pub use shared_data::SharedData;
pub use shared_queue::{QueueTarget, SharedQueues};
pub use spec::{FailurePolicy, PluginId, PluginSpec};
pub use state::Shared;
pub use stats::{LATENCY_BOUNDS_NS, LatencySnapshot, PluginStats};
pub use vm::StartFailure;
