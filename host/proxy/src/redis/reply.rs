//! Where a Redis reply ends: RESP2, and RESP3 for plugins that say `HELLO 3`.
//!
//! Source: the Redis documentation's "Redis serialization protocol specification". A reply is handed on as it came, so that nothing of it is
//! read but what tells its length. Aggregates need no stack for that: the number of values that are still to come is enough.

use bytes::{Bytes, BytesMut};
use portcullis_runtime::limits::REDIS_REPLY_BYTES_MAX;

/// Why no more can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReplyFault {
    /// Not RESP.
    #[error("what came is no RESP")]
    Malformed,
    /// More than [`REDIS_REPLY_BYTES_MAX`].
    #[error("the reply has more than {REDIS_REPLY_BYTES_MAX} bytes")]
    TooLarge,
}

/// Replies off a buffer, one by one. What was seen of one that is not whole is not looked at again.
#[derive(Debug, Default)]
pub(crate) struct Replies {
    /// Where the next value begins.
    at: usize,
    /// No line ends before this.
    searched: usize,
    /// Values of this reply that are still to come.
    missing: usize,
}

impl Replies {
    /// The first whole reply in the buffer, taken from it. What Redis sends unasked (RESP3's push) is left out.
    ///
    /// # Errors
    ///
    /// See [`ReplyFault`]: where the next reply begins is not known any more.
    pub(crate) fn next(&mut self, buffer: &mut BytesMut) -> Result<Option<Bytes>, ReplyFault> {
        loop {
            if !self.read(buffer)? {
                // What it has so far is the least that it will have.
                let fits = buffer.len() <= REDIS_REPLY_BYTES_MAX;
                return if fits {
                    Ok(None)
                } else {
                    Err(ReplyFault::TooLarge)
                };
            }
            let reply = buffer.split_to(self.at.min(buffer.len())).freeze();
            *self = Self::default();
            if reply.len() > REDIS_REPLY_BYTES_MAX {
                return Err(ReplyFault::TooLarge);
            }
            if !reply.starts_with(b">") {
                return Ok(Some(reply));
            }
        }
    }

