//! `/metrics`: what the workers and plugins have counted, in the text format of Prometheus (OpenMetrics).
//!
//! A plugin's counter `portcullis.<control>.refused.<reason>` is shown as `portcullis_decisions_total{control,decision="refuse",reason}`
//! (`decision="shadow"` where the control only would have); all
//! other metrics that plugins define keep their names, `portcullis_custom_` in front and `_` for what Prometheus does not allow.

mod plugins;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use portcullis_runtime::{HISTOGRAM_BOUNDS, MetricValue, PluginStats};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::plan::Plan;
use crate::reload::Reloads;
use crate::stats::DURATION_BOUNDS_MS;
use crate::worker::WorkerRef;

/// Where the figures are.
#[derive(Clone)]
pub(crate) struct Figures {
    /// Requests and connections.
    pub(crate) workers: Vec<WorkerRef>,
    /// Plugins, once a worker.
    pub(crate) plugins: Vec<(String, Arc<PluginStats>)>,
    /// What became of reloads.
    pub(crate) reloads: Reloads,
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

    fn reloads(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let samples = [
            ("done", self.reloads.done),
            ("refused", self.reloads.refused),
        ];
        let label = |result: &str| vec![("result", result.to_owned())];
        counters(
            encoder,
            "portcullis_reloads",
            "Policies that were to take the place of the running one",
            samples.map(|(result, count)| (label(result), count)).into(),
        )?;
        gauges(
            encoder,
            "portcullis_last_reload_refused",
            "1 where the last reload was refused: the policy that runs is not the one that is written",
            vec![(vec![], u64::from(self.reloads.is_last_refused()))],
        )?;
        let earlier = self.workers.iter().enumerate().map(|(index, worker)| {
            let count = worker.editions.load(Ordering::Relaxed);
            (
                vec![("worker", index.to_string())],
                u64::try_from(count).unwrap_or(u64::MAX),
            )
        });
        gauges(
            encoder,
            "portcullis_earlier_policies",
            "Policies that were replaced and still have requests",
            earlier.collect(),
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

    /// What plugins define themselves.
    fn custom(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut decisions = Vec::new();
        let mut others: BTreeMap<String, MetricValue> = BTreeMap::new();
        for metric in self.plan.shared.metrics.snapshot() {
            match (refusal(&metric.name), &metric.value) {
                (Some((control, decision, reason)), MetricValue::Counter(count)) => {
                    let labels = [
                        ("control", control),
                        ("decision", decision),
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
            "Requests that a control refused, or would have (decision=shadow), by reason",
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
        self.reloads(&mut encoder)?;
        self.clusters(&mut encoder)?;
        self.plugins(&mut encoder)?;
        self.custom(&mut encoder)
    }
}

/// Control, decision and reason of `portcullis.<control>.refused.<reason>`, or of `portcullis.<control>.shadow.refused.<reason>`, where nothing
/// came of it.
fn refusal(name: &str) -> Option<(&str, &str, &str)> {
    let (control, reason) = name.strip_prefix("portcullis.")?.split_once(".refused.")?;
    Some(match control.strip_suffix(".shadow") {
        Some(control) => (control, "shadow", reason),
        None => (control, "refuse", reason),
    })
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
                Some(("jwt-auth", "refuse", "expired")),
            ),
            (
                "portcullis.jwt-auth.shadow.refused.expired",
                Some(("jwt-auth", "shadow", "expired")),
            ),
            ("portcullis.jwt-auth.allowed", None),
            ("other.refused.x", None),
        ];
        for (name, expected) in rows {
            assert_eq!(refusal(name), expected, "{name}");
        }
    }
}
