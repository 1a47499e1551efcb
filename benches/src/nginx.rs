//! nginx of this machine's Debian or Ubuntu, and its configuration.

use crate::headers::SECURITY_HEADERS;
use anyhow::{Context, Result};
use portcullis_tests::build_folder::installed_from_debian;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The program, unpacked from its package where it was not.
///
/// # Errors
/// Where apt-get has no such package, or does not get it.
pub fn program() -> Result<PathBuf> {
    installed_from_debian("nginx", "usr/sbin/nginx").context(
        "no nginx; it is taken from Debian's package with `apt-get download` (`apt-get update` first where there are no lists)",
    )
}

/// What a configuration is made of.
#[derive(Clone, Copy, Debug)]
pub struct Nginx<'a> {
    /// Where it listens.
    pub address: SocketAddr,
    /// Where it forwards to, in plaintext.
    pub upstream: SocketAddr,
    /// Certificate chain and key, PEM.
    pub certificate: [&'a Path; 2],
    /// A folder that it may write to.
    pub folder: &'a Path,
    /// Requests a minute and client; with it, the headers and the want of a bearer token.
    pub rules: Option<u32>,
}

impl Nginx<'_> {
    /// The file. One process, since its time is read: `master_process off` runs the same loop in it.
    pub fn configuration(&self) -> String {
        let [chain, key] = self.certificate;
        let folder = self.folder.display();
        let mut server = String::new();
        let mut zone = String::new();
        if let Some(requests) = self.rules {
            zone = format!(
                "limit_req_zone $binary_remote_addr zone=load:1m rate={requests}r/m; limit_req_status 429;"
            );
            let burst = requests.saturating_sub(1).max(1);
            // Writing to a string cannot fail.
            let _ = writeln!(server, "      limit_req zone=load burst={burst} nodelay;");
            for (name, value) in SECURITY_HEADERS {
                let _ = writeln!(server, "      add_header {name} \"{value}\" always;");
            }
            server.push_str(
                "      if ($http_authorization !~ \"^Bearer .\") { return 401; }\n      proxy_hide_header x-powered-by;\n",
            );
        }
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|kind| format!("  {kind}_temp_path '{folder}/{kind}';\n"))
            .collect();
        format!(
            "\
daemon off;
master_process off;
worker_processes 1;
pid '{folder}/pid';
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  server_tokens off;
  keepalive_requests 1000000000;
{temporary}  {zone}
  upstream upstream {{ server {upstream}; keepalive 512; keepalive_requests 1000000000; }}
  server {{
    listen {address} ssl http2;
    ssl_certificate '{chain}';
    ssl_certificate_key '{key}';
    ssl_protocols TLSv1.3;
    location / {{
      proxy_pass http://upstream;
      proxy_http_version 1.1;
      proxy_set_header Connection '';
      proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header X-Forwarded-Proto $scheme;
{server}    }}
  }}
}}
",
            upstream = self.upstream,
            address = self.address,
            chain = chain.display(),
            key = key.display(),
        )
    }
}
