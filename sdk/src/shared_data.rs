//! Values that all VMs of a plugin share, across workers, with compare-and-swap.

use std::borrow::Cow;

use crate::error::{Error, Status};
use crate::host::Host;
use crate::scope::Scope;
use crate::shared_counter::SharedCounter;

/// The version of a shared value; it changes with each write.
///
/// ```
/// use portcullis_sdk::prelude::*;
///
/// /// Puts a value in the place of what was read, and only of that.
/// fn replace(shared: &SharedData, read: Cas) -> Result<bool, Error> {
///     Ok(shared.set("leader", b"me", Some(read))? == CasOutcome::Stored)
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cas(u32);

/// How a write went.
///
/// ```
/// use portcullis_sdk::CasOutcome;
///
/// /// Who loses reads again.
/// fn again(outcome: CasOutcome) -> bool {
///     outcome == CasOutcome::Mismatch
/// }
/// assert!(!again(CasOutcome::Stored));
/// ```
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
/// /// Whether this is the worker that does what one of them must do; for a change of what is there take
/// /// [`SharedStore::update`](crate::SharedStore::update), for a number [`counter`](Self::counter).
/// fn is_first(shared: &SharedData) -> Result<bool, Error> {
///     Ok(shared.create("started", b"1")? == CasOutcome::Stored)
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
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// Absent is not an error.
    /// fn list(shared: &SharedData) -> Result<Vec<u8>, Error> {
    ///     Ok(shared.get("list")?.map(|(value, _)| value).unwrap_or_default())
    /// }
    /// ```
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
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// In the place of what was read, and of nothing newer.
    /// fn replace(shared: &SharedData, read: Cas) -> Result<bool, Error> {
    ///     Ok(shared.set("list", b"new", Some(read))? == CasOutcome::Stored)
    /// }
    /// ```
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

    /// A number that all workers count on, under a key of its own.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// Counts a failed sign-in, and says whether there were too many.
    /// fn failed(shared: &SharedData) -> Result<bool, Error> {
    ///     Ok(shared.counter("failures").add(1)? > 100)
    /// }
    /// ```
    pub fn counter(&self, key: &str) -> SharedCounter {
        SharedCounter::new(self.clone(), key)
    }

    /// Controls that share a module share a VM id, too: each has its keys under the name of its filter.
    fn key<'a>(&self, key: &'a str) -> Cow<'a, str> {
        match self.scope.filter() {
            None => Cow::Borrowed(key),
            Some(filter) => Cow::Owned([&filter, "/", key].concat()),
        }
    }
}
