//! An exchange made of any bytes: for property tests and fuzz targets.

use crate::host::native::Fields;

/// What a client and an upstream send, taken from any bytes. Every sequence of bytes makes one.
///
/// The bytes are read as pieces: one that says what the piece is (a header of the request or of the answer, a part
/// of a body, the method, the path, the host, the status), one with its length, and so many as there are.
///
/// ```
/// use std::time::SystemTime;
///
/// use portcullis_sdk::prelude::*;
/// use portcullis_sdk::testing::{AnyExchange, Harness};
/// # #[derive(serde::Deserialize, schemars::JsonSchema)]
/// # struct Config {}
/// # struct MyControl;
/// # impl Control for MyControl {
/// #     const METADATA: Metadata = Metadata::new("my-control", "1.0.0", Callbacks::REQUEST_HEADERS);
/// #     type Config = Config;
/// #     type State = ();
/// #     fn configure(_: Config, _: &mut PluginContext) -> Result<Self, ConfigError> {
/// #         Ok(Self)
/// #     }
/// # }
///
/// let mut harness = Harness::<MyControl>::new(SystemTime::UNIX_EPOCH);
/// harness.configure("{}")?;
/// // Piece 6 is a header of the request, here of one byte.
/// let exchange = AnyExchange::new(&["x-user"], b"\x06\x01\xff");
/// assert_eq!(harness.any_exchange(&exchange).status, 200);
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnyExchange {
    pub(crate) method: Option<Vec<u8>>,
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) authority: Option<Vec<u8>>,
    pub(crate) headers: Fields,
    pub(crate) body: Vec<u8>,
    pub(crate) status: Option<u16>,
    pub(crate) answer_headers: Fields,
    pub(crate) answer_body: Vec<u8>,
}

impl AnyExchange {
    /// Of these bytes. `header_names`, in lower case, are those that the control reads: chance would not find them.
    pub fn new(header_names: &[&str], bytes: &[u8]) -> Self {
        let mut exchange = Self::default();
        let mut rest = bytes;
        while let Some((kind, piece)) = piece(&mut rest) {
            let kind = usize::from(kind);
            match kind % 8 {
                0 => exchange.method = Some(piece.to_vec()),
                1 => exchange.path = Some(piece.to_vec()),
                2 => exchange.authority = Some(piece.to_vec()),
                3 => exchange.body.extend_from_slice(piece),
                4 => exchange.answer_body.extend_from_slice(piece),
                5 => {
                    let first = piece.first().copied().unwrap_or_default();
                    exchange.status = Some(100 + u16::from(first) * 2);
                }
                side => {
                    let names = header_names.len().max(1);
                    let name = header_names.get(kind / 8 % names).copied();
                    let field = (name.unwrap_or("x-any").into(), piece.to_vec());
                    match side {
                        6 => exchange.headers.push(field),
                        _ => exchange.answer_headers.push(field),
                    }
                }
            }
        }
        exchange
    }
}

/// The next piece and what it is.
fn piece<'a>(rest: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (kind, after) = rest.split_first()?;
    let (len, after) = after.split_first().unwrap_or((&0, &[]));
    let (piece, after) = after.split_at(usize::from(*len).min(after.len()));
    *rest = after;
    Some((*kind, piece))
}

#[cfg(test)]
mod tests {
    use super::AnyExchange;
    use crate::random::Random;

    #[test]
    fn pieces_are_read_in_order_and_what_is_cut_off_is_shorter() {
        let bytes = b"\x06\x01a\x0e\x01b\x07\x01c\x03\x02de\x03\x01f\x05\x01\x32\x01\xff/x";
        let exchange = AnyExchange::new(&["x-one", "x-two"], bytes);
        let field = |name: &str, value: &[u8]| (name.as_bytes().to_vec(), value.to_vec());
        assert_eq!(
            exchange.headers,
            [field("x-one", b"a"), field("x-two", b"b")]
        );
        assert_eq!(exchange.answer_headers, [field("x-one", b"c")]);
        assert_eq!(exchange.body, b"def");
        assert_eq!(exchange.status, Some(200));
        assert_eq!(exchange.path.as_deref(), Some(&b"/x"[..]));
        assert_eq!(AnyExchange::new(&[], b""), AnyExchange::default());
    }

    #[test]
    fn every_part_comes_of_random_bytes() {
        let mut random = Random::new(1);
        let mut seen = AnyExchange::default();
        for _ in 0..200 {
            let bytes: Vec<u8> = (0..64)
                .map(|_| u8::try_from(random.below(256)).unwrap_or_default())
                .collect();
            let one = AnyExchange::new(&["x-one"], &bytes);
            seen.method = seen.method.or(one.method);
            seen.path = seen.path.or(one.path);
            seen.authority = seen.authority.or(one.authority);
            seen.status = seen.status.or(one.status);
            seen.headers.extend(one.headers);
            seen.answer_headers.extend(one.answer_headers);
            seen.body.extend(one.body);
            seen.answer_body.extend(one.answer_body);
        }
        assert!(seen.method.is_some() && seen.path.is_some() && seen.authority.is_some());
        assert!(seen.status.is_some() && !seen.headers.is_empty());
        assert!(!seen.answer_headers.is_empty() && !seen.body.is_empty());
        assert!(!seen.answer_body.is_empty());
    }
}
