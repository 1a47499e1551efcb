//! Public keys, parsed once: when the configuration or a fetched set is read, never for a token. A key serves exactly
//! one algorithm (RFC 8725 section 3.1), and `Key` cannot be made from a weak or malformed one.

use ed25519_dalek::VerifyingKey as Ed25519Key;
use p256::ecdsa::VerifyingKey as P256Key;
use p384::ecdsa::VerifyingKey as P384Key;
use rsa::pkcs1v15::Pkcs1v15Sign;
use rsa::pss::Pss;
use rsa::traits::PublicKeyParts as _;
use rsa::{BoxedUint, RsaPublicKey};
use sha2::{Digest as _, Sha256, Sha384, Sha512};

use crate::algorithm::Algorithm;
use crate::{der, limits};

/// A key and what it checks.
#[derive(Debug)]
pub(crate) struct Key {
    algorithm: Algorithm,
    material: Material,
    /// SubjectPublicKeyInfo, for the host. Also what tells whether two keys are the same.
    spki: Vec<u8>,
}

#[derive(Debug)]
enum Material {
    Rsa(RsaPublicKey),
    P256(P256Key),
    P384(P384Key),
    Ed25519(Ed25519Key),
}

impl Key {
    /// An RSA key; both numbers big-endian.
    pub(crate) fn rsa(
        algorithm: Algorithm,
        modulus: &[u8],
        exponent: &[u8],
    ) -> Result<Self, &'static str> {
        use Algorithm::{PS256, PS384, PS512, RS256, RS384, RS512};
        if !matches!(algorithm, RS256 | RS384 | RS512 | PS256 | PS384 | PS512) {
            return Err("an RSA key does not fit its `alg`");
        }
        if exponent.iter().all(|byte| *byte == 0)
            || exponent.last().is_some_and(|last| last & 1 == 0)
        {
            return Err("the public exponent must be odd");
        }
        if exponent.iter().rev().skip(1).all(|byte| *byte == 0) && exponent.last() == Some(&1) {
            return Err("the public exponent must be above 1");
        }
        let bits = significant_bits(modulus);
        if bits < limits::RSA_BITS_MIN {
            return Err("an RSA key must have 2048 bits or more");
        }
        if bits > limits::RSA_BITS_MAX {
            return Err("an RSA key must have 8192 bits or fewer");
        }
        let key = RsaPublicKey::new_with_size_limits(
            BoxedUint::from_be_slice_vartime(modulus),
            BoxedUint::from_be_slice_vartime(exponent),
            limits::RSA_BITS_MIN..=limits::RSA_BITS_MAX,
        )
        .map_err(|_| "not an RSA key")?;
        Ok(Self {
            algorithm,
            material: Material::Rsa(key),
            spki: der::rsa_public_key(modulus, exponent),
        })
    }

    /// A P-256 key from its coordinates of 32 bytes each.
    pub(crate) fn p256(algorithm: Algorithm, x: &[u8], y: &[u8]) -> Result<Self, &'static str> {
        if algorithm != Algorithm::ES256 {
            return Err("a P-256 key does not fit its `alg`");
        }
        let point = uncompressed_point(x, y, 32)?;
        let key = P256Key::from_sec1_bytes(&point).map_err(|_| "not a point on P-256")?;
        Ok(Self {
            algorithm,
            material: Material::P256(key),
            spki: der::p256_public_key(&point),
        })
    }

    /// A P-384 key from its coordinates of 48 bytes each.
    pub(crate) fn p384(algorithm: Algorithm, x: &[u8], y: &[u8]) -> Result<Self, &'static str> {
        if algorithm != Algorithm::ES384 {
            return Err("a P-384 key does not fit its `alg`");
        }
        let point = uncompressed_point(x, y, 48)?;
        let key = P384Key::from_sec1_bytes(&point).map_err(|_| "not a point on P-384")?;
        Ok(Self {
            algorithm,
            material: Material::P384(key),
            spki: der::p384_public_key(&point),
        })
    }

    /// An Ed25519 key of 32 bytes.
    pub(crate) fn ed25519(algorithm: Algorithm, x: &[u8]) -> Result<Self, &'static str> {
        if algorithm != Algorithm::EdDSA {
            return Err("an Ed25519 key does not fit its `alg`");
        }
        let bytes = x.try_into().map_err(|_| "an Ed25519 key has 32 bytes")?;
        let key = Ed25519Key::from_bytes(bytes).map_err(|_| "not a point on Ed25519")?;
        if key.is_weak() {
            return Err("an Ed25519 key of small order");
        }
        Ok(Self {
            algorithm,
            material: Material::Ed25519(key),
            spki: x.to_vec(),
        })
    }

    pub(crate) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The key as SubjectPublicKeyInfo; of Ed25519, which no host is asked about, the bare 32 bytes.
    pub(crate) fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// Whether a signature has the one length that this key's signatures have. Asked first: what fails here costs nothing.
    pub(crate) fn fits(&self, signature: &[u8]) -> bool {
        signature.len()
            == match &self.material {
                Material::Rsa(key) => key.size(),
                Material::P256(_) | Material::Ed25519(_) => 64,
                Material::P384(_) => 96,
            }
    }

    /// Checks a signature (JOSE encoding) over `text` in the guest.
    pub(crate) fn verify(&self, text: &[u8], signature: &[u8]) -> bool {
        use p256::ecdsa::signature::Verifier as _;
        match &self.material {
            Material::Rsa(key) => verify_rsa(key, self.algorithm, text, signature),
            Material::P256(key) => p256::ecdsa::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify(text, &signature).is_ok()),
            Material::P384(key) => p384::ecdsa::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify(text, &signature).is_ok()),
            // Strict: no small-order points, so a signature belongs to one key and one message.
            Material::Ed25519(key) => ed25519_dalek::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify_strict(text, &signature).is_ok()),
        }
    }
}

