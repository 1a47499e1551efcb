//! Header values in a case: text, bytes, values made when the case runs, or several of these in a row.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::Deserialize;

/// Makes a value when a case runs, such as a token: the placeholder's name (`jwt`), its argument, and the time.
pub type Make<'a> = &'a dyn Fn(&str, &serde_json::Value, SystemTime) -> Result<Vec<u8>, String>;

/// For cases without placeholders.
///
/// ```
/// # use portcullis_cases::*;
/// # use std::time::SystemTime;
/// let value: Value = serde_json::from_str(r#"{"jwt": {"sub": "alice"}}"#).unwrap();
/// let error = value.bytes(SystemTime::UNIX_EPOCH, &no_make).unwrap_err();
/// assert_eq!(error, "nothing makes a \"jwt\" value here");
/// ```
pub fn no_make(name: &str, _: &serde_json::Value, _: SystemTime) -> Result<Vec<u8>, String> {
    Err(format!("nothing makes a {name:?} value here"))
}

/// A header value as written in a case.
///
/// ```
/// # use portcullis_cases::*;
/// # use std::time::SystemTime;
/// let value: Value = serde_json::from_str(r#"["Basic ", {"base64": "/w=="}]"#).unwrap();
/// assert_eq!(value.bytes(SystemTime::UNIX_EPOCH, &no_make).unwrap(), b"Basic \xff");
/// ```
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// `text`
    Text(String),
    /// `["Bearer ", {jwt: {sub: alice}}]`: one after the other.
    Parts(Vec<Value>),
    /// `{base64: …}`, or one that the caller makes: `{jwt: {sub: alice}}`. One key only.
    Made(BTreeMap<String, serde_json::Value>),
}

impl Value {
    /// The bytes at `now`.
    ///
    /// ```
    /// # use portcullis_cases::*;
    /// # use std::time::SystemTime;
    /// assert_eq!(Value::Text("a".into()).bytes(SystemTime::UNIX_EPOCH, &no_make).unwrap(), b"a");
    /// ```
    pub fn bytes(&self, now: SystemTime, make: Make<'_>) -> Result<Vec<u8>, String> {
        match self {
            Self::Text(text) => Ok(text.clone().into_bytes()),
            Self::Parts(parts) => {
                let parts: Result<Vec<_>, _> =
                    parts.iter().map(|part| part.bytes(now, make)).collect();
                Ok(parts?.concat())
            }
            Self::Made(made) => {
                let mut entries = made.iter();
                match (entries.next(), entries.next()) {
                    (Some((name, argument)), None) if name == "base64" => {
                        let text = argument.as_str().ok_or("base64 wants text")?;
                        decode_base64(text).ok_or_else(|| format!("{text:?} is not base64"))
                    }
                    (Some((name, argument)), None) => make(name, argument, now),
                    _ => Err(String::from("a made value has one key: its kind")),
                }
            }
        }
    }
}

/// RFC 4648 §4; padding may be left out.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 3);
    let (mut bits, mut count) = (0_u32, 0_u32);
    for digit in text.trim_end_matches('=').bytes() {
        let six = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(six);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count).to_le_bytes()[0]);
        }
    }
    (count < 6).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_decodes_what_rfc_4648_lists() {
        for (text, bytes) in [
            ("", Some(&b""[..])),
            ("Zg==", Some(b"f")),
            ("Zm8=", Some(b"fo")),
            ("Zm9v", Some(b"foo")),
            ("Zm9vYmFy", Some(b"foobar")),
            ("//8", Some(&[0xff, 0xff])),
            ("Z", None),
            ("Z!==", None),
        ] {
            assert_eq!(decode_base64(text).as_deref(), bytes, "{text:?}");
        }
    }

    #[test]
    fn parts_are_joined_and_placeholders_made() {
        let value: Value =
            serde_json::from_str(r#"["Bearer ", {"jwt": "x"}, {"base64": "/w=="}]"#).unwrap();
        let make: Make<'_> = &|kind, argument, _| Ok(format!("{kind}:{argument}").into_bytes());
        assert_eq!(
            value.bytes(SystemTime::UNIX_EPOCH, make).unwrap(),
            b"Bearer jwt:\"x\"\xff"
        );
        let unknown: Value = serde_json::from_str(r#"{"jwt": 1}"#).unwrap();
        assert!(unknown.bytes(SystemTime::UNIX_EPOCH, &no_make).is_err());
    }
}
