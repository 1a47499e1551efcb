//! A memory with bounds for what was looked up or verified before: [`BoundedCache`].

use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::time::{Duration, SystemTime};

use foldhash::SharedSeed;
use foldhash::quality::FoldHasher;

/// A map of bounded size. Where it is full, what was used least lately makes room. All is in constant time.
///
/// Keys are found by a hash whose seed is random and taken at the first insertion, so that clients cannot look for keys
/// that meet; a hit needs the whole key to be equal. Each VM has its own cache: its memory is multiplied by the workers.
///
/// ```
/// use std::time::{Duration, SystemTime};
///
/// use portcullis_sdk::BoundedCache;
///
/// let mut cache = BoundedCache::new(2).time_to_live(Duration::from_secs(60));
/// let now = SystemTime::UNIX_EPOCH;
/// cache.insert(String::from("alice"), 1, now);
/// cache.insert(String::from("bob"), 2, now);
/// assert_eq!(cache.get("alice", now), Some(&1));
/// cache.insert(String::from("carol"), 3, now); // bob was used least lately
/// assert_eq!(cache.get("bob", now), None);
/// assert_eq!(cache.get("alice", now + Duration::from_secs(60)), None); // its time is over
/// ```
#[derive(Debug)]
pub struct BoundedCache<K, V> {
    capacity: u32,
    weight_max: usize,
    time_to_live: Option<Duration>,
    seed: Option<Seed>,
    /// The first entry of each chain, by the low bits of its keys' hash; a power of two of them.
    chains: Vec<u32>,
    entries: Vec<Entry<K, V>>,
    /// Of the list of entries in the order of their use.
    latest: u32,
    oldest: u32,
    /// The first of the places that are free.
    free: u32,
    len: usize,
    weight: usize,
}

#[derive(Debug)]
struct Entry<K, V> {
    /// `None`: the place is free.
    content: Option<(K, V)>,
    hash: u64,
    weight: usize,
    inserted: SystemTime,
    /// The next of its chain, or of the free places.
    chained: u32,
    later: u32,
    earlier: u32,
}

/// What the hash is keyed with. The standard library's own hash takes as long as the rest of a look.
#[derive(Clone, Debug)]
struct Seed {
    own: u64,
    shared: SharedSeed,
}

impl Seed {
    /// Of the host's random bytes.
    fn random() -> Self {
        let random = RandomState::new();
        Self {
            own: random.hash_one(0),
            shared: SharedSeed::from_u64(random.hash_one(1)),
        }
    }

    fn hash<Q: Hash + ?Sized>(&self, key: &Q) -> u64 {
        let mut hasher = FoldHasher::with_seed(self.own, &self.shared);
        key.hash(&mut hasher);
        hasher.finish()
    }
}

/// No entry.
const NONE: u32 = u32::MAX;

