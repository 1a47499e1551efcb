//! A whole proxy in one call: plugins started and configured first, ports bound last, so that a policy that does not work binds nothing.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use portcullis_runtime::{Isolation, Module, Runtime, RuntimeOptions, Shared, UnknownImports};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{LocalSet, spawn_local};

use crate::acceptor::{Bound, Dispatcher};
use crate::access_log::AccessLog;
use crate::admin::Admin;
use crate::canary;
use crate::cluster::{self, Cluster};
use crate::figures::Figures;
use crate::limits::EPOCH_PERIOD;
use crate::module_cache::DiskCache;
use crate::policy::{Policy, PolicyErrors, Problem};
use crate::tls::ServerTls;
use crate::worker::{self, Command, Loaded, Plan, WorkerRef};

/// What a caller may choose beside the policy.
#[derive(Clone, Debug, Default)]
pub struct ServeOptions {
    /// Where compiled modules are kept; the user's cache folder if absent.
    pub module_cache: Option<PathBuf>,
    /// Whether SIGTERM and Ctrl-C drain this proxy. A second one ends it at once.
    pub signals: bool,
}

/// Why a proxy does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Something in the policy does not work: a port in use, a filter that refuses its configuration.
    #[error("{0}")]
    Policy(PolicyErrors),
    /// This machine does not give what is needed.
    #[error("{0}")]
    System(String),
}

impl From<Problem> for ServeError {
    fn from(problem: Problem) -> Self {
        Self::Policy(problem.into())
    }
}

/// A proxy that serves. Dropped, it goes on serving; [`Running::drain`] and [`Running::wait`] end it.
#[derive(Debug)]
pub struct Running {
    addresses: Vec<(String, SocketAddr)>,
    admin: Option<SocketAddr>,
    drain: UnboundedSender<Duration>,
    drain_timeout: Duration,
    threads: Vec<JoinHandle<()>>,
}

impl Running {
    /// Where each listener listens, by name: with port 0 the system has chosen.
    #[must_use]
    pub fn addresses(&self) -> &[(String, SocketAddr)] {
        &self.addresses
    }

    /// Where the listener of this name listens.
    #[must_use]
    pub fn address(&self, listener: &str) -> Option<SocketAddr> {
        self.addresses
            .iter()
            .find(|(name, _)| name == listener)
            .map(|(_, address)| *address)
    }

    /// Where the admin page is.
    #[must_use]
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// Takes no more connections, lets requests under way end for as long as the policy says, then stops.
    pub fn drain(&self) {
        // Fails only where it has stopped already.
        self.drain.send(self.drain_timeout).ok();
    }

    /// Waits until it has stopped: after a drain, or a signal if the options asked for that.
    ///
    /// # Errors
    ///
    /// One of its threads panicked.
    pub fn wait(self) -> Result<(), ServeError> {
        let ended: Vec<_> = self.threads.into_iter().map(JoinHandle::join).collect();
        if ended.iter().all(Result::is_ok) {
            return Ok(());
        }
        Err(ServeError::System("a thread of the proxy panicked".into()))
    }
}

/// The runtime of this process, its epochs ticking. One for all proxies in it, since an engine with pools takes much address space.
///
/// # Errors
///
/// wasmtime does not run here, or there is no thread to be had.
pub fn runtime() -> Result<Arc<Runtime>, ServeError> {
    static RUNTIME: OnceLock<Result<Arc<Runtime>, String>> = OnceLock::new();
    let made = RUNTIME.get_or_init(|| {
        let runtime = Runtime::new(RuntimeOptions::default()).map_err(|error| error.to_string())?;
        let runtime = Arc::new(runtime);
        let tick = runtime.ticker();
        let tick = move || {
            while tick() {
                std::thread::sleep(EPOCH_PERIOD);
            }
        };
        let spawned = std::thread::Builder::new().name("epoch".into()).spawn(tick);
        spawned.map_err(|error| error.to_string())?;
        Ok(runtime)
    });
    made.clone().map_err(ServeError::System)
}

