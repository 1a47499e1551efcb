//! Metrics. Every name becomes `portcullis.<control>.<name>`; Envoy puts `wasmcustom.` in front of it. A metric that
//! the host refuses is silent: a metric never changes a decision.

use crate::host::{ActiveHost, Host, MetricKind};

/// A number that only grows.
///
/// ```
/// use portcullis_sdk::prelude::*;
///
/// struct Cache {
///     hits: Counter,
/// }
///
/// impl Cache {
///     fn new(plugin: &PluginContext) -> Self {
///         // Of the control `jwt-auth`: `portcullis.jwt-auth.cache_hits`.
///         Self { hits: plugin.counter("cache_hits") }
///     }
///
///     fn hit(&self) {
///         self.hits.increment(1);
///     }
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Counter(Metric);

impl Counter {
    pub(crate) fn new(host: &ActiveHost, control: &str, name: &str) -> Self {
        Self(Metric::new(host, control, name, MetricKind::Counter))
    }

    /// Adds to it; 0 does nothing. One hostcall.
    pub fn increment(&self, by: u32) {
        if let Some(id) = self.0.id.filter(|_| by > 0) {
            let _ = self.0.host.increment_metric(id, i64::from(by));
        }
    }

    /// What it stands at; 0 where the host does not say. One hostcall.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// Once in a thousand.
    /// fn is_sampled(requests: &Counter) -> bool {
    ///     requests.value() % 1000 == 0
    /// }
    /// ```
    pub fn value(&self) -> u64 {
        self.0.value()
    }
}

/// A number that goes up and down.
///
/// ```
/// use portcullis_sdk::prelude::*;
///
/// /// How many keys there are: `portcullis.<control>.keys`.
/// fn tell(plugin: &PluginContext, keys: u64) {
///     plugin.gauge("keys").set(keys);
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Gauge(Metric);

impl Gauge {
    pub(crate) fn new(host: &ActiveHost, control: &str, name: &str) -> Self {
        Self(Metric::new(host, control, name, MetricKind::Gauge))
    }

    /// Sets it. One hostcall.
    pub fn set(&self, value: u64) {
        self.0.record(value);
    }

    /// What it stands at; 0 where the host does not say. One hostcall.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// Above the mark that another worker set, too: a gauge is the process's.
    /// fn is_high(waiting: &Gauge) -> bool {
    ///     waiting.value() > 100
    /// }
    /// ```
    pub fn value(&self) -> u64 {
        self.0.value()
    }
}

/// A distribution of values.
///
/// ```
/// use portcullis_sdk::prelude::*;
///
/// /// Define it once, at configure; record into it as often as you like.
/// fn measure(plugin: &PluginContext) -> Histogram {
///     let sizes = plugin.histogram("body_bytes");
///     sizes.record(1024);
///     sizes
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Histogram(Metric);

impl Histogram {
    pub(crate) fn new(host: &ActiveHost, control: &str, name: &str) -> Self {
        Self(Metric::new(host, control, name, MetricKind::Histogram))
    }

    /// Records a value. One hostcall.
    pub fn record(&self, value: u64) {
        self.0.record(value);
    }
}

#[derive(Clone, Debug)]
struct Metric {
    host: ActiveHost,
    id: Option<u32>,
}

impl Metric {
    fn new(host: &ActiveHost, control: &str, name: &str, kind: MetricKind) -> Self {
        let name = ["portcullis.", control, ".", name].concat();
        Self {
            id: host.define_metric(kind, &name).ok(),
            host: host.clone(),
        }
    }

    fn record(&self, value: u64) {
        if let Some(id) = self.id {
            let _ = self.host.record_metric(id, value);
        }
    }

    fn value(&self) -> u64 {
        self.id
            .and_then(|id| self.host.metric(id).ok())
            .unwrap_or(0)
    }
}
