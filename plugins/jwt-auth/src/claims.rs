//! What a token claims (RFC 7519 section 4.1), and the rules that its claims must meet. Reading is separate from the
//! rules: claims of a remembered token are kept, the rules run for every request.

use serde_json::{Map, Value};

use crate::challenge::Refusal;
use crate::json;

/// The claims of a token, not to be trusted before its signature is.
#[derive(Debug)]
pub(crate) struct Claims {
    members: Map<String, Value>,
    issuer: String,
    audiences: Vec<String>,
    /// Seconds since 1970, as the two below.
    expires: u64,
    not_before: Option<u64>,
    issued: Option<u64>,
    /// As it was signed, where later controls are to see it.
    text: Option<Vec<u8>>,
}

/// Where a claim is: the names from the outermost object to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClaimPath(pub(crate) Vec<String>);

impl Claims {
    /// Reads the payload. What every token must have and what has one possible type is checked here.
    pub(crate) fn read(payload: &[u8]) -> Result<Self, Refusal> {
        let members = json::object(payload).ok_or(Refusal::Malformed("claims_malformed"))?;
        let issuer = match members.get("iss") {
            Some(Value::String(issuer)) => issuer.clone(),
            Some(_) => return Err(Refusal::Malformed("claims_malformed")),
            None => return Err(Refusal::Invalid("issuer_unknown")),
        };
        if members
            .get("sub")
            .is_some_and(|subject| !subject.is_string())
        {
            return Err(Refusal::Malformed("claims_malformed"));
        }
        let audiences = match members.get("aud") {
            None => Vec::new(),
            Some(Value::String(audience)) => vec![audience.clone()],
            Some(Value::Array(audiences)) => audiences
                .iter()
                .map(|audience| audience.as_str().map(str::to_owned))
                .collect::<Option<_>>()
                .ok_or(Refusal::Malformed("claims_malformed"))?,
            Some(_) => return Err(Refusal::Malformed("claims_malformed")),
        };
        let expires = date(&members, "exp")?.ok_or(Refusal::Invalid("expiry_missing"))?;
        let not_before = date(&members, "nbf")?;
        let issued = date(&members, "iat")?;
        Ok(Self {
            issuer,
            audiences,
            expires,
            not_before,
            issued,
            text: None,
            members,
        })
    }

    /// Remembers the payload that this was read from.
    pub(crate) fn keep_text(&mut self, payload: Vec<u8>) {
        self.text = Some(payload);
    }

    /// The payload, if it was kept.
    pub(crate) fn text(&self) -> Option<&[u8]> {
        self.text.as_deref()
    }

    pub(crate) fn issuer(&self) -> &str {
        &self.issuer
    }

    pub(crate) fn subject(&self) -> Option<&str> {
        self.members.get("sub").and_then(Value::as_str)
    }

    /// The claim at a path; `null` counts as absent.
    pub(crate) fn at(&self, path: &ClaimPath) -> Option<&Value> {
        let (first, rest) = path.0.split_first()?;
        let claim = rest
            .iter()
            .try_fold(self.members.get(first)?, |value, name| {
                value.get(name.as_str())
            })?;
        (!claim.is_null()).then_some(claim)
    }

    /// Whether the token has a scope: in `scope` (text, RFC 8693 section 4.2) or `scp` (text or list).
    pub(crate) fn has_scope(&self, scope: &str) -> bool {
        let within = |value: &Value| match value {
            Value::String(scopes) => scopes.split(' ').any(|one| one == scope),
            Value::Array(scopes) => scopes.iter().any(|one| one == scope),
            _ => false,
        };
        ["scope", "scp"]
            .iter()
            .any(|name| self.members.get(*name).is_some_and(within))
    }

    /// Bytes in memory, roughly.
    pub(crate) fn weight(&self) -> usize {
        let members: usize = self
            .members
            .iter()
            .map(|(name, value)| 64 + name.len() + json::weight(value))
            .sum();
        let audiences: usize = self
            .audiences
            .iter()
            .map(|audience| 64 + audience.len())
            .sum();
        let text = self.text.as_ref().map_or(0, Vec::len);
        members + audiences + text + self.issuer.len() + 128
    }
}

