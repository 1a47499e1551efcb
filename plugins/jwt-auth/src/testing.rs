//! Tokens for tests: signed when a case runs, with the fixed keys of `tests/data/keys`, which are public and protect
//! nothing. Not in the module.
//!
//! [`make`] makes what the cases ask for: `{jwt: …}`, whose argument is a [`Token`], and `{jwks: [KEY, …]}`, a set of
//! public keys (`secret` is a symmetric one).
//!
//! ```yaml
//! headers: [[authorization, ["Bearer ", {jwt: {key: p256, claims: {aud: [other, api], exp: {now: -30}}}}]]]
//! ```

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rsa::pkcs1v15::Pkcs1v15Sign;
use rsa::pss::Pss;
use rsa::{BoxedUint, RsaPrivateKey};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256, Sha384, Sha512};

use crate::der;

/// How a token is made. All members have defaults; `{}` is a good token of `https://issuer.test` for `api`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Token {
    /// The key that signs, by its file in `tests/data/keys`: `rsa-1`, `rsa-2`, `rsa-small`, `p256`, `p256-2`, `p384`,
    /// `ed25519`.
    pub key: String,
    /// What is really signed with; default by the key: RS256, ES256, ES384 or EdDSA. `HS256` signs with the key's
    /// public half as the secret, `none` not at all.
    pub sign: Option<String>,
    /// Members of the header, over `{"alg": SIGN, "kid": KEY, "typ": "JWT"}`; null takes one out.
    pub header: Map<String, Value>,
    /// Claims, over `{"iss": "https://issuer.test", "aud": "api", "sub": "alice", "iat": now, "exp": now + 300}`; null
    /// takes one out. `{"now": N}` is N seconds from now.
    pub claims: Map<String, Value>,
    /// Text put before the last `}` of the header, such as `,"alg":"none"`.
    pub header_tail: String,
    /// Text put before the last `}` of the claims.
    pub claims_tail: String,
    /// The payload, in the place of all claims.
    pub payload: Option<String>,
    /// Bytes of padding in one more claim.
    pub padding: usize,
    /// What is changed after signing.
    pub tamper: Tamper,
    /// Text put behind the token.
    pub tail: String,
}

/// What is changed after signing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tamper {
    /// Nothing.
    #[default]
    Nothing,
    /// The signature's first bit.
    Signature,
    /// The subject becomes `mallory`.
    Claims,
}

impl Default for Token {
    fn default() -> Self {
        Self {
            key: "rsa-1".to_owned(),
            sign: None,
            header: Map::new(),
            claims: Map::new(),
            header_tail: String::new(),
            claims_tail: String::new(),
            payload: None,
            padding: 0,
            tamper: Tamper::Nothing,
            tail: String::new(),
        }
    }
}

/// Makes the value of a placeholder, for `portcullis_sdk::testing`.
///
/// # Errors
///
/// Another placeholder, an argument of another shape, or an unknown key or algorithm.
pub fn make(placeholder: &str, argument: &Value, now: SystemTime) -> Result<Vec<u8>, String> {
    match placeholder {
        "jwt" => {
            let token = Token::deserialize(argument).map_err(|error| error.to_string())?;
            token.mint(now).map(String::into_bytes)
        }
        "jwks" => {
            let names = Vec::<String>::deserialize(argument).map_err(|error| error.to_string())?;
            let keys: Result<Vec<Value>, String> = names
                .iter()
                .map(|name| match name.as_str() {
                    "secret" => Ok(json!({"kty": "oct", "k": "c2VjcmV0", "kid": "secret"})),
                    name => public_jwk(name),
                })
                .collect();
            Ok(json!({"keys": keys?}).to_string().into_bytes())
        }
        _ => Err(format!("nothing makes a {placeholder:?} value here")),
    }
}

