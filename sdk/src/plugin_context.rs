//! A plugin outside of any exchange: while it is configured, at ticks, and when its HTTP calls are answered.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::Error;
use crate::foreign::Foreign;
use crate::host::{ActiveHost, Host, Level};
use crate::http_call::CallId;
use crate::log::{self, Field};
use crate::metric::{Counter, Gauge, Histogram};
use crate::shared_data::SharedData;

/// What a plugin can do outside of any exchange.
#[derive(Debug)]
pub struct PluginContext {
    host: ActiveHost,
    control: &'static str,
}

impl PluginContext {
    pub(crate) fn new(host: &ActiveHost, control: &'static str) -> Self {
        Self {
            host: host.clone(),
            control,
        }
    }

    /// The host's clock. One hostcall.
    pub fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(self.host.now_ns())
    }

    /// Logs `{"control": …, "event": …, fields…}`; no token, no secret. One hostcall.
    pub fn log(&self, level: Level, event: &str, fields: &[(&str, Field<'_>)]) {
        log::event(&self.host, self.control, level, event, fields);
    }

    /// Values shared by all VMs of this plugin.
    pub fn shared_data(&self) -> SharedData {
        SharedData::new(&self.host)
    }

    /// The host's foreign functions.
    pub fn foreign(&self) -> Foreign {
        Foreign::new(&self.host)
    }

    /// Calls [`on_tick`](crate::Control::on_tick) every `period` from now on, in whole milliseconds, at least one; zero
    /// ends it. List [`Callbacks::TICK`](crate::Callbacks::TICK). One hostcall.
    pub fn set_tick_period(&self, period: Duration) -> Result<(), Error> {
        self.host
            .set_tick_period(whole_ms(period))
            .map_err(Error::host("proxy_set_tick_period_milliseconds"))
    }

    /// Starts an HTTP call to a cluster that the operator lets this plugin call; the answer comes to
    /// [`on_http_call_response`](crate::Control::on_http_call_response). `headers` must have `:method`, `:path` and
    /// `:authority`; an unknown cluster is an error. One hostcall.
    pub fn http_call(
        &self,
        cluster: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        timeout: Duration,
    ) -> Result<CallId, Error> {
        let id = self
            .host
            .http_call(cluster, headers, body, whole_ms(timeout));
        id.map(CallId).map_err(Error::host("proxy_http_call"))
    }

    /// Names the request headers that this control sets. Its own filter removes what a client sends under these names;
    /// the Portcullis host also removes it on routes where the filter is off. Envoy ignores the call. One hostcall.
    pub fn declare_owned_request_headers(&mut self, names: &[&str]) {
        // Envoy answers NOT_FOUND outside of an exchange; there the export does the removing.
        let _ = self.host.set_property(
            "portcullis.owned_request_headers",
            names.join("\0").as_bytes(),
        );
    }

    /// A counter `portcullis.<control>.<name>`. One hostcall.
    pub fn counter(&self, name: &str) -> Counter {
        Counter::new(&self.host, self.control, name)
    }

    /// A gauge `portcullis.<control>.<name>`. One hostcall.
    pub fn gauge(&self, name: &str) -> Gauge {
        Gauge::new(&self.host, self.control, name)
    }

    /// A histogram `portcullis.<control>.<name>`. One hostcall.
    pub fn histogram(&self, name: &str) -> Histogram {
        Histogram::new(&self.host, self.control, name)
    }

    /// Fills `out` with random bytes from the host. One hostcall.
    pub fn random(&self, out: &mut [u8]) {
        self.host.random(out);
    }
}

/// Rounded up, so that what is not zero does not become it.
fn whole_ms(duration: Duration) -> u32 {
    u32::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX)
}
