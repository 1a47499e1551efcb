//! Filter instances as Envoy's Wasm filters, and what a route switches on and off.

use std::path::Path;

use crate::policy::{FailurePolicy, Filter, FilterInstance, Policy, Route};

use super::Findings;
use super::tree::{Map, Tree};

/// The file a filter's module is written to.
pub(super) fn module_file(filter: &Filter) -> String {
    format!("{}.wasm", filter.name)
}

/// Every filter instance in chain order; those that only some routes run are disabled.
pub(super) fn http_filters(policy: &Policy, modules: &Path) -> Vec<Tree> {
    in_chain_order(policy)
        .map(|instance| http_filter(instance, modules))
        .collect()
}

fn in_chain_order(policy: &Policy) -> impl Iterator<Item = &FilterInstance> {
    let of_http = policy.filters.iter().filter(|filter| !filter.is_tcp);
    of_http.flat_map(|filter| {
        let of_filter = |it: &&FilterInstance| it.filter.name == filter.name;
        policy.instances.iter().map(AsRef::as_ref).filter(of_filter)
    })
}

/// Whether the instance is the filter's own, which runs on every route that says nothing.
fn is_base(instance: &FilterInstance) -> bool {
    instance.name == instance.filter.name
}

fn http_filter(instance: &FilterInstance, modules: &Path) -> Tree {
    Map::new()
        .with("name", instance.name.as_str())
        .maybe("disabled", (!is_base(instance)).then_some(true))
        .with(
            "typed_config",
            Map::typed("envoy.extensions.filters.http.wasm.v3.Wasm")
                .with("config", plugin(instance, modules)),
        )
        .into()
}

/// A filter of a TCP listener.
pub(super) fn network_filter(instance: &FilterInstance, modules: &Path) -> Map {
    Map::new().with("name", instance.name.as_str()).with(
        "typed_config",
        Map::typed("envoy.extensions.filters.network.wasm.v3.Wasm")
            .with("config", plugin(instance, modules)),
    )
}

fn plugin(instance: &FilterInstance, modules: &Path) -> Map {
    let filter = &instance.filter;
    let file = modules.join(module_file(filter)).display().to_string();
    let code = Tree::Remarked(file, format!("sha256:{}", filter.module.sha256));
    let configuration = instance.configuration.to_json();
    let configuration = (!configuration.is_null()).then(|| {
        let text = serde_json::to_string_pretty(&configuration).unwrap_or_default();
        let value = if text.contains('\n') {
            Tree::Block(text)
        } else {
            text.into()
        };
        Map::typed("google.protobuf.StringValue").with("value", value)
    });
    let failure_policy = match filter.failure_policy {
        FailurePolicy::Closed => "FAIL_RELOAD",
        FailurePolicy::Open => "FAIL_OPEN",
    };
    // Envoy restricts no properties and no foreign functions.
    let capabilities = filter.allow.lists.capabilities.as_ref().map(|names| {
        let add = |map: Map, name: &String| map.with(name, Map::new());
        Map::new().with("allowed_capabilities", names.iter().fold(Map::new(), add))
    });
    let vm = Map::new()
        .with("vm_id", filter.name.as_str())
        .with("runtime", "envoy.wasm.runtime.v8")
        .with(
            "code",
            Map::new().with("local", Map::new().with("filename", code)),
        );
    Map::new()
        .with("name", instance.name.as_str())
        .maybe(
            "root_id",
            (!filter.root_id.is_empty()).then_some(filter.root_id.as_str()),
        )
        .with("failure_policy", failure_policy)
        .maybe(
            "allow_on_headers_stop_iteration",
            // Envoy does not know which modules want it.
            filter
                .allow_on_headers_stop_iteration
                .or(filter.module.awaits_body.then_some(true)),
        )
        .maybe("capability_restriction_config", capabilities)
        .with("vm_config", vm)
        .maybe("configuration", configuration)
}

/// What a route says about filters: off where its chain lacks the filter's own instance, on where it has another.
pub(super) fn typed_per_filter_config(policy: &Policy, route: &Route) -> Option<Tree> {
    let mut differences = Vec::new();
    for instance in in_chain_order(policy) {
        let runs = route.chain.iter().any(|it| it.index == instance.index);
        let switch = Map::typed("envoy.config.route.v3.FilterConfig");
        match (is_base(instance), runs) {
            (true, false) => {
                differences.push((instance.name.clone(), switch.with("disabled", true).into()))
            }
            (false, true) => differences.push((
                instance.name.clone(),
                switch.with("config", Map::new()).into(),
            )),
            _ => {}
        }
    }
    (!differences.is_empty()).then_some(Tree::Map(differences))
}

/// For a route that no filter is to run on.
pub(super) fn all_off(policy: &Policy) -> Option<Tree> {
    let off = in_chain_order(policy)
        .filter(|it| is_base(it))
        .map(|instance| {
            let switch = Map::typed("envoy.config.route.v3.FilterConfig").with("disabled", true);
            (instance.name.clone(), switch.into())
        });
    let off: Vec<_> = off.collect();
    (!off.is_empty()).then_some(Tree::Map(off))
}

/// The request headers that filters which are off on a route would have set: a client must not set them there instead.
pub(super) fn request_headers_to_remove(findings: &Findings, route: &Route) -> Option<Vec<String>> {
    let mut headers: Vec<String> = route
        .off
        .iter()
        .filter_map(|filter| findings.owned_request_headers.get(&filter.name))
        .flatten()
        .cloned()
        .collect();
    headers.sort();
    headers.dedup();
    (!headers.is_empty()).then_some(headers)
}
