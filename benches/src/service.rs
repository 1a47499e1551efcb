//! A `portcullis serve` of fourteen filters on two workers: how long it takes to start and to reload, and what it holds.

use crate::issuer::Issuer;
use crate::policy::controls;
use anyhow::{Result, bail};
use portcullis_tests::child::{Process, until};
use portcullis_tests::client::Route;
use portcullis_tests::free_port::free_address;
use portcullis_tests::http1::Request;
use rustix::process::Signal;
use serde_json::json;
use std::net::{SocketAddr, TcpStream};
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

/// One start, and a reload.
#[derive(Clone, Copy, Debug)]
pub struct Started {
    /// From the start of the process to the first connection, in ms.
    pub ms: f64,
    /// From the signal to the first answer by a new policy, with another configuration of all 14 filters, in ms.
    pub reload_ms: f64,
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

    /// Starts it once, reloads it, and ends it.
    ///
    /// # Errors
    /// When it does not start, or goes on with the policy that it had.
    pub fn start(&self) -> Result<Started> {
        let address = free_address()?;
        let file = self.folder.path().join("policy.yaml");
        std::fs::write(&file, policy(address, "hsts", "1.3", 1_000_000)?)?;
        let mut command = Command::new(&self.program);
        command.args(["serve", "--no-watch"]).arg(&file);
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
        let ms = milliseconds(begun);
        let (mut most, mut since) = (0, Instant::now());
        until(START_BOUND, "portcullis to be idle", || {
            let now = process.resident_bytes()?;
            if now > most {
                (most, since) = (now, Instant::now());
            }
            Ok(since.elapsed() > IDLE)
        })?;
        let resident_mib = process.resident_bytes()? as f64 / f64::from(1 << 20);
        // Each filter is configured otherwise than before, else its plugins would stay.
        std::fs::write(&file, policy(address, "api", "1.2", 500_000)?)?;
        let begun = Instant::now();
        process.signal(Signal::HUP)?;
        let is_new = || -> Result<bool> {
            let answer = Route::plain(address).send(&Request::get("/"))?;
            Ok(answer.header("x-content-type-options").is_some())
        };
        while !is_new()? {
            if begun.elapsed() > START_BOUND {
                bail!("portcullis does not reload:\n{}", process.last_words());
            }
            std::thread::sleep(POLL);
        }
        Ok(Started {
            ms,
            reload_ms: milliseconds(begun),
            resident_mib,
        })
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

/// Fourteen filters: the four controls repeated. Whatever is asked in plaintext is refused by the second.
fn policy(
    address: SocketAddr,
    profile: &str,
    minimum_version: &str,
    requests: u32,
) -> Result<String> {
    let mut controls = controls(&Issuer::new()?, requests);
    for (control, configuration) in &mut controls {
        match *control {
            "security-headers" => *configuration = json!({"profile": profile}),
            "tls-policy" => *configuration = json!({"minimum_version": minimum_version}),
            _ => {}
        }
    }
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
    Ok(policy.to_string())
}
