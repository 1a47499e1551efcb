//! Envoy without Wasm: what `portcullis export envoy` writes for a policy without filters, and in it Envoy's own filters for the jobs of
//! the four controls.

use crate::headers::SECURITY_HEADERS;
use crate::issuer::{AUDIENCE, ISSUER, Issuer};
use crate::upstream::TELLTALES;
use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Tokens that jwt_authn's cache holds: as many as jwt-auth's. Envoy's default is 100.
const CACHED_TOKENS: u32 = 256;
/// Where the filters of the only listener stand in the exported configuration.
const FILTERS: &str =
    "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config/http_filters";

/// `bootstrap` (YAML) with `filters` before its router, as JSON.
///
/// # Errors
/// When it is not what `export envoy` writes.
pub fn with_filters(bootstrap: &str, filters: Vec<Value>) -> Result<String> {
    let mut bootstrap: Value =
        serde_saphyr::from_str(bootstrap).context("cannot read what export envoy wrote")?;
    bootstrap
        .pointer_mut(FILTERS)
        .and_then(Value::as_array_mut)
        .context("export envoy wrote no HTTP filters")?
        .splice(0..0, filters);
    Ok(serde_json::to_string_pretty(&bootstrap)?)
}

fn filter(name: &str, kind: &str, mut configuration: Value) -> Value {
    if let Some(fields) = configuration.as_object_mut() {
        let kind = format!("type.googleapis.com/envoy.extensions.filters.http.{kind}");
        fields.insert("@type".to_owned(), kind.into());
    }
    json!({"name": format!("envoy.filters.http.{name}"), "typed_config": configuration})
}

/// header_mutation for security-headers, jwt_authn for jwt-auth, local_ratelimit for rate-limit. The job of tls-policy is the listener's
/// minimum version, which costs a request nothing. Where a job leaves a choice, it is what costs Envoy least: two names are removed
/// instead of 87, and one bucket counts everybody together.
pub fn native(issuer: &Issuer, requests_per_minute: u32) -> Vec<Value> {
    let set = SECURITY_HEADERS.iter().map(|(key, value)| {
        json!({"append": {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}})
    });
    let remove = TELLTALES.iter().map(|(name, _)| json!({"remove": name}));
    let mutations: Vec<Value> = set.chain(remove).collect();
    let always =
        json!({"default_value": {"numerator": 100, "denominator": "HUNDRED"}, "runtime_key": ""});
    vec![
        filter(
            "header_mutation",
            "header_mutation.v3.HeaderMutation",
            json!({"mutations": {"response_mutations": mutations}}),
        ),
        filter(
            "jwt_authn",
            "jwt_authn.v3.JwtAuthentication",
            json!({
                "providers": {"load": {
                    "issuer": ISSUER,
                    "audiences": [AUDIENCE],
                    "local_jwks": {"inline_string": issuer.jwks().to_string()},
                    "forward": true,
                    "jwt_cache_config": {"jwt_cache_size": CACHED_TOKENS, "jwt_max_token_size": 8192},
                }},
                "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "load"}}],
            }),
        ),
        filter(
            "local_ratelimit",
            "local_ratelimit.v3.LocalRateLimit",
            json!({
                "stat_prefix": "load",
                "token_bucket": {"max_tokens": requests_per_minute, "tokens_per_fill": requests_per_minute, "fill_interval": "60s"},
                "filter_enabled": always,
                "filter_enforced": always,
                "enable_x_ratelimit_headers": "DRAFT_VERSION_03",
            }),
        ),
    ]
}

/// One script for security-headers, and for the part of jwt-auth that needs no cryptography: a bearer token is there.
pub fn lua() -> Vec<Value> {
    let set: String = SECURITY_HEADERS
        .iter()
        .map(|(name, value)| format!("  headers:replace({name:?}, {value:?})\n"))
        .collect();
    let remove: String = TELLTALES
        .iter()
        .map(|(name, _)| format!("  headers:remove({name:?})\n"))
        .collect();
    let script = format!(
        "\
function envoy_on_request(handle)
  local value = handle:headers():get(\"authorization\")
  if value == nil or string.sub(value, 1, 7) ~= \"Bearer \" then
    handle:respond({{[\":status\"] = \"401\"}}, \"\")
  end
end
function envoy_on_response(handle)
  local headers = handle:headers()
{set}{remove}end
"
    );
    vec![filter(
        "lua",
        "lua.v3.Lua",
        json!({"default_source_code": {"inline_string": script}}),
    )]
}
