//! Metrics that plugins define, shared by the whole process: one atomic each, so that recording takes no lock.
//!
//! Envoy's quirks are kept: recording on a counter adds; a counter is not incremented by 0 or less; a gauge may wrap below 0; a
//! histogram can be neither incremented nor read. Defining a name again gives a new id of the same metric (see `state.rs`).
//!
//! As in Envoy a name is the process's, whoever defines it. A metric lives for as long as a VM has an id of it, and beyond that while a plugin of a
//! `vm_id` that defined it is named ([`Metrics::forget_unused`]).

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    abi::{MetricKind, Status},
    limits::{METRIC_NAME_BYTES_MAX, METRICS_MAX},
};

/// Upper bounds of a histogram's buckets; the last one is open. Plugins record milli- or microseconds and bytes: powers of four.
pub const HISTOGRAM_BOUNDS: &[u64] = &[
    1,
    4,
    16,
    64,
    256,
    1 << 10,
    1 << 12,
    1 << 14,
    1 << 16,
    1 << 18,
    1 << 20,
    1 << 22,
];

/// The plugin-defined metrics of the process.
#[derive(Debug, Default)]
pub struct Metrics(Mutex<HashMap<(String, MetricKindKey), Defined>>);

type MetricKindKey = u32;

#[derive(Debug)]
struct Defined {
    metric: Arc<Metric>,
    /// Who did so, by `vm_id`: no more than there are plugins.
    by: Vec<Box<str>>,
}

/// One metric.
#[derive(Debug)]
pub(crate) struct Metric {
    kind: MetricKind,
    /// Counter and gauge: the value; histogram: the sum.
    value: AtomicU64,
    buckets: [AtomicU64; HISTOGRAM_BOUNDS.len() + 1],
}

/// A metric's value at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MetricSnapshot {
    /// As the plugin defined it, without Envoy's prefix `wasmcustom.`. Bytes that are not UTF-8 were refused.
    pub name: String,
    /// What it holds.
    pub value: MetricValue,
}

/// What a metric holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetricValue {
    /// Only grows.
    Counter(u64),
    /// As Envoy has it: unsigned, may have wrapped below 0.
    Gauge(u64),
    /// Counts by bucket, each for itself (not cumulative): as many as [`HISTOGRAM_BOUNDS`], and one above the last.
    Histogram {
        /// Counts.
        buckets: Vec<u64>,
        /// Sum of all values.
        sum: u64,
    },
}

impl Metrics {
    pub(crate) fn define(
        &self,
        vm_id: &str,
        kind: MetricKind,
        name: &[u8],
    ) -> Result<Arc<Metric>, Status> {
        let name = std::str::from_utf8(name).map_err(|_| Status::BadArgument)?;
        if name.len() > METRIC_NAME_BYTES_MAX {
            return Err(Status::BadArgument);
        }
        let mut metrics = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (name.to_owned(), kind as u32);
        if let Some(defined) = metrics.get_mut(&key) {
            if !defined.by.iter().any(|it| **it == *vm_id) {
                defined.by.push(vm_id.into());
            }
            return Ok(Arc::clone(&defined.metric));
        }
        if metrics.len() >= METRICS_MAX {
            return Err(Status::InternalFailure);
        }
        let metric = Arc::new(Metric {
            kind,
            value: AtomicU64::new(0),
            buckets: std::array::from_fn(|_| AtomicU64::new(0)),
        });
        let defined = Defined {
            metric: Arc::clone(&metric),
            by: vec![vm_id.into()],
        };
        metrics.insert(key, defined);
        Ok(metric)
    }

    /// Forgets every metric that no VM has, and that none of the `vm_id`s that `keep` names has defined.
    pub fn forget_unused(&self, keep: impl Fn(&str) -> bool) {
        let mut metrics = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        metrics.retain(|_, defined| {
            if Arc::strong_count(&defined.metric) > 1 {
                return true;
            }
            defined.by.retain(|vm_id| keep(vm_id));
            !defined.by.is_empty()
        });
    }

    /// All metrics, by name.
    pub fn snapshot(&self) -> Vec<MetricSnapshot> {
        let metrics = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = metrics
            .iter()
            .map(|((name, _), defined)| MetricSnapshot {
                name: name.clone(),
                value: defined.metric.snapshot(),
            })
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }
}

