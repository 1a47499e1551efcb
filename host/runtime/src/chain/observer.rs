//! Watching a chain at work: what each filter was shown, and what it did with it.

use super::{HttpStream, Progress, phases::Next};
use crate::{
    abi::Callback,
    exchange::{Direction, Exchange},
    stream::Open,
};

/// What one filter did with one phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// Let it pass.
    Continue,
    /// Holds it.
    Pause,
    /// Answered in the upstream's place.
    Respond,
    /// Ended the exchange without an answer.
    Reset,
    /// Its VM broke, or a bound of its CPU time was reached: the request is refused.
    Broke,
}

/// Sees what the filters of one exchange do; see [`HttpStream::observe`]. It is told of a callback that a filter has and is given, of no other.
pub trait Observer {
    /// The filter at this index of the chain is about to be shown the exchange. `size` is what it is told: header fields, or bytes of a body that it
    /// holds or is given.
    fn before(&mut self, filter: usize, callback: Callback, size: usize, exchange: &Exchange);

    /// It has done with it; a local response is in [`Exchange::response_headers`] already. `size` is that of what it leaves.
    fn after(
        &mut self,
        filter: usize,
        callback: Callback,
        size: usize,
        verdict: Verdict,
        exchange: &Exchange,
    );
}

impl HttpStream {
    /// Has `observer` see every callback of the phases of headers, bodies and trailers from now on. It costs a branch a callback where there is none.
    pub fn observe(&mut self, observer: Box<dyn Observer>) {
        self.observer = Some(observer);
    }

    pub(super) fn call(
        &mut self,
        direction: Direction,
        index: usize,
        callback: Callback,
        open: Open,
        end_of_stream: bool,
    ) -> Next {
        if self.observer.is_none() || !self.reads(index, callback) {
            return self.run(direction, index, callback, open, end_of_stream);
        }
        let Some(mut observer) = self.observer.take() else {
            return Next::Continue;
        };
        let size = self.observed_size(index, callback);
        observer.before(index, callback, size, &self.cell.exchange.borrow());
        let next = self.run(direction, index, callback, open, end_of_stream);
        let verdict = match &next {
            Next::Continue => Verdict::Continue,
            Next::End(_) if self.is_out(index) => Verdict::Broke,
            Next::End(Progress::Respond) => Verdict::Respond,
            Next::End(_) => Verdict::Reset,
            _ => Verdict::Pause,
        };
        let size = self.observed_size(index, callback);
        observer.after(index, callback, size, verdict, &self.cell.exchange.borrow());
        self.observer = Some(observer);
        next
    }

    fn observed_size(&self, index: usize, callback: Callback) -> usize {
        let cell = self.cell.filters.get(index);
        cell.and_then(|cell| self.size(callback, cell)).unwrap_or(0)
    }

    /// Whether the runtime refused the exchange for this filter's sake.
    fn is_out(&self, index: usize) -> bool {
        let exchange = self.cell.exchange.borrow();
        let broke = self.cell.filters.get(index).map(|cell| cell.broken.get());
        broke == Some(true) || exchange.local_details.as_deref() == Some(b"wasm_fail_stream")
    }
}
