//! What the runtime asks of this program: clocks, chance, log, timers. It has no HTTP client, so callouts find no cluster, and no crypto, so
//! there are no foreign functions; plugins are told so with the ABI's statuses.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::{Rc, Weak},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use portcullis_runtime::{
    CalloutError, CalloutId, Embedder, HttpCall, LogLevel, Plugin, PluginId, PluginSpec,
    QueueTarget, SnapshotWork, Status, StreamToken,
};
use tokio::task::{AbortHandle, spawn_local};

use super::stream::Stream;

/// One thread's side of the runtime. Its timers are tasks of the `LocalSet` or `LocalRuntime` that it is used on.
pub(crate) struct World {
    worker: u32,
    begun: Instant,
    random: SystemRandom,
    plugins: RefCell<HashMap<PluginId, Weak<Plugin>>>,
    ticks: RefCell<HashMap<PluginId, AbortHandle>>,
    streams: RefCell<HashMap<StreamToken, Weak<Stream>>>,
    last_token: Cell<u64>,
    itself: Weak<Self>,
}

impl World {
    /// `worker` is another number for each thread.
    pub(crate) fn new(worker: u32) -> Rc<Self> {
        Rc::new_cyclic(|itself| Self {
            worker,
            begun: Instant::now(),
            random: SystemRandom::new(),
            plugins: RefCell::default(),
            ticks: RefCell::default(),
            streams: RefCell::default(),
            last_token: Cell::new(0),
            itself: itself.clone(),
        })
    }

    /// Makes a plugin reachable for its timer and its queues, and tends it every second: its spare VM, or the snapshot that exchanges begin from.
    pub(crate) fn register(&self, plugin: &Rc<Plugin>) {
        let registered = Rc::downgrade(plugin);
        self.plugins
            .borrow_mut()
            .insert(plugin.id(), Weak::clone(&registered));
        spawn_local(async move {
            while let Some(plugin) = registered.upgrade() {
                plugin.tend();
                drop(plugin);
                tokio::time::sleep(TEND_PERIOD).await;
            }
        });
    }

    /// Ends plugins and timers.
    pub(crate) fn stop(&self) {
        let plugins: Vec<_> = self
            .plugins
            .borrow_mut()
            .drain()
            .filter_map(|(_, plugin)| plugin.upgrade())
            .collect();
        plugins.iter().for_each(|plugin| plugin.shut_down());
        self.ticks
            .borrow_mut()
            .drain()
            .for_each(|(_, task)| task.abort());
    }

    fn plugin(&self, id: PluginId) -> Option<Rc<Plugin>> {
        self.plugins.borrow().get(&id).and_then(Weak::upgrade)
    }

    /// Gives an exchange a token, which is never given out again.
    pub(super) fn admit(&self, stream: Weak<Stream>) -> StreamToken {
        let token = StreamToken(self.last_token.get().wrapping_add(1));
        self.last_token.set(token.0);
        self.streams.borrow_mut().insert(token, stream);
        token
    }

    pub(super) fn dismiss(&self, token: StreamToken) {
        self.streams.borrow_mut().remove(&token);
    }
}

const TEND_PERIOD: Duration = Duration::from_secs(1);

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Embedder for World {
    fn worker(&self) -> u32 {
        self.worker
    }

    fn lend_thread(&self, work: SnapshotWork) {
        // Where there is no thread, the plugin goes on without a snapshot.
        let spawned = std::thread::Builder::new().spawn(move || work.run());
        drop(spawned);
    }

    fn unix_time_ns(&self) -> u64 {
        nanoseconds(
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
        )
    }

    fn monotonic_ns(&self) -> u64 {
        nanoseconds(self.begun.elapsed())
    }

    fn thread_cpu_ns(&self) -> u64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let rest = u64::try_from(now.tv_nsec).unwrap_or(0);
        seconds.saturating_mul(1_000_000_000).saturating_add(rest)
    }

    fn random(&self, out: &mut [u8]) {
        if self.random.fill(out).is_err() {
            // Guests make keys and ids of it: without it nothing here is safe.
            std::process::abort();
        }
    }

    fn log(&self, plugin: &PluginSpec, level: LogLevel, message: &[u8]) {
        // Escaped: a guest's line must not look like two.
        eprintln!("{level:?} {}: {}", plugin.name, message.escape_ascii());
    }

    fn set_tick_period(&self, plugin: PluginId, period: Option<Duration>) {
        let mut ticks = self.ticks.borrow_mut();
        if let Some(task) = ticks.remove(&plugin) {
            task.abort();
        }
        let (Some(period), Some(world)) = (period, self.itself.upgrade()) else {
            return;
        };
        let task = spawn_local(async move {
            loop {
                tokio::time::sleep(period).await;
                match world.plugin(plugin) {
                    Some(plugin) => plugin.on_tick(),
                    None => return,
                }
            }
        });
        ticks.insert(plugin, task.abort_handle());
    }

    fn start_http_call(
        &self,
        _plugin: PluginId,
        _id: CalloutId,
        _call: HttpCall,
    ) -> Result<(), CalloutError> {
        Err(CalloutError::UnknownCluster)
    }

    fn cancel_calls(&self, _plugin: PluginId) {
        // None is ever begun.
    }

    fn wake(&self, stream: StreamToken) {
        let stream = self.streams.borrow().get(&stream).and_then(Weak::upgrade);
        if let Some(stream) = stream {
            stream.wake();
        }
    }

    fn notify_queue(&self, target: QueueTarget) {
        let Some(world) = self.itself.upgrade() else {
            return;
        };
        // Not now: the runtime is in the midst of a callback.
        spawn_local(async move {
            if let Some(plugin) = world.plugin(target.plugin) {
                plugin.on_queue_ready(target.queue);
            }
        });
    }

    fn foreign_function(&self, _name: &str, _arguments: &[u8]) -> Result<Vec<u8>, Status> {
        Err(Status::NotFound)
    }
}
