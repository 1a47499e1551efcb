//! What becomes of a decision: the answer is sent, logged and counted; or, in shadow mode, only logged and counted.
//!
//! Invariants: a local response is final; an error is a refusal.

use crate::decision::{Decision, LocalResponse, Verdict};
use crate::decision_id::decision_id;
use crate::error::Error;
use crate::host::{Host, Level};
use crate::limits;
use crate::log::{self, Field};
use crate::metric::Counter;
use crate::scope::Scope;

/// Whether the host goes on with the phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Hand it to the next filter.
    Continue,
    /// Hold it: more is wanted.
    Hold,
    /// The exchange is answered; it goes no further.
    Answered,
}

/// Carries the decisions of one control out.
pub(crate) struct Enforcement {
    pub(crate) scope: Scope,
    /// Decide, log and count, but let everything pass.
    pub(crate) shadow: bool,
    /// One counter a reason, defined when it first occurs.
    counters: Vec<(&'static str, Counter)>,
}

impl Enforcement {
    pub(crate) fn new(scope: Scope) -> Self {
        Self {
            scope,
            shadow: false,
            counters: Vec::new(),
        }
    }

    /// Carries a decision out. What is already `answered` stays so.
    pub(crate) fn settle(
        &mut self,
        answered: &mut bool,
        decision: Result<Decision, Error>,
    ) -> Flow {
        match decision {
            Ok(Decision::Continue) => Flow::Continue,
            Ok(Decision::Respond(_)) if *answered => Flow::Continue,
            Ok(Decision::Respond(response)) => self.respond(answered, &response),
            Err(error) => self.fail(answered, &error),
        }
    }

    /// Answers with what the control decided.
    #[cold]
    fn respond(&mut self, answered: &mut bool, response: &LocalResponse) -> Flow {
        let id = decision_id(&self.scope.host);
        match response.encode(&id) {
            Ok((pairs, body)) => self.send(answered, response, &id, &pairs, &body),
            Err(error) => self.fail_as(answered, &id, &error),
        }
    }

    /// An error is a refusal.
    #[cold]
    fn fail(&mut self, answered: &mut bool, error: &Error) -> Flow {
        let id = decision_id(&self.scope.host);
        self.fail_as(answered, &id, error)
    }

    fn fail_as(&mut self, answered: &mut bool, id: &str, error: &Error) -> Flow {
        let text = error.to_string();
        self.log(Level::Error, "error", "error", 500, id, Some(&text));
        if *answered {
            return Flow::Continue;
        }
        let response = LocalResponse::refuse(500, "error", "Internal Server Error");
        match response.encode(id) {
            Ok((pairs, body)) => self.send(answered, &response, id, &pairs, &body),
            Err(_) => self.scope.host.trap(), // a constant answer always encodes
        }
    }

    fn send(
        &mut self,
        answered: &mut bool,
        response: &LocalResponse,
        id: &str,
        pairs: &[u8],
        body: &[u8],
    ) -> Flow {
        let status = response.status;
        let details = match response.verdict {
            Verdict::Answer => "answer",
            Verdict::Redirect => {
                self.log(Level::Info, "redirect", "redirect", status, id, None);
                self.count("redirected");
                "redirect"
            }
            Verdict::Refuse(reason) => {
                if reason != "error" {
                    self.log(Level::Info, "refuse", reason, status, id, None);
                }
                self.count(reason);
                reason
            }
        };
        if self.shadow {
            return Flow::Continue;
        }
        *answered = true;
        let sent = self
            .scope
            .host
            .send_local_response(status, details, body, pairs);
        match sent {
            Ok(()) => Flow::Answered,
            // The host will not take the answer, and a pass is no choice.
            Err(_) => self.scope.host.trap(),
        }
    }

    fn count(&mut self, reason: &'static str) {
        if let Some((_, counter)) = self.counters.iter().find(|(known, _)| *known == reason) {
            return counter.increment(1);
        }
        if self.counters.len() < limits::REASONS_MAX {
            let shadow = if self.shadow { "shadow." } else { "" };
            let refused = if reason == "redirected" {
                ""
            } else {
                "refused."
            };
            let name = [shadow, refused, reason].concat();
            let counter = Counter::new(&self.scope.host, self.scope.control, &name);
            counter.increment(1);
            self.counters.push((reason, counter));
        }
    }

    /// The audit event: one line of JSON a decision that is not a pass.
    fn log(
        &self,
        level: Level,
        decision: &str,
        reason: &str,
        status: u16,
        id: &str,
        error: Option<&str>,
    ) {
        let mut line = String::with_capacity(192);
        line.push_str("{\"control\":");
        log::push_json_string(&mut line, self.scope.control);
        log::push_fields(
            &mut line,
            &[
                ("decision", Field::Text(decision)),
                ("reason", Field::Text(reason)),
                ("status", Field::Number(u64::from(status))),
                ("decision_id", Field::Text(id)),
            ],
        );
        if let Some(error) = error {
            log::push_fields(&mut line, &[("error", Field::Text(error))]);
        }
        if self.shadow {
            line.push_str(",\"shadow\":true");
        }
        line.push('}');
        self.scope.host.log(level, log::cut(&line));
    }
}
