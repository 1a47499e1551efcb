//! How exchanges end: answered here, reset, or done.

use std::rc::Rc;

use super::{Flow, HttpStream, Progress};
use crate::{
    abi::Callback,
    context::StreamContext,
    exchange::Direction,
    local_response::LocalResponse,
    stream::{Asked, Open},
};

impl HttpStream {
    pub(super) fn mark_broken(&self, index: usize) {
        if let Some(cell) = self.cell.filters.get(index) {
            cell.broken.set(true);
        }
    }

    /// A filter answered.
    pub(super) fn answered(
        &mut self,
        direction: Direction,
        index: usize,
        local: LocalResponse,
    ) -> Progress {
        if let Some(filter) = self.filters.plugins.get(index) {
            filter.plugin.stats_ref().count_local_response();
        }
        self.respond(direction, local)
    }

    /// A filter has no VM, or broke it.
    pub(super) fn refuse(&mut self, direction: Direction, index: usize) -> Progress {
        let Some(filter) = self.filters.plugins.get(index) else {
            return self.finished_with(Progress::Reset);
        };
        filter.plugin.stats_ref().count_refused();
        let local = LocalResponse::problem(
            503,
            "Service Unavailable",
            "wasm_fail_stream",
            &self.cell.exchange.borrow(),
            filter.plugin.embedder(),
        );
        self.respond(direction, local)
    }

    /// A body is larger than a pausing filter may hold.
    pub(super) fn overflow(&mut self, direction: Direction, index: usize) -> Progress {
        let Some(filter) = self.filters.plugins.get(index) else {
            return self.finished_with(Progress::Reset);
        };
        let (status, title, details) = match direction {
            Direction::Request => (413, "Content Too Large", "request_payload_too_large"),
            Direction::Response => (500, "Internal Server Error", "response_payload_too_large"),
        };
        let local = LocalResponse::problem(
            status,
            title,
            details,
            &self.cell.exchange.borrow(),
            filter.plugin.embedder(),
        );
        self.respond(direction, local)
    }

    /// Puts a local response in place, where that is still possible. Once the upstream's headers are on their way, it replaces these and goes on
    /// behind the filter at work, or the one that holds them, so that none sees headers twice and none answers its own answer: whoever
    /// answered, be it a filter of the request whose body is still coming.
    pub(super) fn respond(&mut self, direction: Direction, local: LocalResponse) -> Progress {
        if self.response.headers_passed {
            return self.finished_with(Progress::Reset);
        }
        self.local_body = local.apply(&mut self.cell.exchange.borrow_mut());
        let from = if direction == Direction::Response || self.is_responding() {
            self.response.headers_step + 1
        } else {
            0
        };
        self.response = Flow {
            headers_step: from,
            body_from: from,
            is_local: true,
            is_due: true,
            ..Flow::default()
        };
        for step in 0..from {
            // What it was shown is no more, and what is there now it is not shown.
            self.close(Direction::Response, step, Open::RESPONSE);
        }
        for cell in &self.cell.filters {
            // Of answers that were given at the same time, the first is final.
            cell.local.borrow_mut().take();
            cell.body(Direction::Request).borrow_mut().take();
            cell.body(Direction::Response).borrow_mut().take();
            cell.held(Direction::Request).set(None);
            cell.held(Direction::Response).set(None);
            cell.asked.set(Asked::default());
        }
        self.request = Flow::default();
        self.end = Some(Progress::Respond);
        Progress::Respond
    }

    /// Whether the response's headers are on their way through the filters.
    pub(super) fn is_responding(&self) -> bool {
        self.response.headers_step > 0 || self.response.stop.is_some()
    }

    pub(super) fn finished_with(&mut self, end: Progress) -> Progress {
        self.end = Some(end);
        end
    }

    /// Nothing passes any more after a reset, nor any request after a response was made here, nor what follows of another response.
    pub(super) fn ended(&self, direction: Direction) -> Option<Progress> {
        match self.end {
            Some(Progress::Respond)
                if direction == Direction::Response && !self.response.is_due =>
            {
                None
            }
            end => end,
        }
    }

    pub(super) fn standing(&mut self, direction: Direction) -> Progress {
        let flow = self.flow(direction);
        if flow.stop.is_some() || flow.trailers_held || flow.held > 0 {
            Progress::Pause
        } else {
            Progress::Continue
        }
    }

    pub(super) fn end_filters(&mut self) {
        if std::mem::replace(&mut self.is_finished, true) {
            return;
        }
        for (index, filter) in self.filters.plugins.iter().enumerate() {
            if !filter.callbacks.contains(Callback::Log) {
                continue;
            }
            let context = StreamContext {
                stream: Rc::clone(&self.cell),
                filter: index,
            };
            let Some((cell, place)) = self.cell.filters.get(index).zip(self.vms.get_mut(index))
            else {
                continue;
            };
            if place.is_none()
                && !cell.broken.get()
                && let Ok(vm) = filter.plugin.vm()
                && vm.create_context(&context).is_ok()
            {
                *place = Some(vm);
            }
            if let Some(vm) = place
                && !cell.broken.get()
                && !filter.is_overspent(cell)
            {
                cell.open.set(Open::LOG);
                // A VM that breaks here takes only itself along: this exchange is over.
                let _ = vm.log(&context);
            }
        }
        for (index, filter) in self.filters.plugins.iter().enumerate() {
            let Some((cell, Some(vm))) = self
                .cell
                .filters
                .get(index)
                .zip(self.vms.get_mut(index).map(Option::take))
            else {
                continue;
            };
            if !cell.broken.get() {
                // Nothing is shown any more.
                cell.open.set(Open::default());
                let context = StreamContext {
                    stream: Rc::clone(&self.cell),
                    filter: index,
                };
                let _ = vm.finish(&context, filter.callbacks);
            }
        }
    }
}
