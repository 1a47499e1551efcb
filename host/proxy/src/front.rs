//! The front thread: it accepts connections, keeps names resolved, answers the admin listener, and puts one policy in another's place.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::{JoinHandle, spawn_local};

use crate::acceptor::{Bound, Control, Dispatcher, Terms};
use crate::admin::Admin;
use crate::cluster::{self, Cluster};
use crate::figures::Figures;
use crate::module_cache::DiskCache;
use crate::plan::Plan;
use crate::policy::{Listener, Policy, Problem};
use crate::reload::Reloads;
use crate::worker::WorkerRef;

/// Where a proxy listens; shared with whoever started it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Addresses {
    /// By the listeners' names.
    pub(crate) listeners: Vec<(String, SocketAddr)>,
    /// The admin page's.
    pub(crate) admin: Option<SocketAddr>,
}

/// What the front thread has.
pub(crate) struct Front {
    /// All of them.
    pub(crate) workers: Vec<WorkerRef>,
    /// Where compiled modules are kept.
    pub(crate) cache: Arc<DiskCache>,
    /// What became of reloads.
    pub(crate) reloads: RefCell<Reloads>,
    /// Whether it serves: until it drains.
    pub(crate) ready: Cell<bool>,
    plan: RefCell<Arc<Plan>>,
    dispatcher: Arc<Dispatcher>,
    listening: RefCell<Vec<Listening>>,
    admin: RefCell<Option<Listening>>,
    addresses: Arc<Mutex<Addresses>>,
}

/// A socket that listens.
struct Listening {
    name: String,
    /// As the policy has it: port 0 stays 0.
    configured: SocketAddr,
    address: SocketAddr,
    /// The admin page needs none.
    control: Option<Rc<Control>>,
    task: JoinHandle<()>,
}

/// Sockets for what a policy adds: one for each of its listeners that has none yet, and for the admin page.
pub(crate) struct Sockets {
    listeners: Vec<Option<Bound>>,
    admin: Option<Bound>,
}

impl Sockets {
    /// Where each listener will listen, in the policy's order; and the admin page.
    pub(crate) fn addresses(&self, policy: &Policy) -> Addresses {
        let all = policy.listeners.iter().zip(&self.listeners);
        Addresses {
            listeners: all
                .filter_map(|(it, bound)| Some((it.name.clone(), bound.as_ref()?.address)))
                .collect(),
            admin: self.admin.as_ref().map(|bound| bound.address),
        }
    }
}

/// Binds the sockets of a policy for which `has` does not find one.
///
/// # Errors
///
/// One of them cannot be bound; all are free again then.
pub(crate) fn bind(
    policy: &Policy,
    has: impl Fn(&Listener) -> bool,
    has_admin: impl Fn(SocketAddr) -> bool,
) -> Result<Sockets, Problem> {
    let listeners = policy.listeners.iter().map(|listener| {
        if has(listener) {
            return Ok(None);
        }
        let bound = Bound::new(listener.address);
        bound.map(Some).map_err(|error| {
            let reason = reason(&error);
            let address = listener.address;
            listener
                .place
                .problem(format!("{address} cannot be bound: {reason}"))
        })
    });
    let listeners = listeners.collect::<Result<_, _>>()?;
    let admin = match &policy.admin {
        Some(admin) if !admin.address.ip().is_loopback() => {
            let reason = "the admin listener is for loopback addresses only";
            return Err(admin.place.problem(reason));
        }
        Some(admin) if !has_admin(admin.address) => {
            let bound = Bound::new(admin.address).map_err(|error| {
                let reason = reason(&error);
                let address = admin.address;
                admin
                    .place
                    .problem(format!("{address} cannot be bound: {reason}"))
            });
            Some(bound?)
        }
        _ => None,
    };
    Ok(Sockets { listeners, admin })
}

impl Front {
    /// Nothing listens yet; see [`Front::install`].
    pub(crate) fn new(
        plan: Arc<Plan>,
        workers: Vec<WorkerRef>,
        cache: Arc<DiskCache>,
        addresses: Arc<Mutex<Addresses>>,
    ) -> Rc<Self> {
        Rc::new(Self {
            dispatcher: Arc::new(Dispatcher::new(workers.clone())),
            workers,
            cache,
            reloads: RefCell::default(),
            ready: Cell::new(true),
            plan: RefCell::new(plan),
            listening: RefCell::default(),
            admin: RefCell::default(),
            addresses,
        })
    }

    /// What runs now.
    pub(crate) fn plan(&self) -> Arc<Plan> {
        Arc::clone(&self.plan.borrow())
    }

    /// What is counted now.
    pub(crate) fn figures(&self) -> Figures {
        let plan = self.plan();
        Figures {
            workers: self.workers.clone(),
            plugins: plan.shared.stats.all(),
            reloads: self.reloads.borrow().clone(),
            plan,
        }
    }

