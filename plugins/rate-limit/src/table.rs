//! The table of keys: a fixed number of shards in shared data, each a packed list of slots.
//!
//! A slot holds a fingerprint of 64 bits and, for each limit, the theoretical arrival time (TAT): 8 + 8·limits bytes,
//! little-endian. A shard is the slots that carry debt, at most [`SLOTS`] of them; whoever writes a shard drops the
//! slots whose TATs have all passed.
//!
//! Invariants
//! - One request is one `get` and, where it passes, one compare-and-swap of the same shard: all limits of a key stand
//!   in one slot, so a request takes from all of them or from none.
//! - No count is lost. A shard is replaced only with the CAS number it was read with, and a shard that is missing is
//!   created with [`SharedStore::write_new`], which fails where another worker was first. A lost round starts again from
//!   `get`.
//! - A slot with debt is never evicted. A key that finds its shard full is refused.
//! - Keys are told apart by 64 bits of fingerprint and the shard: with n live keys some two of them share a slot with
//!   a probability of about n² / (2⁶⁵ · shards), 6·10⁻¹⁴ for a full default table. Fingerprint and shard come from a
//!   hash whose key is random and known to the workers only (`seed.rs`), so that nobody can look for such keys, or
//!   for keys that fill one shard.

use portcullis_sdk::{Change, Error, SharedStore};

use crate::gcra::Limit;
use crate::limits::{LIMITS_MAX, SLOTS};

/// The TATs of one key, one for each limit; the rest is 0.
pub(crate) type Tats = [u64; LIMITS_MAX];

/// What a look-up concluded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All limits had room, and the request is counted.
    Passed,
    /// At least one limit had none; nothing is counted.
    Over {
        /// Nanoseconds until the request would pass all limits.
        wait: u64,
        /// Which limits had none, by index.
        violated: [bool; LIMITS_MAX],
    },
    /// The key is new and all slots of its shard carry debt.
    Full {
        /// Nanoseconds until the first slot is free.
        wait: u64,
    },
    /// Other workers were quicker, every time that it was tried.
    Contended,
}

/// An outcome and how the key stands after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// What was concluded.
    pub(crate) outcome: Outcome,
    /// The key's TATs now.
    pub(crate) tats: Tats,
}

/// One table.
pub(crate) struct Table {
    limits: Vec<Limit>,
    shards: u32,
    /// What the keys of all its shards begin with.
    prefix: String,
    /// Kept between requests for its memory: the key of the shard asked for.
    key: String,
    /// Likewise: the shard to be written.
    shard: Vec<u8>,
}

impl Table {
    /// `limits` from 1 to [`LIMITS_MAX`], `shards` at least 1.
    pub(crate) fn new(prefix: String, limits: Vec<Limit>, shards: u32) -> Self {
        Self {
            limits,
            shards,
            prefix,
            key: String::new(),
            shard: Vec::new(),
        }
    }

    /// The limits, in the order of a slot's TATs.
    pub(crate) fn limits(&self) -> &[Limit] {
        &self.limits
    }

    /// Counts a request of this cost for the key with this hash, or says why not.
    ///
    /// # Errors
    /// Where the store fails, or holds what no table wrote.
    pub(crate) fn count(
        &mut self,
        store: &mut impl SharedStore,
        (fingerprint, place): (u64, u64),
        cost: u64,
        now: u64,
    ) -> Result<Verdict, Error> {
        self.key.clear();
        self.key.push_str(&self.prefix);
        // Multiply and shift: the shards need not be a power of two.
        let index = (u128::from(place) * u128::from(self.shards)) >> 64;
        let index = u64::try_from(index).unwrap_or(u64::MAX);
        self.key.push_str(itoa::Buffer::new().format(index));

        let counted = store.update(&self.key, &mut self.shard, |old, new| {
            let old = old.unwrap_or_default();
            let (verdict, changed) = next(&self.limits, old, fingerprint, cost, now, new)?;
            let change = if changed { Change::Write } else { Change::Keep };
            Ok((verdict, change))
        });
        match counted {
            Err(Error::Contended(_)) => Ok(Verdict {
                outcome: Outcome::Contended,
                tats: [0; LIMITS_MAX],
            }),
            counted => counted,
        }
    }
}

/// What follows from a shard as it was read: the verdict, the shard to store (into `new`, which is empty), and whether it must be
/// stored.
fn next(
    limits: &[Limit],
    old: &[u8],
    fingerprint: u64,
    cost: u64,
    now: u64,
    new: &mut Vec<u8>,
) -> Result<(Verdict, bool), Error> {
    let slot_bytes = 8 * (1 + limits.len());
    if !old.len().is_multiple_of(slot_bytes) || old.len() > slot_bytes * SLOTS {
        return Err(Error::new(format!(
            "a shard of {} bytes in shared data is not of this table",
            old.len()
        )));
    }

    let mut own = None;
    // Slots from beyond the horizon were stored before the clock went backwards. What they are brought to must be
    // stored even where the request is refused, or they would move on with the clock.
    let mut clamped = false;
    let mut first_free = u64::MAX;
    for slot in old.chunks_exact(slot_bytes) {
        let (words, _) = slot.as_chunks::<8>();
        let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
        let owner = words.next().unwrap_or_default();
        let mut tats = [0; LIMITS_MAX];
        let mut paid_off = 0;
        for ((tat, stored), limit) in tats.iter_mut().zip(words).zip(limits) {
            *tat = limit.clamped(stored, now);
            clamped |= *tat != stored;
            paid_off = paid_off.max(*tat);
        }
        if owner == fingerprint {
            own = Some(tats);
        } else if paid_off > now {
            push(new, owner, tats, limits.len());
            first_free = first_free.min(paid_off);
        }
    }

    let known = own.is_some();
    let mut tats = own.unwrap_or_default();
    if !known && new.len() == slot_bytes * SLOTS {
        let wait = first_free.saturating_sub(now);
        return Ok((
            Verdict {
                outcome: Outcome::Full { wait },
                tats,
            },
            clamped,
        ));
    }

    let outcome = take(limits, &mut tats, cost, now);
    if known || outcome == Outcome::Passed {
        push(new, fingerprint, tats, limits.len());
    }
    Ok((
        Verdict { outcome, tats },
        clamped || outcome == Outcome::Passed,
    ))
}

/// Takes from all limits, or from none.
fn take(limits: &[Limit], tats: &mut Tats, cost: u64, now: u64) -> Outcome {
    let mut after = *tats;
    let mut longest = 0;
    let mut violated = [false; LIMITS_MAX];
    for ((limit, tat), violated) in limits.iter().zip(&mut after).zip(&mut violated) {
        match limit.take(*tat, now, cost) {
            Ok(taken) => *tat = taken,
            Err(wait) => {
                longest = longest.max(wait);
                *violated = true;
            }
        }
    }
    if longest > 0 {
        return Outcome::Over {
            wait: longest,
            violated,
        };
    }
    *tats = after;
    Outcome::Passed
}

fn push(shard: &mut Vec<u8>, fingerprint: u64, tats: Tats, limits: usize) {
    shard.extend_from_slice(&fingerprint.to_le_bytes());
    for tat in tats.iter().take(limits) {
        shard.extend_from_slice(&tat.to_le_bytes());
    }
}

#[cfg(test)]
mod tests;
