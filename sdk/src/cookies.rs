//! The cookies of a request: [`Cookies`], read in place.
//!
//! Browsers send `a=1; b=2` (RFC 6265bis §5.8.3), over HTTP/2 as several `cookie` headers (RFC 9113 §8.2.3). What servers
//! make of anything else differs, and so does which of two cookies of one name they take. So nothing is dropped here, and
//! [`Cookies::get`] refuses to choose.

use crate::error::Error;
use crate::fields::FieldPairs;

/// The cookies of a request, over all `cookie` headers, in the order of the wire; no allocation a cookie.
///
/// Names are compared byte by byte. Blanks around a name or a value are no part of it; quotes around a value are. A piece
/// without `=` is a value whose name is empty.
///
/// ```
/// use portcullis_sdk::prelude::*;
///
/// /// Lets a request pass whose session is of the right shape; two that differ are nobody's session.
/// fn has_session(request: &Request) -> Result<Decision, Error> {
///     let cookies = request.cookies()?;
///     match cookies.get("__Host-session") {
///         Ok(Some(session)) if session.len() == 32 => Ok(Decision::Continue),
///         Ok(_) => Ok(LocalResponse::refuse(401, "no_session", "Unauthorized").into()),
///         Err(Error::Ambiguous(_)) => Ok(LocalResponse::refuse(400, "two_sessions", "Bad Request").into()),
///         Err(other) => Err(other),
///     }
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Cookies {
    headers: FieldPairs,
}

impl Cookies {
    pub(crate) fn new(headers: FieldPairs) -> Self {
        Self { headers }
    }

    /// Every cookie, name and value, repeated ones included.
    ///
    /// ```
    /// # use portcullis_sdk::Cookies;
    /// /// How many cookies a request brings.
    /// fn count(cookies: &Cookies) -> usize {
    ///     cookies.iter().count()
    /// }
    /// ```
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.headers.all("cookie").flat_map(pairs)
    }

    /// Every value of a cookie, in order.
    ///
    /// ```
    /// # use portcullis_sdk::Cookies;
    /// /// Whether any cookie of that name has the value.
    /// fn has(cookies: &Cookies, value: &[u8]) -> bool {
    ///     cookies.all("theme").any(|found| found == value)
    /// }
    /// ```
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.iter()
            .filter(move |(known, _)| *known == name.as_bytes())
            .map(|(_, value)| value)
    }

    /// The value of a cookie; `None` if it is not there. One that comes again with another value is
    /// [`Error::Ambiguous`]: the server may take the other one.
    pub fn get(&self, name: &str) -> Result<Option<&[u8]>, Error> {
        let mut values = self.iter().filter(|(known, _)| *known == name.as_bytes());
        let Some((_, first)) = values.next() else {
            return Ok(None);
        };
        match values.all(|(_, value)| value == first) {
            true => Ok(Some(first)),
            false => Err(Error::Ambiguous("a cookie")),
        }
    }
}

/// The pairs of one cookie string; empty pieces are none.
fn pairs(text: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let pieces = text.split(|byte| *byte == b';').map(trim);
    pieces.filter(|piece| !piece.is_empty()).map(|piece| {
        let equals = piece.iter().position(|byte| *byte == b'=');
        match equals.and_then(|at| Some((piece.get(..at)?, piece.get(at.checked_add(1)?..)?))) {
            Some((name, value)) => (trim(name), trim(value)),
            None => (&[][..], piece),
        }
    })
}

/// Without the blanks and tabs around it.
fn trim(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields::encode;
    use crate::random::Random;

    fn cookies(values: &[&[u8]]) -> Cookies {
        let pairs = values.iter().map(|value| (&b"cookie"[..], *value));
        Cookies::new(FieldPairs::parse(encode(pairs)).unwrap())
    }

    #[test]
    fn cookie_strings_are_read_over_all_headers() {
        for (headers, expected) in [
            (&["a=1; b=2"][..], &[("a", "1"), ("b", "2")][..]),
            (&["a=1", "b=2; c="], &[("a", "1"), ("b", "2"), ("c", "")]),
            (&["a=1;b=2;;"], &[("a", "1"), ("b", "2")]),
            (&[" a = 1 ;\tb=2\t"], &[("a", "1"), ("b", "2")]),
            (&["a=b=c"], &[("a", "b=c")]),
            (&["a=\"1\""], &[("a", "\"1\"")]),
            (&["=v; v"], &[("", "v"), ("", "v")]),
            (&["A=1; a=2"], &[("A", "1"), ("a", "2")]),
            (&[""], &[]),
            (&[], &[]),
        ] {
            let headers: Vec<&[u8]> = headers.iter().map(|text| text.as_bytes()).collect();
            let found = cookies(&headers);
            let expected: Vec<(&[u8], &[u8])> = expected
                .iter()
                .map(|(name, value)| (name.as_bytes(), value.as_bytes()))
                .collect();
            assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{headers:?}");
        }
    }

    #[test]
    fn a_name_with_two_values_has_none() {
        let ambiguous = || Err(Error::Ambiguous("a cookie"));
        for (headers, expected) in [
            (&[&b"s=1"[..]][..], Ok(Some(&b"1"[..]))),
            (&[b"s=1; s=1"], Ok(Some(b"1"))),
            (&[b"s=1; s=2"], ambiguous()),
            (&[b"s=1", b"s=2"], ambiguous()),
            (&[b"s=1; s =2"], ambiguous()),
            (&[b"s=; s=2"], ambiguous()),
            (&[b"S=2"], Ok(None)),
            (&[b"s=\xff"], Ok(Some(b"\xff"))),
        ] {
            assert_eq!(cookies(headers).get("s"), expected, "{headers:?}");
        }
        assert_eq!(cookies(&[b"s=1; s=2"]).all("s").count(), 2);
    }

    #[test]
    fn no_bytes_are_lost_that_are_no_blanks_or_marks() {
        let mut random = Random::new(6);
        for _ in 0..50_000 {
            let mut bytes = random.bytes(24);
            for byte in &mut bytes {
                *byte = *b";= \ta\xff".get(usize::from(*byte) % 6).unwrap();
            }
            let kept = |byte: &&u8| matches!(byte, b'a' | b'\xff');
            let found = cookies(&[&bytes]);
            let read = found
                .iter()
                .flat_map(|(name, value)| name.iter().chain(value))
                .filter(kept);
            assert!(read.eq(bytes.iter().filter(kept)), "{bytes:?}");
            for (name, value) in found.iter() {
                if let Ok(name) = std::str::from_utf8(name) {
                    assert!(found.all(name).any(|known| known == value));
                }
            }
        }
    }
}
