//! gRPC calls of a plugin's own, to the host's clusters: one message there, one message or a status back.

use std::borrow::Cow;
use std::fmt;

use crate::error::Error;
use crate::host::{ActiveHost, Buffer, Host};

/// The answer to a gRPC call, readable while it is delivered.
///
/// ```
/// use portcullis_sdk::prelude::*;
///
/// /// What a control's `on_grpc_call_response` may make of it.
/// fn length(response: &GrpcCallResponse) -> Result<usize, Error> {
///     Ok(response.message(64 * 1024)?.len())
/// }
/// ```
#[derive(Debug)]
pub struct GrpcCallResponse<'a> {
    host: &'a ActiveHost,
    /// Bytes of the message, or the status.
    outcome: Result<usize, u32>,
}

impl<'a> GrpcCallResponse<'a> {
    pub(crate) fn new(host: &'a ActiveHost, outcome: Result<usize, u32>) -> Self {
        Self { host, outcome }
    }

    /// The message, as protobuf encodes it, or the status that the call ended with; longer than `max` is an error, too.
    /// One hostcall.
    pub fn message(&self, max: usize) -> Result<Vec<u8>, GrpcError> {
        match self.outcome {
            Ok(0) => Ok(Vec::new()),
            Ok(size) if size > max => {
                let reason = "the message is too long";
                Err(GrpcError::new(GrpcError::RESOURCE_EXHAUSTED, reason))
            }
            Ok(size) => {
                let message = self.host.buffer(Buffer::GrpcMessage, 0, size);
                message.map_err(|status| {
                    let error = Error::host("proxy_get_buffer_bytes")(status);
                    GrpcError::new(GrpcError::INTERNAL, error.to_string())
                })
            }
            Err(status) => {
                let message = self.host.grpc_status().map(|(_, message)| message);
                let message = message.unwrap_or_default();
                let message = String::from_utf8_lossy(&message).into_owned();
                // Envoy ends some calls that brought no message with a status of 0: no answer is no success.
                let status = if status == 0 {
                    GrpcError::INTERNAL
                } else {
                    status
                };
                Err(GrpcError::new(status, message))
            }
        }
    }
}

/// How a gRPC call ended that was not answered by a message.
///
/// ```
/// use portcullis_sdk::GrpcError;
///
/// /// Whether to ask again may help.
/// fn is_passing(error: &GrpcError) -> bool {
///     error.status() == GrpcError::UNAVAILABLE
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct GrpcError {
    status: u32,
    message: Cow<'static, str>,
}

impl GrpcError {
    /// It took too long.
    pub const DEADLINE_EXCEEDED: u32 = 4;
    /// The answer is longer than is taken.
    pub const RESOURCE_EXHAUSTED: u32 = 8;
    /// The answer is none.
    pub const INTERNAL: u32 = 13;
    /// Nobody could be asked.
    pub const UNAVAILABLE: u32 = 14;

    /// Of a status and what is said of it, as a stand-in for a service's answer.
    ///
    /// ```
    /// # use portcullis_sdk::GrpcError;
    /// let error = GrpcError::new(7, "not you");
    /// assert_eq!(error.to_string(), "the gRPC call ended with status 7: not you");
    /// ```
    pub fn new(status: u32, message: impl Into<Cow<'static, str>>) -> Self {
        let message = message.into();
        Self { status, message }
    }

    /// The gRPC status, never 0; hosts give 4294967295 for one that is no number.
    ///
    /// ```
    /// # use portcullis_sdk::GrpcError;
    /// assert_eq!(GrpcError::new(7, "not you").status(), 7);
    /// ```
    pub fn status(&self) -> u32 {
        self.status
    }

    /// What the service or the host says of it; may be empty. It is the service's text: log it, never send it on.
    ///
    /// ```
    /// # use portcullis_sdk::GrpcError;
    /// assert_eq!(GrpcError::new(7, "not you").message(), "not you");
    /// ```
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for GrpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the gRPC call ended with status {}", self.status)?;
        match &*self.message {
            "" => Ok(()),
            message => write!(f, ": {message}"),
        }
    }
}

impl From<GrpcError> for Error {
    fn from(error: GrpcError) -> Self {
        Self::new(error.to_string())
    }
}
