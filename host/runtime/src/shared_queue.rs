//! Shared queues: byte strings passed between plugins, also of other workers.
//!
//! As in Envoy: ids are the process's; registering twice gives the same queue; the last registrant that has not ended is told of entries.

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
    queues: HashMap<u32, Queue>,
    /// The id given last. None is given twice: a plugin may keep that of a queue which has been forgotten.
    last: u32,
}

#[derive(Debug)]
struct Queue {
    entries: VecDeque<Bytes>,
    bytes: usize,
    /// Those that have not ended, the newest last.
    registrants: Vec<QueueTarget>,
    /// Who is told: the newest of them, or whoever ended last where none is left.
    target: QueueTarget,
}

impl Queues {
    fn queue(&mut self, id: u32) -> Result<&mut Queue, Status> {
        self.queues.get_mut(&id).ok_or(Status::NotFound)
    }
}

impl Queue {
    fn register(&mut self, target: QueueTarget) {
        self.registrants.retain(|it| *it != target);
        self.registrants.push(target);
        self.target = target;
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
        let known = queues.ids.get(&key).copied();
        if known.is_none() && queues.queues.len() >= QUEUES_MAX {
            return Err(Status::InternalFailure);
        }
        let next = queues.last.checked_add(1);
        let queue = known.or(next).ok_or(Status::InternalFailure)?;
        let target = QueueTarget {
            worker,
            plugin,
            queue,
        };
        if known.is_some() {
            queues.queue(queue)?.register(target);
            return Ok(queue);
        }
        queues.last = queue;
        queues.ids.insert(key, queue);
        queues.queues.insert(
            queue,
            Queue {
                entries: VecDeque::new(),
                bytes: 0,
                registrants: vec![target],
                target,
            },
        );
        Ok(queue)
    }

    /// Takes a plugin that ends out of the queues it registered: those who registered them before are told again. Gives whom to tell at once,
    /// each as often as there are entries that the plugin may not have taken. Embedders call it for every plugin they end, also for one that
    /// did not start.
    #[must_use]
    pub fn leave(&self, worker: u32, plugin: PluginId) -> Vec<QueueTarget> {
        let gone = |it: &QueueTarget| (it.worker, it.plugin) == (worker, plugin);
        let mut told = Vec::new();
        for queue in self.lock().queues.values_mut() {
            queue.registrants.retain(|it| !gone(it));
            if gone(&queue.target)
                && let Some(next) = queue.registrants.last()
            {
                queue.target = *next;
                told.extend(std::iter::repeat_n(*next, queue.entries.len()));
            }
        }
        told
    }

    /// Forgets every queue whose `vm_id` `keep` does not name and whose registrants have all ended.
    pub fn forget_unused(&self, keep: impl Fn(&str) -> bool) {
        let mut all = self.lock();
        let Queues { ids, queues, .. } = &mut *all;
        ids.retain(|(vm_id, _), id| {
            let is_used = queues.get(id).is_some_and(|it| !it.registrants.is_empty());
            let stays = is_used || keep(vm_id);
            if !stays {
                queues.remove(id);
            }
            stays
        });
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
    #[test]
    fn a_registrant_that_ends_gives_the_queue_back() {
        let queues = SharedQueues::default();
        let told = |queues: &SharedQueues| {
            let target = queues.enqueue(1, b"x").unwrap();
            (target.worker, target.plugin)
        };
        for worker in [0, 1] {
            assert_eq!(queues.register("a", b"q", worker, PluginId(1)), Ok(1));
        }
        // The plugins of a policy that is refused, one of them with two VMs.
        for worker in [0, 1, 0] {
            assert_eq!(queues.register("a", b"q", worker, PluginId(2)), Ok(1));
        }
        assert_eq!(told(&queues), (0, PluginId(2)));
        assert!(
            queues.leave(1, PluginId(2)).is_empty(),
            "another is told still"
        );
        let before = QueueTarget {
            worker: 1,
            plugin: PluginId(1),
            queue: 1,
        };
        assert_eq!(queues.leave(0, PluginId(2)), [before], "an entry waits");
        assert_eq!(told(&queues), (1, PluginId(1)));
        assert_eq!(queues.leave(1, PluginId(1)).len(), 2);
        assert!(queues.leave(0, PluginId(1)).is_empty(), "nobody is left");
        assert_eq!(told(&queues), (0, PluginId(1)), "entries are kept");
        assert_eq!(queues.register("a", b"q", 0, PluginId(3)), Ok(1));
        assert_eq!(told(&queues), (0, PluginId(3)));
    }

    #[test]
    fn queues_that_nobody_names_or_has_are_forgotten() {
        let queues = SharedQueues::default();
        for (id, (vm_id, plugin)) in [("a", 1), ("b", 2), ("c", 3)].into_iter().enumerate() {
            let id = u32::try_from(id + 1).unwrap();
            assert_eq!(queues.register(vm_id, b"q", 0, PluginId(plugin)), Ok(id));
        }
        assert!(queues.leave(0, PluginId(1)).is_empty());
        assert!(queues.leave(0, PluginId(3)).is_empty());
        queues.forget_unused(|vm_id| vm_id == "a");
        assert_eq!(queues.resolve("a", b"q"), Ok(1), "named");
        assert_eq!(queues.resolve("b", b"q"), Ok(2), "in use");
        assert_eq!(queues.resolve("c", b"q"), Err(Status::NotFound));
        assert_eq!(queues.enqueue(3, b"x"), Err(Status::NotFound));
        assert_eq!(
            queues.register("c", b"q", 0, PluginId(4)),
            Ok(4),
            "an id is not given twice"
        );
    }

    #[test]
    fn queues_are_bounded_and_room_is_given_back() {
        let queues = SharedQueues::default();
        let register = |vm_id: &str, number: usize| {
            queues.register(vm_id, number.to_string().as_bytes(), 0, PluginId(1))
        };
        for number in 0..QUEUES_MAX {
            register("a", number).unwrap();
        }
        assert_eq!(register("b", 0), Err(Status::InternalFailure));
        assert_eq!(register("a", 0), Ok(1), "a known one");
        assert!(queues.leave(0, PluginId(1)).is_empty());
        queues.forget_unused(|_| false);
        assert!(register("b", 0).is_ok());
    }
}
