//! What ends a guest: its memory, its time, its own traps.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use wasmtime::ResourceLimiter;

use crate::{
    abi::TrapKind,
    embedder::Embedder,
    limits::{EPOCH_MS, Limits, TABLE_ELEMENTS_MAX, TABLES_MAX},
    stats::PluginStats,
};

/// Memory and table bounds of one store.
pub(crate) struct Limiter {
    pub(crate) memory_max: usize,
    pub(crate) memory_bytes: usize,
    /// There is a second memory that is not the guest's: its cards.
    pub(crate) has_cards: bool,
    /// Memories made so far: first the guest's.
    pub(crate) memories: usize,
    pub(crate) stats: Arc<PluginStats>,
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        // The cards come into being behind the guest's memory, and no instruction grows them.
        if self.has_cards && self.memories == 1 {
            self.memories = 2;
            return Ok(true);
        }
        self.memories = self.memories.max(1);
        let granted = desired <= self.memory_max;
        if granted {
            self.stats.move_memory_bytes(self.memory_bytes, desired);
            self.memory_bytes = desired;
        } else {
            self.stats.count_memory_denial();
        }
        Ok(granted)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS_MAX)
    }

    fn instances(&self) -> usize {
        1
    }

    fn memories(&self) -> usize {
        1 + usize::from(self.has_cards)
    }

    fn tables(&self) -> usize {
        TABLES_MAX
    }
}

/// How many VMs of the whole process may yet wait for their next exchange. They hold places in the pools that other plugins may need.
pub(crate) struct IdleRoom(AtomicU32);

impl IdleRoom {
    pub(crate) fn new(vms: u32) -> Self {
        Self(AtomicU32::new(vms))
    }

    /// A place, to be given back by dropping it.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<IdlePlace> {
        let less = |left: u32| left.checked_sub(1);
        let taken = self
            .0
            .try_update(Ordering::Relaxed, Ordering::Relaxed, less);
        taken.is_ok().then(|| IdlePlace(Arc::clone(self)))
    }
}

/// One of the VMs that an [`IdleRoom`] holds.
pub(crate) struct IdlePlace(Arc<IdleRoom>);

impl Drop for IdlePlace {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The most CPU time that one tick may stand for, ns: one and a half periods. A guest that runs sees every tick, so a thread that finds more on
/// its clock was stopped: many kernels charge what a hypervisor takes from a virtual CPU to the thread that had it, 50 ms at once seen. A
/// guest is not ended for that.
const TICK_NS_MAX: u64 = EPOCH_MS * 1_500_000;

/// The time bound of a callback. Clocks are read only at epoch ticks, so a callback that ends before the first one pays nothing; the first
/// tick starts both counts, hence a guest may have up to one tick more than its bound.
pub(crate) struct Deadline {
    cpu_ns_max: u64,
    wall_ns_max: u64,
    /// CPU time since the first tick.
    cpu_ns: u64,
    /// Wall clock at the first tick.
    wall_began_ns: Option<u64>,
    /// CPU clock at the last tick.
    last_cpu_ns: u64,
}

impl Deadline {
    pub(crate) fn start(limits: &Limits) -> Self {
        Self::new(limits.start_cpu_ms, limits.start_wall_ms)
    }

    pub(crate) fn callback(limits: &Limits) -> Self {
        Self::new(limits.callback_cpu_ms, limits.callback_wall_ms)
    }

    fn new(cpu_ms: u64, wall_ms: u64) -> Self {
        Self {
            cpu_ns_max: cpu_ms.saturating_mul(1_000_000),
            wall_ns_max: wall_ms.saturating_mul(1_000_000),
            cpu_ns: 0,
            wall_began_ns: None,
            last_cpu_ns: 0,
        }
    }

    /// At an epoch tick: the CPU time that it stands for, ns, or the end. What went before the first tick is not known; over many callbacks, a
    /// period for each first tick is what they took.
    pub(crate) fn check(&mut self, embedder: &dyn Embedder) -> wasmtime::Result<u64> {
        let (cpu_ns, wall_ns) = (embedder.thread_cpu_ns(), embedder.monotonic_ns());
        let last_cpu_ns = std::mem::replace(&mut self.last_cpu_ns, cpu_ns);
        let Some(wall_began_ns) = self.wall_began_ns else {
            self.wall_began_ns = Some(wall_ns);
            return Ok(EPOCH_MS * 1_000_000);
        };
        let spent_ns = cpu_ns.saturating_sub(last_cpu_ns).min(TICK_NS_MAX);
        self.cpu_ns = self.cpu_ns.saturating_add(spent_ns);
        if self.cpu_ns >= self.cpu_ns_max
            || wall_ns.saturating_sub(wall_began_ns) >= self.wall_ns_max
        {
            return Err(Ended(TrapKind::OutOfTime).into());
        }
        Ok(spent_ns)
    }
}

/// The host ends the guest.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("ended by the host: {}", .0.as_str())]
pub(crate) struct Ended(pub(crate) TrapKind);

/// Why a call into the guest failed.
pub(crate) fn trap_kind(error: &wasmtime::Error) -> TrapKind {
    use wasmtime::Trap;
    if let Some(Ended(kind)) = error.downcast_ref::<Ended>() {
        return *kind;
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::UnreachableCodeReached) => TrapKind::Unreachable,
        Some(Trap::MemoryOutOfBounds | Trap::TableOutOfBounds | Trap::HeapMisaligned) => {
            TrapKind::OutOfBounds
        }
        Some(Trap::StackOverflow) => TrapKind::StackOverflow,
        Some(Trap::Interrupt) => TrapKind::OutOfTime,
        _ => TrapKind::Other,
    }
}
