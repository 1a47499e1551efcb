//! The configuration as an operator writes it, and what it is parsed into: values that cannot be wrong any more.

use std::time::Duration;

use portcullis_sdk::ConfigError;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use crate::algorithm::Algorithm;
use crate::challenge::Challenge;
use crate::claims::{ClaimPath, Matcher, RequiredClaim, Rules};
use crate::forward::{ClaimHeader, ClaimProperty, Forward};
use crate::jwks::KeySet;
use crate::provider::{Keys, Provider};
use crate::remote::{Remote, Source};
use crate::{limits, token};

/// What an operator writes under `configuration`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The issuers whose tokens are taken, 1 to 16.
    providers: Vec<ProviderConfig>,
    /// Scopes that every token must have, all of them.
    #[serde(default)]
    required_scopes: Vec<String>,
    /// Tolerance for clocks that differ, in seconds, at most 300.
    #[serde(default = "clock_skew_seconds")]
    clock_skew_seconds: u32,
    /// Claims that the upstream gets as request headers.
    #[serde(default)]
    claims_to_headers: Vec<ClaimToHeader>,
    /// Claims that later filters get as properties, besides `jwt.iss` and `jwt.sub`.
    #[serde(default)]
    claims_to_properties: Vec<ClaimToProperty>,
    /// Whether the `authorization` header is taken off before the upstream sees it.
    #[serde(default)]
    strip_token: bool,
    /// Whether CORS preflight requests pass without a token: `OPTIONS` with `origin` and
    /// `access-control-request-method`.
    #[serde(default)]
    bypass_cors_preflight: bool,
    /// The realm in `www-authenticate`.
    #[serde(default = "realm")]
    realm: String,
    /// Where clients find out how to get a token (RFC 9728), as `resource_metadata` in `www-authenticate`.
    resource_metadata: Option<String>,
}

/// An issuer, its keys and the rules for its tokens.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ProviderConfig {
    /// The `iss` of its tokens, compared byte by byte.
    issuer: String,
    /// A token's `aud` must name one of these.
    audiences: Vec<String>,
    /// Algorithms that its tokens may be signed with.
    #[serde(default = "algorithms")]
    algorithms: Vec<Algorithm>,
    /// Its public keys, an RFC 7517 JWK set. Either this or `remote_jwks`.
    jwks: Option<Value>,
    /// Where its public keys are fetched.
    remote_jwks: Option<RemoteJwksConfig>,
    /// Longest life of a token in seconds: of `exp − iat`, and of what remains until `exp`. At most 30 days.
    #[serde(default = "max_lifetime_seconds")]
    max_lifetime_seconds: u32,
    /// The values of `typ` that are taken, in any case, with or without `application/`.
    #[serde(default = "token_types")]
    token_types: Vec<String>,
    /// Whether a token without `typ` is refused.
    #[serde(default)]
    token_type_required: bool,
    /// Claims that its tokens must have.
    #[serde(default)]
    required_claims: Vec<RequiredClaimConfig>,
}

/// A JWK set behind a cluster.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RemoteJwksConfig {
    /// The cluster; it must use TLS unless it is on this machine, since who answers for it signs in whom he likes.
    cluster: String,
    /// The host that is asked, as in `idp.example`.
    authority: String,
    /// The path with its query, as in `/.well-known/jwks.json`.
    path: String,
    /// How long keys are fresh when the answer has no `cache-control: max-age`, in seconds: 60 to 86400.
    #[serde(default = "refresh_seconds")]
    refresh_seconds: u32,
    /// How long a fetch may take, in milliseconds: 1 to 30000.
    #[serde(default = "timeout_ms")]
    timeout_ms: u32,
}

/// A claim that must be there, at most one of the three conditions must hold as well.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RequiredClaimConfig {
    claim: ClaimPathConfig,
    /// Its value.
    equals: Option<Scalar>,
    /// One of these is its value.
    one_of: Option<Vec<Scalar>>,
    /// It is a list with this among its values.
    contains: Option<Scalar>,
}

/// A claim for the upstream.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ClaimToHeader {
    claim: ClaimPathConfig,
    /// The header; what a client sends under this name is always removed.
    header: String,
}

