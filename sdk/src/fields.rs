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
///
/// ```
/// use portcullis_sdk::prelude::*;
///
/// /// Two lookups, one hostcall.
/// fn is_plain(request: &Request) -> Result<bool, Error> {
///     let headers = request.all_headers()?;
///     let is_get = headers.first(":method") == Some(&b"GET"[..]);
///     Ok(is_get && headers.all("x-forwarded-host").count() <= 1)
/// }
/// ```
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
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// Every name that begins with `x-amz-`.
    /// fn count(headers: &FieldPairs) -> usize {
    ///     headers.iter().filter(|(name, _)| name.starts_with(b"x-amz-")).count()
    /// }
    /// assert_eq!(count(&FieldPairs::default()), 0);
    /// ```
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
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// RFC 9112 §6.1: one of them, not both.
    /// fn is_framed_once(headers: &FieldPairs) -> bool {
    ///     !(headers.contains("content-length") && headers.contains("transfer-encoding"))
    /// }
    /// assert!(is_framed_once(&FieldPairs::default()));
    /// ```
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

/// A header whose name and value were checked once, at configure, so that setting it in every answer checks nothing
/// again.
///
/// ```
/// use portcullis_sdk::{CheckedHeader, Error};
///
/// let header = CheckedHeader::new("x-frame-options", "DENY")?;
/// assert_eq!((header.name(), header.value()), ("x-frame-options", &b"DENY"[..]));
/// assert!(CheckedHeader::new("x-a", "b\r\nx-admin: 1").is_err());
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedHeader {
    name: String,
    value: Vec<u8>,
}

impl CheckedHeader {
    /// Bounds as for [`Response::set_header`](crate::Response::set_header).
    pub fn new(name: impl Into<String>, value: impl Into<Vec<u8>>) -> Result<Self, Error> {
        let (name, value) = (name.into(), value.into());
        check_name(&name)?;
        check_value(&value)?;
        Ok(Self { name, value })
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The value.
    pub fn value(&self) -> &[u8] {
        &self.value
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn encoded(pairs: &[(&str, &str)]) -> Vec<u8> {
        encode(
            pairs
                .iter()
                .map(|(name, value)| (name.as_bytes(), value.as_bytes())),
        )
    }

    #[test]
    fn what_is_encoded_is_read_back() {
        let pairs = FieldPairs::parse(encoded(&[("a", "1"), ("b", ""), ("a", "2")])).unwrap();
        assert_eq!(pairs.first("a"), Some(&b"1"[..]));
        assert_eq!(pairs.first("A"), Some(&b"1"[..]));
        assert_eq!(pairs.all("a").collect::<Vec<_>>(), [b"1", b"2"]);
        assert_eq!(pairs.first("b"), Some(&b""[..]));
        assert!(!pairs.contains("c"));
        assert_eq!(pairs.iter().count(), 3);
        assert_eq!(FieldPairs::parse(Vec::new()).unwrap().iter().count(), 0);
        assert_eq!(FieldPairs::parse(encoded(&[])).unwrap().iter().count(), 0);
    }

    #[test]
    fn any_other_byte_is_refused_or_read_never_a_panic() {
        let good = encoded(&[("name", "value"), ("other", "x")]);
        for at in 0..good.len() {
            assert!(
                FieldPairs::parse(good[..at].to_vec()).is_err() || at == 0,
                "cut at {at}"
            );
        }
        assert!(
            FieldPairs::parse([good.as_slice(), b"x"].concat()).is_err(),
            "something behind it"
        );
        let mut random = Random::new(2);
        for _ in 0..100_000 {
            let mut bytes = if random.below(2) == 0 {
                good.clone()
            } else {
                random.bytes(64)
            };
            for _ in 0..random.below(4) {
                let at = random.below(bytes.len().max(1));
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = random.next().to_le_bytes()[0];
                }
            }
            if let Ok(pairs) = FieldPairs::parse(bytes) {
                let _ = (
                    pairs.iter().count(),
                    pairs.first("name"),
                    pairs.all("other").count(),
                );
            }
        }
    }

    #[test]
    fn too_many_pairs_are_refused() {
        let many = |count| encoded(&vec![("a", "b"); count]);
        assert!(FieldPairs::parse(many(limits::FIELD_PAIRS_MAX)).is_ok());
        assert!(FieldPairs::parse(many(limits::FIELD_PAIRS_MAX + 1)).is_err());
    }

    #[test]
    fn names_and_values_that_would_end_a_header_early_are_refused() {
        for (name, good) in [
            ("x-a", true),
            (":status", true),
            ("", false),
            (":", false),
            ("a b", false),
            ("a:", false),
        ] {
            assert_eq!(check_name(name).is_ok(), good, "{name:?}");
        }
        for (value, good) in [
            (&b""[..], true),
            (b"\xff \t", true),
            (b"a\r\nb: c", false),
            (b"a\n", false),
            (b"\0", false),
        ] {
            assert_eq!(check_value(value).is_ok(), good, "{value:?}");
        }
    }
}