impl Metric {
    pub(crate) fn increment(&self, delta: i64) -> Result<(), Status> {
        match self.kind {
            MetricKind::Counter if delta <= 0 => return Err(Status::BadArgument),
            MetricKind::Histogram => return Err(Status::BadArgument),
            MetricKind::Counter | MetricKind::Gauge => {}
        }
        // Two's complement: adding the bits of a negative delta subtracts.
        self.value
            .fetch_add(u64::from_ne_bytes(delta.to_ne_bytes()), Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn record(&self, value: u64) {
        match self.kind {
            MetricKind::Counter => {
                self.value.fetch_add(value, Ordering::Relaxed);
            }
            MetricKind::Gauge => self.value.store(value, Ordering::Relaxed),
            MetricKind::Histogram => {
                let index = HISTOGRAM_BOUNDS.partition_point(|bound| *bound < value);
                if let Some(bucket) = self.buckets.get(index) {
                    bucket.fetch_add(1, Ordering::Relaxed);
                }
                self.value.fetch_add(value, Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn value(&self) -> Result<u64, Status> {
        match self.kind {
            MetricKind::Histogram => Err(Status::BadArgument),
            MetricKind::Counter | MetricKind::Gauge => Ok(self.value.load(Ordering::Relaxed)),
        }
    }

    fn snapshot(&self) -> MetricValue {
        let value = self.value.load(Ordering::Relaxed);
        match self.kind {
            MetricKind::Counter => MetricValue::Counter(value),
            MetricKind::Gauge => MetricValue::Gauge(value),
            MetricKind::Histogram => MetricValue::Histogram {
                buckets: self
                    .buckets
                    .iter()
                    .map(|bucket| bucket.load(Ordering::Relaxed))
                    .collect(),
                sum: value,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envoy_s_quirks() {
        let metrics = Metrics::default();
        let counter = metrics.define("a", MetricKind::Counter, b"c").unwrap();
        assert_eq!(counter.increment(0), Err(Status::BadArgument));
        assert_eq!(counter.increment(-1), Err(Status::BadArgument));
        assert_eq!(counter.increment(2), Ok(()));
        metrics
            .define("a", MetricKind::Counter, b"c")
            .unwrap()
            .record(3);
        assert_eq!(counter.value(), Ok(5), "recording adds, and both are one");
        let gauge = metrics.define("a", MetricKind::Gauge, b"g").unwrap();
        gauge.increment(-93).unwrap();
        assert_eq!(
            gauge.value(),
            Ok(18_446_744_073_709_551_523),
            "wraps below 0"
        );
        let histogram = metrics.define("a", MetricKind::Histogram, b"h").unwrap();
        assert_eq!(histogram.increment(1), Err(Status::BadArgument));
        assert_eq!(histogram.value(), Err(Status::BadArgument));
        for value in [0, 1, 2, 1 << 40] {
            histogram.record(value);
        }
        let mut buckets = vec![0; HISTOGRAM_BOUNDS.len() + 1];
        (buckets[0], buckets[1], buckets[12]) = (2, 1, 1);
        let names: Vec<_> = metrics.snapshot().into_iter().map(|m| m.name).collect();
        assert_eq!(names, ["c", "g", "h"]);
        assert_eq!(
            metrics.snapshot()[2].value,
            MetricValue::Histogram {
                buckets,
                sum: (1 << 40) + 3
            }
        );
    }

    #[test]
    fn metrics_that_nobody_names_or_has_are_forgotten() {
        let metrics = Metrics::default();
        let names = || -> Vec<_> { metrics.snapshot().into_iter().map(|m| m.name).collect() };
        let define = |vm_id: &str, name: &[u8]| {
            let metric = metrics.define(vm_id, MetricKind::Counter, name);
            metric.unwrap()
        };
        define("a", b"of a").record(1);
        define("b", b"of both").record(1);
        define("a", b"of both").record(1);
        let held = define("b", b"held");
        drop(define("b", b"of b"));
        metrics.forget_unused(|vm_id| vm_id == "a");
        assert_eq!(names(), ["held", "of a", "of both"]);
        assert_eq!(define("a", b"of both").value(), Ok(2), "it counts on");
        held.record(1);
        drop(held);
        metrics.forget_unused(|vm_id| vm_id == "b");
        assert_eq!(names(), ["held"], "of a vm_id that is named again");
        metrics.forget_unused(|_| false);
        assert_eq!(names(), [""; 0]);
        assert_eq!(define("a", b"of a").value(), Ok(0), "it begins anew");
    }

    #[test]
    fn room_is_given_back() {
        let metrics = Metrics::default();
        for round in 0..2 {
            for number in 0..METRICS_MAX {
                let name = format!("{round}.{number}");
                let defined = metrics.define("a", MetricKind::Gauge, name.as_bytes());
                assert!(defined.is_ok(), "{name}");
            }
            metrics.forget_unused(|_| false);
        }
    }

    #[test]
    fn names_and_numbers_are_bounded() {
        let metrics = Metrics::default();
        assert_eq!(
            metrics.define("a", MetricKind::Gauge, b"\xff").err(),
            Some(Status::BadArgument)
        );
        assert_eq!(
            metrics
                .define("a", MetricKind::Gauge, &[b'a'; METRIC_NAME_BYTES_MAX + 1])
                .err(),
            Some(Status::BadArgument)
        );
        for number in 0..METRICS_MAX {
            metrics
                .define("a", MetricKind::Gauge, number.to_string().as_bytes())
                .unwrap();
        }
        assert_eq!(
            metrics.define("a", MetricKind::Gauge, b"one more").err(),
            Some(Status::InternalFailure)
        );
        assert!(
            metrics.define("a", MetricKind::Gauge, b"1").is_ok(),
            "a known one"
        );
    }
}
