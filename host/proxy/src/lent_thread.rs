//! The thread on which snapshots of plugins are made: one for the process, since nothing waits for them and each takes a core for a while.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{OnceLock, mpsc};

use portcullis_runtime::SnapshotWork;

/// Has `work` done, one after the other. Every plugin of every worker has at most one of them waiting.
pub(crate) fn lend(work: SnapshotWork) {
    static QUEUE: OnceLock<Option<mpsc::Sender<SnapshotWork>>> = OnceLock::new();
    if let Some(queue) = QUEUE.get_or_init(start) {
        // What is dropped here, its plugin asks for again.
        queue.send(work).ok();
    }
}

fn start() -> Option<mpsc::Sender<SnapshotWork>> {
    let (queue, works) = mpsc::channel::<SnapshotWork>();
    let run = move || {
        // On Linux this is the thread's own: requests go first. Not granted, all goes on as before.
        rustix::process::nice(10).ok();
        for work in works {
            // Whatever a module makes of the compiler, the next one is served.
            if catch_unwind(AssertUnwindSafe(|| work.run())).is_err() {
                tracing::error!("a snapshot could not be made: its making panicked");
            }
        }
    };
    let spawned = std::thread::Builder::new()
        .name("snapshot".into())
        .spawn(run);
    spawned
        .inspect_err(|error| tracing::error!(%error, "no thread to make snapshots on"))
        .ok()
        .map(|_| queue)
}
