//! The serialized form of header maps: a count, then the lengths of each name and value, then the bytes, each ended by NUL.
//!
//! All numbers are u32, little-endian. Property: bytes that decode encode back to the same bytes. Source: the ABI's
//! *Serialization* chapter as `pairs_util.cc` of proxy-wasm-cpp-host reads it (the spec's example is wrong). Where that code turns
//! malformed bytes into an empty map, and so wipes a request's headers, we refuse.

use crate::{
    fields::Fields,
    limits::{PAIRS_BYTES_MAX, PAIRS_MAX},
};

/// Bytes that are not a serialized map, or a map over [`PAIRS_BYTES_MAX`] or [`PAIRS_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// The size of `fields` when serialized.
pub(crate) fn encoded_len(fields: &dyn Fields) -> usize {
    4 + fields.len() * 10 + fields.byte_size()
}

/// Writes `fields` into `out`, which has room for [`encoded_len`] bytes. `None` where a map lied about its size.
pub(crate) fn encode(fields: &dyn Fields, out: &mut [u8]) -> Option<()> {
    let mut lengths = 4;
    let mut bytes = 4 + fields.len() * 8;
    let mut fits = put(out, 0, &u32::try_from(fields.len()).ok()?.to_le_bytes());
    fields.for_each(&mut |name, value| {
        for part in [name, value] {
            let Ok(len) = u32::try_from(part.len()) else {
                return fits = false;
            };
            fits &= put(out, lengths, &len.to_le_bytes())
                && put(out, bytes, part)
                && put(out, bytes + part.len(), &[0]);
            lengths += 4;
            bytes += part.len() + 1;
        }
    });
    (fits && bytes == out.len()).then_some(())
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) -> bool {
    match out.get_mut(at..at + bytes.len()) {
        Some(place) => {
            place.copy_from_slice(bytes);
            true
        }
        None => false,
    }
}

/// A name and a value.
pub(crate) type Pair<'a> = (&'a [u8], &'a [u8]);

/// The pairs in `bytes`. No bytes at all are an empty map: SDKs pass a null pointer for it.
pub(crate) fn decode(bytes: &[u8]) -> Result<Vec<Pair<'_>>, Malformed> {
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    if bytes.len() > PAIRS_BYTES_MAX {
        return Err(Malformed);
    }
    let (count, rest) = number(bytes).ok_or(Malformed)?;
    if count > PAIRS_MAX {
        return Err(Malformed);
    }
    let (mut lengths, mut content) = rest.split_at_checked(count * 8).ok_or(Malformed)?;
    let mut pairs = Vec::with_capacity(count);
    for _ in 0..count {
        let name = part(&mut lengths, &mut content).ok_or(Malformed)?;
        let value = part(&mut lengths, &mut content).ok_or(Malformed)?;
        pairs.push((name, value));
    }
    content.is_empty().then_some(pairs).ok_or(Malformed)
}

fn number(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<4>()?;
    Some((usize::try_from(u32::from_le_bytes(*head)).ok()?, rest))
}

fn part<'a>(lengths: &mut &[u8], content: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, rest) = number(lengths)?;
    *lengths = rest;
    let (bytes, rest) = content.split_at_checked(len)?;
    let (0, rest) = rest.split_first()? else {
        return None;
    };
    *content = rest;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields::FieldList;

    fn encoded(pairs: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut fields = FieldList::new();
        for (name, value) in pairs {
            fields.push(name.to_vec(), value.to_vec());
        }
        let mut out = vec![0; encoded_len(&fields)];
        encode(&fields, &mut out).unwrap();
        out
    }

    #[test]
    fn the_spec_s_layout() {
        let bytes = encoded(&[(b"a", b"12"), (b"", b"")]);
        let expected = b"\x02\0\0\0\x01\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0a\x0012\0\0\0";
        assert_eq!(bytes, expected);
    }

    #[test]
    fn malformed_bytes_are_refused() {
        let good = encoded(&[(b"ab", b"c")]);
        assert_eq!(decode(&good), Ok(vec![(&b"ab"[..], &b"c"[..])]));
        for end in 1..good.len() {
            assert_eq!(decode(&good[..end]), Err(Malformed), "cut at {end}");
        }
        let mut long = good.clone();
        long.push(0);
        assert_eq!(decode(&long), Err(Malformed), "a byte too many");
        let mut no_nul = good.clone();
        *no_nul.last_mut().unwrap() = 1;
        assert_eq!(decode(&no_nul), Err(Malformed), "not ended by NUL");
        assert_eq!(decode(b"\xff\xff\xff\xff"), Err(Malformed), "a wild count");
        assert_eq!(
            decode(&vec![0; PAIRS_BYTES_MAX + 1]),
            Err(Malformed),
            "too long"
        );
        assert_eq!(decode(b""), Ok(vec![]));
    }

    /// Bytes that decode encode back to the same bytes: over every prefix-mutation of a good map, by a small own generator.
    #[test]
    fn what_decodes_encodes_back() {
        let mut seed = 0x2545_f491_4f6c_dd1du64;
        let mut random = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        let mut decoded = 0;
        for _ in 0..20_000 {
            let pairs: Vec<(Vec<u8>, Vec<u8>)> = (0..random() % 4)
                .map(|_| {
                    (
                        vec![b'n'; (random() % 5) as usize],
                        vec![b'v'; (random() % 5) as usize],
                    )
                })
                .collect();
            let borrowed: Vec<(&[u8], &[u8])> =
                pairs.iter().map(|(n, v)| (&n[..], &v[..])).collect();
            let mut bytes = encoded(&borrowed);
            if random() % 2 == 0 {
                let at = usize::try_from(random()).unwrap() % bytes.len();
                bytes[at] = (random() % 8) as u8;
            }
            if let Ok(pairs) = decode(&bytes) {
                decoded += 1;
                assert_eq!(encoded(&pairs), bytes);
            }
        }
        assert!(decoded > 9_000, "the generator makes good maps: {decoded}");
    }
}
