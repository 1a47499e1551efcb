//! The bounds of a redirect, each with its reason.

/// Bytes of a host name: what DNS carries (RFC 1035 §2.3.4).
pub(crate) const HOST_BYTES_MAX: usize = 253;

/// Bytes of a `Location`: a whole header section of more than 8 KiB is refused by several clients.
pub(crate) const LOCATION_BYTES_MAX: usize = 4096;
