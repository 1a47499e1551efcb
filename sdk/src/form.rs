//! Forms and queries: [`Form`], `application/x-www-form-urlencoded` as the URL standard reads it (§5.1).

use crate::error::Error;
use crate::limits;

/// The pairs of a form or a query, decoded, in order, repeated ones included.
///
/// Two ways in which a form could mean one thing here and another to the server are errors: bytes that are no UTF-8
/// (others put something in their place), and more than 1,024 pairs. As the standard has it, `+` is a blank, a `%` without
/// two hex digits stands for itself, and only `&` parts pairs.
///
/// ```
/// use portcullis_sdk::{Error, Form};
///
/// let form = Form::parse(b"user=alice&role=a&role=b&note=caf%C3%A9+au+lait")?;
/// assert_eq!(form.get("user")?, Some("alice"));
/// assert_eq!(form.get("note")?, Some("café au lait"));
/// assert_eq!(form.get("absent")?, None);
/// assert_eq!(form.get("role"), Err(Error::Ambiguous("a form field")));
/// assert_eq!(form.all("role").collect::<Vec<_>>(), ["a", "b"]);
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    pairs: Vec<(String, String)>,
}

impl Form {
    /// Reads a body, or a query without its `?`. Bound the body's length before: what is decoded takes as much again.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        const MALFORMED: Error = Error::Malformed("the form");
        let count = bytes.iter().filter(|byte| **byte == b'&').count();
        if count >= limits::FORM_PAIRS_MAX {
            return Err(Error::new("the form has too many fields"));
        }
        // The marks between pairs are ASCII, so the pieces are UTF-8 where the whole is.
        let decoded: Vec<u8> = percent_encoding::percent_decode(bytes).collect();
        if std::str::from_utf8(&decoded).is_err() {
            return Err(MALFORMED);
        }
        let pairs = form_urlencoded::parse(bytes);
        let pairs = pairs.map(|(name, value)| (name.into_owned(), value.into_owned()));
        Ok(Self {
            pairs: pairs.collect(),
        })
    }

    /// Every pair, name and value.
    ///
    /// ```
    /// # use portcullis_sdk::{Error, Form};
    /// let form = Form::parse(b"a=1&b&a=2")?;
    /// assert_eq!(form.iter().collect::<Vec<_>>(), [("a", "1"), ("b", ""), ("a", "2")]);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let pairs = self.pairs.iter();
        pairs.map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Every value of a field, in order.
    ///
    /// ```
    /// # use portcullis_sdk::{Error, Form};
    /// let form = Form::parse(b"scope=read&scope=write")?;
    /// assert!(form.all("scope").any(|scope| scope == "write"));
    /// # Ok::<(), Error>(())
    /// ```
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.iter()
            .filter(move |(known, _)| *known == name)
            .map(|(_, value)| value)
    }

    /// The value of a field; `None` if it is not there. One that comes again with another value is
    /// [`Error::Ambiguous`]: the server may take the other one.
    pub fn get(&self, name: &str) -> Result<Option<&str>, Error> {
        let mut values = self.iter().filter(|(known, _)| *known == name);
        let Some((_, first)) = values.next() else {
            return Ok(None);
        };
        match values.all(|(_, value)| value == first) {
            true => Ok(Some(first)),
            false => Err(Error::Ambiguous("a form field")),
        }
    }
}

/// What stands behind the first `?` of a path; empty if there is none.
pub(crate) fn query(path: &[u8]) -> &[u8] {
    let at = path.iter().position(|byte| *byte == b'?');
    at.and_then(|at| path.get(at.checked_add(1)?..))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn forms_are_read_as_the_url_standard_says() {
        for (text, expected) in [
            (&b""[..], Some(&[][..])),
            (b"a=1&b=2", Some(&[("a", "1"), ("b", "2")][..])),
            (b"&&a=1&", Some(&[("a", "1")])),
            (b"a=b=c", Some(&[("a", "b=c")])),
            (b"a", Some(&[("a", "")])),
            (b"=1", Some(&[("", "1")])),
            (b"a+b=%2b+%26", Some(&[("a b", "+ &")])),
            (b"a=%zz%4", Some(&[("a", "%zz%4")])),
            (b"a=1;b=2", Some(&[("a", "1;b=2")])),
            (b"a=%C3%A9", Some(&[("a", "\u{e9}")])),
            (b"a=%C3&b=%A9", None),
            (b"a=%ff", None),
            (b"a=\xff", None),
        ] {
            let form = Form::parse(text).ok();
            let found = form.as_ref().map(|form| form.iter().collect::<Vec<_>>());
            assert_eq!(found.as_deref(), expected, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn too_many_fields_are_refused() {
        let many = |count: usize| vec!["a=1"; count].join("&").into_bytes();
        let most = Form::parse(&many(limits::FORM_PAIRS_MAX)).unwrap();
        assert_eq!(most.iter().count(), limits::FORM_PAIRS_MAX);
        assert_eq!(most.get("a"), Ok(Some("1")));
        assert!(Form::parse(&many(limits::FORM_PAIRS_MAX + 1)).is_err());
    }

    #[test]
    fn a_query_begins_at_the_first_mark() {
        for (path, expected) in [
            (&b"/a"[..], &b""[..]),
            (b"/a?", b""),
            (b"/a?b=1", b"b=1"),
            (b"/a?b=?", b"b=?"),
            (b"", b""),
        ] {
            assert_eq!(query(path), expected);
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused_and_what_is_written_is_read_back() {
        let mut random = Random::new(7);
        for _ in 0..20_000 {
            let bytes = random.bytes(32);
            let Ok(form) = Form::parse(&bytes) else {
                continue;
            };
            let mut writer = form_urlencoded::Serializer::new(String::new());
            for (name, value) in form.iter() {
                writer.append_pair(name, value);
            }
            let again = Form::parse(writer.finish().as_bytes()).unwrap();
            assert_eq!(again, form, "{}", bytes.escape_ascii());
        }
    }
}
