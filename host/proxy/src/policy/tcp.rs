//! `tcp` of a listener: connections passed on byte by byte, through filters of their own.

use std::sync::Arc;
use std::time::Duration;

use super::cluster::Cluster;
use super::filter::{self, Configuration, Filter, FilterInstance};
use super::limits::TIMEOUT;
use super::reader::Field;
use super::{all, complete};

/// What a TCP listener does with a connection.
#[derive(Clone, Debug)]
pub struct TcpProxy {
    /// Where it leads.
    pub cluster: Arc<Cluster>,
    /// After how long without a byte either way it is closed; default 1 h, as in Envoy.
    pub idle_timeout: Duration,
    /// In the order in which a client's bytes pass them.
    pub chain: Vec<Arc<FilterInstance>>,
}

/// The same before its filters have their places among all.
pub(super) struct TcpParts {
    cluster: Arc<Cluster>,
    idle_timeout: Duration,
    filters: Vec<(Filter, Configuration)>,
}

const KEYS: &[&str] = &["cluster", "idle_timeout", "filters"];

pub(super) fn read(
    field: &Field<'_>,
    clusters: &[Arc<Cluster>],
    cluster_names: &[&str],
) -> Option<TcpParts> {
    let section = field.section(KEYS)?;
    let cluster = section
        .required("cluster")
        .and_then(|field| super::cluster::find(field, clusters, cluster_names));
    let idle_timeout = match section.optional("idle_timeout") {
        Some(field) => field.duration(TIMEOUT),
        None => Some(Duration::from_secs(3600)),
    };
    let filters = all(&section.list("filters"), |field| {
        let (filter, configuration) = filter::read(field, clusters, cluster_names)?;
        let filter = Filter {
            is_tcp: true,
            ..filter
        };
        Some((filter, configuration))
    });
    Some(TcpParts {
        cluster: cluster?,
        idle_timeout: idle_timeout?,
        filters: complete(filters)?,
    })
}

/// The filters that a listener names, for their names' sake.
pub(super) fn filter_fields<'r>(listener: &Field<'r>) -> Vec<Field<'r>> {
    let section = listener.section(super::listener::KEYS);
    let tcp = section.and_then(|section| section.optional("tcp").cloned());
    tcp.and_then(|field| field.section(KEYS))
        .map(|section| section.list("filters"))
        .unwrap_or_default()
}

/// Gives the filters their places behind those there are.
pub(super) fn build(
    parts: TcpParts,
    filters: &mut Vec<Arc<Filter>>,
    instances: &mut Vec<Arc<FilterInstance>>,
) -> TcpProxy {
    let mut chain = Vec::new();
    for (filter, configuration) in parts.filters {
        let filter = Arc::new(filter);
        let instance = Arc::new(FilterInstance {
            index: u32::try_from(instances.len()).unwrap_or(u32::MAX),
            name: filter.name.clone(),
            filter: Arc::clone(&filter),
            configuration,
        });
        filters.push(filter);
        instances.push(Arc::clone(&instance));
        chain.push(instance);
    }
    TcpProxy {
        cluster: parts.cluster,
        idle_timeout: parts.idle_timeout,
        chain,
    }
}
