//! The configuration as an operator writes it. What it must be beyond its shape is in [`crate::settings`].

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use crate::algorithm::Algorithm;
use crate::limits;

/// What an operator writes under `configuration`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The issuers whose tokens are taken, 1 to 16.
    pub(crate) providers: Vec<ProviderConfig>,
    /// Scopes that every token must have, all of them.
    #[serde(default)]
    pub(crate) required_scopes: Vec<String>,
    /// Tolerance for clocks that differ, in seconds, at most 300.
    #[serde(default = "clock_skew_seconds")]
    pub(crate) clock_skew_seconds: u32,
    /// Claims that the upstream gets as request headers.
    #[serde(default)]
    pub(crate) claims_to_headers: Vec<ClaimToHeader>,
    /// Claims that later filters get as properties, besides `jwt.iss` and `jwt.sub`.
    #[serde(default)]
    pub(crate) claims_to_properties: Vec<ClaimToProperty>,
    /// Whether the controls behind this one see all claims: the property `jwt.claims`, the JSON that was signed.
    #[serde(default)]
    pub(crate) share_claims: bool,
    /// Whether the `authorization` header is taken off before the upstream sees it.
    #[serde(default)]
    pub(crate) strip_token: bool,
    /// Whether CORS preflight requests pass without a token: `OPTIONS` with `origin` and
    /// `access-control-request-method`.
    #[serde(default)]
    pub(crate) bypass_cors_preflight: bool,
    /// The realm in `www-authenticate`.
    #[serde(default = "realm")]
    pub(crate) realm: String,
    /// Where clients find out how to get a token (RFC 9728), as `resource_metadata` in `www-authenticate`.
    pub(crate) resource_metadata: Option<String>,
}

/// An issuer, its keys and the rules for its tokens.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProviderConfig {
    /// The `iss` of its tokens, compared byte by byte.
    pub(crate) issuer: String,
    /// A token's `aud` must name one of these.
    pub(crate) audiences: Vec<String>,
    /// Algorithms that its tokens may be signed with.
    #[serde(default = "algorithms")]
    pub(crate) algorithms: Vec<Algorithm>,
    /// Its public keys, an RFC 7517 JWK set. Either this or `remote_jwks`.
    pub(crate) jwks: Option<Value>,
    /// Where its public keys are fetched.
    pub(crate) remote_jwks: Option<RemoteJwksConfig>,
    /// Longest life of a token in seconds: of `exp − iat`, and of what remains until `exp`. At most 30 days.
    #[serde(default = "max_lifetime_seconds")]
    pub(crate) max_lifetime_seconds: u32,
    /// The values of `typ` that are taken, in any case, with or without `application/`.
    #[serde(default = "token_types")]
    pub(crate) token_types: Vec<String>,
    /// Whether a token without `typ` is refused.
    #[serde(default)]
    pub(crate) token_type_required: bool,
    /// Claims that its tokens must have.
    #[serde(default)]
    pub(crate) required_claims: Vec<RequiredClaimConfig>,
}

/// A JWK set behind a cluster.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RemoteJwksConfig {
    /// The cluster; it must use TLS unless it is on this machine, since who answers for it signs in whom he likes.
    pub(crate) cluster: String,
    /// The host that is asked, as in `idp.example`.
    pub(crate) authority: String,
    /// The path with its query, as in `/.well-known/jwks.json`.
    pub(crate) path: String,
    /// How long keys are fresh when the answer has no `cache-control: max-age`, in seconds: 60 to 86400.
    #[serde(default = "refresh_seconds")]
    pub(crate) refresh_seconds: u32,
    /// How long a fetch may take, in milliseconds: 1 to 30000.
    #[serde(default = "timeout_ms")]
    pub(crate) timeout_ms: u32,
}

/// A claim that must be there, at most one of the three conditions must hold as well.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RequiredClaimConfig {
    pub(crate) claim: ClaimPathConfig,
    /// Its value.
    pub(crate) equals: Option<Scalar>,
    /// One of these is its value.
    pub(crate) one_of: Option<Vec<Scalar>>,
    /// It is a list with this among its values.
    pub(crate) contains: Option<Scalar>,
}

/// A claim for the upstream.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClaimToHeader {
    pub(crate) claim: ClaimPathConfig,
    /// The header; what a client sends under this name is always removed.
    pub(crate) header: String,
}

/// A claim for later filters.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClaimToProperty {
    pub(crate) claim: ClaimPathConfig,
    /// The property is named `jwt.` and this; the claim's name if not given.
    pub(crate) property: Option<String>,
}

/// A claim's name, or the names of the objects around it and then its own.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "must be a claim's name or a list of names")]
pub(crate) enum ClaimPathConfig {
    Name(String),
    Nested(Vec<String>),
}

/// A value to compare with.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "must be text, a whole number, true or false")]
pub(crate) enum Scalar {
    Text(String),
    Number(i64),
    Flag(bool),
}

fn clock_skew_seconds() -> u32 {
    limits::CLOCK_SKEW_SECONDS
}

fn max_lifetime_seconds() -> u32 {
    limits::LIFETIME_SECONDS
}

fn refresh_seconds() -> u32 {
    limits::REFRESH_SECONDS
}

fn timeout_ms() -> u32 {
    limits::FETCH_MS
}

fn algorithms() -> Vec<Algorithm> {
    Algorithm::DEFAULT.to_vec()
}

fn token_types() -> Vec<String> {
    vec!["JWT".to_owned(), "at+jwt".to_owned()]
}

fn realm() -> String {
    "portcullis".to_owned()
}

impl From<Scalar> for Value {
    fn from(scalar: Scalar) -> Self {
        match scalar {
            Scalar::Text(text) => text.into(),
            Scalar::Number(number) => number.into(),
            Scalar::Flag(flag) => flag.into(),
        }
    }
}
