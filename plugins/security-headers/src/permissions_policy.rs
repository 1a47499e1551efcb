//! `Permissions-Policy`: a dictionary (RFC 9651 §3.2) of browser features and who may use them.
//!
//! No order can be told between two allow-lists, and an application that names a feature knows why. So an upstream's word on a
//! feature stands, and the features that it does not name are taken from the operator's policy.

use crate::field;

/// An operator's policy, split once.
#[derive(Debug)]
pub(crate) struct PermissionsPolicy {
    /// Every member, with a comma and a space before each.
    text: Vec<u8>,
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    feature: Vec<u8>,
    /// Where the text of the next member begins.
    end: usize,
}

impl PermissionsPolicy {
    /// Splits a policy; `None` where a browser would drop the whole header.
    pub(crate) fn parse(value: &[u8]) -> Option<Self> {
        let mut policy = Self {
            text: Vec::new(),
            members: Vec::new(),
        };
        for member in members(value)? {
            policy.text.extend_from_slice(b", ");
            policy.text.extend_from_slice(member);
            policy.members.push(Member {
                feature: feature(member).to_vec(),
                end: policy.text.len(),
            });
        }
        Some(policy)
    }

    /// What `upstream` leaves unsaid, appended to it. `None` where a browser would drop `upstream`.
    pub(crate) fn complete(&self, upstream: &[u8]) -> Option<Completed> {
        let said: Vec<&[u8]> = members(upstream)?.into_iter().map(feature).collect();
        let mut value = Vec::with_capacity(upstream.len() + self.text.len());
        value.extend_from_slice(upstream);
        // Members in a row are copied at once: a copy costs more than its bytes.
        let mut unsaid = 0;
        let mut end = 0;
        for member in &self.members {
            if said.contains(&member.feature.as_slice()) {
                value.extend_from_slice(self.text.get(unsaid..end).unwrap_or_default());
                unsaid = member.end;
            }
            end = member.end;
        }
        value.extend_from_slice(self.text.get(unsaid..end).unwrap_or_default());
        Some(if value.len() == upstream.len() {
            Completed::Already
        } else {
            Completed::With(value)
        })
    }
}

/// See [`PermissionsPolicy::complete`].
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Completed {
    /// The upstream names every feature.
    Already,
    /// The whole new value.
    With(Vec<u8>),
}

/// The members of a dictionary, or `None` where it is malformed or empty.
fn members(value: &[u8]) -> Option<Vec<&[u8]>> {
    let mut members = Vec::new();
    let mut start = 0;
    let mut quoted = false;
    let mut escaped = false;
    let mut nested = false;
    for (at, &byte) in value.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {
                if !(0x20..=0x7e).contains(&byte) {
                    return None;
                }
            }
            b'(' if !nested => nested = true,
            b')' if nested => nested = false,
            b'(' | b')' => return None,
            b',' if !nested => {
                members.push(member(value.get(start..at)?)?);
                start = at + 1;
            }
            b'\t' | 0x20..=0x7e => {}
            _ => return None,
        }
    }
    if quoted || nested {
        return None;
    }
    members.push(member(value.get(start..)?)?);
    Some(members)
}

/// One member: a key, `=`, and something that a browser can read as an allow-list.
fn member(text: &[u8]) -> Option<&[u8]> {
    let text = field::trim(text);
    let key = feature(text);
    let starts_well = matches!(key.first(), Some(b'a'..=b'z' | b'*'));
    let key_byte =
        |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.' | b'*');
    if !starts_well || !key.iter().all(key_byte) {
        return None;
    }
    match text.get(key.len()..)? {
        [b'=', b'*' | b'(' | b'"' | b'a'..=b'z' | b'A'..=b'Z', ..] => Some(text),
        _ => None,
    }
}

/// The key of a member.
fn feature(member: &[u8]) -> &[u8] {
    let end = member
        .iter()
        .position(|&byte| byte == b'=')
        .unwrap_or(member.len());
    member.get(..end).unwrap_or(member)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_policy_is_completed() {
        let own = PermissionsPolicy::parse(b"camera=(), usb=()").unwrap();
        let with = |value: &str| Some(Completed::With(value.as_bytes().to_vec()));
        let table: &[(&[u8], Option<Completed>)] = &[
            (b"camera=(self)", with("camera=(self), usb=()")),
            (b"usb=*, camera=()", Some(Completed::Already)),
            (
                b"interest-cohort=()",
                with("interest-cohort=(), camera=(), usb=()"),
            ),
            (
                b"a=(self \"https://x.test,y\"),usb=self",
                with("a=(self \"https://x.test,y\"),usb=self, camera=()"),
            ),
            (b"a=(\"\\\"(\")", with("a=(\"\\\"(\"), camera=(), usb=()")),
            (b"camera 'none'", None),
            (b"camera", None),
            (b"camera=", None),
            (b"Camera=()", None),
            (b"camera=(", None),
            (b"camera=())", None),
            (b"camera=(()", None),
            (b"camera=\"", None),
            (b"camera=(),", None),
            (b"", None),
            (b"camera=()\xff", None),
            (b"camera=\"\xff\"", None),
        ];
        for (upstream, expected) in table {
            assert_eq!(
                own.complete(upstream),
                *expected,
                "{}",
                upstream.escape_ascii()
            );
        }
    }
}