/// A claim for later filters.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ClaimToProperty {
    claim: ClaimPathConfig,
    /// The property is named `jwt.` and this; the claim's name if not given.
    property: Option<String>,
}

/// A claim's name, or the names of the objects around it and then its own.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "must be a claim's name or a list of names")]
enum ClaimPathConfig {
    Name(String),
    Nested(Vec<String>),
}

/// A value to compare with.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "must be text, a whole number, true or false")]
enum Scalar {
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

/// The configuration, parsed.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) providers: Vec<Provider>,
    pub(crate) required_scopes: Vec<String>,
    pub(crate) forward: Forward,
    pub(crate) strip_token: bool,
    pub(crate) bypass_cors_preflight: bool,
    pub(crate) challenge: Challenge,
}

type Parsed<T> = Result<T, ConfigError>;

impl Settings {
    pub(crate) fn parse(config: Config) -> Parsed<Self> {
        count("providers", &config.providers, 1, limits::PROVIDERS_MAX)?;
        if config.clock_skew_seconds > limits::CLOCK_SKEW_SECONDS_MAX {
            return Err(ConfigError::new(
                "clock_skew_seconds",
                "must be 300 or less",
            ));
        }
        let mut providers: Vec<Provider> = Vec::new();
        for (index, provider) in config.providers.into_iter().enumerate() {
            let key = format!("providers[{index}]");
            let provider = parse_provider(&key, provider, config.clock_skew_seconds)?;
            if providers
                .iter()
                .any(|other| other.issuer == provider.issuer)
            {
                return Err(ConfigError::new(
                    format!("{key}.issuer"),
                    "is that of an earlier provider",
                ));
            }
            providers.push(provider);
        }
        Ok(Self {
            providers,
            forward: parse_forward(config.claims_to_headers, config.claims_to_properties)?,
            strip_token: config.strip_token,
            bypass_cors_preflight: config.bypass_cors_preflight,
            challenge: parse_challenge(
                &config.realm,
                config.resource_metadata.as_deref(),
                &config.required_scopes,
            )?,
            required_scopes: config.required_scopes,
        })
    }
}

fn parse_provider(key: &str, config: ProviderConfig, clock_skew_seconds: u32) -> Parsed<Provider> {
    let at = |name: &str| format!("{key}.{name}");
    check_text(&at("issuer"), &config.issuer)?;
    texts(&at("audiences"), &config.audiences, 1)?;
    texts(&at("token_types"), &config.token_types, 1)?;
    count(&at("algorithms"), &config.algorithms, 1, limits::LIST_MAX)?;
    if !(1..=limits::LIFETIME_SECONDS_MAX).contains(&config.max_lifetime_seconds) {
        return Err(ConfigError::new(
            at("max_lifetime_seconds"),
            "must be between 1 and 2592000",
        ));
    }
    let keys = match (config.jwks, config.remote_jwks) {
        (Some(jwks), None) => Keys::Inline(parse_jwks(&at("jwks"), &jwks, &config.algorithms)?),
        (None, Some(remote)) => Keys::Remote(Box::new(parse_remote(
            &at("remote_jwks"),
            remote,
            config.algorithms.clone(),
        )?)),
        _ => {
            return Err(ConfigError::new(
                key.to_owned(),
                "must have either `jwks` or `remote_jwks`",
            ));
        }
    };
    Ok(Provider {
        issuer: config.issuer,
        keys,
        algorithms: config.algorithms,
        token_types: config
            .token_types
            .iter()
            .map(|typ| token::media_type(typ))
            .collect(),
        token_type_required: config.token_type_required,
        rules: Rules {
            audiences: config.audiences,
            lifetime_max: config.max_lifetime_seconds.into(),
            clock_skew: clock_skew_seconds.into(),
            required: parse_required(&at("required_claims"), config.required_claims)?,
        },
    })
}

