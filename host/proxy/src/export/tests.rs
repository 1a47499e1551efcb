//! The example policies: each is read, its plugins take their configurations, and what it becomes for Envoy says what it must.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{Findings, Scope, configuration_text};
use crate::canary;
use crate::policy::Policy;

/// An example, with certificates made for the files it names.
fn example(name: &str) -> (tempfile::TempDir, Policy) {
    let folder = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/policies");
    let policy = folder.path().join(name);
    fs::copy(source.join(name), &policy).unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    fs::create_dir(folder.path().join("tls")).unwrap();
    for (file, pem) in [
        ("server.pem", &certificate),
        ("server.key", &key),
        ("tls/api.pem", &certificate),
        ("tls/api.key", &key),
        ("tls/site.pem", &certificate),
        ("tls/site.key", &key),
        ("tls/internal-ca.pem", &certificate),
    ] {
        fs::write(folder.path().join(file), pem).unwrap();
    }
    let policy = Policy::load(policy).unwrap();
    (folder, policy)
}

fn try_out(policy: &Policy) -> Findings {
    let runtime = crate::serve::runtime().unwrap();
    canary::try_out(policy, &runtime, &crate::DiskCache::of_user()).unwrap()
}

/// The export, read back.
fn exported(policy: &Policy, findings: &Findings, scope: Scope) -> Value {
    let text = configuration_text(policy, findings, Path::new("/modules"), scope).unwrap();
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// Every value at a path in which `*` stands for each item of a list.
fn at<'v>(value: &'v Value, path: &str) -> Vec<&'v Value> {
    path.split('/').fold(vec![value], |values, part| {
        let step = |value: &'v Value| match (part, value) {
            ("*", Value::Array(items)) => items.iter().collect(),
            _ => value.get(part).into_iter().collect::<Vec<_>>(),
        };
        values.into_iter().flat_map(step).collect()
    })
}

const MANAGER: &str = "static_resources/listeners/*/filter_chains/*/filters/*/typed_config";

#[test]
fn examples_become_what_envoy_needs() {
    for (name, listeners, chain, reply_headers) in [
        (
            "demo.yaml",
            2,
            "security-headers tls-policy jwt-auth rate-limit (rate-limit@limited) envoy.filters.http.router",
            true,
        ),
        (
            "api-edge.yaml",
            1,
            "security-headers tls-policy address-limit jwt-auth rate-limit (rate-limit@reports) envoy.filters.http.router",
            true,
        ),
        (
            "website.yaml",
            2,
            "security-headers (security-headers@assets) tls-policy address-limit envoy.filters.http.router",
            true,
        ),
    ] {
        let (_folder, policy) = example(name);
        let findings = try_out(&policy);
        let bootstrap = exported(&policy, &findings, Scope::Bootstrap);
        let managers = at(&bootstrap, MANAGER);
        assert_eq!(managers.len(), listeners, "{name}");
        for manager in managers {
            let filters = at(manager, "http_filters/*").into_iter().map(|filter| {
                let name = filter.get("name").and_then(Value::as_str).unwrap();
                match filter.get("disabled") {
                    Some(_) => format!("({name})"),
                    None => name.to_owned(),
                }
            });
            assert_eq!(filters.collect::<Vec<_>>().join(" "), chain, "{name}");
            for (key, expected) in [
                ("codec_type", "AUTO".into()),
                ("use_remote_address", true.into()),
                ("xff_num_trusted_hops", 0.into()),
                ("normalize_path", true.into()),
                ("merge_slashes", true.into()),
                ("path_with_escaped_slashes_action", "REJECT_REQUEST".into()),
                ("server_header_transformation", "PASS_THROUGH".into()),
            ] {
                assert_eq!(manager.get(key), Some::<&Value>(&expected), "{name} {key}");
            }
            let headers = at(
                manager,
                "local_reply_config/mappers/*/headers_to_add/*/header/key",
            );
            let nosniff = headers.iter().any(|key| *key == "x-content-type-options");
            assert_eq!(nosniff, reply_headers, "{name}");
            let wasm = at(manager, "http_filters/*/typed_config/config/failure_policy");
            assert!(wasm.iter().all(|policy| *policy == "FAIL_RELOAD"), "{name}");
        }
        // Strict transport security belongs on TLS alone (RFC 6797 §7.2).
        for listener in at(&bootstrap, "static_resources/listeners/*") {
            let tls = !at(listener, "filter_chains/*/transport_socket").is_empty();
            let keys = at(
                listener,
                "filter_chains/*/filters/*/typed_config/local_reply_config/mappers/*/headers_to_add/*/header/key",
            );
            let hsts = keys.iter().any(|key| *key == "strict-transport-security");
            assert_eq!(hsts, tls, "{name}");
        }
        let filters = exported(&policy, &findings, Scope::Filters);
        let count = at(&filters, "http_filters/*").len();
        assert_eq!(count, policy.instances.len(), "{name}");
    }
}

