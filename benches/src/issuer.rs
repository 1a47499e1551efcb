//! An issuer of RS256 tokens whose key is made on the spot.

use anyhow::{Context, Result};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::time::{SystemTime, UNIX_EPOCH};

/// Who is named in `iss`.
pub const ISSUER: &str = "https://issuer.example";
/// Who is named in `aud`.
pub const AUDIENCE: &str = "https://api.example";
/// Seconds a token lives; the longest that jwt-auth takes by default.
const LIFETIME_S: u64 = 3600;

/// A key pair and what it signs.
pub struct Issuer {
    key: KeyPair,
}

impl Issuer {
    /// Makes a 2048-bit key.
    ///
    /// # Errors
    /// When the library cannot make one.
    pub fn new() -> Result<Self> {
        Ok(Self {
            key: KeyPair::generate(KeySize::Rsa2048).context("no RSA key could be made")?,
        })
    }

    /// Its public key as a JWK set.
    pub fn jwks(&self) -> serde_json::Value {
        let public = self.key.public_key();
        let modulus = URL_SAFE_NO_PAD.encode(public.modulus().big_endian_without_leading_zero());
        let exponent = URL_SAFE_NO_PAD.encode(public.exponent().big_endian_without_leading_zero());
        serde_json::json!({"keys": [{"kty": "RSA", "alg": "RS256", "kid": "load", "n": modulus, "e": exponent}]})
    }

    /// The configuration of jwt-auth that trusts this issuer.
    pub fn jwt_auth_configuration(&self) -> serde_json::Value {
        serde_json::json!({
            "providers": [{"issuer": ISSUER, "audiences": [AUDIENCE], "jwks": self.jwks()}],
        })
    }

    /// A token that is valid for the next hour.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn token(&self) -> Result<String> {
        self.numbered(0)
    }

    /// That many tokens, each another one: more than jwt-auth keeps in its cache of good signatures means that each is checked.
    ///
    /// # Errors
    /// When one cannot be signed.
    pub fn tokens(&self, count: usize) -> Result<Vec<String>> {
        (1..=count).map(|number| self.numbered(number)).collect()
    }

    fn numbered(&self, number: usize) -> Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let header = serde_json::json!({"alg": "RS256", "typ": "JWT", "kid": "load"});
        let claims = serde_json::json!({"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "jti": number.to_string(), "iat": now, "exp": now + LIFETIME_S});
        let mut token = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header.to_string()),
            URL_SAFE_NO_PAD.encode(claims.to_string())
        );
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key
            .sign(
                &RSA_PKCS1_SHA256,
                &aws_lc_rs::rand::SystemRandom::new(),
                token.as_bytes(),
                &mut signature,
            )
            .context("cannot sign a token")?;
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(signature));
        Ok(token)
    }
}
