//! The id of a decision: it ties what the client saw to what was logged.

use crate::host::{ActiveHost, Host, Map};
use crate::limits;

/// The request's `x-request-id` if it can stand in a header, a body and a log line; else random. One or two hostcalls.
pub(crate) fn decision_id(host: &ActiveHost) -> String {
    let from_request = host.field(Map::Request, "x-request-id").ok().flatten();
    from_request.and_then(checked).unwrap_or_else(|| {
        let mut bytes = [0; limits::DECISION_ID_RANDOM_BYTES];
        host.random(&mut bytes);
        let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        digits
            .filter_map(|digit| char::from_digit(u32::from(digit), 16))
            .collect()
    })
}

/// Letters, digits, `-`, `_` and `.`, within the bound.
fn checked(id: Vec<u8>) -> Option<String> {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    let fits = !id.is_empty() && id.len() <= limits::DECISION_ID_BYTES_MAX && id.iter().all(plain);
    fits.then(|| String::from_utf8(id).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::checked;

    #[test]
    fn takes_over_only_ids_that_are_safe_everywhere() {
        let long = "a".repeat(65);
        for (id, taken) in [
            ("6e1b2c3d-aaaa-4bbb-8ccc-123456789abc", true),
            ("a", true),
            (&long[..64], true),
            ("", false),
            (&long, false),
            ("a\"b", false),
            ("a b", false),
            ("é", false),
        ] {
            assert_eq!(checked(id.as_bytes().to_vec()).is_some(), taken, "{id:?}");
        }
        assert_eq!(checked(vec![0xff]), None);
    }
}
