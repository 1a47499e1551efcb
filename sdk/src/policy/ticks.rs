//! The ticks of several controls from the one timer that a host gives a plugin.

use crate::host::{ActiveHost, Host};

/// Which control is due when.
#[derive(Debug, Default)]
pub(super) struct Ticks {
    timers: Vec<Timer>,
    /// What the host was asked for.
    period_ms: u32,
}

#[derive(Debug)]
struct Timer {
    control: usize,
    period_ms: u32,
    due_ns: u64,
}

/// Hosts' timers are as exact as a millisecond: what is due within it is due.
const SLACK_NS: u64 = 1_000_000;

impl Ticks {
    /// A control asks for ticks; 0 ends them.
    pub(super) fn set(&mut self, host: &ActiveHost, control: usize, period_ms: u32) {
        self.timers.retain(|timer| timer.control != control);
        if period_ms > 0 {
            self.timers.push(Timer {
                control,
                period_ms,
                due_ns: after(host.now_ns(), period_ms),
            });
        }
        let shortest = self.timers.iter().map(|timer| timer.period_ms).min();
        let shortest = shortest.unwrap_or(0);
        if shortest != self.period_ms && host.set_tick_period(shortest).is_ok() {
            self.period_ms = shortest;
        }
    }

    /// The controls that are due now.
    pub(super) fn due(&mut self, host: &ActiveHost) -> Vec<usize> {
        let now = host.now_ns();
        let mut due = Vec::new();
        for timer in &mut self.timers {
            if timer.due_ns <= now.saturating_add(SLACK_NS) {
                timer.due_ns = after(now, timer.period_ms);
                due.push(timer.control);
            }
        }
        due.sort_unstable();
        due
    }
}

fn after(now_ns: u64, period_ms: u32) -> u64 {
    now_ns.saturating_add(u64::from(period_ms) * 1_000_000)
}
