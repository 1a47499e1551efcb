//! The demo's issuer: a key made on the spot, its JWK set for the policy, and tokens signed with it.

use anyhow::anyhow;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// `iss` of the tokens.
pub(super) const ISSUER: &str = "https://issuer.demo.example";
/// `aud` that the policy asks for.
pub(super) const AUDIENCE: &str = "demo";
/// How long tokens live, seconds: a day, so that the folder is of use for a while. The policy allows it.
pub(super) const LIFETIME_SECONDS: u64 = 24 * 3600;
const KEY_ID: &str = "demo-1";

/// An ES256 key that is kept nowhere.
pub(super) struct Issuer {
    key: EcdsaKeyPair,
}

impl Issuer {
    pub(super) fn new() -> anyhow::Result<Self> {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)
            .map_err(|_| anyhow!("cannot make a signing key"))?;
        Ok(Self { key })
    }

    /// RFC 7517, with the one public key.
    pub(super) fn jwks(&self) -> anyhow::Result<Value> {
        // SEC 1: 0x04, then both coordinates.
        let point = self.key.public_key().as_ref();
        let (x, y) = point
            .get(1..)
            .and_then(|coordinates| coordinates.split_at_checked(32))
            .ok_or_else(|| anyhow!("the public key is no point of P-256"))?;
        Ok(json!({"keys": [{
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": KEY_ID,
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        }]}))
    }

    /// A token for `audience`, valid from `from` (seconds since 1970) for [`LIFETIME_SECONDS`].
    pub(super) fn token(&self, audience: &str, from: u64) -> anyhow::Result<String> {
        let header = json!({"alg": "ES256", "typ": "JWT", "kid": KEY_ID});
        let claims = json!({
            "iss": ISSUER, "aud": audience, "sub": "alice", "scope": "demo.read",
            "iat": from, "nbf": from, "exp": from.saturating_add(LIFETIME_SECONDS),
        });
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header.to_string()),
            URL_SAFE_NO_PAD.encode(claims.to_string())
        );
        let signature = self
            .key
            .sign(&SystemRandom::new(), signed.as_bytes())
            .map_err(|_| anyhow!("cannot sign a token"))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}
