//! Where hyper's tasks run: on this worker's own thread, since nothing of a worker is shared.

/// Spawns on the current `LocalSet`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Local;

impl<F> hyper::rt::Executor<F> for Local
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}
