//! Header fields that filters wrote lately, kept ready to be written again.
//!
//! A control writes the same few fields on every answer. Read from its memory each time, a field costs a look-up of its name, a check and
//! two allocations; a clone of the one kept from last time costs two reference counts. A field is kept when it comes a second
//! time, so that what differs on each request (a counter, a user) is not kept at all.
//!
//! Bound: [`PLACES`] fields of up to [`BYTES_MAX`] bytes for each thread; a newer one takes its place's older one.

use std::cell::RefCell;

use http::header::{HeaderName, HeaderValue};
use portcullis_runtime::InvalidField;

/// More than the filters of a chain write on one exchange; a power of two.
const PLACES: usize = 64;
/// Longer values are rare, and are not kept.
const BYTES_MAX: usize = 512;

#[derive(Default)]
struct Place {
    /// Of the field that was last seen here.
    mark: u64,
    field: Option<(HeaderName, HeaderValue)>,
}

thread_local! {
    static WRITTEN: RefCell<[Place; PLACES]> = RefCell::new(std::array::from_fn(|_| Place::default()));
}

/// The field of this name and value.
///
/// # Errors
///
/// [`InvalidField`] where either holds bytes that a field must not (RFC 9110 §5).
pub(crate) fn field(name: &[u8], value: &[u8]) -> Result<(HeaderName, HeaderValue), InvalidField> {
    if value.len() > BYTES_MAX || name.len() > BYTES_MAX {
        return parse(name, value);
    }
    let mark = mark(name, value);
    WRITTEN.with(|written| {
        let (Ok(mut places), Ok(index)) = (
            written.try_borrow_mut(),
            usize::try_from(mark >> (u64::BITS - PLACES.ilog2())),
        ) else {
            return parse(name, value);
        };
        let Some(place) = places.get_mut(index) else {
            return parse(name, value);
        };
        if let Some((own_name, own_value)) = &place.field
            && own_value.as_bytes() == value
            && own_name.as_str().as_bytes() == name
        {
            return Ok((own_name.clone(), own_value.clone()));
        }
        let field = parse(name, value)?;
        if std::mem::replace(&mut place.mark, mark) == mark {
            place.field = Some(field.clone());
        }
        Ok(field)
    })
}

fn parse(name: &[u8], value: &[u8]) -> Result<(HeaderName, HeaderValue), InvalidField> {
    let name = HeaderName::from_bytes(name).map_err(|_| InvalidField)?;
    let value = HeaderValue::from_bytes(value).map_err(|_| InvalidField)?;
    Ok((name, value))
}

/// Cheap, and only a hint: what is found by it is compared byte by byte.
fn mark(name: &[u8], value: &[u8]) -> u64 {
    let end = |bytes: &[u8]| {
        let mut last = [0; 8];
        let tail = bytes
            .get(bytes.len().saturating_sub(8)..)
            .unwrap_or_default();
        if let Some(place) = last.get_mut(..tail.len()) {
            place.copy_from_slice(tail);
        }
        u64::from_le_bytes(last) ^ (bytes.len() as u64).rotate_left(57)
    };
    // Two odd constants spread the bits (splitmix64's).
    (end(name).wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ end(value)).wrapping_mul(0x94d0_49bb_1331_11eb)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_fields_are_the_fields_asked_for() {
        let long = vec![b'v'; BYTES_MAX + 1];
        let rows: &[(&[u8], &[u8])] = &[
            (b"x-frame-options", b"DENY"),
            (b"x-frame-options", b"SAMEORIGIN"),
            (b"x-a", b""),
            (b"x-a", b"\xff"),
            (b"x-a", &long),
            // The same last bytes and lengths, so the same mark.
            (b"x-a", b"1_________"),
            (b"x-a", b"2_________"),
        ];
        for _ in 0..4 {
            for (name, value) in rows {
                let (own_name, own_value) = field(name, value).unwrap();
                assert_eq!(own_name.as_str().as_bytes(), *name);
                assert_eq!(own_value.as_bytes(), *value);
            }
        }
    }

    #[test]
    fn what_is_no_field_is_never_kept() {
        for _ in 0..3 {
            assert_eq!(field(b"x", b"a\r\nb: c"), Err(InvalidField));
            assert_eq!(field(b"x y", b"a"), Err(InvalidField));
            assert_eq!(field(b"", b"a"), Err(InvalidField));
        }
    }

    #[test]
    fn names_are_told_apart_by_case() {
        for _ in 0..3 {
            assert_eq!(field(b"X-Case", b"1").unwrap().0, "x-case");
            assert_eq!(field(b"x-case", b"1").unwrap().0, "x-case");
        }
    }
}
