//! A control among others: [`Part`], which hides the control's type, and keeps the states of all its exchanges.

use crate::body::View;
use crate::callbacks::Callbacks;
use crate::configuration::ConfigError;
use crate::control::Control;
use crate::decision::Decision;
use crate::enforcement::{Enforcement, Flow};
use crate::error::Error;
use crate::filter::{CallAnswer, Filter, GrpcAnswer, Release};
use crate::host::{ActiveHost, Buffer};
use crate::json::Json;
use crate::plugin::{Exchange, Plugin};
use crate::scope::Scope;

/// Which way a body goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Request,
    Response,
}

impl Direction {
    pub(super) fn callback(self) -> Callbacks {
        match self {
            Self::Request => Callbacks::REQUEST_BODY,
            Self::Response => Callbacks::RESPONSE_BODY,
        }
    }

    /// Which control comes at a step, of those that the exchange has reached.
    pub(super) fn order(self, step: usize, entered: usize) -> usize {
        match self {
            Self::Request => step,
            Self::Response => entered.saturating_sub(step + 1),
        }
    }
}

/// A control among others; `place` says which exchange.
pub(super) trait Part {
    fn configure(&mut self, tree: Json) -> Result<(), ConfigError>;
    /// Has states for so many exchanges.
    fn make_room(&mut self, places: usize);
    fn on_tick(&mut self) -> Vec<Release>;
    fn on_http_call_response(&mut self, answer: CallAnswer) -> Vec<Release>;
    fn on_grpc_call_response(&mut self, answer: GrpcAnswer) -> Vec<Release>;
    fn on_request_headers(&mut self, place: usize, context: u32, end_of_stream: bool) -> Flow;
    fn on_response_headers(&mut self, place: usize) -> Flow;
    /// `body` is how much of what is held it has seen, and how much is held; the latter comes back.
    fn on_body(
        &mut self,
        place: usize,
        direction: Direction,
        body: (usize, usize),
        end_of_stream: bool,
    ) -> (Flow, usize);
    fn release(&mut self, place: usize, release: Release) -> Flow;
    /// Whether it holds the request's headers.
    fn holds(&mut self, place: usize) -> bool;
    fn on_log(&mut self, place: usize);
    fn on_delete(&mut self, place: usize);
}

/// A control and the states of its exchanges.
pub(super) struct Slot<C: Control> {
    plugin: Plugin<C>,
    exchanges: Vec<Exchange<C>>,
}

impl<C: Control> Slot<C> {
    pub(super) fn new(scope: Scope) -> Self {
        Self {
            plugin: Plugin::in_scope(scope),
            exchanges: Vec::new(),
        }
    }

    /// Calls the plugin for an exchange. Every place that is given out has a state, so the other branch is a fault of
    /// this file: the module ends rather than let a request by.
    fn at<T>(
        &mut self,
        place: usize,
        call: impl FnOnce(&mut Plugin<C>, &mut Exchange<C>) -> T,
    ) -> T {
        match self.exchanges.get_mut(place) {
            Some(exchange) => call(&mut self.plugin, exchange),
            None => std::process::abort(),
        }
    }
}

impl<C: Control> Part for Slot<C> {
    fn configure(&mut self, tree: Json) -> Result<(), ConfigError> {
        self.plugin.configure_with(tree)
    }

    fn make_room(&mut self, places: usize) {
        if self.exchanges.len() < places {
            self.exchanges.resize_with(places, Exchange::default);
        }
    }

    fn on_tick(&mut self) -> Vec<Release> {
        self.plugin.on_tick()
    }

    fn on_http_call_response(&mut self, answer: CallAnswer) -> Vec<Release> {
        self.plugin.on_http_call_response(answer)
    }

    fn on_grpc_call_response(&mut self, answer: GrpcAnswer) -> Vec<Release> {
        self.plugin.on_grpc_call_response(answer)
    }

    fn on_request_headers(&mut self, place: usize, context: u32, end_of_stream: bool) -> Flow {
        self.at(place, |plugin, exchange| {
            plugin.on_request_headers(exchange, context, end_of_stream)
        })
    }

    fn on_response_headers(&mut self, place: usize) -> Flow {
        self.at(place, Plugin::on_response_headers)
    }

    fn on_body(
        &mut self,
        place: usize,
        direction: Direction,
        (from, size): (usize, usize),
        end_of_stream: bool,
    ) -> (Flow, usize) {
        let mut view = View {
            buffer: match direction {
                Direction::Request => Buffer::RequestBody,
                Direction::Response => Buffer::ResponseBody,
            },
            from,
            size: size.saturating_sub(from),
        };
        let flow = self.at(place, |plugin, exchange| {
            plugin.on_body(exchange, &mut view, end_of_stream)
        });
        (flow, view.from.saturating_add(view.size))
    }

    fn release(&mut self, place: usize, release: Release) -> Flow {
        self.at(place, |plugin, exchange| plugin.release(exchange, release))
    }

    fn holds(&mut self, place: usize) -> bool {
        self.at(place, |_, exchange| exchange.is_held())
    }

    fn on_log(&mut self, place: usize) {
        self.at(place, Plugin::on_log);
    }

    fn on_delete(&mut self, place: usize) {
        self.at(place, Plugin::on_delete);
    }
}

/// Without a configuration every request is refused.
#[cold]
pub(super) fn refuse_unconfigured(host: &ActiveHost) -> Flow {
    let missing: Result<Decision, Error> = Err(Error::Missing("configuration"));
    Enforcement::new(Scope::alone(host.clone(), "policy")).settle(&mut false, missing)
}
