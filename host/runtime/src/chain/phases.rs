//! Phases: headers, body and trailers on their way through the filters of a chain, and one filter's part in each.

use std::rc::Rc;

use bytes::Bytes;

use super::{HttpStream, Progress, Stop};
use crate::{
    abi::{Action, Callback},
    context::StreamContext,
    exchange::Direction,
    plugin::NoVm,
    spec::FailurePolicy,
    stream::{FilterCell, Open},
};

/// What one filter did with one phase.
pub(super) enum Next {
    Continue,
    Pause,
    /// Headers alone.
    PauseHeaders,
    PauseAndDrop,
    End(Progress),
}

impl HttpStream {
    pub(super) fn headers(&mut self, direction: Direction, end_of_stream: bool) -> Progress {
        self.flow(direction).is_due = false;
        if let Some(end) = self.ended(direction) {
            return end;
        }
        let flow = self.flow(direction);
        flow.headers_end = end_of_stream;
        match self.advance_headers(direction) {
            Ok(()) => self.standing(direction),
            Err(end) => end,
        }
    }

    pub(super) fn body(
        &mut self,
        direction: Direction,
        chunk: Bytes,
        end_of_stream: bool,
    ) -> Progress {
        if let Some(end) = self.ended(direction) {
            return end;
        }
        let from = self.flow(direction).body_from;
        match self.feed(direction, from, chunk, end_of_stream) {
            Ok(()) => self.standing(direction),
            Err(end) => end,
        }
    }

    pub(super) fn trailers(&mut self, direction: Direction) -> Progress {
        if let Some(end) = self.ended(direction) {
            return end;
        }
        let flow = self.flow(direction);
        flow.trailers_step = flow.trailers_step.max(flow.body_from);
        match self.advance_trailers(direction) {
            Ok(()) => self.standing(direction),
            Err(end) => end,
        }
    }

    pub(super) fn advance_headers(&mut self, direction: Direction) -> Result<(), Progress> {
        let (callback, open) = match direction {
            Direction::Request => (Callback::RequestHeaders, Open::REQUEST_HEADERS),
            Direction::Response => (Callback::ResponseHeaders, Open::RESPONSE_HEADERS),
        };
        let must_visit = direction == Direction::Request || self.filters.any.contains(callback);
        while must_visit && self.flow(direction).headers_step < self.filters.plugins.len() {
            let step = self.flow(direction).headers_step;
            let filter = self.filter(direction, step);
            if direction == Direction::Request {
                self.enter(filter)?;
            }
            let end_of_stream = self.flow(direction).headers_end;
            match self.call(direction, filter, callback, open, end_of_stream) {
                Next::Continue => self.flow(direction).headers_step = step + 1,
                // Where nothing follows, there is nothing else to hold.
                Next::PauseHeaders if !end_of_stream => {
                    self.flow(direction).stop = Some(Stop::Alone);
                    return Ok(());
                }
                Next::Pause | Next::PauseHeaders | Next::PauseAndDrop => {
                    self.flow(direction).stop = Some(Stop::All);
                    return Ok(());
                }
                Next::End(end) => return Err(end),
            }
        }
        self.flow(direction).headers_passed = true;
        Ok(())
    }

    /// Makes a filter's context as its turn comes.
    pub(super) fn enter(&mut self, index: usize) -> Result<(), Progress> {
        let Some(filter) = self.filters.plugins.get(index) else {
            return Ok(());
        };
        if !filter.has_streams || self.vms.get(index).is_some_and(Option::is_some) {
            return Ok(());
        }
        let stats = filter.plugin.stats_ref();
        match filter.plugin.vm() {
            Ok(vm) => {
                let context = StreamContext {
                    stream: Rc::clone(&self.cell),
                    filter: index,
                };
                let created = vm.create_context(&context);
                if let Some(place) = self.vms.get_mut(index) {
                    *place = Some(vm);
                }
                if created.is_err() {
                    self.mark_broken(index);
                    return Err(self.refuse(Direction::Request, index));
                }
                Ok(())
            }
            Err(NoVm::Down) if filter.plugin.spec().failure_policy == FailurePolicy::Open => {
                stats.count_passed_by();
                Ok(())
            }
            Err(NoVm::Down | NoVm::Full) => {
                // It is not asked for a VM once more to log.
                self.mark_broken(index);
                Err(self.refuse(Direction::Request, index))
            }
        }
    }

