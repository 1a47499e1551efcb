//! The nested cargo that builds controls for [`TARGET`].
//!
//! It may run under another cargo (a build script, `cargo test`, `cargo clippy`), whose environment would mislead it:
//! it would run clippy, say. So it starts from an environment without any of that.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What controls are built for: every Proxy-Wasm host runs it.
pub const TARGET: &str = "wasm32-wasip1";

/// Why the toolchain cannot build controls.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ToolchainError {
    /// The compiler does not run.
    #[error("cannot run {0}: {1}; Rust comes with https://rustup.rs")]
    Missing(String, std::io::Error),
    /// It lacks the target, and rustup cannot add it.
    #[error("this toolchain lacks {TARGET} ({sysroot}), and `{tried}` failed: {reason}")]
    NoTarget {
        /// The toolchain's folder.
        sysroot: PathBuf,
        /// The command that would have added it.
        tried: String,
        /// What came of it.
        reason: String,
    },
}

/// Whether what rustup says is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// On standard error, while it works.
    Shown,
    /// Only in the error, if it fails.
    Kept,
}

/// `cargo build` for [`TARGET`], in a clean environment. `sources` is the workspace's folder: no path of this
/// machine stays in the messages of panics, so the modules come out the same everywhere.
pub fn build(cargo: &OsStr, sources: &Path) -> Command {
    let mut command = Command::new(cargo);
    command.args(["build", "--target", TARGET]);
    for (name, _) in env::vars_os() {
        if name.to_str().is_none_or(is_of_an_outer_build) {
            command.env_remove(name);
        }
    }
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    let mut flags = vec![remap(sources, "portcullis")];
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home =
        cargo_home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    flags.extend(cargo_home.map(|home| remap(&home, "cargo")));
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    command
}

/// Whether a variable belongs to a cargo that runs this program, and would mislead the nested one.
fn is_of_an_outer_build(name: &str) -> bool {
    const KEPT: [&str; 3] = ["CARGO_HOME", "CARGO_MAKEFLAGS", "CARGO_TERM_COLOR"];
    const PREFIXES_KEPT: [&str; 4] = [
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTRIES_",
        "CARGO_REGISTRY_",
    ];
    const OURS: [&str; 9] = [
        "DEBUG",
        "HOST",
        "NUM_JOBS",
        "OPT_LEVEL",
        "OUT_DIR",
        "PROFILE",
        "RUSTDOC",
        "RUSTFLAGS",
        "TARGET",
    ];
    let of_cargo = name == "CARGO" || name.starts_with("CARGO_");
    let kept = KEPT.contains(&name) || PREFIXES_KEPT.iter().any(|prefix| name.starts_with(prefix));
    let of_compiler =
        name.starts_with("RUSTC") || name.starts_with("CLIPPY_") || OURS.contains(&name);
    (of_cargo && !kept) || of_compiler
}

/// Makes sure that the compiler which is used in `folder` has the standard library of [`TARGET`]; rustup can add it.
///
/// # Errors
///
/// Where there is no compiler, or the target is missing and rustup cannot add it.
pub fn add_target(rustc: &OsStr, folder: &Path, progress: Progress) -> Result<(), ToolchainError> {
    let asked = Command::new(rustc)
        .args(["--print", "sysroot"])
        .current_dir(folder)
        .output()
        .map_err(|error| ToolchainError::Missing(rustc.display().to_string(), error))?;
    let sysroot = PathBuf::from(String::from_utf8_lossy(&asked.stdout).trim());
    let library = sysroot.join("lib/rustlib").join(TARGET).join("lib");
    if library.is_dir() {
        return Ok(());
    }
    let mut words = vec!["target".to_owned(), "add".to_owned(), TARGET.to_owned()];
    // The active toolchain, which rustup's proxy names in the environment, is the one that lacks the target.
    if let Ok(toolchain) = env::var("RUSTUP_TOOLCHAIN") {
        words.extend(["--toolchain".to_owned(), toolchain]);
    }
    let mut rustup = Command::new("rustup");
    rustup.args(&words).current_dir(folder);
    let failed = match progress {
        Progress::Shown => rustup
            .status()
            .map(|status| (!status.success()).then(|| format!("it ended with {status}"))),
        Progress::Kept => rustup.output().map(|output| {
            (!output.status.success())
                .then(|| String::from_utf8_lossy(&output.stderr).trim().to_owned())
        }),
    };
    let reason = match failed {
        Ok(None) => return Ok(()),
        Ok(Some(reason)) => reason,
        Err(error) => error.to_string(),
    };
    Err(ToolchainError::NoTarget {
        sysroot,
        tried: format!("rustup {}", words.join(" ")),
        reason,
    })
}

#[cfg(test)]
mod tests {
    use super::is_of_an_outer_build;

    #[test]
    fn what_an_outer_cargo_says_goes_and_what_the_user_says_stays() {
        for gone in [
            "CARGO",
            "CARGO_MANIFEST_DIR",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_TARGET_DIR",
            "CLIPPY_ARGS",
            "OUT_DIR",
            "RUSTC",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTFLAGS",
            "TARGET",
        ] {
            assert!(is_of_an_outer_build(gone), "{gone}");
        }
        for kept in [
            "CARGO_HOME",
            "CARGO_NET_OFFLINE",
            "CARGO_REGISTRIES_OWN_INDEX",
            "CARGO_TERM_COLOR",
            "HOME",
            "PATH",
            "RUSTUP_TOOLCHAIN",
        ] {
            assert!(!is_of_an_outer_build(kept), "{kept}");
        }
    }
}
