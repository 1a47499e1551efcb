//! What a proxy is made from: a policy with its modules, clusters, certificates and log, and what it takes over from the one before.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use portcullis_runtime::{Module, PluginSpec, Shared};

use crate::access_log::AccessLog;
use crate::canary;
use crate::cluster::Cluster;
use crate::module_cache::{DiskCache, Kept};
use crate::modules::Modules;
use crate::policy::{Policy, PolicyErrors};
use crate::serve::{ServeError, runtime};
use crate::tls::ServerTls;

/// A plugin's specification, and its module ready to be started.
pub(crate) type Loaded = (Arc<PluginSpec>, Arc<Module>);

/// What all workers are made from.
pub(crate) struct Plan {
    /// The policy.
    pub(crate) policy: Arc<Policy>,
    /// A spec and a module for each of the policy's instances.
    pub(crate) plugins: Vec<Loaded>,
    /// The first one's id. No two plugins of a process have the same, those of refused policies included, or a queue's entry could come to
    /// another policy's plugin.
    pub(crate) first_plugin: u32,
    /// Shared data, queues, metrics and counters of the process.
    pub(crate) shared: Arc<Shared>,
    /// In the policy's order.
    pub(crate) clusters: Vec<Arc<Cluster>>,
    /// In the order of the policy's listeners.
    pub(crate) tls: Vec<Option<Arc<ServerTls>>>,
    /// Where requests are written down.
    pub(crate) log: Option<AccessLog>,
    modules: Modules,
    /// The compiled modules on disk, so that they are there after a restart.
    _kept: Vec<Kept>,
}

impl Plan {
    /// The first of a process.
    ///
    /// # Errors
    ///
    /// What of the policy does not work, with its place in the file.
    pub(crate) fn first(policy: Policy, cache: &DiskCache) -> Result<Self, ServeError> {
        Self::make(policy, cache, None)
    }

    /// The next one: plugins are tried out first. Shared data, metrics and what has not changed are taken over.
    ///
    /// # Errors
    ///
    /// See [`Plan::first`].
    pub(crate) fn next(
        policy: Policy,
        cache: &DiskCache,
        earlier: &Self,
    ) -> Result<Self, ServeError> {
        Self::make(policy, cache, Some(earlier))
    }

    fn make(policy: Policy, cache: &DiskCache, earlier: Option<&Self>) -> Result<Self, ServeError> {
        let nothing = Modules::default();
        let known = earlier.map_or(&nothing, |plan| &plan.modules);
        let mut modules = Modules::default();
        if !policy.instances.is_empty() {
            let (loaded, problems) = Modules::load(&policy, &*runtime()?, cache, known);
            if earlier.is_some() {
                canary::try_out_with(&policy, &loaded, problems).map_err(ServeError::Policy)?;
            } else if !problems.is_empty() {
                return Err(ServeError::Policy(PolicyErrors(problems)));
            }
            modules = loaded;
        }
        let plugins = policy.instances.iter().filter_map(|instance| {
            let module = Arc::clone(modules.of(&instance.filter)?);
            Some((Arc::new(instance.spec()), module))
        });
        let plugins = plugins.collect();
        let modules_used: BTreeSet<_> = policy
            .instances
            .iter()
            .map(|instance| &instance.filter.module.sha256)
            .collect();
        let kept = modules_used
            .into_iter()
            .flat_map(|it| cache.compiled_of(it));
        let kept = kept.collect();
        let log = AccessLog::open(&policy.access_log, earlier.and_then(|it| it.log.as_ref()));
        Ok(Self {
            plugins,
            first_plugin: take_ids(policy.instances.len()),
            shared: earlier.map(|it| Arc::clone(&it.shared)).unwrap_or_default(),
            clusters: make_clusters(&policy, earlier)?,
            tls: make_tls(&policy, earlier)?,
            log: log.map_err(|reason| ServeError::System(format!("access_log: {reason}")))?,
            policy: Arc::new(policy),
            modules,
            _kept: kept,
        })
    }

    /// Forgets what no plugin of this plan names and none that still stands has.
    pub(crate) fn forget_unused(&self) {
        let instances = &self.policy.instances;
        let named = |vm_id: &str| instances.iter().any(|it| it.filter.name == vm_id);
        self.shared.data.forget_unused(named);
        self.shared.queues.forget_unused(named);
        self.shared.metrics.forget_unused(named);
        self.shared.stats.forget_ended();
    }
}

/// Ids for so many plugins, the first of them.
fn take_ids(count: usize) -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    NEXT.fetch_add(count, Ordering::Relaxed)
}

fn make_clusters(policy: &Policy, earlier: Option<&Plan>) -> Result<Vec<Arc<Cluster>>, ServeError> {
    let made = policy.clusters.iter().map(|cluster| {
        let of_name = |it: &&Arc<Cluster>| it.policy.name == cluster.name;
        let earlier = earlier.and_then(|plan| plan.clusters.iter().find(of_name));
        match earlier {
            Some(same) if same.policy.is_same(cluster) => Ok(Arc::clone(same)),
            _ => {
                let made = Cluster::new(Arc::clone(cluster), earlier.map(AsRef::as_ref));
                made.map(Arc::new).map_err(|error| {
                    cluster
                        .place
                        .problem(format!("TLS cannot be set up: {error}"))
                        .into()
                })
            }
        }
    });
    made.collect()
}

/// What HTTP listeners offer. What is spoken within a TCP listener's TLS is not known here.
const HTTP_ALPN: &[&[u8]] = &[b"h2", b"http/1.1"];

fn make_tls(
    policy: &Policy,
    earlier: Option<&Plan>,
) -> Result<Vec<Option<Arc<ServerTls>>>, ServeError> {
    let made = policy.listeners.iter().map(|listener| {
        let Some(tls) = &listener.tls else {
            return Ok(None);
        };
        let is_tcp = listener.tcp.is_some();
        // The same keys for session tickets go on with the same certificate.
        let same = earlier.and_then(|plan| {
            let mut of_earlier = plan.policy.listeners.iter().zip(&plan.tls);
            let found = of_earlier.find(|(it, _)| {
                it.tcp.is_some() == is_tcp && it.tls.as_ref().is_some_and(|it| it.is_same(tls))
            });
            found.and_then(|(_, tls)| tls.clone())
        });
        if same.is_some() {
            return Ok(same);
        }
        match ServerTls::new(tls, if is_tcp { &[] } else { HTTP_ALPN }) {
            Ok(tls) => Ok(Some(Arc::new(tls))),
            Err(reason) => Err(listener
                .place
                .problem(format!("TLS cannot be set up: {reason}"))
                .into()),
        }
    });
    made.collect()
}
