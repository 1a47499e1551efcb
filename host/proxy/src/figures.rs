//! `/metrics`: what the workers and plugins have counted, in the text format of Prometheus (OpenMetrics).
//!
//! A plugin's counter `portcullis.<control>.refused.<reason>` is shown as `portcullis_decisions_total{control,decision="refuse",reason}`; all
//! other metrics that plugins define keep their names, `portcullis_custom_` in front and `_` for what Prometheus does not allow.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use portcullis_runtime::{HISTOGRAM_BOUNDS, LATENCY_BOUNDS_NS, MetricValue, PluginStats};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::stats::DURATION_BOUNDS_MS;
use crate::worker::{Plan, PluginFigures, WorkerRef};

/// Where the figures are.
#[derive(Clone)]
pub(crate) struct Figures {
    /// Requests and connections.
    pub(crate) workers: Vec<WorkerRef>,
    /// Plugins, by worker.
    pub(crate) plugins: Vec<PluginFigures>,
    /// Clusters, and the metrics that plugins define.
    pub(crate) plan: Arc<Plan>,
}

impl fmt::Debug for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Figures").finish_non_exhaustive()
    }
}

/// One sample of a family: labels and value.
type Sample = (Vec<(&'static str, String)>, u64);

impl Figures {
    /// As text.
    pub(crate) fn to_text(&self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self.clone()));
        let mut text = String::new();
        // Writing to a string does not fail.
        prometheus_client::encoding::text::encode(&mut text, &registry).ok();
        text
    }

    fn requests(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut codes: BTreeMap<u16, u64> = BTreeMap::new();
        let mut buckets = [0_u64; DURATION_BOUNDS_MS.len() + 1];
        let mut sum_us = 0_u64;
        let mut failures = 0_u64;
        let mut unreadable: BTreeMap<&str, u64> = BTreeMap::new();
        for worker in &self.workers {
            for (code, count) in worker.stats.codes() {
                *codes.entry(code).or_default() += count;
            }
            let (counts, sum) = worker.stats.durations();
            for (bucket, count) in buckets.iter_mut().zip(counts) {
                *bucket += count;
            }
            sum_us = sum_us.saturating_add(sum);
            failures += worker.stats.handshake_failures();
            for (reason, count) in worker.stats.unreadable_heads() {
                *unreadable.entry(reason).or_default() += count;
            }
        }
        let samples = codes
            .into_iter()
            .map(|(code, count)| (vec![("code", code.to_string())], count));
        counters(
            encoder,
            "portcullis_requests",
            "Requests by the status sent; 0 where none was",
            samples.collect(),
        )?;
        let bounds = DURATION_BOUNDS_MS.map(|bound| decimal(bound) / 1e3);
        let help = "From the request's head to the last of its answer";
        let mut histogram = encoder.encode_descriptor(
            "portcullis_request_duration_seconds",
            help,
            None,
            MetricType::Histogram,
        )?;
        let (buckets, count) = with_bounds(&bounds, &buckets);
        histogram.encode_histogram::<NoLabelSet>(decimal(sum_us) / 1e6, count, &buckets, None)?;
        counters(
            encoder,
            "portcullis_tls_handshake_failures",
            "Clients that failed to agree on TLS",
            vec![(vec![], failures)],
        )?;
        let tcp = self.workers.iter();
        let tcp = tcp.map(|worker| worker.stats.tcp_connections()).sum();
        counters(
            encoder,
            "portcullis_tcp_connections",
            "Connections to TCP listeners",
            vec![(vec![], tcp)],
        )?;
        let unreadable = unreadable
            .into_iter()
            .map(|(reason, count)| (vec![("reason", reason.to_owned())], count));
        counters(
            encoder,
            "portcullis_unreadable_heads",
            "HTTP/1 requests refused with 400 or 431 before they could be read; portcullis_requests has the others",
            unreadable.collect(),
        )?;
        let open = self.workers.iter().enumerate().map(|(index, worker)| {
            let open =
                u64::try_from(worker.connections.load(Ordering::Relaxed)).unwrap_or(u64::MAX);
            (vec![("worker", index.to_string())], open)
        });
        gauges(
            encoder,
            "portcullis_downstream_connections",
            "Open client connections",
            open.collect(),
        )?;
        let dropped = self
            .plan
            .log
            .as_ref()
            .map_or(0, crate::access_log::AccessLog::dropped);
        counters(
            encoder,
            "portcullis_access_log_dropped",
            "Access log lines dropped",
            vec![(vec![], dropped)],
        )
    }

    fn clusters(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut opened = Vec::new();
        let mut failed = Vec::new();
        let mut retried = Vec::new();
        let mut open = Vec::new();
        for cluster in &self.plan.clusters {
            let label = || vec![("cluster", cluster.policy.name.clone())];
            let stats = &cluster.stats;
            let closed = stats.closed.load(Ordering::Relaxed);
            let all = stats.opened.load(Ordering::Relaxed);
            opened.push((label(), all));
            failed.push((label(), stats.failed.load(Ordering::Relaxed)));
            retried.push((label(), stats.retried.load(Ordering::Relaxed)));
            open.push((label(), all.saturating_sub(closed)));
        }
        counters(
            encoder,
            "portcullis_upstream_connects",
            "Connections opened to a cluster",
            opened,
        )?;
        counters(
            encoder,
            "portcullis_upstream_connect_failures",
            "Connections to a cluster that failed",
            failed,
        )?;
        counters(
            encoder,
            "portcullis_upstream_retries",
            "Requests sent again on a fresh connection",
            retried,
        )?;
        gauges(
            encoder,
            "portcullis_upstream_connections",
            "Open connections to a cluster",
            open,
        )
    }

    /// All workers' counters of every plugin.
    fn by_plugin(&self) -> BTreeMap<&str, Vec<&PluginStats>> {
        let mut plugins: BTreeMap<&str, Vec<&PluginStats>> = BTreeMap::new();
        for (name, stats) in self.plugins.iter().flatten() {
            plugins.entry(name).or_default().push(stats);
        }
        plugins
    }

    fn plugins(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        type Read = fn(&PluginStats) -> u64;
        let plain: [(&str, &str, Read); 10] = [
            (
                "portcullis_plugin_restarts",
                "VMs that took the place of one that broke",
                PluginStats::restarts,
            ),
            (
                "portcullis_plugin_start_failures",
                "VMs that did not start",
                PluginStats::start_failures,
            ),
            (
                "portcullis_plugin_snapshots",
                "Snapshots that VMs of single requests begin from",
                PluginStats::snapshots,
            ),
            (
                "portcullis_plugin_snapshot_failures",
                "Snapshots that could not be made",
                PluginStats::snapshot_failures,
            ),
            (
                "portcullis_plugin_vm_denials",
                "Requests refused because there were as many VMs as may be",
                PluginStats::vm_denials,
            ),
            (
                "portcullis_plugin_cpu_denials",
                "Requests refused because they had used up their CPU time",
                PluginStats::cpu_denials,
            ),
            (
                "portcullis_plugin_refused",
                "Requests and TCP connections refused for want of a VM, or because they broke it",
                PluginStats::refused,
            ),
            (
                "portcullis_plugin_passed_by",
                "Requests and TCP connections that passed unchecked (failure policy open)",
                PluginStats::passed_by,
            ),
            (
                "portcullis_plugin_memory_denials",
                "Times a VM asked for more memory than its bound",
                PluginStats::memory_denials,
            ),
            (
                "portcullis_plugin_local_responses",
                "Requests that a plugin answered itself",
                PluginStats::local_responses,
            ),
        ];
        let plugins = self.by_plugin();
        for (name, help, read) in plain {
            let samples = plugins.iter().map(|(plugin, stats)| {
                (label(plugin), stats.iter().map(|stats| read(stats)).sum())
            });
            counters(encoder, name, help, samples.collect())?;
        }
        let mut traps = Vec::new();
        let mut memory = Vec::new();
        let mut vms = Vec::new();
        let mut waiting = Vec::new();
        for (plugin, stats) in &plugins {
            let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
            for (kind, count) in stats.iter().flat_map(|stats| stats.traps()) {
                *kinds.entry(kind.as_str()).or_default() += count;
            }
            for (kind, count) in kinds {
                traps.push((
                    vec![("plugin", (*plugin).to_owned()), ("kind", kind.to_owned())],
                    count,
                ));
            }
            let bytes: usize = stats.iter().map(|stats| stats.memory_bytes()).sum();
            memory.push((label(plugin), u64::try_from(bytes).unwrap_or(u64::MAX)));
            vms.push((label(plugin), stats.iter().map(|stats| stats.vms()).sum()));
            let count = stats.iter().filter(|stats| stats.is_waiting()).count();
            waiting.push((label(plugin), u64::try_from(count).unwrap_or(u64::MAX)));
        }
        counters(
            encoder,
            "portcullis_plugin_traps",
            "VMs that broke, by why; out_of_time is a time-out",
            traps,
        )?;
        gauges(
            encoder,
            "portcullis_plugin_memory_bytes",
            "Linear memory of a plugin's VMs",
            memory,
        )?;
        gauges(encoder, "portcullis_plugin_vms", "A plugin's VMs", vms)?;
        gauges(
            encoder,
            "portcullis_plugin_waiting",
            "Workers on which a plugin has no VM, because it does not start",
            waiting,
        )?;
        self.latencies(encoder)
    }

    /// Plugins that have no VM on some workers because they do not start: name, and on how many.
    pub(crate) fn waiting(&self) -> Vec<(&str, usize)> {
        let mut waiting = Vec::new();
        for (plugin, stats) in self.by_plugin() {
            let count = stats.iter().filter(|stats| stats.is_waiting()).count();
            if count > 0 {
                waiting.push((plugin, count));
            }
        }
        waiting
    }

    fn latencies(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let bounds = LATENCY_BOUNDS_NS.iter().map(|bound| decimal(*bound) / 1e9);
        let bounds: Vec<_> = bounds.collect();
        let mut calls: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        let mut times: BTreeMap<(&str, &str), ([u64; LATENCY_BOUNDS_NS.len() + 1], u64)> =
            BTreeMap::new();
        for (plugin, stats) in self.by_plugin() {
            for latency in stats.iter().flat_map(|stats| stats.latencies()) {
                let key = (plugin, latency.callback.name());
                *calls.entry(key).or_default() += latency.calls;
                let (buckets, sum) = times.entry(key).or_default();
                for (bucket, count) in buckets.iter_mut().zip(latency.buckets) {
                    *bucket += count;
                }
                *sum = sum.saturating_add(latency.sum_ns);
            }
        }
        let labels = |(plugin, callback): (&str, &str)| {
            vec![
                ("plugin", plugin.to_owned()),
                ("callback", callback.to_owned()),
            ]
        };
        let samples = calls.into_iter().map(|(key, count)| (labels(key), count));
        counters(
            encoder,
            "portcullis_plugin_callbacks",
            "Calls of a plugin's callbacks",
            samples.collect(),
        )?;
        let help = "Duration of callbacks, from a sample of the calls";
        let mut family = encoder.encode_descriptor(
            "portcullis_plugin_callback_duration_seconds",
            help,
            None,
            MetricType::Histogram,
        )?;
        for (key, (buckets, sum)) in times {
            let (buckets, count) = with_bounds(&bounds, &buckets);
            let labels = labels(key);
            family
                .encode_family(&labels)?
                .encode_histogram::<NoLabelSet>(decimal(sum) / 1e9, count, &buckets, None)?;
        }
        Ok(())
    }

    /// What plugins define themselves.
    fn custom(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut decisions = Vec::new();
        let mut others: BTreeMap<String, MetricValue> = BTreeMap::new();
        for metric in self.plan.shared.metrics.snapshot() {
            match (refusal(&metric.name), &metric.value) {
                (Some((control, reason)), MetricValue::Counter(count)) => {
                    let labels = [
                        ("control", control),
                        ("decision", "refuse"),
                        ("reason", reason),
                    ];
                    decisions.push((
                        labels.map(|(key, value)| (key, value.to_owned())).into(),
                        *count,
                    ));
                }
                _ => {
                    // Two names may come out the same; the first keeps it.
                    others
                        .entry(prometheus_name(&metric.name))
                        .or_insert(metric.value);
                }
            }
        }
        counters(
            encoder,
            "portcullis_decisions",
            "Requests that a control refused, by reason",
            decisions,
        )?;
        for (name, value) in others {
            let help = "Defined by a plugin";
            match value {
                MetricValue::Counter(count) => {
                    counters(encoder, &name, help, vec![(vec![], count)])?
                }
                MetricValue::Gauge(value) => gauges(encoder, &name, help, vec![(vec![], value)])?,
                MetricValue::Histogram { buckets, sum } => {
                    let bounds = HISTOGRAM_BOUNDS.iter().copied().map(decimal);
                    let (buckets, count) = with_bounds(&bounds.collect::<Vec<_>>(), &buckets);
                    let mut histogram =
                        encoder.encode_descriptor(&name, help, None, MetricType::Histogram)?;
                    histogram.encode_histogram::<NoLabelSet>(
                        decimal(sum),
                        count,
                        &buckets,
                        None,
                    )?;
                }
            }
        }
        Ok(())
    }
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.requests(&mut encoder)?;
        self.clusters(&mut encoder)?;
        self.plugins(&mut encoder)?;
        self.custom(&mut encoder)
    }
}

