//! **jwt-auth** lets a request pass only with an access token (a signed JWT) that a configured issuer made for us.
//!
//! # Configuration
//!
//! | key | default | meaning |
//! |---|---|---|
//! | `providers` | required | the issuers, 1 to 16; a token belongs to the one that its `iss` names |
//! | `providers[].issuer` | required | compared with `iss` byte by byte |
//! | `providers[].audiences` | required | the token's `aud` (text or list) must name one of them |
//! | `providers[].jwks` | | the public keys, a JWK set (RFC 7517) in place; either this or `remote_jwks` |
//! | `providers[].remote_jwks` | | `cluster`, `authority`, `path`; `refresh_seconds` (600) where the answer has no `max-age`; `timeout_ms` (5000) |
//! | `providers[].algorithms` | RS256, PS256, ES256, ES384, EdDSA | also RS384, RS512, PS384, PS512; never `none` or a symmetric one |
//! | `providers[].max_lifetime_seconds` | 3600 | most for `exp − iat`, and for what is left until `exp`; up to 30 days |
//! | `providers[].token_types` | JWT, at+jwt | values of `typ` that are taken |
//! | `providers[].token_type_required` | false | whether a token without `typ` is refused |
//! | `providers[].required_claims` | none | `claim` (a name, or a list of names for a nested one) and at most one of `equals`, `one_of`, `contains` |
//! | `required_scopes` | none | all of them must be in `scope` or `scp` |
//! | `clock_skew_seconds` | 60 | tolerance for `exp`, `nbf` and `iat`; up to 300 |
//! | `claims_to_headers` | none | `claim`, `header`: for the upstream |
//! | `claims_to_properties` | none | `claim`, `property`: for later filters, as `jwt.PROPERTY` |
//! | `share_claims` | false | whether controls behind this one see all claims (`Request::verified_claims` of the SDK): property `jwt.claims`, the signed JSON, nested at most 64 deep |
//! | `strip_token` | false | whether `authorization` is taken off before the upstream |
//! | `bypass_cors_preflight` | false | whether CORS preflight requests pass without a token |
//! | `realm` | portcullis | in `www-authenticate` |
//! | `resource_metadata` | none | RFC 9728 URL, in `www-authenticate` |
//!
//! # A request is allowed when
//!
//! 1. it has exactly one `authorization` header, with `Bearer` (in any case) and one token of at most 8 KiB;
//! 2. the token is a compact JWS: three parts in strict base64url, header and claims JSON objects that name no member twice;
//! 3. its header asks for nothing that we do not do: no `crit`, no `b64: false`, no encryption; `alg` and `typ` are
//!    allowed for its issuer. `jku`, `x5u`, `x5c` and `jwk` are ignored: keys come from the configuration only;
//! 4. its `iss` is a configured issuer;
//! 5. a key of that issuer has its `kid` and serves its `alg` (a token without `kid`: exactly one key serves its `alg`),
//!    and the signature is good. A key serves the one algorithm of its `alg`; without `alg` RS256, ES256, ES384 or EdDSA by
//!    its type. Keys with another `use` than `sig`, or `key_ops` without `verify`, serve none;
//! 6. `aud` names us; `exp` is there and not over; `nbf` and `iat` are not ahead; its life is not too long;
//! 7. required claims and scopes are there.
//!
//! Rules 6 and 7 run for every request. Signatures found good are remembered with the whole token (at most 256 a VM),
//! until the token expires or its key goes.
//!
//! Or when it is a CORS preflight and `bypass_cors_preflight` is on.
//!
//! An allowed request carries the properties `jwt.iss` and `jwt.sub` and the configured ones (text as it is, anything else
//! as JSON), and the configured headers (a list is joined by commas). Whatever a client sent under the names of these
//! headers is removed first, on any route.
//!
//! # A refusal
//!
//! RFC 6750, with a problem (RFC 9457) as its body; the reason is in log and metric (`portcullis.jwt-auth.refused.REASON`).
//!
//! | status | `www-authenticate: Bearer realm="…"` and | reasons |
//! |---|---|---|
//! | 401 | nothing | `token_missing` |
//! | 400 | `error="invalid_request"` | `request_invalid`: several tokens or headers, or none behind `Bearer` |
//! | 401 | `error="invalid_token"` | `token_malformed`, `token_oversized`, `token_critical`, `token_encrypted`, `algorithm_refused`, `claims_malformed`, `type_wrong`, `issuer_unknown`, `key_unknown`, `key_unfit`, `signature_wrong`, `audience_wrong`, `token_expired`, `token_premature`, `expiry_missing`, `lifetime_exceeded`, `claim_unfit` |
//! | 403 | `error="insufficient_scope"`, `scope="…"` | `scope_insufficient`, `claim_insufficient` |
//! | 503 | no such header, but `retry-after` | `keys_missing`: before the first keys were fetched, or 24 h after they were last fresh |
//!
//! No token, and no part of one, is ever logged.
//!
//! # In deployment
//!
//! - A remote set is fetched by one worker for all, honouring `cache-control: max-age` within 60 s and 24 h; a token with an
//!   unknown `kid` brings the next fetch forward, at most every 30 s. The cluster must use TLS unless it is on this machine.
//! - Signatures go to the host's `verify_signature` (RS*, ES*), else are checked in the module: 20 times slower in Envoy.
//! - Several of these filters on one route would overwrite each other's properties.
//! - A key without `kid` never serves a token with one.
//! - Bearer tokens work for whoever holds them; keep `max_lifetime_seconds` short.
//!
//! # Examples
//!
//! ```yaml
//! providers:
//!   - issuer: https://idp.example
//!     audiences: [orders-api]
//!     remote_jwks: {cluster: idp, authority: idp.example, path: /.well-known/jwks.json}
//! required_scopes: [orders.read]
//! claims_to_headers: [{claim: sub, header: x-user}]
//! ```
//!
//! Allowed: `authorization: Bearer …` with `{"alg":"RS256","kid":"2026-05"}` and `{"iss":"https://idp.example",
//! "aud":"orders-api","sub":"alice","iat":1800000000,"exp":1800000300,"scope":"orders.read"}` at 1800000100; the upstream sees
//! `x-user: alice`.
//!
//! Refused: the same at 1800000400, with 401 and `www-authenticate: Bearer realm="portcullis", error="invalid_token",
//! error_description="the access token expired"`.

