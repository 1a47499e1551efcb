//! A crate's example as a module: a control in Wasm as the linker leaves it, for Portcullis and for Envoy.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use portcullis_module::toolchain::{self, TARGET};
use portcullis_tests::build_folder::{build_folder, repository};

/// Builds it in the folder and with the flags of the controls' own modules, so that what they share is there already.
pub(crate) fn build(package: &str, example: &str) -> Result<PathBuf> {
    let folder = build_folder()?.join("modules");
    let output = toolchain::build(env!("CARGO").as_ref(), &repository())
        .current_dir(repository())
        .args(["--quiet", "--locked", "--profile", "module"])
        .args(["--package", package, "--example", example])
        .arg("--target-dir")
        .arg(&folder)
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!(
            "the example does not build: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let built = folder.join(TARGET).join("module/examples");
    Ok(built.join(format!("{example}.wasm")))
}
