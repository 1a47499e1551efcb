//! `export envoy --filters-only`, put into a bootstrap that somebody else wrote, as its first lines say.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::client::Route;
use portcullis_tests::envoy::{self, Envoy};
use portcullis_tests::http1::Request;
use portcullis_tests::report;
use portcullis_tests::upstream::Upstream;
use serde_json::{Value, json};

use crate::served;

/// An operator's own bootstrap with the exported parts in their places.
fn bootstrap(exported: &Value, upstream: &Upstream) -> Result<Value> {
    let mut filters = exported
        .get("http_filters")
        .and_then(Value::as_array)
        .context("no http_filters")?
        .clone();
    filters.push(json!({
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
    }));
    let mut routes = vec![
        exported
            .get("first_route")
            .context("no first_route")?
            .clone(),
    ];
    for (name, prefix) in [("public", "/public"), ("all", "/")] {
        let mut route = json!({
            "name": name, "match": {"prefix": prefix}, "route": {"cluster": "own"},
        });
        let said = exported.get("routes").and_then(Value::as_array);
        let said = said
            .into_iter()
            .flatten()
            .find(|route| route.get("name").and_then(Value::as_str) == Some(name));
        if let (Some(route), Some(said)) = (route.as_object_mut(), said.and_then(Value::as_object))
        {
            route.extend(said.clone());
        }
        routes.push(route);
    }
    let (host, port) = (
        upstream.address().ip().to_string(),
        upstream.address().port(),
    );
    Ok(json!({"static_resources": {
        "listeners": [{
            "name": "own",
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
            "filter_chains": [{"filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                    "stat_prefix": "own",
                    "use_remote_address": true,
                    "normalize_path": true,
                    "merge_slashes": true,
                    "path_with_escaped_slashes_action": "REJECT_REQUEST",
                    "http_filters": filters,
                    "route_config": {"virtual_hosts": [{"name": "own", "domains": ["*"], "routes": routes}]},
                },
            }]}],
        }],
        "clusters": [{
            "name": "own",
            "load_assignment": {"cluster_name": "own", "endpoints": [{"lb_endpoints": [{"endpoint": {
                "address": {"socket_address": {"address": host, "port_value": port}},
            }}]}]},
        }],
    }}))
}

#[test]
fn filters_alone_work_in_an_envoy_of_ones_own() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let upstream = Upstream::start()?;
    let jwk = jwt_auth::testing::public_jwk("rsa-1").map_err(anyhow::Error::msg)?;
    let policy = json!({
        "listeners": [{"name": "plain", "address": "127.0.0.1:8080"}],
        "clusters": [{"name": "upstream", "endpoints": [upstream.address().to_string()]}],
        "filters": [
            {"name": "security-headers", "module": "builtin:security-headers"},
            {"name": "jwt-auth", "module": "builtin:jwt-auth", "configuration": {
                "providers": [{"issuer": "https://issuer.test", "audiences": ["api"], "jwks": {"keys": [jwk]}}],
                "claims_to_headers": [{"claim": "sub", "header": "x-user"}],
            }},
        ],
        "routes": [
            {"name": "all", "cluster": "upstream"},
            {"name": "public", "prefix": "/public", "cluster": "upstream", "filters": {"jwt-auth": "off"}},
        ],
    });
    let policy_path = folder.path().join("policy.yaml");
    fs::write(&policy_path, serde_json::to_string_pretty(&policy)?)?;
    let out = folder.path().display().to_string();
    let policy_path = policy_path.display().to_string();
    let output = served::run(&[
        "export",
        "envoy",
        &policy_path,
        "--out",
        &out,
        "--filters-only",
    ])?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let exported = fs::read_to_string(folder.path().join("http_filters.yaml"))?;
    let exported: Value = serde_saphyr::from_str(&exported)?;
    let own = folder.path().join("own.yaml");
    fs::write(&own, bootstrap(&exported, &upstream)?.to_string())?;
    if let Some(why) = envoy::left_out() {
        report::not_run("exported filters in an Envoy of one's own", why);
        return Ok(());
    }
    let envoy = Envoy::start(&own, envoy::Options::default())?;
    let address = envoy.listener("own")?;
    let token = jwt_auth::testing::make("jwt", &json!({}), std::time::SystemTime::now())
        .map_err(anyhow::Error::msg)?;
    let token = [b"Bearer ".to_vec(), token].concat();
    let mut failures = String::new();
    for (path, token, status, user) in [
        ("/", None, 401, None),
        ("/", Some(&token), 200, Some("alice")),
        ("/public", None, 200, None),
        ("/public/%2e%2e;/", None, 400, None),
    ] {
        let mut request = Request::get(path).header("x-user", "mallory");
        if let Some(token) = token {
            request = request.header("authorization", token.clone());
        }
        let answer = Route::plain(address).send(&request)?;
        let seen = upstream.take_seen();
        let users: Vec<_> = seen
            .iter()
            .flat_map(|seen| &seen.headers)
            .filter(|(name, _)| name == b"x-user")
            .map(|(_, value)| String::from_utf8_lossy(value))
            .collect();
        if answer.status != status
            || (seen.len() == 1) != (status == 200)
            || users.first().map(AsRef::as_ref) != user
            || users.len() > 1
        {
            failures.push_str(&format!("{path}: {} {seen:?}\n", answer.status));
        }
        // The answer without a route has none: local_reply_config is the operator's own.
        if status != 400 && answer.header("x-content-type-options").is_none() {
            failures.push_str(&format!("{path}: no security headers\n"));
        }
    }
    ensure!(
        failures.is_empty(),
        "{failures}{}",
        envoy.process().last_words()
    );
    Ok(())
}
