//! Protobuf's JSON as a tree with places: fields by either spelling, `Any` messages by their type.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use crate::policy::{Node, NodeValue, Place};

/// A value and where it stands.
#[derive(Clone)]
pub(super) struct Item<'n> {
    file: Arc<Path>,
    node: &'n Node,
    key: String,
    line: u64,
}

impl<'n> Item<'n> {
    pub(super) fn root(file: &Arc<Path>, node: &'n Node) -> Self {
        Self {
            file: Arc::clone(file),
            node,
            key: String::new(),
            line: node.line,
        }
    }

    pub(super) fn node(&self) -> &'n Node {
        self.node
    }

    pub(super) fn place(&self) -> Place {
        let key = if self.key.is_empty() {
            "envoy"
        } else {
            &self.key
        };
        Place {
            file: Arc::clone(&self.file),
            line: self.line,
            key: key.into(),
        }
    }

    /// Whether it stands under this key.
    pub(super) fn ends_with(&self, key: &str) -> bool {
        self.key == key || self.key.ends_with(&format!(".{key}"))
    }

    /// The member of this name, in snake_case or lowerCamelCase.
    pub(super) fn get(&self, name: &str) -> Option<Item<'n>> {
        let members = self.members();
        let is = |key: &str| key == name || key == camel(name);
        members
            .into_iter()
            .find(|(key, _)| is(key))
            .map(|(_, item)| item)
    }

    /// What stands at the end of these names.
    pub(super) fn at(&self, names: &[&str]) -> Option<Item<'n>> {
        let mut names = names.iter();
        let first = self.get(names.next()?)?;
        names.try_fold(first, |item, name| item.get(name))
    }

    pub(super) fn members(&self) -> Vec<(&'n str, Item<'n>)> {
        let NodeValue::Mapping(entries) = &self.node.value else {
            return Vec::new();
        };
        let member = |entry: &'n crate::policy::Entry| {
            let key = match self.key.as_str() {
                "" => entry.key.clone(),
                key => format!("{key}.{}", entry.key),
            };
            let item = Item {
                file: Arc::clone(&self.file),
                node: &entry.node,
                key,
                line: entry.line,
            };
            (entry.key.as_str(), item)
        };
        entries.iter().map(member).collect()
    }

    pub(super) fn items(&self) -> Vec<Item<'n>> {
        let NodeValue::Sequence(items) = &self.node.value else {
            return Vec::new();
        };
        let item = |(index, node): (usize, &'n Node)| Item {
            file: Arc::clone(&self.file),
            node,
            key: format!("{}[{index}]", self.key),
            line: node.line,
        };
        items.iter().enumerate().map(item).collect()
    }

    pub(super) fn list(&self, name: &str) -> Vec<Item<'n>> {
        self.get(name).map(|it| it.items()).unwrap_or_default()
    }

    pub(super) fn text(&self) -> Option<&'n str> {
        match &self.node.value {
            NodeValue::String(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn text_of(&self, name: &str) -> Option<&'n str> {
        self.get(name).and_then(|it| it.text())
    }

    /// Whether a flag is set; `BoolValue` is a plain boolean in JSON.
    pub(super) fn is_true(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|it| it.node.value == NodeValue::Bool(true))
    }

    /// The name of an `Any`'s message, or of the one within a `TypedStruct`: what is behind the slash.
    pub(super) fn kind(&self) -> Option<&'n str> {
        let written = self.text_of("@type")?;
        let written = match written.ends_with("TypedStruct") {
            true => self.text_of("type_url").unwrap_or(written),
            false => written,
        };
        written.rsplit('/').next()
    }

    /// The message itself: of a `TypedStruct`, its value.
    pub(super) fn message(&self) -> Item<'n> {
        let wrapped = self
            .text_of("@type")
            .is_some_and(|it| it.ends_with("TypedStruct"));
        match self.get("value").filter(|_| wrapped) {
            Some(value) => value,
            None => self.clone(),
        }
    }
}

fn camel(name: &str) -> String {
    let mut parts = name.split('_');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let mut letters = part.chars();
        out.extend(letters.next().map(|c| c.to_ascii_uppercase()));
        out.push_str(letters.as_str());
    }
    out
}

/// The address of what has an `address` with a `socket_address`; `None` for pipes and internal listeners.
pub(super) fn socket_address(item: &Item<'_>) -> Option<String> {
    let socket = item.at(&["address", "socket_address"])?;
    socket.text_of("address").map(str::to_owned)
}

/// Whether only this machine reaches it.
pub(super) fn is_local(address: &str) -> bool {
    let parsed: Result<IpAddr, _> = address.parse();
    parsed.map_or(address == "localhost", |ip| ip.to_canonical().is_loopback())
}
