//! A certificate authority made on the spot, a server certificate under it, and what a client needs to trust it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
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
    /// What a client shows of itself.
    pub identity: Option<Identity>,
    root: CertificateDer<'static>,
}

/// A client's certificate and its key.
#[derive(Debug)]
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

/// Who signs the certificates of clients.
#[derive(Debug)]
pub struct ClientAuthority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate.
    pub pem: String,
}

impl ClientAuthority {
    /// Makes one called `name`.
    ///
    /// # Errors
    /// When a key cannot be made.
    pub fn make(name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let params = authority(name);
        let pem = params.self_signed(&key)?.pem();
        Ok(Self {
            issuer: Issuer::new(params, key),
            pem,
        })
    }

    /// A certificate for a client with this subject and these alternative names.
    ///
    /// # Errors
    /// When a key cannot be made.
    pub fn sign(&self, subject: &[(DnType, &str)], names: Vec<SanType>) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let mut client = CertificateParams::default();
        client.subject_alt_names = names;
        client.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in subject {
            client.distinguished_name.push(kind.clone(), *value);
        }
        client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = client.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        Ok(Identity {
            certificate: certificate.der().clone(),
            key,
        })
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(DnType::CommonName, name);
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    authority
}

impl Certificates {
    /// Makes them in `folder`: `ca.pem`, `server.pem`, `server.key`.
    ///
    /// # Errors
    /// When a key cannot be made or a file cannot be written.
    pub fn make(folder: &Path) -> Result<Self> {
        let authority_key = KeyPair::generate()?;
        let authority = authority("portcullis tests");
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
            identity: None,
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
            identity: None,
            root,
        })
    }

    /// A server's configuration with this chain and key, offering `alpn`.
    ///
    /// # Errors
    /// When the files are not what they were.
    pub fn server(&self, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>> {
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
        config.alpn_protocols = alpn.iter().map(|alpn| alpn.to_vec()).collect();
        Ok(Arc::new(config))
    }

    /// The same for a client that shows `identity` where it is asked for one.
    #[must_use]
    pub fn identified(mut self, identity: Identity) -> Self {
        self.identity = Some(identity);
        self
    }

    /// A client's configuration that trusts the authority and speaks exactly `version`, offering `alpn`.
    ///
    /// # Errors
    /// When rustls refuses the version or the client's key.
    pub fn client(
        &self,
        version: &'static rustls::SupportedProtocolVersion,
        alpn: &[u8],
    ) -> Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])?
            .with_root_certificates(roots);
        let mut config = match &self.identity {
            None => config.with_no_client_auth(),
            Some(Identity { certificate, key }) => {
                config.with_client_auth_cert(vec![certificate.clone()], key.clone_key())?
            }
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        Ok(Arc::new(config))
    }
}
