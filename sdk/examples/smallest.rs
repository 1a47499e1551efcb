//! The smallest control: it refuses every request to a path that an operator has closed.
use portcullis_sdk::{schemars, serde, *};

struct ClosedPath(String);

#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(crate = "serde", deny_unknown_fields)]
struct Config {
    prefix: String,
}

impl Control for ClosedPath {
    const METADATA: Metadata = Metadata {
        name: "closed-path",
        version: env!("CARGO_PKG_VERSION"),
        authenticates: true,
        callbacks: Callbacks::REQUEST_HEADERS,
    };
    type Config = Config;
    type State = ();

    fn configure(config: Config, _: &mut PluginContext) -> Result<Self, ConfigError> {
        Ok(Self(config.prefix))
    }

    fn on_request_headers(
        &mut self,
        _: &mut (),
        request: &mut Request<'_>,
    ) -> Result<Decision, Error> {
        let closed = request.path()?.starts_with(self.0.as_bytes());
        Ok(if closed {
            LocalResponse::refuse(403, "closed", "Forbidden").into()
        } else {
            Decision::Continue
        })
    }
}

export!(ClosedPath);
