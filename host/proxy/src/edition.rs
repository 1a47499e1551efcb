//! One policy as one worker runs it: its plugins, its routes, its connections to upstreams. A reload puts another in its place; requests keep
//! the one they began with, and with the last of them it ends.

use std::cell::Cell;
use std::collections::HashMap;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use portcullis_runtime::{Callback, Chain, Embedder, Plugin, PluginId, RouteInfo, Shared};
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;

use crate::access_log::AccessLog;
use crate::canary;
use crate::connection::Connection;
use crate::embedder::WorkerEmbedder;
use crate::limits::{EDITION_END_PERIOD, EDITION_END_TIMEOUT};
use crate::plan::Plan;
use crate::policy::{FilterInstance, Policy, Problem, Route};
use crate::stats::WorkerStats;
use crate::stream::Record;
use crate::tcp::TcpRoute;
use crate::upstream::Upstream;
use crate::worker::Command;

/// A policy on one worker.
pub(crate) struct Edition {
    /// Its side of the runtime.
    pub(crate) embedder: Rc<WorkerEmbedder>,
    /// The worker's counters.
    pub(crate) stats: Arc<WorkerStats>,
    /// For requests that no route takes: all filters, no upstream.
    pub(crate) unrouted: Rc<RouteState>,
    /// For requests that are refused before there could be a route: what puts headers on answers, and nothing else.
    pub(crate) refused: Rc<RouteState>,
    /// By the listener's name.
    tcp_routes: HashMap<String, Rc<TcpRoute>>,
    policy: Arc<Policy>,
    shared: Arc<Shared>,
    routes: HashMap<*const Route, Rc<RouteState>>,
    log: Option<AccessLog>,
    plugins: Vec<Rc<Plugin>>,
    /// Exchanges that began with it and are not over.
    open: Cell<usize>,
    ending: Cell<bool>,
    abandoned: Cell<bool>,
    changed: Notify,
}

/// An exchange's hold on its edition: a request's, or a TCP connection's.
pub(crate) struct Stay(Rc<Edition>);

impl Deref for Stay {
    type Target = Edition;

    fn deref(&self) -> &Edition {
        &self.0
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        let open = self.open.get().saturating_sub(1);
        self.open.set(open);
        if open == 0 && self.ending.get() {
            self.changed.notify_one();
        }
    }
}

/// A route as one worker runs it.
pub(crate) struct RouteState {
    /// For properties.
    pub(crate) info: Rc<RouteInfo>,
    /// Its filters.
    pub(crate) chain: Chain,
    /// Whether there are any.
    pub(crate) is_filtered: bool,
    /// Where it leads; nowhere for requests without a route.
    pub(crate) upstream: Option<Rc<Upstream>>,
    /// Request headers that filters own which are off here.
    pub(crate) owned_elsewhere: Vec<HeaderName>,
    /// Whether a filter sees request bodies or trailers.
    pub(crate) reads_request_body: bool,
    /// Whether a filter sees response bodies or trailers.
    pub(crate) reads_response_body: bool,
    /// Whether a filter may look at the response's headers after they have passed.
    pub(crate) reads_head_late: bool,
}

/// The worker that an edition is for.
pub(crate) struct Site {
    /// Which.
    pub(crate) index: u32,
    /// All of them, for queues.
    pub(crate) workers: Vec<UnboundedSender<Command>>,
    /// Its counters.
    pub(crate) stats: Arc<WorkerStats>,
}