    /// Whether all values are there, up to `at`.
    fn read(&mut self, buffer: &[u8]) -> Result<bool, ReplyFault> {
        if self.at == 0 {
            self.missing = 1;
        }
        while self.missing > 0 {
            let Some(end) = self.line_end(buffer) else {
                return Ok(false);
            };
            let line = buffer.get(self.at..end).unwrap_or_default();
            let (mark, rest) = line.split_first().ok_or(ReplyFault::Malformed)?;
            let after = end.saturating_add(2);
            let mut more = 0;
            self.at = match (*mark, rest) {
                (b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(', _) => after,
                // RESP2's two nulls.
                (b'$' | b'*', b"-1") => after,
                (b'$' | b'!' | b'=', rest) => {
                    let data_end = after.saturating_add(count(rest)?);
                    let whole = data_end.saturating_add(2);
                    if buffer.len() < whole {
                        return Ok(false);
                    }
                    if buffer.get(data_end..whole) != Some(b"\r\n") {
                        return Err(ReplyFault::Malformed);
                    }
                    whole
                }
                (b'*' | b'~' | b'>', rest) => {
                    more = count(rest)?;
                    after
                }
                (b'%', rest) => {
                    more = count(rest)?.saturating_mul(2);
                    after
                }
                // Attributes, and the value that they are about.
                (b'|', rest) => {
                    more = count(rest)?.saturating_mul(2).saturating_add(1);
                    after
                }
                _ => return Err(ReplyFault::Malformed),
            };
            self.missing = (self.missing - 1).saturating_add(more);
            // Each has three bytes at least.
            if self.missing > REDIS_REPLY_BYTES_MAX / 3 {
                return Err(ReplyFault::TooLarge);
            }
        }
        Ok(true)
    }

    fn line_end(&mut self, buffer: &[u8]) -> Option<usize> {
        let from = self.searched.max(self.at);
        let rest = buffer.get(from..).unwrap_or_default();
        let found = rest.windows(2).position(|pair| pair == b"\r\n");
        // The last byte may be the first of a pair.
        let seen = found.unwrap_or(rest.len().saturating_sub(1));
        self.searched = from.saturating_add(seen);
        found.map(|_| self.searched)
    }
}

/// A length, or a number of values, that a reply may have.
fn count(digits: &[u8]) -> Result<usize, ReplyFault> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(ReplyFault::Malformed);
    }
    let number = std::str::from_utf8(digits)
        .ok()
        .and_then(|digits| digits.parse().ok());
    number
        .filter(|number| *number <= REDIS_REPLY_BYTES_MAX)
        .ok_or(ReplyFault::TooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All replies of these bytes, and what is left of them.
    fn read(bytes: &[u8]) -> Result<(Vec<Bytes>, usize), ReplyFault> {
        let (mut replies, mut buffer) = (Replies::default(), BytesMut::from(bytes));
        let mut all = Vec::new();
        while let Some(reply) = replies.next(&mut buffer)? {
            all.push(reply);
        }
        Ok((all, buffer.len()))
    }

    const WHOLE: &[&str] = &[
        "+OK\r\n",
        "-ERR no\r\n",
        ":-7\r\n",
        "$5\r\na\r\nbc\r\n",
        "$0\r\n\r\n",
        "$-1\r\n",
        "*-1\r\n",
        "*0\r\n",
        "*2\r\n$1\r\nk\r\n*1\r\n*2\r\n:1\r\n_\r\n",
        "%2\r\n+a\r\n:1\r\n+b\r\n*1\r\n#t\r\n",
        "~2\r\n,1.5\r\n(123456789012345678901234567890\r\n",
        "=7\r\ntxt:abc\r\n",
        "!5\r\nERR x\r\n",
        "|1\r\n+ttl\r\n:3\r\n$1\r\nv\r\n",
    ];

    #[test]
    fn replies_are_told_apart_however_they_come() {
        for text in WHOLE {
            let whole = Bytes::from_static(text.as_bytes());
            assert_eq!(read(&whole), Ok((vec![whole.clone()], 0)), "{text:?}");
            for end in 0..whole.len() {
                assert_eq!(read(&whole[..end]), Ok((vec![], end)), "{text:?} to {end}");
            }
        }
        // Byte by byte, as a slow server sends; and something unasked in between.
        let wire = WHOLE.join(">2\r\n+invalidate\r\n*1\r\n$1\r\nk\r\n");
        let (mut replies, mut buffer) = (Replies::default(), BytesMut::new());
        let mut seen = Vec::new();
        for byte in wire.bytes() {
            buffer.extend_from_slice(&[byte]);
            while let Some(reply) = replies.next(&mut buffer).unwrap() {
                seen.push(reply);
            }
        }
        assert_eq!(seen, WHOLE);
        assert!(buffer.is_empty());
    }

    #[test]
    fn what_is_no_reply_is_refused() {
        for text in [
            "\r\n",
            "HTTP/1.1 400 Bad Request\r\n",
            "$\r\n",
            "$-2\r\n",
            "$+1\r\na\r\n",
            "$1\r\nabc",
            "!-1\r\n",
            "%-1\r\n",
            "*?\r\n",
            "$?\r\n",
            "*1\r\n.\r\n",
        ] {
            assert_eq!(
                read(text.as_bytes()).unwrap_err(),
                ReplyFault::Malformed,
                "{text:?}"
            );
        }
    }

    #[test]
    fn replies_are_bounded() {
        let max = REDIS_REPLY_BYTES_MAX;
        // The line of its length and the end of its own take up twelve bytes.
        let fits = format!("${}\r\n{}\r\n", max - 12, "a".repeat(max - 12));
        assert_eq!(fits.len(), max);
        assert_eq!(read(fits.as_bytes()).map(|(all, _)| all.len()), Ok(1));
        let refused =
            |text: &str| assert_eq!(read(text.as_bytes()).unwrap_err(), ReplyFault::TooLarge);
        refused(&format!("${}\r\n", max + 1));
        refused(&format!("${max}\r\n{}\r\n", "a".repeat(max)));
        refused(&format!("+{}", "a".repeat(max)));
        refused(&format!("*{max}\r\n"));
        refused("*99999999999999999999999\r\n");
        refused(&"*1000\r\n".repeat(1000));
        refused(&"*1\r\n".repeat(max / 4 + 1));
    }
}
