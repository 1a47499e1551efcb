//! The little DER that leaves this control: public keys as SubjectPublicKeyInfo and ECDSA signatures as
//! `SEQUENCE { INTEGER r, INTEGER s }`, the shapes that `verify_signature` takes (X.690; RFC 3279 section 2.2.3;
//! RFC 5280 section 4.1; RFC 5480; RFC 8410). Nothing is read here, so nothing can be misread.

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const SEQUENCE: u8 = 0x30;

/// `AlgorithmIdentifier { rsaEncryption, NULL }`
const RSA: &[u8] = &[
    0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00,
];
/// `AlgorithmIdentifier { id-ecPublicKey, prime256v1 }`
const P256: &[u8] = &[
    0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48,
    0xce, 0x3d, 0x03, 0x01, 0x07,
];
/// `AlgorithmIdentifier { id-ecPublicKey, secp384r1 }`
const P384: &[u8] = &[
    0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81, 0x04,
    0x00, 0x22,
];

/// The SubjectPublicKeyInfo of an RSA key; both numbers big-endian.
pub(crate) fn rsa_public_key(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    let numbers = [integer(modulus), integer(exponent)].concat();
    public_key(RSA, &element(SEQUENCE, &numbers))
}

/// The SubjectPublicKeyInfo of a P-256 key; an uncompressed point of 65 bytes.
pub(crate) fn p256_public_key(point: &[u8]) -> Vec<u8> {
    public_key(P256, point)
}

/// The SubjectPublicKeyInfo of a P-384 key; an uncompressed point of 97 bytes.
pub(crate) fn p384_public_key(point: &[u8]) -> Vec<u8> {
    public_key(P384, point)
}

/// A JOSE signature `r ‖ s` (RFC 7518 section 3.4) as DER.
pub(crate) fn ecdsa_signature(concatenated: &[u8]) -> Vec<u8> {
    let (r, s) = concatenated.split_at(concatenated.len() / 2);
    element(SEQUENCE, &[integer(r), integer(s)].concat())
}

fn public_key(algorithm: &[u8], key: &[u8]) -> Vec<u8> {
    let bits = element(BIT_STRING, &[&[0], key].concat());
    element(SEQUENCE, &[algorithm, &bits].concat())
}

/// An unsigned number: no needless zero byte in front, one where the first bit would read as a minus.
fn integer(big_endian: &[u8]) -> Vec<u8> {
    let zeros = big_endian.iter().take_while(|byte| **byte == 0).count();
    let digits = big_endian.get(zeros..).unwrap_or_default();
    match digits.first() {
        Some(first) if *first < 0x80 => element(INTEGER, digits),
        _ => element(INTEGER, &[&[0], digits].concat()),
    }
}

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match u8::try_from(content.len()) {
        Ok(short) if short < 0x80 => out.push(short),
        _ => {
            let length = content.len().to_be_bytes();
            let zeros = length.iter().take_while(|byte| **byte == 0).count();
            let length = length.get(zeros..).unwrap_or_default();
            // At most eight length bytes: the tag's low bits always hold the count.
            out.push(0x80 | u8::try_from(length.len()).unwrap_or(8));
            out.extend_from_slice(length);
        }
    }
    out.extend_from_slice(content);
    out
}

#[cfg(test)]
mod tests {
    use super::{ecdsa_signature, element, integer};

    #[test]
    fn numbers_are_minimal_and_positive() {
        for (number, der) in [
            (&[0x7f][..], &[2, 1, 0x7f][..]),
            (&[0x80], &[2, 2, 0, 0x80]),
            (&[0, 0, 1], &[2, 1, 1]),
            (&[0, 0], &[2, 1, 0]),
            (&[], &[2, 1, 0]),
        ] {
            assert_eq!(integer(number), der, "{number:?}");
        }
    }

    #[test]
    fn lengths_take_the_short_form_and_the_long_one() {
        for (length, head) in [
            (0, &[4, 0][..]),
            (127, &[4, 127]),
            (128, &[4, 0x81, 128]),
            (256, &[4, 0x82, 1, 0]),
            (70_000, &[4, 0x83, 1, 0x11, 0x70]),
        ] {
            let der = element(4, &vec![0; length]);
            assert_eq!(&der[..head.len()], head, "{length}");
            assert_eq!(der.len(), head.len() + length);
        }
    }

    #[test]
    fn a_signature_is_cut_in_the_middle() {
        assert_eq!(
            ecdsa_signature(&[0, 1, 0x80, 0]),
            [0x30, 8, 2, 1, 1, 2, 3, 0, 0x80, 0]
        );
    }
}
