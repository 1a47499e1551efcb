//! What a comparison ran on: figures mean little without it.

use crate::process;
use anyhow::{Context, Result};
use std::fs::read_to_string;

/// Which processors peers, load and upstream have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Pinning {
    /// The proxy under test.
    pub peer: usize,
    /// The load generator.
    pub load: usize,
    /// The upstream; with two processors the load's.
    pub upstream: usize,
}

/// The machine and its state when the comparison began.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Machine {
    /// The day, UTC.
    pub date: String,
    /// The processor's name.
    pub model: String,
    /// The kernel's version.
    pub kernel: String,
    /// The processors that may be used.
    pub processors: Vec<usize>,
    /// Who runs where; nothing is pinned on a machine with one processor.
    pub pinning: Option<Pinning>,
    /// Whether peer and load are two threads of one core, as the kernel sees it (a virtual machine may hide it).
    pub shared_core: bool,
    /// Processes that ran or wanted to on average over the last minute, before anything was started: 0 on an idle machine.
    pub load_average: f64,
}

impl Machine {
    /// Looks at this one.
    ///
    /// # Errors
    /// Where there is no `/proc` (not Linux).
    pub fn look() -> Result<Self> {
        let processors = process::processors()?;
        let pinning = pinning(&processors);
        let average =
            read_to_string("/proc/loadavg").context("the comparison needs Linux and its /proc")?;
        Ok(Self {
            date: time::OffsetDateTime::now_utc().date().to_string(),
            model: model(&read_to_string("/proc/cpuinfo").unwrap_or_default()).to_owned(),
            kernel: read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim()
                .to_owned(),
            shared_core: pinning
                .and_then(|it| Some(core(it.peer)? == core(it.load)?))
                .unwrap_or_default(),
            processors,
            pinning,
            load_average: average
                .split_whitespace()
                .next()
                .and_then(|first| first.parse().ok())
                .context("unexpected form of /proc/loadavg")?,
        })
    }
}

/// The processors' time since they started, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticks {
    stolen: u64,
    all: u64,
}

impl Ticks {
    /// Now; nothing where the kernel does not say it.
    pub fn now() -> Option<Self> {
        Self::read(&read_to_string("/proc/stat").ok()?)
    }

    /// proc(5), `stat`: user, nice, system, idle, iowait, irq, softirq, steal; what follows is in these.
    fn read(stat: &str) -> Option<Self> {
        let line = stat.lines().next()?.strip_prefix("cpu ")?;
        let ticks = line.split_whitespace().take(8).map(str::parse);
        let ticks: Vec<u64> = ticks.collect::<Result<_, _>>().ok()?;
        Some(Self {
            stolen: *ticks.get(7)?,
            all: ticks.iter().sum(),
        })
    }

    /// The share of the processors' time since then that the hypervisor gave to others while somebody here wanted it.
    pub fn stolen_since(self, then: Self) -> f64 {
        let all = self.all.saturating_sub(then.all).max(1);
        self.stolen.saturating_sub(then.stolen) as f64 / all as f64
    }
}

fn pinning(processors: &[usize]) -> Option<Pinning> {
    let mut allowed = processors.iter().copied();
    let (peer, load) = (allowed.next()?, allowed.next()?);
    Some(Pinning {
        peer,
        load,
        upstream: allowed.next().unwrap_or(load),
    })
}

/// The list of threads that share a core with `processor`.
fn core(processor: usize) -> Option<String> {
    read_to_string(format!(
        "/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list"
    ))
    .ok()
}

fn model(cpuinfo: &str) -> &str {
    cpuinfo
        .lines()
        .find_map(|line| Some(line.strip_prefix("model name")?.split_once(':')?.1.trim()))
        .unwrap_or("unknown processor")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_third_processor_is_the_upstreams() {
        assert_eq!(pinning(&[3]), None);
        let two = pinning(&[2, 5]).expect("two suffice");
        assert_eq!((two.peer, two.load, two.upstream), (2, 5, 5));
        let four = pinning(&[0, 1, 2, 3]).expect("four suffice");
        assert_eq!((four.peer, four.load, four.upstream), (0, 1, 2));
    }

    #[test]
    fn the_models_name_stands_behind_a_colon() {
        assert_eq!(
            model("processor\t: 0\nmodel name\t: Fast: 3 GHz\n"),
            "Fast: 3 GHz"
        );
        assert_eq!(model(""), "unknown processor");
    }

    #[test]
    fn what_is_stolen_is_the_eighth_figure() {
        let of = |text: &str| Ticks::read(text);
        let then = of("cpu  10 0 10 70 0 0 0 10 5 0\ncpu0 1\n").expect("a line");
        let now = of("cpu  20 0 20 140 0 0 0 20 9 0\n").expect("a line");
        assert!((now.stolen_since(then) - 0.1).abs() < 1e-9);
        assert!(now.stolen_since(now).abs() < 1e-9);
        for odd in ["", "cpu  1 2 3", "intr 1", "cpu  1 2 3 4 5 6 7 x"] {
            assert_eq!(of(odd), None, "{odd}");
        }
    }

    #[test]
    fn this_machine_can_be_described() -> Result<()> {
        let machine = Machine::look()?;
        assert!(machine.load_average >= 0.0 && !machine.processors.is_empty());
        assert!(machine.date.starts_with("20"), "{}", machine.date);
        Ok(())
    }
}
