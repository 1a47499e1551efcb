//! The seed: the random key of the hash that places keys, the same for every worker of one `vm_id`.
//!
//! Whoever needs it first stores 16 random bytes; all others, and the first one too, use what is stored. It is asked
//! for at the first request of a VM and not at configure: a VM may be a copy of a snapshot that was taken after
//! configure and in another life of the proxy. It is never logged and never sent.

use portcullis_sdk::{Error, SharedStore};

use crate::limits::{SEED_BYTES, SEED_ROUNDS_MAX};
use crate::siphash::SipKey;

/// The key in shared data; one for all tables, since it is no table's property.
const KEY: &str = "portcullis.rate-limit/seed";

/// The seed all workers agree on.
///
/// # Errors
/// Where the store fails, or holds what is no seed: without a seed nothing can be counted.
pub(crate) fn agreed(
    store: &mut impl SharedStore,
    random: impl Fn(&mut [u8]),
) -> Result<SipKey, Error> {
    for _ in 0..SEED_ROUNDS_MAX {
        if let Some((value, _)) = store.read(KEY)? {
            let bytes = <[u8; SEED_BYTES]>::try_from(value).map_err(|value| {
                Error::new(format!("a seed of {} bytes in shared data", value.len()))
            })?;
            return Ok(SipKey::new(bytes));
        }
        let mut bytes = [0; SEED_BYTES];
        random(&mut bytes);
        store.write_new(KEY, &bytes)?;
    }
    Err(Error::new("shared data does not keep the seed"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Shared, Worker};

    fn fill(with: u8) -> impl Fn(&mut [u8]) {
        move |bytes| bytes.fill(with)
    }

    /// Three workers, of which the second stores its seed between the first one's read and write: one seed.
    #[test]
    fn workers_agree_when_they_race() {
        let mut shared = Shared::default();
        let mut rival = None;
        let mut first = Worker::among(&mut shared, |shared| {
            rival = agreed(&mut Worker::alone(shared), fill(2)).ok();
        });
        let seed = agreed(&mut first, fill(1)).unwrap();
        let late = agreed(&mut Worker::alone(&mut shared), fill(3)).unwrap();
        let expected = SipKey::new([2; SEED_BYTES]).hash(b"alice");
        for seed in [seed, rival.unwrap(), late] {
            assert_eq!(seed.hash(b"alice"), expected);
        }
    }

    #[test]
    fn a_stored_value_that_is_no_seed_is_an_error() {
        for bytes in [0, 15, 17] {
            let mut shared = Shared::default();
            shared.set(KEY, &vec![0; bytes], 0);
            assert!(
                agreed(&mut Worker::alone(&mut shared), fill(1)).is_err(),
                "{bytes} bytes"
            );
        }
    }
}
