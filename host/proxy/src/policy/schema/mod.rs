//! The policy file's JSON Schema (2020-12), for editors and for whoever writes policies by program.
//!
//! It says what structure can say: keys, types, choices, bounds of numbers, each control's own configuration under the `module` that names it. What needs
//! more than structure (files, names that refer to each other, addresses that overlap) is for [`Policy::load`](super::Policy::load). Whatever the
//! schema refuses, the reader refuses; a test holds the two to each other, key by key.

mod filters;
mod modules;
mod sections;
mod shapes;

use std::path::Path;

use serde_json::{Map, Value, json};

use super::node::Node;
use super::reader;
use modules::ModuleSchema;

impl super::Policy {
    /// The schema, with the configurations of all builtin controls. `file`, a policy, adds those of the modules that it names, where they carry a schema
    /// in their custom section `portcullis.schema`.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or is no YAML; the reason names it. What else is wrong with it does not matter here.
    pub fn json_schema(file: Option<&Path>) -> Result<Value, String> {
        let mut modules = modules::builtin();
        if let Some(file) = file {
            modules.extend(named_in(file)?);
        }
        Ok(assemble(modules))
    }
}

fn assemble(modules: Vec<ModuleSchema>) -> Value {
    let mut definitions = sections::definitions();
    let mut choices = Vec::new();
    for module in modules {
        let reference = module.define(&mut definitions);
        let mut then = Map::new();
        if let Some(reference) = reference {
            then.insert("configuration".into(), json!({"$ref": reference}));
        }
        if module.authenticates {
            then.insert("failure_policy".into(), json!({"const": "closed"}));
        }
        choices.push(json!({
            "if": {"required": ["module"], "properties": {"module": {"const": module.written}}},
            "then": {"properties": then},
        }));
    }
    if let Some(filter) = definitions.get_mut("filter").and_then(Value::as_object_mut) {
        filter.insert("allOf".into(), choices.into());
    }
    let mut schema = sections::policy();
    if let Some(schema) = schema.as_object_mut() {
        let dialect = "https://json-schema.org/draft/2020-12/schema";
        schema.insert("$schema".into(), dialect.into());
        schema.insert("$defs".into(), definitions.into());
    }
    schema
}

/// The schemas that the modules of a policy carry.
fn named_in(file: &Path) -> Result<Vec<ModuleSchema>, String> {
    let bytes = super::read_text(file)?;
    let text = String::from_utf8(bytes).map_err(|_| format!("{} is not UTF-8", file.display()))?;
    let tree = Node::parse(&text)
        .map_err(|(line, reason)| format!("{}:{line}: {reason}", file.display()))?;
    let absolute = std::path::absolute(file)
        .map_err(|error| format!("{}: {}", file.display(), reader::describe(&error)))?;
    let folder = absolute.parent().unwrap_or(Path::new("/"));
    let tree = tree.to_json();
    let of_listeners = tree.get("listeners").and_then(Value::as_array);
    let of_listeners = of_listeners
        .into_iter()
        .flatten()
        .filter_map(|listener| listener.pointer("/tcp/filters"));
    let lists = tree.get("filters").into_iter().chain(of_listeners);
    let written = lists
        .filter_map(Value::as_array)
        .flatten()
        .filter_map(|filter| filter.get("module")?.as_str());
    let mut modules: Vec<ModuleSchema> = Vec::new();
    for written in written {
        let is_new = modules.iter().all(|it| it.written != written);
        if is_new && written.starts_with(crate::oci::SCHEME) {
            modules.extend(modules::of_image(written));
        } else if is_new && !written.starts_with("builtin:") {
            modules.extend(modules::of_file(written, &folder.join(written)));
        }
    }
    Ok(modules)
}
