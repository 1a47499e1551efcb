//! Shared queues: byte strings passed between plugins, also of other workers.
//!
//! As in Envoy: ids are the process's; registering twice gives the same queue; the last registrant is told of entries.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

use crate::{
    abi::Status,
    limits::{QUEUE_BYTES_MAX, QUEUE_ENTRIES_MAX, QUEUES_MAX},
    spec::PluginId,
};

/// Who is told that a queue has an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueTarget {
    /// [`Embedder::worker`](crate::Embedder::worker) of the registrant.
    pub worker: u32,
    /// The registrant.
    pub plugin: PluginId,
    /// The queue.
    pub queue: u32,
}

/// The queues of the process.
#[derive(Debug, Default)]
pub struct SharedQueues(Mutex<Queues>);

#[derive(Debug, Default)]
struct Queues {
    /// By `vm_id` and name.
    ids: HashMap<(String, Box<[u8]>), u32>,
    /// Queue `id` stands at `id - 1`.
    queues: Vec<Queue>,
}

#[derive(Debug)]
struct Queue {
    entries: VecDeque<Bytes>,
    bytes: usize,
    target: QueueTarget,
}

impl Queues {
    fn queue(&mut self, id: u32) -> Result<&mut Queue, Status> {
        let index = usize::try_from(id).ok().and_then(|id| id.checked_sub(1));
        index
            .and_then(|index| self.queues.get_mut(index))
            .ok_or(Status::NotFound)
    }
}

impl SharedQueues {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn register(
        &self,
        vm_id: &str,
        name: &[u8],
        worker: u32,
        plugin: PluginId,
    ) -> Result<u32, Status> {
        let mut queues = self.lock();
        let key = (vm_id.to_owned(), name.into());
        if let Some(id) = queues.ids.get(&key).copied() {
            queues.queue(id)?.target = QueueTarget {
                worker,
                plugin,
                queue: id,
            };
            return Ok(id);
        }
        if queues.queues.len() >= QUEUES_MAX {
            return Err(Status::InternalFailure);
        }
        let id = u32::try_from(queues.queues.len() + 1).map_err(|_| Status::InternalFailure)?;
        let target = QueueTarget {
            worker,
            plugin,
            queue: id,
        };
        queues.queues.push(Queue {
            entries: VecDeque::new(),
            bytes: 0,
            target,
        });
        queues.ids.insert(key, id);
        Ok(id)
    }

    pub(crate) fn resolve(&self, vm_id: &str, name: &[u8]) -> Result<u32, Status> {
        self.lock()
            .ids
            .get(&(vm_id.to_owned(), name.into()))
            .copied()
            .ok_or(Status::NotFound)
    }

    /// Tells whom to notify.
    pub(crate) fn enqueue(&self, id: u32, entry: &[u8]) -> Result<QueueTarget, Status> {
        let mut queues = self.lock();
        let queue = queues.queue(id)?;
        if queue.entries.len() >= QUEUE_ENTRIES_MAX || queue.bytes + entry.len() > QUEUE_BYTES_MAX {
            return Err(Status::InternalFailure);
        }
        queue.bytes += entry.len();
        queue.entries.push_back(Bytes::copy_from_slice(entry));
        Ok(queue.target)
    }

    pub(crate) fn dequeue(&self, id: u32) -> Result<Bytes, Status> {
        let mut queues = self.lock();
        let queue = queues.queue(id)?;
        let entry = queue.entries.pop_front().ok_or(Status::Empty)?;
        queue.bytes -= entry.len();
        Ok(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_as_in_envoy() {
        let queues = SharedQueues::default();
        assert_eq!(queues.resolve("a", b"q"), Err(Status::NotFound));
        assert_eq!(queues.register("a", b"q", 0, PluginId(1)), Ok(1));
        assert_eq!(
            queues.register("b", b"q", 0, PluginId(2)),
            Ok(2),
            "another vm_id"
        );
        assert_eq!(
            queues.register("a", b"q", 1, PluginId(3)),
            Ok(1),
            "registering again"
        );
        assert_eq!(queues.resolve("a", b"q"), Ok(1));
        assert_eq!(queues.dequeue(1), Err(Status::Empty));
        assert_eq!(queues.dequeue(0), Err(Status::NotFound));
        assert_eq!(queues.dequeue(3), Err(Status::NotFound));
        let last = QueueTarget {
            worker: 1,
            plugin: PluginId(3),
            queue: 1,
        };
        assert_eq!(queues.enqueue(1, b"x"), Ok(last));
        assert_eq!(queues.dequeue(1), Ok(Bytes::from("x")));
        for _ in 0..QUEUE_ENTRIES_MAX {
            queues.enqueue(2, b"").unwrap();
        }
        assert_eq!(queues.enqueue(2, b""), Err(Status::InternalFailure), "full");
    }
}
