//! One worker: a thread with its own runtime, its own VM of every plugin, its own connections to upstreams. Nothing of it is shared, so
//! nothing of it is locked.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use hyper_util::server::conn::auto;
use portcullis_runtime::QueueTarget;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::{Notify, oneshot};
use tokio::task::spawn_local;

use crate::connection::{self, Accepted, Connection, Connections};
use crate::edition::{Edition, Site};
use crate::limits::{DRAIN_PERIOD, SWEEP_PERIOD};
use crate::plan::Plan;
use crate::policy::Problem;
use crate::spawn::Local;
use crate::stats::WorkerStats;

/// What a worker is told.
pub(crate) enum Command {
    /// Here is a connection.
    Serve(Box<Accepted>),
    /// A plugin of this worker has something in a queue.
    QueueReady(QueueTarget),
    /// Start the plugins of this plan beside those that run, and say whether they stand.
    Prepare(Arc<Plan>, oneshot::Sender<Result<(), Vec<Problem>>>),
    /// From the next request on, what was prepared is what runs.
    Switch,
    /// What was prepared is not wanted.
    Discard,
    /// End the exchanges of the earliest policy that still has some.
    Abandon,
    /// Take no more requests; close for good after this time.
    Drain(Duration),
}

/// One worker as others see it.
#[derive(Clone, Debug)]
pub(crate) struct WorkerRef {
    /// Told through this.
    pub(crate) commands: UnboundedSender<Command>,
    /// Open connections.
    pub(crate) connections: Arc<AtomicUsize>,
    /// Earlier editions that exchanges still run on.
    pub(crate) editions: Arc<AtomicUsize>,
    /// Told when an earlier edition has ended; one for all workers.
    pub(crate) ended: Arc<Notify>,
    /// Its counters.
    pub(crate) stats: Arc<WorkerStats>,
}

/// One worker.
pub(crate) struct Worker {
    /// Its counters.
    pub(crate) stats: Arc<WorkerStats>,
    /// Its connections.
    pub(crate) connections: Connections,
    /// hyper's server.
    pub(crate) http: auto::Builder<Local>,
    site: Site,
    current: RefCell<Rc<Edition>>,
    prepared: RefCell<Option<Rc<Edition>>>,
    /// The earliest first; `editions` counts them.
    earlier: RefCell<Vec<Rc<Edition>>>,
    editions: Arc<AtomicUsize>,
    ended: Arc<Notify>,
}

impl Worker {
    /// What a request that begins now runs on.
    pub(crate) fn edition(&self) -> Rc<Edition> {
        Rc::clone(&self.current.borrow())
    }

    async fn prepare(
        self: Rc<Self>,
        plan: Arc<Plan>,
        done: oneshot::Sender<Result<(), Vec<Problem>>>,
    ) {
        let started = Edition::start(&plan, &self.site, Some(&self.edition())).await;
        let started = started.map(|edition| {
            self.retire(self.prepared.replace(Some(edition)));
        });
        if done.send(started).is_err() {
            // Whoever asked has gone.
            self.retire(self.prepared.take());
        }
    }

    fn switch(self: &Rc<Self>) {
        if let Some(next) = self.prepared.take() {
            self.retire(Some(self.current.replace(next)));
        }
    }

    /// Ends an edition with the last of its exchanges.
    fn retire(self: &Rc<Self>, edition: Option<Rc<Edition>>) {
        let Some(edition) = edition else { return };
        edition.retire();
        self.earlier.borrow_mut().push(Rc::clone(&edition));
        self.editions.fetch_add(1, Ordering::Relaxed);
        let worker = Rc::clone(self);
        spawn_local(async move {
            edition.end().await;
            let of_others = |it: &Rc<Edition>| !Rc::ptr_eq(it, &edition);
            worker.earlier.borrow_mut().retain(of_others);
            worker.editions.fetch_sub(1, Ordering::Relaxed);
            // With it go its plugins; what only they had is the front's to forget.
            drop(edition);
            worker.ended.notify_one();
        });
    }

