//! Header and trailer maps: the trait an embedder lends its own maps through, and the runtime's own list.
//!
//! Invariant: whatever a guest writes passes [`check_name`] and [`check_value`] first, so that no map ever holds a name or value
//! that could split a message. Envoy accepts such bytes; we answer `BAD_ARGUMENT`. Source: RFC 9110 §5.1, §5.5; RFC 9113 §8.2.

use std::{any::Any, borrow::Cow};

use bytes::Bytes;

use crate::limits::HEADER_NAME_BYTES_MAX;

/// A header or trailer map the embedder lends. Names are lower-case; pseudo-headers (`:method` …) are part of the map, first.
pub trait Fields: Any {
    /// How many fields, each repetition counted.
    fn len(&self) -> usize;
    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Bytes of all names and values.
    fn byte_size(&self) -> usize;
    /// The first value under `name`, which is lower-case.
    fn get(&self, name: &[u8]) -> Option<&[u8]>;
    /// Visits every field in wire order.
    fn for_each(&self, visit: &mut dyn FnMut(&[u8], &[u8]));
    /// Adds one more field. The runtime has checked name and value; the map may refuse them for its own reasons.
    fn add(&mut self, name: &[u8], value: &[u8]) -> Result<(), InvalidField>;
    /// Puts `value` in place of all values under `name`.
    fn replace(&mut self, name: &[u8], value: &[u8]) -> Result<(), InvalidField>;
    /// Removes every field of this name.
    fn remove(&mut self, name: &[u8]);
    /// Removes all fields.
    fn clear(&mut self);
    /// For an embedder to get its own type back.
    fn as_any(&self) -> &dyn Any;
    /// For an embedder to get its own type back.
    fn as_any_mut(&mut self) -> &mut dyn Any;
    /// For an embedder to get its own type back.
    fn into_any(self: Box<Self>) -> Box<dyn Any>;
}

/// A name or value that no map may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid header name or value")]
pub struct InvalidField;

/// The runtime's own map: local responses, callouts, added trailers. Names are lower-case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldList(Vec<(Bytes, Bytes)>);

impl FieldList {
    /// An empty list.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// The fields in wire order.
    pub fn iter(&self) -> std::slice::Iter<'_, (Bytes, Bytes)> {
        self.0.iter()
    }

    /// Adds a field without a check: for the host's own names and values, and those checked before.
    pub fn push(&mut self, name: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.0.push((name.into(), value.into()));
    }
}

impl From<Vec<(Bytes, Bytes)>> for FieldList {
    fn from(fields: Vec<(Bytes, Bytes)>) -> Self {
        Self(fields)
    }
}

impl IntoIterator for FieldList {
    type Item = (Bytes, Bytes);
    type IntoIter = std::vec::IntoIter<(Bytes, Bytes)>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a FieldList {
    type Item = &'a (Bytes, Bytes);
    type IntoIter = std::slice::Iter<'a, (Bytes, Bytes)>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl Fields for FieldList {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn byte_size(&self) -> usize {
        self.0
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum()
    }

    fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.0
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_ref())
    }

    fn for_each(&self, visit: &mut dyn FnMut(&[u8], &[u8])) {
        for (name, value) in &self.0 {
            visit(name, value);
        }
    }

    fn add(&mut self, name: &[u8], value: &[u8]) -> Result<(), InvalidField> {
        self.push(Bytes::copy_from_slice(name), Bytes::copy_from_slice(value));
        Ok(())
    }

    fn replace(&mut self, name: &[u8], value: &[u8]) -> Result<(), InvalidField> {
        let mut value = Some(Bytes::copy_from_slice(value));
        self.0.retain_mut(|(n, v)| {
            if n != name {
                return true;
            }
            // The first keeps its place, the others go.
            value.take().map(|new| *v = new).is_some()
        });
        if let Some(value) = value {
            self.push(Bytes::copy_from_slice(name), value);
        }
        Ok(())
    }

    fn remove(&mut self, name: &[u8]) {
        self.0.retain(|(n, _)| n != name);
    }

    fn clear(&mut self) {
        self.0.clear();
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// Longer names are seldom.
const PLAIN_NAME_BYTES: usize = 32;

/// Whether `name` is as nearly all names are: not long, of lower-case letters, digits and `-` alone. Then it is valid, and in lower case.
///
/// It is looked at in a place of fixed length, so that the compiler checks all bytes at once.
fn is_plain(name: &[u8]) -> bool {
    let mut padded = [b'-'; PLAIN_NAME_BYTES];
    let Some(place) = padded.get_mut(..name.len()) else {
        return false;
    };
    place.copy_from_slice(name);
    let all_plain = padded.iter().fold(true, |plain, b| {
        plain & ((b.wrapping_sub(b'a') < 26) | (b.wrapping_sub(b'0') < 10) | (*b == b'-'))
    });
    all_plain && !name.is_empty()
}

/// Whether `name` may stand in a map: a lower-case token, or one of the five pseudo-headers.
pub(crate) fn check_name(name: &[u8]) -> Result<(), InvalidField> {
    if is_plain(name) {
        return Ok(());
    }
    let token = match name.strip_prefix(b":") {
        Some(b"method" | b"scheme" | b"authority" | b"path" | b"status") => return Ok(()),
        Some(_) => return Err(InvalidField),
        None => name,
    };
    let valid = !token.is_empty()
        && token.len() <= HEADER_NAME_BYTES_MAX
        && token.iter().all(|b| is_token(*b));
    valid.then_some(()).ok_or(InvalidField)
}

fn is_token(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~')
}

fn is_visible(byte: &u8) -> bool {
    *byte > b' ' && *byte != 0x7f
}

/// Whether `value` may stand under `name`. `:status` is three digits; a method is a token; paths and authorities hold no space.
pub(crate) fn check_value(name: &[u8], value: &[u8]) -> Result<(), InvalidField> {
    let valid = match name {
        b":status" => matches!(value, [b'2'..=b'5', b'0'..=b'9', b'0'..=b'9']),
        b":method" => !value.is_empty() && value.iter().all(|b| is_token(b.to_ascii_lowercase())),
        b":path" | b":scheme" => !value.is_empty() && value.iter().all(is_visible),
        // May be empty: the Go SDK's callouts leave it so, and Envoy takes it.
        b":authority" => value.iter().all(is_visible),
        _ => is_text(value),
    };
    valid.then_some(()).ok_or(InvalidField)
}

/// Whether no byte is a control character, but for tabs.
///
/// Without an early end, and in pieces of fixed length, so that the compiler checks many bytes at once: values are long, and nearly all are valid.
fn is_text(value: &[u8]) -> bool {
    let all = |bytes: &[u8; 16]| {
        bytes.iter().fold(true, |text, b| {
            text & (((*b >= b' ') & (*b != 0x7f)) | (*b == b'\t'))
        })
    };
    let (pieces, rest) = value.as_chunks::<16>();
    let mut last = [b' '; 16];
    if let Some(place) = last.get_mut(..rest.len()) {
        place.copy_from_slice(rest);
    }
    pieces
        .iter()
        .fold(all(&last), |text, piece| text & all(piece))
}

/// A header name from a guest, in lower case. Guests write them so already, nearly always: then nothing is copied.
pub(crate) fn lower(name: &[u8]) -> Cow<'_, [u8]> {
    if !is_plain(name) && name.iter().any(u8::is_ascii_uppercase) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_are_checked() {
        #[track_caller]
        fn check(name: &[u8], value: &[u8], expected: bool) {
            let valid = check_name(name)
                .and_then(|()| check_value(name, value))
                .is_ok();
            assert_eq!(
                valid,
                expected,
                "{}: {}",
                name.escape_ascii(),
                value.escape_ascii()
            );
        }
        check(b"x-a", b"1", true);
        check(b"x-a", b"", true);
        check(b"x-a", b"caf\xe9\t!", true);
        check(b"x-0123456789abcdefghijklmnopqrstuvwxyz", b"", true);
        check(b"x_a!", b"", true);
        check(b"x-a/", b"", false);
        check(b"x-a:", b"", false);
        check(b"x-a{", b"", false);
        check(&[0xe1; 8], b"", false);
        check(b"", b"1", false);
        check(b"X-A", b"1", false);
        check(b"x a", b"1", false);
        check(b"x\n", b"1", false);
        check(b"x-a", b"1\r\nx-b: 2", false);
        check(b"x-a", b"\0", false);
        check(b"x-a", b"\x7f", false);
        check(b":path", b"/a?b", true);
        check(b":path", b"/a b", false);
        check(b":path", b"", false);
        check(b":authority", b"", true);
        check(b":authority", b"a b", false);
        check(b":status", b"204", true);
        check(b":status", b"999", false);
        check(b":status", b"0", false);
        check(b":method", b"GET", true);
        check(b":method", b"G ET", false);
        check(b":unknown", b"1", false);
        check(&[b'a'; HEADER_NAME_BYTES_MAX], b"", true);
        check(&[b'a'; HEADER_NAME_BYTES_MAX + 1], b"", false);
    }

    #[test]
    fn replace_keeps_the_first_place_and_removes_the_rest() {
        let mut fields = FieldList::new();
        for (name, value) in [("a", "1"), ("b", "2"), ("a", "3")] {
            fields.push(name, value);
        }
        fields.replace(b"a", b"9").unwrap();
        fields.replace(b"c", b"4").unwrap();
        let all: Vec<_> = fields
            .iter()
            .map(|(n, v)| format!("{}={}", n.escape_ascii(), v.escape_ascii()))
            .collect();
        assert_eq!(all, ["a=9", "b=2", "c=4"]);
    }
}
