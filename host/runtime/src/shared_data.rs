//! Shared data: keys and values that all VMs of one `vm_id` see, with compare-and-swap.
//!
//! As in Envoy: one counter numbers every write in the process, from 1; a compare on a missing key succeeds; 0 compares nothing.
//! Invariants: no lock is held across a call into a guest (values are handed out as `Bytes`); bytes and keys of a `vm_id` are bounded,
//! and a write past the bound fails rather than evicting what another plugin relies on.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;

use crate::{
    abi::Status,
    limits::{SHARED_DATA_BYTES_MAX, SHARED_DATA_KEYS_MAX, SHARED_VALUE_BYTES_MAX},
};

/// Shards of one namespace: more than the workers of most machines, so that two seldom meet.
const SHARDS: usize = 16;

/// The shared data of the process.
#[derive(Debug, Default)]
pub struct SharedData {
    namespaces: Mutex<HashMap<String, Arc<Namespace>>>,
    writes: Arc<AtomicU32>,
}

impl SharedData {
    /// The data of one `vm_id`. Looked up once, when a VM starts.
    pub(crate) fn namespace(&self, vm_id: &str) -> Arc<Namespace> {
        let mut namespaces = lock(&self.namespaces);
        if let Some(namespace) = namespaces.get(vm_id) {
            return Arc::clone(namespace);
        }
        let namespace = Arc::new(Namespace::new(Arc::clone(&self.writes)));
        namespaces.insert(vm_id.to_owned(), Arc::clone(&namespace));
        namespace
    }

    /// Forgets the data of every `vm_id` that `keep` does not name and no plugin uses.
    pub fn forget_unused(&self, keep: impl Fn(&str) -> bool) {
        lock(&self.namespaces)
            .retain(|vm_id, namespace| keep(vm_id) || Arc::strong_count(namespace) > 1);
    }
}

/// A poisoned lock still guards whole data: nothing here can panic between two writes that belong together.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Clone)]
struct Entry {
    value: Bytes,
    cas: u32,
}

type Shard = Mutex<HashMap<Box<[u8]>, Entry, RandomState>>;

/// The data of one `vm_id`.
#[derive(Debug)]
pub(crate) struct Namespace {
    hasher: RandomState,
    shards: [Shard; SHARDS],
    bytes: AtomicUsize,
    keys: AtomicUsize,
    writes: Arc<AtomicU32>,
}

impl Namespace {
    fn new(writes: Arc<AtomicU32>) -> Self {
        let hasher = RandomState::new();
        let shards = std::array::from_fn(|_| Mutex::new(HashMap::with_hasher(RandomState::new())));
        Self {
            hasher,
            shards,
            bytes: AtomicUsize::new(0),
            keys: AtomicUsize::new(0),
            writes,
        }
    }

    fn shard(&self, key: &[u8]) -> Result<&Shard, Status> {
        let index = usize::try_from(self.hasher.hash_one(key) % (SHARDS as u64)).unwrap_or(0);
        self.shards.get(index).ok_or(Status::InternalFailure)
    }

    /// The value under `key`, and the number of the write it came from.
    pub(crate) fn get(&self, key: &[u8]) -> Result<(Bytes, u32), Status> {
        let shard = lock(self.shard(key)?);
        shard
            .get(key)
            .map(|entry| (entry.value.clone(), entry.cas))
            .ok_or(Status::NotFound)
    }

    /// Writes `value` if `cas` is 0, or that of the present value, or there is none.
    pub(crate) fn set(&self, key: &[u8], value: &[u8], cas: u32) -> Result<(), Status> {
        if value.len() > SHARED_VALUE_BYTES_MAX {
            return Err(Status::InternalFailure);
        }
        let mut shard = lock(self.shard(key)?);
        let old = shard.get_mut(key);
        let (added, removed) = match &old {
            Some(entry) if cas != 0 && entry.cas != cas => return Err(Status::CasMismatch),
            Some(entry) => (value.len(), entry.value.len()),
            None => (key.len() + value.len(), 0),
        };
        // Other shards may grow at the same time: reserve first, give back on refusal.
        let before = self.bytes.fetch_add(added, Ordering::Relaxed);
        if before.saturating_add(added).saturating_sub(removed) > SHARED_DATA_BYTES_MAX {
            self.bytes.fetch_sub(added, Ordering::Relaxed);
            return Err(Status::InternalFailure);
        }
        let entry = Entry {
            value: Bytes::copy_from_slice(value),
            cas: self.next_write(),
        };
        match old {
            Some(place) => {
                *place = entry;
                self.bytes.fetch_sub(removed, Ordering::Relaxed);
            }
            None if self.keys.fetch_add(1, Ordering::Relaxed) >= SHARED_DATA_KEYS_MAX => {
                self.keys.fetch_sub(1, Ordering::Relaxed);
                self.bytes.fetch_sub(added, Ordering::Relaxed);
                return Err(Status::InternalFailure);
            }
            None => {
                shard.insert(key.into(), entry);
            }
        }
        Ok(())
    }

    /// Never 0, which stands for *compare nothing*.
    fn next_write(&self) -> u32 {
        loop {
            let number = self.writes.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
            if number != 0 {
                return number;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compare_and_swap_as_in_envoy() {
        let data = SharedData::default();
        let (one, other) = (data.namespace("a"), data.namespace("b"));
        assert_eq!(one.get(b"k"), Err(Status::NotFound));
        assert_eq!(
            one.set(b"k", b"1", 77),
            Ok(()),
            "a compare on a missing key succeeds"
        );
        assert_eq!(one.get(b"k"), Ok((Bytes::from("1"), 1)));
        assert_eq!(one.set(b"k", b"2", 9), Err(Status::CasMismatch));
        assert_eq!(one.set(b"k", b"2", 1), Ok(()));
        assert_eq!(
            one.set(b"k", b"3", 1),
            Err(Status::CasMismatch),
            "the number is spent"
        );
        assert_eq!(one.set(b"k", b"", 0), Ok(()));
        assert_eq!(data.namespace("a").get(b"k"), Ok((Bytes::new(), 3)));
        assert_eq!(other.get(b"k"), Err(Status::NotFound), "another vm_id");
    }

    #[test]
    fn bytes_are_bounded() {
        let data = SharedData::default();
        let namespace = data.namespace("a");
        let value = vec![0; SHARED_VALUE_BYTES_MAX];
        assert_eq!(
            namespace.set(b"k", &[&value[..], b"1"].concat(), 0),
            Err(Status::InternalFailure)
        );
        let mut stored = 0;
        while namespace.set(&[stored], &value, 0).is_ok() {
            stored += 1;
        }
        assert_eq!(
            usize::from(stored),
            SHARED_DATA_BYTES_MAX / SHARED_VALUE_BYTES_MAX - 1
        );
        assert_eq!(
            namespace.set(&[0], &value, 0),
            Ok(()),
            "replacing needs no room"
        );
        assert_eq!(namespace.set(&[0], b"", 0), Ok(()));
        assert_eq!(
            namespace.set(&[stored], &value, 0),
            Ok(()),
            "room was given back"
        );
    }
}
