//! Neighbouring filters as one: the same policy with one module in the place of several.
//!
//! In Envoy a Wasm filter costs some CPU for each request and each callback, whatever it does; the module of all controls
//! enters the VM once for its filters. What becomes one filter decides as before: order, answers, metrics and shadow
//! mode stay each control's own. Bounds and traps are then shared, so only filters are taken together whose operator
//! wrote the same bounds and the same failure policy for them.

use std::sync::Arc;

use anyhow::Context as _;
use serde_json::json;

use crate::policy::{
    Configuration, Filter, FilterInstance, ModuleSource, Policy, Route, WasmModule,
};

/// The module that has all controls.
const POLICY: &str = "policy";

/// The policy with neighbours in one module, where they can be. What it says of routes, clusters and listeners stays.
///
/// # Errors
///
/// The program lacks the module.
pub fn in_one_module(policy: &Policy) -> anyhow::Result<Policy> {
    let groups = groups(&policy.filters);
    let mut merged = Merged::default();
    let mut filters = Vec::new();
    for group in &groups {
        let filter = match group.as_slice() {
            [one] => Arc::clone(one),
            several => Arc::new(one_filter(several)?),
        };
        merged.bases(policy, group, &filter);
        filters.push(filter);
    }
    let routes = policy.routes.iter().map(|route| {
        let mut chain = Vec::new();
        for (group, filter) in groups.iter().zip(&filters) {
            chain.extend(merged.on_route(route, group, filter));
        }
        Arc::new(Route {
            chain,
            ..Route::clone(route)
        })
    });
    let routes: Vec<Arc<Route>> = routes.collect();
    Ok(Policy {
        filters,
        instances: merged.instances,
        table: crate::policy::RouteTable::new(&routes),
        routes,
        ..policy.clone()
    })
}

/// The module of all controls, with the callbacks that these need.
fn module_for(group: &[Arc<Filter>]) -> anyhow::Result<WasmModule> {
    let mut callbacks = Vec::new();
    for filter in group {
        let control = portcullis_module::Description::read(&filter.module.bytes)?;
        callbacks.extend(
            control
                .context("a control without a description")?
                .callbacks,
        );
    }
    let all = WasmModule::read(ModuleSource::Builtin(POLICY.to_owned()))
        .map_err(anyhow::Error::msg)
        .context("the module of all controls")?;
    let narrowed = portcullis_module::narrow(&all.bytes, &callbacks)?;
    Ok(all.with_bytes(narrowed.bytes))
}

/// Neighbours that can be one filter, in the chain's order.
fn groups(filters: &[Arc<Filter>]) -> Vec<Vec<Arc<Filter>>> {
    let mut groups: Vec<Vec<Arc<Filter>>> = Vec::new();
    for filter in filters {
        match groups.last_mut() {
            Some(group) if group.last().is_some_and(|last| are_alike(last, filter)) => {
                group.push(Arc::clone(filter));
            }
            _ => groups.push(vec![Arc::clone(filter)]),
        }
    }
    groups
}

fn are_alike(a: &Filter, b: &Filter) -> bool {
    let ours = |filter: &Filter| {
        let control =
            matches!(&filter.module.source, ModuleSource::Builtin(name) if name != POLICY);
        control && !filter.is_tcp && filter.root_id.is_empty() && filter.allow.lists.is_everything()
    };
    ours(a)
        && ours(b)
        && a.failure_policy == b.failure_policy
        && a.isolation == b.isolation
        && a.limits == b.limits
}

fn one_filter(group: &[Arc<Filter>]) -> anyhow::Result<Filter> {
    let first = group.first().context("an empty group")?;
    let mut clusters = Vec::new();
    for cluster in group.iter().flat_map(|filter| &filter.clusters) {
        if !clusters.iter().any(|known| Arc::ptr_eq(known, cluster)) {
            clusters.push(Arc::clone(cluster));
        }
    }
    let names: Vec<&str> = group.iter().map(|filter| filter.name.as_str()).collect();
    Ok(Filter {
        name: names.join("+"),
        module: module_for(group)?,
        clusters,
        ..Filter::clone(first)
    })
}

/// The instances of the policy that is built.
#[derive(Default)]
struct Merged {
    instances: Vec<Arc<FilterInstance>>,
}

impl Merged {
    /// The instances that run where routes say nothing; a filter that stays alone keeps all of its own.
    fn bases(&mut self, policy: &Policy, group: &[Arc<Filter>], filter: &Arc<Filter>) {
        let of = |it: &&Arc<FilterInstance>| group.iter().any(|one| one.name == it.filter.name);
        let of_group = policy.instances.iter().filter(of);
        if group.len() == 1 {
            for instance in of_group {
                self.add(
                    instance.name.clone(),
                    filter,
                    instance.configuration.clone(),
                );
            }
        } else {
            let base: Vec<_> = of_group.filter(|it| it.name == it.filter.name).collect();
            let configuration = configuration(&base, filter);
            self.add(filter.name.clone(), filter, configuration);
        }
    }

    /// The instance that stands for a group on a route; none where all of it is off.
    fn on_route(
        &mut self,
        route: &Route,
        group: &[Arc<Filter>],
        filter: &Arc<Filter>,
    ) -> Option<Arc<FilterInstance>> {
        let of = |it: &&Arc<FilterInstance>| group.iter().any(|one| one.name == it.filter.name);
        let chain: Vec<_> = route.chain.iter().filter(of).collect();
        match chain.as_slice() {
            [] => None,
            [one] if group.len() == 1 => {
                Some(self.add(one.name.clone(), filter, one.configuration.clone()))
            }
            some => {
                let name = format!("{}@{}", filter.name, route.name);
                Some(self.add(name, filter, configuration(some, filter)))
            }
        }
    }

    /// The instance with this configuration, made if there is none.
    fn add(
        &mut self,
        name: String,
        filter: &Arc<Filter>,
        configuration: Configuration,
    ) -> Arc<FilterInstance> {
        let same = |it: &&Arc<FilterInstance>| {
            it.filter.name == filter.name && it.configuration.json == configuration.json
        };
        if let Some(instance) = self.instances.iter().find(same) {
            return Arc::clone(instance);
        }
        let instance = Arc::new(FilterInstance {
            index: u32::try_from(self.instances.len()).unwrap_or(u32::MAX),
            name,
            filter: Arc::clone(filter),
            configuration,
        });
        self.instances.push(Arc::clone(&instance));
        instance
    }
}

/// What the module of all controls is told to run.
fn configuration(chain: &[&Arc<FilterInstance>], filter: &Filter) -> Configuration {
    let entries = chain.iter().map(|instance| {
        let configuration = match instance.configuration.to_json() {
            serde_json::Value::Null => json!({}),
            written => written,
        };
        json!({
            "control": instance.filter.module.control,
            "filter": instance.filter.name,
            "configuration": configuration,
        })
    });
    let json = json!({ "controls": entries.collect::<Vec<_>>() });
    Configuration::of_json(&json, filter.place.clone())
}
