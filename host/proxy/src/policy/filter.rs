//! `filters`: the chain of controls, in the order in which requests pass them.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use portcullis_runtime::{FailurePolicy, Isolation, Limits, PluginSpec, UnknownImports};

use super::allow::Allowed;
use super::cluster::Cluster;
use super::limits::{
    BODY_BYTES, CALLBACK_TIME, CALLOUTS, LOG_LINES, MEMORY_BYTES, REQUEST_TIME, SPARE_VMS,
    START_TIME, VMS,
};
use super::module::WasmModule;
use super::node::Node;
use super::place::Place;
use super::reader::Field;
use super::scalar::{self, Endpoint, EndpointHost};

/// One filter of the chain: a module and how it is run. Its configurations stand in its [`FilterInstance`]s.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Unique among the filters; also its `vm_id`, the scope of its shared data.
    pub name: String,
    /// The module.
    pub module: WasmModule,
    /// Of a TCP listener, and of no route.
    pub is_tcp: bool,
    /// Which of a module's root contexts to start; empty for modules that have one.
    pub root_id: String,
    /// What happens to requests while no VM of it stands. Never open by default, nor for controls that authenticate.
    pub failure_policy: FailurePolicy,
    /// What becomes of a module that imports what this host does not have.
    pub unknown_imports: UnknownImports,
    /// What of the host it may use.
    pub allow: Allowed,
    /// What it shares a VM with.
    pub isolation: Isolation,
    /// Its bounds; the runtime's where the operator wrote none.
    pub limits: Limits,
    /// The clusters it may call.
    pub clusters: Vec<Arc<Cluster>>,
    /// Whether it may hold headers alone; `None` where the operator wrote nothing.
    pub allow_on_headers_stop_iteration: Option<bool>,
    /// The filter's `module`.
    pub place: Place,
}

/// A filter with one configuration: what the runtime calls a plugin. Every filter has one instance for the routes that say nothing, and
/// one more for each different configuration that a route writes.
#[derive(Clone, Debug)]
pub struct FilterInstance {
    /// Index in [`Policy::instances`](super::Policy::instances).
    pub index: u32,
    /// The filter's name, or `FILTER@ROUTE` for a configuration that a route wrote.
    pub name: String,
    /// What is run.
    pub filter: Arc<Filter>,
    /// With what.
    pub configuration: Configuration,
}

impl FilterInstance {
    /// What the runtime needs to know to start it.
    #[must_use]
    pub fn spec(&self) -> PluginSpec {
        let filter = &self.filter;
        PluginSpec {
            name: self.name.clone(),
            root_id: filter.root_id.clone(),
            vm_id: filter.name.clone(),
            vm_configuration: Bytes::new(),
            configuration: self.configuration.json.clone(),
            failure_policy: filter.failure_policy,
            isolation: filter.isolation,
            limits: filter.limits.clone(),
            clusters: filter
                .clusters
                .iter()
                .map(|cluster| cluster.name.clone())
                .collect(),
            allow_on_headers_stop_iteration: filter.allow_on_headers_stop_iteration,
        }
    }
}

/// A plugin's configuration: any YAML, handed to the plugin as JSON.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// Compact JSON; empty where the policy has no `configuration`.
    pub json: Bytes,
    tree: Option<Node>,
    place: Place,
}

impl Configuration {
    fn read(field: &Field<'_>) -> Option<Self> {
        let node = field.node();
        match node.value {
            super::node::Value::Mapping(_) => {}
            _ => {
                field.refuse(format!("expected a mapping, found {}", node.kind()));
                return None;
            }
        }
        Some(Self {
            json: Bytes::from(node.to_json().to_string()),
            tree: Some(node.clone()),
            place: field.place(),
        })
    }

    fn absent(place: Place) -> Self {
        Self {
            json: Bytes::new(),
            tree: None,
            place,
        }
    }

    /// A configuration that nobody wrote, on behalf of what stands at `place`.
    pub(crate) fn of_json(json: &serde_json::Value, place: Place) -> Self {
        Self {
            json: Bytes::from(json.to_string()),
            tree: None,
            place,
        }
    }

