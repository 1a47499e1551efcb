//! `portcullis new`.

use std::path::PathBuf;
use std::process::ExitCode;

use super::output::{note, print};
use crate::template::{self, Name, Sdk, SdkError};

/// Makes the crate of a new control
///
/// Writes a control that works, its contract, its cases, tests that run them natively, a property test, a fuzz target, and the SDK's source of
/// this version, into a folder. Nothing is downloaded; `cargo test` there fetches the few crates that the SDK uses.
///
/// Everything is written or nothing: a folder that exists must be empty.
///
/// Exit codes: 0 made; 1 the folder is not empty or cannot be written; 2 wrong usage.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  portcullis new body-gate && cd body-gate && cargo test && portcullis test
  portcullis new body-gate --dir controls/body-gate --sdk ../portcullis/sdk")]
pub(super) struct New {
    /// The control's name: lower-case letters, digits and -, as in body-gate
    #[arg(value_name = "NAME")]
    name: Name,

    /// The folder to make; ./NAME if absent
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// The SDK to use: a version in the registry, or a folder that it stands in; if absent, its source is written to vendor/portcullis-sdk
    #[arg(long, value_name = "VERSION|PATH", value_parser = named)]
    sdk: Option<Sdk>,
}

/// A value parser of clap's takes a function, no method with a reference to `str` of its own.
fn named(text: &str) -> Result<Sdk, SdkError> {
    Sdk::named(text)
}

impl New {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let name = &self.name;
        let folder = self.dir.unwrap_or_else(|| name.package().into());
        let sdk = self.sdk.unwrap_or(Sdk::Carried);
        if let Err(error) = template::write(name, &sdk, &folder) {
            note(&format!("error: {error}"));
            return Ok(ExitCode::FAILURE);
        }
        let folder = folder.display();
        print(&format!(
            "made {folder}: begin with src/lib.rs and cases.yaml\n\n  \
             cd {folder}\n  cargo test          # its cases, natively\n  portcullis test     # the same in Wasm\n  \
             portcullis bench    # what a request pays for it\n  portcullis build    # target/portcullis/{}.wasm\n",
            name.package()
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}
