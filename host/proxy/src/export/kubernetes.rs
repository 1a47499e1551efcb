//! What a policy's chain becomes where a control plane makes Envoy's configuration: filters whose modules are images, and what cannot be said there.
//!
//! Istio's `WasmPlugin` and Envoy Gateway's `EnvoyExtensionPolicy` say which plugins run where, with which configuration, in which order. Listeners, routes,
//! clusters and bounds are somebody else's there. What a policy says of them is refused where leaving it out would let more pass or break the filter, and
//! told in the notes otherwise.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use portcullis_module::Description;
use serde_json::Value;

use crate::oci::{Image, ImageReference};
use crate::policy::{
    FailurePolicy, FilterInstance, ModuleSource, Policy, PolicyErrors, Problem, Route, WasmModule,
};

use super::one_module::in_one_module;
use super::tree::{Map, Tree};
use super::{Findings, isolation_remarks};

/// Which control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlPlane {
    /// `extensions.istio.io/v1alpha1`
    Istio,
    /// `gateway.envoyproxy.io/v1alpha1`
    EnvoyGateway,
}

/// What the caller decides.
#[derive(Clone, Debug)]
pub struct KubernetesOptions {
    /// Whose resources.
    pub plane: ControlPlane,
    /// What resources are called, or begin with.
    pub name: String,
    /// Their namespace; the one of `kubectl` if absent.
    pub namespace: Option<String>,
    /// What they are for; see [`Target`].
    pub targets: Vec<Target>,
    /// The labels of the workloads that they are for.
    pub selector: Vec<(String, String)>,
    /// A secret of that namespace with the registry's credentials.
    pub pull_secret: Option<String>,
    /// Where modules that are in no registry yet will be: `registry.example/controls`.
    pub images: Option<ImageReference>,
    /// The route whose chain is written, where routes differ.
    pub route: Option<String>,
    /// A filter for each, also where neighbours could be one.
    pub separate: bool,
}

/// A resource that filters are attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `gateway.networking.k8s.io`; empty for the core group.
    pub group: String,
    /// `Gateway`, `HTTPRoute`, `Service`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// A chain ready to be written.
#[derive(Debug)]
pub(super) struct Chain {
    pub(super) plugins: Vec<Plugin>,
    pub(super) notes: Vec<String>,
}

/// A filter of the chain.
#[derive(Debug)]
pub(super) struct Plugin {
    /// As Kubernetes takes it.
    pub(super) name: String,
    pub(super) instance: Arc<FilterInstance>,
    pub(super) image: ImageReference,
    /// What has to be pushed there, if it is not known to be.
    pub(super) module: Option<WasmModule>,
}

impl Plugin {
    pub(super) fn digest(&self) -> &str {
        self.image.digest().unwrap_or_default()
    }

    pub(super) fn is_open(&self) -> bool {
        self.instance.filter.failure_policy == FailurePolicy::Open
    }

    pub(super) fn root_id(&self) -> Option<&str> {
        let root_id = self.instance.filter.root_id.as_str();
        (!root_id.is_empty()).then_some(root_id)
    }

    /// None where the policy writes none.
    pub(super) fn configuration(&self) -> Option<Value> {
        Some(self.instance.configuration.to_json()).filter(|it| !it.is_null())
    }

    /// Where it is to be pushed: the reference with the module's version as its tag.
    pub(super) fn tagged(&self) -> Option<ImageReference> {
        let module = self.module.as_ref()?;
        let description = Description::read(&module.bytes).ok().flatten();
        let version = description.map(|it| it.version);
        let short = module.sha256.get(..12).unwrap_or_default();
        let with_version = version.and_then(|version| self.image.tagged(&version).ok());
        with_version.or_else(|| self.image.tagged(short).ok())
    }

    /// The file that a module is written to.
    pub(super) fn file(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}.wasm", self.name))
    }
}

/// The chain that is written, or every reason why not.
pub(super) fn chain(
    policy: &Policy,
    findings: &Findings,
    options: &KubernetesOptions,
) -> anyhow::Result<Result<Chain, PolicyErrors>> {
    let route = match chosen_route(policy, options.route.as_deref()) {
        Ok(route) => route,
        Err(problems) => return Ok(Err(PolicyErrors(problems))),
    };
    let notes = notes(policy, findings, &route, options);
    let merged = (!options.separate)
        .then(|| in_one_module(policy))
        .transpose()?;
    let merged = merged.as_ref().unwrap_or(policy);
    let same = merged.routes.iter().find(|it| it.name == route.name);
    let instances = same.map_or(&route.chain, |it| &it.chain);
    let mut problems = Vec::new();
    let mut plugins: Vec<Plugin> = Vec::new();
    for instance in instances {
        problems.extend(unsayable(instance, options.plane));
        let name = resource_name(&instance.filter.name);
        let place = &instance.filter.place;
        if let Some(other) = plugins.iter().find(|it| it.name == name) {
            let other = &other.instance.filter.name;
            problems.push(place.problem(format!(
                "filter `{}` and filter `{other}` would both be called `{name}` in Kubernetes: rename one",
                instance.filter.name
            )));
        }
        match image(instance, &name, options) {
            Ok((image, module)) => plugins.push(Plugin {
                name,
                instance: Arc::clone(instance),
                image,
                module,
            }),
            Err(reason) => problems.push(place.problem(reason)),
        }
    }
    if plugins.is_empty() && problems.is_empty() {
        problems.push(
            route
                .place
                .problem("no filter runs here, there is nothing to export"),
        );
    }
    if problems.is_empty() {
        return Ok(Ok(Chain { plugins, notes }));
    }
    problems.sort_by_key(|problem| problem.place.line);
    Ok(Err(PolicyErrors(problems)))
}

