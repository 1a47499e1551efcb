//! What a policy remembers of one exchange.

use super::part::Direction;
use crate::notes::Notes;

/// Where an exchange stands in a policy.
#[derive(Debug, Default)]
pub struct PolicyExchange {
    /// Its place in every control's states; none before the first callback.
    pub(super) place: Option<usize>,
    /// How many controls it has reached.
    pub(super) entered: usize,
    /// Where the request is held.
    pub(super) stop: Option<Stop>,
    /// A piece of the request's body has come.
    pub(super) body_seen: bool,
    /// The time that its callbacks take is measured.
    pub(super) measured: bool,
    /// What its controls know of it.
    pub(super) notes: Notes,
    /// For each control, how much of what the host holds of a body it has let pass already.
    request_passed: Vec<usize>,
    response_passed: Vec<usize>,
}

/// A request that is held in its headers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stop {
    pub(super) control: usize,
    pub(super) context: u32,
    pub(super) end_of_stream: bool,
}

impl PolicyExchange {
    /// How much of what is held the control at `index` has let pass.
    pub(super) fn passed(&mut self, direction: Direction, index: usize) -> usize {
        self.all_passed(direction).get(index).copied().unwrap_or(0)
    }

    /// Of `size` bytes that are held, the first `controls` on the way have let all pass; the others, none.
    pub(super) fn set_passed(&mut self, direction: Direction, controls: usize, size: usize) {
        let entered = self.entered;
        let passed = self.all_passed(direction);
        passed.clear();
        if controls > 0 {
            passed.resize(entered, 0);
            for step in 0..controls {
                if let Some(from) = passed.get_mut(direction.order(step, entered)) {
                    *from = size;
                }
            }
        }
    }

    fn all_passed(&mut self, direction: Direction) -> &mut Vec<usize> {
        match direction {
            Direction::Request => &mut self.request_passed,
            Direction::Response => &mut self.response_passed,
        }
    }

    /// Makes it fit for another exchange.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