/// The public half of a key as a JWK, with the key's name as its `kid`.
///
/// # Errors
///
/// An unknown key.
pub fn public_jwk(key: &str) -> Result<Value, String> {
    let mut jwk = private_jwk(key)?;
    if let Some(members) = jwk.as_object_mut() {
        members.retain(|name, _| !["d", "p", "q"].contains(&name.as_str()));
        members.insert("kid".to_owned(), key.into());
    }
    Ok(jwk)
}

impl Token {
    /// Makes the token.
    ///
    /// # Errors
    ///
    /// An unknown key or algorithm.
    pub fn mint(&self, now: SystemTime) -> Result<String, String> {
        let now = now
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let jwk = private_jwk(&self.key)?;
        let sign = self
            .sign
            .as_deref()
            .unwrap_or(match jwk.get("crv").and_then(Value::as_str) {
                Some("P-256") => "ES256",
                Some("P-384") => "ES384",
                Some(_) => "EdDSA",
                None => "RS256",
            });
        let header = merge(
            json!({"alg": sign, "kid": self.key, "typ": "JWT"}),
            &self.header,
            now,
        );
        let header = with_tail(&header, &self.header_tail);
        let mut claims = merge(
            json!({"iss": "https://issuer.test", "aud": "api", "sub": "alice", "iat": now, "exp": now + 300}),
            &self.claims,
            now,
        );
        if self.padding > 0 {
            claims.insert("padding".to_owned(), "x".repeat(self.padding).into());
        }
        let payload = self
            .payload
            .clone()
            .unwrap_or_else(|| with_tail(&claims, &self.claims_tail));
        let signed = [encode(&header), encode(&payload)].join(".");
        let mut signature = sign_with(&jwk, sign, signed.as_bytes())?;
        let signed = match self.tamper {
            Tamper::Claims => {
                claims.insert("sub".to_owned(), "mallory".into());
                [
                    encode(&header),
                    encode(with_tail(&claims, &self.claims_tail)),
                ]
                .join(".")
            }
            Tamper::Signature | Tamper::Nothing => signed,
        };
        if let (Tamper::Signature, Some(first)) = (self.tamper, signature.first_mut()) {
            *first ^= 0x80;
        }
        Ok([&signed, ".", &encode(signature), &self.tail].concat())
    }
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn merge(defaults: Value, over: &Map<String, Value>, now: u64) -> Map<String, Value> {
    let mut members = match defaults {
        Value::Object(members) => members,
        _ => Map::new(),
    };
    for (name, value) in over {
        match value.get("now").and_then(Value::as_i64) {
            Some(offset) => members.insert(name.clone(), now.saturating_add_signed(offset).into()),
            None if value.is_null() => members.remove(name),
            None => members.insert(name.clone(), value.clone()),
        };
    }
    members
}

fn with_tail(members: &Map<String, Value>, tail: &str) -> String {
    let mut text = Value::Object(members.clone()).to_string();
    text.insert_str(text.len() - 1, tail);
    text
}

fn private_jwk(key: &str) -> Result<Value, String> {
    let text = match key {
        "rsa-1" => include_str!("../tests/data/keys/rsa-1.jwk.json"),
        "rsa-2" => include_str!("../tests/data/keys/rsa-2.jwk.json"),
        "rsa-small" => include_str!("../tests/data/keys/rsa-small.jwk.json"),
        "p256" => include_str!("../tests/data/keys/p256.jwk.json"),
        "p256-2" => include_str!("../tests/data/keys/p256-2.jwk.json"),
        "p384" => include_str!("../tests/data/keys/p384.jwk.json"),
        "ed25519" => include_str!("../tests/data/keys/ed25519.jwk.json"),
        _ => return Err(format!("there is no test key {key:?}")),
    };
    serde_json::from_str(text).map_err(|error| error.to_string())
}

fn number(jwk: &Value, name: &str) -> Result<Vec<u8>, String> {
    let text = jwk
        .get(name)
        .and_then(Value::as_str)
        .ok_or_else(|| format!("the key has no {name:?}"))?;
    URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|error| error.to_string())
}

