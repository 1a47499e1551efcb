//! What a worker counts about requests. Written by one thread, read by anyone: no locked adds.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the duration buckets, ms; the last bucket is open.
pub(crate) const DURATION_BOUNDS_MS: [u64; 13] = [
    1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000,
];

/// One worker's counters.
#[derive(Debug)]
pub(crate) struct WorkerStats {
    /// By status; 0 counts exchanges without an answer.
    codes: [AtomicU64; 600],
    durations: [AtomicU64; DURATION_BOUNDS_MS.len() + 1],
    duration_us: AtomicU64,
    handshake_failures: AtomicU64,
    tcp_connections: AtomicU64,
    malformed_heads: AtomicU64,
    large_heads: AtomicU64,
}

impl Default for WorkerStats {
    fn default() -> Self {
        Self {
            codes: std::array::from_fn(|_| AtomicU64::new(0)),
            durations: std::array::from_fn(|_| AtomicU64::new(0)),
            duration_us: AtomicU64::new(0),
            handshake_failures: AtomicU64::new(0),
            tcp_connections: AtomicU64::new(0),
            malformed_heads: AtomicU64::new(0),
            large_heads: AtomicU64::new(0),
        }
    }
}

impl WorkerStats {
    /// An exchange is over.
    pub(crate) fn count(&self, status: u16, duration: Duration) {
        if let Some(code) = self.codes.get(usize::from(status)) {
            add(code, 1);
        }
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        add(&self.duration_us, us);
        let bucket = DURATION_BOUNDS_MS.partition_point(|bound| bound.saturating_mul(1_000) < us);
        if let Some(bucket) = self.durations.get(bucket) {
            add(bucket, 1);
        }
    }

    /// A client failed to agree on TLS.
    pub(crate) fn count_handshake_failure(&self) {
        add(&self.handshake_failures, 1);
    }

    /// A connection to a TCP listener begins.
    pub(crate) fn count_tcp_connection(&self) {
        add(&self.tcp_connections, 1);
    }

    /// Connections to TCP listeners so far.
    pub(crate) fn tcp_connections(&self) -> u64 {
        self.tcp_connections.load(Ordering::Relaxed)
    }

    /// A connection has ended with `error`. Counted if that was a request's head that hyper could not read, and answered by itself.
    pub(crate) fn count_end(&self, error: &hyper::Error) {
        if error.is_parse_too_large() {
            add(&self.large_heads, 1);
        } else if error.is_parse() {
            add(&self.malformed_heads, 1);
        }
    }

    /// Statuses that were sent, and how often; 0 is no answer.
    pub(crate) fn codes(&self) -> impl Iterator<Item = (u16, u64)> + '_ {
        let counts = self.codes.iter().map(|count| count.load(Ordering::Relaxed));
        (0..).zip(counts).filter(|(_, count)| *count > 0)
    }

    /// Durations: each bucket for itself, and their sum in µs.
    pub(crate) fn durations(&self) -> (Vec<u64>, u64) {
        let buckets = self
            .durations
            .iter()
            .map(|bucket| bucket.load(Ordering::Relaxed))
            .collect();
        (buckets, self.duration_us.load(Ordering::Relaxed))
    }

    /// Failed handshakes.
    pub(crate) fn handshake_failures(&self) -> u64 {
        self.handshake_failures.load(Ordering::Relaxed)
    }

    /// Heads that could not be read, and why.
    pub(crate) fn unreadable_heads(&self) -> [(&'static str, u64); 2] {
        [
            ("malformed", self.malformed_heads.load(Ordering::Relaxed)),
            ("too_large", self.large_heads.load(Ordering::Relaxed)),
        ]
    }
}

fn add(counter: &AtomicU64, delta: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(delta),
        Ordering::Relaxed,
    );
}
