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

/// Fields of a form or query: more than any page has, and few enough to be walked for each look.
pub(crate) const FORM_PAIRS_MAX: usize = 1024;

/// Longest structured field read, in bytes, all of its lines together. RFC 9651 §3 asks for 1024 members; proxies take
/// some 60 KiB of headers in all.
pub(crate) const STRUCTURED_FIELD_BYTES_MAX: usize = 64 * 1024;

/// Steps in a JSON pointer: as deep as a document may be.
pub(crate) const JSON_POINTER_STEPS_MAX: usize = JSON_DEPTH_MAX;

/// Tries to change a shared value. Each that is lost is another worker's success, so who loses all of them has seen 31
/// others get through within some 30 µs.
pub(crate) const SHARED_ROUNDS_MAX: u32 = 32;
