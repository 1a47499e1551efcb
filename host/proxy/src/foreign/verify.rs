//! `verify_signature`.
//!
//! A key is parsed once and kept: parsing costs as much as half the verification, and a JWKS has few keys. What is kept is bounded, and
//! looked up by the whole key, so a plugin cannot be given another's.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use aws_lc_rs::signature::{self, ParsedPublicKey, VerificationAlgorithm};
use bytes::Bytes;
use portcullis_runtime::Status;
use prost::Message;
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;

use crate::limits::{KEY_BYTES_MAX, KEYS_MAX};

/// What a plugin asks. Exactly one of the two key forms is given.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct VerifySignatureArguments {
    /// `sha256` and so on, in any case.
    #[prost(string, tag = "1")]
    pub(crate) hash_function: String,
    /// SPKI in DER.
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) public_key: Bytes,
    /// ECDSA in DER, RSA as it is.
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) signature: Bytes,
    /// What was signed.
    #[prost(bytes = "bytes", tag = "4")]
    pub(crate) text: Bytes,
    /// SPKI in PEM.
    #[prost(string, tag = "5")]
    pub(crate) public_key_pem: String,
}

/// What it gets.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct VerifySignatureResult {
    /// Whether the signature is the key's.
    #[prost(bool, tag = "1")]
    pub(crate) result: bool,
    /// Why not.
    #[prost(string, tag = "2")]
    pub(crate) error: String,
}

/// The key types that `verify_signature` serves. Others fail, as in Envoy (no PSS parameters, no pure Ed25519).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyType {
    Rsa,
    P256,
    P384,
    P521,
}

