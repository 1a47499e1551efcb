//! One phase of an exchange run through its filters, and what can be done where one of them holds it, as `phase` and `filtered` do it around sockets.

use bytes::Bytes;
use portcullis_runtime::{Callback, Chain, Direction, HttpStream, Progress};

use super::explanation::Decision;
use super::report::{self, Phase};
use super::run::Run;

/// How a phase ended.
pub(super) enum Settled {
    Passed,
    Respond,
    Reset,
    Held,
}

fn is_head(callback: Callback) -> bool {
    matches!(
        callback,
        Callback::RequestHeaders | Callback::ResponseHeaders
    )
}

impl Run<'_> {
    /// Headers through the filters. Where one holds them alone until it has seen the body, that is taken and shown as well: what comes of it then
    /// passes with them. Without a body, they are all there is.
    pub(super) fn head(
        &mut self,
        http: &mut HttpStream,
        direction: Direction,
        body: &mut Option<Bytes>,
    ) -> Settled {
        let end = body.as_ref().is_none_or(Bytes::is_empty);
        let settled = match direction {
            Direction::Request => self.phase(http, direction, Callback::RequestHeaders, |it| {
                it.request_headers(end)
            }),
            Direction::Response => self.phase(http, direction, Callback::ResponseHeaders, |it| {
                it.response_headers(end)
            }),
        };
        match body.take_if(|_| matches!(settled, Settled::Held) && http.wants_body(direction)) {
            Some(body) => self.whole_body(http, direction, body),
            None => settled,
        }
    }

    /// What passes the filters of a body, or has passed them with the headers.
    pub(super) fn body(
        &mut self,
        http: &mut HttpStream,
        filters: &Chain,
        direction: Direction,
        body: Option<Bytes>,
    ) -> Result<Bytes, Settled> {
        let callbacks = match direction {
            Direction::Request => [Callback::RequestBody, Callback::RequestTrailers],
            Direction::Response => [Callback::ResponseBody, Callback::ResponseTrailers],
        };
        if let Some(body) = body {
            if body.is_empty() || !self.reads(filters, &callbacks) {
                return Ok(body);
            }
            match self.whole_body(http, direction, body) {
                Settled::Passed => {}
                other => return Err(other),
            }
        }
        Ok(match direction {
            Direction::Request => http.take_request_body(),
            Direction::Response => http.take_response_body(),
        })
    }

    fn whole_body(&mut self, http: &mut HttpStream, direction: Direction, body: Bytes) -> Settled {
        match direction {
            Direction::Request => self.phase(http, direction, Callback::RequestBody, |it| {
                it.request_body(body, true)
            }),
            Direction::Response => self.phase(http, direction, Callback::ResponseBody, |it| {
                it.response_body(body, true)
            }),
        }
    }

    /// Runs a phase, and answers the callouts that hold it, if it can.
    fn phase(
        &mut self,
        http: &mut HttpStream,
        direction: Direction,
        callback: Callback,
        act: impl FnOnce(&mut HttpStream) -> Progress,
    ) -> Settled {
        self.phases.push(Phase {
            callback,
            begun: self.seen.borrow().len(),
        });
        let mut progress = act(http);
        loop {
            match progress {
                Progress::Continue => return Settled::Passed,
                Progress::Respond => return Settled::Respond,
                Progress::Reset => return Settled::Reset,
                Progress::Pause => {}
            }
            if is_head(callback) && http.wants_body(direction) {
                return Settled::Held;
            }
            let before = report::snapshot_of(http, direction);
            let woken = self.rehearsal.take_woken();
            if !self.rehearsal.deliver() && !woken && !self.rehearsal.pass() {
                return Settled::Held;
            }
            let changes = self
                .shown
                .diff(&before, &report::snapshot_of(http, direction));
            let mut seen = self.seen.borrow_mut();
            let holder = seen.iter().rev().find(|it| it.decision == Decision::Pause);
            if let Some(resumed) = holder.map(|it| it.resumed(changes, &self.rehearsal)) {
                seen.push(resumed);
            }
            drop(seen);
            progress = http.resume(direction);
        }
    }
}
