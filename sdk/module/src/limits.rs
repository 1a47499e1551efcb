//! Every bound, with its reason.

/// Bytes of a schema. The largest of the built-in controls has about 8 KiB; policies are read with it, so it stays small.
pub(crate) const SCHEMA_BYTES_MAX: usize = 256 * 1024;

/// Memory that making the schema may take, in bytes: a control's own `JsonSchema` may be wrong, and builds must end.
pub(crate) const SCHEMA_MEMORY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Work that making the schema may take, in wasmi's fuel (about one an instruction). The built-in controls need less
/// than a million.
pub(crate) const SCHEMA_FUEL_MAX: u64 = 1_000_000_000;
