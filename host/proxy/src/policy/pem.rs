//! Certificates and keys, read from PEM into what rustls works with.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::limits::PEM_BYTES_MAX;
use super::reader::Field;

/// Certificates to trust, and the file they came from.
#[derive(Clone, Debug)]
pub struct TrustedCertificates {
    /// Absolute path.
    pub file: PathBuf,
    /// At least one certificate.
    pub roots: Arc<RootCertStore>,
}

impl TrustedCertificates {
    /// Whether they trust the same.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.roots.roots == other.roots.roots
    }
}

/// The certificates of a CA file.
pub(super) fn trusted(field: &Field<'_>) -> Option<TrustedCertificates> {
    let (file, pem) = field.file(PEM_BYTES_MAX)?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(field, &file, &pem)? {
        if let Err(error) = roots.add(certificate) {
            field.refuse(format!(
                "{} holds a certificate that cannot be trusted: {error}",
                file.display()
            ));
            return None;
        }
    }
    Some(TrustedCertificates {
        file,
        roots: Arc::new(roots),
    })
}

/// A chain and the key that belongs to its first certificate, checked against each other.
pub(super) fn certified_key(
    chain: &Field<'_>,
    key: &Field<'_>,
) -> Option<(PathBuf, PathBuf, Arc<CertifiedKey>)> {
    let certificates = chain
        .file(PEM_BYTES_MAX)
        .and_then(|(file, pem)| Some((certificates(chain, &file, &pem)?, file)));
    let private = key.file(PEM_BYTES_MAX).and_then(|(file, pem)| {
        let parsed = PrivateKeyDer::from_pem_slice(&pem);
        let signing = parsed.map_err(|_| format!("{} holds no PEM private key", file.display()));
        let signing = signing.and_then(|der| {
            rustls::crypto::aws_lc_rs::sign::any_supported_type(&der).map_err(|_| {
                format!(
                    "{} holds a private key of a kind that is not supported",
                    file.display()
                )
            })
        });
        match signing {
            Ok(signing) => Some((signing, file)),
            Err(reason) => {
                key.refuse(reason);
                None
            }
        }
    });
    let ((certificates, chain_file), (signing, key_file)) = (certificates?, private?);
    let certified = CertifiedKey::new(certificates, signing);
    match certified.keys_match() {
        Ok(()) => Some((chain_file, key_file, Arc::new(certified))),
        Err(rustls::Error::InconsistentKeys(_)) => {
            key.refuse(format!(
                "{} does not belong to the certificate in {}",
                key_file.display(),
                chain_file.display()
            ));
            None
        }
        Err(error) => {
            chain.refuse(format!(
                "{} does not start with a certificate: {error}",
                chain_file.display()
            ));
            None
        }
    }
}

fn certificates(
    field: &Field<'_>,
    file: &std::path::Path,
    pem: &[u8],
) -> Option<Vec<CertificateDer<'static>>> {
    match CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>() {
        Ok(certificates) if !certificates.is_empty() => Some(certificates),
        Ok(_) => {
            field.refuse(format!("{} holds no PEM certificate", file.display()));
            None
        }
        Err(error) => {
            let error = error.to_string().to_lowercase();
            field.refuse(format!("{} is not PEM: {error}", file.display()));
            None
        }
    }
}
