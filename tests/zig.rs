//! The Zig compiler, as PyPI carries it, and the guests that it builds: Zig, C and C++.
//!
//! `PORTCULLIS_ZIG=none` leaves it out, as `PORTCULLIS_GO=none` does Go.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::build_folder::{build_folder, installed, repository, run};

/// The version of Zig.
pub const VERSION: &str = "0.17.1";

/// Why Zig is left out, if the person who runs the tests said so.
#[must_use]
pub fn left_out() -> Option<&'static str> {
    (std::env::var_os("PORTCULLIS_ZIG")? == "none").then_some("PORTCULLIS_ZIG=none")
}

/// Builds `tests/guests/zig` and returns the module's path.
///
/// # Errors
/// When Zig cannot be installed or does not build the guest: its words are in the error.
pub fn zig_guest() -> Result<PathBuf> {
    build(
        "zig/guest.zig",
        &["build-exe", "-O", "ReleaseSmall", "-fno-entry", "-rdynamic"],
        |module| format!("-femit-bin={module}"),
    )
}

/// Builds `tests/guests/c` against wasi-libc, likewise. The first time compiles that library, half a minute.
///
/// # Errors
/// As [`zig_guest`].
pub fn c_guest() -> Result<PathBuf> {
    build("c/guest.c", &["cc", "-Oz", "-s"], |module| {
        format!("-o{module}")
    })
}

/// Builds `tests/guests/cpp`, likewise.
///
/// # Errors
/// As [`zig_guest`].
pub fn cpp_guest() -> Result<PathBuf> {
    let arguments = [
        "c++",
        "-Oz",
        "-s",
        "-std=c++20",
        "-fno-exceptions",
        "-fno-rtti",
        "-nostdlib++",
    ];
    build("cpp/guest.cc", &arguments, |module| format!("-o{module}"))
}

fn build(source: &str, arguments: &[&str], output: impl Fn(&str) -> String) -> Result<PathBuf> {
    let zig = installed("ziglang", VERSION, "ziglang/zig").context(
        "this test builds a guest with Zig; PORTCULLIS_ZIG=none leaves it out and says what was not run",
    )?;
    let folder = build_folder()?;
    let cache = folder.join("zig-cache");
    let name = source.split('/').next().unwrap_or_default();
    let module = folder.join(format!("{name}-guest.wasm"));
    run(Command::new(zig)
        .current_dir(repository().join("tests/guests"))
        .env("ZIG_LOCAL_CACHE_DIR", &cache)
        .env("ZIG_GLOBAL_CACHE_DIR", &cache)
        .args(arguments)
        .args(["-target", "wasm32-wasi", "-mexec-model=reactor"])
        .arg(output(&module.display().to_string()))
        .arg(source))?;
    Ok(module)
}
