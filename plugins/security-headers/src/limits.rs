//! The bounds of a configuration, each with its reason.

/// Headers of the operator's own. Each costs a hostcall in every answer, and the marks of all headers share one word.
pub(crate) const EXTRA_HEADERS_MAX: usize = 32;

/// Names in `remove`: several times the built-in list.
pub(crate) const REMOVES_MAX: usize = 512;

/// Bytes of a name: the longest registered field name has 49.
pub(crate) const NAME_BYTES_MAX: usize = 128;

/// Bytes of a value. Several clients refuse a header section above 8 KiB, and ours is not alone in it.
pub(crate) const VALUE_BYTES_MAX: usize = 4096;
