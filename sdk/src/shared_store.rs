//! Changes to shared values that no other worker's is lost by: [`SharedStore`].

use crate::error::Error;
use crate::limits;
use crate::shared_data::{Cas, CasOutcome, SharedData};

/// Shared values under compare-and-swap. [`SharedData`] is one; a test may make another, in which others write in between.
///
/// ```
/// use portcullis_sdk::prelude::*;
///
/// /// Takes one of ten places, over all workers; `false` where none is left.
/// fn take_place(shared: &mut SharedData) -> Result<bool, Error> {
///     shared.update("places", &mut Vec::new(), |taken, new| {
///         let taken = taken.and_then(|bytes| bytes.first().copied()).unwrap_or(0);
///         if taken >= 10 {
///             return Ok((false, Change::Keep));
///         }
///         new.push(taken + 1);
///         Ok((true, Change::Write))
///     })
/// }
/// ```
///
/// A store of one value, for a test in which nobody else writes:
///
/// ```
/// use portcullis_sdk::prelude::*;
///
/// #[derive(Default)]
/// struct One(Option<Vec<u8>>);
///
/// impl SharedStore for One {
///     type Version = ();
///
///     fn read(&mut self, _: &str) -> Result<Option<(Vec<u8>, ())>, Error> {
///         Ok(self.0.clone().map(|value| (value, ())))
///     }
///
///     fn write_new(&mut self, _: &str, value: &[u8]) -> Result<bool, Error> {
///         self.write_over("", value, ())
///     }
///
///     fn write_over(&mut self, _: &str, value: &[u8], _: ()) -> Result<bool, Error> {
///         self.0 = Some(value.to_vec());
///         Ok(true)
///     }
/// }
///
/// let mut store = One::default();
/// for length in 1..=3 {
///     let now = store.update("key", &mut Vec::new(), |old, new| {
///         new.extend_from_slice(old.unwrap_or_default());
///         new.push(b'.');
///         Ok((new.len(), Change::Write))
///     })?;
///     assert_eq!(now, length);
/// }
/// # Ok::<(), Error>(())
/// ```
pub trait SharedStore {
    /// What a write must know to replace what was read.
    type Version: Copy;

    /// The value and its version, if there is one.
    fn read(&mut self, key: &str) -> Result<Option<Read<Self::Version>>, Error>;

    /// Stores a value where there is none; `false` where another was first.
    fn write_new(&mut self, key: &str, value: &[u8]) -> Result<bool, Error>;

    /// Stores a value in the place of the version that was read; `false` where it has changed since.
    fn write_over(&mut self, key: &str, value: &[u8], read: Self::Version) -> Result<bool, Error>;

    /// Changes a value: `change` is shown what is there (`None`: nothing), puts what becomes of it into the room that it
    /// is given, which is empty, and says whether to write that. Where another worker wrote in between, it is asked again;
    /// 32 times in all, then it is [`Error::Contended`]: nothing was changed, so nothing may pass by it.
    ///
    /// `room` is only memory; keep it for the next call, or give a new one. Two hostcalls a try, one where nothing is
    /// written.
    fn update<T>(
        &mut self,
        key: &str,
        room: &mut Vec<u8>,
        mut change: impl FnMut(Option<&[u8]>, &mut Vec<u8>) -> Result<(T, Change), Error>,
    ) -> Result<T, Error> {
        for _ in 0..limits::SHARED_ROUNDS_MAX {
            let found = self.read(key)?;
            room.clear();
            let old = found.as_ref().map(|(value, _)| value.as_slice());
            let (result, change) = change(old, room)?;
            let done = match (change, found) {
                (Change::Keep, _) => true,
                (Change::Write, Some((_, version))) => self.write_over(key, room, version)?,
                (Change::Write, None) => self.write_new(key, room)?,
            };
            if done {
                return Ok(result);
            }
        }
        Err(Error::Contended("a shared value"))
    }
}

/// A value and its version.
type Read<V> = (Vec<u8>, V);

/// What becomes of a shared value.
///
/// ```
/// use portcullis_sdk::Change;
///
/// /// Only what is new is written.
/// fn change(is_new: bool) -> Change {
///     if is_new { Change::Write } else { Change::Keep }
/// }
/// # let _ = change(true);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It stays as it is.
    Keep,
    /// It becomes what was put into the room.
    Write,
}

impl SharedStore for SharedData {
    type Version = Cas;

    fn read(&mut self, key: &str) -> Result<Option<(Vec<u8>, Cas)>, Error> {
        self.get(key)
    }

    fn write_new(&mut self, key: &str, value: &[u8]) -> Result<bool, Error> {
        self.create(key, value)
            .map(|outcome| outcome == CasOutcome::Stored)
    }

    fn write_over(&mut self, key: &str, value: &[u8], read: Cas) -> Result<bool, Error> {
        self.set(key, value, Some(read))
            .map(|outcome| outcome == CasOutcome::Stored)
    }
}
