//! Time per control: [`Measure`], of one exchange in so many.
//!
//! The clock is the host's, so looking at it is a hostcall: three a callback (two of the clock, one of the histogram) in an
//! exchange that is measured, none in the others. Without `measure_one_in` nothing is measured.

use crate::host::{ActiveHost, Host};
use crate::metric::Histogram;

/// Which exchanges are measured.
#[derive(Debug, Default)]
pub(super) struct Measure {
    /// 0: none.
    one_in: u32,
    seen: u32,
}

impl Measure {
    /// One in so many, the first among them.
    pub(super) fn one_in(one_in: u32) -> Self {
        Self { one_in, seen: 0 }
    }

    /// The time that a control's callbacks take, in ns: `portcullis.<control>.callback_ns`; `None` if nothing is measured.
    pub(super) fn histogram(&self, host: &ActiveHost, control: &str) -> Option<Histogram> {
        (self.one_in > 0).then(|| Histogram::new(host, control, "callback_ns"))
    }

    /// An exchange begins: whether it is measured.
    pub(super) fn begin(&mut self) -> bool {
        if self.one_in == 0 {
            return false;
        }
        let is_measured = self.seen == 0;
        self.seen = (self.seen + 1) % self.one_in;
        is_measured
    }
}

/// Calls a control, and records how long that took.
pub(super) fn timed<T>(
    host: &ActiveHost,
    histogram: Option<&Histogram>,
    call: impl FnOnce() -> T,
) -> T {
    let Some(histogram) = histogram else {
        return call();
    };
    let start = host.now_ns();
    let result = call();
    // A clock that was set back tells nothing.
    if let Some(time) = host.now_ns().checked_sub(start) {
        histogram.record(time);
    }
    result
}