    /// Where the configuration stands, or the filter if it has none.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The place of a key below the configuration, as a plugin names it: `issuers[0].jwks`. Where the key is absent, the deepest part that is
    /// there.
    #[must_use]
    pub fn place_of(&self, path: &str) -> Place {
        let mut place = self.place.clone();
        if path.is_empty() {
            return place;
        }
        if let Some(line) = self.tree.as_ref().and_then(|tree| tree.line_of(path)) {
            place.line = line;
        }
        place.key = format!("{}.{path}", place.key).into();
        place
    }

    /// The configuration as JSON, for showing.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        match &self.tree {
            Some(tree) => tree.to_json(),
            None => serde_json::from_slice(&self.json).unwrap_or_default(),
        }
    }
}

const KEYS: &[&str] = &[
    "name",
    "module",
    "sha256",
    "root_id",
    "failure_policy",
    "unknown_imports",
    "isolation",
    "configuration",
    "signature",
    "limits",
    "allow",
    "clusters",
    "allow_on_headers_stop_iteration",
];
const LIMIT_KEYS: &[&str] = &[
    "memory",
    "body",
    "callback_time",
    "request_time",
    "start_time",
    "vms",
    "spare_vms",
    "callouts_in_flight",
    "log_lines_per_second",
];

pub(super) fn read(
    field: &Field<'_>,
    clusters: &[Arc<Cluster>],
    cluster_names: &[&str],
) -> Option<(Filter, Configuration)> {
    let section = field.section(KEYS)?;
    let name = section
        .required("name")
        .and_then(|field| field.parse(scalar::name));
    let module = WasmModule::from_section(&section);
    let root_id = match section.optional("root_id") {
        Some(field) => field.string().map(str::to_owned),
        None => Some(String::new()),
    };
    let failure_policy = match section.optional("failure_policy") {
        Some(field) => field.parse(|text| match text {
            "closed" => Ok(FailurePolicy::Closed),
            "open" if module.as_ref().is_some_and(|module| module.authenticates) => {
                Err("`open` would let everybody in: this control authenticates, only `closed` is possible".into())
            }
            "open" => Ok(FailurePolicy::Open),
            _ => Err(format!("`{text}` is not a failure policy, it may be `closed` or `open`")),
        }),
        None => Some(FailurePolicy::Closed),
    };
    let unknown_imports = match section.optional("unknown_imports") {
        Some(field) => field.parse(|text| match text {
            "refuse" => Ok(UnknownImports::Refuse),
            "trap" => Ok(UnknownImports::Trap),
            _ => Err(format!(
                "`{text}` is not a choice, it may be `refuse` or `trap`"
            )),
        }),
        None => Some(UnknownImports::Refuse),
    };
    let isolation = match section.optional("isolation") {
        Some(field) => field.parse(|text| match text {
            "shared" => Ok(Isolation::Shared),
            "plugin" => Ok(Isolation::Plugin),
            "request" => Ok(Isolation::Request),
            _ => Err(format!(
                "`{text}` is not an isolation, it may be `shared`, `plugin` or `request`"
            )),
        }),
        None => Some(Isolation::default()),
    };
    let configuration = match section.optional("configuration") {
        Some(field) => Configuration::read(field),
        None => Some(Configuration::absent(field.place())),
    };
    let limits = match section.optional("limits") {
        Some(field) => read_limits(field),
        None => Some(Limits::default()),
    };
    let allow = match section.optional("allow") {
        Some(field) => Allowed::read(field),
        None => Some(Allowed::default()),
    };
    let stops_headers_alone = match section.optional("allow_on_headers_stop_iteration") {
        Some(field) => field.boolean().map(Some),
        None => Some(None),
    };
    let mut callable = Vec::new();
    for item in section.list("clusters") {
        let Some(name) = item.string() else { continue };
        match clusters.iter().find(|cluster| cluster.name == name) {
            Some(cluster) if may_call(module.as_ref(), cluster) => {
                callable.push(Arc::clone(cluster));
            }
            Some(_) => item.refuse(format!(
                "`{name}` has no `tls` and is not all loopback addresses: who writes on that network would decide whom this control lets in"
            )),
            None if cluster_names.contains(&name) => {} // its own problem is already noted
            None => item.refuse(format!("there is no cluster `{name}`")),
        }
    }
    let filter = Filter {
        name: name?,
        module: module?,
        is_tcp: false,
        root_id: root_id?,
        failure_policy: failure_policy?,
        unknown_imports: unknown_imports?,
        allow: allow?,
        isolation: isolation?,
        limits: limits?,
        clusters: callable,
        allow_on_headers_stop_iteration: stops_headers_alone?,
        place: section.required("module")?.place(),
    };
    Some((filter, configuration?))
}

