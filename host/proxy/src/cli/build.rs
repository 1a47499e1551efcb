//! `portcullis build`.

use std::path::PathBuf;
use std::process::ExitCode;

use super::description::Lines;
use super::output::{note, print};
use crate::crate_build::{Crate, CrateError};

/// Builds a control's crate into a module that can ship
///
/// Runs cargo for wasm32-wasip1 (rustup adds the target if it is missing) with a profile that makes small modules first and fast ones second, cuts
/// what the control does not use, and writes into the module what it needs and the JSON Schema of its configuration. The result is
/// target/portcullis/NAME.wasm, for Portcullis, Envoy and any other Proxy-Wasm host; its description is printed.
///
/// What the compiler says goes to standard error as it is.
///
/// Exit codes: 0 built; 1 the crate is no control, or does not build; 2 wrong usage.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  portcullis build
  portcullis build --dir controls/body-gate --features module")]
pub(super) struct Build {
    /// The folder with the control's Cargo.toml
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,

    /// Features of the crate to build with, separated by commas
    #[arg(long, value_name = "FEATURES", value_delimiter = ',')]
    features: Vec<String>,

    /// Ask no registry: the crates that it uses are there
    #[arg(long)]
    offline: bool,
}

impl Build {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let built = Crate::open(&self.dir, self.offline)
            .and_then(|control| control.build(&self.features, self.offline));
        let (path, finished) = match built {
            Ok(built) => built,
            // Cargo has said why.
            Err(CrateError::Cargo) => return Ok(ExitCode::FAILURE),
            Err(error) => {
                note(&format!("error: {error}"));
                return Ok(ExitCode::FAILURE);
            }
        };
        let mut lines = Lines::default();
        lines.line("module", &path.display().to_string());
        lines.description(&finished.description);
        let schema = finished
            .bytes
            .len()
            .saturating_sub(finished.bytes_without_schema());
        lines.line(
            "size",
            &format!(
                "{} bytes, {schema} of them the schema",
                finished.bytes.len()
            ),
        );
        lines.list("exports", &finished.exports);
        print(lines.text())?;
        Ok(ExitCode::SUCCESS)
    }
}
