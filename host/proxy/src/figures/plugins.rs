//! What is counted of plugins.

use std::collections::BTreeMap;
use std::fmt;

use portcullis_runtime::{DenialKind, LATENCY_BOUNDS_NS, PluginStats};
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::{Figures, counters, decimal, gauges, label, with_bounds};

impl Figures {
    /// All workers' counters of every plugin.
    fn by_plugin(&self) -> BTreeMap<&str, Vec<&PluginStats>> {
        let mut plugins: BTreeMap<&str, Vec<&PluginStats>> = BTreeMap::new();
        for (name, stats) in &self.plugins {
            plugins.entry(name).or_default().push(stats);
        }
        plugins
    }

    pub(super) fn plugins(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        type Read = fn(&PluginStats) -> u64;
        let plain: [(&str, &str, Read); 11] = [
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
            (
                "portcullis_plugin_log_lines_dropped",
                "Log lines dropped because there were too many",
                PluginStats::log_drops,
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
        let mut denials = Vec::new();
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
            for kind in DenialKind::ALL {
                let of_kind = stats.iter().flat_map(|stats| stats.denials());
                let of_kind = of_kind.filter(|(of, _)| of == kind);
                let labels = [("plugin", *plugin), ("kind", kind.as_str())];
                denials.push((
                    labels.map(|(key, value)| (key, value.to_owned())).into(),
                    of_kind.map(|(_, count)| count).sum(),
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
        counters(
            encoder,
            "portcullis_plugin_denials",
            "Uses of what a plugin's allow-lists do not have",
            denials,
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
}
