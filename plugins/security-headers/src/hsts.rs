//! `Strict-Transport-Security` (RFC 6797 §6.1): read, ordered, merged.

use crate::field;

/// One year: what hstspreload.org asks of a site that wants to stand in the browsers' list.
const PRELOAD_MAX_AGE_MIN: u64 = 31_536_000;

/// A well-formed value.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Hsts {
    /// Seconds; what does not fit is as good as for ever.
    max_age: u64,
    include_subdomains: bool,
    preload: bool,
}

impl Hsts {
    /// Reads a value as a browser does: `None` where the browser would drop it. Unknown directives are passed over (§6.1,
    /// rule 5), a directive that comes twice is an error (rule 2).
    pub(crate) fn parse(value: &[u8]) -> Option<Self> {
        Self::read(value, |_| true)
    }

    /// Reads an operator's value: an unknown directive is a mistake, and the list for preloading has conditions.
    pub(crate) fn parse_own(value: &str) -> Result<Self, &'static str> {
        let hsts = Self::read(value.as_bytes(), |_| false)
            .ok_or("is malformed: write `max-age=SECONDS`, then `; includeSubDomains` and `; preload` as wanted")?;
        if hsts.preload && !hsts.may_preload() {
            return Err("`preload` needs `includeSubDomains` and a max-age of at least 31536000");
        }
        Ok(hsts)
    }

    /// Whether browsers are told to forget the site.
    pub(crate) fn forgets(self) -> bool {
        self.max_age == 0
    }

    /// The value that keeps every promise of both. `preload` asks for a place in a list that is hard to leave: it survives
    /// only from a value that met the list's conditions by itself.
    pub(crate) fn merge(self, other: Self) -> Self {
        Self {
            max_age: self.max_age.max(other.max_age),
            include_subdomains: self.include_subdomains || other.include_subdomains,
            preload: (self.preload && self.may_preload()) || (other.preload && other.may_preload()),
        }
    }

    /// The value on the wire.
    pub(crate) fn to_value(self) -> Vec<u8> {
        let mut value = format!("max-age={}", self.max_age);
        if self.include_subdomains {
            value.push_str("; includeSubDomains");
        }
        if self.preload {
            value.push_str("; preload");
        }
        value.into_bytes()
    }

    fn may_preload(self) -> bool {
        self.include_subdomains && self.max_age >= PRELOAD_MAX_AGE_MIN
    }

    fn read(value: &[u8], pass_unknown: impl Fn(&[u8]) -> bool) -> Option<Self> {
        let mut max_age = None;
        let mut include_subdomains = false;
        let mut preload = false;
        for directive in value.split(|&byte| byte == b';').map(field::trim) {
            if directive.is_empty() {
                continue;
            }
            let (name, argument) = match directive.iter().position(|&byte| byte == b'=') {
                Some(at) => {
                    let (name, argument) = directive.split_at(at);
                    (field::trim(name), Some(field::trim(argument.get(1..)?)))
                }
                None => (directive, None),
            };
            if name.is_empty() || !name.iter().copied().all(field::is_token_byte) {
                return None;
            }
            if name.eq_ignore_ascii_case(b"max-age") {
                if max_age.replace(seconds(argument?)?).is_some() {
                    return None;
                }
            } else if name.eq_ignore_ascii_case(b"includesubdomains") && argument.is_none() {
                if std::mem::replace(&mut include_subdomains, true) {
                    return None;
                }
            } else if name.eq_ignore_ascii_case(b"preload") && argument.is_none() {
                if std::mem::replace(&mut preload, true) {
                    return None;
                }
            } else if !pass_unknown(name) {
                return None;
            }
        }
        Some(Self {
            max_age: max_age?,
            include_subdomains,
            preload,
        })
    }
}

/// `1*DIGIT`, plain or quoted.
fn seconds(argument: &[u8]) -> Option<u64> {
    let digits = match argument {
        [b'"', digits @ .., b'"'] => digits,
        digits => digits,
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0_u64, |sum, digit| {
        sum.saturating_mul(10)
            .saturating_add(u64::from(digit - b'0'))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_browsers_read_them() {
        let read = |max_age, include_subdomains, preload| {
            Some(Hsts {
                max_age,
                include_subdomains,
                preload,
            })
        };
        let table: &[(&[u8], Option<Hsts>)] = &[
            (b"max-age=1", read(1, false, false)),
            (
                b"max-age=63072000; includeSubDomains",
                read(63_072_000, true, false),
            ),
            (
                b"MAX-AGE=5;INCLUDESUBDOMAINS ;\tPreLoad",
                read(5, true, true),
            ),
            (b";; max-age = \"7\" ;", read(7, false, false)),
            (b"max-age=1; report=\"x\"; future", read(1, false, false)),
            (
                b"max-age=99999999999999999999999",
                read(u64::MAX, false, false),
            ),
            (b"includeSubDomains; max-age=0", read(0, true, false)),
            (b"", None),
            (b"includeSubDomains", None),
            (b"max-age", None),
            (b"max-age=", None),
            (b"max-age=\"\"", None),
            (b"max-age=-1", None),
            (b"max-age=1d", None),
            (b"max-age=1; max-age=1", None),
            (b"max-age=1; includeSubDomains; includeSubDomains", None),
            (b"max-age=1, max-age=2", None),
            (b"max-age=1; a b", None),
            (b"max-age=1; =x", None),
            (b"max-age=\xff", None),
            (b"\xff\xfe", None),
        ];
        for (value, expected) in table {
            assert_eq!(Hsts::parse(value), *expected, "{}", value.escape_ascii());
        }
    }

    #[test]
    fn a_merged_value_keeps_every_promise() {
        let table = [
            (
                "max-age=1",
                "max-age=2; includeSubDomains",
                "max-age=2; includeSubDomains",
            ),
            (
                "max-age=9",
                "max-age=2; includeSubDomains",
                "max-age=9; includeSubDomains",
            ),
            ("max-age=0", "max-age=2", "max-age=2"),
            (
                "max-age=31536000; includeSubDomains; preload",
                "max-age=2",
                "max-age=31536000; includeSubDomains; preload",
            ),
            (
                "max-age=300; includeSubDomains; preload",
                "max-age=63072000",
                "max-age=63072000; includeSubDomains",
            ),
            (
                "max-age=31536000; preload",
                "max-age=2; includeSubDomains",
                "max-age=31536000; includeSubDomains",
            ),
        ];
        for (one, other, expected) in table {
            let (one, other) = (
                Hsts::parse(one.as_bytes()).unwrap(),
                Hsts::parse(other.as_bytes()).unwrap(),
            );
            assert_eq!(one.merge(other).to_value(), expected.as_bytes());
            assert_eq!(one.merge(other), other.merge(one));
        }
    }
}