    /// Binds what `policy` adds to what listens now.
    ///
    /// # Errors
    ///
    /// One of the sockets cannot be bound.
    pub(crate) fn bind(&self, policy: &Policy) -> Result<Sockets, Problem> {
        let has = |listener: &Listener| {
            let listening = self.listening.borrow();
            listening.iter().any(|it| it.is_for(listener))
        };
        let has_admin = |address: SocketAddr| {
            let admin = self.admin.borrow();
            admin.as_ref().is_some_and(|it| it.configured == address)
        };
        bind(policy, has, has_admin).map_err(|problem| {
            let listening = self.listening.borrow();
            let port = |it: &&Listening| {
                let of_problem = |l: &&Listener| l.place == problem.place;
                let wanted = policy.listeners.iter().find(of_problem);
                wanted.is_some_and(|l| l.address.port() == it.address.port())
            };
            match listening.iter().find(port) {
                Some(it) => problem.place.problem(format!(
                    "{} (by listener `{}` of the policy that runs; take that out first)",
                    problem.reason, it.name
                )),
                None => problem,
            }
        })
    }

    /// Makes `plan` the one that runs: new sockets listen, others get its terms. Those it has no listener for have stopped.
    pub(crate) fn install(self: &Rc<Self>, plan: Arc<Plan>, sockets: Sockets) {
        let earlier = self.plan.replace(Arc::clone(&plan));
        let is_first = Arc::ptr_eq(&earlier, &plan);
        let is_new = |it: &&Arc<Cluster>| {
            is_first || !earlier.clusters.iter().any(|other| Arc::ptr_eq(it, other))
        };
        for cluster in plan.clusters.iter().filter(is_new) {
            spawn_local(cluster::keep_resolved(Arc::downgrade(cluster)));
        }
        let mut listening = self.listening.take();
        let mut next = Vec::new();
        let wanted = plan.policy.listeners.iter().zip(&plan.tls);
        for ((listener, tls), bound) in wanted.zip(sockets.listeners) {
            let kept = listening.iter().position(|it| it.is_for(listener));
            if let Some(kept) = kept.filter(|_| bound.is_none()) {
                let mut kept = listening.swap_remove(kept);
                kept.name.clone_from(&listener.name);
                if let Some(control) = &kept.control {
                    control.follow(Terms::new(listener, tls.as_ref()));
                }
                next.push(kept);
            } else if let Some(bound) = bound {
                let control = Control::new(Terms::new(listener, tls.as_ref()));
                let (name, configured) = (listener.name.clone(), listener.address);
                let address = bound.address;
                let accept = Arc::clone(&self.dispatcher).accept(bound, Rc::clone(&control));
                next.push(Listening {
                    name,
                    configured,
                    address,
                    control: Some(control),
                    task: spawn_local(accept),
                });
            }
        }
        *self.listening.borrow_mut() = next;
        self.install_admin(&plan, sockets.admin);
        self.tell_addresses();
    }

    fn install_admin(self: &Rc<Self>, plan: &Plan, bound: Option<Bound>) {
        let mut admin = self.admin.borrow_mut();
        let wanted = plan.policy.admin.as_ref().map(|it| it.address);
        if admin
            .as_ref()
            .is_some_and(|it| wanted != Some(it.configured))
            && let Some(removed) = admin.take()
        {
            removed.task.abort();
        }
        if let (Some(configured), Some(bound)) = (wanted, bound) {
            *admin = Some(Listening {
                name: "admin".to_owned(),
                configured,
                address: bound.address,
                control: None,
                task: spawn_local(Admin::new(Rc::downgrade(self)).serve(bound)),
            });
        }
    }

    fn tell_addresses(&self) {
        let listening = self.listening.borrow();
        let listeners = listening.iter().map(|it| (it.name.clone(), it.address));
        let told = Addresses {
            listeners: listeners.collect(),
            admin: self.admin.borrow().as_ref().map(|it| it.address),
        };
        *self
            .addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = told;
    }

    /// Accepts what waits, and then no more, on all sockets that `listeners` have no use for. Whatever was accepted has been handed to a
    /// worker when this returns.
    pub(crate) async fn stop_listening_but_for(&self, listeners: &[Listener]) {
        let stays = |it: &Listening| listeners.iter().any(|listener| it.is_for(listener));
        let (stay, stop): (Vec<_>, Vec<_>) = self.listening.take().into_iter().partition(stays);
        *self.listening.borrow_mut() = stay;
        for listening in &stop {
            tracing::info!(listener = listening.name, address = %listening.address, "accepts no more");
            if let Some(control) = &listening.control {
                control.stop();
            }
        }
        for listening in stop {
            listening.task.await.ok();
        }
    }
}

impl Listening {
    fn is_for(&self, listener: &Listener) -> bool {
        // Several may ask for a port of the system's choice.
        self.configured == listener.address
            && (self.configured.port() != 0 || self.name == listener.name)
    }
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "the address is in use".into(),
        io::ErrorKind::AddrNotAvailable => "the address is not this machine's".into(),
        io::ErrorKind::PermissionDenied => "not permitted".into(),
        _ => error.to_string(),
    }
}