    /// A queue's entry goes to the plugin that registered the queue, whatever edition it is of.
    fn queue_ready(&self, target: QueueTarget) {
        let current = self.edition();
        let prepared = self.prepared.borrow().clone();
        let earlier = self.earlier.borrow().clone();
        let plugin = std::iter::once(&current)
            .chain(&prepared)
            .chain(&earlier)
            .find_map(|edition| edition.embedder.plugin(target.plugin));
        if let Some(plugin) = plugin {
            plugin.on_queue_ready(target.queue);
        }
    }

    fn sweep(&self, now: Instant) {
        self.connections.each(|connection| connection.sweep(now));
        self.edition().embedder.sweep(now);
        // A copy, since plugins run in between.
        let earlier = self.earlier.borrow().clone();
        for edition in earlier {
            edition.embedder.sweep(now);
        }
    }

    fn stop(&self) {
        let all = self.earlier.take().into_iter().chain(self.prepared.take());
        for edition in all.chain([self.edition()]) {
            edition.shut_down();
            edition.embedder.stop();
        }
    }
}

/// Runs worker `index` on this thread until it has drained. Says through `started` whether its plugins have started.
pub(crate) fn run(
    plan: Arc<Plan>,
    index: u32,
    workers: &[WorkerRef],
    commands: UnboundedReceiver<Command>,
    started: &mpsc::Sender<Result<(), Vec<Problem>>>,
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
        let senders = workers.iter().map(|worker| worker.commands.clone());
        let site = Site {
            index,
            workers: senders.collect(),
            stats: Arc::clone(&own.stats),
        };
        let edition = Edition::start(&plan, &site, None).await;
        // What a reload replaces is not to be held for the worker's life.
        drop(plan);
        let edition = match edition {
            Ok(edition) => edition,
            Err(failure) => {
                started.send(Err(failure)).ok();
                return;
            }
        };
        let worker = Rc::new(Worker {
            stats: Arc::clone(&own.stats),
            connections: Connections::default(),
            http: connection::http_builder(),
            site,
            current: RefCell::new(edition),
            prepared: RefCell::default(),
            earlier: RefCell::default(),
            editions: Arc::clone(&own.editions),
            ended: Arc::clone(&own.ended),
        });
        if started.send(Ok(())).is_ok() {
            serve(&worker, commands).await;
        }
        worker.stop();
    });
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
                Some(Command::QueueReady(target)) => worker.queue_ready(target),
                Some(Command::Prepare(plan, done)) => {
                    spawn_local(Rc::clone(worker).prepare(plan, done));
                }
                Some(Command::Switch) => worker.switch(),
                Some(Command::Discard) => worker.retire(worker.prepared.take()),
                Some(Command::Abandon) => {
                    if let Some(edition) = worker.earlier.borrow().first() {
                        edition.abandon();
                    }
                }
                Some(Command::Drain(timeout)) => return drain(worker, timeout).await,
                None => return,
            },
            _ = sweep.tick() => worker.sweep(Instant::now()),
        }
    }
}

/// Lets requests under way end, for so long.
async fn drain(worker: &Rc<Worker>, timeout: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < timeout {
        // First: a connection that has just been handed over comes to be counted, and its request to be read.
        tokio::time::sleep(DRAIN_PERIOD).await;
        // Again and again: a connection may have been in its handshake, or hold half a request.
        let now = Instant::now();
        let open = worker.connections.each(|connection| {
            connection.close_gracefully(now);
            connection.sweep(now);
        });
        if open == 0 {
            return;
        }
    }
    let left = worker.connections.each(Connection::abort);
    if left > 0 {
        tracing::warn!(connections = left, "closed before their requests were done");
        // So that each of them is dropped on its own task.
        tokio::time::sleep(DRAIN_PERIOD).await;
    }
}
