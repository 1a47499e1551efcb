//! Debian's docker-registry (the distribution project's, which most registries are or imitate) on loopback.
//!
//! `PORTCULLIS_REGISTRY=none` leaves it out, as `PORTCULLIS_ENVOY=none` does Envoy.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::json;
use tempfile::TempDir;

use crate::build_folder::installed_from_debian;
use crate::certificates::Certificates;
use crate::child::{Process, until};
use crate::free_port::free_address;

const READY_BOUND: Duration = Duration::from_secs(30);

/// Who may come in where a registry asks for it.
pub const USER: &str = "deployer";
/// With this.
pub const PASSWORD: &str = "correct horse";
/// The password by bcrypt, the one form that the registry's htpasswd takes.
const PASSWORD_BCRYPT: &str = "$2y$05$abcdefghijklmnopqrstuuHNbAKRhpaujgo33bRWs.NLUTJO3lOy2";

/// Who gives tokens to a registry that wants them.
pub const ISSUER: &str = "tests of portcullis";
/// What such a registry calls itself.
pub const SERVICE: &str = "registry of tests";

/// Who is let in.
enum Guard<'g> {
    Nobody,
    /// Over TLS.
    Password(&'g Certificates),
    Token {
        realm: &'g str,
        authority: &'g Path,
    },
}

/// Why it is left out, if the person who runs the tests said so.
#[must_use]
pub fn left_out() -> Option<&'static str> {
    (std::env::var_os("PORTCULLIS_REGISTRY")? == "none").then_some("PORTCULLIS_REGISTRY=none")
}

/// A running registry with nothing in it; killed on drop.
#[derive(Debug)]
pub struct RegistryServer {
    address: SocketAddr,
    _process: Process,
    _folder: TempDir,
}

impl RegistryServer {
    /// Starts one without TLS that lets everybody in.
    ///
    /// # Errors
    /// When it cannot be installed or does not start.
    pub fn start() -> Result<Self> {
        Self::configured(&Guard::Nobody)
    }

    /// Starts one with TLS that lets [`USER`] in.
    ///
    /// # Errors
    /// When it cannot be installed or does not start.
    pub fn guarded(certificates: &Certificates) -> Result<Self> {
        Self::configured(&Guard::Password(certificates))
    }

    /// Starts one without TLS that lets in who shows a token: a JWT of [`ISSUER`] for [`SERVICE`], signed with the key of a certificate (in its `x5c`)
    /// under this authority. Others it sends to `realm`.
    ///
    /// # Errors
    /// When it cannot be installed or does not start.
    pub fn wanting_tokens(realm: &str, authority: &Path) -> Result<Self> {
        Self::configured(&Guard::Token { realm, authority })
    }

    fn configured(guard: &Guard<'_>) -> Result<Self> {
        let program = installed_from_debian("docker-registry", "usr/bin/docker-registry").context(
            "these tests need Debian's docker-registry; PORTCULLIS_REGISTRY=none leaves it out and says what was not run",
        )?;
        let (folder, address) = (tempfile::tempdir()?, free_address()?);
        let path = |name: &str| folder.path().join(name);
        let mut http = json!({"addr": address.to_string()});
        let auth = match guard {
            Guard::Nobody => None,
            Guard::Password(certificates) => {
                let passwords = path("htpasswd");
                fs::write(&passwords, format!("{USER}:{PASSWORD_BCRYPT}\n"))?;
                http = json!({
                    "addr": address.to_string(),
                    "tls": {"certificate": certificates.chain, "key": certificates.key},
                });
                Some(json!({"htpasswd": {"realm": "tests", "path": passwords}}))
            }
            Guard::Token { realm, authority } => Some(json!({"token": {
                "realm": realm,
                "service": SERVICE,
                "issuer": ISSUER,
                "rootcertbundle": authority,
            }})),
        };
        let mut configuration = json!({
            "version": 0.1,
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": path("data")}},
            "http": http,
        });
        if let (Some(auth), Some(keys)) = (auth, configuration.as_object_mut()) {
            keys.insert("auth".into(), auth);
        }
        // JSON is YAML.
        fs::write(path("config.yml"), configuration.to_string())?;
        let mut process = start(&program, &path("config.yml"), &path("log"))?;
        until(READY_BOUND, "the registry to listen", || {
            if let Some(status) = process.ended()? {
                bail!("it ended ({status})");
            }
            Ok(TcpStream::connect(address).is_ok())
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
}

fn start(program: &Path, configuration: &Path, log: &Path) -> Result<Process> {
    let mut command = Command::new(program);
    command.arg("serve").arg(configuration);
    Process::start(&mut command, log)
}
