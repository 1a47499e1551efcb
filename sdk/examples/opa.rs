//! Asks a policy service, such as Open Policy Agent, about each request: `POST /v1/data/<rule>` with the method, path
//! and user as `input`, and lets the request pass if the answer is `{"result": true}` (OPA's REST API, "Data API").
//!
//! A refusal is 403. What the service does not answer in time, or not as expected, is refused with 500.
use std::time::Duration;

use portcullis_sdk::prelude::*;
use serde_json::{Value, json};

#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Opa {
    /// The cluster of the service; the filter must be allowed to call it.
    cluster: String,
    /// The rule, as in `httpapi/authz/allow`.
    rule: String,
    /// Longest wait for an answer, in ms.
    #[serde(default = "second")]
    timeout_ms: u64,
}

fn second() -> u64 {
    1000
}

impl AsyncControl for Opa {
    const METADATA: Metadata = Metadata::new("opa", "1.0.0", Callbacks::NONE).authenticates();
    type Config = Self;

    fn configure(config: Self, _: &mut PluginContext) -> Result<Self, ConfigError> {
        if config.timeout_ms == 0 {
            return Err(ConfigError::new("timeout_ms", "must be above 0"));
        }
        Ok(config)
    }

    async fn on_request(&self, request: AsyncRequest) -> Result<Decision, Error> {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let input = json!({ "input": {
            "method": text(request.method()?),
            "path": text(request.path()?),
            "user": request.property(&["jwt.sub"])?.map(text),
        }});
        let path = format!("/v1/data/{}", self.rule);
        let headers = [
            (":method", "POST"),
            (":path", path.as_str()),
            (":authority", self.cluster.as_str()),
            ("content-type", "application/json"),
        ];
        let timeout = Duration::from_millis(self.timeout_ms);
        let body = input.to_string();
        let answer = request
            .http_call(&self.cluster, &headers, body.as_bytes(), timeout)
            .await?;
        let value: Option<Value> = serde_json::from_slice(answer.body()).ok();
        match value.as_ref().and_then(|value| value.get("result")) {
            Some(Value::Bool(true)) if answer.status() == 200 => Ok(Decision::Continue),
            Some(Value::Bool(false)) if answer.status() == 200 => {
                Ok(LocalResponse::refuse(403, "denied", "Forbidden").into())
            }
            _ => Err(Error::new(
                "the policy service did not answer true or false",
            )),
        }
    }
}

export!(Async<Opa>);
