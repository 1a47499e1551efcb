//! JSON from a client, read in place: [`JsonText`], and where in it a value stands: [`JsonPointer`] (RFC 6901).
//!
//! Two readers of a text must not see different things in it, so it is read as strictly as a configuration: a key that
//! comes twice in an object, anything behind the value, what is no UTF-8 and lone surrogates are refused. Checking takes
//! time and memory in proportion to the text (and the logarithm of the keys in an object); no tree is built.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};

use crate::error::Error;
use crate::json::{NO_VALUE, Reader};
use crate::limits;

/// A JSON value (RFC 8259) as it is written, checked once.
///
/// ```
/// use portcullis_sdk::{Error, JsonPointer, JsonText};
///
/// let body = JsonText::parse(br#"{"order": {"items": [{"sku": "a-1", "count": 3}]}, "gift": null}"#)?;
/// let count = JsonPointer::new("/order/items/0/count")?;
/// assert_eq!(body.pointer(&count).and_then(|value| value.as_u64()), Some(3));
/// assert!(body.pointer(&JsonPointer::new("/gift")?).is_some_and(|value| value.is_null()));
/// assert!(body.pointer(&JsonPointer::new("/order/total")?).is_none());
/// assert!(JsonText::parse(br#"{"admin": false, "admin": true}"#).is_err());
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct JsonText<'a> {
    /// The value alone, without blanks around it.
    text: &'a [u8],
}

