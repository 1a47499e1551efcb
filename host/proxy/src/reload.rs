//! Reloads: a policy is made ready beside the one that runs, tried out, started on every worker, and only then put in its place. Whatever
//! fails before that leaves everything as it was.
//!
//! A reload is asked for by SIGHUP, by a changed policy file, or by [`Running::reload`](crate::Running::reload). One at a time.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::mpsc::{Receiver, Sender, UnboundedReceiver, channel};
use tokio::sync::oneshot;

use crate::cluster;
use crate::digest::digest;
use crate::front::Front;
use crate::limits::{
    EDITIONS_EARLIER_MAX, RELOAD_PROBLEMS_SHOWN, RELOAD_ROOM_PERIOD, WATCH_PERIOD,
};
use crate::plan::Plan;
use crate::policy::{Policy, PolicyErrors};
use crate::serve::ServeError;
use crate::worker::Command;

/// A policy from this process, and whom to tell.
pub(crate) type Request = (Box<Policy>, mpsc::Sender<Result<(), ServeError>>);

/// What became of reloads.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reloads {
    /// Those that took effect.
    pub(crate) done: u64,
    /// Those that changed nothing.
    pub(crate) refused: u64,
    last_refused: Option<Refused>,
    is_last_refused: bool,
}

#[derive(Clone, Debug)]
struct Refused {
    at: SystemTime,
    problems: Vec<String>,
}

impl Reloads {
    /// Whether the last one changed nothing.
    pub(crate) fn is_last_refused(&self) -> bool {
        self.is_last_refused
    }

    /// As `/policy` shows them.
    pub(crate) fn view(&self) -> Value {
        let refused = self.last_refused.as_ref().map(|refused| {
            let at = OffsetDateTime::from(refused.at).format(&Rfc3339);
            json!({"at": at.unwrap_or_default(), "problems": refused.problems})
        });
        json!({
            "done": self.done,
            "refused": self.refused,
            "last": match (self.done + self.refused, self.is_last_refused) {
                (0, _) => "none",
                (_, true) => "refused",
                (_, false) => "done",
            },
            "last_refused": refused,
        })
    }

    fn record(&mut self, result: &Result<(), ServeError>) {
        self.is_last_refused = result.is_err();
        match result {
            Ok(()) => self.done += 1,
            Err(error) => {
                self.refused += 1;
                let problems = error.to_string();
                let problems = problems.lines().take(RELOAD_PROBLEMS_SHOWN);
                self.last_refused = Some(Refused {
                    at: SystemTime::now(),
                    problems: problems.map(str::to_owned).collect(),
                });
            }
        }
    }
}

/// Where a policy comes from.
enum Source {
    File(PathBuf),
    Here(Box<Policy>),
}

/// What asks for reloads of the policy's file.
#[derive(Debug)]
pub(crate) struct Triggers {
    /// SIGHUP.
    pub(crate) hangups: Hangups,
    /// A change of the file.
    pub(crate) watch: bool,
}

/// Reloads whenever it is asked to, until it is dropped.
pub(crate) async fn serve(
    front: Rc<Front>,
    triggers: Triggers,
    mut requests: UnboundedReceiver<Request>,
) {
    let path = front.plan().policy.file.to_path_buf();
    let mut changes = triggers
        .watch
        .then(|| watch(&path, &front.plan().policy.sha256));
    let Triggers { mut hangups, .. } = triggers;
    let ended = front.workers.first().map(|it| Arc::clone(&it.ended));
    let ended = ended.unwrap_or_default();
    loop {
        tokio::select! {
            Some((policy, done)) = requests.recv() => {
                let result = reload(&front, Source::Here(policy)).await;
                // Who asked may have gone.
                done.send(result).ok();
            }
            // On this thread, since `/metrics` has a hold on every plugin's counters while it is written.
            () = ended.notified() => front.plan().forget_unused(),
            () = hangups.next() => {
                tracing::info!(policy = %path.display(), "SIGHUP: reloading");
                reload(&front, Source::File(path.clone())).await.ok();
            }
            sha256 = next_change(&mut changes) => {
                let policy = path.display();
                if front.plan().policy.sha256 == sha256 {
                    tracing::info!(%policy, "the policy file has changed: it is the policy that runs");
                } else {
                    tracing::info!(%policy, "the policy file has changed: reloading");
                    reload(&front, Source::File(path.clone())).await.ok();
                }
            }
        }
    }
}