fn verify_rsa(key: &RsaPublicKey, algorithm: Algorithm, text: &[u8], signature: &[u8]) -> bool {
    let verified = match algorithm {
        Algorithm::RS256 => key.verify(
            Pkcs1v15Sign::new::<Sha256>(),
            &Sha256::digest(text),
            signature,
        ),
        Algorithm::RS384 => key.verify(
            Pkcs1v15Sign::new::<Sha384>(),
            &Sha384::digest(text),
            signature,
        ),
        Algorithm::RS512 => key.verify(
            Pkcs1v15Sign::new::<Sha512>(),
            &Sha512::digest(text),
            signature,
        ),
        // The salt is as long as the hash (RFC 7518 section 3.5): `Pss::new` holds it to that.
        Algorithm::PS256 => key.verify(Pss::<Sha256>::new(), &Sha256::digest(text), signature),
        Algorithm::PS384 => key.verify(Pss::<Sha384>::new(), &Sha384::digest(text), signature),
        Algorithm::PS512 => key.verify(Pss::<Sha512>::new(), &Sha512::digest(text), signature),
        Algorithm::ES256 | Algorithm::ES384 | Algorithm::EdDSA => return false,
    };
    verified.is_ok()
}

fn significant_bits(big_endian: &[u8]) -> usize {
    let zeros: usize = big_endian
        .iter()
        .map(|byte| byte.leading_zeros() as usize)
        .scan(true, |leading, zeros| {
            std::mem::replace(leading, *leading && zeros == 8).then_some(zeros)
        })
        .sum();
    big_endian.len() * 8 - zeros
}

fn uncompressed_point(x: &[u8], y: &[u8], size: usize) -> Result<Vec<u8>, &'static str> {
    // RFC 7518 section 6.2.1.2: always the full size, never trimmed.
    if x.len() != size || y.len() != size {
        return Err("`x` and `y` must have the full size of the curve");
    }
    Ok([&[4], x, y].concat())
}

#[cfg(test)]
mod tests {
    use super::significant_bits;

    #[test]
    fn bits_are_counted_from_the_first_one() {
        for (number, bits) in [
            (&[][..], 0),
            (&[0, 0], 0),
            (&[1], 1),
            (&[0, 1, 0], 9),
            (&[0x80, 0], 16),
            (&[0, 0x7f], 7),
        ] {
            assert_eq!(significant_bits(number), bits, "{number:?}");
        }
    }
}
