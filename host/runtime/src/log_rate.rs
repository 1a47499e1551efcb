//! How many log lines a plugin may write in a second: a bucket that fills with time.

use std::cell::Cell;

const SECOND_NS: u64 = 1_000_000_000;

/// The rate of one plugin on one worker, whatever VM serves it: a guest that dies and starts again gains nothing.
#[derive(Debug)]
pub(crate) struct LogRate {
    line_ns: u64,
    /// When the bucket will be full again.
    full_at_ns: Cell<u64>,
    dropped: Cell<u64>,
}

impl LogRate {
    /// `lines` a second, and as many at once; none where it is 0.
    pub(crate) fn new(lines: u32) -> Self {
        Self {
            line_ns: SECOND_NS
                .checked_div(u64::from(lines))
                .unwrap_or(u64::MAX)
                .max(1),
            full_at_ns: Cell::new(0),
            dropped: Cell::new(0),
        }
    }

    /// Takes a line's worth, and tells how many lines were dropped since the last that was let through; `None` drops this one too. Behind
    /// dropped lines it takes as much for the line that says so.
    pub(crate) fn take(&self, now_ns: u64) -> Option<u64> {
        let lines = 1 + u64::from(self.dropped.get() > 0);
        let full_at = self.full_at_ns.get().max(now_ns);
        if self.line_ns > SECOND_NS || full_at.saturating_add(self.line_ns) - now_ns > SECOND_NS {
            self.dropped.set(self.dropped.get().saturating_add(1));
            return None;
        }
        let full_at = full_at.saturating_add(self.line_ns.saturating_mul(lines));
        self.full_at_ns.set(full_at);
        Some(self.dropped.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_at_once_as_in_a_second() {
        let rate = LogRate::new(4);
        let taken = |now_ns| (0..10).map_while(|_| rate.take(now_ns)).count();
        assert_eq!(taken(0), 4);
        assert_eq!(taken(SECOND_NS / 4 - 1), 0, "not yet");
        assert_eq!(rate.take(SECOND_NS / 4), Some(2), "two were dropped");
        assert_eq!(
            rate.take(SECOND_NS / 2),
            None,
            "saying so took a line's worth"
        );
        assert_eq!(rate.take(3 * SECOND_NS / 4), Some(1));
        assert_eq!(taken(9 * SECOND_NS), 4, "what was not used is not kept");
        assert_eq!(rate.take(20 * SECOND_NS), Some(1));
    }

    #[test]
    fn the_ends_of_the_scale() {
        assert_eq!(LogRate::new(0).take(u64::MAX), None);
        assert_eq!(LogRate::new(0).take(0), None);
        let rate = LogRate::new(u32::MAX);
        assert!((0..100_000).all(|_| rate.take(7) == Some(0)));
    }
}