/// The route that is named; else any, if all run the same.
fn chosen_route(policy: &Policy, name: Option<&str>) -> Result<Arc<Route>, Vec<Problem>> {
    let whole = |reason: String| {
        let place = crate::policy::Place {
            file: Arc::clone(&policy.file),
            line: 1,
            key: "routes".into(),
        };
        vec![place.problem(reason)]
    };
    if let Some(name) = name {
        let found = policy.routes.iter().find(|it| it.name == name);
        let names: Vec<_> = policy.routes.iter().map(|it| it.name.as_str()).collect();
        let names = names.join(", ");
        return found
            .cloned()
            .ok_or_else(|| whole(format!("there is no route `{name}`; there are: {names}")));
    }
    let Some(first) = policy.routes.first() else {
        return Err(whole("there is no route, so no HTTP filter runs".into()));
    };
    let chain = |route: &Route| -> Vec<u32> { route.chain.iter().map(|it| it.index).collect() };
    let others = policy.routes.iter().skip(1);
    let others = others.filter(|it| chain(it) != chain(first));
    let problems: Vec<_> = others
        .map(|route| {
            route.place.problem(format!(
                "route `{}` runs other filters than route `{}`, or with other configurations, and a resource has one chain: export each with --route NAME and a target of its own",
                route.name, first.name
            ))
        })
        .collect();
    if problems.is_empty() {
        return Ok(Arc::clone(first));
    }
    Err(problems)
}

/// What a filter needs that the control plane cannot say.
fn unsayable(instance: &FilterInstance, plane: ControlPlane) -> Vec<Problem> {
    let filter = &instance.filter;
    let mut problems = Vec::new();
    let holds = filter.allow_on_headers_stop_iteration;
    if holds.unwrap_or(filter.module.awaits_body) {
        problems.push(filter.place.problem(format!(
            "filter `{}` awaits bodies while it holds headers, and no resource can say allow_on_headers_stop_iteration: requests with a body would hang; `export envoy` can say it",
            filter.name
        )));
    }
    let inexact = instance.configuration.to_json();
    if plane == ControlPlane::Istio && has_inexact(&inexact) {
        problems.push(instance.configuration.place().problem(
            "it has a whole number beyond ±2^53, which Istio's pluginConfig (a protobuf Struct) would round: write it as a string, if the control takes one",
        ));
    }
    problems
}

/// Whether a double cannot hold one of the numbers.
fn has_inexact(value: &Value) -> bool {
    const EXACT: u64 = 1 << 53;
    match value {
        Value::Number(number) => {
            let magnitude = number.as_u64().or(number.as_i64().map(i64::unsigned_abs));
            magnitude.is_some_and(|it| it > EXACT)
        }
        Value::Array(items) => items.iter().any(has_inexact),
        Value::Object(members) => members.values().any(has_inexact),
        _ => false,
    }
}

/// Where the module is, or is to be.
fn image(
    instance: &FilterInstance,
    name: &str,
    options: &KubernetesOptions,
) -> Result<(ImageReference, Option<WasmModule>), String> {
    let module = &instance.filter.module;
    if let ModuleSource::Image(image) = &module.source {
        return Ok((image.clone(), None));
    }
    let Some(images) = &options.images else {
        return Err(format!(
            "{} is in no registry: --image HOST/REPOSITORY says where modules are to be (--push puts them there), or `module: oci://…` where this one is",
            module.source
        ));
    };
    let description = Description::read(&module.bytes).map_err(|error| error.to_string())?;
    let packed = Image::of(&module.bytes, description.as_ref())
        .map_err(|error| format!("{} cannot be packed: {error}", module.source))?;
    let image = images.below(name)?.pinned(&packed.digest);
    Ok((image, Some(module.clone())))
}

/// A filter's name as a DNS label (RFC 1123), which names of resources are made of.
fn resource_name(name: &str) -> String {
    let lower = name.to_ascii_lowercase();
    let letters = lower.chars().map(|c| match c {
        'a'..='z' | '0'..='9' => c,
        _ => '-',
    });
    let name: String = letters.take(63).collect();
    name.trim_matches('-').to_owned()
}

/// Metadata that every resource has.
pub(super) fn metadata(options: &KubernetesOptions, name: &str) -> Map {
    Map::new()
        .with("name", name)
        .maybe("namespace", options.namespace.as_deref())
        .with(
            "labels",
            Map::new().with("app.kubernetes.io/managed-by", "portcullis"),
        )
}

