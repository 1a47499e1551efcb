//! One worker: a thread with its own runtime, its own VM of every plugin, its own connections to upstreams. Nothing of it is shared, so
//! nothing of it is locked.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use http::HeaderName;
use hyper_util::server::conn::auto;
use portcullis_runtime::{
    Callback, Chain, Embedder, Module, Plugin, PluginId, PluginSpec, PluginStats, QueueTarget,
    RouteInfo, Shared,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::task::spawn_local;

use crate::access_log::AccessLog;
use crate::canary;
use crate::cluster::Cluster;
use crate::connection::{self, Accepted, Connection, Connections};
use crate::embedder::WorkerEmbedder;
use crate::limits::SWEEP_PERIOD;
use crate::policy::{FilterInstance, Policy, Problem, Route};
use crate::spawn::Local;
use crate::stats::WorkerStats;
use crate::stream::Record;
use crate::tcp::TcpRoute;
use crate::upstream::Upstream;

/// What a worker is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// Here is a connection.
    Serve(Box<Accepted>),
    /// A plugin of this worker has something in a queue.
    QueueReady(QueueTarget),
    /// Take no more requests; close for good after this time.
    Drain(Duration),
}

/// A plugin's specification, and its module ready to be started.
pub(crate) type Loaded = (Arc<PluginSpec>, Arc<Module>);

/// What all workers are made from.
pub(crate) struct Plan {
    /// The policy.
    pub(crate) policy: Arc<Policy>,
    /// A spec and a module for each of the policy's instances.
    pub(crate) plugins: Vec<Loaded>,
    /// Shared data, queues and metrics of the process.
    pub(crate) shared: Arc<Shared>,
    /// In the policy's order.
    pub(crate) clusters: Vec<Arc<Cluster>>,
    /// Where requests are written down.
    pub(crate) log: Option<AccessLog>,
}

/// One worker as others see it.
#[derive(Clone, Debug)]
pub(crate) struct WorkerRef {
    /// Told through this.
    pub(crate) commands: UnboundedSender<Command>,
    /// Open connections.
    pub(crate) connections: Arc<AtomicUsize>,
    /// Its counters.
    pub(crate) stats: Arc<WorkerStats>,
}

/// Figures of one worker's plugins, by instance name.
pub(crate) type PluginFigures = Vec<(String, Arc<PluginStats>)>;

/// One worker.
pub(crate) struct Worker {
    /// Its side of the runtime.
    pub(crate) embedder: Rc<WorkerEmbedder>,
    /// Its counters.
    pub(crate) stats: Arc<WorkerStats>,
    /// Its connections.
    pub(crate) connections: Connections,
    /// hyper's server.
    pub(crate) http: auto::Builder<Local>,
    /// For requests that no route takes: all filters, no upstream.
    pub(crate) unrouted: Rc<RouteState>,
    /// For requests that are refused before there could be a route: what puts headers on answers, and nothing else.
    pub(crate) refused: Rc<RouteState>,
    /// By listener; `None` for those of HTTP.
    tcp_routes: Vec<Option<Rc<TcpRoute>>>,
    policy: Arc<Policy>,
    routes: HashMap<*const Route, Rc<RouteState>>,
    log: Option<AccessLog>,
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

impl Worker {
    /// The route of a request, or the one for requests without.
    pub(crate) fn route(&self, host: &str, path: &str) -> Rc<RouteState> {
        let found = self
            .policy
            .table
            .find(host, path)
            .and_then(|route| self.routes.get(&Arc::as_ptr(route)));
        Rc::clone(found.unwrap_or(&self.unrouted))
    }

    /// What the listener at this place of the policy does with a connection, if it is not HTTP.
    pub(crate) fn tcp_route(&self, listener: usize) -> Option<Rc<TcpRoute>> {
        self.tcp_routes.get(listener).cloned().flatten()
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
}

/// Runs worker `index` on this thread until it has drained. Says through `started` whether its plugins have started.
pub(crate) fn run(
    plan: &Plan,
    index: u32,
    workers: &[WorkerRef],
    commands: UnboundedReceiver<Command>,
    started: &mpsc::Sender<Result<PluginFigures, Vec<Problem>>>,
) {
    let Some(own) = usize::try_from(index)
        .ok()
        .and_then(|index| workers.get(index))
    else {
        return;
    };
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(Default::default())
    {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "a worker's event loop cannot start");
            return;
        }
    };
    runtime.block_on(async {
        let upstreams: Vec<_> = plan
            .clusters
            .iter()
            .map(|cluster| Upstream::new(Arc::clone(cluster)))
            .collect();
        let senders = workers
            .iter()
            .map(|worker| worker.commands.clone())
            .collect();
        let embedder = WorkerEmbedder::new(index, upstreams, senders);
        let plugins = match start_plugins(plan, &embedder) {
            Ok(plugins) => plugins,
            Err(failure) => {
                started.send(Err(failure)).ok();
                return;
            }
        };
        let figures = plan.policy.instances.iter().zip(&plugins);
        let figures = figures
            .map(|(instance, plugin)| (instance.name.clone(), plugin.stats()))
            .collect();
        let worker = Rc::new(assemble(plan, &embedder, &plugins, Arc::clone(&own.stats)));
        if started.send(Ok(figures)).is_ok() {
            serve(&worker, commands).await;
        }
        for plugin in &plugins {
            plugin.shut_down();
        }
        embedder.stop();
    });
}