impl<'a> JsonText<'a> {
    /// Checks a whole text: one value, nested at most 64 deep. Bound its length before.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let mut reader = Reader { bytes, at: 0 };
        reader.space();
        let start = reader.at;
        let checked = check(&mut reader, 0);
        let end = reader.at;
        reader.space();
        match checked {
            Ok(()) if reader.at == bytes.len() => Ok(Self {
                text: bytes.get(start..end).unwrap_or_default(),
            }),
            _ => Err(Error::Malformed("the JSON text")),
        }
    }

    /// Of a value that was checked before, without blanks around it.
    pub(crate) fn checked(text: &'a [u8]) -> Self {
        Self { text }
    }

    /// The value that a pointer names; `None` if there is none.
    ///
    /// ```
    /// # use portcullis_sdk::{Error, JsonPointer, JsonText};
    /// let roles = JsonPointer::new("/user/roles/1")?;
    /// let body = JsonText::parse(br#"{"user": {"roles": ["reader", "admin"]}}"#)?;
    /// assert_eq!(body.pointer(&roles).and_then(|value| value.as_str()).as_deref(), Some("admin"));
    /// # Ok::<(), Error>(())
    /// ```
    pub fn pointer(&self, pointer: &JsonPointer) -> Option<JsonText<'a>> {
        pointer.steps.iter().try_fold(*self, |value, step| {
            if value.first() == b'[' {
                return value.items()?.nth(index(step)?);
            }
            let mut members = value.members()?;
            members
                .find(|(key, _)| key == step.as_str())
                .map(|(_, value)| value)
        })
    }

    /// The members of an object, in order; `None` if it is none. No key comes twice.
    ///
    /// ```
    /// # use portcullis_sdk::{Error, JsonText};
    /// let body = JsonText::parse(br#"{"a": 1, "b": 2}"#)?;
    /// let keys: Vec<_> = body.members().into_iter().flatten().map(|(key, _)| key).collect();
    /// assert_eq!(keys, ["a", "b"]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn members(&self) -> Option<impl Iterator<Item = (Cow<'a, str>, JsonText<'a>)> + use<'a>> {
        let mut reader = self.inside(b'{')?;
        Some(std::iter::from_fn(move || {
            reader.space();
            if reader.peek()? == b'}' {
                return None;
            }
            let key = reader.text().ok()?;
            reader.space();
            reader.take(b':');
            Some((key, next(&mut reader)?))
        }))
    }

    /// The items of a list, in order; `None` if it is none.
    ///
    /// ```
    /// # use portcullis_sdk::{Error, JsonText};
    /// let body = JsonText::parse(b"[1, 2, 3]")?;
    /// let sum: u64 = body.items().into_iter().flatten().filter_map(|item| item.as_u64()).sum();
    /// assert_eq!(sum, 6);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn items(&self) -> Option<impl Iterator<Item = JsonText<'a>> + use<'a>> {
        let mut reader = self.inside(b'[')?;
        Some(std::iter::from_fn(move || {
            reader.space();
            (reader.peek()? != b']')
                .then(|| next(&mut reader))
                .flatten()
        }))
    }

    /// A string, without its quotes and escapes.
    ///
    /// ```
    /// # use portcullis_sdk::{Error, JsonText};
    /// assert_eq!(JsonText::parse(br#""\u00e9t\u00e9""#)?.as_str().as_deref(), Some("été"));
    /// assert_eq!(JsonText::parse(b"7")?.as_str(), None);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn as_str(&self) -> Option<Cow<'a, str>> {
        (self.first() == b'"')
            .then(|| self.reader().text().ok())
            .flatten()
    }

    /// A whole number of up to 64 bits, not below 0.
    ///
    /// ```
    /// # use portcullis_sdk::{Error, JsonText};
    /// assert_eq!(JsonText::parse(b"42")?.as_u64(), Some(42));
    /// for other in ["-1", "1.0", "\"42\"", "18446744073709551616"] {
    ///     assert_eq!(JsonText::parse(other.as_bytes())?.as_u64(), None);
    /// }
    /// # Ok::<(), Error>(())
    /// ```
    pub fn as_u64(&self) -> Option<u64> {
        self.number()?.parse().ok()
    }

    /// A whole number of up to 64 bits.
    ///
    /// ```
    /// # use portcullis_sdk::{Error, JsonText};
    /// assert_eq!(JsonText::parse(b"-42")?.as_i64(), Some(-42));
    /// # Ok::<(), Error>(())
    /// ```
    pub fn as_i64(&self) -> Option<i64> {
        self.number()?.parse().ok()
    }

    /// Any number, as near as a float comes to it; beyond all floats it is infinite.
    ///
    /// ```
    /// # use portcullis_sdk::{Error, JsonText};
    /// assert_eq!(JsonText::parse(b"1.5e1")?.as_f64(), Some(15.0));
    /// # Ok::<(), Error>(())
    /// ```
    pub fn as_f64(&self) -> Option<f64> {
        self.number()?.parse().ok()
    }

    /// `true` or `false`.
    ///
    /// ```
    /// # use portcullis_sdk::{Error, JsonText};
    /// assert_eq!(JsonText::parse(b"true")?.as_bool(), Some(true));
    /// # Ok::<(), Error>(())
    /// ```
    pub fn as_bool(&self) -> Option<bool> {
        match self.text {
            b"true" => Some(true),
            b"false" => Some(false),
            _ => None,
        }
    }

    /// Whether it is `null`.
    ///
    /// ```
    /// # use portcullis_sdk::{Error, JsonText};
    /// assert!(JsonText::parse(b" null ")?.is_null());
    /// # Ok::<(), Error>(())
    /// ```
    pub fn is_null(&self) -> bool {
        self.text == b"null"
    }

    /// The value as it is written.
    ///
    /// ```
    /// # use portcullis_sdk::{Error, JsonText};
    /// assert_eq!(JsonText::parse(b" {\"a\": 1} ")?.as_bytes(), b"{\"a\": 1}");
    /// # Ok::<(), Error>(())
    /// ```
    pub fn as_bytes(&self) -> &'a [u8] {
        self.text
    }

    fn number(&self) -> Option<&'a str> {
        let is_number = matches!(self.first(), b'-' | b'0'..=b'9');
        is_number
            .then(|| self.reader().number_text().ok().map(|(text, _)| text))
            .flatten()
    }

    /// What the kind of a value is told by; a checked text is never empty.
    fn first(&self) -> u8 {
        self.text.first().copied().unwrap_or_default()
    }

    fn reader(&self) -> Reader<'a> {
        Reader {
            bytes: self.text,
            at: 0,
        }
    }

    /// Behind the bracket that the value begins with, if it is this one.
    fn inside(&self, bracket: u8) -> Option<Reader<'a>> {
        let mut reader = self.reader();
        reader.take(bracket).then_some(reader)
    }
}

/// A place in a JSON text (RFC 6901): `/user/roles/0`; the empty pointer is the whole. In a key, `~1` is `/` and `~0` is
/// `~`. As part of a configuration it is written as a text.
///
/// ```
/// use portcullis_sdk::JsonPointer;
///
/// assert!(JsonPointer::new("/a~1b/0").is_ok());
/// assert!(JsonPointer::new("a").is_err()); // it begins with `/`
/// assert!(JsonPointer::new("/~2").is_err()); // there is no such escape
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonPointer {
    steps: Vec<String>,
}

impl JsonPointer {
    /// Reads a pointer of at most 64 steps.
    pub fn new(text: &str) -> Result<Self, Error> {
        const MALFORMED: Error = Error::Malformed("the JSON pointer");
        let mut steps = text.split('/');
        if steps.next() != Some("") {
            return Err(MALFORMED);
        }
        let steps: Option<Vec<String>> = steps.map(unescape).collect();
        let steps = steps.ok_or(MALFORMED)?;
        if steps.len() > limits::JSON_POINTER_STEPS_MAX {
            return Err(MALFORMED);
        }
        Ok(Self { steps })
    }
}

