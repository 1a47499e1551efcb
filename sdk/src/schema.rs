//! The JSON Schema of a control's configuration, made inside the module for whoever finishes it.

use schemars::SchemaGenerator;

use crate::control::Control;

/// Makes the schema as JSON, and returns its address in the upper 32 bits and its length in the lower ones; a length
/// of 0 if it cannot be made, or the feature `schema` is off. Memory is never given back: the instance ends with this call.
pub fn schema<C: Control>() -> u64 {
    if !cfg!(feature = "schema") {
        return 0;
    }
    let schema = SchemaGenerator::default().into_root_schema_for::<C::Config>();
    let json = serde_json::to_vec(&schema).unwrap_or_default().leak();
    (json.as_ptr().addr() as u64) << 32 | json.len() as u64
}
