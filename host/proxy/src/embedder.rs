//! What the runtime asks of this worker: clocks, log, timers, callouts, crypto.
//!
//! Nothing here calls back into a plugin: timers and callouts are tasks of their own, waking only schedules.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use bytes::Bytes;
use portcullis_runtime::{
    CalloutError, CalloutId, CalloutKind, Embedder, GrpcCall, GrpcEvent, HttpCall, LogLevel,
    Plugin, PluginId, PluginSpec, QueueTarget, RedisCall, RedisOptions, SnapshotWork, Status,
    StreamToken,
};
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::{AbortHandle, spawn_local};

use crate::callout;
use crate::foreign::ForeignFunctions;
use crate::grpc::{self, Outgoing};
use crate::lent_thread;
use crate::limits::CALLOUTS_MAX;
use crate::redis::{RedisConnections, Tell};
use crate::stream::Stream;
use crate::upstream::Upstream;
use crate::worker::Command;

/// One worker's side of the runtime.
pub(crate) struct WorkerEmbedder {
    index: u32,
    begun: Instant,
    random: SystemRandom,
    foreign: ForeignFunctions,
    upstreams: Vec<Rc<Upstream>>,
    workers: Vec<UnboundedSender<Command>>,
    plugins: RefCell<HashMap<PluginId, Weak<Plugin>>>,
    ticks: RefCell<HashMap<PluginId, AbortHandle>>,
    calls: RefCell<HashMap<(PluginId, CalloutId), AbortHandle>>,
    /// The sending sides of gRPC callouts, which are among the calls.
    outgoing: RefCell<HashMap<(PluginId, CalloutId), Outgoing>>,
    redis: RedisConnections,
    tell_redis: Tell,
    streams: RefCell<Streams>,
    /// The task that is this worker's own, to find itself by when it starts others.
    itself: Weak<Self>,
    log_level: Cell<LogLevel>,
}

/// Exchanges by token. A token is a place and how often the place was given out before, so that an old one finds nobody.
#[derive(Default)]
struct Streams {
    places: Vec<(u32, Sleeper)>,
    free: Vec<u32>,
}

/// Who is woken by a token.
enum Sleeper {
    Nobody,
    Http(Weak<Stream>),
    Tcp(Weak<Notify>),
}

impl WorkerEmbedder {
    /// For worker `index`; `workers` are all of them, for queues.
    pub(crate) fn new(
        index: u32,
        upstreams: Vec<Rc<Upstream>>,
        workers: Vec<UnboundedSender<Command>>,
    ) -> Rc<Self> {
        Rc::new_cyclic(|itself| Self {
            index,
            begun: Instant::now(),
            random: SystemRandom::new(),
            foreign: ForeignFunctions::default(),
            upstreams,
            workers,
            plugins: RefCell::default(),
            ticks: RefCell::default(),
            calls: RefCell::default(),
            outgoing: RefCell::default(),
            redis: RedisConnections::default(),
            tell_redis: tell_redis(itself),
            streams: RefCell::default(),
            itself: Weak::clone(itself),
            log_level: Cell::new(log_level()),
        })
    }

