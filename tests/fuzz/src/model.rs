//! What a stream owes, whatever a guest does.

use portcullis_runtime::{Direction, Fields, Progress};

use crate::Input;
use crate::guest::{Call, NAMES, VALUES};
use crate::world::Told;

const OK: u8 = 0;
const BAD_ARGUMENT: u8 = 2;

pub(crate) struct Model {
    headers: Vec<(String, String)>,
    /// Raw calls can do what the model does not follow: only what holds for those is checked.
    is_raw: bool,
    /// Every callback lets everything pass, and nothing is closed or answered.
    is_plain: bool,
    /// The request's headers are shown: not yet let go, nor answered, in their callback.
    are_headers_open: bool,
    /// How far the callbacks are.
    seen: Vec<u8>,
    fed: [usize; 2],
    took: [usize; 2],
}

fn index(direction: Direction) -> usize {
    match direction {
        Direction::Request => 0,
        Direction::Response => 1,
    }
}

impl Model {
    pub(crate) fn new(headers: &[(&str, &str)], input: &Input) -> Self {
        let calls = || input.scripts.iter().flat_map(|script| &script.calls);
        let is_raw = calls().any(|call| matches!(call, Call::Raw(..)));
        let ends = |call: &Call| matches!(call, Call::Respond(_) | Call::Close(_));
        let is_plain = !is_raw
            && !calls().any(ends)
            && input.scripts.iter().all(|script| script.action % 5 == 0);
        Self {
            headers: headers
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            is_raw,
            is_plain,
            are_headers_open: false,
            seen: Vec::new(),
            fed: [0; 2],
            took: [0; 2],
        }
    }

    pub(crate) fn fed(&mut self, direction: Direction, bytes: usize) {
        self.fed[index(direction)] += bytes;
    }

    /// No byte of a body is made or changed.
    pub(crate) fn took(&mut self, direction: Direction, bytes: &[u8]) {
        if self.is_raw {
            return;
        }
        let index = index(direction);
        let letter = [b'q', b's'][index];
        assert!(bytes.iter().all(|byte| *byte == letter), "another's bytes");
        self.took[index] += bytes.len();
        assert!(self.took[index] <= self.fed[index], "bytes from nowhere");
        if self.is_plain {
            assert_eq!(
                self.took[index], self.fed[index],
                "bytes are held, and none asked"
            );
        }
    }

    /// The body of an answer that was made here goes out whole, or not at all: of what was on its way before, no byte goes with it.
    pub(crate) fn answered(&mut self, body: &[u8], went: &[u8], progress: Progress) {
        if self.is_raw {
            return;
        }
        assert!(
            went == body || went.is_empty(),
            "another's bytes in an answer: {went:?}"
        );
        if progress == Progress::Continue {
            assert_eq!(went, body, "an answer's body is lost");
        }
    }

    /// What an event brought.
    pub(crate) fn saw(&mut self, progress: Progress, told: &[Told]) {
        let mut answered = false;
        for told in told {
            match told {
                Told::Callback(callback) => self.called(*callback),
                Told::Status {
                    callback,
                    call,
                    status,
                } => {
                    if let Some(call) = call {
                        self.apply(call, *status);
                        answered |=
                            matches!(call, Call::Respond(_)) && *callback == 1 && *status == OK;
                    }
                }
            }
        }
        if self.is_plain {
            assert_eq!(progress, Progress::Continue, "held, and none asked");
        }
        if answered && !self.is_raw {
            assert!(
                matches!(progress, Progress::Respond | Progress::Reset),
                "an answer was taken and is not given: {progress:?}"
            );
        }
    }

