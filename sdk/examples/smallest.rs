//! The smallest control: it refuses every request below a path that the operator has closed.
use portcullis_sdk::prelude::*;

#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClosedPath {
    prefix: String,
}

impl Control for ClosedPath {
    const METADATA: Metadata =
        Metadata::new("closed-path", "1.0.0", Callbacks::REQUEST_HEADERS).authenticates();
    type Config = Self;
    type State = ();

    fn configure(config: Self, _: &mut PluginContext) -> Result<Self, ConfigError> {
        Ok(config)
    }

    fn on_request_headers(&mut self, _: &mut (), request: &mut Request) -> Result<Decision, Error> {
        if request.path()?.starts_with(self.prefix.as_bytes()) {
            return Ok(LocalResponse::refuse(403, "closed", "Forbidden").into());
        }
        Ok(Decision::Continue)
    }
}

export!(ClosedPath);
