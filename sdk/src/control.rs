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
///
/// Every phase, and a call at each tick:
///
/// ```
/// use std::time::{Duration, SystemTime};
///
/// use portcullis_sdk::prelude::*;
/// use portcullis_sdk::testing::{Callout, Harness, Step, no_make};
/// # #[derive(serde::Deserialize, schemars::JsonSchema)]
/// # struct Config {}
///
/// /// Counts the bytes of both bodies, asks a service every minute, and tells clients how often it answered.
/// struct Bytes {
///     bytes: Counter,
///     answers: Counter,
/// }
///
/// impl Control for Bytes {
///     const METADATA: Metadata = Metadata::new(
///         "bytes",
///         "1.0.0",
///         Callbacks::REQUEST_BODY
///             .and(Callbacks::RESPONSE_HEADERS)
///             .and(Callbacks::RESPONSE_BODY)
///             .and(Callbacks::LOG)
///             .and(Callbacks::TICK)
///             .and(Callbacks::HTTP_CALL_RESPONSE),
///     );
///     type Config = Config;
///     /// Of one exchange.
///     type State = u64;
///
///     fn configure(_: Config, plugin: &mut PluginContext) -> Result<Self, ConfigError> {
///         plugin.set_tick_period(Duration::from_secs(60)).map_err(|_| ConfigError::new("", "no ticks"))?;
///         Ok(Self { bytes: plugin.counter("bytes"), answers: plugin.counter("answers") })
///     }
///
///     fn on_request_body(&mut self, state: &mut u64, body: &mut Body) -> Result<Decision, Error> {
///         *state += body.size() as u64;
///         Ok(Decision::Continue)
///     }
///
///     fn on_response_headers(&mut self, _: &mut u64, response: &mut Response) -> Result<Decision, Error> {
///         response.set_header("x-answers", self.answers.value().to_string())?;
///         Ok(Decision::Continue)
///     }
///
///     fn on_response_body(&mut self, state: &mut u64, body: &mut Body) -> Result<Decision, Error> {
///         *state += body.size() as u64;
///         Ok(Decision::Continue)
///     }
///
///     fn on_log(&mut self, state: &u64, _: &mut Log) {
///         self.bytes.increment(u32::try_from(*state).unwrap_or(u32::MAX));
///     }
///
///     fn on_tick(&mut self, plugin: &mut PluginContext) {
///         let headers = [(":method", "GET"), (":path", "/"), (":authority", "service")];
///         if let Err(error) = plugin.http_call("service", &headers, b"", Duration::from_secs(1)) {
///             plugin.log(Level::Warn, "not_asked", &[("reason", Field::Text(&error.to_string()))]);
///         }
///     }
///
///     fn on_http_call_response(&mut self, _: &mut PluginContext, _: CallId, answer: &HttpCallResponse) {
///         if matches!(answer.status(), Ok(Some(200))) {
///             self.answers.increment(1);
///         }
///     }
/// }
///
/// let mut harness = Harness::<Bytes>::new(SystemTime::UNIX_EPOCH);
/// harness.set_callouts(vec![Callout::new("service", 200)]);
/// harness.configure("{}")?;
/// harness.advance(Duration::from_secs(120), &no_make)?;
/// let mut step = Step::default();
/// step.request.body = "four".into(); // the answer's body is `ok`
/// let outcome = harness.exchange(&step, &no_make)?;
/// assert!(outcome.headers.contains(&(b"x-answers".to_vec(), b"2".to_vec())));
/// assert_eq!(harness.metric("portcullis.bytes.bytes"), Some(6));
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
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// # #[derive(serde::Deserialize, schemars::JsonSchema)]
    /// # struct Config {}
    /// # struct Grpc(Option<Vec<u8>>);
    /// # impl Control for Grpc {
    /// #     const METADATA: Metadata = Metadata::new("grpc", "1.0.0", Callbacks::GRPC_CALL_RESPONSE);
    /// #     type Config = Config;
    /// #     type State = ();
    /// #     fn configure(_: Config, _: &mut PluginContext) -> Result<Self, ConfigError> { Ok(Self(None)) }
    /// fn on_grpc_call_response(&mut self, plugin: &mut PluginContext, _: CallId, response: &GrpcCallResponse) {
    ///     match response.message(1024) {
    ///         Ok(message) => self.0 = Some(message),
    ///         Err(error) => plugin.log(Level::Warn, "no_answer", &[("reason", Field::Text(&error.to_string()))]),
    ///     }
    /// }
    /// # }
    /// ```
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
