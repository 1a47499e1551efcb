//! YAML that keeps the order it was built in, for files that people read.

use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};
use serde_saphyr::{Commented, LitStr};

/// A YAML value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Tree {
    Bool(bool),
    Integer(u64),
    Text(String),
    /// Text with a remark behind it.
    Remarked(String, String),
    /// Text of several lines, written as a literal block.
    Block(String),
    List(Vec<Tree>),
    Map(Vec<(String, Tree)>),
    /// What an operator wrote, in JSON's terms.
    Json(serde_json::Value),
}

impl Serialize for Tree {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Json(value) => value.serialize(serializer),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Integer(value) => serializer.serialize_u64(*value),
            Self::Text(value) => serializer.serialize_str(value),
            Self::Remarked(value, remark) => Commented(value, remark.clone()).serialize(serializer),
            Self::Block(value) => LitStr(value).serialize(serializer),
            Self::List(items) => {
                let mut list = serializer.serialize_seq(Some(items.len()))?;
                for item in items {
                    list.serialize_element(item)?;
                }
                list.end()
            }
            Self::Map(members) => {
                let mut map = serializer.serialize_map(Some(members.len()))?;
                for (key, value) in members {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }
    }
}

impl From<&str> for Tree {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<String> for Tree {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

impl From<bool> for Tree {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<u64> for Tree {
    fn from(value: u64) -> Self {
        Self::Integer(value)
    }
}

impl From<u32> for Tree {
    fn from(value: u32) -> Self {
        Self::Integer(value.into())
    }
}

impl From<u16> for Tree {
    fn from(value: u16) -> Self {
        Self::Integer(value.into())
    }
}

/// As protobuf's JSON has it: decimal seconds.
impl From<std::time::Duration> for Tree {
    fn from(value: std::time::Duration) -> Self {
        let (seconds, nanos) = (value.as_secs(), value.subsec_nanos());
        if nanos == 0 {
            return Self::Text(format!("{seconds}s"));
        }
        let text = format!("{seconds}.{nanos:09}");
        Self::Text(format!("{}s", text.trim_end_matches('0')))
    }
}

impl<T: Into<Tree>> From<Vec<T>> for Tree {
    fn from(items: Vec<T>) -> Self {
        Self::List(items.into_iter().map(Into::into).collect())
    }
}

impl FromIterator<Tree> for Tree {
    fn from_iter<I: IntoIterator<Item = Self>>(items: I) -> Self {
        Self::List(items.into_iter().collect())
    }
}

/// A mapping that is built key by key.
#[derive(Default)]
pub(super) struct Map(Vec<(String, Tree)>);

impl Map {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// A message that names its protobuf type.
    pub(super) fn typed(name: &str) -> Self {
        Self::new().with("@type", format!("type.googleapis.com/{name}"))
    }

    #[must_use]
    pub(super) fn with(mut self, key: impl Into<String>, value: impl Into<Tree>) -> Self {
        self.0.push((key.into(), value.into()));
        self
    }

    /// Adds the key only if there is something to say.
    #[must_use]
    pub(super) fn maybe(self, key: &str, value: Option<impl Into<Tree>>) -> Self {
        match value {
            Some(value) => self.with(key, value),
            None => self,
        }
    }
}

impl From<Map> for Tree {
    fn from(map: Map) -> Self {
        Self::Map(map.0)
    }
}