fn parse_jwks(key: &str, jwks: &Value, algorithms: &[Algorithm]) -> Parsed<KeySet> {
    let (keys, faults) = KeySet::read(jwks, algorithms)
        .map_err(|reason| ConfigError::new(key.to_owned(), reason))?;
    if let Some(fault) = faults.first() {
        return Err(ConfigError::new(
            format!("{key}.keys[{}]", fault.index),
            fault.reason,
        ));
    }
    if keys.is_empty() {
        return Err(ConfigError::new(
            format!("{key}.keys"),
            "has no key that serves one of the allowed algorithms",
        ));
    }
    Ok(keys)
}

fn parse_remote(key: &str, config: RemoteJwksConfig, algorithms: Vec<Algorithm>) -> Parsed<Remote> {
    let at = |name: &str| format!("{key}.{name}");
    check_text(&at("cluster"), &config.cluster)?;
    check_text(&at("authority"), &config.authority)?;
    if config.authority.contains('/')
        || !config.authority.bytes().all(|byte| byte.is_ascii_graphic())
    {
        return Err(ConfigError::new(
            at("authority"),
            "must be a host, as in idp.example",
        ));
    }
    check_text(&at("path"), &config.path)?;
    if !config.path.starts_with('/') || !config.path.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(ConfigError::new(
            at("path"),
            "must start with / and hold no spaces",
        ));
    }
    if !(limits::FRESH_SECONDS_MIN..=limits::FRESH_SECONDS_MAX)
        .contains(&config.refresh_seconds.into())
    {
        return Err(ConfigError::new(
            at("refresh_seconds"),
            "must be between 60 and 86400",
        ));
    }
    if !(1..=limits::FETCH_MS_MAX).contains(&config.timeout_ms) {
        return Err(ConfigError::new(
            at("timeout_ms"),
            "must be between 1 and 30000",
        ));
    }
    let source = Source {
        cluster: config.cluster,
        authority: config.authority,
        path: config.path,
        fresh_seconds: config.refresh_seconds.into(),
        timeout: Duration::from_millis(config.timeout_ms.into()),
    };
    Ok(Remote::new(source, algorithms))
}

fn parse_required(key: &str, config: Vec<RequiredClaimConfig>) -> Parsed<Vec<RequiredClaim>> {
    count(key, &config, 0, limits::LIST_MAX)?;
    let parse = |(index, required): (usize, RequiredClaimConfig)| {
        let key = format!("{key}[{index}]");
        let matcher = match (required.equals, required.one_of, required.contains) {
            (None, None, None) => Matcher::Present,
            (Some(value), None, None) => Matcher::OneOf(vec![value.into()]),
            (None, Some(values), None) => {
                count(&format!("{key}.one_of"), &values, 1, limits::LIST_MAX)?;
                Matcher::OneOf(values.into_iter().map(Value::from).collect())
            }
            (None, None, Some(value)) => Matcher::Contains(value.into()),
            _ => {
                return Err(ConfigError::new(
                    key,
                    "may have one of `equals`, `one_of` and `contains`",
                ));
            }
        };
        Ok(RequiredClaim {
            path: parse_path(&format!("{key}.claim"), required.claim)?,
            matcher,
        })
    };
    config.into_iter().enumerate().map(parse).collect()
}

fn parse_path(key: &str, config: ClaimPathConfig) -> Parsed<ClaimPath> {
    let names = match config {
        ClaimPathConfig::Name(name) => vec![name],
        ClaimPathConfig::Nested(names) => names,
    };
    count(key, &names, 1, limits::CLAIM_PATH_MAX)?;
    names.iter().try_for_each(|name| check_text(key, name))?;
    Ok(ClaimPath(names))
}

