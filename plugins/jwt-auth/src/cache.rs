//! Tokens that were found well signed, so that a token's signature is checked once and not for every request.
//!
//! A hit needs the whole token to be equal, so nothing can be replayed under another's entry. Only the signature's
//! verdict is remembered: every rule runs for every request. An entry dies with the token's expiry, with its key, or as
//! the least lately used when the cache is full. Only tokens that an issuer signed get in, so nobody else can fill it.

use std::hash::{Hash, Hasher};
use std::rc::Rc;
use std::time::SystemTime;

use portcullis_sdk::BoundedCache;

use crate::claims::Claims;
use crate::limits;

/// A bounded memory of tokens.
#[derive(Debug)]
pub(crate) struct Cache(BoundedCache<Token, Verified>);

/// A token whose signature is good.
#[derive(Clone, Debug)]
pub(crate) struct Verified {
    /// Place of its issuer in the configuration.
    pub(crate) provider: usize,
    /// Number of the key that verified it.
    pub(crate) key: u64,
    pub(crate) claims: Rc<Claims>,
}

/// A remembered token, and one that is looked up.
#[derive(Debug, PartialEq, Eq)]
struct Token(Box<[u8]>);

struct Asked<'a>(&'a [u8]);

impl Hash for Token {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Asked(&self.0).hash(state);
    }
}

impl Hash for Asked<'_> {
    /// Its end is signature, so as good as random: the rest would tell no more, and takes time.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let end = self.0.last_chunk().copied();
        state.write_u64(end.map_or(0, u64::from_ne_bytes));
    }
}

impl PartialEq<Asked<'_>> for Token {
    /// Eight bytes at a time: in Wasm `==` of slices is a loop over single bytes, and a token has many hundreds.
    fn eq(&self, asked: &Asked<'_>) -> bool {
        let (a, b) = (&*self.0, asked.0);
        let ((a_words, a_rest), (b_words, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
        let words = || a_words.iter().zip(b_words);
        a.len() == b.len()
            && words().all(|(a, b)| u64::from_ne_bytes(*a) == u64::from_ne_bytes(*b))
            && a_rest == b_rest
    }
}

impl Default for Cache {
    fn default() -> Self {
        let cache = BoundedCache::new(limits::CACHE_ENTRIES_MAX);
        Self(cache.weight_max(limits::CACHE_BYTES_MAX))
    }
}

impl Cache {
    /// `token` may be any bytes: what equals a remembered token is one.
    pub(crate) fn find(&mut self, token: &[u8]) -> Option<Verified> {
        self.0.get(&Asked(token), ALWAYS).cloned()
    }

    pub(crate) fn insert(&mut self, token: &str, verified: Verified) {
        let weight = token.len() + verified.claims.weight() + 128;
        let key = Token(token.as_bytes().into());
        self.0.insert_weighing(key, verified, weight, ALWAYS);
    }

    /// Forgets a token.
    pub(crate) fn remove(&mut self, token: &[u8]) {
        self.0.remove(&Asked(token));
    }

    /// Forgets a provider's tokens whose key `keeps` refuses.
    pub(crate) fn retain_keys(&mut self, provider: usize, keeps: impl Fn(u64) -> bool) {
        self.0
            .retain(|_, verified| verified.provider != provider || keeps(verified.key));
    }
}

/// Entries have no time of their own: the rules look at the token's for every request.
const ALWAYS: SystemTime = SystemTime::UNIX_EPOCH;

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
        // Another token with the same end is another entry.
        cache.insert("other.claims.signature", verified(0, 2, 0));
        let key = |cache: &mut Cache, token: &str| cache.find(token.as_bytes()).map(|it| it.key);
        assert_eq!(key(&mut cache, "header.claims.signature"), Some(1));
        assert_eq!(key(&mut cache, "other.claims.signature"), Some(2));
        cache.remove(b"other.claims.signature");
        cache.remove(b"header.claims.signature");
        assert_eq!((cache.0.len(), cache.0.weight()), (0, 0));
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
        assert_eq!(cache.0.len(), limits::CACHE_ENTRIES_MAX);
        assert!(cache.find(token(0).as_bytes()).is_some());
        assert!(cache.find(token(1).as_bytes()).is_none());
    }

    #[test]
    fn it_never_outgrows_its_bytes() {
        let mut cache = Cache::default();
        for number in 0..300 {
            cache.insert(&format!("token-{number:08}"), verified(0, 1, 8192));
            assert!(
                cache.0.weight() <= limits::CACHE_BYTES_MAX,
                "{}",
                cache.0.weight()
            );
        }
        assert!(cache.0.len() > 100, "{}", cache.0.len());
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
        let weight = |token: &str| token.len() + verified(0, 1, 0).claims.weight() + 128;
        let left = weight("token-of-0-with-2") + weight("token-of-1-with-3");
        assert_eq!(cache.0.weight(), left);
    }
}