async fn reload(front: &Rc<Front>, source: Source) -> Result<(), ServeError> {
    let begun = Instant::now();
    let result = replace(front, source).await;
    front.reloads.borrow_mut().record(&result);
    match &result {
        Ok(()) => {
            let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            tracing::info!(ms, "reloaded");
        }
        Err(error) => {
            for problem in error.to_string().lines() {
                tracing::error!("{problem}");
            }
            tracing::error!("reload refused, the policy that runs goes on");
        }
    }
    result
}

async fn replace(front: &Rc<Front>, source: Source) -> Result<(), ServeError> {
    let (earlier, cache) = (front.plan(), Arc::clone(&front.cache));
    let make = {
        let earlier = Arc::clone(&earlier);
        move || {
            let policy = match source {
                Source::File(path) => Policy::load(path).map_err(ServeError::Policy)?,
                Source::Here(policy) => *policy,
            };
            Plan::next(policy, &cache, &earlier)
        }
    };
    // Beside this thread, which accepts connections meanwhile.
    let made = tokio::task::spawn_blocking(make).await;
    let plan =
        made.map_err(|_| ServeError::System("the policy could not be tried out".into()))??;
    let plan = Arc::new(plan);
    for warning in &plan.policy.warnings {
        tracing::warn!("{warning}");
    }
    if plan.policy.worker_count() != front.workers.len() {
        let workers = front.workers.len();
        tracing::warn!("workers: there are {workers} until the next start");
    }
    let known = |cluster: &_| earlier.clusters.iter().any(|it| Arc::ptr_eq(it, cluster));
    let new = plan.clusters.iter().filter(|cluster| !known(cluster));
    cluster::resolve_first(new.cloned()).await;
    wait_for_room(front, plan.policy.drain_timeout).await;
    // Not earlier: whoever connects to a new socket waits until the switch.
    let sockets = front.bind(&plan.policy)?;
    prepare(front, &plan).await?;
    // From here on nothing can fail. What is accepted by a listener that goes is served by the policy that has it.
    front.stop_listening_but_for(&plan.policy.listeners).await;
    for worker in &front.workers {
        worker.commands.send(Command::Switch).ok();
    }
    drop(earlier);
    front.install(Arc::clone(&plan), sockets);
    Ok(())
}

/// Waits until no worker has too many earlier policies with exchanges; those that take longer than `patience` lose their plugins.
async fn wait_for_room(front: &Front, patience: Duration) {
    let begun = Instant::now();
    let mut abandoned = false;
    loop {
        let full = front
            .workers
            .iter()
            .filter(|worker| worker.editions.load(Ordering::Relaxed) >= EDITIONS_EARLIER_MAX);
        let full: Vec<_> = full.collect();
        if full.is_empty() {
            return;
        }
        if !abandoned && begun.elapsed() >= patience {
            abandoned = true;
            for worker in full {
                worker.commands.send(Command::Abandon).ok();
            }
        }
        tokio::time::sleep(RELOAD_ROOM_PERIOD).await;
    }
}

/// Has every worker start the plan's plugins.
async fn prepare(front: &Front, plan: &Arc<Plan>) -> Result<(), ServeError> {
    let answers: Vec<_> = front
        .workers
        .iter()
        .map(|worker| {
            let (done, answer) = oneshot::channel();
            let command = Command::Prepare(Arc::clone(plan), done);
            worker.commands.send(command).ok();
            answer
        })
        .collect();
    let mut result = Ok(());
    for answer in answers {
        let answer = match answer.await {
            Ok(answer) => answer.map_err(|problems| ServeError::Policy(PolicyErrors(problems))),
            Err(_) => Err(ServeError::System("a worker does not answer".into())),
        };
        result = result.and(answer);
    }
    if result.is_err() {
        for worker in &front.workers {
            worker.commands.send(Command::Discard).ok();
        }
    }
    result
}

/// SIGHUP, if it is for this proxy.
#[derive(Debug)]
pub(crate) struct Hangups(Option<tokio::signal::unix::Signal>);

impl Hangups {
    /// Takes the signal from now on, where it would have ended the process. Within a tokio runtime.
    pub(crate) fn new(listen: bool) -> Self {
        use tokio::signal::unix::{SignalKind, signal};
        let hangups = listen.then(|| signal(SignalKind::hangup()));
        Self(hangups.and_then(|signal| {
            signal
                .inspect_err(|error| tracing::error!(%error, "SIGHUP cannot be received"))
                .ok()
        }))
    }