fn parse_forward(headers: Vec<ClaimToHeader>, properties: Vec<ClaimToProperty>) -> Parsed<Forward> {
    count("claims_to_headers", &headers, 0, limits::LIST_MAX)?;
    count("claims_to_properties", &properties, 0, limits::LIST_MAX)?;
    let mut forward = Forward::default();
    for (index, config) in headers.into_iter().enumerate() {
        let key = format!("claims_to_headers[{index}]");
        let path = parse_path(&format!("{key}.claim"), config.claim)?;
        let name = config.header.to_ascii_lowercase();
        check_header(&format!("{key}.header"), &name)?;
        if forward.headers.iter().any(|other| other.name == name) {
            return Err(ConfigError::new(
                format!("{key}.header"),
                "is that of an earlier claim",
            ));
        }
        forward.headers.push(ClaimHeader { name, path });
    }
    for (index, config) in properties.into_iter().enumerate() {
        let key = format!("claims_to_properties[{index}]");
        let path = parse_path(&format!("{key}.claim"), config.claim)?;
        let name = match (config.property, path.0.as_slice()) {
            (Some(name), _) => name,
            (None, [name]) => name.clone(),
            (None, _) => {
                return Err(ConfigError::new(
                    format!("{key}.property"),
                    "must name the property of a nested claim",
                ));
            }
        };
        check_text(&format!("{key}.property"), &name)?;
        let name = format!("jwt.{name}");
        if ["jwt.iss", "jwt.sub"].contains(&name.as_str())
            || forward.properties.iter().any(|other| other.name == name)
        {
            return Err(ConfigError::new(
                format!("{key}.property"),
                "is set already",
            ));
        }
        forward.properties.push(ClaimProperty { name, path });
    }
    Ok(forward)
}

fn parse_challenge(
    realm: &str,
    resource_metadata: Option<&str>,
    scopes: &[String],
) -> Parsed<Challenge> {
    check_quotable("realm", realm)?;
    let mut bearer = format!("Bearer realm=\"{realm}\"");
    if let Some(uri) = resource_metadata {
        check_quotable("resource_metadata", uri)?;
        if !uri.starts_with("https://") || uri.contains(' ') {
            return Err(ConfigError::new(
                "resource_metadata",
                "must be an https URL",
            ));
        }
        bearer.extend([", resource_metadata=\"", uri, "\""]);
    }
    texts("required_scopes", scopes, 0)?;
    for (index, scope) in scopes.iter().enumerate() {
        let key = format!("required_scopes[{index}]");
        check_quotable(&key, scope)?;
        if scope.contains(' ') {
            return Err(ConfigError::new(key, "must be one scope, without spaces"));
        }
    }
    Ok(Challenge {
        bearer,
        scope: scopes.join(" "),
    })
}

fn check_header(key: &str, name: &str) -> Parsed<()> {
    /// What proxies themselves read or write, and what carries the token.
    const RESERVED: [&str; 17] = [
        "authorization",
        "connection",
        "content-length",
        "expect",
        "forwarded",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-forwarded-client-cert",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-proto",
        "x-request-id",
    ];
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    check_text(key, name)?;
    if !name.bytes().all(token) {
        return Err(ConfigError::new(key.to_owned(), "must be a header name"));
    }
    let prefixed = ["proxy-", "x-envoy-"]
        .iter()
        .any(|prefix| name.starts_with(prefix));
    if prefixed || RESERVED.contains(&name) {
        return Err(ConfigError::new(
            key.to_owned(),
            "is a header with a meaning of its own",
        ));
    }
    Ok(())
}

/// Text that can stand between quotes in a header as it is.
fn check_quotable(key: &str, text: &str) -> Parsed<()> {
    check_text(key, text)?;
    if text
        .bytes()
        .all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\'))
    {
        Ok(())
    } else {
        Err(ConfigError::new(
            key.to_owned(),
            "must be printable ASCII without quotes and backslashes",
        ))
    }
}

fn check_text(key: &str, text: &str) -> Parsed<()> {
    if (1..=limits::TEXT_BYTES_MAX).contains(&text.len()) {
        Ok(())
    } else {
        Err(ConfigError::new(
            key.to_owned(),
            "must have 1 to 1024 bytes",
        ))
    }
}

fn texts(key: &str, list: &[String], min: usize) -> Parsed<()> {
    count(key, list, min, limits::LIST_MAX)?;
    list.iter()
        .enumerate()
        .try_for_each(|(index, text)| check_text(&format!("{key}[{index}]"), text))
}

fn count<T>(key: &str, list: &[T], min: usize, max: usize) -> Parsed<()> {
    if (min..=max).contains(&list.len()) {
        Ok(())
    } else {
        Err(ConfigError::new(
            key.to_owned(),
            format!("must have {min} to {max} entries"),
        ))
    }
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
