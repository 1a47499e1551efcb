//! What a module says of itself, in its custom sections.

use std::fmt::Write as _;

use walrus::{ExportItem, ImportKind, Module};
use wasmparser::{Parser, Payload};

use crate::error::ModuleError;

pub(crate) const SECTION: &str = "portcullis";
pub(crate) const SCHEMA_SECTION: &str = "portcullis.schema";

/// What a control's module says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Description {
    /// The control's name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it does, in one line; may be empty.
    pub summary: String,
    /// Whether it authenticates or authorises: then a policy may not let requests by while it is down.
    pub authenticates: bool,
    /// Whether it wants request bodies while it holds their headers (Envoy's `allow_on_headers_stop_iteration`).
    pub awaits_body: bool,
    /// The callbacks that the control implements, as hosts call them: `proxy_on_request_headers`.
    pub callbacks: Vec<String>,
    /// All that it needs of its host, sorted: hostcalls, WASI functions and callbacks, by the names that Envoy's
    /// `allowed_capabilities` and a policy's `allow.capabilities` take. Empty in a module that is not finished.
    pub capabilities: Vec<String>,
    /// The JSON Schema of its configuration, compact; `None` in a module that is not finished.
    pub schema: Option<String>,
}

impl Description {
    /// Reads what a module says of itself; `None` if it is no control of this SDK.
    ///
    /// # Errors
    ///
    /// Where it is no module, or its sections are broken.
    pub fn read(module: &[u8]) -> Result<Option<Self>, ModuleError> {
        let (mut section, mut schema) = (None, None);
        for payload in Parser::new(0).parse_all(module) {
            let payload = payload.map_err(|error| ModuleError::Malformed(error.to_string()))?;
            if let Payload::CustomSection(custom) = payload {
                match custom.name() {
                    SECTION => section = Some(text(custom.data())?),
                    SCHEMA_SECTION => schema = Some(text(custom.data())?),
                    _ => {}
                }
            }
        }
        let Some(section) = section else {
            return Ok(None);
        };
        let schema = match schema {
            Some(schema) if serde_json::from_str::<serde_json::Value>(&schema).is_err() => {
                return Err(ModuleError::Schema("it is no JSON".into()));
            }
            schema => schema,
        };
        Ok(Some(Self {
            schema,
            ..Self::parse(&section)?
        }))
    }

    /// Unknown keys are let be: they are a newer SDK's.
    fn parse(section: &str) -> Result<Self, ModuleError> {
        let bad = |reason: &str| ModuleError::Section(reason.into());
        let value = |key: &str| {
            section
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
        };
        let list = |key| {
            let names = value(key).unwrap_or_default().split(',');
            names
                .filter(|name| !name.is_empty())
                .map(String::from)
                .collect()
        };
        let flag = |key: &str| match value(key) {
            Some("1") => Ok(true),
            None | Some("0") => Ok(false),
            Some(_) => Err(bad(&format!("has an `{key}` that is neither 0 nor 1"))),
        };
        Ok(Self {
            name: value("name").ok_or_else(|| bad("has no name"))?.into(),
            version: value("version")
                .ok_or_else(|| bad("has no version"))?
                .into(),
            summary: value("summary").unwrap_or_default().into(),
            authenticates: flag("authenticates")?,
            awaits_body: flag("awaits_body")?,
            callbacks: list("callbacks"),
            capabilities: list("capabilities"),
            schema: None,
        })
    }

    /// The sections, name and content, that say all of it.
    pub(crate) fn sections(&self) -> Vec<(&'static str, Vec<u8>)> {
        let mut lines = String::new();
        for (key, value) in [
            ("name", self.name.as_str()),
            ("version", &self.version),
            ("summary", &self.summary),
            ("authenticates", if self.authenticates { "1" } else { "0" }),
            ("awaits_body", if self.awaits_body { "1" } else { "0" }),
            ("callbacks", &self.callbacks.join(",")),
            ("capabilities", &self.capabilities.join(",")),
        ] {
            let _ = writeln!(lines, "{key}={value}");
        }
        let mut sections = vec![(SECTION, lines.into_bytes())];
        if let Some(schema) = &self.schema {
            sections.push((SCHEMA_SECTION, schema.clone().into_bytes()));
        }
        sections
    }
}

/// The names of a module's exports, sorted.
pub(crate) fn exports(module: &[u8]) -> Result<Vec<String>, ModuleError> {
    let bad = |error: wasmparser::BinaryReaderError| ModuleError::Malformed(error.to_string());
    let mut names = Vec::new();
    for payload in Parser::new(0).parse_all(module) {
        if let Payload::ExportSection(section) = payload.map_err(bad)? {
            for export in section {
                names.push(export.map_err(bad)?.name.to_owned());
            }
        }
    }
    names.sort();
    Ok(names)
}

fn text(data: &[u8]) -> Result<String, ModuleError> {
    String::from_utf8(data.to_vec()).map_err(|_| ModuleError::Section("is not UTF-8".into()))
}

/// What a pruned module imports, and the callbacks that it exports. Allocation is no capability: every host calls it.
pub(crate) fn capabilities(module: &Module) -> Vec<String> {
    let imports = module.imports.iter();
    let imports = imports
        .filter(|import| matches!(import.kind, ImportKind::Function(_)))
        .map(|import| import.name.clone());
    let exports = module.exports.iter();
    let exports = exports
        .filter(|export| {
            matches!(export.item, ExportItem::Function(_))
                && export.name.starts_with("proxy_on_")
                && export.name != "proxy_on_memory_allocate"
        })
        .map(|export| export.name.clone());
    let mut capabilities: Vec<String> = imports.chain(exports).collect();
    capabilities.sort();
    capabilities.dedup();
    capabilities
}
