//! What the operating system says of processes and threads: CPU time and resident memory, from `/proc` (proc(5)), and which processors
//! they may run on.

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};
use std::path::Path;
use std::time::Duration;

/// User and system time of all threads that process `pid` has now, to the nanosecond: the first field of each `schedstat`. Ticks of
/// `stat` (10 ms) would be 5 % of a short measurement.
///
/// # Errors
/// Where there is no such file (not Linux, or a kernel without `CONFIG_SCHED_INFO`) or the process is gone.
pub fn cpu(pid: u32) -> Result<Duration> {
    let folder = format!("/proc/{pid}/task");
    let threads = std::fs::read_dir(&folder).with_context(|| {
        format!("the threads of process {pid} cannot be read; the comparison needs Linux")
    })?;
    let mut sum = Duration::ZERO;
    for thread in threads {
        let task = thread?.path();
        match scheduled(&task) {
            Ok(time) => sum += time,
            // A thread that has ended since counts as those that ended before.
            Err(error) if task.exists() => return Err(error),
            Err(_) => {}
        }
    }
    Ok(sum)
}

/// The same of one thread of this process.
///
/// # Errors
/// As [`cpu`].
pub fn cpu_of_thread(thread: i32) -> Result<Duration> {
    scheduled(Path::new(&format!("/proc/self/task/{thread}")))
}

/// The same of this process, threads that have ended included.
pub fn cpu_of_this() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        now.tv_sec.try_into().unwrap_or_default(),
        now.tv_nsec.try_into().unwrap_or_default(),
    )
}

fn scheduled(task: &Path) -> Result<Duration> {
    let path = task.join("schedstat");
    let text = std::fs::read_to_string(&path).with_context(|| {
        format!(
            "CPU time cannot be read from {}; a kernel with CONFIG_SCHED_INFO has it",
            path.display()
        )
    })?;
    Ok(Duration::from_nanos(first(&text).with_context(|| {
        format!("unexpected form of {}", path.display())
    })?))
}

fn first(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

/// The processors that this process may run on.
///
/// # Errors
/// Where the kernel does not say.
pub fn processors() -> Result<Vec<usize>> {
    let set =
        rustix::thread::sched_getaffinity(None).context("cannot ask for the processors allowed")?;
    Ok((0..rustix::thread::CpuSet::MAX_CPU)
        .filter(|processor| set.is_set(*processor))
        .collect())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_time_grows_with_work() -> Result<()> {
        let before = (cpu(std::process::id())?, cpu_of_this());
        let mut sum = 0_u64;
        while cpu_of_this() < before.1 + Duration::from_millis(20) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        // Another test's thread may have ended since, but this one has not.
        assert!(cpu_of_thread(rustix::thread::gettid().as_raw_nonzero().get())? > Duration::ZERO);
        assert!(cpu(std::process::id())? > Duration::ZERO);
        assert!(!processors()?.is_empty());
        Ok(())
    }

    #[test]
    fn the_first_field_counts() {
        assert_eq!(first("1234 5 6\n"), Some(1234));
        assert_eq!(first(""), None);
    }
}
