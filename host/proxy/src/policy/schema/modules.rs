//! The schemas of plugins' own configurations: of builtin controls, and of modules that carry one.

use std::path::Path;

use portcullis_runtime::Module;
use serde_json::{Map, Value};

use super::super::limits::MODULE_BYTES_MAX;
use super::super::module::{ModuleSource, WasmModule};
use super::super::reader;

/// The custom section that holds a module's schema, as JSON.
const SECTION: &str = "portcullis.schema";

/// What a module says of itself.
pub(super) struct ModuleSchema {
    /// As the policy names it.
    pub(super) written: String,
    /// Its definitions begin with this.
    name: String,
    /// Of its configuration.
    schema: Option<Value>,
    /// Whether it may fail open.
    pub(super) authenticates: bool,
}

/// Of every builtin control.
pub(super) fn builtin() -> Vec<ModuleSchema> {
    let all = portcullis_plugins::all()
        .iter()
        .map(|control| ModuleSchema {
            written: format!("builtin:{}", control.name),
            name: control.name.to_owned(),
            schema: section(control.module),
            authenticates: authenticates(control.module),
        });
    all.collect()
}

/// Of a module's file, where it can be read; what is wrong with it is for `check` to say.
pub(super) fn of_file(written: &str, path: &Path) -> Option<ModuleSchema> {
    let bytes = reader::read_file(path, MODULE_BYTES_MAX).ok()?;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    Some(ModuleSchema {
        written: written.to_owned(),
        name: format!("module.{stem}"),
        schema: section(&bytes),
        authenticates: authenticates(&bytes),
    })
}

/// Of an image that is pulled; see [`of_file`].
pub(super) fn of_image(written: &str) -> Option<ModuleSchema> {
    let source = ModuleSource::named(written)?.ok()?;
    let module = WasmModule::read(source).ok()?;
    Some(ModuleSchema {
        written: written.to_owned(),
        name: format!("module.{}", module.control.as_deref().unwrap_or("image")),
        schema: section(&module.bytes),
        authenticates: module.authenticates,
    })
}

fn authenticates(wasm: &[u8]) -> bool {
    let metadata = Module::metadata_of(wasm).ok().flatten();
    metadata.is_some_and(|it| it.authenticates)
}

fn section(wasm: &[u8]) -> Option<Value> {
    let text = Module::custom_section(wasm, SECTION)?;
    let schema: Value = serde_json::from_slice(text).ok()?;
    schema.is_object().then_some(schema)
}

impl ModuleSchema {
    /// Puts its schema and the schema's own definitions among the policy's, under its name. Gives the reference to it.
    pub(super) fn define(&self, definitions: &mut Map<String, Value>) -> Option<String> {
        let mut schema = self.schema.clone()?;
        let name = (1..)
            .map(|number| match number {
                1 => self.name.clone(),
                _ => format!("{}-{number}", self.name),
            })
            .find(|name| !definitions.contains_key(name))?;
        move_references(&mut schema, &name);
        let own = schema.as_object_mut()?;
        own.remove("$schema");
        let definitions_of_its_own = own.remove("$defs");
        if let Some(Value::Object(all)) = definitions_of_its_own {
            let all = all.into_iter();
            definitions.extend(all.map(|(key, value)| (format!("{name}.{key}"), value)));
        }
        let reference = format!("#/$defs/{name}");
        definitions.insert(name, schema);
        Some(reference)
    }
}

/// References within a schema that becomes a definition itself.
fn move_references(value: &mut Value, name: &str) {
    match value {
        Value::Object(members) => {
            if let Some(Value::String(reference)) = members.get_mut("$ref") {
                if let Some(inner) = reference.strip_prefix("#/$defs/") {
                    *reference = format!("#/$defs/{name}.{inner}");
                } else if reference == "#" {
                    *reference = format!("#/$defs/{name}");
                }
            }
            members
                .values_mut()
                .for_each(|member| move_references(member, name));
        }
        Value::Array(items) => items
            .iter_mut()
            .for_each(|item| move_references(item, name)),
        _ => {}
    }
}
