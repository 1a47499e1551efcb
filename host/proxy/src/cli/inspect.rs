//! `portcullis inspect`, which is also `portcullis plugins inspect`.

use std::process::ExitCode;
use std::sync::Arc;

use portcullis_module::Description;
use serde_json::{Value, json};

use super::description::{Lines, as_json};
use super::output::{Format, note, print};
use crate::canary;
use crate::module_cache::DiskCache;
use crate::policy::{ModuleSource, WasmModule};
use crate::serve;

/// Shows a module, and whether it links and starts here; exits with 1 if not
///
/// Works for any Proxy-Wasm module (ABI 0.1.0, 0.2.0, 0.2.1, 0.2.100), whatever it was built with. Its VM is made and its memory laid out; it is
/// not configured, for which it would need a policy (`portcullis check`).
///
/// A module made by `portcullis build` also says what it is: its phases, the keys of its configuration, and its capabilities, which can stand in
/// a filter's `allow.capabilities` as they are. The whole JSON Schema of the configuration comes with `--format json`, under `description.schema`.
///
/// Exit codes: 0 it links and starts; 1 it does not, or cannot be read; 2 wrong usage.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  portcullis inspect builtin:jwt-auth
  portcullis inspect target/portcullis/my-control.wasm
  portcullis inspect ./my-control.wasm --format json | jq .description.schema")]
pub(super) struct Inspect {
    /// A .wasm file, `builtin:NAME`, or `oci://HOST/REPOSITORY@sha256:…`
    #[arg(value_name = "FILE|builtin:NAME|oci://…")]
    module: String,

    /// How it is shown
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// What there is to know of a module.
struct Seen {
    file: WasmModule,
    description: Option<Description>,
    abi: Option<&'static str>,
    exports: Vec<String>,
    imports: Vec<String>,
    unserved: Vec<String>,
    links: bool,
    verdict: Result<(), String>,
}

impl Inspect {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let seen = Seen::of(&self.module)?;
        match self.format {
            Format::Text => print(seen.lines().text())?,
            Format::Json => print(&format!("{:#}\n", seen.json()))?,
        }
        match seen.verdict {
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(reason) => {
                note(&format!("error: {}: {reason}", seen.file.source));
                Ok(ExitCode::FAILURE)
            }
        }
    }
}

impl Seen {
    fn of(name: &str) -> anyhow::Result<Self> {
        let source = match ModuleSource::named(name) {
            Some(source) => source.map_err(anyhow::Error::msg)?,
            None => ModuleSource::File(name.into()),
        };
        let file = WasmModule::read(source).map_err(anyhow::Error::msg)?;
        let runtime = serve::runtime()?;
        let loaded = runtime.load(&file.bytes, &DiskCache::of_user());
        let mut seen = Self {
            description: None,
            abi: None,
            exports: Vec::new(),
            imports: Vec::new(),
            unserved: Vec::new(),
            links: false,
            verdict: Ok(()),
            file,
        };
        match loaded {
            Ok(module) => {
                seen.links = true;
                seen.abi = Some(module.abi_version().as_str());
                seen.exports = module.exports().to_vec();
                seen.imports = module.imports().to_vec();
                seen.unserved = module.unserved_imports().map(String::from).collect();
                seen.verdict = canary::instantiate(Arc::clone(&module), name);
            }
            Err(error) => seen.verdict = Err(format!("does not link: {error}")),
        }
        match Description::read(&seen.file.bytes) {
            Ok(description) => seen.description = description,
            // What else is wrong with it comes first.
            Err(error) => seen.verdict = seen.verdict.and(Err(error.to_string())),
        }
        Ok(seen)
    }

    fn lines(&self) -> Lines {
        let mut lines = Lines::default();
        lines.line("module", &self.file.source.to_string());
        if let Some(description) = &self.description {
            lines.description(description);
        }
        lines.line("size", &format!("{} bytes", self.file.bytes.len()));
        lines.line("sha256", &self.file.sha256);
        if let Some(abi) = self.abi {
            lines.line("abi", abi);
        }
        lines.list("exports", &self.exports);
        lines.list("imports", &self.imports);
        lines.list("unimplemented", &self.unserved);
        if self.links {
            lines.line("links", "yes");
        }
        if self.verdict.is_ok() {
            lines.line("instantiates", "yes");
        }
        lines
    }

    fn json(&self) -> Value {
        json!({
            "module": self.file.source.to_string(),
            "description": self.description.as_ref().map(as_json),
            "size_bytes": self.file.bytes.len(),
            "sha256": self.file.sha256,
            "abi": self.abi,
            "exports": self.exports,
            "imports": self.imports,
            "unimplemented": self.unserved,
            "links": self.links,
            "instantiates": self.verdict.is_ok(),
            "error": self.verdict.as_ref().err(),
        })
    }
}
