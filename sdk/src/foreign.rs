//! Functions that a host has beyond the ABI. Envoy and Portcullis serve `verify_signature` with the host's own crypto:
//! RS256 for some 25 µs where the best Wasm code takes 500.
//!
//! Its messages are protobuf (Envoy `source/extensions/common/wasm/ext/verify_signature.proto`); with four fields of
//! bytes and one flag to read, they are written by hand.

use crate::error::{Error, Status};
use crate::host::{ActiveHost, Host};

/// What the host's crypto says of a signature.
///
/// ```
/// use portcullis_sdk::Verified;
///
/// /// Only a good signature passes; where the host does not serve it, the module's own code says.
/// fn passes(said: Verified, own: impl FnOnce() -> bool) -> bool {
///     match said {
///         Verified::Good => true,
///         Verified::Bad => false,
///         Verified::Unavailable => own(),
///     }
/// }
/// assert!(!passes(Verified::Bad, || true));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verified {
    /// It is not a signature of this text by this key, or key or signature cannot be read.
    Bad,
    /// It is a signature of this text by this key.
    Good,
    /// This host does not serve the function: verify in the module.
    Unavailable,
}

/// Envoy's `config.core.v3.GrpcService`: `envoy_grpc` (1) with `cluster_name` (1). A bare name would do where it cannot be
/// read as such a message, which is up to the name.
#[cfg(any(target_arch = "wasm32", test))]
pub(crate) fn grpc_target(cluster: &str) -> Vec<u8> {
    let (mut inner, mut outer) = (Vec::new(), Vec::new());
    push_bytes(&mut inner, 1, cluster.as_bytes());
    push_bytes(&mut outer, 1, &inner);
    outer
}

/// The host's foreign functions. Cheap to clone; outlives the callback.
///
/// ```
/// use portcullis_sdk::prelude::*;
///
/// /// Checks a webhook's signature with the host's crypto.
/// fn is_signed(request: &Request, key: &[u8], signature: &[u8], body: &[u8]) -> Result<bool, Error> {
///     let verified = request.foreign().verify_signature("sha256", key, signature, body)?;
///     Ok(verified == Verified::Good)
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Foreign {
    host: ActiveHost,
}

impl Foreign {
    pub(crate) fn new(host: &ActiveHost) -> Self {
        Self { host: host.clone() }
    }

    /// Verifies a signature with the host's crypto: RSA PKCS#1 v1.5 or ECDSA, by the key's type. One hostcall.
    ///
    /// `hash` is `sha256`, `sha384`, `sha512` (Envoy also knows `sha1` and `sha224`); `public_key_der` is a
    /// SubjectPublicKeyInfo; an ECDSA signature is in DER. RSA-PSS and Ed25519 are not served (they come out as
    /// [`Verified::Bad`]): do not ask.
    pub fn verify_signature(
        &self,
        hash: &str,
        public_key_der: &[u8],
        signature: &[u8],
        text: &[u8],
    ) -> Result<Verified, Error> {
        let fields = [
            (1, hash.as_bytes()),
            (2, public_key_der),
            (3, signature),
            (4, text),
        ];
        let mut arguments = Vec::with_capacity(
            fields
                .iter()
                .map(|(_, bytes)| bytes.len().saturating_add(6))
                .sum(),
        );
        for (number, bytes) in fields {
            push_bytes(&mut arguments, number, bytes);
        }
        match self
            .host
            .call_foreign_function("verify_signature", &arguments)
        {
            Ok(answer) if result_is_true(&answer)? => Ok(Verified::Good),
            Ok(_) => Ok(Verified::Bad),
            // Not there; forbidden to this module; a host without foreign functions.
            Err(Status::NOT_FOUND | Status::INTERNAL_FAILURE | Status::UNIMPLEMENTED) => {
                Ok(Verified::Unavailable)
            }
            Err(status) => Err(Error::host("verify_signature")(status)),
        }
    }

    /// Calls any foreign function; `None` where the host has none of that name. One hostcall.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// `None` where this host has no such function.
    /// fn compressed(foreign: &Foreign, arguments: &[u8]) -> Result<Option<Vec<u8>>, Error> {
    ///     foreign.call("compress", arguments)
    /// }
    /// ```
    pub fn call(&self, name: &str, arguments: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        match self.host.call_foreign_function(name, arguments) {
            Ok(answer) => Ok(Some(answer)),
            Err(Status::NOT_FOUND) => Ok(None),
            Err(status) => Err(Error::host("proxy_call_foreign_function")(status)),
        }
    }
}

/// Appends a length-delimited protobuf field.
fn push_bytes(message: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    message.push(number << 3 | 2);
    let mut length = bytes.len();
    loop {
        let low = u8::try_from(length & 0x7f).unwrap_or(0);
        length >>= 7;
        if length == 0 {
            message.push(low);
            break;
        }
        message.push(low | 0x80);
    }
    message.extend_from_slice(bytes);
}

/// Field 1 (`result`, a flag) of `VerifySignatureResult`; absent is false, the last one counts.
fn result_is_true(mut message: &[u8]) -> Result<bool, Error> {
    const MALFORMED: Error = Error::Malformed("the answer of verify_signature");
    let mut result = false;
    while !message.is_empty() {
        let tag = varint(&mut message).ok_or(MALFORMED)?;
        match (tag >> 3, tag & 7) {
            (1, 0) => result = varint(&mut message).ok_or(MALFORMED)? != 0,
            (_, 0) => drop(varint(&mut message).ok_or(MALFORMED)?),
            (_, 1) => message = message.get(8..).ok_or(MALFORMED)?,
            (_, 2) => {
                let length = varint(&mut message)
                    .and_then(|length| usize::try_from(length).ok())
                    .ok_or(MALFORMED)?;
                message = message.get(length..).ok_or(MALFORMED)?;
            }
            (_, 5) => message = message.get(4..).ok_or(MALFORMED)?,
            _ => return Err(MALFORMED),
        }
    }
    Ok(result)
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn arguments_are_protobuf() {
        let mut message = Vec::new();
        push_bytes(&mut message, 1, b"sha256");
        assert_eq!(message, b"\x0a\x06sha256");
        message.clear();
        push_bytes(&mut message, 2, &[7; 300]);
        assert_eq!(message[..3], [0x12, 0xac, 0x02]);
        assert_eq!(message.len(), 303);
        assert_eq!(grpc_target("idp"), b"\x0a\x05\x0a\x03idp");
    }

    #[test]
    fn answers_are_read_or_refused() {
        for (answer, result) in [
            (&b""[..], Ok(false)),
            (b"\x08\x01", Ok(true)),
            (b"\x08\x00", Ok(false)),
            (b"\x12\x03bad", Ok(false)),
            (b"\x12\x03bad\x08\x01", Ok(true)),
            (b"\x08\x01\x08\x00", Ok(false)),
            (b"\x15\x01\x02\x03\x04\x08\x01", Ok(true)),
            (b"\x08", Err(())),
            (b"\x12\x7f", Err(())),
            (b"\x0b", Err(())),
        ] {
            assert_eq!(result_is_true(answer).map_err(|_| ()), result, "{answer:?}");
        }
        let mut random = Random::new(4);
        for _ in 0..100_000 {
            let _ = result_is_true(&random.bytes(16));
        }
    }
}
