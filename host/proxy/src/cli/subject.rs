//! What `test` and `bench` run: a module, built first where it is not given, and its cases.

use std::path::{Path, PathBuf};

use super::output::note;
use crate::crate_build::{Crate, CrateError};

/// As the command line has it.
#[derive(Debug, clap::Args)]
pub(super) struct Subject {
    /// The folder with the control's Cargo.toml and cases.yaml
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,

    /// A module that is built already: nothing is built
    #[arg(long, value_name = "FILE.wasm", conflicts_with_all = ["features", "offline"])]
    module: Option<PathBuf>,

    /// The cases; cases.yaml in DIR if absent
    #[arg(long, value_name = "FILE")]
    cases: Option<PathBuf>,

    /// Only cases with this in their name
    #[arg(long, value_name = "SUBSTRING")]
    pub(super) case: Option<String>,

    /// Features of the crate to build with, separated by commas
    #[arg(long, value_name = "FEATURES", value_delimiter = ',')]
    features: Vec<String>,

    /// Ask no registry: the crates that it uses are there
    #[arg(long)]
    offline: bool,
}

impl Subject {
    /// The module and the cases; nothing where the control does not build, which has been said then.
    pub(super) fn find(&self) -> Option<(PathBuf, PathBuf)> {
        let module = match &self.module {
            Some(module) => module.clone(),
            None => {
                let built = Crate::open(&self.dir, self.offline)
                    .and_then(|control| control.build(&self.features, self.offline));
                match built {
                    Ok((path, _)) => path,
                    // Cargo has said why.
                    Err(CrateError::Cargo) => return None,
                    Err(error) => {
                        note(&format!("error: {error}"));
                        return None;
                    }
                }
            }
        };
        let cases = self.cases.clone().unwrap_or_else(|| beside(&self.dir));
        Some((from_here(module), cases))
    }
}

/// `cases.yaml` in a folder, without a `./` before it.
fn beside(folder: &Path) -> PathBuf {
    match folder == Path::new(".") {
        true => "cases.yaml".into(),
        false => folder.join("cases.yaml"),
    }
}

/// A path as one would type it, if it is below the working directory.
fn from_here(path: PathBuf) -> PathBuf {
    let here = std::env::current_dir().ok();
    let below = here.and_then(|here| path.strip_prefix(here).ok().map(Path::to_owned));
    below.unwrap_or(path)
}