#[test]
fn a_header_that_a_filter_owns_is_removed_where_the_filter_is_off() {
    for (name, route) in [("demo.yaml", "public"), ("api-edge.yaml", "health")] {
        let (_folder, policy) = example(name);
        let bootstrap = exported(&policy, &try_out(&policy), Scope::Bootstrap);
        let routes = at(&bootstrap, MANAGER)
            .into_iter()
            .flat_map(|manager| at(manager, "route_config/virtual_hosts/*/routes/*"));
        for entry in routes {
            let removed = at(entry, "request_headers_to_remove/*");
            let expected: &[&str] = if entry.get("name") == Some(&route.into()) {
                &["x-user"]
            } else {
                &[]
            };
            assert_eq!(removed, expected, "{name} {entry}");
        }
    }
}

#[test]
fn clusters_are_verified() {
    let (folder, policy) = example("api-edge.yaml");
    let bootstrap = exported(&policy, &Findings::default(), Scope::Bootstrap);
    let own = folder
        .path()
        .join("tls/internal-ca.pem")
        .display()
        .to_string();
    for (name, kind, sni) in [
        ("orders", "STRICT_DNS", Some("orders.internal")),
        ("reports", "STATIC", None),
        ("idp", "STRICT_DNS", Some("idp.example.com")),
    ] {
        let clusters = at(&bootstrap, "static_resources/clusters/*");
        let cluster = clusters
            .into_iter()
            .find(|it| it.get("name") == Some(&name.into()))
            .unwrap();
        assert_eq!(cluster.get("type"), Some(&kind.into()), "{name}");
        let context = at(cluster, "transport_socket/typed_config");
        let found = context
            .iter()
            .filter_map(|it| it.get("sni")?.as_str())
            .next();
        assert_eq!(found, sni, "{name}");
        for context in context {
            assert_eq!(
                context.get("auto_sni_san_validation"),
                Some(&true.into()),
                "{name}"
            );
            let ca = at(
                context,
                "common_tls_context/validation_context/trusted_ca/filename",
            );
            let is_own = ca.first().and_then(|ca| ca.as_str()) == Some(&own);
            assert_eq!((ca.len(), is_own), (1, name == "orders"), "{name}");
        }
    }
}

#[test]
fn capabilities_are_written_for_envoy_and_unknown_ones_refused() {
    let policy = |allow: &str| {
        let text = format!(
            "listeners: [{{name: in, address: 127.0.0.1:8080}}]
clusters: [{{name: up, endpoints: [127.0.0.1:9000]}}]
routes: [{{name: all, cluster: up}}]
filters:
- name: f
  module: builtin:tls-policy
{allow}"
        );
        Policy::parse(Path::new("p.yaml"), Path::new("/"), &text).unwrap()
    };
    let map = format!(
        "{MANAGER}/http_filters/*/typed_config/config/capability_restriction_config/allowed_capabilities"
    );
    let all = exported(&policy(""), &Findings::default(), Scope::Bootstrap);
    assert!(at(&all, &map).is_empty());
    let listed = policy("  allow: {capabilities: [proxy_log, fd_write], properties: [source]}\n");
    let some = exported(&listed, &Findings::default(), Scope::Bootstrap);
    assert_eq!(
        at(&some, &map),
        [&serde_json::json!({"fd_write": {}, "proxy_log": {}})]
    );

    let unknown = policy("  allow:\n    capabilities: [proxy_log,\n      proxy_lag]\n");
    let runtime = crate::serve::runtime().unwrap();
    let refused = canary::try_out(&unknown, &runtime, &crate::DiskCache::of_user());
    let expected = "p.yaml:9: filters[0].allow.capabilities[1]: `proxy_lag` is no hostcall, WASI function or callback";
    assert_eq!(refused.expect_err("unknown").to_string(), expected);
}

#[test]
fn whether_headers_may_be_held_alone_is_written_where_the_policy_says_it() {
    let key = "allow_on_headers_stop_iteration";
    let path = format!("{MANAGER}/http_filters/*/typed_config/config");
    for (line, expected) in [
        ("", None),
        ("  allow_on_headers_stop_iteration: true", Some(true)),
        ("  allow_on_headers_stop_iteration: false", Some(false)),
    ] {
        let text = format!(
            "listeners: [{{name: in, address: 127.0.0.1:8080}}]
clusters: [{{name: up, endpoints: [127.0.0.1:9000]}}]
routes: [{{name: all, cluster: up}}]
filters:
- name: f
  module: builtin:tls-policy
{line}"
        );
        let policy = Policy::parse(Path::new("p.yaml"), Path::new("/"), &text).unwrap();
        let bootstrap = exported(&policy, &Findings::default(), Scope::Bootstrap);
        let configs = at(&bootstrap, &path);
        let found: Vec<_> = configs.iter().map(|config| config.get(key)).collect();
        let expected = expected.map(Value::from);
        assert_eq!(found, [expected.as_ref()], "{line:?}");
    }
}