    /// Sends body bytes through the filters from `from` on.
    pub(super) fn feed(
        &mut self,
        direction: Direction,
        from: usize,
        chunk: Bytes,
        end_of_stream: bool,
    ) -> Result<(), Progress> {
        let callback = match direction {
            Direction::Request => Callback::RequestBody,
            Direction::Response => Callback::ResponseBody,
        };
        if !self.filters.any.contains(callback) && self.flow(direction).stop.is_none() {
            self.flow(direction).out.push(chunk);
            return Ok(());
        }
        let mut chunk = chunk;
        for step in from..self.filters.plugins.len() {
            let stop = self.stop_at(direction, step);
            if stop == Some(Stop::All) {
                return self.hold_early(direction, chunk, end_of_stream);
            }
            let index = self.filter(direction, step);
            if !self.reads(index, callback) {
                // As in Envoy, who does not look at bodies lets the headers go with the first of one.
                if stop.is_some() {
                    self.pass_headers(direction)?;
                }
                continue;
            }
            let Some(filter) = self.filters.plugins.get(index) else {
                continue;
            };
            let bound = filter.plugin.spec().limits.body_bytes;
            let Some(cell) = self.cell.filters.get(index) else {
                continue;
            };
            let len = {
                let mut body = cell.body(direction).borrow_mut();
                body.push(chunk);
                body.len()
            };
            if cell.held(direction).get().is_some() && len > bound {
                return Err(self.overflow(direction, index));
            }
            let open = self.body_open(direction, end_of_stream);
            let next = self.call(direction, index, callback, open, end_of_stream);
            let Some(cell) = self.cell.filters.get(index) else {
                return Ok(());
            };
            match next {
                Next::Continue => {
                    chunk = cell.body(direction).borrow_mut().take();
                    if cell.held(direction).take().is_some() {
                        self.flow(direction).held -= 1;
                    }
                    if stop.is_some() {
                        self.pass_headers(direction)?;
                    }
                }
                Next::Pause | Next::PauseHeaders | Next::PauseAndDrop => {
                    if matches!(next, Next::PauseAndDrop) {
                        cell.body(direction).borrow_mut().take();
                    }
                    let is_over = cell.body(direction).borrow().len() > bound;
                    if cell.held(direction).replace(Some(end_of_stream)).is_none() {
                        self.flow(direction).held += 1;
                    }
                    return if is_over {
                        Err(self.overflow(direction, index))
                    } else {
                        Ok(())
                    };
                }
                Next::End(end) => return Err(end),
            }
        }
        self.flow(direction).out.push(chunk);
        Ok(())
    }

    /// What the filter at a step holds with the headers, if it holds them.
    fn stop_at(&mut self, direction: Direction, step: usize) -> Option<Stop> {
        let flow = self.flow(direction);
        flow.stop.filter(|_| flow.headers_step == step)
    }

    /// Keeps what a filter that holds headers is not to see yet.
    fn hold_early(
        &mut self,
        direction: Direction,
        chunk: Bytes,
        end_of_stream: bool,
    ) -> Result<(), Progress> {
        let bound = self.body_bound();
        let flow = self.flow(direction);
        flow.early.body.push(chunk);
        flow.early.end |= end_of_stream;
        if flow.early.body.len() > bound {
            return Err(self.overflow(direction, 0));
        }
        Ok(())
    }

    /// What a body callback may touch: at the end of a body without trailers, it may make some.
    pub(super) fn body_open(&self, direction: Direction, end_of_stream: bool) -> Open {
        let exchange = self.cell.exchange.borrow();
        match direction {
            Direction::Request if end_of_stream && exchange.request_trailers.is_none() => {
                Open::REQUEST_BODY.with(Open::NEW_REQUEST_TRAILERS)
            }
            Direction::Request => Open::REQUEST_BODY,
            Direction::Response if end_of_stream && exchange.response_trailers.is_none() => {
                Open::RESPONSE_BODY.with(Open::NEW_RESPONSE_TRAILERS)
            }
            Direction::Response => Open::RESPONSE_BODY,
        }
    }

    pub(super) fn advance_trailers(&mut self, direction: Direction) -> Result<(), Progress> {
        let (callback, open) = match direction {
            Direction::Request => (Callback::RequestTrailers, Open::REQUEST_TRAILERS),
            Direction::Response => (Callback::ResponseTrailers, Open::RESPONSE_TRAILERS),
        };
        while self.flow(direction).trailers_step < self.filters.plugins.len() {
            let step = self.flow(direction).trailers_step;
            let stop = self.stop_at(direction, step);
            if stop == Some(Stop::All) {
                self.flow(direction).early.has_trailers = true;
                return Ok(());
            }
            let index = self.filter(direction, step);
            if self.reads(index, callback) {
                match self.call(direction, index, callback, open, true) {
                    Next::Continue => {}
                    Next::Pause | Next::PauseHeaders | Next::PauseAndDrop => {
                        self.flow(direction).trailers_held = true;
                        return Ok(());
                    }
                    Next::End(end) => return Err(end),
                }
            }
            if stop.is_some() {
                self.pass_headers(direction)?;
            }
            // Trailers that pass a filter take with them what it held of the body.
            self.release(direction, step)?;
            self.flow(direction).trailers_step = step + 1;
        }
        self.flow(direction).trailers_passed = true;
        Ok(())
    }

