//! A body, or what a filter holds of one: chunks as they came, so that bytes which nobody changes are never copied.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::abi::Status;

/// Most bodies are none, or one chunk: these need no list.
#[derive(Debug, Default)]
pub(crate) struct Body {
    /// Empty only if the body is.
    first: Bytes,
    #[expect(
        clippy::box_collection,
        reason = "none is the rule, and costs a comparison when it goes"
    )]
    rest: Option<Box<VecDeque<Bytes>>>,
    len: usize,
}

impl Body {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn push(&mut self, chunk: Bytes) {
        if chunk.is_empty() {
            return;
        }
        self.len += chunk.len();
        if self.first.is_empty() {
            self.first = chunk;
        } else {
            self.rest.get_or_insert_default().push_back(chunk);
        }
    }

    /// Puts another behind it.
    pub(crate) fn append(&mut self, mut other: Self) {
        while let Some(chunk) = other.pop() {
            self.push(chunk);
        }
    }

    /// Everything, in one piece; nothing stays.
    pub(crate) fn take(&mut self) -> Bytes {
        let mut whole = Self::default();
        std::mem::swap(self, &mut whole);
        let Some(rest) = whole.rest.filter(|rest| !rest.is_empty()) else {
            return whole.first;
        };
        let mut bytes = BytesMut::with_capacity(whole.len);
        bytes.extend_from_slice(&whole.first);
        for chunk in *rest {
            bytes.extend_from_slice(&chunk);
        }
        bytes.freeze()
    }

    /// The first chunk.
    fn pop(&mut self) -> Option<Bytes> {
        if self.first.is_empty() {
            return None;
        }
        let next = self.rest.as_mut().and_then(|rest| rest.pop_front());
        let first = std::mem::replace(&mut self.first, next.unwrap_or_default());
        self.len -= first.len();
        Some(first)
    }

    fn chunks(&self) -> impl Iterator<Item = &Bytes> {
        std::iter::once(&self.first).chain(self.rest.iter().flat_map(|rest| rest.iter()))
    }

    /// Copies the bytes from `start` on into `out`, which is no longer than what follows `start`.
    pub(crate) fn copy_to(&self, mut start: usize, mut out: &mut [u8]) {
        for chunk in self.chunks() {
            let Some(from) = chunk.get(start..) else {
                start -= chunk.len();
                continue;
            };
            start = 0;
            let len = from.len().min(out.len());
            let (head, rest) = out.split_at_mut(len);
            head.copy_from_slice(from.get(..len).unwrap_or_default());
            out = rest;
            if out.is_empty() {
                return;
            }
        }
    }

    /// Envoy's three writes: at 0, `size` bytes are drained and `data` is put in front; at the end or beyond, `data` is appended.
    pub(crate) fn write(&mut self, start: usize, size: usize, data: &[u8]) -> Result<(), Status> {
        let data = Bytes::copy_from_slice(data);
        if start == 0 {
            self.drain(size);
            if !data.is_empty() {
                self.len += data.len();
                let second = std::mem::replace(&mut self.first, data);
                if !second.is_empty() {
                    self.rest.get_or_insert_default().push_front(second);
                }
            }
        } else if start >= self.len {
            self.push(data);
        } else {
            return Err(Status::BadArgument);
        }
        Ok(())
    }

    fn drain(&mut self, mut size: usize) {
        while size > 0 && !self.first.is_empty() {
            if size >= self.first.len() {
                size -= self.pop().map_or(0, |chunk| chunk.len());
            } else {
                self.first = self.first.split_off(size);
                self.len -= size;
                size = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(chunks: &[&'static str]) -> Body {
        let mut body = Body::default();
        for chunk in chunks {
            body.push(Bytes::from_static(chunk.as_bytes()));
        }
        body
    }

    #[test]
    fn reads_across_chunks() {
        let body = body(&["abc", "", "def", "g"]);
        for start in 0..=7 {
            for end in start..=7 {
                let mut out = vec![0; end - start];
                body.copy_to(start, &mut out);
                assert_eq!(out, b"abcdefg"[start..end], "{start}..{end}");
            }
        }
    }

    #[test]
    fn writes_as_envoy_does() {
        #[track_caller]
        fn check(start: usize, size: usize, data: &str, expected: Result<&str, Status>) {
            let mut body = body(&["abc", "def"]);
            let result = body.write(start, size, data.as_bytes());
            assert_eq!(result.map(|()| body.len()), expected.map(str::len));
            if let Ok(expected) = expected {
                assert_eq!(body.take(), expected);
            }
        }
        check(0, 0, "X", Ok("Xabcdef"));
        check(0, 4, "X", Ok("Xef"));
        check(0, 6, "X", Ok("X"));
        check(0, usize::MAX, "", Ok(""));
        check(6, 0, "X", Ok("abcdefX"));
        check(99, 5, "X", Ok("abcdefX"));
        check(1, 1, "X", Err(Status::BadArgument));
    }
}
