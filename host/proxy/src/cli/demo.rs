//! `portcullis demo`.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;

use super::output::{note, print};
use crate::demo::{self, Addresses, Echo, Folder};
use crate::policy::Policy;
use crate::serve::{self, ServeOptions};

/// Shows four controls decide real requests
///
/// Starts an upstream that answers with what it saw, and before it a proxy with a plaintext and a TLS listener, an admin listener, and
/// security-headers, tls-policy, jwt-auth and rate-limit. Certificates, tokens and the policy are made on the spot and kept in a folder;
/// curl lines to try are printed. Everything listens on 127.0.0.1 only. Ctrl-C drains and stops.
/// What goes wrong is said on standard error.
///
/// Exit codes: 0 stopped; 1 a port or the folder cannot be had; 2 wrong usage.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  portcullis demo --dir demo --http-port 0 --https-port 0")]
pub(super) struct Demo {
    /// Where policy.yaml, ca.pem and tokens/ are kept; a new temporary folder if absent
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Port of the plaintext listener; 0 takes a free one, here and below
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    http_port: u16,

    /// Port of the TLS listener
    #[arg(long, value_name = "PORT", default_value_t = 8443)]
    https_port: u16,

    /// Port of the admin listener
    #[arg(long, value_name = "PORT", default_value_t = 9901)]
    admin_port: u16,

    /// Port of the echo upstream
    #[arg(long, value_name = "PORT", default_value_t = 8081)]
    echo_port: u16,
}

impl Demo {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let echo = SocketAddr::from((Ipv4Addr::LOCALHOST, self.echo_port));
        let echo = Echo::bind(echo)
            .with_context(|| format!("the echo upstream cannot listen on {echo} (--echo-port)"))?;
        let addresses = Addresses {
            echo: echo.address()?,
            ..self.free_addresses()?
        };
        echo.start().context("the echo upstream cannot start")?;

        let folder = match &self.dir {
            Some(path) => path.clone(),
            None => tempfile::Builder::new()
                .prefix("portcullis-demo-")
                .tempdir()?
                .keep(),
        };
        let folder = Folder::fill(&folder, addresses)?;
        note(&format!(
            "policy, certificates and tokens: {}",
            folder.path.display()
        ));
        note("starting the plugins (the first time they are compiled, which takes some seconds)");
        let policy = Policy::load(folder.file("policy.yaml"))?;
        let options = ServeOptions {
            signals: true,
            watch: true,
            ..ServeOptions::default()
        };
        let running = serve::serve(policy, options)?;
        note("ready\n");
        print(&demo::lines(addresses, &folder.path))?;
        note("\nCtrl-C drains and stops");
        running.wait()?;
        note("stopped");
        Ok(ExitCode::SUCCESS)
    }

    /// The listeners' addresses. Free ports are looked for before the policy is written, since it names them; somebody else may take one
    /// in between, and is told so then.
    fn free_addresses(&self) -> anyhow::Result<Addresses> {
        let mut held = Vec::new();
        let mut address = |port: u16, option: &str| {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let listener = TcpListener::bind(address).with_context(|| {
                format!("cannot listen on {address}, choose another port with {option}")
            })?;
            let address = listener.local_addr()?;
            held.push(listener);
            anyhow::Ok(address)
        };
        Ok(Addresses {
            http: address(self.http_port, "--http-port")?,
            https: address(self.https_port, "--https-port")?,
            admin: address(self.admin_port, "--admin-port")?,
            echo: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        })
    }
}