struct Key {
    kind: KeyType,
    spki: Bytes,
    /// By hash, since aws-lc-rs ties a key to an algorithm.
    parsed: RefCell<Vec<(Hash, Rc<ParsedPublicKey>)>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hash {
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

/// The keys that one worker has parsed.
#[derive(Default)]
pub(super) struct Verifier {
    keys: RefCell<HashMap<Bytes, Rc<Key>>>,
}

impl Verifier {
    pub(super) fn verify_signature(&self, arguments: &[u8]) -> Result<Vec<u8>, Status> {
        // Envoy takes no argument at all for a bad one, although it decodes as an empty message.
        let arguments = match arguments {
            [] => return Err(Status::BadArgument),
            bytes => VerifySignatureArguments::decode(bytes).map_err(|_| Status::BadArgument)?,
        };
        let error = match (
            arguments.public_key.is_empty(),
            arguments.public_key_pem.is_empty(),
        ) {
            (true, true) | (false, false) => return Err(Status::BadArgument),
            (false, true) => self.verify(&arguments.public_key, false, &arguments).err(),
            (true, false) => self
                .verify(arguments.public_key_pem.as_bytes(), true, &arguments)
                .err(),
        };
        let answer = VerifySignatureResult {
            result: error.is_none(),
            error: error.unwrap_or_default(),
        };
        Ok(answer.encode_to_vec())
    }

    fn verify(
        &self,
        given: &[u8],
        pem: bool,
        arguments: &VerifySignatureArguments,
    ) -> Result<(), String> {
        let hash = hash_of(&arguments.hash_function)
            .ok_or_else(|| format!("{} is not supported.", arguments.hash_function))?;
        let key = self.key(given, pem)?;
        let parsed = key.parsed(hash)?;
        let verdict = parsed.verify_sig(&arguments.text, &arguments.signature);
        verdict.map_err(|_| "Failed to verify digest. Error code: 0".to_owned())
    }

    fn key(&self, given: &[u8], pem: bool) -> Result<Rc<Key>, String> {
        if let Some(key) = self.keys.borrow().get(given) {
            return Ok(Rc::clone(key));
        }
        let invalid = || "Failed to initialize digest verify.".to_owned();
        if given.len() > KEY_BYTES_MAX {
            return Err(invalid());
        }
        let spki = if pem {
            let spki = SubjectPublicKeyInfoDer::from_pem_slice(given).map_err(|_| invalid())?;
            Bytes::copy_from_slice(spki.as_ref())
        } else {
            Bytes::copy_from_slice(given)
        };
        let kind = key_type(&spki).ok_or_else(invalid)?;
        let key = Rc::new(Key {
            kind,
            spki,
            parsed: RefCell::default(),
        });
        let mut keys = self.keys.borrow_mut();
        // Keys seldom change; starting afresh once in a long while is cheaper than an order of use on each look-up.
        if keys.len() >= KEYS_MAX {
            keys.clear();
        }
        keys.insert(Bytes::copy_from_slice(given), Rc::clone(&key));
        Ok(key)
    }
}

impl Key {
    fn parsed(&self, hash: Hash) -> Result<Rc<ParsedPublicKey>, String> {
        let mut parsed = self.parsed.borrow_mut();
        if let Some((_, key)) = parsed.iter().find(|(other, _)| *other == hash) {
            return Ok(Rc::clone(key));
        }
        let algorithm = algorithm(self.kind, hash).ok_or("Failed to initialize digest verify.")?;
        let key = ParsedPublicKey::new(algorithm, &self.spki[..])
            .map_err(|_| "Failed to initialize digest verify.")?;
        let key = Rc::new(key);
        parsed.push((hash, Rc::clone(&key)));
        Ok(key)
    }
}

/// Envoy's names (source/common/crypto/utility_impl.cc), compared without case.
pub(super) fn hash_of(name: &str) -> Option<Hash> {
    let names = [
        ("sha256", Hash::Sha256),
        ("sha384", Hash::Sha384),
        ("sha512", Hash::Sha512),
        ("sha1", Hash::Sha1),
        ("sha224", Hash::Sha224),
    ];
    names
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(name))
        .map(|(_, hash)| *hash)
}

fn algorithm(kind: KeyType, hash: Hash) -> Option<&'static dyn VerificationAlgorithm> {
    Some(match (kind, hash) {
        (KeyType::Rsa, Hash::Sha1) => &signature::RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY,
        (KeyType::Rsa, Hash::Sha256) => &signature::RSA_PKCS1_2048_8192_SHA256,
        (KeyType::Rsa, Hash::Sha384) => &signature::RSA_PKCS1_2048_8192_SHA384,
        (KeyType::Rsa, Hash::Sha512) => &signature::RSA_PKCS1_2048_8192_SHA512,
        (KeyType::P256, Hash::Sha256) => &signature::ECDSA_P256_SHA256_ASN1,
        (KeyType::P256, Hash::Sha384) => &signature::ECDSA_P256_SHA384_ASN1,
        (KeyType::P256, Hash::Sha512) => &signature::ECDSA_P256_SHA512_ASN1,
        (KeyType::P384, Hash::Sha256) => &signature::ECDSA_P384_SHA256_ASN1,
        (KeyType::P384, Hash::Sha384) => &signature::ECDSA_P384_SHA384_ASN1,
        (KeyType::P384, Hash::Sha512) => &signature::ECDSA_P384_SHA512_ASN1,
        (KeyType::P521, Hash::Sha224) => &signature::ECDSA_P521_SHA224_ASN1,
        (KeyType::P521, Hash::Sha256) => &signature::ECDSA_P521_SHA256_ASN1,
        (KeyType::P521, Hash::Sha384) => &signature::ECDSA_P521_SHA384_ASN1,
        (KeyType::P521, Hash::Sha512) => &signature::ECDSA_P521_SHA512_ASN1,
        _ => return None,
    })
}

