//! Header maps: the ABI's pair encoding read in place ([`FieldPairs`]) and written (`encode`), and the checks that
//! keep a header from ending early.
//!
//! The encoding: a little-endian `u32` count; for each pair the lengths of name and value, `u32` each; then for each
//! pair the name, a NUL, the value, a NUL (chapter "Serialization" of the ABI; `pairs_util.cc` of proxy-wasm-cpp-host).

use crate::error::Error;
use crate::limits;

/// All headers of a map, taken with one hostcall and read in place: no allocation a header.
///
/// Names are lower-case as proxies hand them over; pseudo-headers (`:method`, `:status`, …) are among them.
#[derive(Clone, Debug, Default)]
pub struct FieldPairs {
    bytes: Vec<u8>,
}

impl FieldPairs {
    /// Checks the whole encoding once, so that reading it later cannot fail.
    pub(crate) fn parse(bytes: Vec<u8>) -> Result<Self, Error> {
        let pairs = Self { bytes };
        if pairs.bytes.is_empty() {
            return Ok(pairs); // a map that is not there
        }
        let malformed = Error::Malformed("the host's header map");
        let count = u32_at(&pairs.bytes, 0).ok_or(malformed.clone())?;
        if count > limits::FIELD_PAIRS_MAX {
            return Err(malformed);
        }
        let mut walk = pairs.iter();
        if walk.by_ref().count() == count && walk.data_at == pairs.bytes.len() {
            Ok(pairs)
        } else {
            Err(malformed)
        }
    }

    /// Every pair, in the order of the wire.
    pub fn iter(&self) -> Pairs<'_> {
        let left = u32_at(&self.bytes, 0).unwrap_or(0);
        Pairs {
            bytes: &self.bytes,
            left,
            lengths_at: 4,
            data_at: left.saturating_mul(8).saturating_add(4),
        }
    }

    /// The first value of a header; `name` in lower case.
    pub fn first(&self, name: &str) -> Option<&[u8]> {
        self.iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, value)| value)
    }

    /// Every value of a header, in order; `name` in lower case.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.iter()
            .filter(move |(key, _)| key.eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, value)| value)
    }

    /// Whether the header is there, once or more.
    pub fn contains(&self, name: &str) -> bool {
        self.first(name).is_some()
    }
}

impl<'a> IntoIterator for &'a FieldPairs {
    type Item = (&'a [u8], &'a [u8]);
    type IntoIter = Pairs<'a>;

    fn into_iter(self) -> Pairs<'a> {
        self.iter()
    }
}

/// The pairs of a [`FieldPairs`], in order.
#[derive(Clone, Debug)]
pub struct Pairs<'a> {
    bytes: &'a [u8],
    left: usize,
    lengths_at: usize,
    data_at: usize,
}

impl<'a> Iterator for Pairs<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let name_len = u32_at(self.bytes, self.lengths_at)?;
        let value_len = u32_at(self.bytes, self.lengths_at.checked_add(4)?)?;
        let name_end = self.data_at.checked_add(name_len)?;
        let value_at = name_end.checked_add(1)?;
        let value_end = value_at.checked_add(value_len)?;
        let name = self.bytes.get(self.data_at..name_end)?;
        let value = self.bytes.get(value_at..value_end)?;
        if self.bytes.get(name_end) != Some(&0) || self.bytes.get(value_end) != Some(&0) {
            return None;
        }
        self.lengths_at += 8;
        self.data_at = value_end + 1;
        Some((name, value))
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    let four = bytes.get(at..at.checked_add(4)?)?.first_chunk::<4>()?;
    usize::try_from(u32::from_le_bytes(*four)).ok()
}

/// Writes pairs in the ABI's encoding. Lengths beyond 32 bits cannot be: nothing in a module is that long.
pub(crate) fn encode<'a>(pairs: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone) -> Vec<u8> {
    let (count, size) = pairs
        .clone()
        .fold((0_usize, 4), |(count, size), (name, value)| {
            (count + 1, size + name.len() + value.len() + 10)
        });
    let mut bytes = Vec::with_capacity(size);
    let number = |bytes: &mut Vec<u8>, value: usize| {
        bytes.extend_from_slice(&u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes());
    };
    number(&mut bytes, count);
    for (name, value) in pairs.clone() {
        number(&mut bytes, name.len());
        number(&mut bytes, value.len());
    }
    for (name, value) in pairs {
        bytes.extend_from_slice(name);
        bytes.push(0);
        bytes.extend_from_slice(value);
        bytes.push(0);
    }
    bytes
}

/// A header name is a token (RFC 9110 §5.6.2). Envoy takes any bytes from a plugin, a line break among them.
pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    match name.strip_prefix(':').unwrap_or(name) {
        "" => Err(Error::Malformed("a header name that the control sets")),
        rest if rest.bytes().all(token) => Ok(()),
        _ => Err(Error::Malformed("a header name that the control sets")),
    }
}

/// A header value holds no CR, LF or NUL (RFC 9110 §5.5).
pub(crate) fn check_value(value: &[u8]) -> Result<(), Error> {
    if value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
        return Err(Error::Malformed("a header value that the control sets"));
    }
    Ok(())
}
