//! Header names to what is done with them: a fixed hash table, built at configure, read without allocation.
//!
//! Nearly every header of an answer is in no list, so a miss has to be cheap: four bytes and the length choose a slot, and the
//! slot is mostly empty. An upstream that chose names to collide would find only names that an operator put in, so a look-up
//! compares with a handful of names at worst.

/// A map from lower-case header names to `T`.
#[derive(Debug)]
pub(crate) struct NameTable<T> {
    /// A power of two, at least four times the names.
    slots: Box<[Option<(String, T)>]>,
}

impl<T: Copy> NameTable<T> {
    /// Of two entries with one name the first counts.
    pub(crate) fn new(entries: Vec<(String, T)>) -> Self {
        let size = entries.len().max(1).saturating_mul(4).next_power_of_two();
        let mut slots: Box<[Option<(String, T)>]> =
            std::iter::repeat_with(|| None).take(size).collect();
        for (name, meaning) in entries {
            let (before, from) = slots.split_at_mut(hash(name.as_bytes()) & (size - 1));
            let mut places = from.iter_mut().chain(before);
            if let Some(slot) =
                places.find(|slot| slot.as_ref().is_none_or(|(taken, _)| *taken == name))
            {
                slot.get_or_insert((name, meaning));
            }
        }
        Self { slots }
    }

    /// The table's own copy of `name`, which is in lower case, and what it means here.
    pub(crate) fn find(&self, name: &[u8]) -> Option<(&str, T)> {
        let mask = self.slots.len().checked_sub(1)?;
        let mut at = hash(name) & mask;
        // Three quarters of the slots are empty, so the search ends.
        while let Some(Some((known, meaning))) = self.slots.get(at) {
            if known.as_bytes() == name {
                return Some((known, *meaning));
            }
            at = (at + 1) & mask;
        }
        None
    }
}

fn hash(name: &[u8]) -> usize {
    let byte = |at: usize| usize::from(name.get(at).copied().unwrap_or(0));
    let length = name.len();
    let mixed = length
        .wrapping_mul(0x9e37_79b1)
        .wrapping_add(byte(length / 2))
        .wrapping_mul(0x85eb_ca6b)
        .wrapping_add(byte(length.wrapping_sub(1)))
        .wrapping_mul(0xc2b2_ae35)
        .wrapping_add(byte(length.wrapping_sub(3)) << 8 | byte(length.wrapping_mul(3) / 4))
        .wrapping_mul(0x27d4_eb2f);
    mixed ^ (mixed >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leaks::LEAKING;

    #[test]
    fn every_name_is_found_and_no_other() {
        let entries = LEAKING
            .iter()
            .zip(0_usize..)
            .map(|(name, at)| ((*name).to_owned(), at))
            .collect();
        let table = NameTable::new(entries);
        for (at, name) in LEAKING.iter().enumerate() {
            assert_eq!(table.find(name.as_bytes()), Some((*name, at)), "{name}");
        }
        let others: &[&[u8]] = &[
            b"",
            b":status",
            b"content-type",
            b"date",
            b"x-powered-b",
            b"x-powered-bz",
            b"Server",
            b"\xff\xff",
        ];
        for name in others {
            assert_eq!(table.find(name), None, "{}", name.escape_ascii());
        }
    }

    #[test]
    fn the_first_of_two_entries_counts_and_none_is_fine() {
        let table = NameTable::new(vec![
            ("a".to_owned(), 1),
            ("a".to_owned(), 2),
            ("b".to_owned(), 3),
        ]);
        assert_eq!(
            (table.find(b"a"), table.find(b"b"), table.find(b"c")),
            (Some(("a", 1)), Some(("b", 3)), None)
        );
        assert_eq!(NameTable::<u8>::new(Vec::new()).find(b"a"), None);
    }

    #[test]
    fn names_that_collide_are_told_apart() {
        // Differ only where the hash does not look.
        let names = [
            "xaxxxxxxxxxx",
            "xbxxxxxxxxxx",
            "xcxxxxxxxxxx",
            "xdxxxxxxxxxx",
            "xexxxxxxxxxx",
        ];
        assert!(
            names
                .iter()
                .all(|name| hash(name.as_bytes()) == hash(names[0].as_bytes()))
        );
        let table = NameTable::new(
            names
                .iter()
                .map(|name| ((*name).to_owned(), *name))
                .collect(),
        );
        for name in names {
            assert_eq!(table.find(name.as_bytes()), Some((name, name)));
        }
        assert_eq!(table.find(b"xfxxxxxxxxxx"), None);
    }
}