    async fn next(&mut self) {
        let received = match &mut self.0 {
            Some(hangups) => hangups.recv().await,
            None => None,
        };
        if received.is_none() {
            std::future::pending().await
        }
    }
}

async fn next_change(changes: &mut Option<Receiver<String>>) -> String {
    let change = match changes {
        Some(changes) => changes.recv().await,
        None => None,
    };
    match change {
        Some(sha256) => sha256,
        None => std::future::pending().await,
    }
}

/// Tells the digest of the file's text whenever that has changed and stood still since the last look. On a thread of its own, since a file may
/// lie on a network.
fn watch(path: &Path, sha256: &str) -> Receiver<String> {
    let (changed, changes) = channel(1);
    let mut watched = Watched::new(path, sha256);
    let look = move || look_until_closed(&mut watched, &changed);
    let spawned = std::thread::Builder::new().name("watch".into()).spawn(look);
    if let Err(error) = spawned {
        tracing::error!(%error, "the policy file is not watched");
    }
    changes
}

fn look_until_closed(watched: &mut Watched, changed: &Sender<String>) {
    while !changed.is_closed() {
        std::thread::sleep(WATCH_PERIOD);
        if let Some(sha256) = watched.look()
            && changed.blocking_send(sha256).is_err()
        {
            return;
        }
    }
}

/// A file that is looked at now and then.
struct Watched {
    path: PathBuf,
    /// Of the text that was told last.
    sha256: String,
    /// What the last look saw, where that was not what had been read.
    moving: Option<Facts>,
    read: Option<Facts>,
}

type Facts = (SystemTime, u64, u64);

impl Watched {
    fn new(path: &Path, sha256: &str) -> Self {
        Self {
            path: path.to_owned(),
            sha256: sha256.to_owned(),
            moving: None,
            read: None,
        }
    }

    /// The digest of another text than was known, if the file has one and stands still.
    fn look(&mut self) -> Option<String> {
        use std::os::unix::fs::MetadataExt as _;
        // While it is not there, somebody is about to put another in its place.
        let found = std::fs::metadata(&self.path).ok()?;
        let facts = (found.modified().ok()?, found.len(), found.ino());
        if self.read == Some(facts) {
            self.moving = None;
            return None;
        }
        if self.moving.replace(facts) != Some(facts) {
            return None;
        }
        let text = crate::policy::read_text(&self.path).ok()?;
        self.read = Some(facts);
        let sha256 = digest(&text);
        if self.sha256 == sha256 {
            return None;
        }
        self.sha256.clone_from(&sha256);
        Some(sha256)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_when_it_has_changed_and_stands_still() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.yaml");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write("one");
        let mut watched = Watched::new(&path, &digest(b"one"));
        for look in 0..3 {
            assert_eq!(watched.look(), None, "look {look}: nothing has changed");
        }
        write("two and more");
        assert_eq!(watched.look(), None, "it may still be written to");
        write("two");
        assert_eq!(watched.look(), None, "it was");
        assert_eq!(watched.look(), Some(digest(b"two")));
        assert_eq!(watched.look(), None, "told once");
        // Replaced by another file, as editors and Kubernetes do.
        let other = folder.path().join("other");
        std::fs::write(&other, "three").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_eq!(watched.look(), None);
        assert_eq!(watched.look(), Some(digest(b"three")));
        // Gone for a while, and back as it was.
        std::fs::rename(&path, &other).unwrap();
        assert_eq!(watched.look(), None);
        std::fs::rename(&other, &path).unwrap();
        for _ in 0..3 {
            assert_eq!(watched.look(), None);
        }
        // Touched only.
        std::fs::write(&other, "three").unwrap();
        std::fs::rename(&other, &path).unwrap();
        for _ in 0..3 {
            assert_eq!(watched.look(), None);
        }
    }

    #[test]
    fn what_is_shown_of_reloads() {
        let mut reloads = Reloads::default();
        assert_eq!(reloads.view()["last"], "none");
        reloads.record(&Err(ServeError::System("one\ntwo".into())));
        let view = reloads.view();
        assert_eq!(
            (&view["last"], &view["refused"]),
            (&json!("refused"), &json!(1))
        );
        assert_eq!(view["last_refused"]["problems"], json!(["one", "two"]));
        reloads.record(&Ok(()));
        assert_eq!(reloads.view()["last"], "done");
        assert_eq!(
            reloads.view()["last_refused"]["problems"],
            json!(["one", "two"])
        );
        assert!(!reloads.is_last_refused());
    }
}
