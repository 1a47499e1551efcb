//! What the runtime asks of the program it is embedded in: clocks, chance, log, timers, callouts, crypto.

use std::time::Duration;

use bytes::Bytes;

use crate::{
    abi::{LogLevel, Status},
    callout::{CalloutError, CalloutId, HttpCall},
    grpc::GrpcCall,
    redis::{RedisCall, RedisOptions},
    shared_queue::QueueTarget,
    spec::{PluginId, PluginSpec},
};

/// The embedder's name for an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamToken(pub u64);

/// The making of a snapshot: to be run on a thread that waits for nothing else.
pub struct SnapshotWork(Box<dyn FnOnce() + Send>);

impl SnapshotWork {
    pub(crate) fn new(work: impl FnOnce() + Send + 'static) -> Self {
        Self(Box::new(work))
    }

    /// Does it. The plugin finds the result when it is tended next.
    pub fn run(self) {
        (self.0)();
    }
}

impl std::fmt::Debug for SnapshotWork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotWork").finish_non_exhaustive()
    }
}

/// One per worker thread. The runtime calls it in the midst of its own work, so nothing here may call back into a plugin or stream at
/// once: note the wish, and act when the runtime has returned.
pub trait Embedder {
    /// Wall clock, ns since 1970.
    fn unix_time_ns(&self) -> u64;
    /// A clock that never goes back, ns.
    fn monotonic_ns(&self) -> u64;
    /// CPU time of this thread, ns. Read only at epoch ticks, while a callback overstays.
    fn thread_cpu_ns(&self) -> u64;
    /// Fills `out` with bytes that nobody can foretell.
    fn random(&self, out: &mut [u8]);
    /// A line from a plugin, or about it. Bytes are the guest's: they may be no UTF-8, and hold line ends.
    fn log(&self, plugin: &PluginSpec, level: LogLevel, message: &[u8]);
    /// The least level that is written; below it, lines are dropped before they are copied.
    fn log_level(&self) -> LogLevel {
        LogLevel::Info
    }
    /// Calls [`Plugin::on_tick`](crate::Plugin::on_tick) at this period from now on, each time after the last one is done; `None` ends it.
    fn set_tick_period(&self, plugin: PluginId, period: Option<Duration>);
    /// Starts a callout, answered through [`Plugin::on_http_call_response`](crate::Plugin::on_http_call_response).
    fn start_http_call(
        &self,
        plugin: PluginId,
        id: CalloutId,
        call: HttpCall,
    ) -> Result<(), CalloutError>;
    /// Starts a gRPC call or stream, answered through [`Plugin::on_grpc_event`](crate::Plugin::on_grpc_event). An embedder without HTTP/2
    /// leaves it, and all plugins are told that there is no such cluster.
    fn start_grpc(
        &self,
        plugin: PluginId,
        id: CalloutId,
        call: GrpcCall,
    ) -> Result<(), CalloutError> {
        let _ = (plugin, id, call);
        Err(CalloutError::UnknownCluster)
    }
    /// Sends a message, if any, on a stream that was started here, and ends this side of it where it was the last. A stream whose bytes are
    /// taken too slowly may refuse more.
    fn send_grpc(
        &self,
        plugin: PluginId,
        id: CalloutId,
        message: Option<Bytes>,
        is_last: bool,
    ) -> Result<(), CalloutError> {
        let _ = (plugin, id, message, is_last);
        Err(CalloutError::Overloaded)
    }
    /// Says how a plugin's calls to a Redis cluster are made from now on, whichever of its VMs makes them. Calls under way by other options may
    /// fail. An embedder without Redis leaves this and the next, and all plugins are told that there is no such cluster.
    fn set_redis(
        &self,
        plugin: PluginId,
        cluster: String,
        options: RedisOptions,
    ) -> Result<(), CalloutError> {
        let _ = (plugin, cluster, options);
        Err(CalloutError::UnknownCluster)
    }
    /// Starts a Redis callout, answered through [`Plugin::on_redis_reply`](crate::Plugin::on_redis_reply). Where nothing was set before, the
    /// default options hold.
    fn start_redis(
        &self,
        plugin: PluginId,
        id: CalloutId,
        call: RedisCall,
    ) -> Result<(), CalloutError> {
        let _ = (plugin, id, call);
        Err(CalloutError::UnknownCluster)
    }
    /// Drops one callout of any kind: nothing more is told of it. Without this, what comes of it is dropped when it comes.
    fn cancel_call(&self, plugin: PluginId, id: CalloutId) {
        let _ = (plugin, id);
    }
    /// Drops all callouts of this plugin, gRPC and Redis included: it has ended.
    fn cancel_calls(&self, plugin: PluginId);
    /// Something off the request path is due: call [`Plugin::tend`](crate::Plugin::tend) once what waits is done. An embedder that calls
    /// it every second anyway needs not listen.
    fn tend_soon(&self, _plugin: PluginId) {}
    /// Lends a thread to work that takes up to a second of CPU, and that must not hold up this one: [`SnapshotWork::run`]. Dropped, the
    /// plugin goes on without a snapshot for a while.
    fn lend_thread(&self, _work: SnapshotWork) {}
    /// A stream has something to do: call [`HttpStream::resume`](crate::HttpStream::resume) in both directions. May come for a stream that has ended.
    fn wake(&self, stream: StreamToken);
    /// A queue has an entry: call [`Plugin::on_queue_ready`](crate::Plugin::on_queue_ready) of that plugin, on that worker.
    fn notify_queue(&self, target: QueueTarget);
    /// Envoy's foreign functions that need the outside, `verify_signature` above all. Unknown names are [`Status::NotFound`].
    fn foreign_function(&self, name: &str, arguments: &[u8]) -> Result<Vec<u8>, Status>;
    /// Which worker this is: another number for each thread that runs plugins. It stands in [`QueueTarget`], and what is counted of a plugin
    /// is kept by it, without locks.
    fn worker(&self) -> u32;
}
