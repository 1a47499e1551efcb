//! The configuration, parsed into values that cannot be wrong any more. Whatever is wrong with it is found here.

use std::time::Duration;

use portcullis_sdk::{ConfigError, VerifiedClaims};
use serde_json::Value;

use crate::algorithm::Algorithm;
use crate::challenge::Challenge;
use crate::claims::{ClaimPath, Matcher, RequiredClaim, Rules};
use crate::config::{
    ClaimPathConfig, ClaimToHeader, ClaimToProperty, Config, ProviderConfig, RemoteJwksConfig,
    RequiredClaimConfig,
};
use crate::forward::{ClaimHeader, ClaimProperty, Forward};
use crate::jwks::KeySet;
use crate::provider::{Keys, Provider};
use crate::remote::{Remote, Source};
use crate::{limits, token};

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
            forward: Forward {
                share: config.share_claims,
                ..parse_forward(config.claims_to_headers, config.claims_to_properties)?
            },
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
        if ["jwt.iss", "jwt.sub", VerifiedClaims::PROPERTY].contains(&name.as_str())
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
