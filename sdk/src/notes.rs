//! What the controls of a policy module know of an exchange without asking the host again.

/// Properties, and what the host was asked before and cannot answer otherwise.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    properties: Vec<(String, Vec<u8>)>,
    /// Of the connection, so it stays; the inner one as the host gave it.
    tls_version: Option<Option<Vec<u8>>>,
    clock: Clock,
}

/// The host's clock, looked at once a callback.
#[derive(Clone, Copy, Debug, Default)]
enum Clock {
    /// Outside of the exchange's callbacks it is looked at each time.
    #[default]
    Live,
    Unread,
    Read(u64),
}

impl Notes {
    /// A callback of the exchange begins.
    pub(crate) fn open(&mut self) {
        self.clock = Clock::Unread;
    }

    /// It has ended.
    pub(crate) fn close(&mut self) {
        self.clock = Clock::Live;
    }

    /// A property that a control set.
    pub(crate) fn property(&self, name: &str) -> Option<&[u8]> {
        let mut properties = self.properties.iter();
        let found = properties.find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_slice())
    }

    /// A control set a property.
    pub(crate) fn set_property(&mut self, name: &str, value: &[u8]) {
        let mut properties = self.properties.iter_mut();
        match properties.find(|(known, _)| known == name) {
            Some((_, known)) => *known = value.to_vec(),
            None => self.properties.push((name.into(), value.to_vec())),
        }
    }

    /// `connection.tls_version`, asked for with `ask` the first time; an error is not kept.
    pub(crate) fn tls_version<E>(
        &mut self,
        ask: impl FnOnce() -> Result<Option<Vec<u8>>, E>,
    ) -> Result<Option<Vec<u8>>, E> {
        match &self.tls_version {
            Some(known) => Ok(known.clone()),
            None => Ok(self.tls_version.insert(ask()?).clone()),
        }
    }

    /// The time in ns, looked at with `look` the first time in a callback.
    pub(crate) fn now_ns(&mut self, look: impl FnOnce() -> u64) -> u64 {
        match self.clock {
            Clock::Live => look(),
            Clock::Read(known) => known,
            Clock::Unread => {
                let now = look();
                self.clock = Clock::Read(now);
                now
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_looked_at_once_a_callback_and_anew_in_the_next() {
        let mut notes = Notes::default();
        let mut times = 1..;
        let mut now = |notes: &mut Notes| notes.now_ns(|| times.next().unwrap());
        assert_eq!([now(&mut notes), now(&mut notes)], [1, 2], "outside");
        notes.open();
        assert_eq!([now(&mut notes), now(&mut notes)], [3, 3]);
        notes.close();
        assert_eq!([now(&mut notes), now(&mut notes)], [4, 5]);
        notes.open();
        assert_eq!(now(&mut notes), 6);
    }

    #[test]
    fn the_tls_version_is_asked_for_once_unless_that_fails() {
        let mut notes = Notes::default();
        assert_eq!(notes.tls_version(|| Err(())), Err(()));
        let plain: Result<_, ()> = notes.tls_version(|| Ok(None));
        assert_eq!(plain, Ok(None));
        let again: Result<_, ()> = notes.tls_version(|| Ok(Some(b"TLSv1.3".to_vec())));
        assert_eq!(again, Ok(None), "plaintext is an answer, too");
    }

    #[test]
    fn a_property_is_as_it_was_set_last() {
        let mut notes = Notes::default();
        assert_eq!(notes.property("a"), None);
        notes.set_property("a", b"1");
        notes.set_property("b", b"2");
        notes.set_property("a", b"3");
        assert_eq!(notes.property("a"), Some(&b"3"[..]));
        assert_eq!(notes.property("b"), Some(&b"2"[..]));
    }
}
