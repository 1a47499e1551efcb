//! The shapes that keys have: names, addresses, durations, sizes, choices.

use std::ops::RangeInclusive;

use serde_json::{Map, Value, json};

/// A key, what it is for, and what it may hold.
pub(super) type Key = (&'static str, &'static str, Value);

/// A mapping of these keys and no others.
pub(super) fn section(about: &str, required: &[&str], keys: Vec<Key>) -> Value {
    let properties: Map<String, Value> = keys
        .into_iter()
        .map(|(name, about, mut schema)| {
            if let Some(schema) = schema.as_object_mut() {
                schema.insert("title".into(), name.into());
                schema.insert("description".into(), about.into());
            }
            (name.to_owned(), schema)
        })
        .collect();
    json!({
        "type": "object",
        "description": about,
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

pub(super) fn list(definition: &str, items_min: u64) -> Value {
    json!({"type": "array", "minItems": items_min, "items": reference(definition)})
}

pub(super) fn reference(definition: &str) -> Value {
    json!({"$ref": format!("#/$defs/{definition}")})
}

pub(super) fn string() -> Value {
    json!({"type": "string"})
}

/// What is read as text may be written as a number.
pub(super) fn text(pattern: &str) -> Value {
    json!({"type": ["string", "number"], "pattern": pattern})
}

pub(super) fn name() -> Value {
    text("^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
}

pub(super) fn address() -> Value {
    json!({"type": "string", "pattern": "^(\\[[0-9A-Fa-f:.%]+\\]|[0-9.]+):[0-9]{1,5}$"})
}

pub(super) fn path() -> Value {
    json!({"type": "string", "minLength": 1})
}

pub(super) fn off() -> Value {
    json!({"enum": ["off", false]})
}

pub(super) fn duration() -> Value {
    json!({"type": "string", "pattern": "^[0-9]+(\\.[0-9]*)?(ms|s|m|h)$"})
}

pub(super) fn bytes(bounds: &RangeInclusive<u64>, default: usize) -> Value {
    json!({
        "anyOf": [
            {"type": "string", "pattern": "^[0-9]+(KiB|MiB|GiB)?$"},
            {"type": "integer", "minimum": bounds.start(), "maximum": bounds.end()},
        ],
        "default": default,
    })
}

pub(super) fn integer(bounds: &RangeInclusive<u64>) -> Value {
    json!({"type": "integer", "minimum": bounds.start(), "maximum": bounds.end()})
}

pub(super) fn choice(all: &[&str], default: &str) -> Value {
    json!({"enum": all, "default": default})
}

pub(super) fn with_default(mut schema: Value, default: &str) -> Value {
    if let Some(schema) = schema.as_object_mut() {
        schema.insert("default".into(), default.into());
    }
    schema
}
