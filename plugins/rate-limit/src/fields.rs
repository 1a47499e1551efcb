//! The response fields: `RateLimit-Policy`, `RateLimit` and `Retry-After`.
//!
//! Source: draft-ietf-httpapi-ratelimit-headers-10 (§3, §4 and §5, structured fields of RFC 9651) and RFC 9110
//! §10.2.3. `t` is the time until one more request would pass, as the draft has it since -10, and so never later than
//! `Retry-After`. Limits' names need no escapes: the configuration allows none that would.

use crate::gcra::Limit;
use crate::table::Tats;

/// `"peruser";q=100;w=60` for each limit.
pub(crate) fn policy(limits: &[Limit]) -> String {
    let mut field = String::new();
    for limit in limits {
        separate(&mut field);
        let Limit {
            name,
            requests,
            window_seconds,
            ..
        } = limit;
        field.push_str(&format!("\"{name}\";q={requests};w={window_seconds}"));
    }
    field
}

/// `"peruser";r=50;t=1` for each limit; no `t` where the whole burst is free.
pub(crate) fn standing(limits: &[Limit], tats: &Tats, now: u64) -> String {
    let mut field = String::with_capacity(48);
    // Runs for each request: the formatting machinery would take a fifth of this control's time.
    let mut digits = itoa::Buffer::new();
    for (limit, tat) in limits.iter().zip(tats) {
        separate(&mut field);
        let standing = limit.standing(*tat, now);
        field.push('"');
        field.push_str(&limit.name);
        field.push_str("\";r=");
        field.push_str(digits.format(standing.remaining));
        if let Some(next) = standing.next {
            field.push_str(";t=");
            field.push_str(digits.format(seconds(next)));
        }
    }
    field
}

/// Whole seconds, rounded up and at least 1: a client that waits so long comes not too early, and never at once.
pub(crate) fn seconds(nanoseconds: u64) -> u64 {
    nanoseconds.div_ceil(1_000_000_000).max(1)
}

fn separate(list: &mut String) {
    if !list.is_empty() {
        list.push_str(", ");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000_000_000;

    #[test]
    fn fields_read_as_the_draft_has_them() {
        let limits = [
            Limit::new("peruser".into(), 100, 60, 100),
            Limit::new("daily".into(), 1_000, 86_400, 10),
        ];
        assert_eq!(
            policy(&limits),
            r#""peruser";q=100;w=60, "daily";q=1000;w=86400"#
        );

        let rows: [(u64, u64, &str); 5] = [
            (0, 0, r#""peruser";r=100, "daily";r=10"#),
            // One request of each: 0.6 s and 86.4 s.
            (
                NOW + 600_000_000,
                NOW + 86_400_000_000,
                r#""peruser";r=99;t=1, "daily";r=9;t=87"#,
            ),
            (
                NOW + 30_000_000_000,
                NOW,
                r#""peruser";r=50;t=1, "daily";r=10"#,
            ),
            (
                NOW + 60_000_000_000,
                NOW + 864_000_000_000,
                r#""peruser";r=0;t=1, "daily";r=0;t=87"#,
            ),
            (NOW + 1, NOW + 1, r#""peruser";r=99;t=1, "daily";r=9;t=1"#),
        ];
        for (first, second, expected) in rows {
            assert_eq!(standing(&limits, &[first, second, 0, 0], NOW), expected);
        }
    }

    #[test]
    fn seconds_round_up_to_at_least_one() {
        for (nanoseconds, expected) in [
            (0, 1),
            (1, 1),
            (1_000_000_000, 1),
            (1_000_000_001, 2),
            (59_999_999_999, 60),
        ] {
            assert_eq!(seconds(nanoseconds), expected);
        }
    }
}
