//! A chain as Istio's `WasmPlugin` resources, one a filter.
//!
//! Source: istio.io/api, extensions/v1alpha1/wasm.proto; the CRD of Istio 1.29. Within a phase Istio puts the highest `priority` first; all are in one
//! phase here, so that the order is the policy's.

use super::kubernetes::{Chain, KubernetesOptions, Plugin, match_labels, metadata, target_refs};
use super::tree::{Map, Tree};

/// Between neighbours, so that another plugin can be put there.
const PRIORITY_STEP: u64 = 10;

pub(super) fn resources(chain: &Chain, options: &KubernetesOptions) -> Vec<Tree> {
    let after = (0_u64..).zip(chain.plugins.iter().rev());
    let mut resources: Vec<Tree> = after
        .map(|(after, plugin)| resource(plugin, (after + 1) * PRIORITY_STEP, options))
        .collect();
    resources.reverse();
    resources
}

fn resource(plugin: &Plugin, priority: u64, options: &KubernetesOptions) -> Tree {
    // RELOAD is what closed means here: a plugin that broke is started again for the next request.
    let strategy = match plugin.is_open() {
        true => "FAIL_OPEN",
        false => "FAIL_RELOAD",
    };
    let spec = Map::new()
        .maybe("selector", match_labels(options))
        .maybe("targetRefs", target_refs(options))
        .with("url", plugin.image.to_string())
        .with("sha256", plugin.digest())
        .maybe("imagePullSecret", options.pull_secret.as_deref())
        // The first phase: before Istio's own filters that authenticate.
        .with("phase", "AUTHN")
        .with("priority", priority)
        .with("failStrategy", strategy)
        .maybe("pluginName", plugin.root_id())
        .maybe("pluginConfig", plugin.configuration().map(Tree::Json));
    let name = format!("{}-{}", options.name, plugin.name);
    Map::new()
        .with("apiVersion", "extensions.istio.io/v1alpha1")
        .with("kind", "WasmPlugin")
        .with("metadata", metadata(options, &name))
        .with("spec", spec)
        .into()
}
