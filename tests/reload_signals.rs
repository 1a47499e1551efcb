//! Signals that come at the wrong time: while the program starts, and while it reloads.
//!
//! What holds it up is a plugin that writes more to the log than the pipe takes which nobody reads.

use std::fs;
use std::io::Read;
use std::net::SocketAddr;
use std::process::{Child, ChildStderr, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::child::until;
use portcullis_tests::free_port::free_address;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::reloaded::BOUND;
use crate::served::{ask, command};

/// Logs 128 KiB and more while it is configured; a pipe takes 64.
const LOUD: &str = r#"(module
  (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 32768))
  (func (export "proxy_on_configure") (param i32 i32) (result i32) (local i32)
    (loop $again
      (drop (call $log (i32.const 4) (i32.const 0) (i32.const 4096)))
      (local.set 2 (i32.add (local.get 2) (i32.const 1)))
      (br_if $again (i32.lt_u (local.get 2) (i32.const 32))))
    (i32.const 1))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (i32.const 0)))
"#;

/// A running `portcullis serve` whose log is a pipe; killed on drop.
struct Piped {
    child: Child,
    log: Option<ChildStderr>,
    admin: SocketAddr,
    _folder: TempDir,
}

impl Piped {
    fn start(filter: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let module = folder.path().join("loud.wasm");
        fs::write(&module, wat::parse_str(LOUD)?)?;
        let admin = free_address()?;
        let policy = json!({
            "workers": 1,
            "listeners": [{"name": "plain", "address": "127.0.0.1:0"}],
            "admin": {"address": admin.to_string()},
            "clusters": [{"name": "upstream", "endpoints": ["127.0.0.1:1"]}],
            "filters": [{"name": "loud", "module": module}],
            "routes": [{"name": "all", "cluster": "upstream"}],
        });
        let file = folder.path().join("policy.yaml");
        fs::write(&file, serde_json::to_string_pretty(&policy)?)?;
        let mut child = command()?
            .arg("serve")
            .arg(file)
            .args(["--no-watch", "--log", filter])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let log = child.stderr.take();
        Ok(Self {
            child,
            log,
            admin,
            _folder: folder,
        })
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    fn runs(&mut self) -> Result<()> {
        let ended = self.child.try_wait()?;
        ensure!(ended.is_none(), "it has ended: {ended:?}");
        Ok(())
    }

    fn is_ready(&mut self) -> Result<bool> {
        self.runs()?;
        Ok(ask(self.admin, "/ready").is_ok_and(|answer| answer.status == 200))
    }

    /// Whether SIGHUP would not end it.
    fn takes_hangups(&mut self) -> Result<bool> {
        self.runs()?;
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = u64::from_str_radix(caught.context("no SigCgt")?.trim(), 16)?;
        // The bit of signal 1.
        Ok(caught & 1 != 0)
    }

    /// Reads its log on a thread: one byte, or all there is.
    fn read_log(&mut self, all: bool) -> Result<mpsc::Receiver<()>> {
        let mut log = self.log.take().context("it is read already")?;
        let (done, read) = mpsc::channel();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while log.read(&mut bytes).is_ok_and(|count| count > 0) {
                done.send(()).ok();
                if !all {
                    // Not closed: a write would fail then, and not wait.
                    thread::park();
                }
            }
        });
        Ok(read)
    }

    fn end(&mut self) -> Result<ExitStatus> {
        let mut status = None;
        until(BOUND, "the end of the process", || {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        })?;
        status.context("no status")
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn a_hangup_while_it_starts_is_a_reload_and_no_end() -> Result<()> {
    let mut proxy = Piped::start("off,plugin=error")?;
    until(BOUND, "SIGHUP to be taken", || proxy.takes_hangups())?;
    proxy.signal(Signal::HUP)?;
    ensure!(
        !proxy.is_ready()?,
        "it serves though nobody reads what its plugin says"
    );
    let _read = proxy.read_log(true)?;
    until(BOUND, "it to serve", || proxy.is_ready())?;
    until(BOUND, "the reload", || {
        proxy.runs()?;
        let told: Value = serde_json::from_slice(&ask(proxy.admin, "/policy")?.body)?;
        Ok(told["reload"]["done"] == 1)
    })
}

#[test]
fn a_reload_that_hangs_does_not_hold_up_the_end() -> Result<()> {
    // Only what a plugin says while it is tried out.
    let mut proxy = Piped::start("off,portcullis::canary=debug")?;
    until(BOUND, "it to serve", || proxy.is_ready())?;
    proxy.signal(Signal::HUP)?;
    proxy
        .read_log(false)?
        .recv_timeout(BOUND)
        .context("nothing is tried out")?;
    proxy.signal(Signal::TERM)?;
    ensure!(proxy.end()?.success());
    Ok(())
}
