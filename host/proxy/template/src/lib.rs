//! Refuses requests whose body is of a media type that the operator has not named.
//!
//! # Configuration
//!
//! | key | default | meaning |
//! |---|---|---|
//! | `media_types` | `[application/json]` | the media types let through, in lower case, without parameters |
//!
//! # A request is let through if
//!
//! 1. it has no body; or
//! 2. it has one `content-type`, whose media type (RFC 9110, 8.3.1) is one of `media_types`.
//!
//! # What a refusal looks like
//!
//! 415 with an RFC 9457 problem; the reason in log and metric is `media_type`.

use portcullis_sdk::prelude::*;

/// What an operator writes under `configuration`.
#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The media types let through, in lower case, without parameters.
    #[serde(default = "json")]
    media_types: Vec<String>,
}

fn json() -> Vec<String> {
    vec!["application/json".into()]
}

/// The control.
pub struct MyControl(Settings);

impl Control for MyControl {
    const METADATA: Metadata = Metadata::new(
        env!("CARGO_PKG_NAME"),
        env!("CARGO_PKG_VERSION"),
        Callbacks::REQUEST_HEADERS,
    );
    type Config = Settings;
    type State = ();

    fn configure(settings: Settings, _: &mut PluginContext) -> Result<Self, ConfigError> {
        let well_formed = |name: &String| name.contains('/') && *name == name.to_lowercase();
        match settings.media_types.iter().all(well_formed) {
            true => Ok(Self(settings)),
            false => Err(ConfigError::new(
                "media_types",
                "must be like application/json",
            )),
        }
    }

    fn on_request_headers(&mut self, _: &mut (), request: &mut Request) -> Result<Decision, Error> {
        if request.end_of_stream() {
            return Ok(Decision::Continue);
        }
        match request.headers("content-type")?.as_slice() {
            [value] if self.accepts(value) => Ok(Decision::Continue),
            _ => Ok(LocalResponse::refuse(415, "media_type", "Unsupported Media Type").into()),
        }
    }
}

impl MyControl {
    fn accepts(&self, content_type: &[u8]) -> bool {
        let media_type = content_type.split(|byte| *byte == b';').next();
        let media_type = media_type
            .unwrap_or_default()
            .trim_ascii()
            .to_ascii_lowercase();
        self.0
            .media_types
            .iter()
            .any(|name| name.as_bytes() == media_type)
    }
}

export!(MyControl);
