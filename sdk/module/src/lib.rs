//! From a control as the compiler links it to the module that ships: [`finish`].
//!
//! 1. Callbacks that the control does not use are cut, since hosts call what is exported (in Envoy 8 µs of CPU a
//!    request instead of 19); panics become a bare trap; what nothing reaches any more goes.
//! 2. What it needs of its host is read from its imports and exports, and written into it: see [`Description`].
//!
//! 3. The JSON Schema of its configuration is written into it. A twin of the module makes it: the same crate, linked with the
//!    SDK's feature `schema`, run once. What makes it would be a quarter of a module that ships, and a linker leaves most
//!    of it in where an export is cut afterwards.
//!
//! The build script of the built-in controls and `portcullis build` both go this way. [`toolchain`] is the nested
//! cargo that comes before it. Nothing here needs the SDK: the two meet at the sections and names below.
//!
//! | section of the module | what it is |
//! |---|---|
//! | `portcullis` | UTF-8 lines `key=value`: `name`, `version`, `summary`, `authenticates`, `awaits_body`, `callbacks` by the SDK, `capabilities` added here |
//! | `portcullis.schema` | the JSON Schema of the configuration, compact |

mod description;
mod error;
mod limits;
mod pruning;
mod schema;
pub mod toolchain;

use walrus::{ModuleConfig, RawCustomSection};

pub use crate::description::Description;
pub use crate::error::ModuleError;

/// A module that can ship.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// The module.
    pub bytes: Vec<u8>,
    /// What it says of itself.
    pub description: Description,
    /// Its exports, sorted.
    pub exports: Vec<String>,
}

impl Finished {
    /// A module that was finished before.
    ///
    /// # Errors
    ///
    /// Where it is no module, no control, or its sections are broken.
    pub fn read(bytes: Vec<u8>) -> Result<Self, ModuleError> {
        let description = Description::read(&bytes)?.ok_or(ModuleError::NotExported)?;
        let exports = description::exports(&bytes)?;
        Ok(Self {
            bytes,
            description,
            exports,
        })
    }

    /// Its size without the schema, which hosts skip.
    pub fn bytes_without_schema(&self) -> usize {
        let schema = self.description.schema.as_ref().map_or(0, String::len);
        self.bytes.len().saturating_sub(schema)
    }
}

/// Whether the names of functions stay in the module: profilers want them, and hosts name them in traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// They stay.
    Kept,
    /// They go, as in what ships.
    Dropped,
}

/// Makes a linked control ready to ship. `twin` is the same control linked with the SDK's feature `schema`.
///
/// It must have its names (`strip = "debuginfo"` or less in the profile): what is cut is found by them.
///
/// # Errors
///
/// Where it is no module, no control, prints, lacks its names, or has a schema that cannot be made.
pub fn finish(linked: &[u8], twin: &[u8], names: Names) -> Result<Finished, ModuleError> {
    let mut description = Description::read(linked)?.ok_or(ModuleError::NotExported)?;
    description.schema = schema::generate(twin)?;

    let mut config = ModuleConfig::new();
    config
        .generate_name_section(names == Names::Kept)
        .generate_producers_section(false);
    let mut module = config
        .parse(linked)
        .map_err(|error| ModuleError::Malformed(format!("{error:#}")))?;
    pruning::prune(&mut module, &description.callbacks)?;
    seal(module, description)
}

/// The same module for a configuration that needs only some of its callbacks: hosts do not call what is not exported.
///
/// # Errors
///
/// Where it is no module that was finished.
pub fn narrow(finished: &[u8], callbacks: &[String]) -> Result<Finished, ModuleError> {
    let mut description = Description::read(finished)?.ok_or(ModuleError::NotExported)?;
    description
        .callbacks
        .retain(|callback| callbacks.contains(callback));
    let mut config = ModuleConfig::new();
    config.generate_producers_section(false);
    let mut module = config
        .parse(finished)
        .map_err(|error| ModuleError::Malformed(format!("{error:#}")))?;
    pruning::narrow(&mut module, &description.callbacks);
    seal(module, description)
}

/// Writes into a module what it says of itself.
fn seal(mut module: walrus::Module, mut description: Description) -> Result<Finished, ModuleError> {
    description.capabilities = description::capabilities(&module);
    module.customs.remove_raw(description::SECTION);
    module.customs.remove_raw(description::SCHEMA_SECTION);
    for (name, data) in description.sections() {
        module.customs.add(RawCustomSection {
            name: name.into(),
            data,
        });
    }
    // Read back, so that what is said of it is what hosts will read.
    Finished::read(module.emit_wasm())
}

#[cfg(test)]
mod tests;
