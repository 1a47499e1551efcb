//! A certificate authority made on the spot, a server certificate under it, and what a client needs to trust it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// The name that the server certificate is for, beside `localhost` and 127.0.0.1.
pub const SERVER_NAME: &str = "example.test";

/// An authority and one server certificate, kept as PEM files in a folder.
#[derive(Debug)]
pub struct Certificates {
    /// The authority's certificate, PEM.
    pub authority: PathBuf,
    /// The server's certificate, PEM.
    pub chain: PathBuf,
    /// The server's private key, PEM.
    pub key: PathBuf,
    /// The name that a client asks for and expects in the server's certificate.
    pub name: &'static str,
    root: CertificateDer<'static>,
}

impl Certificates {
    /// Makes them in `folder`: `ca.pem`, `server.pem`, `server.key`.
    ///
    /// # Errors
    /// When a key cannot be made or a file cannot be written.
    pub fn make(folder: &Path) -> Result<Self> {
        let authority_key = KeyPair::generate()?;
        let mut authority = CertificateParams::default();
        authority
            .distinguished_name
            .push(DnType::CommonName, "portcullis tests");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority_certificate = authority.self_signed(&authority_key)?;

        let server_key = KeyPair::generate()?;
        let mut server = CertificateParams::new(vec![
            SERVER_NAME.to_owned(),
            "localhost".to_owned(),
            "127.0.0.1".to_owned(),
        ])?;
        server
            .distinguished_name
            .push(DnType::CommonName, SERVER_NAME);
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let server_certificate = server.signed_by(
            &server_key,
            &Issuer::from_params(&authority, &authority_key),
        )?;

        let made = Self {
            authority: folder.join("ca.pem"),
            chain: folder.join("server.pem"),
            key: folder.join("server.key"),
            name: SERVER_NAME,
            root: authority_certificate.der().clone(),
        };
        for (path, text) in [
            (&made.authority, authority_certificate.pem()),
            (&made.chain, server_certificate.pem()),
            (&made.key, server_key.serialize_pem()),
        ] {
            fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(made)
    }

    /// Only the trust in an authority that somebody else made, the file `authority` (PEM), for a server called
    /// `name`. Chain and key are empty.
    ///
    /// # Errors
    /// When the file holds no certificate.
    pub fn trusting(authority: &Path, name: &'static str) -> Result<Self> {
        let root = CertificateDer::from_pem_file(authority)
            .map_err(|error| anyhow::anyhow!("{}: {error}", authority.display()))?;
        Ok(Self {
            authority: authority.to_path_buf(),
            chain: PathBuf::new(),
            key: PathBuf::new(),
            name,
            root,
        })
    }

    /// A server's configuration with this chain and key, offering `alpn`.
    ///
    /// # Errors
    /// When the files are not what they were.
    pub fn server(&self, alpn: &[u8]) -> Result<Arc<ServerConfig>> {
        let chain = CertificateDer::pem_file_iter(&self.chain)
            .and_then(Iterator::collect)
            .map_err(|error| anyhow::anyhow!("{}: {error}", self.chain.display()))?;
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|error| anyhow::anyhow!("{}: {error}", self.key.display()))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![alpn.to_vec()];
        Ok(Arc::new(config))
    }

    /// A client's configuration that trusts the authority and speaks exactly `version`, offering `alpn`.
    ///
    /// # Errors
    /// When rustls refuses the version.
    pub fn client(
        &self,
        version: &'static rustls::SupportedProtocolVersion,
        alpn: &[u8],
    ) -> Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        Ok(Arc::new(config))
    }
}
