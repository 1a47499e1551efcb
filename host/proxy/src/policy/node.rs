//! The policy as YAML wrote it: a tree in which every value knows its line.
//!
//! Reading goes through this tree instead of derived types because a derived reader stops at the first fault; `check` names them all.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::budget::BudgetBreach;
use serde_saphyr::{Error, Spanned};

use super::limits::{KEY_BYTES_MAX, POLICY_DEPTH_MAX, POLICY_NODES_MAX, POLICY_TEXT_BYTES_MAX};

/// A YAML value and the line (from 1) it starts on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    /// Line, from 1.
    pub(crate) line: u64,
    /// What stands there.
    pub(crate) value: Value,
}

/// A YAML value. Numbers are as JSON has them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// `null`, `~` or nothing.
    Null,
    /// `true` or `false` (YAML 1.2: `on`, `off`, `yes` and `no` are strings).
    Bool(bool),
    /// A number.
    Number(serde_json::Number),
    /// A string.
    String(String),
    /// A sequence.
    Sequence(Vec<Node>),
    /// A mapping in the file's order; keys are unique.
    Mapping(Vec<Entry>),
}

/// A key of a mapping and its value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    /// The key.
    pub(crate) key: String,
    /// The line the key stands on, from 1.
    pub(crate) line: u64,
    /// The value.
    pub(crate) node: Node,
}

impl Node {
    /// Reads a policy's YAML, within bounds. A fault comes with its line (from 1).
    pub(crate) fn parse(text: &str) -> Result<Self, (u64, String)> {
        let tree = Self::parse_within(text, POLICY_NODES_MAX, POLICY_TEXT_BYTES_MAX)?;
        match tree.line_of_long_key() {
            Some(line) => Err((line, format!("a key has more than {KEY_BYTES_MAX} bytes"))),
            None => Ok(tree),
        }
    }

    /// Reads YAML of so many values and bytes of text at most.
    pub(crate) fn parse_within(
        text: &str,
        nodes_max: usize,
        bytes_max: usize,
    ) -> Result<Self, (u64, String)> {
        let options = serde_saphyr::options! {
            strict_booleans: true,
            budget: serde_saphyr::budget! {
                max_nodes: nodes_max,
                max_total_scalar_bytes: bytes_max,
                max_depth: POLICY_DEPTH_MAX,
                max_documents: 1,
                // Many routes may share one anchor; what they repeat is bounded above.
                enforce_alias_anchor_ratio: false,
            },
        };
        serde_saphyr::from_str_with_options::<Self>(text, options).map_err(|error| {
            let line = error.location().map_or(1, |location| location.line());
            (line.max(1), fault(&error, nodes_max, bytes_max))
        })
    }

    fn line_of_long_key(&self) -> Option<u64> {
        match &self.value {
            Value::Sequence(items) => items.iter().find_map(Self::line_of_long_key),
            Value::Mapping(entries) => entries.iter().find_map(|entry| {
                let is_long = entry.key.len() > KEY_BYTES_MAX;
                is_long
                    .then_some(entry.line)
                    .or_else(|| entry.node.line_of_long_key())
            }),
            _ => None,
        }
    }

    /// The same value as JSON, without positions.
    #[must_use]
    pub(crate) fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Number(value) => value.clone().into(),
            Value::String(value) => value.clone().into(),
            Value::Sequence(items) => items.iter().map(Self::to_json).collect(),
            Value::Mapping(entries) => {
                let members = entries
                    .iter()
                    .map(|entry| (entry.key.clone(), entry.node.to_json()));
                serde_json::Value::Object(members.collect())
            }
        }
    }

    /// A value of JSON, all of it on one line.
    #[must_use]
    pub(crate) fn of_json(json: &serde_json::Value, line: u64) -> Self {
        let value = match json {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(value) => Value::Bool(*value),
            serde_json::Value::Number(value) => Value::Number(value.clone()),
            serde_json::Value::String(value) => Value::String(value.clone()),
            serde_json::Value::Array(items) => {
                Value::Sequence(items.iter().map(|it| Self::of_json(it, line)).collect())
            }
            serde_json::Value::Object(members) => {
                let entries = members.iter().map(|(key, member)| Entry {
                    key: key.clone(),
                    line,
                    node: Self::of_json(member, line),
                });
                Value::Mapping(entries.collect())
            }
        };
        Self { line, value }
    }

    /// What the value is, for messages.
    #[must_use]
    pub(crate) fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Sequence(_) => "a list",
            Value::Mapping(_) => "a mapping",
        }
    }

    /// How far `path` leads below this node: the line of the deepest part that exists, `None` if not even its first does. A path is dotted,
    /// with indexes bare or in brackets: `issuers.0.jwks`, `issuers[0].jwks`.
    #[must_use]
    pub(crate) fn line_of(&self, path: &str) -> Option<u64> {
        let mut node = self;
        let mut line = None;
        let parts = path
            .split(['.', '['])
            .map(|part| part.trim_end_matches(']'));
        for part in parts.filter(|part| !part.is_empty()) {
            let next = match &node.value {
                Value::Mapping(entries) => entries
                    .iter()
                    .find(|entry| entry.key == part)
                    .map(|entry| (entry.line, &entry.node)),
                Value::Sequence(items) => part
                    .parse::<usize>()
                    .ok()
                    .and_then(|index| items.get(index))
                    .map(|item| (item.line, item)),
                _ => None,
            };
            let Some((next_line, next_node)) = next else {
                break;
            };
            (line, node) = (Some(next_line), next_node);
        }
        line
    }
}

/// What is wrong, on one line, without the position that stands before it already.
fn fault(error: &Error, nodes_max: usize, bytes_max: usize) -> String {
    match error {
        Error::WithSnippet { error, .. } | Error::AliasError { error, .. } => {
            fault(error, nodes_max, bytes_max)
        }
        Error::Budget { breach, .. } => match breach {
            BudgetBreach::Nodes { .. } => {
                format!("more than {nodes_max} values (what an alias repeats counts again)")
            }
            BudgetBreach::ScalarBytes { .. } => {
                format!("more than {bytes_max} bytes of text (what an alias repeats counts again)")
            }
            BudgetBreach::Depth { .. } => format!("nested deeper than {POLICY_DEPTH_MAX} levels"),
            BudgetBreach::Documents { .. } => "more than one document".into(),
            other => format!("too large: {other:?}"),
        },
        other => {
            let message = other.to_string();
            let line = message.lines().next().unwrap_or_default();
            let line = line.split(" at line ").next().unwrap_or(line);
            format!("not YAML: {}", line.trim_end_matches('.'))
        }
    }
}

/// What serde sees of a value; the line comes from the [`Spanned`] around it.
struct Bare(Value);

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Bare>::deserialize(deserializer)?;
        Ok(Self {
            line: spanned.referenced.line(),
            value: spanned.value.0,
        })
    }
}

impl<'de> Deserialize<'de> for Bare {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(BareVisitor).map(Self)
    }
}

struct BareVisitor;

impl<'de> Visitor<'de> for BareVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        serde_json::Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("not a finite number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element::<Node>()? {
            items.push(item);
        }
        Ok(Value::Sequence(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            entries.push(Entry {
                line: key.referenced.line(),
                key: key.value,
                node: map.next_value()?,
            });
        }
        Ok(Value::Mapping(entries))
    }
}