mod algorithm;
mod cache;
mod challenge;
mod claims;
mod config;
mod crypto;
mod der;
mod forward;
mod json;
mod jwks;
pub mod jws;
mod keys;
mod limits;
mod provider;
mod remote;
mod settings;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
mod token;

use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use portcullis_sdk::{
    CallId, Callbacks, ConfigError, Control, Decision, Error, FieldPairs, HttpCallResponse, Level,
    Metadata, PluginContext, Request, SharedData,
};

pub use crate::algorithm::Algorithm;
use crate::cache::{Cache, Verified};
use crate::challenge::Refusal;
use crate::claims::Claims;
pub use crate::config::Config;
use crate::crypto::HostCrypto;
use crate::provider::{Keys, Provider, Verdict};
use crate::remote::Remote;
use crate::settings::Settings;
use crate::token::Parts;

/// The control, configured.
#[derive(Debug)]
pub struct JwtAuth {
    settings: Settings,
    cache: Cache,
    host: Rc<HostCrypto>,
}

impl Control for JwtAuth {
    const METADATA: Metadata = Metadata::new(
        "jwt-auth",
        env!("CARGO_PKG_VERSION"),
        Callbacks::REQUEST_HEADERS
            .and(Callbacks::TICK)
            .and(Callbacks::HTTP_CALL_RESPONSE),
    )
    .authenticates();

    type Config = Config;
    type State = ();

