//! Our `CryptoProvider` for `jsonwebtoken`: the host's crypto first, RustCrypto in the guest where the host has none.
//!
//! `jsonwebtoken` asks a provider for a verifier with bare functions, a key in bytes, and no room for a parsed key; its
//! own providers therefore parse the key for every token, which more than doubles the cost of RS256 in Wasm. Here the
//! bytes of a `DecodingKey` are no key but the number under which the parsed one is enrolled in this thread; an
//! [`EnrolledKey`] owns that number and gives it back when it is dropped. A number that is not enrolled verifies nothing.
//!
//! Signing is refused, as are the key conversions of `jsonwebtoken::jwk`: no private key belongs in a proxy.
//!
//! Of the rest of `jsonwebtoken` only `crypto::verify` is used. Its `decode` reads header and claims with the last of
//! two equal members winning, ignores `crit` and `typ`, and takes the time from the system instead of from the host.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::OnceLock;

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind, Result};
use jsonwebtoken::signature::{Error as SignatureError, Verifier};
use jsonwebtoken::{DecodingKey, EncodingKey};
use portcullis_sdk::{Foreign, Verified};

use crate::algorithm::{Algorithm, HostScheme};
use crate::der;
use crate::keys::Key;

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: refuse_signer,
    verifier_factory,
    key_utils: KeyUtils {
        rsa_pub_components_from_private_key: |_| refused(),
        rsa_pub_components_from_public_key: |_| refused(),
        ec_pub_components_from_private_key: |_, _| refused(),
        ed_pub_components_from_private_key: |_, _| refused(),
        compute_digest: |_, _| refused(),
    },
};

/// Makes this the process's provider; false if another one was there first, and then nothing can be verified.
pub(crate) fn install() -> bool {
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    *INSTALLED.get_or_init(|| PROVIDER.install_default().is_ok())
}

thread_local! {
    static ENROLLED: RefCell<BTreeMap<u64, Rc<Key>>> = const { RefCell::new(BTreeMap::new()) };
    static NEXT_NUMBER: Cell<u64> = const { Cell::new(0) };
    /// Whom the verification under way asks first: a provider's functions take no argument for it.
    static ASKED: RefCell<Option<Rc<HostCrypto>>> = const { RefCell::new(None) };
}

/// The host's crypto, and what has been found missing there.
#[derive(Debug)]
pub(crate) struct HostCrypto {
    foreign: Foreign,
    not_served: RefCell<Vec<Algorithm>>,
}

impl HostCrypto {
    pub(crate) fn new(foreign: Foreign) -> Rc<Self> {
        Rc::new(Self {
            foreign,
            not_served: RefCell::default(),
        })
    }

    /// The host's verdict; `None` where it gives none, which is remembered for good. All arguments are well formed
    /// whatever a client sends, so no client can bring that about and make later tokens dear.
    fn verify(&self, key: &Key, scheme: HostScheme, text: &[u8], signature: &[u8]) -> Option<bool> {
        let algorithm = key.algorithm();
        if self.not_served.borrow().contains(&algorithm) {
            return None;
        }
        let verified = if scheme.ecdsa {
            self.foreign.verify_signature(
                scheme.hash,
                key.spki(),
                &der::ecdsa_signature(signature),
                text,
            )
        } else {
            self.foreign
                .verify_signature(scheme.hash, key.spki(), signature, text)
        };
        match verified {
            Ok(Verified::Good) => Some(true),
            Ok(Verified::Bad) => Some(false),
            Ok(Verified::Unavailable) | Err(_) => {
                self.not_served.borrow_mut().push(algorithm);
                None
            }
        }
    }
}

/// A parsed key under its number.
#[derive(Debug)]
pub(crate) struct EnrolledKey {
    number: u64,
    key: Rc<Key>,
    decoding: DecodingKey,
}

impl EnrolledKey {
    pub(crate) fn new(key: Key) -> Self {
        let key = Rc::new(key);
        let number = NEXT_NUMBER.replace(NEXT_NUMBER.get() + 1);
        ENROLLED.with_borrow_mut(|enrolled| enrolled.insert(number, Rc::clone(&key)));
        let bytes = number.to_be_bytes();
        let decoding = match key.algorithm() {
            Algorithm::ES256 | Algorithm::ES384 => DecodingKey::from_ec_der(&bytes),
            Algorithm::EdDSA => DecodingKey::from_ed_der(&bytes),
            _ => DecodingKey::from_rsa_der(&bytes),
        };
        Self {
            number,
            key,
            decoding,
        }
    }

    /// Never used twice in a thread, so it names this very key.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn key(&self) -> &Key {
        &self.key
    }

    /// Whether `signature` (strict base64url) is this key's over `text`. Without a host that serves the
    /// algorithm, the guest verifies.
    pub(crate) fn verify(
        &self,
        host: Option<&Rc<HostCrypto>>,
        text: &str,
        signature: &str,
    ) -> bool {
        ASKED.set(host.cloned());
        let algorithm = self.key.algorithm().jose();
        let good =
            jsonwebtoken::crypto::verify(signature, text.as_bytes(), &self.decoding, algorithm);
        ASKED.set(None);
        matches!(good, Ok(true))
    }
}

impl Drop for EnrolledKey {
    fn drop(&mut self) {
        // At the end of a thread the list may be gone before its last key.
        let _ = ENROLLED.try_with(|enrolled| enrolled.borrow_mut().remove(&self.number));
    }
}

fn refused<T>() -> Result<T> {
    Err(Error::from(ErrorKind::UnsupportedAlgorithm))
}

fn refuse_signer(_: &jsonwebtoken::Algorithm, _: &EncodingKey) -> Result<Box<dyn JwtSigner>> {
    refused()
}

fn verifier_factory(
    algorithm: &jsonwebtoken::Algorithm,
    key: &DecodingKey,
) -> Result<Box<dyn JwtVerifier>> {
    let number = key
        .try_get_as_bytes()?
        .try_into()
        .map(u64::from_be_bytes)
        .map_err(|_| ErrorKind::InvalidKeyFormat)?;
    let key = ENROLLED
        .with_borrow(|enrolled| enrolled.get(&number).cloned())
        .ok_or(ErrorKind::InvalidKeyFormat)?;
    if key.algorithm().jose() != *algorithm {
        return Err(Error::from(ErrorKind::InvalidAlgorithm));
    }
    Ok(Box::new(HostFirst(key)))
}

struct HostFirst(Rc<Key>);

impl JwtVerifier for HostFirst {
    fn algorithm(&self) -> jsonwebtoken::Algorithm {
        self.0.algorithm().jose()
    }
}

impl Verifier<Vec<u8>> for HostFirst {
    fn verify(&self, text: &[u8], signature: &Vec<u8>) -> std::result::Result<(), SignatureError> {
        let key = &*self.0;
        if !key.fits(signature) {
            return Err(SignatureError::new());
        }
        let asked = ASKED
            .with_borrow(Clone::clone)
            .zip(key.algorithm().host_scheme());
        let verdict = asked.and_then(|(host, scheme)| host.verify(key, scheme, text, signature));
        if verdict.unwrap_or_else(|| key.verify(text, signature)) {
            Ok(())
        } else {
            Err(SignatureError::new())
        }
    }
}
