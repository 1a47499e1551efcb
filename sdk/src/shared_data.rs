//! Values that all VMs of a plugin share, across workers, with compare-and-swap.

use std::borrow::Cow;

use crate::error::{Error, Status};
use crate::host::Host;
use crate::scope::Scope;

/// The version of a shared value; it changes with each write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cas(u32);

/// How a write went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum CasOutcome {
    /// Another one wrote in between: read again.
    Mismatch,
    /// It is stored.
    Stored,
}

/// The values shared under this plugin's VM id. Each function is one hostcall.
///
/// As in Envoy: a write with a version onto a key that is not there succeeds, and nothing is ever evicted, so a control
/// bounds its keys by itself.
///
/// ```
/// use portcullis_sdk::prelude::*;
///
/// /// Counts over all workers. Others write in between, so it is tried again, and not for ever.
/// fn count(shared: &SharedData) -> Result<u64, Error> {
///     for _ in 0..32 {
///         let (count, outcome) = match shared.get("count")? {
///             Some((bytes, cas)) => {
///                 let bytes: [u8; 8] = bytes.try_into().map_err(|_| Error::Malformed("count"))?;
///                 let count = u64::from_le_bytes(bytes) + 1;
///                 (count, shared.set("count", &count.to_le_bytes(), Some(cas))?)
///             }
///             None => (1, shared.create("count", &1_u64.to_le_bytes())?),
///         };
///         if outcome == CasOutcome::Stored {
///             return Ok(count);
///         }
///     }
///     Err(Error::new("the count is written too often"))
/// }
/// ```
#[derive(Clone, Debug)]
pub struct SharedData {
    scope: Scope,
}

impl SharedData {
    pub(crate) fn new(scope: &Scope) -> Self {
        Self {
            scope: scope.clone(),
        }
    }

    /// The value and its version; `None` if it was never set.
    pub fn get(&self, key: &str) -> Result<Option<(Vec<u8>, Cas)>, Error> {
        let found = self
            .scope
            .host
            .shared_data(&self.key(key))
            .map_err(Error::host("proxy_get_shared_data"))?;
        Ok(found.map(|(value, cas)| (value, Cas(cas))))
    }

    /// Stores a value only where there is none; a mismatch where another was first. One hostcall.
    ///
    /// The ABI has no such call, and a write without a version overwrites. A write *with* a version onto a missing key
    /// succeeds, though, and onto a present one only if the version is its own; so this gives a version that no value
    /// has. Versions count up from 1 over all writes of a process: one value in 2³² writes has this one, and it would
    /// have to be the value that another worker creates between this one's `get` and this call.
    pub fn create(&self, key: &str, value: &[u8]) -> Result<CasOutcome, Error> {
        self.set(key, value, Some(Cas(u32::MAX)))
    }

    /// Stores a value: whatever is there (`None`), or only in the place of the version that was read.
    pub fn set(&self, key: &str, value: &[u8], expected: Option<Cas>) -> Result<CasOutcome, Error> {
        let written =
            self.scope
                .host
                .set_shared_data(&self.key(key), value, expected.map_or(0, |cas| cas.0));
        match written {
            Ok(()) => Ok(CasOutcome::Stored),
            Err(Status::CAS_MISMATCH) => Ok(CasOutcome::Mismatch),
            Err(status) => Err(Error::host("proxy_set_shared_data")(status)),
        }
    }

    /// Controls that share a module share a VM id, too: each has its keys under the name of its filter.
    fn key<'a>(&self, key: &'a str) -> Cow<'a, str> {
        match self.scope.filter() {
            None => Cow::Borrowed(key),
            Some(filter) => Cow::Owned([&filter, "/", key].concat()),
        }
    }
}
