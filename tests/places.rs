//! One policy in two places: a proxy in this process, and the export for Envoy.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use portcullis::policy::Policy;
use portcullis::{Running, ServeOptions, serve};
use portcullis_tests::envoy::{self, Envoy};
use portcullis_tests::report;
use serde_json::Value;

use crate::served;

/// Loopback, the port chosen by the system.
pub(crate) const ANY_PORT: &str = "127.0.0.1:0";

/// A proxy in this process; it is drained on drop.
pub(crate) struct Here(Option<Running>);

impl Here {
    /// Starts one with `policy`; relative paths in it start at `folder`.
    pub(crate) fn start(policy: &Value, folder: &Path) -> Result<Self> {
        let policy = Policy::parse(
            Path::new("policy.yaml"),
            folder,
            &serde_json::to_string(policy)?,
        )?;
        let options = ServeOptions {
            module_cache: Some(served::module_cache()?),
            ..ServeOptions::default()
        };
        Ok(Self(Some(serve(policy, options)?)))
    }

    /// Where the listener `name` listens.
    pub(crate) fn listener(&self, name: &str) -> Result<SocketAddr> {
        let running = self.0.as_ref().context("it has stopped")?;
        running
            .address(name)
            .with_context(|| format!("there is no listener {name}"))
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        if let Some(running) = self.0.take() {
            running.drain();
            if let Err(error) = running.wait() {
                report::say(&format!("a proxy did not stop well: {error}"));
            }
        }
    }
}

/// Writes `policy` into `folder` and exports it there; the path of `envoy.yaml`.
pub(crate) fn export(policy: &Value, folder: &Path) -> Result<PathBuf> {
    let path = folder.join("policy.yaml");
    fs::write(&path, serde_json::to_string_pretty(policy)?)?;
    served::export(&path, folder)
}

/// Where a policy runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Portcullis,
    Envoy,
}

/// Runs `test` on the address of the listener `name` of `policy` in both places, and says which.
pub(crate) fn in_both(
    what: &str,
    policy: &Value,
    name: &str,
    test: impl Fn(SocketAddr) -> Result<()>,
) -> Result<()> {
    in_each(what, policy, |_, address| test(address(name)?))
}

/// Where a listener listens.
pub(crate) type AddressOf<'a> = &'a dyn Fn(&str) -> Result<SocketAddr>;

/// The same for a test that goes to several listeners, or expects what is known to differ.
pub(crate) fn in_each(
    what: &str,
    policy: &Value,
    test: impl Fn(Place, AddressOf<'_>) -> Result<()>,
) -> Result<()> {
    // What the export says as a remark only.
    let workers = policy.get("workers").and_then(Value::as_u64).unwrap_or(1);
    let options = envoy::Options {
        concurrency: u32::try_from(workers)?,
        ..envoy::Options::default()
    };
    let folder = tempfile::tempdir()?;
    let here = Here::start(policy, folder.path())?;
    test(Place::Portcullis, &|name| here.listener(name))
        .with_context(|| format!("{what} in Portcullis"))?;
    drop(here);
    if let Some(why) = envoy::left_out() {
        report::not_run(&format!("{what} in Envoy"), why);
        return Ok(());
    }
    let envoy = Envoy::start(&export(policy, folder.path())?, options)?;
    test(Place::Envoy, &|name| envoy.listener(name)).with_context(|| {
        format!(
            "{what} in Envoy, which says:\n{}",
            envoy.process().last_words()
        )
    })
}