    fn configure(config: Config, plugin: &mut PluginContext) -> Result<Self, ConfigError> {
        if !crypto::install() {
            return Err(ConfigError::new(
                "",
                "another crypto provider of jsonwebtoken is installed",
            ));
        }
        let mut settings = Settings::parse(config)?;
        let owned: Vec<&str> = settings
            .forward
            .headers
            .iter()
            .map(|header| header.name.as_str())
            .collect();
        if !owned.is_empty() {
            plugin.declare_owned_request_headers(&owned);
        }
        let failed = |error: Error| {
            ConfigError::new(
                "providers",
                format!("cannot fetch keys on this host: {error}"),
            )
        };
        let shared = plugin.shared_data();
        let mut ticks = false;
        for remote in remotes(&mut settings.providers) {
            remote.start(&shared).map_err(failed)?;
            ticks = true;
        }
        if ticks {
            plugin
                .set_tick_period(Duration::from_millis(limits::TICK_MS))
                .map_err(failed)?;
        }
        Ok(Self {
            settings,
            cache: Cache::default(),
            host: HostCrypto::new(plugin.foreign()),
        })
    }

    fn on_request_headers(
        &mut self,
        (): &mut (),
        request: &mut Request<'_>,
    ) -> Result<Decision, Error> {
        let headers = request.all_headers()?;
        for header in self
            .settings
            .forward
            .headers
            .iter()
            .filter(|header| headers.contains(&header.name))
        {
            request.remove_header(&header.name)?;
        }
        if self.settings.bypass_cors_preflight && is_preflight(&headers) {
            return Ok(Decision::Continue);
        }
        let refusal = match self.authenticate(&headers, request)? {
            Ok(claims) => match self.settings.forward.header_values(&claims) {
                Ok(values) => {
                    for (name, value) in values {
                        request.set_header(name, value)?;
                    }
                    self.settings.forward.set_properties(&claims, request)?;
                    if self.settings.strip_token {
                        request.remove_header("authorization")?;
                    }
                    return Ok(Decision::Continue);
                }
                Err(refusal) => refusal,
            },
            Err(refusal) => refusal,
        };
        Ok(Decision::Respond(
            refusal.response(&self.settings.challenge),
        ))
    }

    fn on_tick(&mut self, plugin: &mut PluginContext) {
        let now = seconds(plugin.now());
        let shared = plugin.shared_data();
        let mut oldest = None;
        for index in 0..self.settings.providers.len() {
            let synced = self.sync(index, &shared);
            if let Some(Provider {
                keys: Keys::Remote(remote),
                ..
            }) = self.settings.providers.get_mut(index)
            {
                log_failure(plugin, synced.and_then(|_| remote.tick(plugin)));
                oldest = oldest.max(remote.age(now));
            }
        }
        if let Some(age) = oldest {
            plugin.gauge("jwks_age_seconds").set(age);
        }
    }

    fn on_http_call_response(
        &mut self,
        plugin: &mut PluginContext,
        call: CallId,
        response: &HttpCallResponse<'_>,
    ) {
        let asked = remotes(&mut self.settings.providers)
            .find_map(|remote| remote.take_call(call).then_some(remote));
        if let Some(remote) = asked {
            log_failure(plugin, remote.answered(plugin, response));
        }
    }
}