    /// ns since 1970.
    pub(crate) fn unix_ns(&self) -> u64 {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Makes a plugin reachable for ticks, callouts and queues.
    pub(crate) fn register(&self, id: PluginId, plugin: &Rc<Plugin>) {
        self.plugins.borrow_mut().insert(id, Rc::downgrade(plugin));
    }

    /// The plugin of this id, once it has been registered.
    pub(crate) fn plugin(&self, id: PluginId) -> Option<Rc<Plugin>> {
        self.plugins.borrow().get(&id).and_then(Weak::upgrade)
    }

    /// The upstream of this name.
    pub(crate) fn upstream(&self, cluster: &str) -> Option<&Rc<Upstream>> {
        self.upstreams
            .iter()
            .find(|upstream| upstream.cluster.policy.name == cluster)
    }

    /// What is due from time to time: idle connections to upstreams are closed, plugins tended.
    pub(crate) fn sweep(&self, now: Instant) {
        for upstream in &self.upstreams {
            upstream.sweep(now);
        }
        let plugins: Vec<_> = self
            .plugins
            .borrow()
            .values()
            .filter_map(Weak::upgrade)
            .collect();
        plugins.iter().for_each(|plugin| plugin.tend());
    }

    /// A callout has ended.
    pub(crate) fn forget_call(&self, plugin: PluginId, id: CalloutId) {
        self.calls.borrow_mut().remove(&(plugin, id));
        self.outgoing.borrow_mut().remove(&(plugin, id));
    }

    /// Gives an exchange a token.
    pub(crate) fn admit(&self, stream: Weak<Stream>) -> StreamToken {
        self.seat(Sleeper::Http(stream))
    }

    /// Gives a TCP connection a token.
    pub(crate) fn admit_tcp(&self, news: Weak<Notify>) -> StreamToken {
        self.seat(Sleeper::Tcp(news))
    }

    fn seat(&self, stream: Sleeper) -> StreamToken {
        let mut streams = self.streams.borrow_mut();
        let index = streams.free.pop();
        if let Some(index) = index
            && let Some((times, place)) = usize::try_from(index)
                .ok()
                .and_then(|index| streams.places.get_mut(index))
        {
            *place = stream;
            return token(index, *times);
        }
        let index = u32::try_from(streams.places.len()).unwrap_or(u32::MAX);
        streams.places.push((0, stream));
        token(index, 0)
    }

    /// Takes a token back.
    pub(crate) fn dismiss(&self, token: StreamToken) {
        let mut streams = self.streams.borrow_mut();
        let (index, times) = parts(token);
        if let Some(place) = usize::try_from(index)
            .ok()
            .and_then(|index| streams.places.get_mut(index))
            && place.0 == times
        {
            *place = (times.wrapping_add(1), Sleeper::Nobody);
            streams.free.push(index);
        }
    }

    /// Ends all timers and callouts.
    pub(crate) fn stop(&self) {
        self.ticks
            .borrow_mut()
            .drain()
            .for_each(|(_, task)| task.abort());
        self.calls
            .borrow_mut()
            .drain()
            .for_each(|(_, task)| task.abort());
        self.redis.stop();
    }
}

fn tell_redis(worker: &Weak<WorkerEmbedder>) -> Tell {
    let worker = Weak::clone(worker);
    Rc::new(move |plugin, id, reply| {
        let plugin = worker.upgrade().and_then(|worker| worker.plugin(plugin));
        if let Some(plugin) = plugin {
            plugin.on_redis_reply(id, reply);
        }
    })
}

fn token(index: u32, times: u32) -> StreamToken {
    StreamToken(u64::from(times) << 32 | u64::from(index))
}

fn parts(token: StreamToken) -> (u32, u32) {
    let half = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    (half(token.0), half(token.0 >> 32))
}

impl Embedder for WorkerEmbedder {
    fn unix_time_ns(&self) -> u64 {
        self.unix_ns()
    }

    fn monotonic_ns(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn thread_cpu_ns(&self) -> u64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or(0);
        seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(nanoseconds)
    }

    fn random(&self, out: &mut [u8]) {
        // aws-lc-rs' generator fails only where the system has no randomness at all, and then nothing here is safe.
        if self.random.fill(out).is_err() {
            tracing::error!("the system gives no random bytes");
            std::process::abort();
        }
    }

    fn log(&self, plugin: &PluginSpec, level: LogLevel, message: &[u8]) {
        let text = one_line(message);
        let name = plugin.name.as_str();
        match level {
            LogLevel::Trace => tracing::trace!(target: "plugin", plugin = name, "{text}"),
            LogLevel::Debug => tracing::debug!(target: "plugin", plugin = name, "{text}"),
            LogLevel::Info => tracing::info!(target: "plugin", plugin = name, "{text}"),
            LogLevel::Warn => tracing::warn!(target: "plugin", plugin = name, "{text}"),
            LogLevel::Error | LogLevel::Critical => {
                tracing::error!(target: "plugin", plugin = name, "{text}")
            }
        }
    }

    fn log_level(&self) -> LogLevel {
        self.log_level.get()
    }

