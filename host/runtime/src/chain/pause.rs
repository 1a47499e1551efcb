//! Going on after a pause, and what filters ask for outside of their own phases.

use super::{HttpStream, Progress};
use crate::{exchange::Direction, stream::Open};

impl HttpStream {
    pub(super) fn try_resume(&mut self, direction: Direction) -> Result<(), Progress> {
        let step = self.flow(direction).headers_step;
        if self.flow(direction).stop.is_some() && self.wants_on(direction, step) {
            self.close(
                direction,
                step,
                Open::REQUEST_HEADERS.with(Open::RESPONSE_HEADERS),
            );
            // What it holds of body and trailers, or what waits before it, goes on with the headers.
            let flow = self.flow(direction);
            let had_trailers = flow.trailers_held && flow.trailers_step == step;
            flow.trailers_held &= !had_trailers;
            let mut early = std::mem::take(&mut flow.early);
            self.pass_headers(direction)?;
            self.release(direction, step)?;
            if early.body.len() > 0 || early.end {
                self.feed(direction, step, early.body.take(), early.end)?;
            }
            if early.has_trailers {
                self.advance_trailers(direction)?;
            }
            if had_trailers {
                self.flow(direction).trailers_step = step + 1;
                self.advance_trailers(direction)?;
            }
        }
        let step = self.flow(direction).trailers_step;
        if self.flow(direction).trailers_held && self.wants_on(direction, step) {
            self.close(
                direction,
                step,
                Open::REQUEST_TRAILERS.with(Open::RESPONSE_TRAILERS),
            );
            self.flow(direction).trailers_held = false;
            self.release(direction, step)?;
            self.flow(direction).trailers_step = step + 1;
            self.advance_trailers(direction)?;
        }
        // What is nearer to the way out came earlier.
        for step in (0..self.filters.plugins.len()).rev() {
            let index = self.filter(direction, step);
            let holds = self
                .cell
                .filters
                .get(index)
                .is_some_and(|cell| cell.held(direction).get().is_some());
            if holds && self.wants_on(direction, step) {
                self.release(direction, step)?;
            }
        }
        Ok(())
    }

    /// The filter that held the headers lets them go.
    pub(super) fn pass_headers(&mut self, direction: Direction) -> Result<(), Progress> {
        let flow = self.flow(direction);
        flow.stop = None;
        flow.headers_step += 1;
        self.advance_headers(direction)
    }

    /// Whether the filter at `step` asked to go on; the wish is spent.
    pub(super) fn wants_on(&mut self, direction: Direction, step: usize) -> bool {
        let index = self.filter(direction, step);
        let Some(cell) = self.cell.filters.get(index) else {
            return false;
        };
        let asked = cell.asked.get();
        cell.asked.set(asked.with_resume(direction, false));
        asked.resume(direction)
    }

    pub(super) fn close(&mut self, direction: Direction, step: usize, parts: Open) {
        let index = self.filter(direction, step);
        if let Some(cell) = self.cell.filters.get(index) {
            cell.open.set(cell.open.get().without(parts));
        }
    }

    /// What filters asked for outside of their own phases: an answer, a reset; or a VM that broke while it held the exchange.
    pub(super) fn pending(&mut self, direction: Direction) -> Option<Progress> {
        // Which direction was asked for says nothing about how far the exchange is.
        let at = if self.is_responding() {
            Direction::Response
        } else {
            Direction::Request
        };
        for index in 0..self.cell.filters.len() {
            let Some(cell) = self.cell.filters.get(index) else {
                continue;
            };
            let local = cell.local.borrow_mut().take();
            if let Some(local) = local {
                return Some(self.answered(at, index, local));
            }
            if cell.asked.get().close {
                return Some(self.finished_with(Progress::Reset));
            }
            if cell.broken.get() && self.is_held_by(direction, index) {
                return Some(self.refuse(direction, index));
            }
        }
        None
    }

    pub(super) fn is_held_by(&self, direction: Direction, index: usize) -> bool {
        let flow = self.flow_ref(direction);
        let of_headers = flow.stop.map(|_| flow.headers_step);
        let of_trailers = flow.trailers_held.then_some(flow.trailers_step);
        let mut steps = of_headers.into_iter().chain(of_trailers);
        steps.any(|step| self.filter(direction, step) == index)
            || self
                .cell
                .filters
                .get(index)
                .is_some_and(|cell| cell.held(direction).get().is_some())
    }
}
