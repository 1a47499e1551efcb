//! `portcullis plugins`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::json;

use super::inspect::Inspect;
use super::output::{Format, print, print_json};
use crate::digest::digest;

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
    Inspect(Inspect),
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
            Self::Inspect(command) => command.run(),
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
