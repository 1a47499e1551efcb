//! Every bound of the control, with its reason. A token costs at most what these numbers allow, whoever sends it.

/// Longest token looked at, in bytes. Access tokens are below 4 KiB in the field; more is a way to make us parse.
pub(crate) const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// Longest `kid`, in bytes: it is compared, remembered and never interpreted.
pub(crate) const KID_BYTES_MAX: usize = 256;

/// Issuers in one configuration: each may fetch keys of its own.
pub(crate) const PROVIDERS_MAX: usize = 16;
/// Entries of any list in the configuration (audiences, scopes, claims…): all are walked for every request.
pub(crate) const LIST_MAX: usize = 64;
/// Members that a nested claim path may name.
pub(crate) const CLAIM_PATH_MAX: usize = 8;
/// Longest text in the configuration (issuer, audience, scope, realm…), in bytes.
pub(crate) const TEXT_BYTES_MAX: usize = 1024;

/// Usable keys in one JWK set. Issuers publish two to eight; each key costs up to 3 KiB once parsed.
pub(crate) const KEYS_MAX: usize = 64;
/// Smallest RSA modulus, in bits (NIST SP 800-131A, RFC 7518 section 3.3).
pub(crate) const RSA_BITS_MIN: usize = 2048;
/// Largest RSA modulus, in bits: a check costs its square.
pub(crate) const RSA_BITS_MAX: usize = 8192;
/// Largest fetched JWK set, in bytes.
pub(crate) const JWKS_BYTES_MAX: usize = 256 * 1024;

/// Tolerance for clocks that differ, in seconds: default and most.
pub(crate) const CLOCK_SKEW_SECONDS: u32 = 60;
pub(crate) const CLOCK_SKEW_SECONDS_MAX: u32 = 300;
/// Life of a token, in seconds: default, and most that an operator may allow (30 days).
pub(crate) const LIFETIME_SECONDS: u32 = 3600;
pub(crate) const LIFETIME_SECONDS_MAX: u32 = 30 * 24 * 3600;

/// Tokens remembered as well signed. Each VM has its own memory, so this is multiplied by workers.
pub(crate) const CACHE_ENTRIES_MAX: usize = 256;
/// What all remembered tokens may weigh, in bytes, parsed claims included: 1 MiB of the 64 MiB that a VM has.
pub(crate) const CACHE_BYTES_MAX: usize = 1024 * 1024;

/// How long fetched keys count as fresh when the answer does not say, in seconds: default (Envoy's 10 minutes).
pub(crate) const REFRESH_SECONDS: u32 = 600;
/// What `cache-control: max-age` is held between, in seconds: below, an issuer could make us fetch all the time;
/// above, a withdrawn key would live for ever.
pub(crate) const FRESH_SECONDS_MIN: u64 = 60;
pub(crate) const FRESH_SECONDS_MAX: u64 = 24 * 3600;
/// How long keys serve after their freshness ended while the issuer cannot be reached, in seconds.
pub(crate) const STALE_SECONDS_MAX: u64 = 24 * 3600;
/// Pause after a failed fetch, in seconds, and what `retry-after` says before the first keys.
pub(crate) const RETRY_SECONDS: u64 = 5;
/// Least pause between two fetches that unknown key ids ask for, in seconds.
pub(crate) const EARLY_REFETCH_SECONDS: u64 = 30;
/// Time for one fetch, in milliseconds: default and most.
pub(crate) const FETCH_MS: u32 = 5000;
pub(crate) const FETCH_MS_MAX: u32 = 30_000;
/// How long after its fetch must have ended the lease of a worker that died is free again, in seconds.
pub(crate) const LEASE_MARGIN_SECONDS: u64 = 5;
/// Unknown key ids remembered, so that one that is asked for again and again causes one fetch, not one per pause.
pub(crate) const UNKNOWN_KIDS_MAX: usize = 64;
/// How long an unknown key id is remembered, in seconds: not for long, since an issuer may sign with a key a little
/// before it is seen everywhere.
pub(crate) const UNKNOWN_KID_SECONDS: u64 = 120;
/// How often a VM looks whether a fetch is due, in milliseconds.
pub(crate) const TICK_MS: u64 = 1000;
