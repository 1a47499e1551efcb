//! An embedder without a proxy around it, for the micro-benchmarks: real clocks and the proxy's real foreign functions, no
//! network.

use portcullis_runtime::{
    CalloutError, CalloutId, Embedder, HttpCall, LogLevel, PluginId, PluginSpec, QueueTarget,
    SnapshotWork, Status, StreamToken,
};
use std::cell::RefCell;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// One worker's embedder.
pub struct BenchEmbedder {
    start: Instant,
    foreign: portcullis::foreign::ForeignFunctions,
    works: RefCell<Vec<SnapshotWork>>,
    /// Whether nobody wants to read what plugins log.
    is_silent: bool,
}

impl BenchEmbedder {
    /// One that drops what plugins log: for guests that trap again and again.
    pub fn silent() -> Self {
        Self {
            is_silent: true,
            ..Self::default()
        }
    }

    /// Makes the snapshots asked for, on this very thread; how many there were.
    pub fn make_snapshots(&self) -> usize {
        let works = self.works.take();
        let count = works.len();
        works.into_iter().for_each(SnapshotWork::run);
        count
    }
}

impl Default for BenchEmbedder {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            foreign: portcullis::foreign::ForeignFunctions::default(),
            works: RefCell::default(),
            is_silent: false,
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Embedder for BenchEmbedder {
    fn worker(&self) -> u32 {
        0
    }
    fn unix_time_ns(&self) -> u64 {
        nanoseconds(
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
        )
    }

    fn monotonic_ns(&self) -> u64 {
        nanoseconds(self.start.elapsed())
    }

    fn thread_cpu_ns(&self) -> u64 {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        nanoseconds(Duration::try_from(time).unwrap_or_default())
    }

    fn random(&self, out: &mut [u8]) {
        // The system's generator does not fail once it has been seeded.
        let _ = aws_lc_rs::rand::fill(out);
    }

    fn log(&self, plugin: &PluginSpec, level: LogLevel, message: &[u8]) {
        if level >= LogLevel::Warn && !self.is_silent {
            eprintln!("{}: {}", plugin.name, String::from_utf8_lossy(message));
        }
    }

    fn set_tick_period(&self, _: PluginId, _: Option<Duration>) {}

    fn start_http_call(&self, _: PluginId, _: CalloutId, _: HttpCall) -> Result<(), CalloutError> {
        Err(CalloutError::UnknownCluster)
    }

    fn lend_thread(&self, work: SnapshotWork) {
        self.works.borrow_mut().push(work);
    }

    fn cancel_calls(&self, _: PluginId) {}

    fn wake(&self, _: StreamToken) {}

    fn notify_queue(&self, _: QueueTarget) {}

    fn foreign_function(&self, name: &str, arguments: &[u8]) -> Result<Vec<u8>, Status> {
        self.foreign.call(name, arguments)
    }
}
