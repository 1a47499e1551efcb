//! What jwt-auth verified, for the controls behind it: [`VerifiedClaims`].
//!
//! The claims come as a property, which only a filter can set: no header, query or body of a client's ends up there. In one
//! module with jwt-auth they come from the module's memory, and cost no hostcall.

use std::borrow::Cow;

use crate::error::Error;
use crate::json_text::{JsonPointer, JsonText};

/// The claims of the access token that jwt-auth found good for this request (with `share_claims: true`), all of them.
///
/// They are as the issuer signed them: that they are true is as good as the issuer, and jwt-auth's configuration says
/// which ones a token must have. Without jwt-auth on the way there are none, so a control refuses where there are none.
///
/// ```
/// use portcullis_sdk::prelude::*;
///
/// /// Only an administrator may change anything.
/// fn decide(request: &Request) -> Result<Decision, Error> {
///     let roles = JsonPointer::new("/realm_access/roles")?;
///     let claims = request.verified_claims()?;
///     let roles = claims.as_ref().and_then(|claims| claims.pointer(&roles));
///     let mut roles = roles.and_then(|roles| roles.items()).into_iter().flatten();
///     if request.method()? == b"GET" || roles.any(|role| role.as_str().as_deref() == Some("admin")) {
///         return Ok(Decision::Continue);
///     }
///     Ok(LocalResponse::refuse(403, "no_admin", "Forbidden").into())
/// }
/// ```
#[derive(Clone, Debug)]
pub struct VerifiedClaims {
    text: Vec<u8>,
}

impl VerifiedClaims {
    /// The property that carries them, as one segment: a JSON object.
    pub const PROPERTY: &'static str = "jwt.claims";

    /// Of what the property holds.
    pub(crate) fn parse(text: Vec<u8>) -> Result<Self, Error> {
        const MALFORMED: Error = Error::Malformed("the property jwt.claims");
        let is_object = JsonText::parse(&text).is_ok_and(|text| text.members().is_some());
        is_object.then_some(Self { text }).ok_or(MALFORMED)
    }

    /// All of them, an object.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// Their names.
    /// fn names(claims: &VerifiedClaims) -> Vec<String> {
    ///     claims.all().members().into_iter().flatten().map(|(name, _)| name.into_owned()).collect()
    /// }
    /// ```
    pub fn all(&self) -> JsonText<'_> {
        JsonText::checked(self.text.trim_ascii())
    }

    /// A claim by its name; `null` counts as absent.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// Whether the user signed in with a second factor.
    /// fn is_strong(claims: &VerifiedClaims) -> bool {
    ///     claims.claim("acr").is_some_and(|level| level.as_str().as_deref() == Some("mfa"))
    /// }
    /// ```
    pub fn claim(&self, name: &str) -> Option<JsonText<'_>> {
        let mut members = self.all().members()?;
        let found = members.find(|(known, _)| known == name);
        found.map(|(_, value)| value).filter(|it| !it.is_null())
    }

    /// A claim by its place; `null` counts as absent.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// The customer that the user belongs to; the pointer comes from the configuration.
    /// fn tenant(claims: &VerifiedClaims, place: &JsonPointer) -> Option<u64> {
    ///     claims.pointer(place)?.as_u64()
    /// }
    /// ```
    pub fn pointer(&self, pointer: &JsonPointer) -> Option<JsonText<'_>> {
        self.all().pointer(pointer).filter(|it| !it.is_null())
    }

    /// Who signed the token: `iss`.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// fn is_ours(claims: &VerifiedClaims) -> bool {
    ///     claims.issuer().as_deref() == Some("https://idp.example.com")
    /// }
    /// ```
    pub fn issuer(&self) -> Option<Cow<'_, str>> {
        self.claim("iss")?.as_str()
    }

    /// Whom it is about: `sub`. It tells users of one issuer apart, so together with `iss`.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// fn user(claims: &VerifiedClaims) -> Result<String, Error> {
    ///     claims.subject().map(Into::into).ok_or(Error::Missing("the claim sub"))
    /// }
    /// ```
    pub fn subject(&self) -> Option<Cow<'_, str>> {
        self.claim("sub")?.as_str()
    }

    /// Whether it grants a scope: a word of `scope` (RFC 8693 §4.2), or of `scp`, a text or a list.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// fn may_write(claims: &VerifiedClaims) -> bool {
    ///     claims.has_scope("orders.write")
    /// }
    /// ```
    pub fn has_scope(&self, scope: &str) -> bool {
        let within = |value: JsonText<'_>| match value.as_str() {
            Some(words) => words.split(' ').any(|word| word == scope),
            None => {
                let items = value.items().into_iter().flatten();
                items.filter_map(|item| item.as_str()).any(|it| it == scope)
            }
        };
        ["scope", "scp"]
            .iter()
            .any(|name| self.claim(name).is_some_and(within))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_read_by_name_place_and_type() {
        let text = br#" {"iss": "https://i", "sub": "alice", "n": null, "a": {"b": [1, null]}, "scope": "x y", "scp": ["z"]} "#;
        let claims = VerifiedClaims::parse(text.to_vec()).unwrap();
        assert_eq!(claims.issuer().as_deref(), Some("https://i"));
        assert_eq!(claims.subject().as_deref(), Some("alice"));
        assert!(claims.claim("n").is_none());
        assert!(claims.claim("b").is_none());
        let at = |place: &str| claims.pointer(&JsonPointer::new(place).unwrap());
        assert_eq!(at("/a/b/0").and_then(|it| it.as_u64()), Some(1));
        assert!(at("/a/b/1").is_none());
        let scopes = ["x", "y", "z", "x y", "", "X"].map(|scope| claims.has_scope(scope));
        assert_eq!(scopes, [true, true, true, false, false, false]);
    }

    #[test]
    fn claims_of_another_type_are_none() {
        let text = br#"{"iss": 1, "sub": ["alice"], "scope": {"x": 1}, "scp": [1, ["x"]]}"#;
        let claims = VerifiedClaims::parse(text.to_vec()).unwrap();
        assert_eq!((claims.issuer(), claims.subject()), (None, None));
        assert!(!claims.has_scope("x") && !claims.has_scope("1"));
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        for text in [
            "",
            "null",
            "[]",
            "\"alice\"",
            "{",
            "{\"sub\":1,\"sub\":2}",
            "{} {}",
        ] {
            let claims = VerifiedClaims::parse(text.into());
            assert!(claims.is_err(), "{text}");
        }
    }
}