    fn set_tick_period(&self, plugin: PluginId, period: Option<Duration>) {
        let mut ticks = self.ticks.borrow_mut();
        if let Some(task) = ticks.remove(&plugin) {
            task.abort();
        }
        let (Some(period), Some(worker)) = (period, self.itself.upgrade()) else {
            return;
        };
        let task = spawn_local(async move {
            loop {
                // From the end of one tick to the start of the next, as in Envoy.
                tokio::time::sleep(period).await;
                match worker.plugin(plugin) {
                    Some(plugin) => plugin.on_tick(),
                    None => return,
                }
            }
        });
        ticks.insert(plugin, task.abort_handle());
    }

    fn start_http_call(
        &self,
        plugin: PluginId,
        id: CalloutId,
        call: HttpCall,
    ) -> Result<(), CalloutError> {
        let upstream = self
            .upstream(&call.cluster)
            .ok_or(CalloutError::UnknownCluster)?;
        let mut calls = self.calls.borrow_mut();
        if calls.len() >= CALLOUTS_MAX {
            return Err(CalloutError::Overloaded);
        }
        let (upstream, itself) = (Rc::clone(upstream), Weak::clone(&self.itself));
        let task = spawn_local(async move {
            let response = callout::call(&upstream, call).await;
            let Some(worker) = itself.upgrade() else {
                return;
            };
            worker.forget_call(plugin, id);
            if let Some(plugin) = worker.plugin(plugin) {
                plugin.on_http_call_response(id, response);
            }
        });
        calls.insert((plugin, id), task.abort_handle());
        Ok(())
    }

    fn start_grpc(
        &self,
        plugin: PluginId,
        id: CalloutId,
        call: GrpcCall,
    ) -> Result<(), CalloutError> {
        let upstream = self
            .upstream(&call.cluster)
            .ok_or(CalloutError::UnknownCluster)?;
        let mut calls = self.calls.borrow_mut();
        if calls.len() >= CALLOUTS_MAX {
            return Err(CalloutError::Overloaded);
        }
        let (mut outgoing, body) = grpc::channel();
        if let Some(message) = &call.message {
            outgoing.send(Some(message.clone()), true)?;
        }
        let (upstream, itself) = (Rc::clone(upstream), Weak::clone(&self.itself));
        let task = spawn_local(async move {
            let tell = |event| {
                let Some(worker) = itself.upgrade() else {
                    return;
                };
                if matches!(event, GrpcEvent::Close(_)) {
                    worker.forget_call(plugin, id);
                }
                if let Some(plugin) = worker.plugin(plugin) {
                    plugin.on_grpc_event(id, event);
                }
            };
            grpc::converse(&upstream, call, body, tell).await;
        });
        calls.insert((plugin, id), task.abort_handle());
        self.outgoing.borrow_mut().insert((plugin, id), outgoing);
        Ok(())
    }

    fn send_grpc(
        &self,
        plugin: PluginId,
        id: CalloutId,
        message: Option<Bytes>,
        is_last: bool,
    ) -> Result<(), CalloutError> {
        let mut outgoing = self.outgoing.borrow_mut();
        let outgoing = outgoing
            .get_mut(&(plugin, id))
            .ok_or(CalloutError::Overloaded)?;
        outgoing.send(message, is_last)
    }

    fn set_redis(
        &self,
        plugin: PluginId,
        cluster: String,
        options: RedisOptions,
    ) -> Result<(), CalloutError> {
        let upstream = self
            .upstream(&cluster)
            .ok_or(CalloutError::UnknownCluster)?;
        self.redis.set(plugin, cluster, upstream, options);
        Ok(())
    }

    fn start_redis(
        &self,
        plugin: PluginId,
        id: CalloutId,
        call: RedisCall,
    ) -> Result<(), CalloutError> {
        let upstream = self
            .upstream(&call.cluster)
            .ok_or(CalloutError::UnknownCluster)?;
        self.redis
            .start(plugin, id, call, upstream, &self.tell_redis)
    }