#[test]
fn what_a_plugin_refuses_is_told_with_the_line_of_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let check = |configuration: &str, expected: &str| {
        let text = format!(
            "listeners: [{{name: in, address: 127.0.0.1:8080}}]
clusters: [{{name: up, endpoints: [127.0.0.1:9000]}}]
routes: [{{name: all, cluster: up}}]
filters:
- name: f
  module: builtin:rate-limit
  configuration:
{configuration}"
        );
        let policy = Policy::parse(Path::new("p.yaml"), folder.path(), &text).unwrap();
        let runtime = crate::serve::runtime().unwrap();
        let refused = canary::try_out(&policy, &runtime, &crate::DiskCache::of_user());
        let problems = refused.expect_err(configuration).to_string();
        assert!(problems.starts_with(expected), "{problems}");
    };
    check("    cost: 0\n", "p.yaml:8: filters[0].configuration.cost: ");
    check(
        "    cost: 1\n    limits:\n    - name: a\n      requests: 1\n      per: never\n",
        "p.yaml:12: filters[0].configuration.limits[0].per: ",
    );
    check(
        "    key: address\n    unknown: 1\n",
        "p.yaml:9: filters[0].configuration.unknown: ",
    );
    check(
        "    limits:\n    - name: a\n      requests: 1\n      burts: 1\n",
        "p.yaml:11: filters[0].configuration.limits[0].burts: ",
    );
}

/// What a chain runs: each filter with its configuration, looked up in the module of all controls where it is one.
fn runs(chain: &[std::sync::Arc<crate::policy::FilterInstance>]) -> Vec<(String, Value)> {
    let entries = chain.iter().flat_map(|instance| {
        let configuration = instance.configuration.to_json();
        match configuration.get("controls") {
            Some(controls) => controls.as_array().unwrap().clone(),
            None => vec![serde_json::json!({
                "filter": instance.filter.name,
                "configuration": if configuration.is_null() { serde_json::json!({}) } else { configuration },
            })],
        }
    });
    entries
        .map(|entry| {
            let filter = entry["filter"].as_str().unwrap().to_owned();
            (filter, entry["configuration"].clone())
        })
        .collect()
}

#[test]
fn neighbours_become_one_filter_that_runs_the_same() {
    for (name, filters) in [
        (
            "demo.yaml",
            &["security-headers+tls-policy+jwt-auth+rate-limit"][..],
        ),
        (
            "api-edge.yaml",
            &["security-headers+tls-policy+address-limit+jwt-auth+rate-limit"],
        ),
        (
            "website.yaml",
            &["security-headers+tls-policy+address-limit"],
        ),
    ] {
        let (_folder, policy) = example(name);
        let merged = super::in_one_module(&policy).unwrap();
        let names: Vec<&str> = merged.filters.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, filters, "{name}");
        for (before, after) in policy.routes.iter().zip(&merged.routes) {
            assert_eq!(runs(&before.chain), runs(&after.chain), "{}", before.name);
            assert!(after.chain.len() <= 1, "{}: {:?}", before.name, after.chain);
        }
        // Every instance is in its place, and takes its configuration.
        for (index, instance) in merged.instances.iter().enumerate() {
            assert_eq!(instance.index as usize, index);
        }
        try_out(&merged);
    }
}

#[test]
fn only_filters_with_equal_bounds_become_one() {
    let (_folder, policy) = example("demo.yaml");
    let filter = |index: usize| policy.filters[index].clone();
    for (change, names) in [
        (
            &(|it: &mut crate::policy::Filter| it.limits.callback_cpu_ms = 7)
                as &dyn Fn(&mut crate::policy::Filter),
            &["security-headers", "tls-policy", "jwt-auth+rate-limit"][..],
        ),
        (
            &|it| it.failure_policy = crate::policy::FailurePolicy::Open,
            &["security-headers", "tls-policy", "jwt-auth+rate-limit"],
        ),
        (
            &|it| it.root_id = "x".into(),
            &["security-headers", "tls-policy", "jwt-auth+rate-limit"],
        ),
        (
            &|it| it.allow.lists.properties = Some(portcullis_runtime::PropertyPaths::default()),
            &["security-headers", "tls-policy", "jwt-auth+rate-limit"],
        ),
    ] {
        let mut changed = policy.clone();
        let mut tls = crate::policy::Filter::clone(&filter(1));
        change(&mut tls);
        let tls = std::sync::Arc::new(tls);
        changed.filters[1] = tls.clone();
        let instances = changed.instances.iter().map(|it| {
            let mut instance = crate::policy::FilterInstance::clone(it);
            if instance.filter.name == tls.name {
                instance.filter = tls.clone();
            }
            std::sync::Arc::new(instance)
        });
        changed.instances = instances.collect();
        let merged = super::in_one_module(&changed).unwrap();
        let found: Vec<&str> = merged.filters.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(found, names);
    }
}
