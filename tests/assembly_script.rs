//! The AssemblyScript compiler, as npm carries it, and the guest that it builds.
//!
//! `PORTCULLIS_NODE=none` leaves it out, as `PORTCULLIS_GO=none` does Go.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::build_folder::{build_folder, installed_from_npm, repository, run};

/// The version of AssemblyScript.
pub const VERSION: &str = "0.28.20";

/// Why AssemblyScript is left out, if the person who runs the tests said so.
#[must_use]
pub fn left_out() -> Option<&'static str> {
    (std::env::var_os("PORTCULLIS_NODE")? == "none").then_some("PORTCULLIS_NODE=none")
}

/// Builds `tests/guests/assemblyscript` and returns the module's path.
///
/// # Errors
/// When the compiler cannot be installed, Node.js cannot be run, or the guest is not built: the tools' words are in the error.
pub fn guest() -> Result<PathBuf> {
    let compiler = installed_from_npm(
        "assemblyscript",
        VERSION,
        "node_modules/assemblyscript/bin/asc.js",
    )
    .context("this test builds a guest with AssemblyScript; PORTCULLIS_NODE=none leaves it out and says what was not run")?;
    let module = build_folder()?.join("assemblyscript-guest.wasm");
    run(Command::new("node")
        .current_dir(repository().join("tests/guests/assemblyscript"))
        .arg(compiler)
        .args(["guest.ts", "-O", "--noAssert", "--runtime", "minimal"])
        .args(["--use", "abort=guest/abortByExit", "--outFile"])
        .arg(&module))?;
    Ok(module)
}
