//! What stands behind a root context: [`Filter`], one control ([`Plugin`](crate::plugin::Plugin)) or a policy of
//! several. The module's exports and the native harness drive both in the same way.

use crate::control::Metadata;
use crate::decision::Decision;
use crate::enforcement::Flow;
use crate::error::Error;
use crate::host::ActiveHost;

/// A configured filter and its callbacks, in the order of an exchange.
pub trait Filter: Sized + 'static {
    /// What is remembered of one exchange.
    type Exchange: Default + 'static;

    /// Which callbacks there are, and what they need.
    fn metadata() -> Metadata;
    /// The JSON Schema of its configuration.
    fn schema() -> serde_json::Value;
    /// Not yet configured.
    fn new(host: ActiveHost) -> Self;
    /// Takes the configuration from the host's buffer. On failure logs why, and keeps what it had.
    fn configure(&mut self) -> bool;
    /// What is held and may go on now.
    fn on_tick(&mut self) -> Vec<Release>;
    /// What is held and may go on now.
    fn on_http_call_response(&mut self, answer: CallAnswer) -> Vec<Release>;
    /// What is held and may go on now.
    fn on_grpc_call_response(&mut self, answer: GrpcAnswer) -> Vec<Release>;
    /// `context` is the exchange's id, by which it can be released.
    fn on_request_headers(
        &mut self,
        exchange: &mut Self::Exchange,
        context: u32,
        end_of_stream: bool,
    ) -> Flow;
    /// `size` bytes are held.
    fn on_request_body(
        &mut self,
        exchange: &mut Self::Exchange,
        size: usize,
        end_of_stream: bool,
    ) -> Flow;
    /// The upstream's, or a local response.
    fn on_response_headers(&mut self, exchange: &mut Self::Exchange) -> Flow;
    /// `size` bytes are held.
    fn on_response_body(
        &mut self,
        exchange: &mut Self::Exchange,
        size: usize,
        end_of_stream: bool,
    ) -> Flow;
    /// Goes on with the request phases of an exchange that was held.
    fn release(&mut self, exchange: &mut Self::Exchange, release: Release) -> Flow;
    /// The exchange is over.
    fn on_log(&mut self, exchange: &mut Self::Exchange);
    /// Its context is gone: `exchange` is made fit for another.
    fn on_delete(&mut self, exchange: &mut Self::Exchange);
}

/// An HTTP call is answered, or failed (no headers).
#[derive(Clone, Copy, Debug)]
pub struct CallAnswer {
    pub(crate) id: u32,
    pub(crate) header_count: usize,
    pub(crate) body_size: usize,
}

/// A gRPC call is answered, by a message or by a status.
#[derive(Clone, Copy, Debug)]
pub struct GrpcAnswer {
    pub(crate) id: u32,
    /// Bytes of the message, or the status.
    pub(crate) outcome: Result<usize, u32>,
}

/// An exchange that was held, and what was decided about it.
#[derive(Debug)]
pub struct Release {
    pub(crate) context: u32,
    /// Which control of a policy says so; 0 where there is one.
    pub(crate) control: usize,
    pub(crate) decision: Result<Decision, Error>,
}
