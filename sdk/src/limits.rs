//! Every bound of the SDK, with its reason.

/// Longest request id taken over as a decision id, in bytes. Envoy's are 36 (a UUID); a client behind a trusted hop may
/// send others, and an id stands in a header, a body and a log line.
pub(crate) const DECISION_ID_BYTES_MAX: usize = 64;

/// Random bytes in a decision id that the SDK makes: 128 bits do not collide.
pub(crate) const DECISION_ID_RANDOM_BYTES: usize = 16;

/// Longest body that a control can await, of a request or of the answer to a call: it is copied into the module whole,
/// and hosts give a module little memory (Envoy buffers 1 MiB by default).
pub(crate) const AWAITED_BODY_BYTES_MAX: usize = 1024 * 1024;

/// Pairs that a header map may hold: what Envoy's own decoder allows (`limits.h` of proxy-wasm-cpp-host).
pub(crate) const FIELD_PAIRS_MAX: usize = 1024;

/// Longest log message, in bytes; what is longer is cut. Hosts cut too, elsewhere and in the middle of a character.
pub(crate) const LOG_BYTES_MAX: usize = 8 * 1024;

/// Different reasons of refusal that get a metric of their own; a control has a handful, each a constant.
pub(crate) const REASONS_MAX: usize = 64;

/// How deep a configuration may nest: the reader recurses, and a guest's stack is small.
pub(crate) const JSON_DEPTH_MAX: usize = 64;
