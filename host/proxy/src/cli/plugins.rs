//! `portcullis plugins`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use serde_json::json;

use super::output::{Format, note, print, print_json};
use crate::canary;
use crate::module_cache::DiskCache;
use crate::policy::{ModuleSource, WasmModule, digest};
use crate::serve;

/// What to do with plugin modules.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Lists the builtin controls
    ///
    /// Exit codes: 0 listed; 2 wrong usage.
    List {
        /// How it is printed; JSON has the digests and sizes in bytes, too
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Shows a module, and whether it links and starts here; exits with 1 if not
    ///
    /// Works for any Proxy-Wasm module (ABI 0.1.0, 0.2.0, 0.2.1, 0.2.100), whatever it was built with. Its VM is made and its memory laid out; it is
    /// not configured, for which it would need a policy (`portcullis check`).
    ///
    /// Exit codes: 0 it links and starts; 1 it does not, or cannot be read; 2 wrong usage.
    #[command(
        after_help = "Examples:\n  portcullis plugins inspect builtin:jwt-auth\n  portcullis plugins inspect ./my-control.wasm"
    )]
    Inspect {
        /// A .wasm file, or `builtin:NAME`
        #[arg(value_name = "FILE|builtin:NAME")]
        module: String,
    },
    /// Writes every builtin module into a folder, for Envoy, Istio or another Proxy-Wasm host
    ///
    /// Exit codes: 0 written; 1 a file cannot be written; 2 wrong usage.
    Write {
        /// The folder; it is made if it is missing
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
}

impl Command {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::List { format } => list(format),
            Self::Inspect { module } => inspect(&module),
            Self::Write { folder } => write(&folder),
        }
    }
}

fn list(format: Format) -> anyhow::Result<ExitCode> {
    if format == Format::Json {
        let list = portcullis_plugins::all().iter().map(|builtin| {
            json!({
                "name": builtin.name,
                "module": format!("builtin:{}", builtin.name),
                "version": builtin.version,
                "summary": builtin.summary,
                "bytes": builtin.module.len(),
                "sha256": digest(builtin.module),
            })
        });
        print_json(&list.collect::<Vec<_>>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = String::new();
    for builtin in portcullis_plugins::all() {
        let kib = builtin.module.len().div_ceil(1024);
        let _ = writeln!(
            text,
            "{:<18} {:<8} {kib:>4} KiB  {}",
            builtin.name, builtin.version, builtin.summary
        );
    }
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn inspect(name: &str) -> anyhow::Result<ExitCode> {
    let source = match name.strip_prefix("builtin:") {
        Some(name) => ModuleSource::Builtin(name.to_owned()),
        None => ModuleSource::File(name.into()),
    };
    let file = WasmModule::read(source).map_err(anyhow::Error::msg)?;
    let runtime = serve::runtime()?;
    let loaded = runtime.load(&file.bytes, &DiskCache::of_user());
    let mut text = String::new();
    let mut line = |key: &str, value: &str| {
        let _ = writeln!(text, "{key:<14} {value}");
    };
    line("module", &file.source.to_string());
    if let Some(metadata) = loaded.as_ref().ok().and_then(|module| module.metadata()) {
        line("name", &metadata.name);
        line("version", &metadata.version);
        line(
            "authenticates",
            if metadata.authenticates { "yes" } else { "no" },
        );
    }
    line("size", &format!("{} bytes", file.bytes.len()));
    line("sha256", &file.sha256);
    let verdict = match &loaded {
        Ok(module) => {
            line("abi", module.abi_version().as_str());
            line("exports", &module.exports().join("\n               "));
            line("imports", &module.imports().join("\n               "));
            let unserved: Vec<_> = module.unserved_imports().collect();
            if !unserved.is_empty() {
                line("unimplemented", &unserved.join("\n               "));
            }
            line("links", "yes");
            canary::instantiate(Arc::clone(module), name)
        }
        Err(error) => Err(format!("does not link: {error}")),
    };
    if verdict.is_ok() {
        line("instantiates", "yes");
    }
    print(&text)?;
    match verdict {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(reason) => {
            note(&format!("error: {}: {reason}", file.source));
            Ok(ExitCode::FAILURE)
        }
    }
}

fn write(folder: &std::path::Path) -> anyhow::Result<ExitCode> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut text = String::new();
    for builtin in portcullis_plugins::all() {
        let path = folder.join(format!("{}.wasm", builtin.name));
        std::fs::write(&path, builtin.module)
            .with_context(|| format!("cannot write {}", path.display()))?;
        let _ = writeln!(text, "{}", path.display());
    }
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}