pub(super) fn target_refs(options: &KubernetesOptions) -> Option<Vec<Tree>> {
    let target = |target: &Target| {
        Map::new()
            .with("group", target.group.as_str())
            .with("kind", target.kind.as_str())
            .with("name", target.name.as_str())
            .into()
    };
    let targets: Vec<Tree> = options.targets.iter().map(target).collect();
    (!targets.is_empty()).then_some(targets)
}

pub(super) fn match_labels(options: &KubernetesOptions) -> Option<Map> {
    let labels: BTreeMap<_, _> = options.selector.iter().cloned().collect();
    let add = |map: Map, (key, value): (String, String)| map.with(key, value);
    let map = || labels.clone().into_iter().fold(Map::new(), add);
    (!labels.is_empty()).then(|| Map::new().with("matchLabels", map()))
}

/// What the policy says and the resources do not, in the order of the policy.
fn notes(
    policy: &Policy,
    findings: &Findings,
    route: &Route,
    options: &KubernetesOptions,
) -> Vec<String> {
    let plane = options.plane;
    let mut notes = vec![match plane {
        ControlPlane::Istio => "listeners, TLS, routes, clusters and time-outs are the gateway's own: its TLS floor is minProtocolVersion of a Gateway's tls; set meshConfig.pathNormalization.normalization to MERGE_SLASHES, and numTrustedProxies as it is, since the controls rely on one form of a path and on a client address that no header can claim".to_owned(),
        ControlPlane::EnvoyGateway => "listeners, TLS, routes, clusters and time-outs are the gateway's own: set tls.minVersion, path.escapedSlashesAction: RejectRequest and clientIPDetection of a ClientTrafficPolicy, since the controls rely on one form of a path and on a client address that no header can claim".to_owned(),
    }];
    for listener in policy.listeners.iter().filter(|it| it.tcp.is_some()) {
        notes.push(format!(
            "listener {}: filters of TCP listeners are not exported",
            listener.name
        ));
    }
    if plane == ControlPlane::EnvoyGateway {
        notes.push("Envoy Gateway puts Wasm filters behind its own that authenticate and authorise: their answers do not pass these".to_owned());
    }
    if !findings.reply_headers_tls.is_empty() || !findings.reply_headers_plaintext.is_empty() {
        notes.push("answers that Envoy itself makes (503 without an upstream, 400 for bad framing) do not have the headers that the filters set".to_owned());
    }
    let runs = |name: &str| route.chain.iter().any(|it| it.filter.name == name);
    for filter in policy.filters.iter().filter(|it| runs(&it.name)) {
        let name = &filter.name;
        for cluster in &filter.clusters {
            let cluster = &cluster.name;
            match plane {
                ControlPlane::Istio if cluster.starts_with("outbound|") => {}
                ControlPlane::Istio => notes.push(format!(
                    "filter {name} calls cluster `{cluster}`: Istio calls clusters outbound|PORT||HOST, so name it that in the policy, and make a ServiceEntry for it"
                )),
                ControlPlane::EnvoyGateway => notes.push(format!(
                    "filter {name} calls cluster `{cluster}`: Envoy Gateway has none of that name unless an EnvoyPatchPolicy adds it"
                )),
            }
        }
        if !filter.allow.lists.is_everything() {
            notes.push(format!(
                "filter {name}: `allow` has no counterpart, there it may use all that Envoy has"
            ));
        }
    }
    notes.push("`limits`, and which clusters a filter may call, have no counterpart: there a plugin may loop, and call any cluster".to_owned());
    let remarks = isolation_remarks(policy).into_iter();
    notes.extend(remarks.filter(|remark| {
        let of =
            |it: &Arc<FilterInstance>| remark.starts_with(&format!("filter {}:", it.filter.name));
        route.chain.iter().any(of)
    }));
    for filter in &route.off {
        let owned = findings.owned_request_headers.get(&filter.name);
        if let Some(headers) = owned.filter(|it| !it.is_empty()) {
            notes.push(format!(
                "filter {} is off on route {}: a client could claim what it sets there, so have the route remove {}",
                filter.name,
                route.name,
                headers.join(", ")
            ));
        }
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_become_labels() {
        for (name, label) in [
            ("jwt-auth", "jwt-auth"),
            ("security-headers+tls-policy", "security-headers-tls-policy"),
            ("A_b.c@d", "a-b-c-d"),
            ("x_", "x"),
        ] {
            assert_eq!(resource_name(name), label);
        }
        assert_eq!(resource_name(&"a".repeat(100)).len(), 63);
    }

    #[test]
    fn numbers_that_a_double_cannot_hold_are_found() {
        let exact = 1_u64 << 53;
        assert!(!has_inexact(
            &json!({"a": [exact, -3, 0.1, "9007199254740993"]})
        ));
        assert!(has_inexact(&json!({"a": [{"b": exact + 1}]})));
        assert!(has_inexact(&json!(i64::MIN)));
    }
}
