//! A whole proxy in one call: plugins started and configured first, ports bound last, so that a policy that does not work binds nothing.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use portcullis_runtime::{Runtime, RuntimeOptions};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::LocalSet;

use crate::cluster;
use crate::front::{self, Addresses, Front};
use crate::limits::EPOCH_PERIOD;
use crate::module_cache::DiskCache;
use crate::plan::Plan;
use crate::policy::{Policy, PolicyErrors, Problem};
use crate::reload::{self, Hangups, Request, Triggers};
use crate::worker::{self, Command, WorkerRef};

/// What a caller may choose beside the policy.
#[derive(Clone, Debug, Default)]
pub struct ServeOptions {
    /// Where compiled modules are kept; the user's cache folder if absent.
    pub module_cache: Option<PathBuf>,
    /// Whether SIGTERM and Ctrl-C drain this proxy. A second one ends it at once.
    pub signals: bool,
    /// Whether SIGHUP reloads the policy's file.
    pub hangup: bool,
    /// Whether a change of the policy's file reloads it.
    pub watch: bool,
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
    addresses: Arc<Mutex<Addresses>>,
    drain: UnboundedSender<()>,
    reload: UnboundedSender<Request>,
    threads: Vec<JoinHandle<()>>,
}

impl Running {
    fn told(&self) -> Addresses {
        let told = self.addresses.lock();
        told.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where each listener listens now, by name: with port 0 the system has chosen.
    #[must_use]
    pub fn addresses(&self) -> Vec<(String, SocketAddr)> {
        self.told().listeners
    }

    /// Where the listener of this name listens now.
    #[must_use]
    pub fn address(&self, listener: &str) -> Option<SocketAddr> {
        let mut listeners = self.told().listeners.into_iter();
        listeners
            .find(|(name, _)| name == listener)
            .map(|(_, address)| address)
    }

    /// Where the admin page is now.
    #[must_use]
    pub fn admin(&self) -> Option<SocketAddr> {
        self.told().admin
    }

    /// Puts `policy` in the place of the one that runs, and waits until that is done. Requests in flight end under the policy they began
    /// with; shared data, metrics and unchanged listeners stay. The number of workers does not change.
    ///
    /// # Errors
    ///
    /// What of the policy does not work. Nothing has changed then.
    pub fn reload(&self, policy: Policy) -> Result<(), ServeError> {
        let (done, answer) = mpsc::channel();
        let stopped = || ServeError::System("the proxy has stopped".into());
        let request = (Box::new(policy), done);
        self.reload.send(request).map_err(|_| stopped())?;
        answer.recv().map_err(|_| stopped())?
    }

    /// Takes no more connections, lets requests under way end for as long as the policy says, then stops.
    pub fn drain(&self) {
        // Fails only where it has stopped already.
        self.drain.send(()).ok();
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
    let made = RUNTIME
        .get_or_init(|| ticking(RuntimeOptions::default()).map_err(|error| error.to_string()));
    made.clone().map_err(ServeError::System)
}

/// A runtime of one's own, its epochs ticking for as long as it is there.
pub(crate) fn ticking(options: RuntimeOptions) -> Result<Arc<Runtime>, ServeError> {
    let runtime = Runtime::new(options).map_err(|error| ServeError::System(error.to_string()))?;
    let tick = runtime.ticker();
    let tick = move || {
        while tick() {
            std::thread::sleep(EPOCH_PERIOD);
        }
    };
    let spawned = std::thread::Builder::new().name("epoch".into()).spawn(tick);
    spawned.map_err(|error| ServeError::System(error.to_string()))?;
    Ok(Arc::new(runtime))
}

/// Starts a proxy. When this returns, every plugin runs and every port is bound.
///
/// # Errors
///
/// What of the policy does not work, with its place in the file. Nothing is left running then.
pub fn serve(policy: Policy, options: ServeOptions) -> Result<Running, ServeError> {
    let runtime = current_thread()?;
    // Before all that takes time: one that comes while the proxy starts has the policy read again, and does not end it.
    let hangups = {
        let _inside = runtime.enter();
        Hangups::new(options.hangup)
    };
    let cache = Arc::new(match &options.module_cache {
        Some(folder) => DiskCache::at(folder),
        None => DiskCache::of_user(),
    });
    let plan = Arc::new(Plan::first(policy, &cache)?);
    // Names first: plugins may call out as soon as they start.
    runtime.block_on(cluster::resolve_first(plan.clusters.iter().cloned()));

    let (workers, mut threads) = start_workers(&plan)?;
    let stop = |error: ServeError| {
        for worker in &workers {
            worker.commands.send(Command::Drain(Duration::ZERO)).ok();
        }
        error
    };
    let sockets = front::bind(&plan.policy, |_| false, |_| false);
    let sockets = sockets.map_err(|problem| stop(problem.into()))?;
    let addresses = Arc::new(Mutex::new(sockets.addresses(&plan.policy)));
    let (drain, drained) = unbounded_channel();
    let (reload, requests) = unbounded_channel();
    let triggers = Triggers {
        hangups,
        watch: options.watch,
    };
    let (workers, told) = (workers.clone(), Arc::clone(&addresses));
    let signals = options.signals;
    let run = move || {
        LocalSet::new().block_on(&runtime, async move {
            let front = Front::new(Arc::clone(&plan), workers, cache, told);
            front.install(plan, sockets);
            tokio::select! {
                () = reload::serve(Rc::clone(&front), triggers, requests) => {}
                () = wait_for_drain(drained, signals) => {}
            }
            end(&front, signals).await;
        });
        // A reload under way may be in its files or its modules for long, and is of no use any more.
        runtime.shutdown_background();
    };
    let spawned = std::thread::Builder::new().name("front".into()).spawn(run);
    threads.push(spawned.map_err(|error| {
        stop(ServeError::System(format!(
            "no thread for the acceptor: {error}"
        )))
    })?);
    Ok(Running {
        addresses,
        drain,
        reload,
        threads,
    })
}

/// Starts the workers, and waits until each has its plugins running.
fn start_workers(plan: &Arc<Plan>) -> Result<(Vec<WorkerRef>, Vec<JoinHandle<()>>), ServeError> {
    let count = plan.policy.worker_count();
    let ended = Arc::default();
    let mut receivers = Vec::new();
    let mut workers = Vec::new();
    for _ in 0..count {
        let (commands, receiver) = unbounded_channel();
        receivers.push(receiver);
        workers.push(WorkerRef {
            commands,
            connections: Arc::default(),
            editions: Arc::default(),
            ended: Arc::clone(&ended),
            stats: Arc::default(),
        });
    }
    let (started, reports) = mpsc::channel();
    let mut threads = Vec::new();
    for (index, receiver) in (0_u32..).zip(receivers) {
        let (plan, workers, started) = (Arc::clone(plan), workers.clone(), started.clone());
        let run = move || worker::run(plan, index, &workers, receiver, &started);
        let spawned = std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(run);
        threads.push(
            spawned
                .map_err(|error| ServeError::System(format!("no thread for a worker: {error}")))?,
        );
    }
    drop(started);
    let mut running = 0;
    let mut failure = None;
    for report in reports.iter().take(count) {
        match report {
            Ok(()) => running += 1,
            Err(refused) => failure = Some(refused),
        }
    }
    let error = match failure {
        Some(problems) => ServeError::Policy(PolicyErrors(problems)),
        None if running == count => return Ok((workers, threads)),
        None => ServeError::System("a worker did not start".into()),
    };
    for worker in &workers {
        worker.commands.send(Command::Drain(Duration::ZERO)).ok();
    }
    Err(error)
}

/// Takes no more connections and waits until every worker has drained.
async fn end(front: &Front, signals: bool) {
    front.ready.set(false);
    front.stop_listening_but_for(&[]).await;
    let timeout = front.plan().policy.drain_timeout;
    for worker in &front.workers {
        worker.commands.send(Command::Drain(timeout)).ok();
    }
    let stopped = async {
        for worker in &front.workers {
            worker.commands.closed().await;
        }
    };
    tokio::select! {
        () = stopped => {}
        () = signal(signals) => {
            tracing::warn!("second signal: ending at once");
            std::process::exit(1);
        }
    }
}

async fn wait_for_drain(mut asked: UnboundedReceiver<()>, signals: bool) {
    let asked = async {
        // If the caller has let go of it, it serves for as long as the process lives.
        if asked.recv().await.is_none() {
            std::future::pending().await
        }
    };
    tokio::select! {
        () = asked => {}
        () = signal(signals) => {}
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
