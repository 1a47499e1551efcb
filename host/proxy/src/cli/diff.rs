//! `portcullis diff`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::output::{Format, note, print, print_json};
use crate::comparison::Comparison;
use crate::policy::Policy;

/// Compares two policies by what they mean, and says what a reload would do
///
/// Prints listeners, clusters, filters and routes that came (+), went (-) or changed (~), with every value that differs, defaults included, and what a
/// reload from the old policy to the new one does about it. Layout, comments and the order of listeners, clusters and routes make no difference; the order of
/// filters does, and so do the bytes of modules and certificates behind the same names. Values of secrets are compared and not shown.
///
/// Both policies must be right, since what they mean is compared: the files that they name are read.
///
/// Exit codes, as those of diff(1): 0 they mean the same; 1 they differ; 2 one of them does not work, or wrong usage.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  portcullis diff running.yaml next.yaml
  git show HEAD:policy.yaml > old.yaml; portcullis diff old.yaml policy.yaml --format json")]
pub(super) struct Diff {
    /// The policy to start from
    #[arg(value_name = "OLD")]
    old: PathBuf,

    /// The policy to come to
    #[arg(value_name = "NEW")]
    new: PathBuf,

    /// How it is printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

impl Diff {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let (old, new) = match (load(&self.old), load(&self.new)) {
            (Some(old), Some(new)) => (old, new),
            _ => return Ok(ExitCode::from(2)),
        };
        let comparison = Comparison::of(&old, &new);
        match self.format {
            Format::Text => print(&comparison.to_string())?,
            Format::Json => print_json(&comparison)?,
        }
        Ok(if comparison.differences.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

fn load(file: &Path) -> Option<Policy> {
    let loaded = Policy::load(file);
    loaded.map_err(|errors| note(&errors.to_string())).ok()
}
