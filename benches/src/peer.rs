//! A peer: a proxy under test as a process of its own, with the same policy as the others.

use crate::kind::{Kind, Program};
use crate::load::{Load, Protocol};
use crate::nginx::Nginx;
use crate::policy::{Filters, Policy};
use crate::upstream::Upstream;
use crate::{envoy_filters, process};
use anyhow::{Context, Result, bail, ensure};
use portcullis_tests::certificates::Certificates;
use portcullis_tests::child::{Process, until};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// Which tokens the requests bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tokens {
    /// One that is in the cache after the first request.
    Same,
    /// Each time one that is in no cache.
    New,
}

/// The programs to run; each is needed only for its own peers.
#[derive(Clone, Debug, Default)]
pub struct Programs {
    /// The build of `portcullis` that is measured; it exports for Envoy, too.
    pub portcullis: PathBuf,
    /// Another one.
    pub baseline: Option<PathBuf>,
    /// Envoy.
    pub envoy: Option<PathBuf>,
    /// nginx.
    pub nginx: Option<PathBuf>,
}

/// What all peers share: programs, certificates, the upstream, a token.
pub struct Setting {
    folder: tempfile::TempDir,
    programs: Programs,
    /// Where all peers forward to.
    pub upstream: Upstream,
    /// What all peers show to clients.
    pub certificates: Certificates,
    tls: Arc<rustls::ClientConfig>,
    issuer: crate::issuer::Issuer,
    /// One, and more than a cache holds.
    tokens: [Vec<String>; 2],
}

/// One running proxy.
pub struct Peer {
    /// Which one.
    pub kind: Kind,
    /// Where clients connect.
    pub address: SocketAddr,
    /// The process, to account for; the upstream is in this one.
    pub process: Option<Process>,
}

/// Four times what jwt-auth keeps, so that none is found there when its turn comes again.
const TOKENS: usize = 1024;
/// A proxy that is not ready by then will not be.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// A user's limit under load: more than any run sends, so that every request is counted and none refused.
pub const UNREACHED_LIMIT: u32 = 1_000_000;

impl Setting {
    /// Prepares `folder` with certificates and keys, and starts the upstream on the processors of the calling thread.
    ///
    /// # Errors
    /// When a file or key cannot be made.
    pub fn new(folder: tempfile::TempDir, programs: Programs) -> Result<Self> {
        let certificates = Certificates::make(folder.path())?;
        let issuer = crate::issuer::Issuer::new()?;
        let tokens = [vec![issuer.token()?], issuer.tokens(TOKENS)?];
        Ok(Self {
            upstream: Upstream::start(certificates.server(&[b"h2", b"http/1.1"])?)?,
            tls: client(&certificates)?,
            folder,
            programs,
            certificates,
            issuer,
            tokens,
        })
    }

    /// Starts one peer on one worker thread and waits until it takes connections; a user may ask for so many requests a minute.
    ///
    /// # Errors
    /// When it does not start; its last words are in the error.
    pub fn start(&self, kind: Kind, requests_per_minute: u32) -> Result<Peer> {
        let folder = self
            .folder
            .path()
            .join(format!("{kind}-{requests_per_minute}"));
        std::fs::create_dir_all(&folder)?;
        let address = free_address()?;
        let certificate = [&*self.certificates.chain, &*self.certificates.key];
        let filters = match kind {
            Kind::PortcullisFour | Kind::BaselineFour | Kind::EnvoyFour | Kind::EnvoyPolicy => {
                Filters::Four
            }
            Kind::PortcullisPolicy => Filters::Policy,
            _ => Filters::None,
        };
        let policy = folder.join("policy.yaml");
        let text = Policy {
            address,
            upstream: self.upstream.address,
            certificate,
            issuer: &self.issuer,
            filters,
            requests_per_minute,
        }
        .text();
        std::fs::write(&policy, text)?;
        let mut command = match kind.program() {
            Program::None => {
                return Ok(Peer {
                    kind,
                    address: self.upstream.direct,
                    process: None,
                });
            }
            Program::Portcullis => serve(&self.programs.portcullis, &policy),
            Program::Baseline => serve(had(&self.programs.baseline, kind)?, &policy),
            Program::Envoy => {
                let configuration = self.export(&policy, &folder, kind, requests_per_minute)?;
                let mut command = Command::new(had(&self.programs.envoy, kind)?);
                command.arg("-c").arg(configuration);
                command.args(["--concurrency", "1", "--log-level", "warn"]);
                command.arg("--disable-hot-restart");
                command
            }
            Program::Nginx => {
                let configuration = folder.join("nginx.conf");
                let text = Nginx {
                    address,
                    upstream: self.upstream.address,
                    certificate,
                    folder: &folder,
                    rules: (kind == Kind::NginxRules).then_some(requests_per_minute),
                }
                .configuration();
                std::fs::write(&configuration, text)?;
                let mut command = Command::new(had(&self.programs.nginx, kind)?);
                command.arg("-p").arg(&folder).arg("-c").arg(configuration);
                // Else it tries the log file of the system before it has read where to log to.
                command.args(["-e", "stderr"]);
                command
            }
        };
        let mut process = Process::start(&mut command, &folder.join("log"))?;
        until(READY_TIMEOUT, "the peer's port", || {
            if let Some(status) = process.ended()? {
                bail!("it ended ({status})");
            }
            Ok(TcpStream::connect(address).is_ok())
        })
        .with_context(|| format!("{kind} says:\n{}", process.last_words()))?;
        Ok(Peer {
            kind,
            address,
            process: Some(process),
        })
    }

