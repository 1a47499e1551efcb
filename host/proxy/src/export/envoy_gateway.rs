//! A chain as Envoy Gateway's `EnvoyExtensionPolicy`: one resource, since its list is the order, and of several for one target only one counts.
//!
//! Source: envoyproxy/gateway, api/v1alpha1 (envoyextensionypolicy_types.go, wasm_types.go).

use super::kubernetes::{Chain, KubernetesOptions, Plugin, metadata, target_refs};
use super::tree::{Map, Tree};

/// The most that `spec.wasm` takes.
pub(super) const PLUGINS_MAX: usize = 16;

pub(super) fn resources(chain: &Chain, options: &KubernetesOptions) -> Vec<Tree> {
    let plugins: Vec<Tree> = chain.plugins.iter().map(|it| wasm(it, options)).collect();
    let spec = Map::new()
        .maybe("targetRefs", target_refs(options))
        .with("wasm", plugins);
    let resource = Map::new()
        .with("apiVersion", "gateway.envoyproxy.io/v1alpha1")
        .with("kind", "EnvoyExtensionPolicy")
        .with("metadata", metadata(options, &options.name))
        .with("spec", spec);
    vec![resource.into()]
}

fn wasm(plugin: &Plugin, options: &KubernetesOptions) -> Tree {
    let secret = options.pull_secret.as_deref();
    let secret = secret.map(|name| Map::new().with("kind", "Secret").with("name", name));
    // Envoy Gateway puts `oci://` before it itself.
    let url = plugin.image.to_string();
    let url = url.strip_prefix(crate::oci::SCHEME).unwrap_or(&url);
    let image = Map::new()
        .with("url", url)
        .with("sha256", plugin.digest())
        .maybe("pullSecretRef", secret);
    Map::new()
        .with("name", plugin.instance.filter.name.as_str())
        .maybe("rootID", plugin.root_id())
        .with(
            "code",
            Map::new().with("type", "Image").with("image", image),
        )
        .with("failOpen", plugin.is_open())
        .maybe("config", plugin.configuration().map(Tree::Json))
        .into()
}