/// Starts a proxy. When this returns, every plugin runs and every port is bound.
///
/// # Errors
///
/// What of the policy does not work, with its place in the file. Nothing is left running then.
pub fn serve(policy: Policy, options: ServeOptions) -> Result<Running, ServeError> {
    let policy = Arc::new(policy);
    let cache = match &options.module_cache {
        Some(folder) => DiskCache::at(folder),
        None => DiskCache::of_user(),
    };
    let plan = Arc::new(Plan {
        plugins: load_plugins(&policy, &cache)?,
        shared: Arc::new(Shared::default()),
        clusters: make_clusters(&policy)?,
        log: AccessLog::open(&policy.access_log)
            .map_err(|reason| ServeError::System(format!("access_log: {reason}")))?,
        policy: Arc::clone(&policy),
    });
    let listener_tls = make_tls(&policy)?;
    // Names first: plugins may call out as soon as they start.
    let front = current_thread()?;
    front.block_on(cluster::resolve_first(&plan.clusters));

    let (workers, mut threads, figures) = start_workers(&plan)?;
    let stop = |error: ServeError| {
        for worker in &workers {
            worker.commands.send(Command::Drain(Duration::ZERO)).ok();
        }
        error
    };
    let mut bound = Vec::new();
    for (index, (listener, tls)) in policy.listeners.iter().zip(listener_tls).enumerate() {
        let socket = Bound::new(listener.address, tls);
        let refused = |error: io::Error| {
            listener.place.problem(format!(
                "{} cannot be bound: {}",
                listener.address,
                reason(&error)
            ))
        };
        let mut socket = socket.map_err(|error| stop(refused(error).into()))?;
        socket.index = index;
        bound.push(socket);
    }
    let admin = match &policy.admin {
        Some(admin) if !admin.address.ip().is_loopback() => {
            return Err(stop(
                admin
                    .place
                    .problem("the admin listener is for loopback addresses only")
                    .into(),
            ));
        }
        Some(admin) => {
            let refused = |error: io::Error| {
                admin.place.problem(format!(
                    "{} cannot be bound: {}",
                    admin.address,
                    reason(&error)
                ))
            };
            Some(Bound::new(admin.address, None).map_err(|error| stop(refused(error).into()))?)
        }
        None => None,
    };
    let (drain, drained) = unbounded_channel();
    let running = Running {
        addresses: policy
            .listeners
            .iter()
            .zip(&bound)
            .map(|(listener, bound)| (listener.name.clone(), bound.address))
            .collect(),
        admin: admin.as_ref().map(|bound| bound.address),
        drain,
        drain_timeout: policy.drain_timeout,
        threads: Vec::new(),
    };
    let figures = Figures {
        workers: workers.clone(),
        plugins: figures,
        plan: Arc::clone(&plan),
    };
    let front_part = Front {
        plan,
        workers: workers.clone(),
        bound,
        admin: admin.map(|bound| (bound, figures)),
        drained,
        signals: options.signals,
    };
    let spawned = std::thread::Builder::new()
        .name("front".into())
        .spawn(move || LocalSet::new().block_on(&front, front_part.run()));
    threads.push(spawned.map_err(|error| {
        stop(ServeError::System(format!(
            "no thread for the acceptor: {error}"
        )))
    })?);
    Ok(Running { threads, ..running })
}

/// A module by its digest, how it is linked, and whether snapshots are made of its VMs.
type Wanted<'p> = (&'p str, UnknownImports, bool);

