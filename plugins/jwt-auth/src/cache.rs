//! Tokens that were found well signed, so that a token's signature is checked once and not for every request.
//!
//! A hit needs the whole token to be equal, so nothing can be replayed under another's entry. Only the signature's
//! verdict is remembered: every rule runs for every request. An entry dies with the token's expiry, with its key, or as
//! the least lately used when the cache is full. Only tokens that an issuer signed get in, so nobody else can fill it.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::claims::Claims;
use crate::limits;

/// A bounded memory of tokens.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    /// By the token's end: that is signature, so as good as random.
    entries: BTreeMap<u64, Entry>,
    bytes: usize,
    uses: u64,
}

#[derive(Debug)]
struct Entry {
    token: Box<str>,
    verified: Verified,
    weight: usize,
    used: u64,
}

/// A token whose signature is good.
#[derive(Clone, Debug)]
pub(crate) struct Verified {
    /// Place of its issuer in the configuration.
    pub(crate) provider: usize,
    /// Number of the key that verified it.
    pub(crate) key: u64,
    pub(crate) claims: Rc<Claims>,
}

impl Cache {
    /// `token` may be any bytes: what equals a remembered token is one.
    pub(crate) fn find(&mut self, token: &[u8]) -> Option<Verified> {
        let entry = self
            .entries
            .get_mut(&end(token))
            .filter(|entry| equal(entry.token.as_bytes(), token))?;
        self.uses += 1;
        entry.used = self.uses;
        Some(entry.verified.clone())
    }

    pub(crate) fn insert(&mut self, token: &str, verified: Verified) {
        let weight = token.len() + verified.claims.weight() + 128;
        if weight > limits::CACHE_BYTES_MAX {
            return;
        }
        self.remove(token.as_bytes());
        while self.entries.len() >= limits::CACHE_ENTRIES_MAX
            || self.bytes + weight > limits::CACHE_BYTES_MAX
        {
            let oldest = self
                .entries
                .iter()
                .min_by_key(|(_, entry)| entry.used)
                .map(|(end, _)| *end);
            let Some(removed) = oldest.and_then(|end| self.entries.remove(&end)) else {
                break;
            };
            self.bytes -= removed.weight;
        }
        self.uses += 1;
        self.bytes += weight;
        self.entries.insert(
            end(token.as_bytes()),
            Entry {
                token: token.into(),
                verified,
                weight,
                used: self.uses,
            },
        );
    }

    /// Forgets a token, and any other one that stands in its place.
    pub(crate) fn remove(&mut self, token: &[u8]) {
        if let Some(removed) = self.entries.remove(&end(token)) {
            self.bytes -= removed.weight;
        }
    }

    /// Forgets a provider's tokens whose key `keeps` refuses.
    pub(crate) fn retain_keys(&mut self, provider: usize, keeps: impl Fn(u64) -> bool) {
        self.entries
            .retain(|_, entry| entry.verified.provider != provider || keeps(entry.verified.key));
        self.bytes = self.entries.values().map(|entry| entry.weight).sum();
    }
}

fn end(token: &[u8]) -> u64 {
    token.last_chunk().map_or(0, |end| u64::from_be_bytes(*end))
}

/// Eight bytes at a time: in Wasm `==` of slices is a loop over single bytes, and a token has many hundreds.
fn equal(a: &[u8], b: &[u8]) -> bool {
    let ((a_words, a_rest), (b_words, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let words = || a_words.iter().zip(b_words);
    a.len() == b.len()
        && words().all(|(a, b)| u64::from_ne_bytes(*a) == u64::from_ne_bytes(*b))
        && a_rest == b_rest
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::{Cache, Verified, limits};
    use crate::claims::Claims;

    fn verified(provider: usize, key: u64, padding: usize) -> Verified {
        let text = format!(r#"{{"iss":"i","exp":1,"pad":"{}"}}"#, "x".repeat(padding));
        Verified {
            provider,
            key,
            claims: Rc::new(Claims::read(text.as_bytes()).unwrap()),
        }
    }

    #[test]
    fn the_whole_token_is_compared() {
        let mut cache = Cache::default();
        cache.insert("header.claims.signature", verified(0, 1, 0));
        for (token, found) in [
            ("header.claims.signature", true),
            ("header.claimz.signature", false),
            ("Header.claims.signature", false),
            ("eader.claims.signature", false),
            ("signature", false),
            ("", false),
        ] {
            assert_eq!(cache.find(token.as_bytes()).is_some(), found, "{token}");
        }
        cache.insert("other.claims.signature", verified(0, 1, 0));
        assert!(
            cache.find(b"header.claims.signature").is_none(),
            "the same end: the later one stays"
        );
        cache.remove(b"other.claims.signature");
        assert_eq!((cache.entries.len(), cache.bytes), (0, 0));
    }

    #[test]
    fn it_forgets_the_least_lately_used() {
        let mut cache = Cache::default();
        let token = |number: usize| format!("token-{number:08}");
        for number in 0..limits::CACHE_ENTRIES_MAX {
            cache.insert(&token(number), verified(0, 1, 0));
        }
        assert!(cache.find(token(0).as_bytes()).is_some());
        cache.insert(&token(9999), verified(0, 1, 0));
        assert_eq!(cache.entries.len(), limits::CACHE_ENTRIES_MAX);
        assert!(cache.find(token(0).as_bytes()).is_some());
        assert!(cache.find(token(1).as_bytes()).is_none());
    }

    #[test]
    fn it_never_outgrows_its_bytes() {
        let mut cache = Cache::default();
        for number in 0..300 {
            cache.insert(&format!("token-{number:08}"), verified(0, 1, 8192));
            assert!(cache.bytes <= limits::CACHE_BYTES_MAX, "{}", cache.bytes);
        }
        assert!(cache.entries.len() > 100, "{}", cache.entries.len());
        cache.insert("too heavy", verified(0, 1, limits::CACHE_BYTES_MAX));
        assert!(cache.find(b"too heavy").is_none());
    }

    #[test]
    fn tokens_go_with_their_key() {
        let mut cache = Cache::default();
        cache.insert("token-of-0-with-1", verified(0, 1, 0));
        cache.insert("token-of-0-with-2", verified(0, 2, 0));
        cache.insert("token-of-1-with-3", verified(1, 3, 0));
        cache.retain_keys(0, |key| key == 2);
        let left = [
            "token-of-0-with-1",
            "token-of-0-with-2",
            "token-of-1-with-3",
        ]
        .map(|token| cache.find(token.as_bytes()).is_some());
        assert_eq!(left, [false, true, true]);
        assert_eq!(
            cache.bytes,
            cache
                .entries
                .values()
                .map(|entry| entry.weight)
                .sum::<usize>()
        );
    }
}
