//! This program as the proxy: what is measured is built from the same source by the same command.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Under this name, a program of this crate is the proxy.
pub const PROXY: &str = "portcullis";

/// Whether it was started under that name.
pub fn is_proxy() -> bool {
    let name = std::env::args_os().next().map(PathBuf::from);
    name.is_some_and(|name| name.file_name().is_some_and(|name| name == PROXY))
}

/// A program under the proxy's name, in a folder `what` of `folder`: it may be this one, which goes by that.
///
/// # Errors
/// When there is no such program, or no link can be made.
pub fn named(folder: &TempDir, what: &str, program: &Path) -> Result<PathBuf> {
    let place = folder.path().join(what);
    std::fs::create_dir(&place)?;
    let link = place.join(PROXY);
    let program = program
        .canonicalize()
        .with_context(|| format!("cannot read {}", program.display()))?;
    std::os::unix::fs::symlink(program, &link).context("cannot name a program portcullis")?;
    Ok(link)
}