    /// Sends on what a filter holds of a body.
    pub(super) fn release(&mut self, direction: Direction, step: usize) -> Result<(), Progress> {
        let index = self.filter(direction, step);
        let Some(cell) = self.cell.filters.get(index) else {
            return Ok(());
        };
        let Some(end_of_stream) = cell.held(direction).take() else {
            return Ok(());
        };
        let open = cell
            .open
            .get()
            .without(Open::REQUEST_BODY.with(Open::NEW_REQUEST_TRAILERS));
        cell.open.set(match direction {
            Direction::Request => open,
            Direction::Response => cell
                .open
                .get()
                .without(Open::RESPONSE_BODY.with(Open::NEW_RESPONSE_TRAILERS)),
        });
        let bytes = cell.body(direction).borrow_mut().take();
        self.flow(direction).held -= 1;
        self.feed(direction, step + 1, bytes, end_of_stream)
    }

    /// One filter's part in a phase; [`HttpStream::call`] has it observed.
    pub(super) fn run(
        &mut self,
        direction: Direction,
        index: usize,
        callback: Callback,
        open: Open,
        end_of_stream: bool,
    ) -> Next {
        if !self.reads(index, callback) {
            return Next::Continue;
        }
        let Some((cell, vm)) = self
            .cell
            .filters
            .get(index)
            .zip(self.vms.get(index).and_then(Option::as_ref))
        else {
            return Next::Continue;
        };
        if cell.broken.get() {
            return self.past_broken(direction, index);
        }
        if self
            .filters
            .plugins
            .get(index)
            .is_some_and(|filter| filter.is_overspent(cell))
        {
            return Next::End(self.refuse(direction, index));
        }
        let Some(size) = self.size(callback, cell) else {
            return Next::Continue;
        };
        cell.open.set(cell.open.get().with(open));
        cell.asked
            .set(cell.asked.get().with_resume(direction, false));
        let context = StreamContext {
            stream: Rc::clone(&self.cell),
            filter: index,
        };
        let result = vm.phase(callback, &context, size, end_of_stream);
        let Ok(action) = result else {
            self.mark_broken(index);
            return Next::End(self.refuse(direction, index));
        };
        let local = cell.local.borrow_mut().take();
        if let Some(local) = local {
            return Next::End(self.answered(direction, index, local));
        }
        let asked = cell.asked.get();
        if asked.close {
            return Next::End(self.finished_with(Progress::Reset));
        }
        if action == Action::Continue || asked.resume(direction) {
            cell.asked.set(asked.with_resume(direction, false));
            cell.open.set(cell.open.get().without(open));
            return Next::Continue;
        }
        let stops_alone = self
            .filters
            .plugins
            .get(index)
            .is_some_and(|filter| filter.stops_headers_alone);
        match action {
            Action::PauseAndDrop => Next::PauseAndDrop,
            Action::PauseHeaders if stops_alone => Next::PauseHeaders,
            _ => Next::Pause,
        }
    }

    /// The number a callback is told: headers, bytes. `None` where there is nothing to show.
    pub(super) fn size(&self, callback: Callback, cell: &FilterCell) -> Option<usize> {
        let exchange = self.cell.exchange.borrow();
        match callback {
            Callback::RequestHeaders => Some(exchange.request_headers.len()),
            Callback::RequestTrailers => exchange.request_trailers.as_ref().map(|map| map.len()),
            Callback::ResponseHeaders => exchange.response_headers.as_ref().map(|map| map.len()),
            Callback::ResponseTrailers => exchange.response_trailers.as_ref().map(|map| map.len()),
            Callback::RequestBody => Some(cell.body(Direction::Request).borrow().len()),
            Callback::ResponseBody => Some(cell.body(Direction::Response).borrow().len()),
            _ => None,
        }
    }

    /// Whether a filter was entered and has this callback.
    pub(super) fn reads(&self, index: usize, callback: Callback) -> bool {
        self.filters
            .plugins
            .get(index)
            .is_some_and(|filter| filter.callbacks.contains(callback))
            && self.vms.get(index).is_some_and(Option::is_some)
    }

    /// A filter whose VM another exchange broke. A local response passes it; an upstream's answer only where the operator wrote `open`.
    pub(super) fn past_broken(&mut self, direction: Direction, index: usize) -> Next {
        let policy = self
            .filters
            .plugins
            .get(index)
            .map(|filter| filter.plugin.spec().failure_policy);
        let passes = direction == Direction::Response
            && (self.response.is_local || policy == Some(FailurePolicy::Open));
        if passes {
            Next::Continue
        } else {
            Next::End(self.refuse(direction, index))
        }
    }
}
