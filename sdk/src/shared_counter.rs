//! A number that all workers count on: [`SharedCounter`].

use crate::error::Error;
use crate::shared_data::SharedData;
use crate::shared_store::{Change, SharedStore};

/// A number shared by all VMs of a plugin, which starts at 0 and only grows. No count is lost: where others count at the
/// same time, it is tried again, 32 times in all, and then is [`Error::Contended`], so a refusal: what could not be counted
/// does not pass.
///
/// ```
/// use portcullis_sdk::prelude::*;
///
/// /// Lets a thousand requests pass, over all workers.
/// fn admit(request: &Request) -> Result<Decision, Error> {
///     if request.shared().counter("admitted").add(1)? > 1000 {
///         return Ok(LocalResponse::refuse(429, "all_taken", "Too Many Requests").into());
///     }
///     Ok(Decision::Continue)
/// }
/// ```
#[derive(Clone, Debug)]
pub struct SharedCounter {
    shared: SharedData,
    key: String,
}

impl SharedCounter {
    pub(crate) fn new(shared: SharedData, key: &str) -> Self {
        let key = key.into();
        Self { shared, key }
    }

    /// Adds to it; the number after it, at most 2⁶⁴−1. Two hostcalls a try.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// The number of this sign-in, over all workers.
    /// fn number(counter: &SharedCounter) -> Result<u64, Error> {
    ///     counter.add(1)
    /// }
    /// ```
    pub fn add(&self, by: u64) -> Result<u64, Error> {
        add(&mut self.shared.clone(), &self.key, by)
    }

    /// The number now; by the time that it is read others may have counted. One hostcall.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// For a gauge, at a tick.
    /// fn signed_in(plugin: &PluginContext) -> Result<u64, Error> {
    ///     plugin.shared_data().counter("sign-ins").value()
    /// }
    /// ```
    pub fn value(&self) -> Result<u64, Error> {
        let found = self.shared.get(&self.key)?;
        number(found.as_ref().map(|(value, _)| value.as_slice()))
    }
}

fn add(store: &mut impl SharedStore, key: &str, by: u64) -> Result<u64, Error> {
    store.update(key, &mut Vec::with_capacity(8), |old, new| {
        let sum = number(old)?.saturating_add(by);
        new.extend_from_slice(&sum.to_le_bytes());
        Ok((sum, Change::Write))
    })
}

/// Eight bytes, little-endian; 0 where there are none.
fn number(bytes: Option<&[u8]>) -> Result<u64, Error> {
    let Some(bytes) = bytes else { return Ok(0) };
    let eight = <[u8; 8]>::try_from(bytes);
    eight
        .map(u64::from_le_bytes)
        .map_err(|_| Error::Malformed("a shared counter"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::native::NativeHost;
    use crate::limits;
    use crate::scope::Scope;
    use crate::shared_data::Cas;

    /// Before every write `others` runs: what other workers did since the read.
    struct Among<F>(SharedData, F);

    impl<F: FnMut(&mut SharedData)> SharedStore for Among<F> {
        type Version = Cas;

        fn read(&mut self, key: &str) -> Result<Option<(Vec<u8>, Cas)>, Error> {
            self.0.read(key)
        }

        fn write_new(&mut self, key: &str, value: &[u8]) -> Result<bool, Error> {
            self.1(&mut self.0);
            self.0.write_new(key, value)
        }

        fn write_over(&mut self, key: &str, value: &[u8], read: Cas) -> Result<bool, Error> {
            self.1(&mut self.0);
            self.0.write_over(key, value, read)
        }
    }

    fn shared() -> SharedData {
        SharedData::new(&Scope::alone(NativeHost::default(), "test"))
    }

    #[test]
    fn it_counts_from_0_on() {
        let shared = shared();
        let counter = shared.counter("a");
        assert_eq!(counter.value(), Ok(0));
        assert_eq!(counter.add(2), Ok(2));
        assert_eq!(shared.counter("a").add(3), Ok(5));
        assert_eq!(shared.counter("b").value(), Ok(0));
        assert_eq!(counter.add(u64::MAX), Ok(u64::MAX));
        assert_eq!(counter.value(), Ok(u64::MAX));
    }

    #[test]
    fn no_count_of_others_is_lost() {
        let shared = shared();
        let mut rivals = 0;
        let mut store = Among(shared.clone(), |shared: &mut SharedData| {
            // From the first write on, which finds nothing there.
            if rivals < limits::SHARED_ROUNDS_MAX - 1 {
                rivals += 1;
                add(shared, "a", 1).unwrap();
            }
        });
        let last = u64::from(limits::SHARED_ROUNDS_MAX);
        assert_eq!(add(&mut store, "a", 1), Ok(last));
        assert_eq!(shared.counter("a").value(), Ok(last));
    }

    #[test]
    fn what_cannot_be_counted_is_an_error() {
        let shared = shared();
        let mut tries = 0;
        let mut store = Among(shared.clone(), |shared: &mut SharedData| {
            tries += 1;
            add(shared, "a", 1).unwrap();
        });
        let contended = Err(Error::Contended("a shared value"));
        assert_eq!(add(&mut store, "a", 100), contended);
        assert_eq!(tries, limits::SHARED_ROUNDS_MAX);
        assert_eq!(shared.counter("a").value(), Ok(u64::from(tries)));
        let _ = shared.set("a", b"seven", None).unwrap();
        assert!(shared.counter("a").add(1).is_err());
        assert!(shared.counter("a").value().is_err());
    }
}