/// A NumericDate: a number, perhaps with a fraction, which is dropped.
fn date(members: &Map<String, Value>, name: &str) -> Result<Option<u64>, Refusal> {
    const MALFORMED: Refusal = Refusal::Malformed("claims_malformed");
    match members.get(name) {
        None => Ok(None),
        Some(Value::Number(number)) => match (number.as_u64(), number.as_f64()) {
            (Some(seconds), _) => Ok(Some(seconds)),
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "not negative; what is too large saturates, and is then too far off for any rule"
            )]
            (None, Some(seconds)) if seconds >= 0.0 => Ok(Some(seconds as u64)),
            _ => Err(MALFORMED),
        },
        Some(_) => Err(MALFORMED),
    }
}

/// What one issuer's tokens must claim. Units are seconds.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) audiences: Vec<String>,
    pub(crate) lifetime_max: u64,
    pub(crate) clock_skew: u64,
    pub(crate) required: Vec<RequiredClaim>,
}

/// One claim that must be there, and how.
#[derive(Debug)]
pub(crate) struct RequiredClaim {
    pub(crate) path: ClaimPath,
    pub(crate) matcher: Matcher,
}

/// How a claim must be.
#[derive(Debug)]
pub(crate) enum Matcher {
    Present,
    /// Equal to one of these, in value and type.
    OneOf(Vec<Value>),
    /// A list that has this among its values.
    Contains(Value),
}

impl Rules {
    /// Runs every rule; `now` in seconds since 1970.
    pub(crate) fn check(&self, claims: &Claims, now: u64) -> Result<(), Refusal> {
        let latest = now.saturating_add(self.clock_skew);
        if !claims
            .audiences
            .iter()
            .any(|audience| self.audiences.contains(audience))
        {
            return Err(Refusal::Invalid("audience_wrong"));
        }
        if claims.expires.saturating_add(self.clock_skew) <= now {
            return Err(Refusal::Expired);
        }
        if claims
            .not_before
            .is_some_and(|not_before| not_before > latest)
        {
            return Err(Refusal::Invalid("token_premature"));
        }
        if claims.issued.is_some_and(|issued| issued > latest) {
            return Err(Refusal::Invalid("token_premature"));
        }
        let granted = claims
            .issued
            .map_or(0, |issued| claims.expires.saturating_sub(issued));
        let remaining = claims.expires.saturating_sub(latest);
        if granted.max(remaining) > self.lifetime_max {
            return Err(Refusal::Invalid("lifetime_exceeded"));
        }
        if self.required.iter().all(|required| required.is_met(claims)) {
            Ok(())
        } else {
            Err(Refusal::Claim)
        }
    }
}

