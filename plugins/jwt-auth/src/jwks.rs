//! JWK sets (RFC 7517): from JSON to keys that cannot be wrong. A key says which algorithm it serves with `alg`, or
//! serves the one that its type is commonly used with. Keys for encryption and keys of types that we do not check with
//! are passed over; everything else that is not a sound public key is a fault: an inline set with a fault is refused,
//! of a fetched one the sound keys serve and the faults are logged.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use crate::algorithm::Algorithm;
use crate::crypto::EnrolledKey;
use crate::keys::Key;
use crate::limits;

/// The usable keys of one issuer.
#[derive(Debug, Default)]
pub(crate) struct KeySet {
    keys: Vec<NamedKey>,
}

#[derive(Debug)]
struct NamedKey {
    kid: Option<String>,
    key: EnrolledKey,
}

/// What a token's `alg` and `kid` lead to.
#[derive(Debug)]
pub(crate) enum Found<'a> {
    Key(&'a EnrolledKey),
    /// No key of that id: perhaps one that the issuer has brought in since.
    UnknownKid,
    /// The id is known for another algorithm, or no id was given and not exactly one key fits.
    NoFit,
}

/// A key that is not used, by its place in the set, and why.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) index: usize,
    pub(crate) reason: &'static str,
}

impl KeySet {
    /// Reads a set; only keys of `allowed` algorithms are kept. `Err` if it is no set at all.
    pub(crate) fn read(
        set: &Value,
        allowed: &[Algorithm],
    ) -> Result<(Self, Vec<Fault>), &'static str> {
        let keys = set
            .get("keys")
            .and_then(Value::as_array)
            .ok_or("a JWK set is an object with a list `keys`")?;
        let mut out = Self::default();
        let mut faults = Vec::new();
        for (index, jwk) in keys.iter().enumerate() {
            let result = match read_key(jwk) {
                Ok(Some(named)) if allowed.contains(&named.key.key().algorithm()) => {
                    out.push(named)
                }
                Ok(_) => Ok(()),
                Err(reason) => Err(reason),
            };
            if let Err(reason) = result {
                faults.push(Fault { index, reason });
            }
        }
        Ok((out, faults))
    }

    fn push(&mut self, named: NamedKey) -> Result<(), &'static str> {
        if self.keys.len() >= limits::KEYS_MAX {
            return Err("a set may hold 64 usable keys");
        }
        let algorithm = named.key.key().algorithm();
        if named.kid.is_some()
            && self
                .keys
                .iter()
                .any(|other| other.kid == named.kid && other.key.key().algorithm() == algorithm)
        {
            return Err("`kid` and algorithm are those of an earlier key");
        }
        self.keys.push(named);
        Ok(())
    }

    /// Takes keys from the set that this one replaces where they are the same, so that what was verified with them
    /// stays verified.
    pub(crate) fn keep_from(&mut self, mut old: Self) {
        for named in &mut self.keys {
            let same = old.keys.iter().position(|other| {
                other.kid == named.kid
                    && other.key.key().algorithm() == named.key.key().algorithm()
                    && other.key.key().spki() == named.key.key().spki()
            });
            if let Some(index) = same {
                *named = old.keys.swap_remove(index);
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub(crate) fn holds(&self, number: u64) -> bool {
        self.keys.iter().any(|named| named.key.number() == number)
    }

    /// The key for a token. With a `kid`, only a key of that id; without, the only key that serves the algorithm.
    pub(crate) fn find(&self, kid: Option<&str>, algorithm: Algorithm) -> Found<'_> {
        let mut fitting = self.keys.iter().filter(|named| {
            named.key.key().algorithm() == algorithm
                && (kid.is_none() || named.kid.as_deref() == kid)
        });
        match (fitting.next(), fitting.next()) {
            (Some(named), None) => Found::Key(&named.key),
            (None, _)
                if kid.is_some() && !self.keys.iter().any(|named| named.kid.as_deref() == kid) =>
            {
                Found::UnknownKid
            }
            _ => Found::NoFit,
        }
    }
}

/// A key, or `None` for one that is not for us.
fn read_key(jwk: &Value) -> Result<Option<NamedKey>, &'static str> {
    let jwk = jwk.as_object().ok_or("a key is an object")?;
    let kty = text(jwk, "kty")?.ok_or("`kty` is missing")?;
    if kty == "oct" || jwk.contains_key("k") {
        return Err("a symmetric key: whoever can check a token could make one");
    }
    if ["d", "p", "q", "dp", "dq", "qi", "oth"]
        .iter()
        .any(|name| jwk.contains_key(*name))
    {
        return Err("a private key: it belongs to the issuer alone");
    }
    if !for_signatures(jwk)? {
        return Ok(None);
    }
    let kid = text(jwk, "kid")?;
    if kid.is_some_and(|kid| kid.is_empty() || kid.len() > limits::KID_BYTES_MAX) {
        return Err("`kid` must have 1 to 256 bytes");
    }
    let algorithm = match text(jwk, "alg")? {
        Some(name) => match Algorithm::named(name) {
            Some(algorithm) => Some(algorithm),
            None => return Ok(None),
        },
        None => None,
    };
    let key = match (kty, text(jwk, "crv")?) {
        ("RSA", None) => Key::rsa(
            algorithm.unwrap_or(Algorithm::RS256),
            &bytes(jwk, "n")?,
            &bytes(jwk, "e")?,
        ),
        ("RSA", Some(_)) => Err("an RSA key has no `crv`"),
        ("EC", Some("P-256")) => Key::p256(
            algorithm.unwrap_or(Algorithm::ES256),
            &bytes(jwk, "x")?,
            &bytes(jwk, "y")?,
        ),
        ("EC", Some("P-384")) => Key::p384(
            algorithm.unwrap_or(Algorithm::ES384),
            &bytes(jwk, "x")?,
            &bytes(jwk, "y")?,
        ),
        ("OKP", Some("Ed25519")) => {
            Key::ed25519(algorithm.unwrap_or(Algorithm::EdDSA), &bytes(jwk, "x")?)
        }
        _ => return Ok(None),
    }?;
    Ok(Some(NamedKey {
        kid: kid.map(str::to_owned),
        key: EnrolledKey::new(key),
    }))
}

/// RFC 7517 sections 4.2 and 4.3. Absent: for signatures.
fn for_signatures(jwk: &Map<String, Value>) -> Result<bool, &'static str> {
    let used = text(jwk, "use")?.is_none_or(|used| used == "sig");
    let operations = match jwk.get("key_ops") {
        None => true,
        Some(Value::Array(operations)) => operations.iter().any(|operation| operation == "verify"),
        Some(_) => return Err("`key_ops` must be a list"),
    };
    Ok(used && operations)
}

fn text<'a>(jwk: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, &'static str> {
    match jwk.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err("`kty`, `use`, `alg`, `kid` and `crv` must be text"),
    }
}

fn bytes(jwk: &Map<String, Value>, name: &'static str) -> Result<Vec<u8>, &'static str> {
    let text = jwk
        .get(name)
        .and_then(Value::as_str)
        .ok_or("a number of the key is missing")?;
    URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| "a number of the key is not base64url without padding")
}
