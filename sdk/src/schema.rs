//! The JSON Schema of a control's configuration, made inside the module for whoever finishes it.

use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use crate::configuration::SHADOW;
use crate::control::{Control, Metadata};
#[cfg(target_arch = "wasm32")]
use crate::filter::Filter;
use crate::policy::MEASURE;

/// Of one control: its own keys, and `shadow`. Nothing refers to anything, so it can stand inside another.
pub(crate) fn of_control<C: Control>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|it| it.inline_subschemas = true);
    let schema = settings
        .into_generator()
        .into_root_schema_for::<C::Config>();
    let mut schema = schema.to_value();
    let shadow = json!({
        "description": "Only log and count what would be refused, and let it pass.",
        "type": "boolean",
        "default": false,
    });
    if let Some(members) = schema.as_object_mut() {
        let properties = members.entry("properties").or_insert_with(|| json!({}));
        if let Some(properties) = properties.as_object_mut() {
            properties.insert(SHADOW.into(), shadow);
        }
    }
    schema
}

/// Of a policy of several, each with its schema.
pub(crate) fn of_policy(members: impl Iterator<Item = (Metadata, Value)>) -> Value {
    let entries = members.map(|(metadata, mut schema)| {
        if let Some(members) = schema.as_object_mut() {
            members.remove("$schema");
        }
        json!({
            "type": "object",
            "properties": {
                "control": {"const": metadata.name},
                "filter": {
                    "description": "Tells this entry's shared data from that of an equal one; the control's name if it is left out.",
                    "type": "string",
                },
                "configuration": schema,
            },
            "required": ["control"],
            "additionalProperties": false,
        })
    });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "controls": {
                "description": "In the order in which requests pass them.",
                "type": "array",
                "minItems": 1,
                "items": {"oneOf": entries.collect::<Vec<_>>()},
            },
            MEASURE: {
                "description": "Of so many exchanges one is measured: the time of each control's callbacks. None, if it is left out.",
                "type": "integer",
                "minimum": 1,
                "maximum": u32::MAX,
            },
        },
        "required": ["controls"],
        "additionalProperties": false,
    })
}

/// Makes the schema as JSON, and returns its address in the upper 32 bits and its length in the lower ones; a length
/// of 0 if it cannot be made, or the feature `schema` is off. Memory is never given back: the instance ends with this call.
#[cfg(target_arch = "wasm32")]
pub fn schema<F: Filter>() -> u64 {
    if !cfg!(feature = "schema") {
        return 0;
    }
    let json = serde_json::to_vec(&F::schema()).unwrap_or_default().leak();
    (json.as_ptr().addr() as u64) << 32 | json.len() as u64
}
