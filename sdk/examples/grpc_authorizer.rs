//! Asks a gRPC service about each request, `example.Authorizer/Check`: field 1 is the method, 2 the path, 3 the user that
//! jwt-auth verified; its answer's field 1 is whether the request may pass.
//!
//! A refusal, also by the status PERMISSION_DENIED, is 403. What the service does not answer in time, or not as expected, is
//! refused with 500.
use std::time::Duration;

use portcullis_sdk::prelude::*;

#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct GrpcAuthorizer {
    /// The cluster of the service, with `protocol: http2`; the filter must be allowed to call it.
    cluster: String,
    /// Longest wait for an answer, in ms.
    #[serde(default = "second")]
    timeout_ms: u64,
}

fn second() -> u64 {
    1000
}

const PERMISSION_DENIED: u32 = 7;

/// A field of bytes (protobuf, wire type 2). What is longer than 16 KiB is no method, path or user.
fn push(message: &mut Vec<u8>, number: u8, bytes: &[u8]) -> Result<(), Error> {
    let len = u16::try_from(bytes.len()).ok().filter(|len| *len < 1 << 14);
    let [low, high] = len.ok_or(Error::new("a field is too long"))?.to_le_bytes();
    message.extend_from_slice(&[number << 3 | 2, low | 0x80, high << 1 | low >> 7]);
    message.extend_from_slice(bytes);
    Ok(())
}

impl AsyncControl for GrpcAuthorizer {
    const METADATA: Metadata =
        Metadata::new("grpc-authorizer", "1.0.0", Callbacks::GRPC_CALL_RESPONSE).authenticates();
    type Config = Self;

    fn configure(config: Self, _: &mut PluginContext) -> Result<Self, ConfigError> {
        if config.timeout_ms == 0 {
            return Err(ConfigError::new("timeout_ms", "must be above 0"));
        }
        Ok(config)
    }

    async fn on_request(&self, request: AsyncRequest) -> Result<Decision, Error> {
        let mut question = Vec::new();
        push(&mut question, 1, &request.method()?)?;
        push(&mut question, 2, &request.path()?)?;
        push(
            &mut question,
            3,
            &request.property(&["jwt.sub"])?.unwrap_or_default(),
        )?;
        let timeout = Duration::from_millis(self.timeout_ms);
        let answer = request
            .grpc_call(
                &self.cluster,
                "example.Authorizer",
                "Check",
                &question,
                timeout,
            )
            .await;
        let refused = || Ok(LocalResponse::refuse(403, "denied", "Forbidden").into());
        match answer {
            Ok(answer) if answer == [1 << 3, 1] => Ok(Decision::Continue),
            Ok(answer) if answer.is_empty() || answer == [1 << 3, 0] => refused(),
            Ok(_) => Err(Error::new("the service did not answer yes or no")),
            Err(error) if error.status() == PERMISSION_DENIED => refused(),
            Err(error) => Err(error.into()),
        }
    }
}

export!(Async<GrpcAuthorizer>);
