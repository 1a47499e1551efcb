//! A configured control and the life of its exchanges, the same on every host: which callback is called with what.
//!
//! Invariant: without a configuration every request is refused.

use crate::body::{Body, View};
use crate::configuration::{self, ConfigError};
use crate::control::{Control, Metadata};
use crate::enforcement::{Enforcement, Flow};
use crate::error::Error;
use crate::exchange_log::Log;
use crate::filter::{CallAnswer, Filter, GrpcAnswer, Release};
use crate::grpc_call::GrpcCallResponse;
use crate::host::{ActiveHost, Buffer, Host, Level};
use crate::http_call::{CallId, HttpCallResponse};
use crate::json::Json;
use crate::log;
use crate::plugin_context::PluginContext;
use crate::request::Request;
use crate::response::Response;
use crate::schema;
use crate::scope::Scope;

/// A control on its host; configured or not yet.
pub struct Plugin<C: Control> {
    control: Option<C>,
    enforcement: Enforcement,
}

/// What is remembered of one exchange.
pub struct Exchange<C: Control> {
    state: C::State,
    /// The control has answered it; whatever follows is its own answer.
    answered: bool,
    /// The request is held in its headers.
    held: bool,
}

impl<C: Control> Default for Exchange<C> {
    fn default() -> Self {
        Self {
            state: C::State::default(),
            answered: false,
            held: false,
        }
    }
}

impl<C: Control> Exchange<C> {
    /// Whether the request is held in its headers.
    pub(crate) fn is_held(&self) -> bool {
        self.held
    }
}

impl<C: Control> Plugin<C> {
    /// Of a control that has its module to itself, or shares it.
    pub(crate) fn in_scope(scope: Scope) -> Self {
        Self {
            control: None,
            enforcement: Enforcement::new(scope),
        }
    }

    /// Configures the control; on failure it keeps what it had.
    pub(crate) fn configure_with(&mut self, tree: Json) -> Result<(), ConfigError> {
        let mut context = PluginContext::new(&self.enforcement.scope);
        let (tree, shadow) = configuration::take_shadow(tree)?;
        let control = C::configure(configuration::read(&tree)?, &mut context)?;
        self.control = Some(control);
        if shadow != self.enforcement.shadow {
            self.enforcement = Enforcement::new(self.enforcement.scope.clone());
            self.enforcement.shadow = shadow;
        }
        Ok(())
    }

    /// A piece of a body; `view` is what the control is shown of it.
    pub(crate) fn on_body(
        &mut self,
        exchange: &mut Exchange<C>,
        view: &mut View,
        end_of_stream: bool,
    ) -> Flow {
        let is_request = view.buffer == Buffer::RequestBody;
        let callback = match is_request {
            true => C::on_request_body,
            false => C::on_response_body,
        };
        let mut body = Body::new(&self.enforcement.scope, view, end_of_stream);
        let decision = match &mut self.control {
            Some(control) => callback(control, &mut exchange.state, &mut body),
            None => Err(Error::Missing("configuration")),
        };
        let held = body.is_held();
        if body.is_released() {
            exchange.held = false;
        }
        match self.enforcement.settle(&mut exchange.answered, decision) {
            Flow::Continue if held || (is_request && exchange.held) => Flow::Hold,
            flow => flow,
        }
    }
}

impl<C: Control> Filter for Plugin<C> {
    type Exchange = Exchange<C>;

    fn metadata() -> Metadata {
        C::METADATA
    }

    fn schema() -> serde_json::Value {
        schema::of_control::<C>()
    }

    fn new(host: ActiveHost) -> Self {
        Self::in_scope(Scope::alone(host, C::METADATA.name))
    }

    fn configure(&mut self) -> bool {
        let host = self.enforcement.scope.host.clone();
        let configured = configuration::tree(&host)
            .and_then(|tree| self.configure_with(tree).map_err(|error| error.line()));
        configured
            .map_err(|line| host.log(Level::Error, log::cut(&line)))
            .is_ok()
    }

    fn on_tick(&mut self) -> Vec<Release> {
        let mut context = PluginContext::new(&self.enforcement.scope);
        if let Some(control) = &mut self.control {
            control.on_tick(&mut context);
        }
        context.released()
    }

    fn on_http_call_response(&mut self, answer: CallAnswer) -> Vec<Release> {
        let scope = &self.enforcement.scope;
        let mut context = PluginContext::new(scope);
        if let Some(control) = &mut self.control {
            let response =
                HttpCallResponse::new(&scope.host, answer.header_count, answer.body_size);
            control.on_http_call_response(&mut context, CallId(answer.id), &response);
        }
        context.released()
    }

    fn on_grpc_call_response(&mut self, answer: GrpcAnswer) -> Vec<Release> {
        let scope = &self.enforcement.scope;
        let mut context = PluginContext::new(scope);
        if let Some(control) = &mut self.control {
            let response = GrpcCallResponse::new(&scope.host, answer.outcome);
            control.on_grpc_call_response(&mut context, CallId(answer.id), &response);
        }
        context.released()
    }

    fn on_request_headers(
        &mut self,
        exchange: &mut Exchange<C>,
        context: u32,
        end_of_stream: bool,
    ) -> Flow {
        let mut request = Request::new(&self.enforcement.scope, context, end_of_stream);
        let decision = match &mut self.control {
            Some(control) => control.on_request_headers(&mut exchange.state, &mut request),
            None => Err(Error::Missing("configuration")),
        };
        exchange.held = request.is_held();
        match self.enforcement.settle(&mut exchange.answered, decision) {
            Flow::Continue if exchange.held => Flow::Hold,
            flow => flow,
        }
    }

    fn on_request_body(
        &mut self,
        exchange: &mut Exchange<C>,
        size: usize,
        end_of_stream: bool,
    ) -> Flow {
        let mut view = View::whole(Buffer::RequestBody, size);
        self.on_body(exchange, &mut view, end_of_stream)
    }

    fn on_response_headers(&mut self, exchange: &mut Exchange<C>) -> Flow {
        let decision = match &mut self.control {
            Some(control) => {
                let mut response = Response::new(&self.enforcement.scope, exchange.answered);
                control.on_response_headers(&mut exchange.state, &mut response)
            }
            None => Err(Error::Missing("configuration")),
        };
        self.enforcement.settle(&mut exchange.answered, decision)
    }

    fn on_response_body(
        &mut self,
        exchange: &mut Exchange<C>,
        size: usize,
        end_of_stream: bool,
    ) -> Flow {
        let mut view = View::whole(Buffer::ResponseBody, size);
        self.on_body(exchange, &mut view, end_of_stream)
    }

    fn release(&mut self, exchange: &mut Exchange<C>, release: Release) -> Flow {
        if !std::mem::take(&mut exchange.held) {
            return Flow::Hold;
        }
        self.enforcement
            .settle(&mut exchange.answered, release.decision)
    }

    fn on_log(&mut self, exchange: &mut Exchange<C>) {
        if let Some(control) = &mut self.control {
            control.on_log(&exchange.state, &mut Log::new(&self.enforcement.scope));
        }
    }

    fn on_delete(&mut self, exchange: &mut Exchange<C>) {
        *exchange = Exchange::default();
    }
}
