//! The probe as a module.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, anyhow, bail};
use portcullis_tests::build_folder::{build_folder, repository};

/// Builds `tests/guests/probe` with the compiler alone (it needs no crate), once a process, and returns the module's path.
pub(crate) fn module() -> Result<PathBuf> {
    static MODULE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = MODULE.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    built.clone().map_err(|reason| anyhow!(reason))
}

/// Whether the module is younger than all of its source.
fn is_newer(module: &Path) -> Result<bool> {
    let Ok(built) = fs::metadata(module).and_then(|module| module.modified()) else {
        return Ok(false);
    };
    for source in fs::read_dir(repository().join("tests/guests/probe"))? {
        if source?.metadata()?.modified()? >= built {
            return Ok(false);
        }
    }
    Ok(true)
}

fn build() -> Result<PathBuf> {
    let folder = build_folder()?.join("guests");
    fs::create_dir_all(&folder)?;
    let module = folder.join("probe.wasm");
    if is_newer(&module)? {
        return Ok(module);
    }
    // Two test processes at once must not read each other's half.
    let making = tempfile::tempdir_in(&folder)?;
    let made = making.path().join("probe.wasm");
    // The toolchain of the repository; its target was added when the controls were built.
    let output = Command::new("rustc")
        .current_dir(repository())
        .args(["--edition", "2024", "--target", "wasm32-wasip1"])
        .args(["--crate-type", "cdylib", "--crate-name", "probe"])
        .args(["-C", "opt-level=2", "-C", "strip=symbols", "-o"])
        .arg(&made)
        .arg("tests/guests/probe/lib.rs")
        .output()
        .context("cannot run rustc")?;
    if !output.status.success() {
        bail!(
            "rustc does not build the probe: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    fs::rename(&made, &module)?;
    Ok(module)
}