fn key_type(spki: &[u8]) -> Option<KeyType> {
    use x509_parser::oid_registry as oid;
    use x509_parser::prelude::FromDer;
    let (rest, spki) = x509_parser::x509::SubjectPublicKeyInfo::from_der(spki).ok()?;
    if !rest.is_empty() {
        return None;
    }
    if spki.algorithm.algorithm == oid::OID_PKCS1_RSAENCRYPTION {
        return Some(KeyType::Rsa);
    }
    if spki.algorithm.algorithm != oid::OID_KEY_TYPE_EC_PUBLIC_KEY {
        return None;
    }
    let curve = spki.algorithm.parameters.as_ref()?.as_oid().ok()?;
    let curves = [
        (oid::OID_EC_P256, KeyType::P256),
        (oid::OID_NIST_EC_P384, KeyType::P384),
        (oid::OID_NIST_EC_P521, KeyType::P521),
    ];
    curves
        .iter()
        .find(|(known, _)| *known == curve)
        .map(|(_, kind)| *kind)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair,
        EcdsaSigningAlgorithm, KeyPair as _,
    };

    use super::*;

    /// A key as SPKI and PEM, and its signature over `text`.
    fn signed(algorithm: &'static EcdsaSigningAlgorithm, text: &[u8]) -> (Bytes, String, Bytes) {
        use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
        use base64::Engine as _;
        let key = EcdsaKeyPair::generate(algorithm).unwrap();
        let spki: PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
        let spki = Bytes::copy_from_slice(spki.as_ref());
        let encoded = base64::engine::general_purpose::STANDARD.encode(&spki);
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{encoded}\n-----END PUBLIC KEY-----\n");
        let signature = key.sign(&SystemRandom::new(), text).unwrap();
        (spki, pem, Bytes::copy_from_slice(signature.as_ref()))
    }

    #[test]
    fn signatures_are_verified_as_envoy_does() {
        let text = Bytes::from_static(b"header.payload");
        let (spki, pem, signature) = signed(&ECDSA_P256_SHA256_ASN1_SIGNING, &text);
        let (other, _, wide) = signed(&ECDSA_P384_SHA384_ASN1_SIGNING, &text);
        let none = Bytes::new;
        let functions = Verifier::default();
        let rows = [
            ("sha256", spki.clone(), "", signature.clone(), Ok(true)),
            ("SHA256", none(), &*pem, signature.clone(), Ok(true)),
            ("sha384", other.clone(), "", wide.clone(), Ok(true)),
            ("sha384", spki.clone(), "", signature.clone(), Ok(false)),
            ("sha256", other, "", signature.clone(), Ok(false)),
            ("sha256", spki.clone(), "", none(), Ok(false)),
            ("md5", spki.clone(), "", signature.clone(), Ok(false)),
            (
                "sha256",
                Bytes::from_static(b"no key"),
                "",
                signature.clone(),
                Ok(false),
            ),
            ("sha256", none(), "no key", signature.clone(), Ok(false)),
            (
                "sha256",
                spki,
                &*pem,
                signature.clone(),
                Err(Status::BadArgument),
            ),
            ("sha256", none(), "", signature, Err(Status::BadArgument)),
        ];
        for (index, (hash, public_key, public_key_pem, signature, expected)) in
            rows.into_iter().enumerate()
        {
            let arguments = VerifySignatureArguments {
                hash_function: hash.to_owned(),
                public_key,
                signature,
                text: text.clone(),
                public_key_pem: public_key_pem.to_owned(),
            };
            let answer = functions.verify_signature(&arguments.encode_to_vec());
            let verdict = answer.map(|bytes| VerifySignatureResult::decode(&*bytes).unwrap());
            assert_eq!(
                verdict
                    .as_ref()
                    .map(|verdict| verdict.result)
                    .map_err(|status| *status),
                expected,
                "row {index}"
            );
            if let Ok(verdict) = verdict {
                assert_eq!(verdict.error.is_empty(), verdict.result, "row {index}");
            }
        }
        for arguments in [&b""[..], b"\xff\xff"] {
            let answer = functions.verify_signature(arguments);
            assert_eq!(answer, Err(Status::BadArgument), "{arguments:?}");
        }
    }

    #[test]
    fn keys_that_are_kept_are_bounded() {
        let text = Bytes::from_static(b"x");
        let (spki, _, signature) = signed(&ECDSA_P256_SHA256_ASN1_SIGNING, &text);
        let functions = Verifier::default();
        let verify = |public_key: Bytes| {
            let arguments = VerifySignatureArguments {
                hash_function: "sha256".into(),
                public_key,
                signature: signature.clone(),
                text: text.clone(),
                public_key_pem: String::new(),
            };
            functions
                .verify_signature(&arguments.encode_to_vec())
                .unwrap();
            functions.keys.borrow().len()
        };
        assert_eq!(verify(spki.clone()), 1);
        assert_eq!(verify(spki), 1, "the same key");
        for _ in 0..KEYS_MAX {
            let (other, _, _) = signed(&ECDSA_P256_SHA256_ASN1_SIGNING, &text);
            assert!(verify(other) <= KEYS_MAX);
        }
        assert_eq!(functions.keys.borrow().len(), 1, "started afresh");
        assert_eq!(
            verify(Bytes::from(vec![0; KEY_BYTES_MAX + 1])),
            1,
            "too large to be kept"
        );
    }
}