impl Edition {
    /// Starts the plugins of a plan. What `earlier` has of upstreams is taken over.
    ///
    /// # Errors
    ///
    /// Why a plugin does not start; those before it have been ended again.
    pub(crate) async fn start(
        plan: &Plan,
        site: &Site,
        earlier: Option<&Self>,
    ) -> Result<Rc<Self>, Vec<Problem>> {
        let upstreams = plan.clusters.iter().map(|cluster| {
            let same = earlier
                .and_then(|it| it.embedder.upstream(&cluster.policy.name))
                .filter(|it| Arc::ptr_eq(&it.cluster, cluster));
            same.map_or_else(|| Upstream::new(Arc::clone(cluster)), Rc::clone)
        });
        let embedder = WorkerEmbedder::new(site.index, upstreams.collect(), site.workers.clone());
        let mut plugins = Vec::with_capacity(plan.plugins.len());
        for (instance, (spec, module)) in plan.policy.instances.iter().zip(&plan.plugins) {
            let id = PluginId(plan.first_plugin.wrapping_add(instance.index));
            let neighbour = plugins
                .iter()
                .find(|plugin: &&Rc<Plugin>| plugin.may_share(module, spec));
            let started = match neighbour {
                Some(neighbour) => Plugin::start_beside(neighbour, id, Arc::clone(spec)),
                None => Plugin::start(
                    id,
                    Arc::clone(module),
                    Arc::clone(spec),
                    Arc::clone(&plan.shared),
                    Rc::clone(&embedder) as Rc<dyn Embedder>,
                ),
            };
            match started {
                Ok(plugin) => {
                    embedder.register(id, &plugin);
                    embedder.tend_soon(id);
                    plugins.push(plugin);
                }
                Err(error) => {
                    let started = plugins.iter().map(|plugin| plugin.id());
                    leave_queues(&plan.shared, &embedder, started.chain([id]));
                    plugins.iter().for_each(|plugin| plugin.shut_down());
                    embedder.stop();
                    return Err(canary::start_problems(instance, &error));
                }
            }
            // Requests of the present edition go on in between.
            tokio::task::yield_now().await;
        }
        Ok(Rc::new(assemble(plan, site, embedder, plugins)))
    }

    /// The route of a request, or the one for requests without.
    pub(crate) fn route(&self, host: &str, path: &str) -> Rc<RouteState> {
        let found = self
            .policy
            .table
            .find(host, path)
            .and_then(|route| self.routes.get(&Arc::as_ptr(route)));
        Rc::clone(found.unwrap_or(&self.unrouted))
    }

    /// What the TCP listener of this name does with a connection.
    pub(crate) fn tcp_route(&self, listener: &str) -> Option<Rc<TcpRoute>> {
        self.tcp_routes.get(listener).cloned()
    }

    /// Writes a request down, if the policy wants that.
    pub(crate) fn write_log(
        &self,
        record: &Record,
        duration: Duration,
        connection: &Connection,
        route: &RouteState,
    ) {
        if let Some(log) = &self.log {
            log.write(record, duration, connection, route);
        }
    }

    /// An exchange begins; it is over when what this gives is dropped.
    pub(crate) fn stay(self: Rc<Self>) -> Stay {
        self.open.set(self.open.get().saturating_add(1));
        Stay(self)
    }

    /// Does not wait for exchanges any longer: those that need its plugins are refused.
    pub(crate) fn abandon(&self) {
        self.abandoned.set(true);
        self.changed.notify_one();
    }

    /// Another takes its place: its plugins keep nothing ready for requests to come.
    pub(crate) fn retire(&self) {
        self.ending.set(true);
        self.plugins.iter().for_each(|plugin| plugin.retire());
    }

    /// Ends its plugins once the last of its exchanges is over; from now on it is given no more.
    pub(crate) async fn end(&self) {
        while self.open.get() > 0 && !self.abandoned.get() {
            self.changed.notified().await;
        }
        if self.open.get() > 0 {
            tracing::warn!(
                exchanges = self.open.get(),
                "exchanges of an earlier policy outlived too many reloads, their plugins are ended"
            );
            self.plugins.iter().for_each(|plugin| plugin.abandon());
        }
        self.shut_down();
        // A plugin may ask for more time, for a last callout say.
        let mut waited = Duration::ZERO;
        let has_ended = |plugin: &Rc<Plugin>| plugin.has_ended();
        while waited < EDITION_END_TIMEOUT && !self.plugins.iter().all(has_ended) {
            tokio::time::sleep(EDITION_END_PERIOD).await;
            waited += EDITION_END_PERIOD;
        }
        self.plugins.iter().for_each(|plugin| plugin.abandon());
        self.embedder.stop();
    }