    fn cancel_call(&self, plugin: PluginId, id: CalloutId) {
        if id.kind() == CalloutKind::Redis {
            self.redis.cancel(plugin, id);
            return;
        }
        if let Some(task) = self.calls.borrow_mut().remove(&(plugin, id)) {
            task.abort();
        }
        self.outgoing.borrow_mut().remove(&(plugin, id));
    }

    fn cancel_calls(&self, plugin: PluginId) {
        self.redis.cancel_all(plugin);
        self.outgoing
            .borrow_mut()
            .retain(|(owner, _), _| *owner != plugin);
        self.calls.borrow_mut().retain(|(owner, _), task| {
            let others = *owner != plugin;
            if !others {
                task.abort();
            }
            others
        });
    }

    fn tend_soon(&self, plugin: PluginId) {
        let Some(worker) = self.itself.upgrade() else {
            return;
        };
        spawn_local(async move {
            // Behind the tasks that are ready now: requests among them.
            tokio::task::yield_now().await;
            if let Some(plugin) = worker.plugin(plugin) {
                plugin.tend();
            }
        });
    }

    fn lend_thread(&self, work: SnapshotWork) {
        lent_thread::lend(work);
    }

    fn wake(&self, token: StreamToken) {
        let streams = self.streams.borrow();
        let (index, times) = parts(token);
        let place = usize::try_from(index)
            .ok()
            .and_then(|index| streams.places.get(index));
        match place {
            Some((given, Sleeper::Http(stream))) if *given == times => {
                if let Some(stream) = stream.upgrade() {
                    stream.wake();
                }
            }
            Some((given, Sleeper::Tcp(news))) if *given == times => {
                if let Some(news) = news.upgrade() {
                    news.notify_one();
                }
            }
            _ => {}
        }
    }

    fn notify_queue(&self, target: QueueTarget) {
        let worker = usize::try_from(target.worker)
            .ok()
            .and_then(|index| self.workers.get(index));
        if let Some(worker) = worker {
            // Fails only while that worker is stopping.
            worker.send(Command::QueueReady(target)).ok();
        }
    }

    fn foreign_function(&self, name: &str, arguments: &[u8]) -> Result<Vec<u8>, Status> {
        self.foreign.call(name, arguments)
    }

    fn worker(&self) -> u32 {
        self.index
    }
}

/// What a guest wrote, as one line that cannot look like two or drive a terminal.
pub(crate) fn one_line(message: &[u8]) -> String {
    let mut line = String::with_capacity(message.len());
    for c in String::from_utf8_lossy(message).chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

/// The least level that the process writes for plugins.
pub(crate) fn log_level() -> LogLevel {
    if tracing::enabled!(target: "plugin", tracing::Level::TRACE) {
        LogLevel::Trace
    } else if tracing::enabled!(target: "plugin", tracing::Level::DEBUG) {
        LogLevel::Debug
    } else if tracing::enabled!(target: "plugin", tracing::Level::INFO) {
        LogLevel::Info
    } else if tracing::enabled!(target: "plugin", tracing::Level::WARN) {
        LogLevel::Warn
    } else {
        LogLevel::Error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_writes_one_line() {
        let rows: &[(&[u8], &str)] = &[
            (b"{\"a\":1}", "{\"a\":1}"),
            (b"a\r\nERROR b\t\x1b[2J", "a\\r\\nERROR b\\t\\u{1b}[2J"),
            (b"\xff", "\u{fffd}"),
        ];
        for (message, expected) in rows {
            assert_eq!(one_line(message), *expected);
        }
    }

    #[test]
    fn an_old_token_finds_nobody() {
        assert_eq!(parts(token(7, 3)), (7, 3));
        assert_eq!(parts(token(u32::MAX, u32::MAX)), (u32::MAX, u32::MAX));
        let embedder = WorkerEmbedder::new(0, Vec::new(), Vec::new());
        let first = embedder.admit(Weak::new());
        embedder.dismiss(first);
        let second = embedder.admit(Weak::new());
        assert_ne!(first, second, "the same place, given out again");
        embedder.dismiss(first);
        let third = embedder.admit(Weak::new());
        assert_ne!(second, third, "an old token frees no place");
    }
}
