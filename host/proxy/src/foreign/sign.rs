//! `sign`: RSA (PKCS #1 v1.5) and ECDSA (DER), with a private key that the plugin brings.
//!
//! aws-lc-rs ties a curve to the hash of its size, so P-256 signs with SHA-256 only, P-384 with SHA-384, P-521 with any; Envoy takes every pair.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair as RsaKeyPair;
use aws_lc_rs::signature::{self, EcdsaKeyPair, EcdsaSigningAlgorithm, RsaEncoding};
use bytes::Bytes;
use portcullis_runtime::Status;
use prost::Message;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;

use super::verify::{Hash, hash_of};
use crate::limits::PRIVATE_KEY_BYTES_MAX;

/// What a plugin asks. Exactly one of the two key forms is given.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SignArguments {
    /// `sha256` and so on, in any case.
    #[prost(string, tag = "1")]
    pub(crate) hash_function: String,
    /// PKCS #8 in DER.
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) private_key: Bytes,
    /// What is to be signed.
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) text: Bytes,
    /// PKCS #8, PKCS #1 or SEC 1 in PEM.
    #[prost(string, tag = "4")]
    pub(crate) private_key_pem: String,
}

/// What it gets.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct SignResult {
    /// Whether it was signed.
    #[prost(bool, tag = "1")]
    pub(crate) result: bool,
    /// The signature.
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) signature: Vec<u8>,
    /// Why not.
    #[prost(string, tag = "3")]
    pub(crate) error: String,
}

const NO_KEY: &str = "Invalid key type: private key required for signing operation.";
const INVALID_KEY: &str = "Invalid private key: key data is corrupted or malformed.";

pub(super) fn sign(arguments: &[u8]) -> Result<Vec<u8>, Status> {
    let arguments = SignArguments::decode(arguments).map_err(|_| Status::BadArgument)?;
    let (der, pem) = (&arguments.private_key, &arguments.private_key_pem);
    if der.is_empty() == pem.is_empty() {
        return Err(Status::BadArgument);
    }
    let key = match der.len().max(pem.len()) {
        ..=PRIVATE_KEY_BYTES_MAX if der.is_empty() => {
            PrivateKeyDer::from_pem_slice(pem.as_bytes()).ok()
        }
        ..=PRIVATE_KEY_BYTES_MAX => Some(PrivateKeyDer::Pkcs8(der.to_vec().into())),
        _ => None,
    };
    let signed = match (hash_of(&arguments.hash_function), key) {
        (None, _) => Err(format!("{} is not supported.", arguments.hash_function)),
        (Some(_), None) => Err(NO_KEY.to_owned()),
        (Some(hash), Some(key)) => signature_of(&key, hash, &arguments.text).map_err(str::to_owned),
    };
    let (signature, error) = match signed {
        Ok(signature) => (signature, String::new()),
        Err(error) => (Vec::new(), error),
    };
    let answer = SignResult {
        result: error.is_empty(),
        signature,
        error,
    };
    Ok(answer.encode_to_vec())
}

fn signature_of(key: &PrivateKeyDer<'_>, hash: Hash, text: &[u8]) -> Result<Vec<u8>, &'static str> {
    let rsa = match key {
        PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()).ok(),
        PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).ok(),
        _ => None,
    };
    let random = SystemRandom::new();
    if let Some(key) = rsa {
        let encoding = rsa_encoding(hash).ok_or(INVALID_KEY)?;
        let mut signature = vec![0; key.public_modulus_len()];
        key.sign(encoding, &random, text, &mut signature)
            .map_err(|_| INVALID_KEY)?;
        return Ok(signature);
    }
    let mut fault = NO_KEY;
    for (of, algorithm) in curves() {
        let found = match key {
            PrivateKeyDer::Pkcs8(der) => {
                EcdsaKeyPair::from_pkcs8(algorithm, der.secret_pkcs8_der())
            }
            PrivateKeyDer::Sec1(der) => {
                EcdsaKeyPair::from_private_key_der(algorithm, der.secret_sec1_der())
            }
            _ => break,
        };
        let Ok(key) = found else { continue };
        if of == hash {
            let signature = key.sign(&random, text).map_err(|_| INVALID_KEY)?;
            return Ok(signature.as_ref().to_vec());
        }
        fault = INVALID_KEY;
    }
    Err(fault)
}

