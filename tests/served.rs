//! The real program as a child: `portcullis serve` with a policy on free ports, and its other commands.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use portcullis_tests::build_folder::build_folder;
use portcullis_tests::child::{Process, until};
use portcullis_tests::client::Route;
use portcullis_tests::free_port::free_address;
use portcullis_tests::http1::{Answer, Request};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Compiling the largest module on a busy machine.
const READY_BOUND: Duration = Duration::from_secs(60);

/// The program: `host/proxy/src/main.rs` as cargo builds it for this crate, so that it is never stale.
const PROGRAM: &str = env!("CARGO_BIN_EXE_portcullis-cli");

/// Where compiled modules are kept from run to run.
pub(crate) fn module_cache() -> Result<PathBuf> {
    Ok(build_folder()?.join("tests-cache/portcullis"))
}

/// The program with a module cache in the build folder and nothing of the caller's that would change what it does.
pub(crate) fn command() -> Result<Command> {
    let mut command = Command::new(PROGRAM);
    command
        .env("XDG_CACHE_HOME", build_folder()?.join("tests-cache"))
        .env("RUST_BACKTRACE", "0")
        .env_remove("RUST_LOG");
    Ok(command)
}

/// Runs one of its commands to the end.
pub(crate) fn run(arguments: &[&str]) -> Result<Output> {
    command()?
        .args(arguments)
        .output()
        .with_context(|| format!("cannot run {PROGRAM}"))
}

/// Runs `export envoy` and returns the path of `envoy.yaml`.
pub(crate) fn export(policy: &Path, out: &Path) -> Result<PathBuf> {
    let output = run(&[
        "export",
        "envoy",
        &policy.display().to_string(),
        "--out",
        &out.display().to_string(),
    ])?;
    if !output.status.success() {
        bail!(
            "export envoy failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(out.join("envoy.yaml"))
}

/// A running `portcullis serve`; killed on drop.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) process: Process,
    admin: SocketAddr,
    folder: TempDir,
}

impl Served {
    /// Starts it with `policy`, to which an `admin` is added, and waits until it is ready.
    pub(crate) fn start(policy: &Value) -> Result<Self> {
        Self::start_with(policy, &[])
    }

    /// The same with more arguments.
    pub(crate) fn start_with(policy: &Value, arguments: &[&str]) -> Result<Self> {
        Self::start_as(policy, |command| {
            command.args(arguments);
        })
    }

    /// The same with whatever else its command says.
    pub(crate) fn start_as(policy: &Value, prepare: impl FnOnce(&mut Command)) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let admin = free_address()?;
        write(&folder, admin, policy)?;
        let mut command = command()?;
        command.arg("serve").arg(folder.path().join("policy.yaml"));
        prepare(&mut command);
        let mut process = Process::start(&mut command, &folder.path().join("log"))?;
        until(READY_BOUND, "portcullis to serve", || {
            if let Some(status) = process.ended()? {
                bail!("portcullis ended ({status})");
            }
            Ok(ask(admin, "/ready").is_ok_and(|answer| answer.status == 200))
        })
        .with_context(|| format!("its last words:\n{}", process.last_words()))?;
        Ok(Self {
            process,
            admin,
            folder,
        })
    }

    /// Puts another policy into the file, whole at once.
    pub(crate) fn write(&self, policy: &Value) -> Result<()> {
        write(&self.folder, self.admin, policy)
    }

    /// The policy file.
    pub(crate) fn policy(&self) -> PathBuf {
        self.folder.path().join("policy.yaml")
    }

    /// Gets `path` from the admin interface.
    pub(crate) fn admin(&self, path: &str) -> Result<Answer> {
        ask(self.admin, path)
    }

    /// The sum of all samples of the metrics whose line holds every one of `parts`.
    pub(crate) fn metric(&self, parts: &[&str]) -> Result<f64> {
        let text = self.admin("/metrics")?.text();
        Ok(text
            .lines()
            .filter(|line| !line.starts_with('#') && parts.iter().all(|part| line.contains(part)))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum())
    }
}

fn write(folder: &TempDir, admin: SocketAddr, policy: &Value) -> Result<()> {
    let mut policy = policy.clone();
    if let Some(keys) = policy.as_object_mut() {
        keys.insert("admin".into(), json!({"address": admin.to_string()}));
    }
    let beside = folder.path().join("policy.new");
    fs::write(&beside, serde_json::to_string_pretty(&policy)?)?;
    Ok(fs::rename(beside, folder.path().join("policy.yaml"))?)
}

/// Asks an admin interface, under the name that it listens by: it answers to no other.
pub(crate) fn ask(admin: SocketAddr, path: &str) -> Result<Answer> {
    let mut request = Request::get(path);
    request.authority = admin.to_string().into_bytes();
    Route::plain(admin).send(&request)
}