/// Control and reason of `portcullis.<control>.refused.<reason>`.
fn refusal(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix("portcullis.")?.split_once(".refused.")
}

/// `portcullis_custom_` and the name, with nothing in it that Prometheus does not allow.
fn prometheus_name(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let name = name.strip_prefix("portcullis.").unwrap_or(name);
    std::iter::once("portcullis_custom_")
        .flat_map(str::chars)
        .chain(name.chars().map(plain))
        .collect()
}

fn label(plugin: &str) -> Vec<(&'static str, String)> {
    vec![("plugin", plugin.to_owned())]
}

fn counters(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: Vec<Sample>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in samples {
        if labels.is_empty() {
            family.encode_counter::<NoLabelSet, u64, f64>(&value, None)?;
        } else {
            family
                .encode_family(&labels)?
                .encode_counter::<NoLabelSet, u64, f64>(&value, None)?;
        }
    }
    Ok(())
}

fn gauges(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: Vec<Sample>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in samples {
        let value = decimal(value);
        if labels.is_empty() {
            family.encode_gauge(&value)?;
        } else {
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
    }
    Ok(())
}

/// Each bucket with its upper bound, the last one open; and how many there are in all.
fn with_bounds(bounds: &[f64], buckets: &[u64]) -> (Vec<(f64, u64)>, u64) {
    // The text format wants a last bucket of `+Inf`.
    let bounds = bounds.iter().copied().chain(std::iter::once(f64::INFINITY));
    (
        bounds.zip(buckets.iter().copied()).collect(),
        buckets.iter().sum(),
    )
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a figure for people; off by one in 2^53"
)]
fn decimal(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_prometheus_takes() {
        let rows = [
            (
                "portcullis.jwt-auth.cache_hits",
                "portcullis_custom_jwt_auth_cache_hits",
            ),
            ("a.b\n{c}\u{e9}", "portcullis_custom_a_b__c__"),
        ];
        for (name, expected) in rows {
            assert_eq!(prometheus_name(name), expected);
        }
        let rows = [
            (
                "portcullis.jwt-auth.refused.expired",
                Some(("jwt-auth", "expired")),
            ),
            ("portcullis.jwt-auth.allowed", None),
            ("other.refused.x", None),
        ];
        for (name, expected) in rows {
            assert_eq!(refusal(name), expected, "{name}");
        }
    }
}
