//! What the table asks of shared data; apart from it, so that tests can let other workers in between two calls.

use portcullis_sdk::{Cas, CasOutcome, Error, SharedData};

/// A value and its version, if there is one.
pub(crate) type Read<V> = Option<(Vec<u8>, V)>;

/// Shared values under compare-and-swap.
pub(crate) trait Store {
    /// What a write must know to replace what was read.
    type Version: Copy;

    /// The value and its version, if there is one.
    fn get(&mut self, key: &str) -> Result<Read<Self::Version>, Error>;

    /// Stores a value where there is none; `false` where another was first.
    fn create(&mut self, key: &str, value: &[u8]) -> Result<bool, Error>;

    /// Stores a value in the place of the version that was read; `false` where it has changed since.
    fn replace(&mut self, key: &str, value: &[u8], read: Self::Version) -> Result<bool, Error>;
}

impl Store for SharedData {
    type Version = Cas;

    fn get(&mut self, key: &str) -> Result<Read<Cas>, Error> {
        SharedData::get(self, key)
    }

    fn create(&mut self, key: &str, value: &[u8]) -> Result<bool, Error> {
        SharedData::create(self, key, value).map(|outcome| outcome == CasOutcome::Stored)
    }

    fn replace(&mut self, key: &str, value: &[u8], read: Cas) -> Result<bool, Error> {
        SharedData::set(self, key, value, Some(read)).map(|outcome| outcome == CasOutcome::Stored)
    }
}
