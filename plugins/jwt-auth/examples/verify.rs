//! Verdicts on signatures as a Proxy-Wasm module, so that test vectors, whose payloads are no claims, run through the very
//! path that tokens take: natively, in Portcullis and in Envoy.
//!
//! A request has a public key in `x-jwk` (JSON) and a compact JWS in `x-jws`; the answer is 200 with `good`, `bad`, or
//! `unusable: REASON` for a key that jwt-auth refuses. With `{"host_crypto": false}` the module verifies by itself.

use portcullis_sdk::{
    Callbacks, ConfigError, Control, Decision, Error, LocalResponse, Metadata, PluginContext,
    Request,
};
use schemars::JsonSchema;
use serde::Deserialize;

/// The control.
#[derive(Debug)]
pub struct Verify {
    host_crypto: bool,
}

/// Its configuration.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Whether the host's `verify_signature` is asked first.
    host_crypto: bool,
}

impl Control for Verify {
    const METADATA: Metadata = Metadata::new(
        "jws-verify",
        env!("CARGO_PKG_VERSION"),
        Callbacks::REQUEST_HEADERS,
    );
    type Config = Config;
    type State = ();

    fn configure(config: Config, _: &mut PluginContext) -> Result<Self, ConfigError> {
        Ok(Self {
            host_crypto: config.host_crypto,
        })
    }

    fn on_request_headers(
        &mut self,
        (): &mut (),
        request: &mut Request<'_>,
    ) -> Result<Decision, Error> {
        let jwk = request.header("x-jwk")?.unwrap_or_default();
        let jws = request.header("x-jws")?.unwrap_or_default();
        let jwk: serde_json::Value =
            serde_json::from_slice(&jwk).map_err(|_| Error::Malformed("x-jwk"))?;
        let jws = str::from_utf8(&jws).map_err(|_| Error::Malformed("x-jws"))?;
        let foreign = self.host_crypto.then(|| request.foreign());
        let verdict = match jwt_auth::jws::verify(&serde_json::json!({"keys": [jwk]}), jws, foreign)
        {
            Ok(true) => "good".to_owned(),
            Ok(false) => "bad".to_owned(),
            Err(reason) => format!("unusable: {reason}"),
        };
        Ok(Decision::Respond(
            LocalResponse::answer(200, verdict).header("content-type", "text/plain"),
        ))
    }
}

portcullis_sdk::export!(Verify);
