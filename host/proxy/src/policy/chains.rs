//! Routes as written, and the chains they become: which filter instance runs on which route.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use super::cluster::{self, Cluster};
use super::filter::{self, Configuration, Filter, FilterInstance, Override};
use super::place::Place;
use super::reader::{Field, Reader};
use super::route::{self, HostPattern, PathPrefix, Route};
use super::{Policy, complete, scalar};

const ROUTE_KEYS: &[&str] = &["name", "host", "prefix", "cluster", "filters"];

/// A route before its chain is known.
pub(super) struct RouteParts {
    name: String,
    host: HostPattern,
    prefix: PathPrefix,
    cluster: Arc<Cluster>,
    overrides: Vec<(String, Override)>,
    place: Place,
}

pub(super) fn read_route(
    field: &Field<'_>,
    clusters: &[Arc<Cluster>],
    cluster_names: &[&str],
    filter_names: &[&str],
) -> Option<RouteParts> {
    let section = field.section(ROUTE_KEYS)?;
    let name = section
        .required("name")
        .and_then(|field| field.parse(scalar::name));
    let host = match section.optional("host") {
        Some(field) => field.parse(route::host),
        None => Some(HostPattern::Any),
    };
    let prefix = match section.optional("prefix") {
        Some(field) => field.parse(route::prefix),
        None => route::prefix("/").ok(),
    };
    let cluster = section
        .required("cluster")
        .and_then(|field| cluster::find(field, clusters, cluster_names));
    let members = section
        .optional("filters")
        .map(Field::members)
        .unwrap_or_default();
    let overrides = members.iter().map(|(filter, field)| {
        if !filter_names.contains(filter) {
            field.refuse(format!("there is no filter `{filter}`"));
            return None;
        }
        Some(((*filter).to_owned(), filter::read_override(field)?))
    });
    let overrides: Vec<_> = overrides.collect();
    Some(RouteParts {
        name: name?,
        host: host?,
        prefix: prefix?,
        cluster: cluster?,
        overrides: complete(overrides)?,
        place: field.place(),
    })
}

/// Builds every route's chain, and an instance for each filter and each configuration of it that a route wrote.
pub(super) fn build(
    filters: &[Arc<Filter>],
    configurations: Vec<Configuration>,
    parts: Vec<RouteParts>,
) -> (Vec<Arc<FilterInstance>>, Vec<Arc<Route>>) {
    let mut instances: Vec<Arc<FilterInstance>> = Vec::new();
    let mut add = |name: String, filter: &Arc<Filter>, configuration: Configuration| {
        let same = |it: &&Arc<FilterInstance>| {
            it.filter.name == filter.name && it.configuration.json == configuration.json
        };
        if let Some(instance) = instances.iter().find(same) {
            return Arc::clone(instance);
        }
        let instance = Arc::new(FilterInstance {
            index: u32::try_from(instances.len()).unwrap_or(u32::MAX),
            name,
            filter: Arc::clone(filter),
            configuration,
        });
        instances.push(Arc::clone(&instance));
        instance
    };
    let base = filters
        .iter()
        .zip(configurations)
        .map(|(filter, configuration)| {
            let instance = add(filter.name.clone(), filter, configuration);
            (Arc::clone(filter), instance)
        });
    let base: Vec<_> = base.collect();
    let mut routes = Vec::new();
    for part in parts {
        let mut chain = Vec::new();
        let mut off = Vec::new();
        for (filter, instance) in &base {
            match part.overrides.iter().find(|(name, _)| *name == filter.name) {
                None => chain.push(Arc::clone(instance)),
                Some((_, Override::Off)) => off.push(Arc::clone(filter)),
                Some((_, Override::Configured(configuration))) => {
                    let name = format!("{}@{}", filter.name, part.name);
                    chain.push(add(name, filter, configuration.clone()));
                }
            }
        }
        routes.push(Arc::new(Route {
            name: part.name,
            host: part.host,
            prefix: part.prefix,
            cluster: part.cluster,
            chain,
            off,
            place: part.place,
        }));
    }
    (instances, routes)
}

impl Policy {
    /// The filters of requests that no route takes: all, as they are where a route says nothing.
    pub(crate) fn unrouted_chain(&self) -> Vec<Arc<FilterInstance>> {
        let everywhere = self
            .instances
            .iter()
            .filter(|instance| instance.name == instance.filter.name && !instance.filter.is_tcp);
        everywhere.cloned().collect()
    }

    /// The filters of requests that are refused before there could be a route: those that put headers on answers, and no others.
    pub(crate) fn refused_chain(&self) -> Vec<Arc<FilterInstance>> {
        let mut chain = self.unrouted_chain();
        chain.retain(|instance| {
            instance.filter.module.control.as_deref() == Some("security-headers")
        });
        chain
    }

    /// Every instance of the filters that are off on a route.
    pub(crate) fn off_on(&self, route: &Route) -> impl Iterator<Item = &Arc<FilterInstance>> {
        self.instances.iter().filter(|instance| {
            let name = &instance.filter.name;
            route.off.iter().any(|filter| filter.name == *name)
        })
    }
}

/// Two routes for the same requests: one of them would never be taken.
pub(super) fn refuse_equal_matches(reader: &Reader, routes: &[Arc<Route>]) {
    let mut known: HashMap<_, &Arc<Route>> = HashMap::new();
    for route in routes {
        match known.entry((&route.host, &route.prefix)) {
            Entry::Vacant(new) => {
                new.insert(route);
            }
            Entry::Occupied(first) => {
                let first = first.get();
                let reason = format!(
                    "matches the same requests as `{}` on line {}",
                    first.name, first.place.line
                );
                reader.refuse(route.place.problem(reason));
            }
        }
    }
}