/// A control that authenticates believes what it fetches (keys, verdicts): only a verified peer or this machine may say it. A name is not a
/// loopback address, whatever it resolves to today.
fn may_call(module: Option<&WasmModule>, cluster: &Cluster) -> bool {
    let is_local = |endpoint: &Endpoint| match &endpoint.host {
        EndpointHost::Address(address) => address.to_canonical().is_loopback(),
        EndpointHost::Name(_) => false,
    };
    module.is_none_or(|module| !module.authenticates)
        || cluster.tls.is_some()
        || cluster.endpoints.iter().all(is_local)
}

fn read_limits(field: &Field<'_>) -> Option<Limits> {
    let section = field.section(LIMIT_KEYS)?;
    let defaults = Limits::default();
    let bytes = |key: &str, bounds: RangeInclusive<u64>, default: usize| match section.optional(key)
    {
        Some(field) => field
            .bytes(bounds)
            .and_then(|bytes| usize::try_from(bytes).ok()),
        None => Some(default),
    };
    let number = |key: &str, bounds: RangeInclusive<u64>, default: u64| match section.optional(key)
    {
        Some(field) => field.integer(bounds),
        None => Some(default),
    };
    // A wall bound grows with its CPU bound, so that a larger one has an effect on a throttled machine too.
    let milliseconds =
        |key: &str, bounds: RangeInclusive<Duration>, cpu_ms: u64, wall_ms: u64| match section
            .optional(key)
        {
            Some(field) => {
                let cpu_ms = u64::try_from(field.duration(bounds)?.as_millis()).ok()?;
                Some((cpu_ms, wall_ms.max(cpu_ms.saturating_mul(4))))
            }
            None => Some((cpu_ms, wall_ms)),
        };
    let memory_bytes = bytes("memory", MEMORY_BYTES, defaults.memory_bytes);
    let body_bytes = bytes("body", BODY_BYTES, defaults.body_bytes);
    let callback = milliseconds(
        "callback_time",
        CALLBACK_TIME,
        defaults.callback_cpu_ms,
        defaults.callback_wall_ms,
    );
    let start = milliseconds(
        "start_time",
        START_TIME,
        defaults.start_cpu_ms,
        defaults.start_wall_ms,
    );
    let request_cpu_ms = match section.optional("request_time") {
        Some(field) => field
            .duration(REQUEST_TIME)
            .and_then(|time| u64::try_from(time.as_millis()).ok()),
        None => Some(defaults.request_cpu_ms),
    };
    let vms = number("vms", VMS, defaults.vms.into());
    let spare_vms = number("spare_vms", SPARE_VMS, defaults.spare_vms.into());
    let default = u64::try_from(defaults.callouts_in_flight).unwrap_or(u64::MAX);
    let callouts = number("callouts_in_flight", CALLOUTS, default);
    let lines = number(
        "log_lines_per_second",
        LOG_LINES,
        defaults.log_lines_per_second.into(),
    );
    let ((callback_cpu_ms, callback_wall_ms), (start_cpu_ms, start_wall_ms)) = (callback?, start?);
    Some(Limits {
        memory_bytes: memory_bytes?,
        callback_cpu_ms,
        callback_wall_ms,
        start_cpu_ms,
        start_wall_ms,
        request_cpu_ms: request_cpu_ms?,
        body_bytes: body_bytes?,
        vms: u32::try_from(vms?).ok()?,
        spare_vms: u32::try_from(spare_vms?).ok()?,
        callouts_in_flight: usize::try_from(callouts?).ok()?,
        log_lines_per_second: u32::try_from(lines?).ok()?,
    })
}

/// What a route says about a filter.
pub(super) enum Override {
    /// It does not run there.
    Off,
    /// It runs with another configuration, which replaces the filter's own whole.
    Configured(Configuration),
}

pub(super) fn read_override(field: &Field<'_>) -> Option<Override> {
    if field.is_off() {
        return Some(Override::Off);
    }
    if !matches!(field.node().value, super::node::Value::Mapping(_)) {
        field.refuse("expected `off` or a mapping with `configuration`");
        return None;
    }
    let section = field.section(&["configuration"])?;
    let configuration = section.required("configuration")?;
    Configuration::read(configuration).map(Override::Configured)
}