impl<'de> Deserialize<'de> for JsonPointer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::new(&text).map_err(|_| {
            serde::de::Error::custom("must be a JSON pointer (RFC 6901) such as `/user/id`")
        })
    }
}

impl JsonSchema for JsonPointer {
    fn schema_name() -> Cow<'static, str> {
        "JsonPointer".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^(/([^/~]|~[01])*)*$",
            "description": "A place in a JSON text (RFC 6901), such as /user/id.",
        })
    }
}

/// A step without its escapes; `None` if there is no such escape.
fn unescape(step: &str) -> Option<String> {
    let mut parts = step.split('~');
    let mut key = String::from(parts.next()?);
    for part in parts {
        let (character, rest) = match part.split_at_checked(1)? {
            ("0", rest) => ('~', rest),
            ("1", rest) => ('/', rest),
            _ => return None,
        };
        key.push(character);
        key.push_str(rest);
    }
    Some(key)
}

/// A step as an index: decimal digits without a leading zero (RFC 6901 §4). `-` is behind the last item, where there is none.
fn index(step: &str) -> Option<usize> {
    let plain = step.bytes().all(|byte| byte.is_ascii_digit());
    let plain = plain && (step == "0" || !step.starts_with('0'));
    plain.then(|| step.parse().ok()).flatten()
}

/// The next value of a list or an object, and what parts it from the one behind it.
fn next<'a>(reader: &mut Reader<'a>) -> Option<JsonText<'a>> {
    reader.space();
    let start = reader.at;
    skip(reader)?;
    let text = reader.bytes.get(start..reader.at)?;
    reader.space();
    reader.take(b',');
    Some(JsonText { text })
}

/// Past a value that was checked before: brackets match, so they are counted.
fn skip(reader: &mut Reader<'_>) -> Option<()> {
    let mut depth = 0_usize;
    loop {
        match reader.peek()? {
            b'"' => skip_string(reader)?,
            b'{' | b'[' => {
                depth += 1;
                reader.at += 1;
            }
            b'}' | b']' => {
                depth = depth.checked_sub(1)?;
                reader.at += 1;
            }
            b',' | b':' | b' ' | b'\t' | b'\n' | b'\r' => reader.at += 1,
            _ => {
                let rest = reader.bytes.get(reader.at..)?;
                let scalar = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
                let len = rest.iter().take_while(|byte| scalar(byte)).count();
                reader.at += len.max(1);
            }
        }
        if depth == 0 {
            return Some(());
        }
    }
}

fn skip_string(reader: &mut Reader<'_>) -> Option<()> {
    reader.at += 1;
    loop {
        let byte = reader.peek()?;
        reader.at += 1;
        match byte {
            b'"' => return Some(()),
            b'\\' => reader.at += 1,
            _ => {}
        }
    }
}

/// Checks a value and all in it.
fn check(reader: &mut Reader<'_>, depth: usize) -> Result<(), &'static str> {
    if depth > limits::JSON_DEPTH_MAX {
        return Err("nested too deep");
    }
    reader.space();
    match reader.peek().ok_or(NO_VALUE)? {
        b'{' => check_object(reader, depth),
        b'[' => check_list(reader, depth),
        b'"' => reader.text().map(|_| ()),
        b'-' | b'0'..=b'9' => reader.number_text().map(|_| ()),
        b't' => reader.word(b"true"),
        b'f' => reader.word(b"false"),
        _ => reader.word(b"null"),
    }
}

fn check_list(reader: &mut Reader<'_>, depth: usize) -> Result<(), &'static str> {
    reader.at += 1;
    reader.space();
    if reader.take(b']') {
        return Ok(());
    }
    loop {
        check(reader, depth + 1)?;
        reader.space();
        if reader.take(b']') {
            return Ok(());
        }
        if !reader.take(b',') {
            return Err("a comma or the end of a list is missing");
        }
    }
}

fn check_object(reader: &mut Reader<'_>, depth: usize) -> Result<(), &'static str> {
    let mut keys = Vec::new();
    reader.at += 1;
    reader.space();
    if reader.take(b'}') {
        return Ok(());
    }
    loop {
        reader.space();
        if reader.peek() != Some(b'"') {
            return Err("a key is missing");
        }
        keys.push(reader.text()?);
        reader.space();
        if !reader.take(b':') {
            return Err("a colon is missing");
        }
        check(reader, depth + 1)?;
        reader.space();
        if reader.take(b'}') {
            break;
        }
        if !reader.take(b',') {
            return Err("a comma or the end of an object is missing");
        }
    }
    keys.sort_unstable();
    match keys.is_sorted_by(|one, next| one < next) {
        true => Ok(()),
        false => Err("a key comes twice"),
    }
}

#[cfg(test)]
mod tests;
