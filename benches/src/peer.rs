//! A peer: a proxy under test as a process of its own, with the same policy as the others.

use crate::load::{Load, Protocol};
use anyhow::{Context, Result, ensure};
use portcullis_tests::certificates::Certificates;
use portcullis_tests::child::{Process, until};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// Which program serves the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Program {
    /// This repository's proxy.
    Portcullis,
    /// Another build of it, to compare with.
    Baseline,
    /// Stock Envoy with what `portcullis export envoy` writes.
    Envoy,
}

/// Which policy is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Controls {
    /// No filter at all.
    None,
    /// security-headers, tls-policy, jwt-auth, rate-limit.
    Four,
}

/// Which tokens the requests bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tokens {
    /// One that is in the cache after the first request.
    Same,
    /// Each time one that is in no cache.
    New,
}

/// What all peers share: programs, certificates, the upstream, a token.
pub struct Setting {
    folder: tempfile::TempDir,
    portcullis: PathBuf,
    baseline: Option<PathBuf>,
    envoy: PathBuf,
    upstream: SocketAddr,
    certificates: Certificates,
    issuer: crate::issuer::Issuer,
    /// One, and more than a cache holds.
    tokens: [Vec<String>; 2],
}

/// One running proxy.
pub struct Peer {
    /// Which program.
    pub program: Program,
    /// Which policy.
    pub controls: Controls,
    /// The process, to account for.
    pub process: Process,
    address: SocketAddr,
}

/// Four times what jwt-auth keeps, so that none is found there when its turn comes again.
const TOKENS: usize = 1024;
/// A proxy that is not ready by then will not be.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// More than any run sends, so that rate-limit counts every request and refuses none.
const REQUESTS_PER_MINUTE: u32 = 1_000_000;

impl Setting {
    /// Prepares `folder` with certificates and keys; `portcullis`, `baseline` and `envoy` are the programs.
    ///
    /// # Errors
    /// When a file or key cannot be made.
    pub fn new(
        folder: tempfile::TempDir,
        portcullis: PathBuf,
        baseline: Option<PathBuf>,
        envoy: PathBuf,
        upstream: SocketAddr,
    ) -> Result<Self> {
        let certificates = Certificates::make(folder.path())?;
        let issuer = crate::issuer::Issuer::new()?;
        let tokens = [vec![issuer.token()?], issuer.tokens(TOKENS)?];
        Ok(Self {
            folder,
            portcullis,
            baseline,
            envoy,
            upstream,
            certificates,
            issuer,
            tokens,
        })
    }

    /// Starts one peer on one worker thread and waits until it takes connections.
    ///
    /// # Errors
    /// When it does not start; its last words are in the error.
    pub fn start(&self, program: Program, controls: Controls) -> Result<Peer> {
        let folder = self
            .folder
            .path()
            .join(format!("{program:?}-{controls:?}").to_lowercase());
        std::fs::create_dir_all(&folder)?;
        let address = free_address()?;
        let policy = folder.join("policy.yaml");
        std::fs::write(&policy, self.policy(address, controls))?;
        let mut command = match program {
            Program::Portcullis | Program::Baseline => {
                let mut command = Command::new(match (program, &self.baseline) {
                    (Program::Baseline, Some(baseline)) => baseline,
                    _ => &self.portcullis,
                });
                command.arg("serve").arg(&policy);
                command
            }
            Program::Envoy => {
                self.export(&policy, &folder)?;
                let mut command = Command::new(&self.envoy);
                command.arg("-c").arg(folder.join("envoy.yaml"));
                command.args([
                    "--concurrency",
                    "1",
                    "--log-level",
                    "warn",
                    "--use-dynamic-base-id",
                ]);
                command
            }
        };
        let process = Process::start(&mut command, &folder.join("log"))?;
        until(READY_TIMEOUT, "the peer's port", || {
            Ok(TcpStream::connect(address).is_ok())
        })
        .with_context(|| format!("{program:?} says:\n{}", process.last_words()))?;
        Ok(Peer {
            program,
            controls,
            process,
            address,
        })
    }

    fn export(&self, policy: &Path, folder: &Path) -> Result<()> {
        let output = Command::new(&self.portcullis)
            .args(["export", "envoy", "--separate"])
            .arg(policy)
            .arg("--out")
            .arg(folder)
            .output()
            .context("cannot run portcullis export")?;
        ensure!(
            output.status.success(),
            "export failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    fn policy(&self, address: SocketAddr, controls: Controls) -> String {
        let Self {
            certificates,
            upstream,
            issuer,
            ..
        } = self;
        let (chain, key) = (certificates.chain.display(), certificates.key.display());
        let filters = match controls {
            Controls::None => String::new(),
            Controls::Four => format!(
                "\
filters:
  - {{name: security-headers, module: 'builtin:security-headers'}}
  - {{name: tls-policy, module: 'builtin:tls-policy'}}
  - name: jwt-auth
    module: builtin:jwt-auth
    configuration: {}
  - name: rate-limit
    module: builtin:rate-limit
    configuration: {{limits: [{{name: load, requests: {REQUESTS_PER_MINUTE}, per: 60s}}]}}
",
                issuer.jwt_auth_configuration()
            ),
        };
        format!(
            "\
workers: 1
listeners:
  - name: https
    address: {address}
    tls: {{certificate_chain: '{chain}', private_key: '{key}'}}
clusters:
  - {{name: upstream, endpoints: ['{upstream}']}}
{filters}routes:
  - {{name: all, prefix: /, cluster: upstream}}
"
        )
    }

    /// The load that this peer is put under: GET over TLS 1.3 with a valid token, the same each time or not.
    ///
    /// # Errors
    /// When the certificates cannot be read.
    pub fn load(
        &self,
        peer: &Peer,
        protocol: Protocol,
        tokens: Tokens,
        connections: usize,
        rate: Option<f64>,
        duration: Duration,
    ) -> Result<Load> {
        let tls = self
            .certificates
            .client(&rustls::version::TLS13, b"http/1.1")?;
        Ok(Load {
            address: peer.address,
            tls: Some(Arc::clone(&tls)),
            protocol,
            connections,
            rate,
            duration,
            authority: "localhost".to_owned(),
            path: "/".to_owned(),
            headers: vec![
                ("user-agent".to_owned(), "portcullis-compare".to_owned()),
                ("accept".to_owned(), "*/*".to_owned()),
            ],
            tokens: match (tokens, &self.tokens) {
                (Tokens::Same, [one, _]) => one.clone(),
                (Tokens::New, [_, many]) => many.clone(),
            },
        })
    }
}

fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
    Ok(listener.local_addr()?)
}
