//! Signatures alone, for test vectors whose payload is not a token: the same split, header rules, key choice and
//! verification as a token goes through.

use portcullis_sdk::Foreign;
use serde_json::Value;

use crate::algorithm::Algorithm;
use crate::crypto::{self, HostCrypto};
use crate::jwks::KeySet;
use crate::provider::{self, Verdict};
use crate::token::Parts;

/// Whether a compact JWS is good by a key of a JWK set, under any algorithm that exists here. With `foreign` the host's
/// crypto is asked first.
///
/// # Errors
///
/// Why the set cannot be used: it is none, or a key in it is faulty.
pub fn verify(jwks: &Value, jws: &str, foreign: Option<Foreign>) -> Result<bool, &'static str> {
    use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
    if !crypto::install() {
        return Err("another crypto provider of jsonwebtoken is installed");
    }
    let all = [
        RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA,
    ];
    let (keys, faults) = KeySet::read(jwks, &all)?;
    if let Some(fault) = faults.first() {
        return Err(fault.reason);
    }
    let host = foreign.map(HostCrypto::new);
    let good = Parts::split(jws).and_then(|parts| {
        parts.payload()?;
        Ok(matches!(
            provider::verify(&keys, host.as_ref(), &parts.header()?, &parts),
            Verdict::Good(_)
        ))
    });
    Ok(good.unwrap_or(false))
}
