//! Structured fields (RFC 9651, which took the place of RFC 8941): read from a header map into the types of the crate
//! `sfv`, which the SDK hands on. Written with the same crate: `sfv::ItemSerializer` and its kin.

use sfv::{Dictionary, FieldType, Item, List, Parser};

use crate::error::Error;
use crate::fields::FieldPairs;
use crate::limits;

impl FieldPairs {
    /// The item in a header; `None` if the header is not there. What is no item, one that comes twice among them, is an
    /// error, and so is more than 64 KiB: RFC 9651 §4.2 has a field fail as a whole.
    ///
    /// ```
    /// use portcullis_sdk::prelude::*;
    ///
    /// /// Whether the client calls itself a phone (`sec-ch-ua-mobile: ?1`).
    /// fn is_mobile(headers: &FieldPairs) -> Result<bool, Error> {
    ///     let item = headers.structured_item("sec-ch-ua-mobile")?;
    ///     Ok(item.and_then(|item| item.bare_item.as_boolean()) == Some(true))
    /// }
    /// ```
    pub fn structured_item(&self, name: &str) -> Result<Option<Item>, Error> {
        self.structured(name)
    }

    /// The list in a header, over all of its lines; bounds as for [`structured_item`](Self::structured_item).
    ///
    /// ```
    /// use portcullis_sdk::prelude::*;
    ///
    /// /// How many proxies say that they cached nothing (`cache-status: a; fwd=miss, b; fwd=miss`).
    /// fn caches(headers: &FieldPairs) -> Result<usize, Error> {
    ///     let list = headers.structured_list("cache-status")?;
    ///     Ok(list.unwrap_or_default().len())
    /// }
    /// ```
    pub fn structured_list(&self, name: &str) -> Result<Option<List>, Error> {
        self.structured(name)
    }

    /// The dictionary in a header, over all of its lines; bounds as for [`structured_item`](Self::structured_item). Of a
    /// key that comes twice the last value counts, as RFC 9651 §4.2.2 has it for every reader.
    ///
    /// ```
    /// use portcullis_sdk::prelude::*;
    /// use portcullis_sdk::sfv::ListEntry;
    ///
    /// /// How urgent a request is (`priority: u=2, i`), from 0 to 7 (RFC 9218).
    /// fn urgency(headers: &FieldPairs) -> Result<i64, Error> {
    ///     let priority = headers.structured_dictionary("priority")?.unwrap_or_default();
    ///     match priority.get("u") {
    ///         Some(ListEntry::Item(item)) => Ok(item.bare_item.as_integer().map_or(3, Into::into)),
    ///         _ => Ok(3),
    ///     }
    /// }
    /// ```
    pub fn structured_dictionary(&self, name: &str) -> Result<Option<Dictionary>, Error> {
        self.structured(name)
    }

    fn structured<T: FieldType>(&self, name: &str) -> Result<Option<T>, Error> {
        let mut text: Option<Vec<u8>> = None;
        for value in self.all(name) {
            let text = match &mut text {
                // RFC 9651 §4.2: lines are one field, parted by commas.
                Some(text) => {
                    text.extend_from_slice(b", ");
                    text
                }
                None => text.insert(Vec::new()),
            };
            if text.len().saturating_add(value.len()) > limits::STRUCTURED_FIELD_BYTES_MAX {
                return Err(Error::Malformed("a structured field"));
            }
            text.extend_from_slice(value);
        }
        let field = text.map(|text| Parser::new(&text).parse());
        field
            .transpose()
            .map_err(|_| Error::Malformed("a structured field"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields::encode;
    use crate::random::Random;

    fn headers(values: &[&[u8]]) -> FieldPairs {
        let pairs = values.iter().map(|value| (&b"x"[..], *value));
        FieldPairs::parse(encode(pairs)).unwrap()
    }

    #[test]
    fn fields_are_read_over_all_lines_or_fail_as_a_whole() {
        let count = |values: &[&[u8]]| {
            let list = headers(values).structured_list("x");
            list.map(|list| list.map(|list| list.len())).ok()
        };
        for (values, expected) in [
            (&[][..], Some(None)),
            (&[&b""[..]][..], Some(Some(0))),
            (&[b"a, b", b"c"], Some(Some(3))),
            (&[b"(a b);q=1"], Some(Some(1))),
            (&[b"a,"], None),
            (&[b"a b"], None),
            (&[b"\xff"], None),
        ] {
            assert_eq!(count(values), expected, "{values:?}");
        }
        let item = |values: &[&[u8]]| headers(values).structured_item("x");
        let text = item(&[b"\"a\";q=0.5"]).unwrap().unwrap();
        assert_eq!(text.bare_item.as_string().unwrap().as_str(), "a");
        assert!(text.params.get("q").unwrap().as_decimal().is_some());
        assert!(item(&[b"1", b"1"]).is_err(), "an item comes once");
        let found = headers(&[b"u=1, u=5"]).structured_dictionary("x");
        let found = found.unwrap().unwrap();
        let entry = found.get("u").unwrap();
        let sfv::ListEntry::Item(item) = entry else {
            panic!("{entry:?}")
        };
        assert_eq!(item.bare_item.as_integer(), Some(sfv::integer(5)));
    }

    #[test]
    fn long_fields_are_refused() {
        let long = |len: usize| [b"a".repeat(len), b",".to_vec()].concat();
        let fits = b"a".repeat(limits::STRUCTURED_FIELD_BYTES_MAX);
        assert!(headers(&[&fits]).structured_list("x").is_ok());
        assert!(headers(&[&long(fits.len())]).structured_list("x").is_err());
        let half = b"a".repeat(limits::STRUCTURED_FIELD_BYTES_MAX / 2);
        assert!(headers(&[&half, &half]).structured_list("x").is_err());
    }

    #[test]
    fn any_bytes_are_read_or_refused_and_what_is_read_is_written_back() {
        use sfv::FieldType as _;
        let mut random = Random::new(10);
        let marks = b"a1.\"\\:?@%;=,() -\t\xffZ0*";
        let mut taken = 0;
        for _ in 0..100_000 {
            let mut bytes = random.bytes(16);
            for byte in &mut bytes {
                *byte = *marks.get(usize::from(*byte) % marks.len()).unwrap();
            }
            let found = headers(&[&bytes]);
            let _ = found.structured_item("x");
            if let Ok(Some(list)) = found.structured_list("x")
                && let Some(written) = list.serialize()
            {
                taken += 1;
                let again = headers(&[written.as_bytes()]).structured_list("x");
                assert_eq!(again, Ok(Some(list)), "{}", bytes.escape_ascii());
            }
            if let Ok(Some(found)) = found.structured_dictionary("x")
                && let Some(written) = found.serialize()
            {
                let again = headers(&[written.as_bytes()]).structured_dictionary("x");
                assert_eq!(again, Ok(Some(found)), "{}", bytes.escape_ascii());
            }
        }
        assert!(taken > 1000, "{taken}");
    }
}