    /// Callbacks of a stream come in their order, headers and ends once.
    fn called(&mut self, callback: u8) {
        self.are_headers_open = callback == 1;
        // Timers and callouts come when they come; a root context may be ended and made anew.
        if self.is_raw || matches!(callback, 10 | 11) {
            return;
        }
        let last = self.seen.iter().copied();
        match callback {
            0 => assert!(self.seen.is_empty(), "made twice: {:?}", self.seen),
            1 | 3 | 4 | 6 | 7 | 8 | 9 => {
                assert!(
                    !self.seen.contains(&callback),
                    "{callback} twice: {:?}",
                    self.seen
                );
            }
            _ => {}
        }
        assert!(
            callback == 0 || self.seen.contains(&0),
            "{callback} of nothing"
        );
        assert!(
            last.clone().all(|seen| seen < 7 || seen < callback),
            "{callback} after {:?}",
            self.seen
        );
        let before = |callback: u8| match callback {
            2 | 3 => Some(1),
            5 | 6 => Some(4),
            9 => Some(8),
            _ => None,
        };
        if let Some(before) = before(callback) {
            assert!(
                self.seen.contains(&before),
                "{callback} before {before}: {:?}",
                self.seen
            );
        }
        if callback == 2 {
            assert!(!self.seen.contains(&3), "a body after its trailers");
        }
        if callback == 5 {
            assert!(!self.seen.contains(&6), "a body after its trailers");
        }
        self.seen.push(callback);
    }

    /// A header changes if, and only if, the guest was told so; and it is told so where it may.
    fn apply(&mut self, call: &Call, status: u8) {
        if self.is_raw {
            return;
        }
        let name = |index: u8| NAMES[usize::from(index) % NAMES.len()];
        let value = |index: u8| VALUES[usize::from(index) % VALUES.len()];
        let known = |name: &str| match name.to_ascii_lowercase().as_str() {
            "host" => ":authority".to_owned(),
            name => name.to_owned(),
        };
        match call {
            Call::Add(n, v) | Call::Replace(n, v) => {
                let ((name, is_name), (value, is_value)) = (name(*n), value(*v));
                let name = known(name);
                let is_pseudo = name.starts_with(':');
                if self.are_headers_open && !is_pseudo {
                    let expected = if is_name && is_value {
                        OK
                    } else {
                        BAD_ARGUMENT
                    };
                    assert_eq!(status, expected, "{call:?}");
                }
                if !(is_name && is_value) {
                    assert_ne!(status, OK, "{call:?}");
                }
                if status == OK {
                    let is_added = matches!(call, Call::Add(..)) && !is_pseudo;
                    self.put(name, value, is_added);
                }
            }
            Call::Remove(n) if status == OK => {
                let name = known(name(*n).0);
                self.headers.retain(|(other, _)| *other != name);
            }
            Call::Get(n) if self.are_headers_open => {
                let name = known(name(*n).0);
                let is_there = self.headers.iter().any(|(other, _)| *other == name);
                assert_eq!(
                    status,
                    u8::from(!is_there),
                    "{call:?} in {:?}",
                    self.headers
                );
            }
            // As in Envoy the maps of what goes on are gone at once.
            Call::Continue(_) | Call::Close(_) | Call::Respond(_) if status == OK => {
                self.are_headers_open = false;
            }
            _ => {}
        }
    }

    fn put(&mut self, name: String, value: &str, is_added: bool) {
        let first = self.headers.iter().position(|(other, _)| *other == name);
        match first {
            Some(first) if !is_added => {
                self.headers[first].1 = value.to_owned();
                let mut place = 0;
                self.headers.retain(|(other, _)| {
                    place += 1;
                    *other != name || place - 1 == first
                });
            }
            _ => self.headers.push((name, value.to_owned())),
        }
    }

    pub(crate) fn check_request_headers(&self, fields: &dyn Fields) {
        if self.is_raw {
            return;
        }
        let mut found = Vec::new();
        fields.for_each(&mut |name, value| {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            found.push((text(name), text(value)));
        });
        assert_eq!(found, self.headers);
    }

    /// The exchange is over; what its end told.
    pub(crate) fn finished(&mut self, told: &[Told]) {
        for told in told {
            if let Told::Callback(callback) = told {
                self.called(*callback);
            }
        }
        if !self.is_raw {
            for end in [7, 8, 9] {
                assert!(
                    self.seen.contains(&end),
                    "{end} is missing: {:?}",
                    self.seen
                );
            }
        }
    }
}