impl RequiredClaim {
    fn is_met(&self, claims: &Claims) -> bool {
        claims
            .at(&self.path)
            .is_some_and(|claim| match &self.matcher {
                Matcher::Present => true,
                Matcher::OneOf(values) => values.contains(claim),
                Matcher::Contains(value) => claim
                    .as_array()
                    .is_some_and(|values| values.contains(value)),
            })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{ClaimPath, Claims, Matcher, Refusal, RequiredClaim, Rules};

    const NOW: u64 = 1_800_000_000;

    fn read(overrides: &Value) -> Result<Claims, Refusal> {
        let mut claims = json!({"iss": "i", "aud": "a", "exp": NOW + 300});
        let members = claims.as_object_mut().unwrap();
        for (name, value) in overrides.as_object().unwrap() {
            members.insert(name.clone(), value.clone());
        }
        Claims::read(claims.to_string().as_bytes())
    }

    #[test]
    fn claims_of_a_wrong_type_are_refused() {
        let malformed = Some(Refusal::Malformed("claims_malformed"));
        for (overrides, expected) in [
            (json!({}), None),
            (json!({"exp": 1e300}), None),
            (json!({"exp": 1.5, "aud": [], "nbf": 0, "iat": 0.1}), None),
            (json!({"iss": 1}), malformed),
            (json!({"iss": null}), malformed),
            (json!({"sub": 7}), malformed),
            (json!({"aud": {"a": 1}}), malformed),
            (json!({"aud": ["a", 1]}), malformed),
            (json!({"exp": "1800000300"}), malformed),
            (json!({"exp": -1}), malformed),
            (json!({"exp": null}), malformed),
            (json!({"nbf": true}), malformed),
            (json!({"iat": []}), malformed),
        ] {
            assert_eq!(read(&overrides).err(), expected, "{overrides}");
        }
        assert_eq!(
            Claims::read(br#"{"iss":"i","aud":"a"}"#).err(),
            Some(Refusal::Invalid("expiry_missing"))
        );
        assert_eq!(
            Claims::read(br#"{"aud":"a","exp":1}"#).err(),
            Some(Refusal::Invalid("issuer_unknown"))
        );
    }

    #[test]
    fn every_rule_has_an_edge() {
        let rules = Rules {
            audiences: vec!["a".into(), "b".into()],
            lifetime_max: 3600,
            clock_skew: 60,
            required: vec![],
        };
        let premature = Err(Refusal::Invalid("token_premature"));
        let lifetime = Err(Refusal::Invalid("lifetime_exceeded"));
        let audience = Err(Refusal::Invalid("audience_wrong"));
        for (overrides, expected) in [
            (json!({}), Ok(())),
            (json!({"aud": ["x", "b"]}), Ok(())),
            (json!({"aud": "A"}), audience),
            (json!({"aud": []}), audience),
            (json!({"aud": "a b"}), audience),
            (json!({"exp": NOW - 59}), Ok(())),
            (json!({"exp": NOW - 60}), Err(Refusal::Expired)),
            (json!({"exp": 0}), Err(Refusal::Expired)),
            (json!({"nbf": NOW + 60}), Ok(())),
            (json!({"nbf": NOW + 61}), premature),
            (json!({"iat": NOW + 60}), Ok(())),
            (json!({"iat": NOW + 61}), premature),
            (json!({"exp": NOW + 3660}), Ok(())),
            (json!({"exp": NOW + 3661}), lifetime),
            (json!({"exp": 1e300}), lifetime),
            (json!({"exp": u64::MAX}), lifetime),
            (json!({"iat": NOW - 3000, "exp": NOW + 600}), Ok(())),
            (json!({"iat": NOW - 3000, "exp": NOW + 601}), lifetime),
        ] {
            assert_eq!(
                rules.check(&read(&overrides).unwrap(), NOW),
                expected,
                "{overrides}"
            );
        }
    }

    #[test]
    fn required_claims_match_by_value_and_type() {
        let path =
            |names: &[&str]| ClaimPath(names.iter().map(|name| (*name).to_owned()).collect());
        let claims = read(&json!({
            "n": 1, "t": "x", "none": null, "list": ["a", 2], "in": {"roles": ["admin"], "deep": {"b": true}}
        }))
        .unwrap();
        for (names, matcher, met) in [
            (&["n"][..], Matcher::Present, true),
            (&["none"], Matcher::Present, false),
            (&["absent"], Matcher::Present, false),
            (
                &["in", "deep", "b"],
                Matcher::OneOf(vec![json!(true)]),
                true,
            ),
            (&["in", "deep", "c"], Matcher::Present, false),
            (&["t", "x"], Matcher::Present, false),
            (&["n"], Matcher::OneOf(vec![json!(2), json!(1)]), true),
            (&["n"], Matcher::OneOf(vec![json!("1")]), false),
            (&["list"], Matcher::Contains(json!("a")), true),
            (&["list"], Matcher::Contains(json!("2")), false),
            (&["list"], Matcher::Contains(json!("A")), false),
            (&["t"], Matcher::Contains(json!("x")), false),
            (&["in", "roles"], Matcher::Contains(json!("admin")), true),
        ] {
            let text = format!("{names:?} {matcher:?}");
            assert_eq!(
                RequiredClaim {
                    path: path(names),
                    matcher
                }
                .is_met(&claims),
                met,
                "{text}"
            );
        }
    }

    #[test]
    fn scopes_are_words_in_either_claim() {
        for (overrides, has) in [
            (json!({"scope": "a read b"}), true),
            (json!({"scp": "read"}), true),
            (json!({"scp": ["a", "read"]}), true),
            (json!({"scope": "reader"}), false),
            (json!({"scope": "READ"}), false),
            (json!({"scope": 1, "scp": {"read": true}}), false),
            (json!({}), false),
        ] {
            assert_eq!(
                read(&overrides).unwrap().has_scope("read"),
                has,
                "{overrides}"
            );
        }
    }
}
