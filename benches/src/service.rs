//! A `portcullis serve` of fourteen filters on two workers: how long it takes to start, and what it holds.

use crate::issuer::Issuer;
use crate::policy::controls;
use anyhow::{Result, bail};
use portcullis_tests::child::{Process, until};
use portcullis_tests::free_port::free_address;
use serde_json::json;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Compiling all modules on a busy machine, when they are not in the cache yet.
const START_BOUND: Duration = Duration::from_secs(60);
/// How long memory must not grow until it counts as that of an idle proxy: spare VMs are made after the start.
const IDLE: Duration = Duration::from_millis(500);
/// How often it is looked at.
const POLL: Duration = Duration::from_micros(200);

/// What is started again and again.
pub struct Service {
    program: PathBuf,
    folder: tempfile::TempDir,
}

/// One start.
#[derive(Clone, Copy, Debug)]
pub struct Started {
    /// From the start of the process to the first connection, in ms.
    pub ms: f64,
    /// Resident memory when idle, in MiB.
    pub resident_mib: f64,
}

impl Service {
    /// Of this build of `portcullis`.
    ///
    /// # Errors
    /// When there is no folder to be had, or no key.
    pub fn new(program: &Path) -> Result<Self> {
        let service = Self {
            program: program.to_path_buf(),
            folder: tempfile::tempdir()?,
        };
        Ok(service)
    }

    /// Starts it once, and ends it.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(&self) -> Result<Started> {
        let address = free_address()?;
        let controls = controls(&Issuer::new()?, 1_000_000);
        let filters: Vec<_> = (0..14)
            .zip(controls.iter().cycle())
            .map(|(number, (control, configuration))| {
                json!({"name": format!("{control}-{number}"), "module": format!("builtin:{control}"), "configuration": configuration})
            })
            .collect();
        let policy = json!({
            "workers": 2,
            "listeners": [{"name": "http", "address": address.to_string()}],
            "clusters": [{"name": "upstream", "endpoints": ["127.0.0.1:1"]}],
            "filters": filters,
            "routes": [{"name": "all", "cluster": "upstream"}],
        });
        let file = self.folder.path().join("policy.yaml");
        std::fs::write(&file, policy.to_string())?;
        let mut command = Command::new(&self.program);
        command.arg("serve").arg(&file);
        let begun = Instant::now();
        let mut process = Process::start(&mut command, &self.folder.path().join("log"))?;
        while TcpStream::connect(address).is_err() {
            if let Some(status) = process.ended()? {
                bail!("portcullis ended ({status}):\n{}", process.last_words());
            }
            if begun.elapsed() > START_BOUND {
                bail!("portcullis does not start:\n{}", process.last_words());
            }
            std::thread::sleep(POLL);
        }
        let ms = begun.elapsed().as_secs_f64() * 1000.0;
        let (mut most, mut since) = (0, Instant::now());
        until(START_BOUND, "portcullis to be idle", || {
            let now = process.resident_bytes()?;
            if now > most {
                (most, since) = (now, Instant::now());
            }
            Ok(since.elapsed() > IDLE)
        })?;
        Ok(Started {
            ms,
            resident_mib: process.resident_bytes()? as f64 / f64::from(1 << 20),
        })
    }
}