fn rsa_encoding(hash: Hash) -> Option<&'static dyn RsaEncoding> {
    Some(match hash {
        Hash::Sha256 => &signature::RSA_PKCS1_SHA256,
        Hash::Sha384 => &signature::RSA_PKCS1_SHA384,
        Hash::Sha512 => &signature::RSA_PKCS1_SHA512,
        // No new signature should rest on these.
        Hash::Sha1 | Hash::Sha224 => return None,
    })
}

fn curves() -> [(Hash, &'static EcdsaSigningAlgorithm); 6] {
    [
        (Hash::Sha256, &signature::ECDSA_P256_SHA256_ASN1_SIGNING),
        (Hash::Sha384, &signature::ECDSA_P384_SHA384_ASN1_SIGNING),
        (Hash::Sha224, &signature::ECDSA_P521_SHA224_ASN1_SIGNING),
        (Hash::Sha256, &signature::ECDSA_P521_SHA256_ASN1_SIGNING),
        (Hash::Sha384, &signature::ECDSA_P521_SHA384_ASN1_SIGNING),
        (Hash::Sha512, &signature::ECDSA_P521_SHA512_ASN1_SIGNING),
    ]
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
    use aws_lc_rs::rsa::KeySize;
    use aws_lc_rs::signature::KeyPair as _;

    use super::*;
    use crate::foreign::ForeignFunctions;
    use crate::foreign::verify::{VerifySignatureArguments, VerifySignatureResult};

    fn call(hash: &str, der: &[u8], pem: &str) -> Result<SignResult, Status> {
        let arguments = SignArguments {
            hash_function: hash.into(),
            private_key: Bytes::copy_from_slice(der),
            text: Bytes::from_static(b"text"),
            private_key_pem: pem.into(),
        };
        sign(&arguments.encode_to_vec()).map(|bytes| SignResult::decode(&*bytes).unwrap())
    }

    fn pem(label: &str, der: &[u8]) -> String {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
    }

    #[test]
    fn what_is_signed_is_verified() {
        let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let rsa_der = AsDer::<Pkcs8V1Der<'_>>::as_der(&rsa).unwrap();
        let rsa_public = AsDer::<PublicKeyX509Der<'_>>::as_der(rsa.public_key()).unwrap();
        let ec = EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        let ec_der = ec.to_pkcs8v1().unwrap();
        let ec_public = AsDer::<PublicKeyX509Der<'_>>::as_der(ec.public_key()).unwrap();
        let (rsa_der, ec_der) = (rsa_der.as_ref(), ec_der.as_ref());
        let (rsa_public, ec_public) = (rsa_public.as_ref(), ec_public.as_ref());
        let rsa_pem = pem("PRIVATE KEY", rsa_der);
        for (hash, der, pem, public) in [
            ("sha256", rsa_der, "", rsa_public),
            ("SHA512", rsa_der, "", rsa_public),
            ("sha384", b"", &*rsa_pem, rsa_public),
            ("sha256", ec_der, "", ec_public),
        ] {
            let signed = call(hash, der, pem).unwrap();
            assert!(
                signed.result && signed.error.is_empty(),
                "{hash}: {signed:?}"
            );
            let arguments = VerifySignatureArguments {
                hash_function: hash.into(),
                public_key: Bytes::copy_from_slice(public),
                signature: signed.signature.into(),
                text: Bytes::from_static(b"text"),
                public_key_pem: String::new(),
            };
            let verified = ForeignFunctions::default()
                .call("verify_signature", &arguments.encode_to_vec())
                .unwrap();
            assert!(VerifySignatureResult::decode(&*verified).unwrap().result);
        }
        for (hash, der) in [("sha384", ec_der), ("sha1", rsa_der), ("md5", rsa_der)] {
            let refused = call(hash, der, "").unwrap();
            assert!(!refused.result && !refused.error.is_empty(), "{hash}");
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let large = vec![0; PRIVATE_KEY_BYTES_MAX + 1];
        for (der, pem) in [(&b"no key"[..], ""), (b"", "no key"), (&large, "")] {
            let refused = call("sha256", der, pem).unwrap();
            assert!(!refused.result && refused.error == NO_KEY, "{refused:?}");
        }
        for (der, pem) in [(&b""[..], ""), (b"key", "key")] {
            assert_eq!(call("sha256", der, pem), Err(Status::BadArgument));
        }
        assert_eq!(sign(b"\xff\xff"), Err(Status::BadArgument));
    }
}