    /// Envoy's configuration file for `kind`.
    fn export(
        &self,
        policy: &Path,
        folder: &Path,
        kind: Kind,
        requests_per_minute: u32,
    ) -> Result<PathBuf> {
        let mut export = Command::new(&self.programs.portcullis);
        export.args(["export", "envoy"]).arg(policy);
        export.arg("--out").arg(folder);
        if kind == Kind::EnvoyFour {
            export.arg("--separate");
        }
        let output = export.output().context("cannot run portcullis export")?;
        ensure!(
            output.status.success(),
            "export failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let exported = folder.join("envoy.yaml");
        let filters = match kind {
            Kind::EnvoyNative => envoy_filters::native(&self.issuer, requests_per_minute),
            Kind::EnvoyLua => envoy_filters::lua(),
            _ => return Ok(exported),
        };
        let text = envoy_filters::with_filters(&std::fs::read_to_string(exported)?, filters)?;
        let configuration = folder.join("envoy.json");
        std::fs::write(&configuration, text)?;
        Ok(configuration)
    }

    /// A token that is good.
    pub fn token(&self) -> &str {
        let [same, _] = &self.tokens;
        same.first().map_or("", String::as_str)
    }

    /// The load that this peer is put under: GET over TLS 1.3 with a valid token, the same each time or not.
    pub fn load(
        &self,
        peer: &Peer,
        protocol: Protocol,
        tokens: Tokens,
        connections: usize,
        rate: Option<f64>,
        duration: Duration,
    ) -> Load {
        Load {
            address: peer.address,
            tls: Some(Arc::clone(&self.tls)),
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
        }
    }

    /// CPU time that `peer` has taken so far.
    ///
    /// # Errors
    /// When it is gone.
    pub fn cpu(&self, peer: &Peer) -> Result<Duration> {
        match &peer.process {
            Some(process) => process::cpu(process.id())
                .with_context(|| format!("{} says:\n{}", peer.kind, process.last_words())),
            None => self.upstream.cpu(),
        }
    }
}

fn serve(program: &Path, policy: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("serve").arg(policy);
    command
}

fn had(program: &Option<PathBuf>, kind: Kind) -> Result<&Path> {
    program
        .as_deref()
        .with_context(|| format!("the program of {kind} is missing"))
}

/// TLS 1.3 with AES-128-GCM alone: left to themselves, some servers would choose AES-256.
fn client(certificates: &Certificates) -> Result<Arc<rustls::ClientConfig>> {
    let mut roots = rustls::RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(&certificates.authority)
        .map_err(|error| anyhow::anyhow!("{}: {error}", certificates.authority.display()))?;
    roots.add(authority)?;
    let provider = rustls::crypto::CryptoProvider {
        cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
        ..aws_lc_rs::default_provider()
    };
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
    Ok(listener.local_addr()?)
}
