//! Lets only those pass to whom the issuer of their access token gave a role. It stands behind jwt-auth with
//! `share_claims: true`: what jwt-auth verified is a property, and nothing that a client sends becomes one.
//!
//! A refusal is 403, where nobody was verified, too.
use portcullis_sdk::prelude::*;

#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Roles {
    /// Where the roles are among the claims, a list of texts.
    claim: JsonPointer,
    /// One of these is needed.
    any_of: Vec<String>,
}

impl Control for Roles {
    const METADATA: Metadata =
        Metadata::new("roles", "1.0.0", Callbacks::REQUEST_HEADERS).authenticates();
    type Config = Self;
    type State = ();

    fn configure(config: Self, _: &mut PluginContext) -> Result<Self, ConfigError> {
        if config.any_of.is_empty() {
            return Err(ConfigError::new("any_of", "must name at least one role"));
        }
        Ok(config)
    }

    fn on_request_headers(&mut self, _: &mut (), request: &mut Request) -> Result<Decision, Error> {
        let claims = request.verified_claims()?;
        let roles = claims.as_ref().and_then(|it| it.pointer(&self.claim));
        let roles = roles.and_then(|roles| roles.items()).into_iter().flatten();
        let mut roles = roles.filter_map(|role| role.as_str());
        if roles.any(|role| self.any_of.iter().any(|known| *known == role)) {
            return Ok(Decision::Continue);
        }
        Ok(LocalResponse::refuse(403, "role_missing", "Forbidden").into())
    }
}

export!(Roles);
