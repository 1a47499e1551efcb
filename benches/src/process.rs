//! What the operating system says of a process under test: CPU time and resident memory, from `/proc` (proc(5)).

use anyhow::{Context, Result};
use std::time::Duration;

/// CPU time and memory of one process at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// User and system time of all threads since the start, to the clock tick (10 ms).
    pub cpu: Duration,
    /// Resident set in bytes.
    pub resident_bytes: u64,
}

/// Reads the usage of `pid`.
///
/// # Errors
/// Where there is no `/proc` (not Linux) or the process is gone.
pub fn usage(pid: u32) -> Result<Usage> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| {
        format!("the CPU time of process {pid} cannot be read; the comparison needs Linux")
    })?;
    // The second field is the command in parentheses and may hold blanks: count from the last one.
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .context("unexpected form of /proc/PID/stat")?
        .1
        .split_whitespace()
        .collect();
    let field = |number: usize| -> Result<u64> {
        Ok(fields
            .get(number - 3)
            .context("short /proc/PID/stat")?
            .parse()?)
    };
    let ticks = field(14)? + field(15)?;
    // Linux reports in USER_HZ, 100 a second on every architecture Rust supports.
    Ok(Usage {
        cpu: Duration::from_millis(ticks * 10),
        resident_bytes: field(24)? * 4096,
    })
}

/// Pins the calling thread, and what it starts from now on, to one processor; an error says that the machine has no such one.
///
/// # Errors
/// Where the kernel refuses.
pub fn pin(processor: usize) -> Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(processor);
    rustix::thread::sched_setaffinity(None, &set)
        .with_context(|| format!("cannot pin to processor {processor}"))
}

/// Lets the calling thread run on the first `processors` processors.
///
/// # Errors
/// Where the kernel refuses.
pub fn unpin(processors: usize) -> Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    (0..processors).for_each(|processor| set.set(processor));
    rustix::thread::sched_setaffinity(None, &set).context("cannot lift the pinning")
}
