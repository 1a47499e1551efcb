//! What the runtime counts about one plugin on one worker.
//!
//! Written by the worker, read by anyone: atomics with relaxed order, so that the admin page needs no turn on the worker.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use crate::abi::{Callback, TrapKind};

const CALLBACKS: usize = Callback::ALL.len();

/// Upper bounds of the latency buckets, ns: doubling from 250 ns to 16 ms; the last bucket is open.
pub const LATENCY_BOUNDS_NS: &[u64] = &[
    250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 128_000, 256_000, 512_000,
    1_024_000, 2_048_000, 4_096_000, 8_192_000, 16_384_000,
];

/// What a plugin asked for that its allow-lists do not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DenialKind {
    /// A hostcall or a WASI function.
    Capability,
    /// A property, to read or to write.
    Property,
    /// A foreign function.
    ForeignFunction,
    /// A cluster to call.
    Cluster,
}

impl DenialKind {
    /// All kinds, in the order of their index.
    pub const ALL: &'static [Self] = &[
        Self::Capability,
        Self::Property,
        Self::ForeignFunction,
        Self::Cluster,
    ];

    /// A label for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Capability => "capability",
            Self::Property => "property",
            Self::ForeignFunction => "foreign_function",
            Self::Cluster => "cluster",
        }
    }
}

/// The counters of all plugins of the process, by worker and name. A plugin that takes the place of one of its name counts on where that
/// one stopped; while both stand, both count.
#[derive(Debug, Default)]
pub struct StatsTable(Mutex<HashMap<(u32, String), Arc<PluginStats>>>);

impl StatsTable {
    pub(crate) fn of(&self, worker: u32, plugin: &str) -> Arc<PluginStats> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let stats = table.entry((worker, plugin.to_owned())).or_default();
        Arc::clone(stats)
    }

    /// Each plugin's name and counters, once a worker.
    pub fn all(&self) -> Vec<(String, Arc<PluginStats>)> {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |((_, name), stats): (&(u32, String), &Arc<PluginStats>)| {
            (name.clone(), Arc::clone(stats))
        };
        table.iter().map(of).collect()
    }

    /// Forgets plugins that no longer stand.
    pub fn forget_ended(&self) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.retain(|_, stats| Arc::strong_count(stats) > 1);
    }
}

/// Counters of one plugin on one worker.
#[derive(Debug, Default)]
pub struct PluginStats {
    starts: AtomicU64,
    restarts: AtomicU64,
    start_failures: AtomicU64,
    waiting: AtomicU64,
    vms: AtomicU64,
    vm_denials: AtomicU64,
    snapshots: AtomicU64,
    snapshot_failures: AtomicU64,
    cpu_denials: AtomicU64,
    traps: [AtomicU64; TrapKind::ALL.len()],
    refused: AtomicU64,
    passed_by: AtomicU64,
    memory_bytes: AtomicUsize,
    memory_denials: AtomicU64,
    local_responses: AtomicU64,
    denials: [AtomicU64; DenialKind::ALL.len()],
    log_drops: AtomicU64,
    callbacks: [CallbackLatency; CALLBACKS],
}

/// Latencies of one callback. One call in [`LATENCY_SAMPLING`](crate::limits::LATENCY_SAMPLING) is timed.
#[derive(Debug, Default)]
struct CallbackLatency {
    calls: AtomicU64,
    buckets: [AtomicU64; LATENCY_BOUNDS_NS.len() + 1],
    sum_ns: AtomicU64,
}

/// A histogram of one callback at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LatencySnapshot {
    /// Which callback.
    pub callback: Callback,
    /// All calls, timed or not.
    pub calls: u64,
    /// Timed calls by bucket, each for itself: as many as [`LATENCY_BOUNDS_NS`], and one above the last.
    pub buckets: Vec<u64>,
    /// Sum of the timed calls, ns.
    pub sum_ns: u64,
}

impl PluginStats {
    /// VMs that were started and configured: the first one, spares, those in the place of others, and those of single exchanges where
    /// there is no snapshot.
    pub fn starts(&self) -> u64 {
        self.starts.load(Ordering::Relaxed)
    }

