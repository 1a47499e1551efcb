//! From the `authorization` header to the parts of a signed token: everything that can be said before a key is looked
//! for. RFC 6750 section 2.1, RFC 7515 sections 3.1, 4.1 and 7.1, RFC 8725.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use crate::algorithm::Algorithm;
use crate::challenge::Refusal;
use crate::{json, limits};

/// What a request shows as its token, from the values of its `authorization` headers: not longer than a token may be, and
/// otherwise any bytes until [`one`] has looked at them.
pub(crate) fn bearer<'a>(mut values: impl Iterator<Item = &'a [u8]>) -> Result<&'a [u8], Refusal> {
    let value = values.next().ok_or(Refusal::Missing)?.trim_ascii();
    if values.next().is_some() {
        return Err(Refusal::Request);
    }
    let end = value.iter().position(is_separator).unwrap_or(value.len());
    let (scheme, token) = value.split_at_checked(end).unwrap_or((value, &[]));
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        return Err(Refusal::Missing);
    }
    let token = token.trim_ascii_start();
    if token.len() > limits::TOKEN_BYTES_MAX {
        return Err(Refusal::Malformed("token_oversized"));
    }
    Ok(token)
}

/// One token, as text. A remembered one has been here before, so it is looked for first.
pub(crate) fn one(token: &[u8]) -> Result<&str, Refusal> {
    if token.is_empty() || token.iter().any(is_separator) {
        return Err(Refusal::Request);
    }
    str::from_utf8(token).map_err(|_| Refusal::Malformed("token_malformed"))
}

fn is_separator(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t' | b',')
}

/// A compact JWS, cut into its three parts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parts<'a> {
    header: &'a str,
    payload: &'a str,
    /// Header and payload as they were signed.
    pub(crate) signed: &'a str,
    /// In base64url, not decoded yet.
    pub(crate) signature: &'a str,
}

impl<'a> Parts<'a> {
    /// Exactly three parts: an encrypted token has five, an unsecured one may have two.
    pub(crate) fn split(token: &'a str) -> Result<Self, Refusal> {
        const MALFORMED: Refusal = Refusal::Malformed("token_malformed");
        let (signed, signature) = token.rsplit_once('.').ok_or(MALFORMED)?;
        let (header, payload) = signed.split_once('.').ok_or(MALFORMED)?;
        if payload.contains('.') || signature.is_empty() {
            return Err(MALFORMED);
        }
        Ok(Self {
            header,
            payload,
            signed,
            signature,
        })
    }

    pub(crate) fn header(&self) -> Result<Header, Refusal> {
        Header::read(&decode(self.header)?)
    }

    pub(crate) fn payload(&self) -> Result<Vec<u8>, Refusal> {
        decode(self.payload)
    }
}

/// Strict base64url: no padding, no foreign byte, no stray bits at the end.
fn decode(part: &str) -> Result<Vec<u8>, Refusal> {
    URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|_| Refusal::Malformed("token_malformed"))
}

/// What a token says about itself. `jku`, `x5u`, `jwk` and `x5c` are not read: keys come from the configuration alone.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) algorithm: Algorithm,
    pub(crate) kid: Option<String>,
    /// In lower case, without `application/` (RFC 7515 section 4.1.9).
    pub(crate) typ: Option<String>,
}

impl Header {
    fn read(text: &[u8]) -> Result<Self, Refusal> {
        const MALFORMED: Refusal = Refusal::Malformed("token_malformed");
        let members = json::object(text).ok_or(MALFORMED)?;
        let text = |name: &str| match members.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(MALFORMED),
        };
        // No extension is understood, so none may be critical; `b64` changes what is signed; `enc` and `zip` are JWE.
        if members.contains_key("crit")
            || members
                .get("b64")
                .is_some_and(|b64| *b64 != Value::Bool(true))
        {
            return Err(Refusal::Malformed("token_critical"));
        }
        if members.contains_key("enc") || members.contains_key("zip") {
            return Err(Refusal::Malformed("token_encrypted"));
        }
        let algorithm = text("alg")?.ok_or(MALFORMED)?;
        let algorithm =
            Algorithm::named(algorithm).ok_or(Refusal::Malformed("algorithm_refused"))?;
        let kid = text("kid")?.cloned();
        if kid
            .as_ref()
            .is_some_and(|kid| kid.len() > limits::KID_BYTES_MAX)
        {
            return Err(MALFORMED);
        }
        Ok(Self {
            algorithm,
            kid,
            typ: text("typ")?.map(|typ| media_type(typ)),
        })
    }
}

/// A media type as `typ` names it, in one spelling.
pub(crate) fn media_type(typ: &str) -> String {
    let typ = typ.to_ascii_lowercase();
    match typ.strip_prefix("application/") {
        Some(short) if !short.contains('/') => short.to_owned(),
        _ => typ,
    }
}

