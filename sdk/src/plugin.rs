//! A configured control and the life of its exchanges, the same on every host: which callback is called with what,
//! and what becomes of its answer.
//!
//! Invariants: a local response is final; an error is a refusal; without a configuration every request is refused.

use crate::body::Body;
use crate::configuration;
use crate::control::Control;
use crate::decision::{Decision, LocalResponse, Verdict};
use crate::decision_id::decision_id;
use crate::error::Error;
use crate::exchange_log::Log;
use crate::host::{ActiveHost, Buffer, Host, Level};
use crate::http_call::{CallId, HttpCallResponse};
use crate::limits;
use crate::log::{self, Field};
use crate::metric::Counter;
use crate::plugin_context::PluginContext;
use crate::request::Request;
use crate::response::Response;

/// Whether the host goes on with the phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// Hand it to the next filter.
    Continue,
    /// Hold it: more is wanted, or the exchange is answered.
    Pause,
}

/// A control on its host; configured or not yet.
pub(crate) struct Plugin<C: Control> {
    host: ActiveHost,
    control: Option<C>,
    /// One counter a reason, defined when it first occurs.
    refused: Vec<(&'static str, Counter)>,
}

/// What is remembered of one exchange.
pub(crate) struct Exchange<C: Control> {
    state: C::State,
    /// The control has answered it; whatever follows is its own answer.
    answered: bool,
}

impl<C: Control> Default for Exchange<C> {
    fn default() -> Self {
        Self {
            state: C::State::default(),
            answered: false,
        }
    }
}

impl<C: Control> Plugin<C> {
    const NAME: &'static str = C::METADATA.name;

    pub(crate) fn new(host: ActiveHost) -> Self {
        Self {
            host,
            control: None,
            refused: Vec::new(),
        }
    }

    /// Configures the control from the host's configuration buffer. On failure logs why, and keeps what it had.
    pub(crate) fn configure(&mut self) -> bool {
        let configured = match self.host.buffer(Buffer::Configuration, 0, usize::MAX) {
            Ok(json) => configuration::parse(&json)
                .and_then(|config| {
                    C::configure(config, &mut PluginContext::new(&self.host, Self::NAME))
                })
                .map_err(|error| error.line()),
            Err(_) => Err(String::from(
                "configuration: the host does not hand it over",
            )),
        };
        match configured {
            Ok(control) => {
                self.control = Some(control);
                true
            }
            Err(line) => {
                self.host.log(Level::Error, log::cut(&line));
                false
            }
        }
    }

    pub(crate) fn on_tick(&mut self) {
        if let Some(control) = &mut self.control {
            control.on_tick(&mut PluginContext::new(&self.host, Self::NAME));
        }
    }

    pub(crate) fn on_http_call_response(&mut self, id: u32, header_count: usize, body_size: usize) {
        if let Some(control) = &mut self.control {
            let response = HttpCallResponse::new(&self.host, header_count, body_size);
            let mut context = PluginContext::new(&self.host, Self::NAME);
            control.on_http_call_response(&mut context, CallId(id), &response);
        }
    }

    pub(crate) fn on_request_headers(
        &mut self,
        exchange: &mut Exchange<C>,
        end_of_stream: bool,
    ) -> Flow {
        let decision = match &mut self.control {
            Some(control) => {
                let mut request = Request::new(&self.host, Self::NAME, end_of_stream);
                control.on_request_headers(&mut exchange.state, &mut request)
            }
            None => Err(Error::Missing("configuration")),
        };
        self.settle(exchange, decision)
    }

    pub(crate) fn on_response_headers(&mut self, exchange: &mut Exchange<C>) -> Flow {
        let decision = match &mut self.control {
            Some(control) => {
                let mut response = Response::new(&self.host, Self::NAME, exchange.answered);
                control.on_response_headers(&mut exchange.state, &mut response)
            }
            None => Err(Error::Missing("configuration")),
        };
        self.settle(exchange, decision)
    }

    pub(crate) fn on_request_body(
        &mut self,
        exchange: &mut Exchange<C>,
        size: usize,
        end_of_stream: bool,
    ) -> Flow {
        self.on_body(
            exchange,
            Buffer::RequestBody,
            size,
            end_of_stream,
            C::on_request_body,
        )
    }