    /// VMs that took the place of one that broke.
    pub fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::Relaxed)
    }

    /// Whether no VM stands because the last start failed, and the next is not due yet.
    pub fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// VMs alive.
    pub fn vms(&self) -> u64 {
        self.vms.load(Ordering::Relaxed)
    }

    /// Exchanges that got no VM of their own, because there were as many as may be.
    pub fn vm_denials(&self) -> u64 {
        self.vm_denials.load(Ordering::Relaxed)
    }

    /// Snapshots that were taken into use.
    pub fn snapshots(&self) -> u64 {
        self.snapshots.load(Ordering::Relaxed)
    }

    /// Snapshots that could not be made.
    pub fn snapshot_failures(&self) -> u64 {
        self.snapshot_failures.load(Ordering::Relaxed)
    }

    /// Exchanges that were ended because they had used up their CPU time.
    pub fn cpu_denials(&self) -> u64 {
        self.cpu_denials.load(Ordering::Relaxed)
    }

    /// Starts that failed.
    pub fn start_failures(&self) -> u64 {
        self.start_failures.load(Ordering::Relaxed)
    }

    /// VMs that broke, by why. [`TrapKind::OutOfTime`] are the time-outs.
    pub fn traps(&self) -> impl Iterator<Item = (TrapKind, u64)> + '_ {
        TrapKind::ALL
            .iter()
            .zip(&self.traps)
            .map(|(kind, count)| (*kind, count.load(Ordering::Relaxed)))
    }

    /// Requests answered 503 or reset for want of a VM, or because they broke it.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Requests let by for want of a VM (failure policy open).
    pub fn passed_by(&self) -> u64 {
        self.passed_by.load(Ordering::Relaxed)
    }

    /// Linear memory of its VMs, bytes.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes.load(Ordering::Relaxed)
    }

    /// How often a VM asked for more memory than its bound.
    pub fn memory_denials(&self) -> u64 {
        self.memory_denials.load(Ordering::Relaxed)
    }

    /// Local responses this plugin gave.
    pub fn local_responses(&self) -> u64 {
        self.local_responses.load(Ordering::Relaxed)
    }

    /// Uses of what no allow-list has, by kind.
    pub fn denials(&self) -> impl Iterator<Item = (DenialKind, u64)> + '_ {
        DenialKind::ALL
            .iter()
            .zip(&self.denials)
            .map(|(kind, count)| (*kind, count.load(Ordering::Relaxed)))
    }

    /// Log lines dropped because there were too many, in one callback or in one second.
    pub fn log_drops(&self) -> u64 {
        self.log_drops.load(Ordering::Relaxed)
    }

    /// Latencies of the callbacks that were called at least once.
    pub fn latencies(&self) -> Vec<LatencySnapshot> {
        let all = Callback::ALL.iter().zip(&self.callbacks);
        all.filter(|(_, latency)| latency.calls.load(Ordering::Relaxed) > 0)
            .map(|(callback, latency)| LatencySnapshot {
                callback: *callback,
                calls: latency.calls.load(Ordering::Relaxed),
                buckets: latency
                    .buckets
                    .iter()
                    .map(|bucket| bucket.load(Ordering::Relaxed))
                    .collect(),
                sum_ns: latency.sum_ns.load(Ordering::Relaxed),
            })
            .collect()
    }

    pub(crate) fn count_start(&self) {
        add(&self.starts, 1);
    }

    pub(crate) fn count_restart(&self) {
        add(&self.restarts, 1);
    }

    /// One plugin more waits, or one less: two of a name stand while one takes the other's place.
    pub(crate) fn count_waiting(&self, waits: bool) {
        step(&self.waiting, waits);
    }

    /// One VM more, or one less.
    pub(crate) fn count_vm(&self, stands: bool) {
        step(&self.vms, stands);
    }

    pub(crate) fn count_vm_denial(&self) {
        add(&self.vm_denials, 1);
    }

    pub(crate) fn count_snapshot(&self) {
        add(&self.snapshots, 1);
    }

    pub(crate) fn count_snapshot_failure(&self) {
        add(&self.snapshot_failures, 1);
    }

    pub(crate) fn count_cpu_denial(&self) {
        add(&self.cpu_denials, 1);
    }

    pub(crate) fn count_start_failure(&self) {
        add(&self.start_failures, 1);
    }

    pub(crate) fn count_trap(&self, kind: TrapKind) {
        if let Some(count) = TrapKind::ALL
            .iter()
            .position(|k| *k == kind)
            .and_then(|index| self.traps.get(index))
        {
            add(count, 1);
        }
    }

    pub(crate) fn count_denial(&self, kind: DenialKind) {
        if let Some(count) = self.denials.get(kind as usize) {
            add(count, 1);
        }
    }

    pub(crate) fn count_log_drop(&self) {
        add(&self.log_drops, 1);
    }

    pub(crate) fn count_refused(&self) {
        add(&self.refused, 1);
    }

    pub(crate) fn count_passed_by(&self) {
        add(&self.passed_by, 1);
    }

    pub(crate) fn count_local_response(&self) {
        add(&self.local_responses, 1);
    }

    pub(crate) fn count_memory_denial(&self) {
        add(&self.memory_denials, 1);
    }

    /// A VM's memory has changed its size.
    pub(crate) fn move_memory_bytes(&self, from: usize, to: usize) {
        let all = self.memory_bytes.load(Ordering::Relaxed);
        self.memory_bytes.store(
            all.saturating_sub(from).saturating_add(to),
            Ordering::Relaxed,
        );
    }

    /// Counts a call; tells its number, from 0.
    pub(crate) fn count_call(&self, callback: Callback) -> u64 {
        self.callbacks
            .get(callback as usize)
            .map_or(0, |latency| add(&latency.calls, 1))
    }

    pub(crate) fn time_call(&self, callback: Callback, ns: u64) {
        let Some(latency) = self.callbacks.get(callback as usize) else {
            return;
        };
        add(&latency.sum_ns, ns);
        if let Some(bucket) = latency
            .buckets
            .get(LATENCY_BOUNDS_NS.partition_point(|bound| *bound < ns))
        {
            add(bucket, 1);
        }
    }
}

/// Only the worker writes, so a load and a store do what a locked add would, at a tenth of its price. Tells the old value.
fn add(counter: &AtomicU64, delta: u64) -> u64 {
    let old = counter.load(Ordering::Relaxed);
    counter.store(old.wrapping_add(delta), Ordering::Relaxed);
    old
}

fn step(gauge: &AtomicU64, up: bool) {
    let old = gauge.load(Ordering::Relaxed);
    let new = if up {
        old.saturating_add(1)
    } else {
        old.saturating_sub(1)
    };
    gauge.store(new, Ordering::Relaxed);
}
