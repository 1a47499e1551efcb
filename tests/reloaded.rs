//! What the tests of reloads share: a guest that says which configuration it was started with, an upstream that counts and holds, and a proxy
//! in this process.

use std::fs;
use std::io::{BufRead as _, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use portcullis::policy::Policy;
use portcullis::{Running, ServeOptions, serve};
use portcullis_tests::client::{Connection, Route};
use portcullis_tests::http1::{Answer, Request};
use portcullis_tests::raw_upstream::RawUpstream;
use portcullis_tests::report;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::served;

/// How long a reload, or what follows it, may take on a busy machine.
pub(crate) const BOUND: Duration = Duration::from_secs(30);

/// Says on every answer which configuration it was started with; refuses to start with edition 0.
pub(crate) const EDITION: &str = r#"(module
  (import "env" "proxy_get_buffer_bytes" (func $buffer (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_add_header_map_value" (func $add (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (global $len (mut i32) (i32.const 0))
  (data (i32.const 16) "x-edition")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 65536))
  (func (export "proxy_on_configure") (param i32 i32) (result i32)
    (drop (call $buffer (i32.const 7) (i32.const 0) (local.get 1) (i32.const 0) (i32.const 4)))
    ;; {"edition":N}
    (global.set $len (i32.sub (local.get 1) (i32.const 12)))
    (i32.ne (i32.load8_u (i32.const 65547)) (i32.const 48)))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (i32.const 0))
  (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
    (drop (call $add (i32.const 2) (i32.const 16) (i32.const 9) (i32.const 65547) (global.get $len)))
    (i32.const 0)))
"#;

/// An upstream that answers `ok` and counts; at `/held` it waits to be told.
pub(crate) struct Counted {
    upstream: RawUpstream,
    pub(crate) served: Arc<AtomicU64>,
    /// A request has come to `/held`.
    held: Mutex<mpsc::Receiver<()>>,
    pub(crate) let_go: mpsc::Sender<()>,
}

impl Counted {
    pub(crate) fn start() -> Result<Self> {
        let served = Arc::new(AtomicU64::new(0));
        let (holds, held) = mpsc::channel();
        let (let_go, released) = mpsc::channel();
        let (count, waiting) = (Arc::clone(&served), Mutex::new((holds, released)));
        let upstream = RawUpstream::start(move |line, _, stream| {
            count.fetch_add(1, Ordering::SeqCst);
            if line.contains("/held") {
                let waiting = waiting.lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
                waiting.0.send(())?;
                waiting.1.recv_timeout(BOUND)?;
            }
            stream
                .get_mut()
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")?;
            Ok(true)
        })?;
        Ok(Self {
            upstream,
            served,
            held: Mutex::new(held),
            let_go,
        })
    }

    pub(crate) fn address(&self) -> String {
        self.upstream.address().to_string()
    }

    /// Waits until a request is held.
    pub(crate) fn wait(&self) -> Result<()> {
        let held = self.held.lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
        held.recv_timeout(BOUND).context("no request is held")
    }
}

pub(crate) fn edition_of(answer: &Answer) -> Result<u64> {
    ensure!(answer.status == 200, "{answer:?}");
    let edition = answer.header("x-edition").context("no edition")?;
    Ok(edition.parse()?)
}

/// A proxy in this process, whose policy is changed by `edit`.
pub(crate) struct Reloaded {
    running: Option<Running>,
    policy: Value,
    pub(crate) folder: TempDir,
    pub(crate) upstream: Counted,
}

impl Reloaded {
    pub(crate) fn start(edit: impl FnOnce(&mut Value, &Path)) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("edition.wasm"), wat::parse_str(EDITION)?)?;
        let upstream = Counted::start()?;
        let mut policy = json!({
            "workers": 2,
            "listeners": [{"name": "plain", "address": "127.0.0.1:0"}],
            "admin": {"address": "127.0.0.1:0"},
            "clusters": [{"name": "upstream", "endpoints": [upstream.address()]}],
            "filters": [{"name": "edition", "module": "edition.wasm", "configuration": {"edition": 1}}],
            "routes": [{"name": "all", "cluster": "upstream"}],
        });
        edit(&mut policy, folder.path());
        let mut this = Self {
            running: None,
            policy,
            folder,
            upstream,
        };
        let options = ServeOptions {
            module_cache: Some(served::module_cache()?),
            ..ServeOptions::default()
        };
        this.running = Some(serve(this.parse(&this.policy)?, options)?);
        Ok(this)
    }

    pub(crate) fn parse(&self, policy: &Value) -> Result<Policy> {
        let text = serde_json::to_string_pretty(policy)?;
        Ok(Policy::parse(
            Path::new("policy.yaml"),
            self.folder.path(),
            &text,
        )?)
    }

    pub(crate) fn running(&self) -> Result<&Running> {
        self.running.as_ref().context("it has stopped")
    }

    pub(crate) fn address(&self, listener: &str) -> Result<SocketAddr> {
        let address = self.running()?.address(listener);
        address.with_context(|| format!("no listener {listener}"))
    }

    /// Reloads with the policy as `edit` leaves it; what is refused is not kept.
    pub(crate) fn reload(&mut self, edit: impl FnOnce(&mut Value)) -> Result<()> {
        let mut policy = self.policy.clone();
        edit(&mut policy);
        self.running()?.reload(self.parse(&policy)?)?;
        self.policy = policy;
        Ok(())
    }

    pub(crate) fn ask(&self, path: &str) -> Result<Answer> {
        Route::plain(self.address("plain")?).send(&Request::get(path))
    }

    pub(crate) fn admin(&self, path: &str) -> Result<Answer> {
        served::ask(self.running()?.admin().context("no admin")?, path)
    }
}

impl Drop for Reloaded {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.drain();
            if let Err(error) = running.wait() {
                report::say(&format!("a proxy did not stop well: {error}"));
            }
        }
    }
}

/// The sum of all samples of the metrics whose line holds every one of `parts`.
pub(crate) fn metric(proxy: &Reloaded, parts: &[&str]) -> Result<f64> {
    let text = proxy.admin("/metrics")?.text();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let found = lines.filter(|line| parts.iter().all(|part| line.contains(part)));
    Ok(found
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum())
}

pub(crate) fn set_edition(policy: &mut Value, edition: u64) {
    if let Some(configured) = policy.pointer_mut("/filters/0/configuration/edition") {
        *configured = edition.into();
    }
}

/// Reads until the other end closes, with or without a word.
pub(crate) fn expect_close(connection: &mut Connection) -> Result<()> {
    use std::io::ErrorKind::{TimedOut, WouldBlock};
    match connection.reader().fill_buf() {
        Ok(bytes) => ensure!(bytes.is_empty(), "{} bytes instead", bytes.len()),
        Err(error) if matches!(error.kind(), TimedOut | WouldBlock) => return Err(error.into()),
        Err(_) => {}
    }
    Ok(())
}
