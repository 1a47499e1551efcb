//! Every bound of this control, with its reason.

/// Limits in one instance. All of them share a slot, so each costs 8 bytes a slot; a fifth window is better a second
/// instance.
pub(crate) const LIMITS_MAX: usize = 4;

/// Bytes in a limit's or an instance's name. The limit's name is sent to clients with every answer, the scope with
/// every look-up.
pub(crate) const NAME_BYTES_MAX: usize = 32;

/// Requests a window. Above it the emission interval of a one-second window falls below a microsecond, where clocks
/// differ more than that.
pub(crate) const REQUESTS_MAX: u32 = 1_000_000;

/// Longest window. Counters live in memory: they do not outlive the proxy, so a longer promise would not be kept.
pub(crate) const WINDOW_SECONDS_MAX: u64 = 31 * 24 * 60 * 60;

/// Sources a key may be looked for in: each costs a hostcall when the one before it is missing.
pub(crate) const KEY_SOURCES_MAX: usize = 4;

/// Slots a shard: at 16 bytes a slot a full shard is 1 KiB, which copies in well under 0.1 µs; fewer slots spread
/// worse.
pub(crate) const SLOTS: usize = 64;

/// Slots provided for each key of `max_keys`. Keys fall on shards by chance: with 32 keys expected and room for 64
/// the tail of the Poisson distribution leaves a shard overfull with a probability of 2·10⁻⁷, so that a table of
/// 65,536 keys refuses nobody in 999 cases of 1,000.
pub(crate) const SLOTS_PER_KEY: usize = 2;

/// Keys of a table by default; at two slots each the table takes at most 2 MiB.
pub(crate) const KEYS_DEFAULT: u32 = 65_536;

/// Smallest table: one shard.
pub(crate) const KEYS_MIN: u32 = 32;
/// Largest table: 16 MiB with one limit and 40 MiB with four, within the 64 MiB that the Portcullis host grants the
/// shared data of one `vm_id`.
pub(crate) const KEYS_MAX: u32 = 524_288;

/// Rounds to agree on the seed. The second one reads what the winner of the first stored; the third is for a host
/// that dropped it between.
pub(crate) const SEED_ROUNDS_MAX: u32 = 3;

/// Bytes of the seed: the key of SipHash.
pub(crate) const SEED_BYTES: usize = 16;