impl JwtAuth {
    /// Who sends the request, by the rules of the contract; `Err` outside is a failure of the host's.
    fn authenticate(
        &mut self,
        headers: &FieldPairs,
        request: &Request<'_>,
    ) -> Result<Result<Rc<Claims>, Refusal>, Error> {
        let token = match token::bearer(headers.all("authorization")) {
            Ok(token) => token,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let now = seconds(request.now());
        let mut found = self.cache.find(token);
        // The issuer may have withdrawn the key.
        if let Some(verified) = &found
            && self.sync(verified.provider, &request.shared())?
        {
            found = self.cache.find(token);
        }
        let verified = match found {
            Some(verified) => verified,
            None => match self.verify(token, now, request)? {
                Ok(verified) => verified,
                Err(refusal) => return Ok(Err(refusal)),
            },
        };
        let Some(provider) = self.settings.providers.get(verified.provider) else {
            return Err(Error::new("a remembered token's issuer is gone"));
        };
        if provider.keys(now).is_none() {
            return Ok(Err(Refusal::Keys));
        }
        if let Err(refusal) = provider.rules.check(&verified.claims, now) {
            if refusal == Refusal::Expired {
                self.cache.remove(token);
            }
            return Ok(Err(refusal));
        }
        if !self
            .settings
            .required_scopes
            .iter()
            .all(|scope| verified.claims.has_scope(scope))
        {
            return Ok(Err(Refusal::Scope));
        }
        Ok(Ok(verified.claims))
    }

    /// Checks a token's shape, issuer and signature, and remembers it.
    fn verify(
        &mut self,
        token: &[u8],
        now: u64,
        request: &Request<'_>,
    ) -> Result<Result<Verified, Refusal>, Error> {
        let keep_text = self.settings.forward.share;
        let read = || {
            let token = token::one(token)?;
            let parts = Parts::split(token)?;
            let (header, payload) = (parts.header()?, parts.payload()?);
            let mut claims = Claims::read(&payload)?;
            if keep_text {
                claims.keep_text(payload);
            }
            Ok((token, parts, header, claims))
        };
        let (token, parts, header, claims) = match read() {
            Ok(read) => read,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let Some(index) = self
            .settings
            .providers
            .iter()
            .position(|provider| provider.issuer == claims.issuer())
        else {
            return Ok(Err(Refusal::Invalid("issuer_unknown")));
        };
        self.sync(index, &request.shared())?;
        let Some(provider) = self.settings.providers.get_mut(index) else {
            return Ok(Err(Refusal::Invalid("issuer_unknown")));
        };
        if let Err(refusal) = provider.check_header(&header) {
            return Ok(Err(refusal));
        }
        let Some(keys) = provider.keys(now) else {
            return Ok(Err(Refusal::Keys));
        };
        match provider::verify(keys, Some(&self.host), &header, &parts) {
            Verdict::Good(key) => {
                let verified = Verified {
                    provider: index,
                    key,
                    claims: Rc::new(claims),
                };
                self.cache.insert(token, verified.clone());
                Ok(Ok(verified))
            }
            Verdict::Refused(refusal) => Ok(Err(refusal)),
            Verdict::UnknownKid => {
                if let (Keys::Remote(remote), Some(kid)) = (&mut provider.keys, &header.kid) {
                    remote.wish(&request.shared(), kid, now)?;
                }
                Ok(Err(Refusal::Invalid("key_unknown")))
            }
        }
    }

    /// Takes over fetched keys, and forgets what was verified with those that are gone; true if there were new ones.
    fn sync(&mut self, index: usize, shared: &SharedData) -> Result<bool, Error> {
        let Some(Provider {
            keys: Keys::Remote(remote),
            ..
        }) = self.settings.providers.get_mut(index)
        else {
            return Ok(false);
        };
        let changed = remote.sync(shared)?;
        if changed {
            self.cache.retain_keys(index, |key| remote.holds(key));
        }
        Ok(changed)
    }
}

fn remotes(providers: &mut [Provider]) -> impl Iterator<Item = &mut Remote> {
    providers
        .iter_mut()
        .filter_map(|provider| match &mut provider.keys {
            Keys::Remote(remote) => Some(&mut **remote),
            Keys::Inline(_) => None,
        })
}

/// Fetch standard, section 4.8: what a browser asks before a cross-origin request, which never carries credentials.
fn is_preflight(headers: &FieldPairs) -> bool {
    headers.first(":method") == Some(b"OPTIONS")
        && headers.contains("origin")
        && headers.contains("access-control-request-method")
}

fn log_failure(plugin: &PluginContext, result: Result<(), Error>) {
    if let Err(error) = result {
        plugin.log(
            Level::Error,
            "jwks_failed",
            &[("reason", error.to_string().as_str().into())],
        );
    }
}

/// Whole seconds since 1970.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(feature = "module")]
portcullis_sdk::export!(JwtAuth);

#[cfg(test)]
mod tests;
