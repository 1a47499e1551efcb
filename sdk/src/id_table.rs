//! A table of things by an id that counts up: [`IdTable`], open addressing with linear probing, the id's low bits
//! as its hash. A thing is found at the first look while those that live together were made near each other.

/// Things by id. It grows to twice what lives in it at once, and never shrinks.
#[derive(Debug)]
pub(crate) struct IdTable<T> {
    /// A power of two of places, or none.
    places: Vec<Option<(u32, T)>>,
    len: usize,
}

const PLACES_MIN: usize = 8;

impl<T> IdTable<T> {
    pub(crate) const fn new() -> Self {
        Self {
            places: Vec::new(),
            len: 0,
        }
    }

    /// Puts a thing there; what stood under the id is gone.
    pub(crate) fn insert(&mut self, id: u32, thing: T) {
        if self.places.len() <= self.len * 2 {
            self.grow();
        }
        let (place, is_new) = self.place(id);
        if let Some(slot) = self.places.get_mut(place) {
            *slot = Some((id, thing));
            self.len += usize::from(is_new);
        }
    }

    /// The thing of that id.
    pub(crate) fn at(&mut self, id: u32) -> Option<&mut T> {
        let mut at = self.home(id);
        loop {
            // The slot is looked at twice so that it is borrowed only where it is given out.
            match self.places.get(at)? {
                Some((known, _)) if *known == id => break,
                Some(_) => at = self.next(at),
                None => return None,
            }
        }
        self.places.get_mut(at)?.as_mut().map(|(_, thing)| thing)
    }

    /// Takes the thing of that id out.
    pub(crate) fn remove(&mut self, id: u32) -> Option<T> {
        if self.places.is_empty() {
            return None;
        }
        let (mut hole, is_new) = self.place(id);
        if is_new {
            return None;
        }
        let (_, taken) = self.places.get_mut(hole)?.take()?;
        self.len -= 1;
        // Whatever stands behind the hole and would be looked for through it moves into it.
        let mut at = self.next(hole);
        while let Some(Some((known, _))) = self.places.get(at) {
            let mask = self.places.len() - 1;
            let from_home = at.wrapping_sub(self.home(*known)) & mask;
            let from_hole = at.wrapping_sub(hole) & mask;
            if from_home >= from_hole {
                self.places.swap(hole, at);
                hole = at;
            }
            at = self.next(at);
        }
        Some(taken)
    }

    /// Where an id stands, or would be put. There is always an empty place.
    fn place(&self, id: u32) -> (usize, bool) {
        let mut at = self.home(id);
        loop {
            match self.places.get(at) {
                Some(Some((known, _))) if *known == id => return (at, false),
                Some(Some(_)) => at = self.next(at),
                _ => return (at, true),
            }
        }
    }

    fn home(&self, id: u32) -> usize {
        id as usize & self.places.len().wrapping_sub(1)
    }

    fn next(&self, at: usize) -> usize {
        (at + 1) & (self.places.len() - 1)
    }

    #[cold]
    fn grow(&mut self) {
        let places = (self.places.len() * 2).max(PLACES_MIN);
        let mut grown = Vec::with_capacity(places);
        grown.resize_with(places, || None);
        let old = std::mem::replace(&mut self.places, grown);
        self.len = 0;
        for (id, thing) in old.into_iter().flatten() {
            self.insert(id, thing);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::IdTable;
    use crate::random::Random;

    #[test]
    fn is_a_map() {
        let mut random = Random::new(3);
        for ids in [8, 64, 5000] {
            let (mut table, mut map) = (IdTable::new(), BTreeMap::new());
            for step in 0..50_000_u32 {
                // Ids that are near each other, and some that fall into the same place.
                let below = u32::try_from(random.below(ids)).unwrap();
                let id = if step % 7 == 0 { below << 16 } else { below };
                match random.below(3) {
                    0 => {
                        table.insert(id, step);
                        map.insert(id, step);
                    }
                    1 => assert_eq!(table.remove(id), map.remove(&id)),
                    _ => assert_eq!(table.at(id), map.get_mut(&id)),
                }
                assert_eq!(table.len, map.len());
            }
            for (id, thing) in &mut map {
                assert_eq!(table.at(*id), Some(thing));
            }
        }
    }

    #[test]
    fn an_empty_table_has_nothing() {
        let mut table = IdTable::<()>::new();
        assert_eq!(table.at(0), None);
        assert_eq!(table.remove(7), None);
    }
}
