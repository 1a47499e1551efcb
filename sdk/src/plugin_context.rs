//! A plugin outside of any exchange: while it is configured, at ticks, and when its HTTP calls are answered.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::decision::Decision;
use crate::error::Error;
use crate::filter::Release;
use crate::foreign::Foreign;
use crate::host::{Host, Level};
use crate::http_call::CallId;
use crate::log::{self, Field};
use crate::metric::{Counter, Gauge, Histogram};
use crate::request::Held;
use crate::scope::Scope;
use crate::shared_data::SharedData;

/// What a plugin can do outside of any exchange.
///
/// ```
/// use std::time::Duration;
///
/// use portcullis_sdk::prelude::*;
///
/// /// What a control's `configure` may ask of the host.
/// fn start(plugin: &mut PluginContext) -> Result<Counter, Error> {
///     plugin.declare_owned_request_headers(&["x-user"]);
///     plugin.set_tick_period(Duration::from_secs(60))?;
///     plugin.log(Level::Info, "started", &[("headers", Field::Number(1))]);
///     Ok(plugin.counter("users"))
/// }
/// ```
#[derive(Debug)]
pub struct PluginContext {
    scope: Scope,
    released: Vec<Release>,
}

impl PluginContext {
    pub(crate) fn new(scope: &Scope) -> Self {
        Self {
            scope: scope.clone(),
            released: Vec::new(),
        }
    }

    /// What becomes of a request that was held: it goes on, is answered, or (an error) is refused with 500. One that is
    /// over by now is left alone. Two hostcalls, after this callback has returned.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// No list came in time: an error is a refusal.
    /// fn give_up(held: Held, plugin: &mut PluginContext) {
    ///     plugin.release(held, Err(Error::new("no list came")));
    /// }
    /// ```
    pub fn release(&mut self, held: Held, decision: Result<Decision, Error>) {
        self.released.push(Release {
            context: held.0,
            control: 0,
            decision,
        });
    }

    /// Until the callback is over, hostcalls act on an exchange.
    pub(crate) fn set_effective_context(&self, context: u32) -> Result<(), Error> {
        self.scope
            .host
            .set_effective_context(context)
            .map_err(Error::host("proxy_set_effective_context"))
    }

    pub(crate) fn set_alarm(&self, at_ns: u64) -> Result<(), Error> {
        self.scope.set_alarm(at_ns)
    }

    pub(crate) fn now_ns(&self) -> u64 {
        self.scope.host.now_ns()
    }

    pub(crate) fn released(self) -> Vec<Release> {
        self.released
    }

