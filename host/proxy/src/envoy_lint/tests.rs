//! Envoy configurations and what is said of them.

use std::path::Path;
use std::sync::Arc;

use super::{check_tree, read};

fn lints(text: &str) -> Vec<String> {
    let file: Arc<Path> = Path::new("envoy.yaml").into();
    let root = read(text).unwrap();
    let found = check_tree(&file, &root).expect("nothing of Envoy's");
    let names = found
        .iter()
        .map(|it| format!("{}:{}", it.problem.place.line, it.lint));
    names.collect()
}

const GOOD: &str = "admin: {address: {socket_address: {address: 127.0.0.1, port_value: 9901}}}
static_resources:
  listeners:
  - name: in
    address: {socket_address: {address: 0.0.0.0, port_value: 443}}
    filter_chains:
    - transport_socket:
        name: tls
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context: {tls_params: {tls_minimum_protocol_version: TLSv1_3}}
      filters:
      - name: http
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          normalize_path: true
          merge_slashes: true
          path_with_escaped_slashes_action: REJECT_REQUEST
          use_remote_address: true
          http_filters:
          - name: headers
            typed_config:
              '@type': type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm
              config:
                name: security-headers
                failure_policy: FAIL_RELOAD
                vm_config: {code: {remote: {http_uri: {uri: https://a}, sha256: abc}}}
          - name: envoy.filters.http.jwt_authn
            typed_config:
              '@type': type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication
              rules: [{match: {prefix: /}, requires: {provider_name: idp}}]
          - {name: envoy.filters.http.router}
          route_config:
            virtual_hosts:
            - name: all
              routes:
              - {match: {prefix: /}, route: {cluster: up}}
              - {match: {prefix: /health}, direct_response: {status: 200}}
";

#[test]
fn nothing_is_said_of_a_careful_one() {
    assert_eq!(lints(GOOD), Vec::<String>::new());
}

#[test]
fn each_fault_is_found_at_its_line() {
    for (from, to, expected) in [
        (
            "address: 127.0.0.1, port_value: 9901",
            "address: 0.0.0.0, port_value: 9901",
            "1:admin-exposed",
        ),
        (
            "address: 127.0.0.1, port_value: 9901",
            "address: '::', port_value: 9901",
            "1:admin-exposed",
        ),
        ("TLSv1_3", "TLSv1_2", "11:tls-floor"),
        (
            "tls_params: {tls_minimum_protocol_version: TLSv1_3}",
            "",
            "9:tls-floor",
        ),
        (
            "normalize_path: true",
            "normalize_path: false",
            "14:path-forms",
        ),
        ("          merge_slashes: true\n", "", "14:path-forms"),
        ("REJECT_REQUEST", "KEEP_UNCHANGED", "18:path-forms"),
        (
            "use_remote_address: true",
            "use_remote_address: false",
            "14:client-address",
        ),
        (
            "failure_policy: FAIL_RELOAD",
            "failure_policy: FAIL_OPEN",
            "26:fail-open",
        ),
        (
            "failure_policy: FAIL_RELOAD",
            "fail_open: true",
            "26:fail-open",
        ),
        (", sha256: abc", "", "27:unpinned-module"),
        (
            "failure_policy: FAIL_RELOAD",
            "configuration: {'@type': type.googleapis.com/google.protobuf.StringValue, value: '{\"shadow\": true}'}",
            "26:shadow-mode",
        ),
        (
            "failure_policy: FAIL_RELOAD",
            "configuration: {'@type': type.googleapis.com/google.protobuf.StringValue, value: '{\"hmac_key\": \"a\"}'}",
            "26:weak-secret",
        ),
        (
            "{match: {prefix: /}, requires: {provider_name: idp}}",
            "{match: {prefix: /api}, requires: {provider_name: idp}}",
            "37:open-route",
        ),
        (
            "requires: {provider_name: idp}",
            "requires: {requires_any: {requirements: [{provider_name: idp}, {allow_missing: {}}]}}",
            "37:open-route",
        ),
        (", requires: {provider_name: idp}", "", "37:open-route"),
        (
            "route: {cluster: up}}",
            "route: {cluster: up}, typed_per_filter_config: {envoy.filters.http.jwt_authn: {'@type': type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true}}}",
            "37:open-route",
        ),
    ] {
        assert!(GOOD.contains(from), "{from}");
        assert_eq!(
            lints(&GOOD.replacen(from, to, 1)),
            [expected],
            "{from} → {to}"
        );
    }
}

#[test]
fn plaintext_and_order_are_seen() {
    let start = GOOD.find("    - transport_socket:").unwrap();
    let end = GOOD.find("      filters:\n").unwrap();
    let plain = format!(
        "{}    - name: plain\n{}",
        GOOD.get(..start).unwrap(),
        GOOD.get(end..).unwrap()
    );
    assert_eq!(lints(&plain), ["7:plaintext-listener"]);
    let local = plain.replace(
        "address: 0.0.0.0, port_value: 443",
        "address: 127.0.0.1, port_value: 80",
    );
    assert_eq!(lints(&local), Vec::<String>::new());
    let late = GOOD.replace(
        "          - name: headers\n",
        "          - {name: envoy.filters.http.cors}\n          - name: headers\n",
    );
    assert_eq!(lints(&late), ["22:headers-not-first"]);
}

#[test]
fn a_filter_that_is_off_may_be_switched_on_by_a_route() {
    let off = GOOD.replace(
        "          - name: envoy.filters.http.jwt_authn\n",
        "          - name: envoy.filters.http.jwt_authn\n            disabled: true\n",
    );
    assert_eq!(lints(&off), ["38:open-route"]);
    let on = off.replace(
        "route: {cluster: up}}",
        "route: {cluster: up}, typed_per_filter_config: {envoy.filters.http.jwt_authn: {'@type': type.googleapis.com/envoy.config.route.v3.FilterConfig, config: {}}}}",
    );
    assert_eq!(lints(&on), Vec::<String>::new());
}

#[test]
fn a_dump_is_walked_and_says_nothing_twice() {
    let bootstrap = read(GOOD).unwrap().to_json();
    let manager = "/filter_chains/0/filters/0/typed_config";
    let mut listener = bootstrap["static_resources"]["listeners"][0].clone();
    let mut routes = listener.pointer(manager).unwrap()["route_config"].clone();
    routes["name"] = "dynamic".into();
    let http = listener
        .pointer_mut(manager)
        .unwrap()
        .as_object_mut()
        .unwrap();
    http.remove("route_config");
    http.remove("mergeSlashes");
    http.insert(
        "rds".into(),
        serde_json::json!({"routeConfigName": "dynamic"}),
    );
    http["http_filters"].as_array_mut().unwrap().remove(1);
    let dump = serde_json::json!({"configs": [
        {"@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump", "bootstrap": bootstrap},
        {"@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump",
         "dynamic_listeners": [{"name": "in", "active_state": {"listener": listener}}]},
        {"@type": "type.googleapis.com/envoy.admin.v3.RoutesConfigDump",
         "dynamic_route_configs": [{"route_config": routes}]},
    ]});
    for text in [
        dump.to_string(),
        serde_json::to_string_pretty(&dump).unwrap(),
    ] {
        let found = lints(&text);
        let names: Vec<_> = found
            .iter()
            .map(|it| it.split(':').nth(1).unwrap())
            .collect();
        assert_eq!(names, ["open-route"], "{found:?}");
    }
    // Surrogate pairs are JSON's own, and no YAML.
    let odd = r#"{"node": {"id": "\ud83d\ude00"}, "admin": {"address": {"socket_address": {"address": "0.0.0.0"}}}}"#;
    assert_eq!(lints(odd), ["1:admin-exposed"]);
}

#[test]
fn what_is_nothing_of_envoys_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x");
    for (bytes, words) in [
        (&b""[..], "neither an Envoy bootstrap"),
        (b"listeners: []\n", "neither an Envoy bootstrap"),
        (b"[1, 2]", "neither an Envoy bootstrap"),
        (b"a: [", "not YAML"),
        (b"\x7fELF\xff\xfe", "not UTF-8"),
    ] {
        std::fs::write(&file, bytes).unwrap();
        let said = super::check(&file).unwrap_err().to_string();
        assert!(said.contains(words), "{bytes:?}: {said}");
    }
    for (path, words) in [
        (folder.path(), "it is a folder"),
        (Path::new("no-such"), "no such file"),
    ] {
        let said = super::check(path).unwrap_err().to_string();
        assert!(said.contains(words), "{said}");
    }
}
