//! What an operator says about one plugin.

use bytes::Bytes;

use crate::limits::Limits;

/// The embedder's name for a plugin; unique on its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PluginId(pub u32);

/// A plugin as configured. The same on every worker, hence behind an `Arc`.
#[derive(Clone, Debug)]
pub struct PluginSpec {
    /// Property `plugin_name`; stands in logs and metrics.
    pub name: String,
    /// Property `plugin_root_id`.
    pub root_id: String,
    /// Property `plugin_vm_id`; plugins with the same one share data and queues.
    pub vm_id: String,
    /// What `proxy_on_vm_start` reads.
    pub vm_configuration: Bytes,
    /// What `proxy_on_configure` reads.
    pub configuration: Bytes,
    /// What happens to requests while no VM stands.
    pub failure_policy: FailurePolicy,
    /// What it shares a VM with.
    pub isolation: Isolation,
    /// Its bounds.
    pub limits: Limits,
    /// Clusters it may call.
    pub clusters: Vec<String>,
    /// Envoy's `allow_on_headers_stop_iteration`: whether 1 from a headers callback holds the headers alone, while body and trailers are still shown
    /// to this plugin; else it holds all. `None`: alone for modules of ABI 0.2.100, as in Higress, and for controls whose
    /// metadata says that they await bodies. An embedder that does not
    /// ask [`HttpStream::wants_body`](crate::HttpStream::wants_body) says `Some(false)`.
    pub allow_on_headers_stop_iteration: Option<bool>,
}

impl PluginSpec {
    /// A plugin of this name with an empty configuration, refused when it has no VM, within the default bounds, and without clusters. Its
    /// `root_id` and `vm_id` are empty.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            root_id: String::new(),
            vm_id: String::new(),
            vm_configuration: Bytes::new(),
            configuration: Bytes::new(),
            failure_policy: FailurePolicy::Closed,
            isolation: Isolation::default(),
            limits: Limits::default(),
            clusters: Vec::new(),
            allow_on_headers_stop_iteration: None,
        }
    }
}

/// What happens to requests while no VM of a plugin stands, because it does not start. The request that breaks a VM is refused in
/// either case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FailurePolicy {
    /// 503.
    #[default]
    Closed,
    /// They pass this plugin.
    Open,
}

/// What a plugin shares a VM with. Memory is the only thing that isolation parts: shared data, queues and metrics belong to the `vm_id` and
/// the process in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// On each worker one VM serves this plugin and its neighbours ([`Plugin::start_beside`](crate::Plugin::start_beside)), with a root
    /// context for each, as in Envoy. A trap of one takes the VM of all.
    Shared,
    /// On each worker one VM, for this plugin alone.
    #[default]
    Plugin,
    /// Each exchange has a VM of its own, that ends with it. Timers, queues and the answers to callouts made while the plugin was configured
    /// go to a VM of their own (the *root VM*), which serves no exchange; from its state snapshots are taken where it can be done.
    Request,
}