    /// Asks its plugins to end, without waiting for those that are not ready to. Their queues are those of the plugins that go on.
    pub(crate) fn shut_down(&self) {
        let ids = self.plugins.iter().map(|plugin| plugin.id());
        leave_queues(&self.shared, &self.embedder, ids);
        self.plugins.iter().for_each(|plugin| plugin.shut_down());
    }
}

fn leave_queues(
    shared: &Shared,
    embedder: &WorkerEmbedder,
    plugins: impl Iterator<Item = PluginId>,
) {
    for plugin in plugins {
        for target in shared.queues.leave(embedder.worker(), plugin) {
            embedder.notify_queue(target);
        }
    }
}

fn assemble(
    plan: &Plan,
    site: &Site,
    embedder: Rc<WorkerEmbedder>,
    plugins: Vec<Rc<Plugin>>,
) -> Edition {
    let policy = &plan.policy;
    let of = |instance: &Arc<FilterInstance>| {
        usize::try_from(instance.index)
            .ok()
            .and_then(|index| plugins.get(index))
            .cloned()
    };
    let state = |chain: &[Arc<FilterInstance>],
                 upstream: Option<Rc<Upstream>>,
                 info: RouteInfo,
                 owned_elsewhere: Vec<HeaderName>| {
        let chain: Vec<_> = chain.iter().filter_map(of).collect();
        let late = [
            Callback::Log,
            Callback::ResponseBody,
            Callback::ResponseTrailers,
        ];
        let reads_head_late = chain.iter().any(|plugin| {
            late.iter()
                .any(|callback| plugin.module().callbacks().contains(*callback))
        });
        let is_filtered = !chain.is_empty();
        let chain = Chain::new(chain);
        Rc::new(RouteState {
            info: Rc::new(info),
            is_filtered,
            reads_request_body: chain.reads_request_body() || chain.reads_request_trailers(),
            reads_response_body: chain.reads_response_body() || chain.reads_response_trailers(),
            reads_head_late,
            chain,
            upstream,
            owned_elsewhere,
        })
    };
    let mut routes = HashMap::new();
    for host in policy.table.hosts() {
        for route in &host.routes {
            let info = RouteInfo {
                name: route.name.clone(),
                cluster: route.cluster.name.clone(),
                virtual_host: host.host.to_string(),
            };
            let owned = policy
                .off_on(route)
                .filter_map(of)
                .flat_map(|plugin| plugin.owned_request_headers());
            let owned = owned
                .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
                .collect();
            let upstream = embedder.upstream(&route.cluster.name).map(Rc::clone);
            routes.insert(
                Arc::as_ptr(route),
                state(&route.chain, upstream, info, owned),
            );
        }
    }
    let tcp_routes = policy.listeners.iter().filter_map(|listener| {
        let tcp = listener.tcp.as_ref()?;
        let info = RouteInfo {
            cluster: tcp.cluster.name.clone(),
            ..RouteInfo::default()
        };
        let route = TcpRoute {
            info: Rc::new(info),
            chain: Chain::new(tcp.chain.iter().filter_map(of).collect()),
            upstream: Rc::clone(embedder.upstream(&tcp.cluster.name)?),
            idle_timeout: tcp.idle_timeout,
        };
        Some((listener.name.clone(), Rc::new(route)))
    });
    Edition {
        tcp_routes: tcp_routes.collect(),
        unrouted: state(
            &policy.unrouted_chain(),
            None,
            RouteInfo::default(),
            Vec::new(),
        ),
        refused: state(
            &policy.refused_chain(),
            None,
            RouteInfo::default(),
            Vec::new(),
        ),
        embedder,
        stats: Arc::clone(&site.stats),
        policy: Arc::clone(policy),
        shared: Arc::clone(&plan.shared),
        routes,
        log: plan.log.clone(),
        plugins,
        open: Cell::new(0),
        ending: Cell::new(false),
        abandoned: Cell::new(false),
        changed: Notify::new(),
    }
}