impl<K: Hash + Eq, V> BoundedCache<K, V> {
    /// An empty cache of at most `capacity` entries; they last until they make room. Memory is taken as entries come.
    pub const fn new(capacity: usize) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "what is larger is cut to what fits"
        )]
        let capacity = match capacity < NONE as usize {
            true => capacity as u32,
            false => NONE - 1,
        };
        Self {
            capacity,
            weight_max: usize::MAX,
            time_to_live: None,
            seed: None,
            chains: Vec::new(),
            entries: Vec::new(),
            latest: NONE,
            oldest: NONE,
            free: NONE,
            len: 0,
            weight: 0,
        }
    }

    /// The same cache, whose entries last for a time after they were inserted, used or not.
    ///
    /// ```
    /// # use std::time::{Duration, SystemTime};
    /// # use portcullis_sdk::BoundedCache;
    /// let mut cache = BoundedCache::new(8).time_to_live(Duration::from_secs(5));
    /// cache.insert(7_u32, "seven", SystemTime::UNIX_EPOCH);
    /// assert_eq!(cache.get(&7, SystemTime::UNIX_EPOCH + Duration::from_secs(5)), None);
    /// ```
    #[must_use]
    pub fn time_to_live(self, time: Duration) -> Self {
        Self {
            time_to_live: Some(time),
            ..self
        }
    }

    /// The same cache, whose entries together weigh at most so much; see [`insert_weighing`](Self::insert_weighing).
    ///
    /// ```
    /// # use std::time::SystemTime;
    /// # use portcullis_sdk::BoundedCache;
    /// let mut cache = BoundedCache::new(8).weight_max(1000);
    /// cache.insert_weighing("a", vec![0; 600], 600, SystemTime::UNIX_EPOCH);
    /// cache.insert_weighing("b", vec![0; 600], 600, SystemTime::UNIX_EPOCH);
    /// assert_eq!((cache.len(), cache.weight()), (1, 600));
    /// ```
    #[must_use]
    pub fn weight_max(self, weight: usize) -> Self {
        Self {
            weight_max: weight,
            ..self
        }
    }

    /// The value of a key, which now is the one used last. `Q` hashes as `K` does and is equal where it is the same key:
    /// `str` for `String`, `[u8]` for `Vec<u8>`.
    pub fn get<Q: Hash + ?Sized>(&mut self, key: &Q, now: SystemTime) -> Option<&V>
    where
        K: PartialEq<Q>,
    {
        let (at, _) = self.find(key)?;
        let inserted = self.entries.get(index(at))?.inserted;
        let is_over = self.time_to_live.is_some_and(|time| {
            // A clock that was set back: nobody knows how old it is.
            now.duration_since(inserted).map_or(true, |age| age >= time)
        });
        if is_over {
            self.take(at);
            return None;
        }
        if at != self.latest {
            self.unlink(at);
            self.link(at);
        }
        let content = self.entries.get(index(at))?.content.as_ref();
        content.map(|(_, value)| value)
    }

    /// Remembers a value, in the place of the one that the key had.
    pub fn insert(&mut self, key: K, value: V, now: SystemTime) {
        self.insert_weighing(key, value, 0, now);
    }

    /// As [`insert`](Self::insert), of an entry of a weight, say in bytes. What is heavier than all may be is not kept.
    ///
    /// ```
    /// # use std::time::SystemTime;
    /// # use portcullis_sdk::BoundedCache;
    /// let now = SystemTime::UNIX_EPOCH;
    /// let mut cache = BoundedCache::new(100).weight_max(10);
    /// cache.insert_weighing("a", (), 6, now);
    /// cache.insert_weighing("b", (), 6, now); // together they weigh 12
    /// assert_eq!(cache.get(&"a", now), None);
    /// assert_eq!(cache.get(&"b", now), Some(&()));
    /// ```
    pub fn insert_weighing(&mut self, key: K, value: V, weight: usize, now: SystemTime) {
        self.remove(&key);
        if self.capacity == 0 || weight > self.weight_max {
            return;
        }
        while self.len >= index(self.capacity) || weight > self.weight_max - self.weight {
            if self.take(self.oldest).is_none() {
                break;
            }
        }
        let seed = self.seed.get_or_insert_with(Seed::random);
        let entry = Entry {
            hash: seed.hash(&key),
            content: Some((key, value)),
            weight,
            inserted: now,
            chained: NONE,
            later: NONE,
            earlier: NONE,
        };
        let at = match self.entries.get_mut(index(self.free)) {
            Some(room) => {
                let at = self.free;
                self.free = room.chained;
                *room = entry;
                at
            }
            None => {
                let at = u32::try_from(self.entries.len()).unwrap_or(NONE);
                self.entries.push(entry);
                at
            }
        };
        self.len += 1;
        self.weight += weight;
        self.chain(at);
        self.link(at);
    }

    /// Forgets a key; its value, if it had one.
    ///
    /// ```
    /// # use std::time::SystemTime;
    /// # use portcullis_sdk::BoundedCache;
    /// let mut cache = BoundedCache::new(8);
    /// cache.insert("a", 1, SystemTime::UNIX_EPOCH);
    /// assert_eq!(cache.remove(&"a"), Some(1));
    /// assert!(cache.is_empty());
    /// ```
    pub fn remove<Q: Hash + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: PartialEq<Q>,
    {
        let (at, _) = self.find(key)?;
        self.take(at).map(|(_, value)| value)
    }

    /// Forgets every entry that `keeps` refuses. In time of the cache's size.
    ///
    /// ```
    /// # use std::time::SystemTime;
    /// # use portcullis_sdk::BoundedCache;
    /// let mut cache = BoundedCache::new(8);
    /// for number in 0..4 {
    ///     cache.insert(number, number * 2, SystemTime::UNIX_EPOCH);
    /// }
    /// cache.retain(|_, double| *double > 2);
    /// assert_eq!(cache.len(), 2);
    /// ```
    pub fn retain(&mut self, keeps: impl Fn(&K, &V) -> bool) {
        for at in 0..u32::try_from(self.entries.len()).unwrap_or(NONE) {
            let entry = self.entries.get(index(at));
            let content = entry.and_then(|entry| entry.content.as_ref());
            if content.is_some_and(|(key, value)| !keeps(key, value)) {
                self.take(at);
            }
        }
    }

    /// How many entries there are, those whose time is over but that nobody asked for included.
    ///
    /// ```
    /// # use std::time::SystemTime;
    /// # use portcullis_sdk::BoundedCache;
    /// let now = SystemTime::UNIX_EPOCH;
    /// let mut cache = BoundedCache::new(2);
    /// for number in 0..5 {
    ///     cache.insert(number, (), now);
    /// }
    /// assert_eq!(cache.len(), 2);
    /// ```
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    ///
    /// ```
    /// # use portcullis_sdk::BoundedCache;
    /// assert!(BoundedCache::<u32, ()>::new(2).is_empty());
    /// ```
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What all entries weigh.
    ///
    /// ```
    /// # use std::time::SystemTime;
    /// # use portcullis_sdk::BoundedCache;
    /// let now = SystemTime::UNIX_EPOCH;
    /// let mut cache = BoundedCache::new(100).weight_max(10);
    /// cache.insert_weighing("a", (), 6, now);
    /// assert_eq!(cache.weight(), 6);
    /// ```
    pub fn weight(&self) -> usize {
        self.weight
    }

    /// Where a key is, and the one before it in its chain.
    fn find<Q: Hash + ?Sized>(&self, key: &Q) -> Option<(u32, u32)>
    where
        K: PartialEq<Q>,
    {
        let hash = self.seed.as_ref()?.hash(key);
        let mut before = NONE;
        let mut at = *self.chains.get(self.slot(hash))?;
        while let Some(entry) = self.entries.get(index(at)) {
            if entry.hash == hash
                && let Some((known, _)) = &entry.content
                && *known == *key
            {
                return Some((at, before));
            }
            before = at;
            at = entry.chained;
        }
        None
    }

    /// Which chain a hash belongs to.
    fn slot(&self, hash: u64) -> usize {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the low bits are what is asked for"
        )]
        let low = hash as usize;
        low & self.chains.len().wrapping_sub(1)
    }

    /// Puts an entry into its chain, and takes more chains where they grow long.
    fn chain(&mut self, at: u32) {
        if self.len > self.chains.len() {
            let chains = self.len.next_power_of_two().max(8);
            self.chains.clear();
            self.chains.resize(chains, NONE);
            for at in 0..u32::try_from(self.entries.len()).unwrap_or(NONE) {
                self.chain_one(at);
            }
        } else {
            self.chain_one(at);
        }
    }

    fn chain_one(&mut self, at: u32) {
        let Some(entry) = self.entries.get(index(at)) else {
            return;
        };
        if entry.content.is_none() {
            return;
        }
        let slot = self.slot(entry.hash);
        if let (Some(first), Some(entry)) =
            (self.chains.get_mut(slot), self.entries.get_mut(index(at)))
        {
            entry.chained = std::mem::replace(first, at);
        }
    }

    /// Takes an entry out of its chain.
    fn unchain(&mut self, at: u32) {
        let Some(entry) = self.entries.get(index(at)) else {
            return;
        };
        let (slot, next) = (self.slot(entry.hash), entry.chained);
        let mut before = NONE;
        let mut walk = self.chains.get(slot).copied().unwrap_or(NONE);
        while walk != at {
            let Some(entry) = self.entries.get(index(walk)) else {
                return;
            };
            before = walk;
            walk = entry.chained;
        }
        match self.entries.get_mut(index(before)) {
            Some(before) => before.chained = next,
            None => {
                if let Some(first) = self.chains.get_mut(slot) {
                    *first = next;
                }
            }
        }
    }

    /// Takes an entry out of everything; its place is free.
    fn take(&mut self, at: u32) -> Option<(K, V)> {
        self.unchain(at);
        self.unlink(at);
        let entry = self.entries.get_mut(index(at))?;
        let content = entry.content.take()?;
        entry.chained = std::mem::replace(&mut self.free, at);
        self.len -= 1;
        self.weight -= entry.weight;
        Some(content)
    }

    /// Makes an entry the one used last.
    fn link(&mut self, at: u32) {
        let latest = std::mem::replace(&mut self.latest, at);
        match self.entries.get_mut(index(latest)) {
            Some(entry) => entry.later = at,
            None => self.oldest = at,
        }
        if let Some(entry) = self.entries.get_mut(index(at)) {
            entry.earlier = latest;
            entry.later = NONE;
        }
    }

    /// Takes an entry out of the order of use.
    fn unlink(&mut self, at: u32) {
        let Some(entry) = self.entries.get(index(at)) else {
            return;
        };
        let (earlier, later) = (entry.earlier, entry.later);
        match self.entries.get_mut(index(earlier)) {
            Some(entry) => entry.later = later,
            None => self.oldest = later,
        }
        match self.entries.get_mut(index(later)) {
            Some(entry) => entry.earlier = earlier,
            None => self.latest = earlier,
        }
    }
}