#[cfg(test)]
mod tests {
    use super::{Header, Parts, Refusal, bearer, media_type, one};
    use crate::algorithm::Algorithm;

    #[test]
    fn one_bearer_token_is_taken() {
        let long = format!("Bearer {}", "a".repeat(8193));
        let full = format!("Bearer {}", "a".repeat(8192));
        for (values, expected) in [
            (&["Bearer a.b.c"][..], Ok("a.b.c")),
            (&["bEaReR   a.b.c  "], Ok("a.b.c")),
            (&[&full], Ok(&full[7..])),
            (&[&long], Err(Refusal::Malformed("token_oversized"))),
            (&[], Err(Refusal::Missing)),
            (&[""], Err(Refusal::Missing)),
            (&["Basic a"], Err(Refusal::Missing)),
            (&["Bearerx a"], Err(Refusal::Missing)),
            (&["Bearer"], Err(Refusal::Request)),
            (&["Bearer "], Err(Refusal::Request)),
            (&["Bearer a b"], Err(Refusal::Request)),
            (&["Bearer a,Bearer b"], Err(Refusal::Request)),
            (&["Bearer,a"], Err(Refusal::Request)),
            (&["Bearer a", "Bearer a"], Err(Refusal::Request)),
            (&["Basic a", "Bearer a"], Err(Refusal::Request)),
        ] {
            assert_eq!(
                bearer(values.iter().map(|value| value.as_bytes())).and_then(one),
                expected,
                "{values:?}"
            );
        }
        assert_eq!(
            bearer([&b"Bearer a\xff"[..]].into_iter()).and_then(one),
            Err(Refusal::Malformed("token_malformed"))
        );
    }

    #[test]
    fn exactly_three_parts() {
        for (token, good) in [
            ("a.b.c", true),
            ("a..c", true),
            (".b.c", true),
            ("a.b", false),
            ("a.b.", false),
            ("a.b.c.d", false),
            ("a.b.c.d.e", false),
            ("", false),
        ] {
            assert_eq!(Parts::split(token).is_ok(), good, "{token}");
        }
    }

    #[test]
    fn headers_are_read_strictly() {
        let malformed = || Err(Refusal::Malformed("token_malformed"));
        let algorithm = || Err(Refusal::Malformed("algorithm_refused"));
        let critical = || Err(Refusal::Malformed("token_critical"));
        let encrypted = || Err(Refusal::Malformed("token_encrypted"));
        let header = |kid: Option<&str>, typ: Option<&str>| {
            Ok(Header {
                algorithm: Algorithm::RS256,
                kid: kid.map(Into::into),
                typ: typ.map(Into::into),
            })
        };
        let long = format!(r#"{{"alg":"RS256","kid":"{}"}}"#, "k".repeat(257));
        for (text, expected) in [
            (r#"{"alg":"RS256"}"#, header(None, None)),
            (
                r#"{"alg":"RS256","kid":"a","typ":"application/AT+JWT","jku":"https://x","jwk":{},"x5u":1}"#,
                header(Some("a"), Some("at+jwt")),
            ),
            (r#"{"alg":"RS256","b64":true}"#, header(None, None)),
            (r#"{"alg":"none"}"#, algorithm()),
            (r#"{"alg":"None"}"#, algorithm()),
            (r#"{"alg":"HS256"}"#, algorithm()),
            (r#"{"alg":"rs256"}"#, algorithm()),
            (r"{}", malformed()),
            (r#"{"alg":null}"#, malformed()),
            (r#"{"alg":["RS256"]}"#, malformed()),
            (r#"{"alg":"RS256","kid":1}"#, malformed()),
            (r#"{"alg":"RS256","typ":null}"#, malformed()),
            (r#"{"alg":"RS256","alg":"RS256"}"#, malformed()),
            (&long, malformed()),
            (r#"{"alg":"RS256","crit":["exp"],"exp":1}"#, critical()),
            (r#"{"alg":"RS256","crit":[]}"#, critical()),
            (r#"{"alg":"RS256","b64":false}"#, critical()),
            (r#"{"alg":"RS256","b64":"true"}"#, critical()),
            (r#"{"alg":"RSA-OAEP","enc":"A128GCM"}"#, encrypted()),
            (r#"{"alg":"RS256","zip":"DEF"}"#, encrypted()),
        ] {
            assert_eq!(Header::read(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn types_have_one_spelling() {
        for (typ, spelled) in [
            ("JWT", "jwt"),
            ("application/JWT", "jwt"),
            ("application/a/b", "application/a/b"),
            ("text/x", "text/x"),
        ] {
            assert_eq!(media_type(typ), spelled);
        }
    }
}
