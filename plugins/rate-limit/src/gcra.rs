//! The generic cell rate algorithm: one limit, one number per key.
//!
//! The number is the *theoretical arrival time* (TAT): the moment at which the key's debt is paid off. Every request
//! adds the emission interval to it, and passes where the result stays within the horizon, `burst` intervals from
//! now. A TAT in the past carries no debt and needs no memory.
//!
//! Times are nanoseconds since the Unix epoch, spans are nanoseconds; both `u64`, which lasts until the year 2554.
//!
//! Invariant: on an unbroken clock no TAT lies beyond `now + horizon`. One that does was stored before the clock went
//! backwards; [`Limit::clamped`] brings it to the horizon, so that a clock set back by a year costs a client one
//! window and not the year, and grants nobody a fresh burst.
//!
//! Source: ITU-T I.371 (virtual scheduling algorithm).

/// One limit: so many requests a window, as an interval and a horizon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Limit {
    /// What clients see it called; a structured-field string that needs no escapes.
    pub(crate) name: String,
    /// Requests a window: the `q` of `RateLimit-Policy`.
    pub(crate) requests: u32,
    /// The window in seconds: the `w` of `RateLimit-Policy`.
    pub(crate) window_seconds: u64,
    /// Requests that may come at once after a rest; from 1 to `requests`.
    pub(crate) burst: u32,
    /// Time that one request takes to be forgotten; rounded up, so that a window never holds more than it should.
    interval: u64,
    /// `burst` intervals: the largest debt.
    horizon: u64,
}

/// How a key stands with one limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Requests that would pass now.
    pub(crate) remaining: u64,
    /// Nanoseconds until one more would; none where the whole burst is free.
    pub(crate) next: Option<u64>,
}

impl Limit {
    /// `requests`, `window_seconds` and `burst` must not be 0: the configuration sees to it.
    pub(crate) fn new(name: String, requests: u32, window_seconds: u64, burst: u32) -> Self {
        let interval = window_seconds
            .saturating_mul(1_000_000_000)
            .div_ceil(u64::from(requests.max(1)));
        Self {
            name,
            requests,
            window_seconds,
            burst,
            interval,
            horizon: interval.saturating_mul(u64::from(burst)),
        }
    }

    /// A stored TAT as this clock allows it: never beyond the horizon.
    pub(crate) fn clamped(&self, tat: u64, now: u64) -> u64 {
        tat.min(now.saturating_add(self.horizon))
    }

    /// The TAT after a request of this cost, or the nanoseconds to wait until it would pass.
    pub(crate) fn take(&self, tat: u64, now: u64, cost: u64) -> Result<u64, u64> {
        let after = tat
            .max(now)
            .saturating_add(self.interval.saturating_mul(cost));
        let latest = now.saturating_add(self.horizon);
        if after <= latest {
            Ok(after)
        } else {
            Err(after - latest)
        }
    }

    /// How a key with this TAT stands now.
    pub(crate) fn standing(&self, tat: u64, now: u64) -> Standing {
        let debt = tat.saturating_sub(now).min(self.horizon);
        let free = self.horizon - debt;
        let remaining = free / self.interval.max(1);
        let next = (debt > 0).then(|| self.interval - free % self.interval.max(1));
        Standing { remaining, next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    const SECOND: u64 = 1_000_000_000;
    const START: u64 = 1_800_000_000 * SECOND;

    /// Counts what it has let pass, and nothing else: in every span that ends now there may be the burst, and one
    /// more for each whole interval.
    struct Naive {
        limit: Limit,
        passed: Vec<u64>,
    }

    impl Naive {
        fn take(&mut self, now: u64) -> bool {
            let fits = (0..=self.passed.len()).all(|from| {
                let since = self.passed.get(from).copied().unwrap_or(now);
                let count = (self.passed.len() - from) as u64 + 1;
                count <= u64::from(self.limit.burst) + (now - since) / self.limit.interval
            });
            if fits {
                self.passed.push(now);
            }
            fits
        }
    }

    /// What comes at random times passes exactly where counting by hand says so.
    #[test]
    fn agrees_with_counting() {
        let mut random = Random::new(1);
        for round in 0..200 {
            let requests = 1 + random.below_u32(20);
            let burst = 1 + random.below_u32(requests);
            let limit = Limit::new("m".into(), requests, 1 + random.below(90), burst);
            let mut naive = Naive {
                limit: limit.clone(),
                passed: Vec::new(),
            };
            let (mut tat, mut now) = (0, START);
            // From floods to slow drips.
            let gap = 1 + limit.interval * (1 + random.below(30)) / 10;
            for step in 0..120 {
                now += random.below(gap);
                let passed = match limit.take(tat, now, 1) {
                    Ok(after) => {
                        tat = after;
                        true
                    }
                    Err(_) => false,
                };
                assert_eq!(
                    passed,
                    naive.take(now),
                    "round {round}, step {step}: {limit:?}"
                );
            }
        }
    }

    /// The waiting time is exact: a nanosecond earlier is refused, then it passes; and what `standing` promises is
    /// what passes.
    #[test]
    fn says_exactly_when_it_will_pass() {
        let mut random = Random::new(2);
        for _ in 0..2_000 {
            let requests = 1 + random.below_u32(200);
            let burst = 1 + random.below_u32(requests);
            let limit = Limit::new("m".into(), requests, 1 + random.below(3_600), burst);
            let cost = 1 + random.below(u64::from(burst));
            let now = START + random.below(SECOND);
            let tat = now - SECOND + random.below(limit.horizon + SECOND + 1);

            if let Err(wait) = limit.take(tat, now, cost) {
                assert!(limit.take(tat, now + wait - 1, cost).is_err());
                assert!(limit.take(tat, now + wait, cost).is_ok());
            }

            let standing = limit.standing(tat, now);
            assert!(standing.remaining == 0 || limit.take(tat, now, standing.remaining).is_ok());
            assert!(limit.take(tat, now, standing.remaining + 1).is_err());
            match standing.next {
                None => assert_eq!(standing.remaining, u64::from(burst)),
                Some(next) => {
                    assert!(next > 0);
                    assert_eq!(
                        limit.standing(tat, now + next).remaining,
                        standing.remaining + 1
                    );
                    assert_eq!(
                        limit.standing(tat, now + next - 1).remaining,
                        standing.remaining
                    );
                }
            }
        }
    }

    /// In any window no more than the burst and what the window emits; and over many windows exactly the rate.
    #[test]
    fn keeps_the_rate() {
        let limit = Limit::new("m".into(), 100, 60, 100);
        let (mut tat, mut passed) = (0, 0);
        // 100 requests a second for ten minutes.
        for step in 0..60_000 {
            if let Ok(after) = limit.take(tat, START + step * SECOND / 100, 1) {
                tat = after;
                passed += 1;
            }
        }
        // The burst at the start, then one every 0.6 s: 999 more before the 600th second.
        assert_eq!(passed, 100 + 999);
    }

    #[test]
    fn a_clock_set_back_costs_one_window_at_most() {
        let limit = Limit::new("m".into(), 10, 60, 10);
        let tat = limit.take(0, START, 5).unwrap();
        let past = START - 365 * 24 * 3_600 * SECOND;
        let clamped = limit.clamped(tat, past);
        assert_eq!(limit.standing(clamped, past).remaining, 0);
        assert_eq!(limit.standing(clamped, past + 6 * SECOND).remaining, 1);
        assert_eq!(limit.standing(clamped, past + 60 * SECOND).remaining, 10);
    }
}
