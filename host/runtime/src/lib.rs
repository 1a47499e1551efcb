//! A Proxy-Wasm host as a library.
//!
//! (The crate's documentation follows with the chain.)

mod abi;
mod body;
mod callout;
mod embedder;
mod exchange;
mod fields;
pub mod limits;
mod memory;
mod metrics;
mod pairs;
mod property;
mod shared_data;
mod shared_queue;
mod spec;
mod stats;
mod stream;

pub use abi::{AbiVersion, Callback, Callbacks, LogLevel, MetricKind, Status, TrapKind};
pub use callout::{CalloutError, CalloutId, HttpCall, HttpCallResponse};
pub use embedder::{Embedder, StreamToken};
pub use exchange::{ConnectionInfo, Direction, Exchange, Protocol, RouteInfo, StreamInfo, TlsInfo, TlsVersion};
pub use fields::{FieldList, Fields, InvalidField};
pub use limits::Limits;
pub use metrics::{HISTOGRAM_BOUNDS, MetricSnapshot, MetricValue, Metrics};
pub use shared_data::SharedData;
pub use shared_queue::{QueueTarget, SharedQueues};
pub use spec::{FailurePolicy, PluginId, PluginSpec};
pub use stats::{LATENCY_BOUNDS_NS, LatencySnapshot, PluginStats};
