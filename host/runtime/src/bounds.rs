//! What ends a guest: its memory, its time, its own traps.

use std::sync::Arc;

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
    pub(crate) stats: Arc<PluginStats>,
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
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
        1
    }

    fn tables(&self) -> usize {
        TABLES_MAX
    }
}

/// The time bound of a callback. Clocks are read only at epoch ticks, so a callback that ends before the first one pays nothing; the first
/// tick starts both counts, hence a guest may have up to one tick more than its bound.
pub(crate) struct Deadline {
    cpu_ns_max: u64,
    wall_ns_max: u64,
    /// CPU and wall clock at the first tick.
    began: Option<(u64, u64)>,
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
            began: None,
            last_cpu_ns: 0,
        }
    }

    /// At an epoch tick: the CPU time that it stands for, ns, or the end. What went before the first tick is not known; over many callbacks, a
    /// period for each first tick is what they took.
    pub(crate) fn check(&mut self, embedder: &dyn Embedder) -> wasmtime::Result<u64> {
        let (cpu, wall) = (embedder.thread_cpu_ns(), embedder.monotonic_ns());
        let spent_ns = match self.began {
            Some(_) => cpu.saturating_sub(self.last_cpu_ns),
            None => EPOCH_MS * 1_000_000,
        };
        self.last_cpu_ns = cpu;
        let (cpu_began, wall_began) = *self.began.get_or_insert((cpu, wall));
        if cpu.saturating_sub(cpu_began) >= self.cpu_ns_max
            || wall.saturating_sub(wall_began) >= self.wall_ns_max
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
