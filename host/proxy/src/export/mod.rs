//! A policy as a bootstrap for a stock Envoy, which then decides as this host does; and as resources for Istio and Envoy Gateway, in `kubernetes`.
//!
//! What is the same there and here is written out, defaults included, so that the file says what it does. Envoy cannot configure a Wasm
//! filter per route; a route that differs switches the filter's own instance off and another, disabled by default, on.
//!
//! Source: Envoy 1.40, `api/envoy/config/bootstrap/v3/bootstrap.proto` and what it includes.

mod cluster;
mod envoy_gateway;
mod filter;
mod istio;
mod kubernetes;
mod listener;
mod one_module;
mod resources;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::limits;
use crate::policy::{Isolation, Policy};

pub use kubernetes::{ControlPlane, KubernetesOptions, Target};
pub use one_module::in_one_module;
pub use resources::{Prepared, prepare};

use tree::{Map, Tree};

/// What only the running plugins can tell about a policy.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// By filter name: the request headers that it alone may set.
    pub owned_request_headers: BTreeMap<String, Vec<String>>,
    /// The headers that the policy puts on an answer over TLS.
    pub reply_headers_tls: Vec<(String, String)>,
    /// The same on plaintext.
    pub reply_headers_plaintext: Vec<(String, String)>,
}

/// What to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// A whole bootstrap, `envoy.yaml`.
    Bootstrap,
    /// Only the HTTP filters and what routes say about them, `http_filters.yaml`.
    Filters,
}

/// A written export.
#[derive(Clone, Debug)]
pub struct Written {
    /// The YAML file.
    pub configuration: PathBuf,
    /// The modules, one a filter.
    pub modules: Vec<PathBuf>,
}

/// Writes the policy's modules and Envoy's configuration into `folder`, which is made if it is missing. `modules_at` is the folder where
/// Envoy will find the modules; `folder` itself if `None`.
///
/// # Errors
///
/// A file that cannot be written.
pub fn write(
    policy: &Policy,
    findings: &Findings,
    folder: &Path,
    modules_at: Option<&Path>,
    scope: Scope,
) -> anyhow::Result<Written> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let folder = folder
        .canonicalize()
        .with_context(|| format!("cannot find {}", folder.display()))?;
    let modules_at = modules_at.unwrap_or(&folder);
    let mut modules = Vec::new();
    for filter in &policy.filters {
        let path = folder.join(filter::module_file(filter));
        std::fs::write(&path, &filter.module.bytes)
            .with_context(|| format!("cannot write {}", path.display()))?;
        modules.push(path);
    }
    let name = match scope {
        Scope::Bootstrap => "envoy.yaml",
        Scope::Filters => "http_filters.yaml",
    };
    let configuration = folder.join(name);
    let text = configuration_text(policy, findings, modules_at, scope)?;
    std::fs::write(&configuration, text)
        .with_context(|| format!("cannot write {}", configuration.display()))?;
    Ok(Written {
        configuration,
        modules,
    })
}

fn configuration_text(
    policy: &Policy,
    findings: &Findings,
    modules: &Path,
    scope: Scope,
) -> anyhow::Result<String> {
    let tree = match scope {
        Scope::Bootstrap => bootstrap(policy, findings, modules),
        Scope::Filters => filters(policy, findings, modules),
    };
    let mut text = preamble(policy, scope);
    let options = serde_saphyr::ser_options! {
        compact_list_indent: true,
        prefer_block_scalars: false,
    };
    serde_saphyr::to_fmt_writer_with_options(&mut text, &tree, options)?;
    Ok(text)
}

