//! What later filters and the upstream learn of a verified token: properties and request headers.

use portcullis_sdk::{Error, Request, VerifiedClaims};
use serde_json::Value;

use crate::challenge::Refusal;
use crate::claims::{ClaimPath, Claims};

/// Claims that leave the control.
#[derive(Debug, Default)]
pub(crate) struct Forward {
    pub(crate) headers: Vec<ClaimHeader>,
    pub(crate) properties: Vec<ClaimProperty>,
    /// Whether all of them leave, as [`VerifiedClaims`].
    pub(crate) share: bool,
}

/// A claim as a request header.
#[derive(Debug)]
pub(crate) struct ClaimHeader {
    /// In lower case.
    pub(crate) name: String,
    pub(crate) path: ClaimPath,
}

/// A claim as a property.
#[derive(Debug)]
pub(crate) struct ClaimProperty {
    /// With `jwt.` in front.
    pub(crate) name: String,
    pub(crate) path: ClaimPath,
}

impl Forward {
    /// The headers and their values; absent claims give none. Nothing is set here, so a refusal leaves no trace.
    pub(crate) fn header_values(&self, claims: &Claims) -> Result<Vec<(&str, String)>, Refusal> {
        let present = self
            .headers
            .iter()
            .filter_map(|header| Some((header, claims.at(&header.path)?)));
        present
            .map(|(header, claim)| {
                Ok((
                    header.name.as_str(),
                    header_value(claim).ok_or(Refusal::Invalid("claim_unfit"))?,
                ))
            })
            .collect()
    }

    /// Sets `jwt.iss`, `jwt.sub` and the configured properties. Text as it is, anything else as JSON.
    pub(crate) fn set_properties(
        &self,
        claims: &Claims,
        request: &mut Request<'_>,
    ) -> Result<(), Error> {
        request.set_property("jwt.iss", claims.issuer().as_bytes())?;
        if let Some(subject) = claims.subject() {
            request.set_property("jwt.sub", subject.as_bytes())?;
        }
        if let Some(text) = claims.text().filter(|_| self.share) {
            request.set_property(VerifiedClaims::PROPERTY, text)?;
        }
        for property in &self.properties {
            match claims.at(&property.path) {
                Some(Value::String(text)) => {
                    request.set_property(&property.name, text.as_bytes())?
                }
                Some(claim) => {
                    request.set_property(&property.name, claim.to_string().as_bytes())?
                }
                None => {}
            }
        }
        Ok(())
    }
}

/// A claim as the value of a header: text, a number, a flag, or a list of these joined by commas. `None` for an object,
/// and for text that a header cannot carry unchanged, since the upstream would read something else than was signed.
fn header_value(claim: &Value) -> Option<String> {
    match claim {
        Value::Array(values) => {
            let values: Option<Vec<String>> = values
                .iter()
                .map(|value| scalar(value).filter(|text| !text.contains(',')))
                .collect();
            Some(values?.join(","))
        }
        scalar_claim => scalar(scalar_claim),
    }
}

fn scalar(claim: &Value) -> Option<String> {
    let text = match claim {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(flag) => flag.to_string(),
        _ => return None,
    };
    // RFC 9110 section 5.5: no control characters; blanks at the ends are no part of a value.
    let carried = text.bytes().all(|byte| byte >= b' ' && byte != 0x7f)
        && text.trim_matches(' ').len() == text.len();
    carried.then_some(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::header_value;

    #[test]
    fn only_what_a_header_can_carry_is_made_one() {
        for (claim, value) in [
            (json!("alice"), Some("alice")),
            (json!("a, b"), Some("a, b")),
            (json!("Zoë"), Some("Zoë")),
            (json!(""), Some("")),
            (json!(7), Some("7")),
            (json!(true), Some("true")),
            (json!(["a", 1, false]), Some("a,1,false")),
            (json!([]), Some("")),
            (json!(["a,b"]), None),
            (json!([["a"]]), None),
            (json!({"a": 1}), None),
            (json!("a\r\nx-admin: 1"), None),
            (json!("a\0"), None),
            (json!("a\u{7f}"), None),
            (json!("a\tb"), None),
            (json!(" a"), None),
            (json!("a "), None),
        ] {
            assert_eq!(header_value(&claim).as_deref(), value, "{claim}");
        }
    }
}
