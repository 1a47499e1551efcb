//! The contract of a control: [`Control`] and its [`Metadata`].

use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use crate::body::Body;
use crate::callbacks::Callbacks;
use crate::configuration::ConfigError;
use crate::decision::Decision;
use crate::error::Error;
use crate::exchange_log::Log;
use crate::grpc_call::GrpcCallResponse;
use crate::http_call::{CallId, HttpCallResponse};
use crate::plugin_context::PluginContext;
use crate::request::Request;
use crate::response::Response;

/// What a control is called and what it does, known before it runs.
///
/// ```
/// use portcullis_sdk::{Callbacks, Metadata};
///
/// const METADATA: Metadata = Metadata::new("who", env!("CARGO_PKG_VERSION"), Callbacks::REQUEST_HEADERS).authenticates();
/// assert!(METADATA.authenticates && !METADATA.awaits_body);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// As in `builtin:NAME` and in metrics: lower-case letters, digits and `-`.
    pub name: &'static str,
    /// `env!("CARGO_PKG_VERSION")`.
    pub version: &'static str,
    /// Whether it authenticates or authorises: then a policy may not let requests by while it is down.
    pub authenticates: bool,
    /// Whether it awaits request bodies: then hosts must hand it the body while it holds the headers
    /// (`allow_on_headers_stop_iteration` in Envoy's `PluginConfig`, which `portcullis export` writes and our host sets).
    pub awaits_body: bool,
    /// The callbacks it implements; no other is called.
    pub callbacks: Callbacks,
}

impl Metadata {
    /// Of a control that neither authenticates nor authorises.
    pub const fn new(name: &'static str, version: &'static str, callbacks: Callbacks) -> Self {
        Self {
            name,
            version,
            authenticates: false,
            awaits_body: false,
            callbacks,
        }
    }

    /// The same, of a control that awaits request bodies.
    pub const fn awaits_body(self) -> Self {
        Self {
            awaits_body: true,
            ..self
        }
    }

    /// The same, of a control that authenticates or authorises.
    pub const fn authenticates(self) -> Self {
        Self {
            authenticates: true,
            ..self
        }
    }
}

/// A security control: one configured value serves every exchange of a VM, one at a time.
///
/// Callbacks come in the order of the exchange; each that the control implements is listed in
/// [`Metadata::callbacks`]. An `Err` is a refusal with 500, logged with its decision id.
///
/// ```
/// use std::time::SystemTime;
///
/// use portcullis_sdk::prelude::*;
/// use portcullis_sdk::testing::{Harness, Step, no_make};
///
/// /// Refuses every method that the operator has not named.
/// #[derive(serde::Deserialize, schemars::JsonSchema)]
/// #[serde(deny_unknown_fields)]
/// struct Methods {
///     methods: Vec<String>,
/// }
///
/// impl Control for Methods {
///     const METADATA: Metadata = Metadata::new("methods", "1.0.0", Callbacks::REQUEST_HEADERS);
///     type Config = Self;
///     type State = ();
///
///     fn configure(config: Self, _: &mut PluginContext) -> Result<Self, ConfigError> {
///         if config.methods.is_empty() {
///             return Err(ConfigError::new("methods", "must name at least one"));
///         }
///         Ok(config)
///     }
///
///     fn on_request_headers(&mut self, _: &mut (), request: &mut Request) -> Result<Decision, Error> {
///         let method = request.method()?;
///         if self.methods.iter().any(|known| known.as_bytes() == method.as_slice()) {
///             return Ok(Decision::Continue);
///         }
///         Ok(LocalResponse::refuse(405, "method", "Method Not Allowed").into())
///     }
/// }
///
/// let mut harness = Harness::<Methods>::new(SystemTime::UNIX_EPOCH);
/// harness.configure(r#"{"methods": ["POST"]}"#)?;
/// let mut step = Step::default();
/// assert_eq!(harness.exchange(&step, &no_make)?.status, 405); // a GET
/// step.request.method = "POST".into();
/// assert_eq!(harness.exchange(&step, &no_make)?.status, 200);
/// # Ok::<(), String>(())
/// ```
pub trait Control: Sized + 'static {
    /// What the control is called and what it does.
    const METADATA: Metadata;

    /// What an operator writes under `configuration`. Give it `#[serde(deny_unknown_fields)]` and defaults.
    type Config: DeserializeOwned + JsonSchema;

    /// What the control remembers of one exchange from one phase to the next; `()` if nothing.
    type State: Default + 'static;

    /// Parse, don't validate: all that can be wrong with a configuration is found here, before any request comes.
    fn configure(config: Self::Config, plugin: &mut PluginContext) -> Result<Self, ConfigError>;

    /// The request's headers are there.
    fn on_request_headers(
        &mut self,
        state: &mut Self::State,
        request: &mut Request<'_>,
    ) -> Result<Decision, Error> {
        let _ = (state, request);
        Ok(Decision::Continue)
    }

    /// A piece of the request's body is there.
    fn on_request_body(
        &mut self,
        state: &mut Self::State,
        body: &mut Body<'_>,
    ) -> Result<Decision, Error> {
        let _ = (state, body);
        Ok(Decision::Continue)
    }

    /// The response's headers are there: the upstream's, or those of a local response, this control's own included
    /// (see [`Response::is_own`]).
    fn on_response_headers(
        &mut self,
        state: &mut Self::State,
        response: &mut Response<'_>,
    ) -> Result<Decision, Error> {
        let _ = (state, response);
        Ok(Decision::Continue)
    }

    /// A piece of the response's body is there.
    fn on_response_body(
        &mut self,
        state: &mut Self::State,
        body: &mut Body<'_>,
    ) -> Result<Decision, Error> {
        let _ = (state, body);
        Ok(Decision::Continue)
    }

    /// The period set with [`PluginContext::set_tick_period`] is over.
    fn on_tick(&mut self, plugin: &mut PluginContext) {
        let _ = plugin;
    }

    /// An HTTP call is answered, or failed.
    fn on_http_call_response(
        &mut self,
        plugin: &mut PluginContext,
        call: CallId,
        response: &HttpCallResponse<'_>,
    ) {
        let _ = (plugin, call, response);
    }

    /// A gRPC call is answered, or failed.
    fn on_grpc_call_response(
        &mut self,
        plugin: &mut PluginContext,
        call: CallId,
        response: &GrpcCallResponse<'_>,
    ) {
        let _ = (plugin, call, response);
    }

    /// The exchange is over.
    fn on_log(&mut self, state: &Self::State, log: &mut Log<'_>) {
        let _ = (state, log);
    }
}
