//! Secrets in configurations: HMAC keys that are too short, or no keys but words.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

/// RFC 7518 §3.2: a key for HS256 has at least as many bytes as the hash.
const BYTES_MIN: usize = 32;
/// 32 random bytes have some 30 different ones, in hexadecimal 15; a password repeated has few.
const DIFFERENT_MIN: usize = 8;

/// Names of values that are secrets which both sides know.
fn is_secret_name(name: &str) -> bool {
    let name = name.to_lowercase().replace('-', "_");
    name == "secret"
        || name.ends_with("_secret")
        || name.starts_with("hmac_")
        || name == "signing_key"
}

/// Where in a configuration a secret is weak, and why. What it is, is not told.
pub(crate) fn weak_in(configuration: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    look("", configuration, &mut found);
    found
}

fn look(path: &str, value: &Value, found: &mut Vec<(String, String)>) {
    match value {
        Value::Object(members) => {
            let is_symmetric = members.get("kty").and_then(Value::as_str) == Some("oct");
            for (name, member) in members {
                let path = match path {
                    "" => name.clone(),
                    path => format!("{path}.{name}"),
                };
                match member {
                    // RFC 7518 §6.4: the bytes of a symmetric key.
                    Value::String(text) if is_symmetric && name == "k" => {
                        let key = URL_SAFE_NO_PAD.decode(text.trim_end_matches('='));
                        found.extend(fault(&key.unwrap_or_default()).map(|why| (path, why)));
                    }
                    Value::String(text) if is_secret_name(name) => {
                        found.extend(fault(text.as_bytes()).map(|why| (path, why)));
                    }
                    _ => look(&path, member, found),
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                look(&format!("{path}[{index}]"), item, found);
            }
        }
        _ => {}
    }
}

fn fault(key: &[u8]) -> Option<String> {
    let different = key.iter().collect::<BTreeSet<_>>().len();
    if key.len() < BYTES_MIN {
        let bytes = key.len();
        return Some(format!(
            "a secret of {bytes} bytes: an HMAC key needs {BYTES_MIN} random ones (RFC 7518 §3.2)"
        ));
    }
    (different < DIFFERENT_MIN).then(|| {
        format!("a secret of only {different} different bytes: an HMAC key needs {BYTES_MIN} random ones (RFC 7518 §3.2)")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::weak_in;

    #[test]
    fn short_and_simple_secrets_are_found_and_not_told() {
        let good = "kJ8$2mQ!zW4xR7vT1yU9pL6nB3cD5fG0";
        for (configuration, expected) in [
            (json!({"secret": "hunter2"}), vec!["secret"]),
            (
                json!({"session": {"hmac_key": "a".repeat(64)}}),
                vec!["session.hmac_key"],
            ),
            (
                json!({"a": [{"client-secret": "x"}, {"signing_key": good}]}),
                vec!["a[0].client-secret"],
            ),
            (
                json!({"jwks": {"keys": [{"kty": "oct", "k": "aHVudGVyMg"}, {"kty": "RSA", "k": "x"}]}}),
                vec!["jwks.keys[0].k"],
            ),
            (
                json!({"jwks": {"keys": [{"kty": "oct", "k": "not base64!"}]}}),
                vec!["jwks.keys[0].k"],
            ),
            (
                json!({"secret": good, "secret_name": "x", "secrets": ["x"], "strip_secret": false}),
                vec![],
            ),
        ] {
            let found = weak_in(&configuration);
            let paths: Vec<_> = found.iter().map(|(path, _)| path.as_str()).collect();
            assert_eq!(paths, expected, "{configuration}");
            assert!(found.iter().all(|(_, why)| !why.contains("hunter2")));
        }
    }
}
