//! Going on after a pause, and what filters ask for outside of their own phases.

use super::{HttpStream, Part, Progress};
use crate::{exchange::Direction, stream::Open};

impl HttpStream {
    pub(super) fn try_resume(&mut self, direction: Direction) -> Result<(), Progress> {
        match self.flow(direction).paused {
            Some(Part::Headers) => {
                let step = self.flow(direction).headers_step;
                if !self.wants_on(direction, step) {
                    return Ok(());
                }
                self.close(
                    direction,
                    step,
                    Open::REQUEST_HEADERS.with(Open::RESPONSE_HEADERS),
                );
                let flow = self.flow(direction);
                flow.paused = None;
                flow.headers_step = step + 1;
                self.advance_headers(direction)?;
                return self.feed_early(direction);
            }
            Some(Part::Trailers) => {
                let step = self.flow(direction).trailers_step;
                if self.wants_on(direction, step) {
                    self.close(
                        direction,
                        step,
                        Open::REQUEST_TRAILERS.with(Open::RESPONSE_TRAILERS),
                    );
                    self.flow(direction).paused = None;
                    self.release(direction, step)?;
                    self.flow(direction).trailers_step = step + 1;
                    self.advance_trailers(direction)?;
                }
            }
            None => {}
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

    /// Body and trailers that came while headers were held.
    pub(super) fn feed_early(&mut self, direction: Direction) -> Result<(), Progress> {
        let flow = self.flow(direction);
        if flow.paused.is_some() {
            return Ok(());
        }
        let (bytes, end, trailers, from) = (
            flow.early.take(),
            flow.early_end,
            flow.early_trailers,
            flow.body_from,
        );
        flow.early_end = false;
        flow.early_trailers = false;
        if !bytes.is_empty() || end {
            self.feed(direction, from, bytes, end)?;
        }
        if trailers {
            self.advance_trailers(direction)?;
        }
        Ok(())
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

    pub(super) fn is_held_by(&mut self, direction: Direction, index: usize) -> bool {
        let step = match self.flow(direction).paused {
            Some(Part::Headers) => Some(self.flow(direction).headers_step),
            Some(Part::Trailers) => Some(self.flow(direction).trailers_step),
            None => None,
        };
        step.is_some_and(|step| self.filter(direction, step) == index)
            || self
                .cell
                .filters
                .get(index)
                .is_some_and(|cell| cell.held(direction).get().is_some())
    }
}
