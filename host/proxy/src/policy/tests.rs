//! Bad policies and the exact lines they are refused with; good ones and what they become.

use std::path::Path;

use super::{AccessLog, Policy};

mod hostile;
mod schema;

/// A folder with a certificate, its key, another key, a module and one that authenticates.
pub(super) fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let other = rcgen::KeyPair::generate().unwrap();
    let section = |text: &str| {
        let name = b"portcullis";
        let mut module = b"\0asm\x01\0\0\0\0".to_vec();
        module.push(u8::try_from(text.len() + name.len() + 1).unwrap());
        module.push(u8::try_from(name.len()).unwrap());
        module.extend_from_slice(name);
        module.extend_from_slice(text.as_bytes());
        module
    };
    for (name, bytes) in [
        ("cert.pem", made.cert.pem().into_bytes()),
        ("key.pem", made.signing_key.serialize_pem().into_bytes()),
        ("other.pem", other.serialize_pem().into_bytes()),
        ("empty.pem", Vec::new()),
        ("plain.wasm", b"\0asm\x01\0\0\0".to_vec()),
        (
            "auth.wasm",
            section("name=jwt-auth\nversion=1\nauthenticates=1\n"),
        ),
        (
            "headers.wasm",
            section("name=security-headers\nversion=1\nauthenticates=0\n"),
        ),
        ("component.wasm", b"\0asm\x0d\0\x01\0".to_vec()),
        ("text.wasm", b"(module)".to_vec()),
        ("nameless.wasm", section("version=1\n")),
        ("half.wasm", b"\0asm\x01\0\0\0\x01".to_vec()),
    ] {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

/// Lines 1 to 3 of every policy below that writes only what it is about.
const HEAD: &str = "listeners: [{name: in, address: 127.0.0.1:8080}]
clusters: [{name: up, endpoints: [127.0.0.1:9000]}]
routes: [{name: all, cluster: up}]
";

pub(super) fn parse(folder: &Path, text: &str) -> Result<Policy, String> {
    let policy =
        Policy::parse(Path::new("p.yaml"), folder, text).map_err(|errors| errors.to_string());
    if policy.is_ok() {
        schema::takes(text);
    }
    policy
}

#[test]
fn bad_policies_are_refused_with_every_line() {
    let folder = folder();
    let dir = folder.path().display().to_string();
    let check = |text: &str, expected: &[&str]| {
        let problems = parse(folder.path(), text).expect_err(text);
        let expected: Vec<_> = expected
            .iter()
            .map(|line| line.replace("DIR", &dir))
            .collect();
        assert_eq!(problems.lines().collect::<Vec<_>>(), expected, "\n{text}");
        schema::agrees(text, &problems);
    };
    let tail = |text: &str, expected: &[&str]| check(&format!("{HEAD}{text}"), expected);
    let whole = "known here: listeners, clusters, filters, routes, admin, access_log, workers, drain_timeout";

    // The file as a whole.
    check(
        "- a list",
        &["p.yaml:1: policy: expected a mapping, found a list"],
    );
    check("", &["p.yaml:1: policy: expected a mapping, found nothing"]);
    check(
        "listeners: []\n",
        &[
            "p.yaml:1: listeners: at least one is needed",
            "p.yaml:1: policy: `routes` is missing",
        ],
    );
    tail(
        "extra: 1\n",
        &[&format!("p.yaml:4: extra: unknown key, {whole}")],
    );
    tail(
        "workers: 0\n",
        &["p.yaml:4: workers: `0` is not a whole number from 1 to 512"],
    );
    tail(
        "workers: many\n",
        &["p.yaml:4: workers: expected a whole number, found a string"],
    );
    tail(
        "drain_timeout: 5\n",
        &["p.yaml:4: drain_timeout: `5` is not a duration such as 10ms, 2.5s, 1m or 1h"],
    );
    tail(
        "drain_timeout: 0s\n",
        &["p.yaml:4: drain_timeout: must be from 1ms to 86400s"],
    );
    tail(
        "access_log: true\n",
        &["p.yaml:4: access_log: expected a string (put it in quotes), found a boolean"],
    );

    // Listeners and admin.
    tail(
        "admin: {address: 0.0.0.0:9901}\n",
        &[
            "p.yaml:4: admin.address: 0.0.0.0:9901 is not a loopback address: admin answers anyone who can reach it",
        ],
    );
    tail(
        "admin:\n  address: 127.0.0.1:8080\n",
        &["p.yaml:5: admin.address: 127.0.0.1:8080 overlaps with 127.0.0.1:8080 on line 1"],
    );
    check(
        "listeners:
- name: a
  address: localhost:80
- name: a b
  address: 127.0.0.1
- name: c
  address: 10.0.0.1:80
- name: c
  address: '[::]:80'
  tls: {minimum_version: 1.1, client_ca: empty.pem}
clusters: []
routes: [{name: all, cluster: up}]
",
        &[
            "p.yaml:3: listeners[0].address: `localhost:80` is not an address and a port such as 127.0.0.1:8080 or [::]:8443",
            "p.yaml:4: listeners[1].name: `a b` is not a name: up to 64 letters, digits, `-`, `_` and `.`, a letter or digit first",
            "p.yaml:5: listeners[1].address: `127.0.0.1` is not an address and a port such as 127.0.0.1:8080 or [::]:8443",
            "p.yaml:8: listeners[3].name: `c` is already the name of the one on line 6",
            "p.yaml:10: listeners[3].tls: `certificate_chain` is missing",
            "p.yaml:10: listeners[3].tls: `private_key` is missing",
            "p.yaml:10: listeners[3].tls.minimum_version: `1.1` is not a TLS version, it may be \"1.2\" or \"1.3\"",
            "p.yaml:10: listeners[3].tls.client_ca: DIR/empty.pem holds no PEM certificate",
            "p.yaml:12: routes[0].cluster: there is no cluster `up`",
        ],
    );
    check(
        "listeners:
- {name: a, address: '[::]:443'}
- name: b
  address: 10.0.0.1:443
  tls:
    certificate_chain: cert.pem
    private_key: other.pem
    require_client_certificate: true
- name: c
  address: 10.0.0.1:444
  tls:
    certificate_chain: nowhere.pem
    private_key: cert.pem
clusters: [{name: up, endpoints: [127.0.0.1:9000]}]
routes: [{name: all, cluster: up}]
",
        &[
            "p.yaml:7: listeners[1].tls.private_key: DIR/other.pem does not belong to the certificate in DIR/cert.pem",
            "p.yaml:8: listeners[1].tls.require_client_certificate: `client_ca` is missing: nobody could sign a client's certificate",
            "p.yaml:12: listeners[2].tls.certificate_chain: cannot read DIR/nowhere.pem: no such file",
            "p.yaml:13: listeners[2].tls.private_key: DIR/cert.pem holds no PEM private key",
        ],
    );

    // Clusters.
    check(
        "listeners: [{name: in, address: 127.0.0.1:8080}]
clusters:
- name: up
  endpoints: []
- name: none
- name: odd
  endpoints: [10.0.0.1, 10.0.0.300:80, 'api.internal:0', up:80]
  protocol: h2c
  connect_timeout: -1s
  tls: {sni: 'a b', ca: missing.pem, verify: false}
- name: tls
  endpoints: [10.0.0.1:443]
  tls: {}
routes: [{name: all, cluster: up}]
",
        &[
            "p.yaml:4: clusters[0].endpoints: at least one endpoint is needed",
            "p.yaml:5: clusters[1]: `endpoints` is missing",
            "p.yaml:7: clusters[2].endpoints[0]: `10.0.0.1` is not a host and a port such as 10.0.0.7:8080 or api.internal:8080",
            "p.yaml:7: clusters[2].endpoints[1]: `10.0.0.300:80` is not a host and a port such as 10.0.0.7:8080 or api.internal:8080",
            "p.yaml:7: clusters[2].endpoints[2]: `api.internal:0` is not a host and a port such as 10.0.0.7:8080 or api.internal:8080",
            "p.yaml:8: clusters[2].protocol: `h2c` is not a protocol, it may be `http1` or `http2`",
            "p.yaml:9: clusters[2].connect_timeout: `-1s` is not a duration such as 10ms, 2.5s, 1m or 1h",
            "p.yaml:10: clusters[2].tls.verify: unknown key, known here: sni, ca",
            "p.yaml:10: clusters[2].tls.sni: `a b` is not a DNS name",
            "p.yaml:10: clusters[2].tls.ca: cannot read DIR/missing.pem: no such file",
            "p.yaml:13: clusters[3].tls: `sni` is missing: the endpoints do not share one DNS name to expect in the certificate",
        ],
    );

    // Filters.
    tail(
        "filters:
- name: a
  module: builtin:nothing
- name: a
  module: missing.wasm
- module: text.wasm
- {name: b, module: component.wasm}
- name: c
  module: plain.wasm
  sha256: '0000000000000000000000000000000000000000000000000000000000000000'
- {name: d, module: plain.wasm, sha256: 12}
- {name: e, module: auth.wasm, failure_policy: open}
- {name: f, module: plain.wasm, failure_policy: ajar, configuration: [1], clusters: [up, down]}
- name: g
  module: plain.wasm
  limits: {memory: 2GiB, callback_time: 1m, cpu: 1}
- {name: h, module: nameless.wasm}
- {name: i, module: half.wasm}
",
        &[
            "p.yaml:6: filters[0].module: there is no builtin `nothing`; there are: BUILTINS",
            "p.yaml:7: filters[1].name: `a` is already the name of the one on line 5",
            "p.yaml:8: filters[1].module: cannot read DIR/missing.wasm: no such file",
            "p.yaml:9: filters[2]: `name` is missing",
            "p.yaml:9: filters[2].module: DIR/text.wasm is not a Wasm module",
            "p.yaml:10: filters[3].module: DIR/component.wasm is a Wasm component, a core module is needed",
            "p.yaml:13: filters[4].sha256: DIR/plain.wasm has sha256 93a44bbb96c751218e4c00d479e4c14358122a389acca16205b1e4d0dc5f9476",
            "p.yaml:14: filters[5].sha256: `12` is not a sha256: 64 hexadecimal digits in quotes",
            "p.yaml:15: filters[6].failure_policy: `open` would let everybody in: this control authenticates, only `closed` is possible",
            "p.yaml:16: filters[7].failure_policy: `ajar` is not a failure policy, it may be `closed` or `open`",
            "p.yaml:16: filters[7].configuration: expected a mapping, found a list",
            "p.yaml:16: filters[7].clusters[1]: there is no cluster `down`",
            "p.yaml:19: filters[8].limits.cpu: unknown key, known here: memory, body, callback_time, request_time, start_time, vms, spare_vms, callouts_in_flight, log_lines_per_second",
            "p.yaml:19: filters[8].limits.memory: must be from 1048576 to 1073741824 bytes",
            "p.yaml:19: filters[8].limits.callback_time: must be from 5ms to 1s",
            "p.yaml:20: filters[9].module: DIR/nameless.wasm cannot be loaded: custom section portcullis: no name",
            "p.yaml:21: filters[10].module: DIR/half.wasm cannot be loaded: not a valid wasm module: unexpected end-of-file",
        ]
        .map(|line| line.replace("BUILTINS", &super::module::builtin_names()))
        .each_ref()
        .map(String::as_str),
    );

    // Routes.
    check(
        "listeners: [{name: in, address: 127.0.0.1:8080}]
clusters: [{name: up, endpoints: [127.0.0.1:9000]}]
filters: [{name: f, module: plain.wasm}]
routes:
- {name: a, cluster: up, prefix: /a/}
- {name: b, cluster: up, prefix: /a}
- {name: c, cluster: up, host: 'a.example:80'}
- {name: d, cluster: up, prefix: api}
- {name: e, cluster: up, prefix: /a//b}
- {name: f, cluster: up, prefix: '/a?b'}
- {name: g, cluster: up, prefix: /g, filters: {f: on, g: off}}
- {name: h, cluster: up, prefix: /h, filters: {f: {configuration: 1}}}
- {cluster: down, prefix: /i}
",
        &[
            "p.yaml:7: routes[2].host: `a.example:80` is not a host such as api.example.com or *.example.com, without a port",
            "p.yaml:8: routes[3].prefix: `api` is not a path prefix: it must start with `/`",
            "p.yaml:9: routes[4].prefix: `/a//b` is not a path prefix: empty and dot segments never reach a route, paths are normalised first",
            "p.yaml:10: routes[5].prefix: `/a?b` is not a path prefix: only plain path characters, no query, pattern, escape or backslash",
            "p.yaml:11: routes[6].filters.f: expected `off` or a mapping with `configuration`",
            "p.yaml:11: routes[6].filters.g: there is no filter `g`",
            "p.yaml:12: routes[7].filters.f.configuration: expected a mapping, found a number",
            "p.yaml:13: routes[8]: `name` is missing",
            "p.yaml:13: routes[8].cluster: there is no cluster `down`",
        ],
    );
    check(
        "listeners: [{name: in, address: 127.0.0.1:8080}]
clusters: [{name: up, endpoints: [127.0.0.1:9000]}]
routes:
- {name: a, cluster: up, host: A.example, prefix: /a/}
- {name: b, cluster: up, host: a.example, prefix: /a}
",
        &["p.yaml:5: routes[1]: matches the same requests as `a` on line 4"],
    );
}

#[test]
fn whether_headers_may_be_held_alone_is_read_or_left_to_the_module() {
    let folder = folder();
    let read = |text: &str| {
        let text = format!("{HEAD}filters:\n- name: f\n  module: plain.wasm\n{text}");
        parse(folder.path(), &text)
            .map(|policy| policy.instances[0].spec().allow_on_headers_stop_iteration)
    };
    assert_eq!(read(""), Ok(None));
    for (text, expected) in [("true", true), ("false", false)] {
        let text = format!("  allow_on_headers_stop_iteration: {text}\n");
        assert_eq!(read(&text), Ok(Some(expected)));
    }
    assert_eq!(
        read("  allow_on_headers_stop_iteration: 1\n"),
        Err("p.yaml:7: filters[0].allow_on_headers_stop_iteration: expected true or false, found a number".into())
    );
}

#[test]
fn what_a_filter_may_use_is_read_or_refused() {
    let folder = folder();
    let filter = |text: &str| {
        let text = format!("{HEAD}filters:\n- name: f\n  module: plain.wasm\n{text}");
        parse(folder.path(), &text).map(|policy| std::sync::Arc::clone(&policy.filters[0]))
    };
    for (text, expected) in [
        (
            "  allow: []\n",
            "p.yaml:7: filters[0].allow: expected a mapping, found a list",
        ),
        (
            "  allow: {hostcalls: []}\n",
            "p.yaml:7: filters[0].allow.hostcalls: unknown key, known here: capabilities, properties, foreign_functions",
        ),
        (
            "  allow:\n    capabilities: []\n",
            "p.yaml:8: filters[0].allow.capabilities: at least one is needed: Envoy reads an empty list as everything",
        ),
        (
            "  allow:\n    capabilities: [[]]\n",
            "p.yaml:8: filters[0].allow.capabilities[0]: expected a string, found a list",
        ),
        (
            "  allow:\n    properties:\n    - a\n    - a..b\n",
            "p.yaml:10: filters[0].allow.properties[1]: `a..b` is not a property path such as request.headers.x-user",
        ),
        (
            "  allow:\n    foreign_functions: ['']\n",
            "p.yaml:8: filters[0].allow.foreign_functions[0]: empty name",
        ),
        (
            "  limits: {callouts_in_flight: 1025}\n",
            "p.yaml:7: filters[0].limits.callouts_in_flight: `1025` is not a whole number from 0 to 1024",
        ),
        (
            "  limits: {log_lines_per_second: 1000001}\n",
            "p.yaml:7: filters[0].limits.log_lines_per_second: `1000001` is not a whole number from 0 to 1000000",
        ),
        (
            "  signature: {file: s}\n",
            "p.yaml:7: filters[0].signature: `minisign_public_key` is missing",
        ),
        (
            "  signature: {minisign_public_key: x, file: plain.wasm}\n",
            "p.yaml:7: filters[0].signature.minisign_public_key: `x` is not a minisign public key: ",
        ),
        (
            "  signature: {minisign_public_key: RWSIwnFxAXT+CFDifA9q6E7wsJDfypDWYc/yY60s1DsU8IGqirvlxgrJ, file: plain.wasm}\n",
            "p.yaml:7: filters[0].signature.file: DIR/plain.wasm is not a minisign signature: ",
        ),
        (
            "  signature: {minisign_public_key: RWSIwnFxAXT+CFDifA9q6E7wsJDfypDWYc/yY60s1DsU8IGqirvlxgrJ, file: none}\n",
            "p.yaml:7: filters[0].signature.file: cannot read DIR/none: no such file",
        ),
    ] {
        let problems = filter(text).expect_err(text);
        let expected = expected.replace("DIR", &folder.path().display().to_string());
        assert!(
            problems.lines().any(|line| line.starts_with(&expected)),
            "{problems}"
        );
    }
    let plain = filter("").unwrap();
    assert!(plain.allow.lists.is_everything());
    assert_eq!(plain.limits, portcullis_runtime::Limits::default());
    let text = "  limits: {callouts_in_flight: 0, log_lines_per_second: 5}
  allow:
    capabilities: [proxy_log, fd_write]
    properties: []
    foreign_functions: [sign]
";
    let bound = filter(text).unwrap();
    assert_eq!(
        (
            bound.limits.callouts_in_flight,
            bound.limits.log_lines_per_second
        ),
        (0, 5)
    );
    let lists = &bound.allow.lists;
    let names = |list: &Option<std::collections::BTreeSet<String>>| {
        list.iter().flatten().cloned().collect::<Vec<_>>()
    };
    assert_eq!(names(&lists.capabilities), ["fd_write", "proxy_log"]);
    assert_eq!(names(&lists.foreign_functions), ["sign"]);
    assert_eq!(
        lists.properties.as_ref().map(|it| it.iter().count()),
        Some(0)
    );
    let place = bound.allow.place_of("fd_write").unwrap();
    assert_eq!(
        (place.line, &*place.key),
        (9, "filters[0].allow.capabilities[1]")
    );
}

#[test]
fn what_is_not_yaml_is_refused_with_its_line() {
    for (text, expected) in [
        ("listeners:\n  - a\n - b\n", "p.yaml:3: policy: not YAML: "),
        ("a: 1\na: 2\n", "p.yaml:2: policy: not YAML: "),
        ("a: [1\n", "p.yaml:"),
        ("a: 1\n---\nb: 2\n", "p.yaml:"),
    ] {
        let problems = parse(Path::new("/"), text).expect_err(text);
        assert!(problems.starts_with(expected), "{problems}");
        assert_eq!(problems.lines().count(), 1, "{problems}");
    }
}

#[test]
fn who_authenticates_calls_only_verified_peers() {
    let folder = folder();
    let check = |module: &str, cluster: &str, is_allowed: bool| {
        let text = format!(
            "{HEAD}filters:
- name: f
  module: {module}
  clusters:
  - up
  - keys
"
        )
        .replacen("}]\n", "}]\n# keys\n", 1)
        .replacen(
            "9000]}]",
            &format!("9000]}}, {{name: keys, {cluster}}}]"),
            1,
        );
        let expected = "p.yaml:10: filters[0].clusters[1]: `keys` has no `tls` and is not all loopback addresses: who writes on that network would decide whom this control lets in";
        let parsed = parse(folder.path(), &text).map(|policy| policy.filters.len());
        let expected = if is_allowed {
            Ok(1)
        } else {
            Err(expected.to_owned())
        };
        assert_eq!(parsed, expected, "{module} {cluster}");
    };
    for (cluster, is_allowed) in [
        ("endpoints: ['127.0.0.1:80']", true),
        (
            "endpoints: ['127.8.9.1:80', '[::1]:80', '[::ffff:127.0.0.1]:80']",
            true,
        ),
        (
            "endpoints: ['10.0.0.1:443', 'idp.example:443'], tls: {sni: idp.example}",
            true,
        ),
        ("endpoints: ['10.0.0.1:80']", false),
        ("endpoints: ['127.0.0.1:80', '10.0.0.1:80']", false),
        ("endpoints: ['localhost:80']", false),
        ("endpoints: ['idp.example:80']", false),
        ("endpoints: ['[::ffff:10.0.0.1]:80']", false),
    ] {
        check("auth.wasm", cluster, is_allowed);
        check("plain.wasm", cluster, true);
    }
    check("builtin:jwt-auth", "endpoints: ['idp.example:80']", false);
}

#[test]
fn a_missing_file_is_refused() {
    let errors = Policy::load("/nowhere/p.yaml").expect_err("no such file");
    assert_eq!(
        errors.to_string(),
        "/nowhere/p.yaml:1: policy: cannot read /nowhere/p.yaml: no such file"
    );
}

#[test]
fn chains_follow_the_routes() {
    let folder = folder();
    let policy = parse(
        folder.path(),
        "listeners: [{name: in, address: 127.0.0.1:8080}]
clusters: [{name: up, endpoints: ['Up.Internal:80', '[::1]:9000']}]
access_log: log/access.json
filters:
- {name: a, module: plain.wasm, configuration: {x: 1}}
- {name: b, module: auth.wasm}
routes:
- {name: all, cluster: up}
- {name: off, cluster: up, prefix: /off, filters: {a: off}}
- {name: own, cluster: up, prefix: /own/, filters: {a: {configuration: {x: 2}}}}
- {name: same, cluster: up, prefix: /same, filters: {a: {configuration: {x: 1}}}}
- {name: twin, cluster: up, prefix: /own/twin, filters: {a: {configuration: {x: 2}}}}
- {name: exact, cluster: up, host: A.example}
- {name: below, cluster: up, host: '*.example', prefix: /below}
",
    )
    .unwrap();
    assert_eq!(
        policy.access_log,
        AccessLog::File(folder.path().join("log/access.json"))
    );
    assert_eq!(
        policy.clusters.first().map(|it| it.endpoints.len()),
        Some(2)
    );
    let instances: Vec<_> = policy.instances.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(instances, ["a", "b", "a@own"]);
    for (host, path, route, chain) in [
        ("x", "/", Some("all"), "a b"),
        ("x", "/off", Some("off"), "b"),
        ("x", "/offx", Some("all"), "a b"),
        ("x", "/own", Some("own"), "a@own b"),
        ("x", "/own/deep/er", Some("own"), "a@own b"),
        ("x", "/own/twin", Some("twin"), "a@own b"),
        ("x", "/same/", Some("same"), "a b"),
        ("a.example", "/off", Some("exact"), "a b"),
        ("b.example", "/below", Some("below"), "a b"),
        ("c.b.example", "/below/x", Some("below"), "a b"),
        ("b.example", "/", None, ""),
        (".example", "/below", Some("all"), "a b"),
        ("x", "", Some("all"), "a b"),
        ("x", "/own/twin/x", Some("twin"), "a@own b"),
        ("x", "/own/twinx", Some("own"), "a@own b"),
        ("x", "/own//", Some("own"), "a@own b"),
        ("x", "*", None, ""),
    ] {
        let found = policy.table.find(host, path);
        assert_eq!(found.map(|it| it.name.as_str()), route, "{host} {path}");
        let names = found
            .iter()
            .flat_map(|it| &it.chain)
            .map(|it| it.name.clone());
        assert_eq!(names.collect::<Vec<_>>().join(" "), chain, "{host} {path}");
    }
}

#[test]
fn warnings_name_what_is_risky() {
    let folder = folder();
    let text = "listeners:
- {name: a, address: '0.0.0.0:8080'}
- name: b
  address: 127.0.0.1:8443
  tls: {certificate_chain: cert.pem, private_key: key.pem, minimum_version: '1.2'}
clusters: [{name: up, endpoints: [127.0.0.1:9000]}]
filters:
- {name: f, module: plain.wasm, sha256: DIGEST, failure_policy: open}
- {name: auth, module: auth.wasm}
- {name: headers, module: builtin:security-headers, configuration: {shadow: true, hmac_key: hunter2}}
- {name: idle, module: builtin:security-headers, unknown_imports: trap}
routes:
- {name: all, cluster: up, filters: {idle: off}}
- {name: open, cluster: up, prefix: /open, filters: {auth: off, idle: off}}
";
    let digest = crate::digest::digest(b"\0asm\x01\0\0\0");
    let text = &text.replace("DIGEST", &format!("'{digest}'"));
    // Not `parse`: the schema knows that security-headers has no such keys.
    let policy = Policy::parse(Path::new("p.yaml"), folder.path(), text).unwrap();
    let warnings: Vec<_> = policy.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "p.yaml:2: listeners[0].address: plaintext listener: tokens and cookies cross the network unencrypted [plaintext-listener]",
            "p.yaml:4: listeners[1].address: TLS 1.2 is accepted, the security policy asks for 1.3 [tls-floor]",
            "p.yaml:8: filters[0].module: failure_policy is open: requests pass unchecked while the control is down [fail-open]",
            "p.yaml:9: filters[1].module: neither `sha256` nor `signature`: whoever can write the file decides what runs [unpinned-module]",
            "p.yaml:10: filters[2].configuration.shadow: shadow mode: the control decides, and nothing comes of it [shadow-mode]",
            "p.yaml:10: filters[2].configuration.hmac_key: a secret of 7 bytes: an HMAC key needs 32 random ones (RFC 7518 §3.2) [weak-secret]",
            "p.yaml:10: filters[2].module: not the first filter: answers of the filters before it go out without its headers [headers-not-first]",
            "p.yaml:11: filters[3].module: unknown_imports is trap: requests that come to such an import get 503 [unknown-imports]",
            "p.yaml:11: filters[3].module: `idle` is off on every route [unused-filter]",
            "p.yaml:11: filters[3].module: not the first filter: answers of the filters before it go out without its headers [headers-not-first]",
            "p.yaml:14: routes[1]: route `open` is open to everybody, no filter on it authenticates [open-route]",
        ]
    );
}

#[test]
fn a_plugins_own_key_leads_to_its_line() {
    let folder = folder();
    let text = format!(
        "{HEAD}filters:
- name: f
  module: plain.wasm
  configuration:
    issuers:
      - name: one
        jwks:
          keys: []
    skew: 1
"
    );
    let policy = parse(folder.path(), &text).unwrap();
    let instance = policy.instances.first().unwrap();
    for (path, line, key) in [
        ("", 7, "filters[0].configuration"),
        ("skew", 12, "filters[0].configuration.skew"),
        (
            "issuers[0].jwks",
            10,
            "filters[0].configuration.issuers[0].jwks",
        ),
        (
            "issuers.0.jwks.keys",
            11,
            "filters[0].configuration.issuers.0.jwks.keys",
        ),
        (
            "issuers[0].issuer",
            9,
            "filters[0].configuration.issuers[0].issuer",
        ),
        ("missing", 7, "filters[0].configuration.missing"),
    ] {
        let place = instance.configuration.place_of(path);
        assert_eq!((place.line, &*place.key), (line, key));
    }
    assert_eq!(
        &instance.configuration.json[..],
        br#"{"issuers":[{"jwks":{"keys":[]},"name":"one"}],"skew":1}"#
    );
}