    /// The host's clock. One hostcall.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// # use std::time::{Duration, SystemTime};
    /// /// Whether it is time to fetch the list again.
    /// fn is_due(plugin: &PluginContext, fetched: SystemTime) -> bool {
    ///     plugin.now() >= fetched + Duration::from_secs(300)
    /// }
    /// ```
    pub fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(self.scope.host.now_ns())
    }

    /// Logs `{"control": …, "event": …, fields…}`; no token, no secret. One hostcall.
    pub fn log(&self, level: Level, event: &str, fields: &[(&str, Field<'_>)]) {
        log::event(&self.scope.host, self.scope.control, level, event, fields);
    }

    /// Values shared by all VMs of this plugin.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// For other workers.
    /// fn publish(plugin: &PluginContext, list: &[u8]) -> Result<(), Error> {
    ///     let _ = plugin.shared_data().set("list", list, None)?;
    ///     Ok(())
    /// }
    /// ```
    pub fn shared_data(&self) -> SharedData {
        SharedData::new(&self.scope)
    }

    /// The host's foreign functions.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// Kept in the control: it outlives the callback.
    /// fn configure(plugin: &PluginContext) -> Foreign {
    ///     plugin.foreign()
    /// }
    /// ```
    pub fn foreign(&self) -> Foreign {
        Foreign::new(&self.scope.host)
    }

    /// Calls [`on_tick`](crate::Control::on_tick) every `period` from now on, in whole milliseconds, at least one; zero
    /// ends it. List [`Callbacks::TICK`](crate::Callbacks::TICK). One hostcall.
    pub fn set_tick_period(&self, period: Duration) -> Result<(), Error> {
        self.scope.set_tick_period(whole_ms(period))
    }

    /// Starts an HTTP call to a cluster that the operator lets this plugin call; the answer comes to
    /// [`on_http_call_response`](crate::Control::on_http_call_response). `headers` must have `:method`, `:path` and
    /// `:authority`; an unknown cluster is an error. One hostcall.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// # use std::time::Duration;
    /// /// At a tick; the answer comes to `on_http_call_response`.
    /// fn fetch(plugin: &PluginContext) -> Result<CallId, Error> {
    ///     let headers = [(":method", "GET"), (":path", "/list"), (":authority", "lists.test")];
    ///     plugin.http_call("lists", &headers, b"", Duration::from_secs(5))
    /// }
    /// ```
    pub fn http_call(
        &self,
        cluster: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        timeout: Duration,
    ) -> Result<CallId, Error> {
        let id = self
            .scope
            .http_call(cluster, headers, body, whole_ms(timeout));
        id.map(CallId)
    }

    /// Starts a gRPC call of one message to a cluster that the operator lets this plugin call (with `protocol: http2`);
    /// the answer comes to [`on_grpc_call_response`](crate::Control::on_grpc_call_response). `service` is its full name, as in
    /// `envoy.service.auth.v3.Authorization`; an unknown cluster is an error. One hostcall.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// # use std::time::Duration;
    /// /// `message` is a `HealthCheckRequest` as protobuf writes it.
    /// fn ask(plugin: &PluginContext, message: &[u8]) -> Result<CallId, Error> {
    ///     plugin.grpc_call("lists", "grpc.health.v1.Health", "Check", message, Duration::from_secs(5))
    /// }
    /// ```
    pub fn grpc_call(
        &self,
        cluster: &str,
        service: &str,
        method: &str,
        message: &[u8],
        timeout: Duration,
    ) -> Result<CallId, Error> {
        let timeout = whole_ms(timeout);
        let id = self
            .scope
            .grpc_call(cluster, (service, method), message, timeout);
        id.map(CallId)
    }

    /// Names the request headers that this control sets. Its own filter removes what a client sends under these names;
    /// the Portcullis host also removes it on routes where the filter is off. Envoy ignores the call. One hostcall.
    pub fn declare_owned_request_headers(&mut self, names: &[&str]) {
        // Envoy answers NOT_FOUND outside of an exchange; there the export does the removing.
        let _ = self.scope.host.set_property(
            "portcullis.owned_request_headers",
            names.join("\0").as_bytes(),
        );
    }

    /// A counter `portcullis.<control>.<name>`. One hostcall.
    pub fn counter(&self, name: &str) -> Counter {
        Counter::new(&self.scope.host, self.scope.control, name)
    }

    /// A gauge `portcullis.<control>.<name>`. One hostcall.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// How old the list is: `portcullis.<control>.list_age_s`.
    /// fn tell(plugin: &PluginContext, age_s: u64) {
    ///     plugin.gauge("list_age_s").set(age_s);
    /// }
    /// ```
    pub fn gauge(&self, name: &str) -> Gauge {
        Gauge::new(&self.scope.host, self.scope.control, name)
    }

    /// A histogram `portcullis.<control>.<name>`. One hostcall.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// `portcullis.<control>.list_bytes`
    /// fn measure(plugin: &PluginContext, list: &[u8]) {
    ///     plugin.histogram("list_bytes").record(list.len().try_into().unwrap_or(u64::MAX));
    /// }
    /// ```
    pub fn histogram(&self, name: &str) -> Histogram {
        Histogram::new(&self.scope.host, self.scope.control, name)
    }

    /// Fills `out` with random bytes from the host. One hostcall.
    ///
    /// ```
    /// # use portcullis_sdk::prelude::*;
    /// /// A key of this VM's own.
    /// fn key(plugin: &PluginContext) -> [u8; 32] {
    ///     let mut key = [0; 32];
    ///     plugin.random(&mut key);
    ///     key
    /// }
    /// ```
    pub fn random(&self, out: &mut [u8]) {
        self.scope.host.random(out);
    }
}

/// Rounded up, so that what is not zero does not become it.
pub(crate) fn whole_ms(duration: Duration) -> u32 {
    u32::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX)
}
