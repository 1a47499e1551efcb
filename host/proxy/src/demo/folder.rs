//! What the demo makes on the spot and leaves for its user: policy, certificates, tokens.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer as CertificateIssuer, KeyPair, KeyUsagePurpose,
};

use super::tokens::{AUDIENCE, Issuer, LIFETIME_SECONDS};

/// The policy, with a placeholder for each thing that is made on the spot.
const POLICY: &str = include_str!("policy.yaml");

/// Where the demo listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The plaintext listener.
    pub http: SocketAddr,
    /// The TLS listener.
    pub https: SocketAddr,
    /// Admin.
    pub admin: SocketAddr,
    /// The echo upstream.
    pub echo: SocketAddr,
}

/// The files of a demo.
#[derive(Clone, Debug)]
pub struct Folder {
    /// Absolute path.
    pub path: PathBuf,
}

impl Folder {
    /// Fills `path`, replacing what an earlier demo left there.
    ///
    /// # Errors
    ///
    /// A file that cannot be written, or no randomness.
    pub fn fill(path: &Path, addresses: Addresses) -> anyhow::Result<Self> {
        let tokens = path.join("tokens");
        fs::create_dir_all(&tokens).with_context(|| format!("cannot make {}", tokens.display()))?;
        let path = path
            .canonicalize()
            .with_context(|| format!("cannot find {}", path.display()))?;
        let folder = Self { path };
        let (ca, certificate, key) = certificates()?;
        folder.write("ca.pem", &ca)?;
        folder.write("server.pem", &certificate)?;
        folder.write("server.key", &key)?;
        let issuer = Issuer::new()?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .context("the clock stands before 1970")?;
        let now = now.as_secs();
        folder.write("tokens/valid.jwt", &issuer.token(AUDIENCE, now)?)?;
        let long_ago = now.saturating_sub(2 * LIFETIME_SECONDS);
        folder.write("tokens/expired.jwt", &issuer.token(AUDIENCE, long_ago)?)?;
        folder.write(
            "tokens/wrong-audience.jwt",
            &issuer.token("another-api", now)?,
        )?;
        folder.write(
            "policy.yaml",
            &policy(addresses, &issuer.jwks()?.to_string()),
        )?;
        Ok(folder)
    }

    /// A file of the folder.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Readable for the user alone: keys and tokens are among them.
    fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.file(name);
        let write = || {
            let mut options = fs::OpenOptions::new();
            let mut file = options
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&path)?;
            file.write_all(text.as_bytes())
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }
}

/// The demo's policy for these addresses and this JWK set.
pub(super) fn policy(addresses: Addresses, jwks: &str) -> String {
    let ports = [
        ("127.0.0.1:8080", addresses.http.to_string()),
        ("127.0.0.1:8443", addresses.https.to_string()),
        ("127.0.0.1:9901", addresses.admin.to_string()),
        ("127.0.0.1:8081", addresses.echo.to_string()),
        (
            "redirect_port: 8443",
            format!("redirect_port: {}", addresses.https.port()),
        ),
        ("{jwks}", jwks.to_owned()),
    ];
    // One pass over the template, so that no replacement is replaced again.
    let mut text = String::with_capacity(POLICY.len() + jwks.len());
    let mut rest = POLICY;
    loop {
        let next = ports
            .iter()
            .filter_map(|(from, to)| Some((rest.find(from)?, from, to)))
            .min_by_key(|(at, ..)| *at);
        let Some((at, from, to)) = next else { break };
        let (before, after) = rest.split_at(at);
        text.push_str(before);
        text.push_str(to);
        rest = after.strip_prefix(from).unwrap_or(after);
    }
    text.push_str(rest);
    text
}

/// A certificate authority, a certificate it signed for this machine's own names, and that one's key; all PEM.
fn certificates() -> anyhow::Result<(String, String, String)> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    ca.distinguished_name
        .push(DnType::CommonName, "Portcullis demo CA");
    let ca_certificate = ca.self_signed(&ca_key)?;
    let signer = CertificateIssuer::new(ca, ca_key);

    let key = KeyPair::generate()?;
    let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let mut leaf = CertificateParams::new(names)?;
    leaf.distinguished_name
        .push(DnType::CommonName, "localhost");
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.use_authority_key_identifier_extension = true;
    let certificate = leaf.signed_by(&key, &signer)?;
    Ok((ca_certificate.pem(), certificate.pem(), key.serialize_pem()))
}

#[cfg(test)]
mod tests {
    use super::{Addresses, Folder};
    use crate::policy::Policy;

    #[test]
    fn the_documented_policy_is_this_one() {
        let documented = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/policies/demo.yaml");
        let documented = std::fs::read_to_string(documented).unwrap();
        let jwks = documented
            .lines()
            .find_map(|line| line.trim().strip_prefix("jwks: "));
        let address = |port: u16| format!("127.0.0.1:{port}").parse().unwrap();
        let addresses = Addresses {
            http: address(8080),
            https: address(8443),
            admin: address(9901),
            echo: address(8081),
        };
        assert_eq!(super::policy(addresses, jwks.unwrap()), documented);
    }

    #[test]
    fn what_it_leaves_is_a_policy() {
        let folder = tempfile::tempdir().unwrap();
        let address = |port: u16| format!("127.0.0.1:{port}").parse().unwrap();
        let addresses = Addresses {
            http: address(18443),
            https: address(8080),
            admin: address(8081),
            echo: address(9901),
        };
        let made = Folder::fill(folder.path(), addresses).unwrap();
        let policy = Policy::load(made.file("policy.yaml")).unwrap();
        let listeners: Vec<_> = policy.listeners.iter().map(|it| it.address).collect();
        assert_eq!(listeners, [addresses.http, addresses.https]);
        assert_eq!(policy.admin.map(|it| it.address), Some(addresses.admin));
        let endpoints = policy.clusters.iter().flat_map(|it| &it.endpoints);
        let endpoints: Vec<_> = endpoints.map(ToString::to_string).collect();
        assert_eq!(endpoints, ["127.0.0.1:9901"]);
        let controls: Vec<_> = policy.filters.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(
            controls,
            ["security-headers", "tls-policy", "jwt-auth", "rate-limit"]
        );
        for token in ["valid", "expired", "wrong-audience"] {
            let text = std::fs::read_to_string(made.file(&format!("tokens/{token}.jwt"))).unwrap();
            assert_eq!(text.split('.').count(), 3, "{token}");
        }
    }
}
