//! Lets requests with a body pass only if it is one JSON document of the operator's size: `application/json`, at most
//! `max_bytes`, and (where named) with every member of `required` at its top.
//!
//! Refusals: 415 for another content type, 413 for a longer body, 400 for one that is no JSON object or lacks a member.
use portcullis_sdk::prelude::*;
use serde_json::{Map, Value};

#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct JsonBody {
    /// Longest body, in bytes; at most 1 MiB.
    #[serde(default = "default_max_bytes")]
    max_bytes: usize,
    /// Members that the object must have.
    #[serde(default)]
    required: Vec<String>,
}

fn default_max_bytes() -> usize {
    64 * 1024
}

fn refuse(status: u16, reason: &'static str, title: &'static str) -> Result<Decision, Error> {
    Ok(LocalResponse::refuse(status, reason, title).into())
}

impl AsyncControl for JsonBody {
    const METADATA: Metadata = Metadata::new("json-body", "1.0.0", Callbacks::NONE).awaits_body();
    type Config = Self;

    fn configure(config: Self, _: &mut PluginContext) -> Result<Self, ConfigError> {
        if !(1..=1024 * 1024).contains(&config.max_bytes) {
            return Err(ConfigError::new("max_bytes", "must be from 1 to 1048576"));
        }
        Ok(config)
    }

    async fn on_request(&self, request: AsyncRequest) -> Result<Decision, Error> {
        if request.end_of_stream() {
            return Ok(Decision::Continue);
        }
        let content_type = request.header("content-type")?.unwrap_or_default();
        let media_type = content_type
            .split(|byte| *byte == b';')
            .next()
            .unwrap_or_default();
        if !media_type
            .trim_ascii()
            .eq_ignore_ascii_case(b"application/json")
        {
            return refuse(415, "media_type", "Unsupported Media Type");
        }
        let Some(body) = request.body(self.max_bytes).await? else {
            return refuse(413, "body_too_long", "Content Too Large");
        };
        let Ok(object) = serde_json::from_slice::<Map<String, Value>>(&body) else {
            return refuse(400, "no_json_object", "Bad Request");
        };
        if self
            .required
            .iter()
            .any(|member| !object.contains_key(member))
        {
            return refuse(400, "member_missing", "Bad Request");
        }
        Ok(Decision::Continue)
    }
}

export!(Async<JsonBody>);
