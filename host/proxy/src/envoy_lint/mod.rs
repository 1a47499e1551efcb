//! The lints of policies on an Envoy configuration: a bootstrap, in YAML or JSON, or what `/config_dump` of its admin interface gives.
//!
//! It goes by shapes (`@type`, and the fields of envoy/config/**.proto), so that it finds listeners and filters wherever a bootstrap or a dump has them. Field
//! names count in snake_case and lowerCamelCase, as protobuf's JSON has both. What comes by xDS alone and is not in the file cannot be looked at.

mod connection;
mod routes;
mod tree;
mod wasm;

use std::path::Path;
use std::sync::Arc;

use crate::policy::{Lint, Node, NodeValue, Place, PolicyErrors, Warning};
use tree::Item;

/// A dump of a large mesh has some tens of megabytes.
const BYTES_MAX: u64 = 64 << 20;
const NODES_MAX: usize = 4_000_000;

/// Everything risky in an Envoy configuration, in the file's order.
///
/// # Errors
///
/// The file cannot be read, is neither YAML nor JSON, or nothing of Envoy's is in it.
pub(crate) fn check(path: &Path) -> Result<Vec<Warning>, PolicyErrors> {
    let file: Arc<Path> = path.into();
    let place = |line: u64| Place {
        file: Arc::clone(&file),
        line,
        key: "envoy".into(),
    };
    let bytes =
        crate::policy::read_bytes(path, BYTES_MAX).map_err(|reason| place(1).problem(reason))?;
    let text = String::from_utf8(bytes).map_err(|_| place(1).problem("not UTF-8"))?;
    let root = read(&text).map_err(|(line, reason)| place(line).problem(reason))?;
    check_tree(&file, &root).ok_or_else(|| {
        let reason = "neither an Envoy bootstrap (`static_resources`, `dynamic_resources`, `admin`) nor a config dump (`configs`)";
        place(1).problem(reason).into()
    })
}

/// JSON is YAML but for odd escapes; read as JSON it has no lines.
fn read(text: &str) -> Result<Node, (u64, String)> {
    let bytes_max = usize::try_from(BYTES_MAX).unwrap_or(usize::MAX);
    Node::parse_within(text, NODES_MAX, bytes_max).or_else(|fault| {
        let json: Result<serde_json::Value, _> = serde_json::from_str(text);
        json.map(|json| Node::of_json(&json, 1)).map_err(|_| fault)
    })
}

fn check_tree(file: &Arc<Path>, root: &Node) -> Option<Vec<Warning>> {
    let root = Item::root(file, root);
    let known = [
        &["static_resources"][..],
        &["dynamic_resources"],
        &["configs"],
        &["http_filters"],
        // A policy has an `admin`, too, whose address is text.
        &["admin", "address", "socket_address"],
    ];
    if !known.iter().any(|keys| root.at(keys).is_some()) {
        return None;
    }
    let mut audit = Audit {
        dumped_routes: routes::dumped(&root),
        dumps_listeners: dumps_listeners(&root),
        found: Vec::new(),
    };
    audit.walk(&root);
    let mut found = audit.found;
    found.sort_by_key(|warning| warning.problem.place.line);
    found.dedup();
    Some(found)
}

fn dumps_listeners(root: &Item<'_>) -> bool {
    let configs = root.get("configs").map(|it| it.items()).unwrap_or_default();
    configs.iter().any(|it| {
        it.kind()
            .is_some_and(|kind| kind.ends_with("ListenersConfigDump"))
    })
}

/// What is known on the way, and what has been found.
struct Audit<'n> {
    /// By name: route configurations that connection managers refer to.
    dumped_routes: Vec<(String, Item<'n>)>,
    /// A dump has listeners twice, in the bootstrap and by themselves.
    dumps_listeners: bool,
    found: Vec<Warning>,
}

impl<'n> Audit<'n> {
    fn warn(&mut self, lint: Lint, at: &Item<'_>, reason: impl Into<String>) {
        let problem = at.place().problem(reason);
        self.found.push(Warning::new(lint, problem));
    }

    fn walk(&mut self, item: &Item<'n>) {
        match &item.node().value {
            NodeValue::Sequence(_) => {
                for item in item.items() {
                    self.walk(&item);
                }
            }
            NodeValue::Mapping(_) => {
                self.look(item);
                let in_bootstrap = self.dumps_listeners && item.ends_with("static_resources");
                for (name, member) in item.members() {
                    if name == "admin" {
                        self.look_at_admin(&member);
                    }
                    if !(in_bootstrap && name == "listeners") {
                        self.walk(&member);
                    }
                }
            }
            _ => {}
        }
    }

    fn look(&mut self, item: &Item<'n>) {
        if item.get("filter_chains").is_some() || item.get("default_filter_chain").is_some() {
            self.look_at_listener(item);
        }
        let Some(kind) = item.kind() else { return };
        let message = item.message();
        match kind.rsplit('.').next().unwrap_or_default() {
            "HttpConnectionManager" => self.look_at_http(&message),
            "DownstreamTlsContext" => self.look_at_tls(&message),
            "Wasm" => self.look_at_wasm(&message),
            "ExtAuthz" if message.is_true("failure_mode_allow") => {
                let reason = "failure_mode_allow: requests pass unchecked while the authorization service is down";
                self.warn(Lint::FailOpen, &message, reason);
            }
            _ => {}
        }
    }

    fn look_at_admin(&mut self, admin: &Item<'_>) {
        let Some(address) = tree::socket_address(admin) else {
            return;
        };
        if !tree::is_local(&address) {
            let reason =
                format!("admin on {address}: whoever reaches it reads secrets and stops the proxy");
            self.warn(Lint::AdminExposed, admin, reason);
        }
    }
}

#[cfg(test)]
mod tests;