fn start_plugins(
    plan: &Plan,
    embedder: &Rc<WorkerEmbedder>,
) -> Result<Vec<Rc<Plugin>>, Vec<Problem>> {
    let mut plugins = Vec::with_capacity(plan.plugins.len());
    for (instance, (spec, module)) in plan.policy.instances.iter().zip(&plan.plugins) {
        let id = PluginId(instance.index);
        let (spec, module, shared) = (
            Arc::clone(spec),
            Arc::clone(module),
            Arc::clone(&plan.shared),
        );
        let lent = Rc::clone(embedder) as Rc<dyn Embedder>;
        let neighbour = plugins.iter().find(|plugin: &&Rc<Plugin>| {
            plugin.module().digest() == module.digest() && plugin.may_share(&spec)
        });
        let plugin = match neighbour {
            Some(neighbour) => Plugin::start_beside(neighbour, id, spec),
            None => Plugin::start(id, module, spec, shared, lent),
        };
        let plugin = plugin.map_err(|error| canary::start_problems(instance, &error))?;
        embedder.register(id, &plugin);
        embedder.tend_soon(id);
        plugins.push(plugin);
    }
    Ok(plugins)
}

fn assemble(
    plan: &Plan,
    embedder: &Rc<WorkerEmbedder>,
    plugins: &[Rc<Plugin>],
    stats: Arc<WorkerStats>,
) -> Worker {
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
            let off = policy.instances.iter().filter(|instance| {
                route
                    .off
                    .iter()
                    .any(|filter| filter.name == instance.filter.name)
            });
            let owned = off
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
    let everywhere: Vec<_> = policy
        .instances
        .iter()
        .filter(|instance| instance.name == instance.filter.name && !instance.filter.is_tcp)
        .cloned()
        .collect();
    let on_answers: Vec<_> = everywhere
        .iter()
        .filter(|instance| instance.filter.module.control.as_deref() == Some("security-headers"))
        .cloned()
        .collect();
    let tcp_routes = policy.listeners.iter().map(|listener| {
        let tcp = listener.tcp.as_ref()?;
        let info = RouteInfo {
            cluster: tcp.cluster.name.clone(),
            ..RouteInfo::default()
        };
        Some(Rc::new(TcpRoute {
            info: Rc::new(info),
            chain: Chain::new(tcp.chain.iter().filter_map(of).collect()),
            upstream: Rc::clone(embedder.upstream(&tcp.cluster.name)?),
            idle_timeout: tcp.idle_timeout,
        }))
    });
    Worker {
        tcp_routes: tcp_routes.collect(),
        unrouted: state(&everywhere, None, RouteInfo::default(), Vec::new()),
        refused: state(&on_answers, None, RouteInfo::default(), Vec::new()),
        embedder: Rc::clone(embedder),
        stats,
        connections: Connections::default(),
        http: connection::http_builder(),
        policy: Arc::clone(policy),
        routes,
        log: plan.log.clone(),
    }
}

async fn serve(worker: &Rc<Worker>, mut commands: UnboundedReceiver<Command>) {
    let mut sweep = tokio::time::interval(SWEEP_PERIOD);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(Command::Serve(accepted)) => {
                    spawn_local(connection::serve(Rc::clone(worker), *accepted));
                }
                Some(Command::QueueReady(target)) => {
                    if let Some(plugin) = worker.embedder.plugin(target.plugin) {
                        plugin.on_queue_ready(target.queue);
                    }
                }
                Some(Command::Drain(timeout)) => return drain(worker, timeout).await,
                None => return,
            },
            _ = sweep.tick() => {
                let now = Instant::now();
                worker.connections.each(|connection| connection.sweep(now));
                worker.embedder.sweep(now);
            }
        }
    }
}

/// Lets requests under way end, for so long.
async fn drain(worker: &Rc<Worker>, timeout: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < timeout {
        // Again and again: a connection may have been in its handshake, or hold half a request.
        let now = Instant::now();
        let open = worker.connections.each(|connection| {
            connection.close_gracefully(now);
            connection.sweep(now);
        });
        if open == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let left = worker.connections.each(Connection::abort);
    if left > 0 {
        tracing::warn!(connections = left, "closed before their requests were done");
        // So that each of them is dropped on its own task.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