    pub(crate) fn on_response_body(
        &mut self,
        exchange: &mut Exchange<C>,
        size: usize,
        end_of_stream: bool,
    ) -> Flow {
        self.on_body(
            exchange,
            Buffer::ResponseBody,
            size,
            end_of_stream,
            C::on_response_body,
        )
    }

    pub(crate) fn on_log(&mut self, exchange: &Exchange<C>) {
        if let Some(control) = &mut self.control {
            control.on_log(&exchange.state, &mut Log::new(&self.host, Self::NAME));
        }
    }

    fn on_body(
        &mut self,
        exchange: &mut Exchange<C>,
        buffer: Buffer,
        size: usize,
        end_of_stream: bool,
        callback: fn(&mut C, &mut C::State, &mut Body<'_>) -> Result<Decision, Error>,
    ) -> Flow {
        let mut body = Body::new(&self.host, Self::NAME, buffer, size, end_of_stream);
        let decision = match &mut self.control {
            Some(control) => callback(control, &mut exchange.state, &mut body),
            None => Err(Error::Missing("configuration")),
        };
        let held = body.is_held();
        match self.settle(exchange, decision) {
            Flow::Continue if held => Flow::Pause,
            flow => flow,
        }
    }

    /// Carries a decision out.
    fn settle(&mut self, exchange: &mut Exchange<C>, decision: Result<Decision, Error>) -> Flow {
        match decision {
            Ok(Decision::Continue) => Flow::Continue,
            Ok(Decision::Respond(_)) if exchange.answered => Flow::Continue,
            Ok(Decision::Respond(response)) => {
                let id = decision_id(&self.host);
                match response.encode(&id) {
                    Ok((pairs, body)) => self.respond(exchange, &response, &id, &pairs, &body),
                    Err(error) => self.fail(exchange, &id, &error),
                }
            }
            Err(error) => {
                let id = decision_id(&self.host);
                self.fail(exchange, &id, &error)
            }
        }
    }

    /// An error is a refusal; what is already answered stays so.
    #[cold]
    fn fail(&mut self, exchange: &mut Exchange<C>, id: &str, error: &Error) -> Flow {
        self.log_decision(
            Level::Error,
            "error",
            "error",
            500,
            id,
            Some(&error.to_string()),
        );
        if exchange.answered {
            return Flow::Continue;
        }
        let response = LocalResponse::refuse(500, "error", "Internal Server Error");
        match response.encode(id) {
            Ok((pairs, body)) => self.respond(exchange, &response, id, &pairs, &body),
            Err(_) => self.host.trap(), // a constant answer always encodes
        }
    }

    /// Answers the exchange, logs and counts it.
    #[cold]
    fn respond(
        &mut self,
        exchange: &mut Exchange<C>,
        response: &LocalResponse,
        id: &str,
        pairs: &[u8],
        body: &[u8],
    ) -> Flow {
        exchange.answered = true;
        let (details, metric) = match response.verdict {
            Verdict::Answer => ("answer", None),
            Verdict::Redirect => {
                self.log_decision(
                    Level::Info,
                    "redirect",
                    "redirect",
                    response.status,
                    id,
                    None,
                );
                ("redirect", Some("redirected"))
            }
            Verdict::Refuse(reason) => {
                if reason != "error" {
                    self.log_decision(Level::Info, "refuse", reason, response.status, id, None);
                }
                (reason, Some(reason))
            }
        };
        if let Some(metric) = metric {
            self.count(metric);
        }
        match self
            .host
            .send_local_response(response.status, details, body, pairs)
        {
            Ok(()) => Flow::Pause,
            // The host will not take the answer, and a pass is no choice.
            Err(_) => self.host.trap(),
        }
    }

    fn count(&mut self, reason: &'static str) {
        if let Some((_, counter)) = self.refused.iter().find(|(known, _)| *known == reason) {
            return counter.increment(1);
        }
        if self.refused.len() < limits::REASONS_MAX {
            let name = if reason == "redirected" {
                String::from(reason)
            } else {
                ["refused.", reason].concat()
            };
            let counter = Counter::new(&self.host, Self::NAME, &name);
            counter.increment(1);
            self.refused.push((reason, counter));
        }
    }

    fn log_decision(
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
        log::push_json_string(&mut line, Self::NAME);
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
        line.push('}');
        self.host.log(level, log::cut(&line));
    }
}