/// What a reader of the file should know, as comments.
fn preamble(policy: &Policy, scope: Scope) -> String {
    let mut text = String::new();
    let file = policy.file.display();
    let mut line = |words: &str| {
        let _ = writeln!(text, "# {words}");
    };
    line(&format!(
        "Written by `portcullis export envoy {file}` for Envoy 1.40; change the policy and export again."
    ));
    match scope {
        Scope::Bootstrap => {
            line("Check: envoy --mode validate -c envoy.yaml    Run: envoy -c envoy.yaml")
        }
        Scope::Filters => line(
            "Put http_filters before the router of your HTTP connection manager, first_route before the routes of every virtual host, and what stands under routes into the routes of those names.",
        ),
    }
    if let (Some(workers), Scope::Bootstrap) = (policy.workers, scope) {
        line(&format!(
            "The policy asks for {workers} workers: envoy --concurrency {workers}"
        ));
    }
    line(
        "Envoy has no counterpart of a filter's `limits` and of the `clusters` it may call: there a plugin may loop, and call any cluster.",
    );
    for remark in isolation_remarks(policy) {
        line(&remark);
    }
    text.push('\n');
    text
}

/// Where plugins share more in Envoy than the policy says. Envoy has one VM a worker for all plugins of the same `vm_id` and module; the
/// `vm_id` cannot be another, since it is the scope of shared data.
pub(crate) fn isolation_remarks(policy: &Policy) -> Vec<String> {
    let remark = |filter: &std::sync::Arc<crate::policy::Filter>| {
        let instances = policy.instances.iter();
        let count = instances.filter(|it| it.filter.name == filter.name).count();
        let name = &filter.name;
        match filter.isolation {
            Isolation::Request => Some(format!(
                "filter {name}: Envoy has no counterpart of `isolation: request`, there all requests of a worker share one VM of it"
            )),
            Isolation::Plugin if count > 1 => Some(format!(
                "filter {name}: in Envoy its {count} configurations share one VM a worker, as with `isolation: shared`"
            )),
            Isolation::Plugin | Isolation::Shared => None,
        }
    };
    policy.filters.iter().filter_map(remark).collect()
}

fn bootstrap(policy: &Policy, findings: &Findings, modules: &Path) -> Tree {
    let listeners = policy.listeners.iter();
    let listeners = listeners.map(|it| listener::listener(policy, it, findings, modules));
    let clusters = policy.clusters.iter().map(|it| cluster::cluster(it));
    let admin = policy.admin.as_ref();
    let connections = u32::try_from(limits::CONNECTIONS_MAX).unwrap_or(u32::MAX);
    let monitor = Map::new()
        .with("name", "envoy.resource_monitors.global_downstream_max_connections")
        .with(
            "typed_config",
            Map::typed("envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig")
                .with("max_active_downstream_connections", connections),
        );
    Map::new()
        .with(
            "node",
            Map::new()
                .with("id", "portcullis")
                .with("cluster", "portcullis"),
        )
        .maybe(
            "admin",
            admin.map(|it| Map::new().with("address", listener::socket_address(it.address))),
        )
        .with(
            "overload_manager",
            Map::new().with("resource_monitors", vec![monitor]),
        )
        .with(
            "static_resources",
            Map::new()
                .with("listeners", listeners.collect::<Tree>())
                .with("clusters", clusters.collect::<Tree>()),
        )
        .into()
}

fn filters(policy: &Policy, findings: &Findings, modules: &Path) -> Tree {
    let routes = policy.routes.iter().filter_map(|route| {
        let removed = filter::request_headers_to_remove(findings, route);
        let differences = filter::typed_per_filter_config(policy, route);
        if removed.is_none() && differences.is_none() {
            return None;
        }
        let route = Map::new()
            .with("name", route.name.as_str())
            .maybe("request_headers_to_remove", removed)
            .maybe("typed_per_filter_config", differences);
        Some(route.into())
    });
    let routes: Vec<Tree> = routes.collect();
    Map::new()
        .with("http_filters", filter::http_filters(policy, modules))
        .with("first_route", listener::refusal(policy))
        .maybe("routes", (!routes.is_empty()).then_some(routes))
        .into()
}