fn load_plugins(policy: &Policy, cache: &DiskCache) -> Result<Vec<Loaded>, ServeError> {
    if policy.instances.is_empty() {
        return Ok(Vec::new());
    }
    let runtime = runtime()?;
    let mut modules: Vec<(Wanted<'_>, Arc<Module>)> = Vec::new();
    let mut plugins = Vec::new();
    for instance in &policy.instances {
        let filter = &instance.filter;
        let snapshots = filter.isolation == Isolation::Request;
        let wanted = (
            filter.module.sha256.as_str(),
            filter.unknown_imports,
            snapshots,
        );
        let known = modules.iter().find(|(loaded, _)| *loaded == wanted);
        let module = match known {
            Some((_, module)) => Arc::clone(module),
            None => {
                let (wasm, unknown) = (&filter.module.bytes, filter.unknown_imports);
                let loaded = if snapshots {
                    runtime.load_for_snapshots(wasm, cache, unknown)
                } else {
                    runtime.load_with(wasm, cache, unknown)
                };
                let module = loaded.map_err(|error| filter.place.problem(error.to_string()))?;
                warn_of_imports(&filter.name, &module);
                modules.push((wanted, Arc::clone(&module)));
                module
            }
        };
        if let Some(problem) = canary::unfit(filter, &module) {
            return Err(problem.into());
        }
        plugins.push((Arc::new(instance.spec()), module));
    }
    Ok(plugins)
}

/// One line, for all that a plugin may ask in vain.
fn warn_of_imports(filter: &str, module: &Module) {
    let unserved: Vec<_> = module.unserved_imports().collect();
    if !unserved.is_empty() {
        let imports = unserved.join(", ");
        tracing::warn!(filter, imports, "imports that answer UNIMPLEMENTED here");
    }
    if !module.unknown_imports().is_empty() {
        let imports = module.unknown_imports().join(", ");
        tracing::warn!(
            filter,
            imports,
            "unknown imports, which trap when they are called"
        );
    }
}

fn make_clusters(policy: &Policy) -> Result<Vec<Arc<Cluster>>, ServeError> {
    let made = policy.clusters.iter().map(|cluster| {
        let made = Cluster::new(Arc::clone(cluster));
        made.map(Arc::new).map_err(|error| {
            cluster
                .place
                .problem(format!("TLS cannot be set up: {error}"))
                .into()
        })
    });
    made.collect()
}

/// What HTTP listeners offer. What is spoken within a TCP listener's TLS is not known here.
const HTTP_ALPN: &[&[u8]] = &[b"h2", b"http/1.1"];

fn make_tls(policy: &Policy) -> Result<Vec<Option<Arc<ServerTls>>>, ServeError> {
    let made = policy.listeners.iter().map(|listener| match &listener.tls {
        None => Ok(None),
        Some(tls) => match ServerTls::new(
            tls,
            if listener.tcp.is_some() {
                &[]
            } else {
                HTTP_ALPN
            },
        ) {
            Ok(tls) => Ok(Some(Arc::new(tls))),
            Err(reason) => Err(listener
                .place
                .problem(format!("TLS cannot be set up: {reason}"))
                .into()),
        },
    });
    made.collect()
}

type Started = (
    Vec<WorkerRef>,
    Vec<JoinHandle<()>>,
    Vec<worker::PluginFigures>,
);

/// Starts the workers, and waits until each has its plugins running.
fn start_workers(plan: &Arc<Plan>) -> Result<Started, ServeError> {
    let available = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let count = plan
        .policy
        .workers
        .map_or_else(available, std::num::NonZero::get);
    let mut receivers = Vec::new();
    let mut workers = Vec::new();
    for _ in 0..count {
        let (commands, receiver) = unbounded_channel();
        receivers.push(receiver);
        let (connections, stats) = (Arc::default(), Arc::default());
        workers.push(WorkerRef {
            commands,
            connections,
            stats,
        });
    }
    let (started, reports) = mpsc::channel();
    let mut threads = Vec::new();
    for (index, receiver) in (0_u32..).zip(receivers) {
        let (plan, workers, started) = (Arc::clone(plan), workers.clone(), started.clone());
        let run = move || worker::run(&plan, index, &workers, receiver, &started);
        let spawned = std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(run);
        threads.push(
            spawned
                .map_err(|error| ServeError::System(format!("no thread for a worker: {error}")))?,
        );
    }
    drop(started);
    let mut figures = Vec::new();
    let mut failure = None;
    for report in reports.iter().take(count) {
        match report {
            Ok(plugins) => figures.push(plugins),
            Err(refused) => failure = Some(refused),
        }
    }
    let error = match failure {
        Some(problems) => ServeError::Policy(PolicyErrors(problems)),
        None if figures.len() == count => return Ok((workers, threads, figures)),
        None => ServeError::System("a worker did not start".into()),
    };
    for worker in &workers {
        worker.commands.send(Command::Drain(Duration::ZERO)).ok();
    }
    Err(error)
}

/// The front thread.
struct Front {
    plan: Arc<Plan>,
    workers: Vec<WorkerRef>,
    bound: Vec<Bound>,
    admin: Option<(Bound, Figures)>,
    drained: UnboundedReceiver<Duration>,
    signals: bool,
}

impl Front {
    async fn run(self) {
        let ready = Arc::new(AtomicBool::new(true));
        for cluster in &self.plan.clusters {
            spawn_local(cluster::keep_resolved(Arc::clone(cluster)));
        }
        let dispatcher = Arc::new(Dispatcher::new(self.workers.clone()));
        let accepting: Vec<_> = self
            .bound
            .into_iter()
            .map(|bound| spawn_local(Arc::clone(&dispatcher).accept(bound)))
            .collect();
        if let Some((bound, figures)) = self.admin {
            spawn_local(Admin::new(figures, Arc::clone(&ready)).serve(bound));
        }
        let timeout =
            wait_for_drain(self.drained, self.signals, self.plan.policy.drain_timeout).await;
        ready.store(false, Ordering::Relaxed);
        for task in &accepting {
            task.abort();
        }
        for task in accepting {
            task.await.ok();
        }
        for worker in &self.workers {
            worker.commands.send(Command::Drain(timeout)).ok();
        }
        let stopped = async {
            for worker in &self.workers {
                worker.commands.closed().await;
            }
        };
        tokio::select! {
            () = stopped => {}
            () = signal(self.signals) => {
                tracing::warn!("second signal: ending at once");
                std::process::exit(1);
            }
        }
    }
}

async fn wait_for_drain(
    mut asked: UnboundedReceiver<Duration>,
    signals: bool,
    timeout: Duration,
) -> Duration {
    let asked = async {
        match asked.recv().await {
            Some(timeout) => timeout,
            // The caller has let go of it: it serves for as long as the process lives.
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        timeout = asked => timeout,
        () = signal(signals) => timeout,
    }
}

/// SIGTERM or Ctrl-C; never, where they are not this proxy's.
async fn signal(listen: bool) {
    use tokio::signal::unix::{SignalKind, signal};
    if !listen {
        return std::future::pending().await;
    }
    match (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) {
        (Ok(mut terminate), Ok(mut interrupt)) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        _ => std::future::pending().await,
    }
}

fn current_thread() -> Result<tokio::runtime::Runtime, ServeError> {
    let built = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    built.map_err(|error| ServeError::System(format!("no event loop: {error}")))
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "the address is in use".into(),
        io::ErrorKind::AddrNotAvailable => "the address is not this machine's".into(),
        io::ErrorKind::PermissionDenied => "not permitted".into(),
        _ => error.to_string(),
    }
}