fn sign_with(jwk: &Value, algorithm: &str, text: &[u8]) -> Result<Vec<u8>, String> {
    use p256::ecdsa::signature::Signer as _;
    let failed = |error: &dyn std::fmt::Display| format!("cannot sign with {algorithm}: {error}");
    Ok(match algorithm {
        "none" => Vec::new(),
        "HS256" => hmac_sha256(
            &der::rsa_public_key(&number(jwk, "n")?, &number(jwk, "e")?),
            text,
        ),
        "RS256" => rsa_key(jwk)?
            .sign(Pkcs1v15Sign::new::<Sha256>(), &Sha256::digest(text))
            .map_err(|error| failed(&error))?,
        "RS384" => rsa_key(jwk)?
            .sign(Pkcs1v15Sign::new::<Sha384>(), &Sha384::digest(text))
            .map_err(|error| failed(&error))?,
        "RS512" => rsa_key(jwk)?
            .sign(Pkcs1v15Sign::new::<Sha512>(), &Sha512::digest(text))
            .map_err(|error| failed(&error))?,
        "PS256" => rsa_key(jwk)?
            .sign_with_rng(
                &mut CountingRng(0),
                Pss::<Sha256>::new(),
                &Sha256::digest(text),
            )
            .map_err(|error| failed(&error))?,
        "ES256" => {
            let key = p256::ecdsa::SigningKey::from_slice(&number(jwk, "d")?)
                .map_err(|error| failed(&error))?;
            let signature: p256::ecdsa::Signature = key.sign(text);
            signature.to_bytes().to_vec()
        }
        "ES384" => {
            let key = p384::ecdsa::SigningKey::from_slice(&number(jwk, "d")?)
                .map_err(|error| failed(&error))?;
            let signature: p384::ecdsa::Signature = key.sign(text);
            signature.to_bytes().to_vec()
        }
        "EdDSA" => {
            let seed = number(jwk, "d")?
                .try_into()
                .map_err(|_| "an Ed25519 seed has 32 bytes")?;
            ed25519_dalek::SigningKey::from_bytes(&seed)
                .sign(text)
                .to_bytes()
                .to_vec()
        }
        _ => return Err(format!("nothing signs with {algorithm:?} here")),
    })
}

fn rsa_key(jwk: &Value) -> Result<RsaPrivateKey, String> {
    let number = |name| Ok::<_, String>(BoxedUint::from_be_slice_vartime(&number(jwk, name)?));
    let primes = vec![number("p")?, number("q")?];
    RsaPrivateKey::from_components(number("n")?, number("e")?, number("d")?, primes)
        .map_err(|error| error.to_string())
}

/// RFC 2104; the key is longer than a block, so it is hashed.
fn hmac_sha256(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut block = [0; 64];
    block
        .iter_mut()
        .zip(Sha256::digest(key))
        .for_each(|(byte, key)| *byte = key);
    let inner = Sha256::new()
        .chain_update(block.map(|byte| byte ^ 0x36))
        .chain_update(text)
        .finalize();
    Sha256::new()
        .chain_update(block.map(|byte| byte ^ 0x5c))
        .chain_update(inner)
        .finalize()
        .to_vec()
}

/// The salt of a PSS signature need not be random for a test.
struct CountingRng(u64);

impl rsa::rand_core::TryRng for CountingRng {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        self.try_next_u64()
            .map(|number| u32::try_from(number & 0xffff_ffff).unwrap_or(0))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        self.0 += 1;
        Ok(self.0)
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Self::Error> {
        for chunk in out.chunks_mut(8) {
            let bytes = self.try_next_u64()?.to_le_bytes();
            chunk
                .iter_mut()
                .zip(bytes)
                .for_each(|(byte, number)| *byte = number);
        }
        Ok(())
    }
}

impl rsa::rand_core::TryCryptoRng for CountingRng {}