const fn index(at: u32) -> usize {
    at as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// A list in the order of use, which is searched from end to end.
    #[derive(Default)]
    struct Naive(Vec<(usize, u64, usize, u64)>);

    impl Naive {
        fn get(&mut self, key: usize, time_to_live: u64, now: u64) -> Option<u64> {
            let found = self.0.iter().position(|(known, ..)| *known == key)?;
            let entry = self.0.remove(found);
            if now < entry.3 || now - entry.3 >= time_to_live {
                return None;
            }
            self.0.push(entry);
            Some(entry.1)
        }

        fn insert(&mut self, bounds: (usize, usize), entry: (usize, u64, usize, u64)) {
            self.0.retain(|(known, ..)| *known != entry.0);
            if entry.2 > bounds.1 {
                return;
            }
            while self.0.len() >= bounds.0 || self.weight() + entry.2 > bounds.1 {
                self.0.remove(0);
            }
            self.0.push(entry);
        }

        fn weight(&self) -> usize {
            self.0.iter().map(|(_, _, weight, _)| weight).sum()
        }
    }

    #[test]
    fn agrees_with_a_list() {
        for seed in 0..60 {
            let mut random = Random::new(seed);
            let (capacity, weight_max) = (1 + random.below(40), 50 + random.below(200));
            let time_to_live = 1 + random.next() % 300;
            let mut cache = BoundedCache::new(capacity)
                .weight_max(weight_max)
                .time_to_live(Duration::from_secs(time_to_live));
            let mut naive = Naive::default();
            let mut now = 1000;
            for value in 0..3000 {
                // Now and then the clock is set back.
                now = (now + random.next() % 5).saturating_sub(random.next() % 64 / 63 * 50);
                let key = random.below(60);
                match random.below(5) {
                    0 | 1 => {
                        let weight = random.below(60);
                        naive.insert((capacity, weight_max), (key, value, weight, now));
                        cache.insert_weighing(key, value, weight, at(now));
                    }
                    2 if random.below(20) == 0 => {
                        let kept = random.next() % 3;
                        naive.0.retain(|(_, value, ..)| value % 3 == kept);
                        cache.retain(|_, value| value % 3 == kept);
                    }
                    2 => {
                        let before = naive.0.len();
                        naive.0.retain(|(known, ..)| *known != key);
                        assert_eq!(cache.remove(&key).is_some(), naive.0.len() < before);
                    }
                    _ => assert_eq!(
                        cache.get(&key, at(now)).copied(),
                        naive.get(key, time_to_live, now)
                    ),
                }
                assert_eq!(
                    (cache.len(), cache.weight()),
                    (naive.0.len(), naive.weight())
                );
                assert!(cache.entries.len() <= capacity, "places are used again");
            }
        }
    }

    #[test]
    fn keys_that_hash_alike_are_told_apart() {
        #[derive(PartialEq, Eq)]
        struct Alike(u32);
        impl Hash for Alike {
            fn hash<H: std::hash::Hasher>(&self, _: &mut H) {}
        }
        let mut cache = BoundedCache::new(4);
        for key in 0..6 {
            cache.insert(Alike(key), key, at(0));
        }
        let found = [0, 1, 2, 3, 4, 5].map(|key| cache.get(&Alike(key), at(0)).copied());
        assert_eq!(found, [None, None, Some(2), Some(3), Some(4), Some(5)]);
        assert_eq!(cache.remove(&Alike(4)), Some(4));
        assert_eq!(cache.get(&Alike(3), at(0)), Some(&3));
    }

    #[test]
    fn a_cache_of_nothing_keeps_nothing() {
        let mut cache = BoundedCache::new(0);
        cache.insert(1, 1, at(0));
        assert_eq!(cache.get(&1, at(0)), None);
        assert!(cache.is_empty());
    }

    #[test]
    fn keys_are_looked_up_by_what_they_borrow() {
        let mut cache = BoundedCache::new(4);
        cache.insert(b"key".to_vec(), 1, at(0));
        assert_eq!(cache.get(&b"key"[..], at(0)), Some(&1));
        assert_eq!(cache.get(&b"kez"[..], at(0)), None);
        assert_eq!(cache.remove(&b"key"[..]), Some(1));
    }
}
