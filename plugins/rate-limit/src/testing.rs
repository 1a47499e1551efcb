//! For the tests: shared data as Envoy has it (`shared_data.cc` of proxy-wasm-cpp-host), with a place for other
//! workers to run between two calls; and random numbers that are the same each time.

use std::collections::HashMap;

use portcullis_sdk::{Error, SharedStore};

/// SplitMix64.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn below_u32(&mut self, bound: u32) -> u32 {
        u32::try_from(self.below(bound.into())).unwrap()
    }
}

/// One process's shared data. Versions are numbers of one counter; a write with a version onto a missing key
/// succeeds, as it does in Envoy.
#[derive(Default)]
pub(crate) struct Shared {
    values: HashMap<String, (Vec<u8>, u32)>,
    last: u32,
}

impl Shared {
    pub(crate) fn set(&mut self, key: &str, value: &[u8], cas: u32) -> bool {
        if self
            .values
            .get(key)
            .is_some_and(|(_, present)| cas != 0 && cas != *present)
        {
            return false;
        }
        self.last += 1;
        self.values.insert(key.into(), (value.into(), self.last));
        true
    }

    pub(crate) fn value(&self, key: &str) -> Option<&[u8]> {
        self.values.get(key).map(|(value, _)| value.as_slice())
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &[u8]> {
        self.values.values().map(|(value, _)| value.as_slice())
    }
}

/// A worker's way to the shared data. Before every write `others` runs: what other workers did since the read.
pub(crate) struct Worker<'a, F: FnMut(&mut Shared)> {
    pub(crate) shared: &'a mut Shared,
    pub(crate) others: F,
    /// Calls so far: gets, writes.
    pub(crate) calls: (u32, u32),
}

impl<'a> Worker<'a, fn(&mut Shared)> {
    /// The only worker.
    pub(crate) fn alone(shared: &'a mut Shared) -> Self {
        Self {
            shared,
            others: |_| {},
            calls: (0, 0),
        }
    }
}

impl<'a, F: FnMut(&mut Shared)> Worker<'a, F> {
    pub(crate) fn among(shared: &'a mut Shared, others: F) -> Self {
        Self {
            shared,
            others,
            calls: (0, 0),
        }
    }
}

impl<F: FnMut(&mut Shared)> SharedStore for Worker<'_, F> {
    type Version = u32;

    fn read(&mut self, key: &str) -> Result<Option<(Vec<u8>, u32)>, Error> {
        self.calls.0 += 1;
        Ok(self.shared.values.get(key).cloned())
    }

    fn write_new(&mut self, key: &str, value: &[u8]) -> Result<bool, Error> {
        self.write_over(key, value, u32::MAX)
    }

    fn write_over(&mut self, key: &str, value: &[u8], read: u32) -> Result<bool, Error> {
        self.calls.1 += 1;
        (self.others)(self.shared);
        Ok(self.shared.set(key, value, read))
    }
}
