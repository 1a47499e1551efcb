//! The JSON Schema and the reader, held to each other: the same keys, and what the one refuses for its structure the other refuses too.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use jsonschema::Validator;
use serde_json::Value;

use super::super::Policy;
use super::super::node::Node;
use super::parse;

static SCHEMA: LazyLock<Value> = LazyLock::new(|| Policy::json_schema(None).unwrap());
static VALIDATOR: LazyLock<Validator> =
    LazyLock::new(|| jsonschema::draft202012::new(&SCHEMA).unwrap());

/// What the reader says where a value has the wrong structure, whatever else there is in the world.
const STRUCTURAL: &[&str] = &[
    ": unknown key, known here: ",
    ": expected ",
    "` is missing",
    ": at least one is needed",
    ": at least one endpoint is needed",
    " is not a whole number from ",
    " is not a duration such as ",
    " is not a size such as ",
    " is not a protocol, ",
    " is not a failure policy, ",
    " is not an isolation, ",
    " is not a TLS version, ",
    " is not a choice, ",
    " is not a name: ",
    " is not a cluster's name: ",
    " is not a sha256: ",
    ": empty path",
    ": there is no builtin ",
];

/// Structural to the reader, and beyond a schema: what a `tls` lacks depends on the endpoints' names.
const BEYOND: &[&str] = &["`sni` is missing", "expected in the certificate"];

fn problems(text: &str) -> Option<Vec<String>> {
    let tree = Node::parse(text).ok()?.to_json();
    let errors = VALIDATOR.iter_errors(&tree);
    Some(
        errors
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect(),
    )
}

/// A policy that the reader takes.
pub(super) fn takes(text: &str) {
    let problems = problems(text).unwrap();
    assert!(
        problems.is_empty(),
        "the schema refuses what the reader takes:\n{text}\n{}",
        problems.join("\n")
    );
}

/// A policy that the reader refuses with these lines.
pub(super) fn agrees(text: &str, said: &str) {
    let Some(problems) = problems(text) else {
        return; // not YAML
    };
    let structural = said.lines().find(|line| {
        let any = |parts: &[&str]| parts.iter().any(|part| line.contains(part));
        any(STRUCTURAL) && !any(BEYOND)
    });
    // Whether the schema sees what is not structural is left open.
    if let Some(line) = structural {
        assert!(
            !problems.is_empty(),
            "the schema takes what the reader refuses for its structure:\n{text}\n{line}"
        );
    }
}

/// The keys that the reader knows where `text` has the key `zzz`.
fn known(text: &str) -> BTreeSet<String> {
    let folder = super::folder();
    let said = parse(folder.path(), text).expect_err(text);
    let line = said.lines().find(|line| line.contains("zzz: unknown key"));
    let line = line.unwrap_or_else(|| panic!("{text}\n{said}"));
    let list = line.split("known here: ").nth(1).unwrap();
    list.split(", ").map(str::to_owned).collect()
}

#[test]
fn the_schema_has_the_readers_keys_and_no_others() {
    let up = "clusters: [{name: up, endpoints: [127.0.0.1:9]}]\n";
    let of_filter = |keys: &str| {
        format!(
            "{}filters: [{{name: f, module: plain.wasm, {keys}}}]\n",
            super::HEAD
        )
    };
    let mut unvisited: BTreeSet<_> = SCHEMA["$defs"].as_object().unwrap().keys().collect();
    for (definition, text) in [
        ("", format!("{}zzz: 1\n", super::HEAD)),
        (
            "listener",
            format!("{up}listeners: [{{zzz: 1}}]\nroutes: []\n"),
        ),
        (
            "downstream_tls",
            format!("{up}listeners: [{{tls: {{zzz: 1}}}}]\nroutes: []\n"),
        ),
        (
            "tcp",
            format!("{up}listeners: [{{tcp: {{zzz: 1}}}}]\nroutes: []\n"),
        ),
        ("cluster", "clusters: [{zzz: 1}]\n".to_owned()),
        ("upstream_tls", "clusters: [{tls: {zzz: 1}}]\n".to_owned()),
        ("filter", of_filter("zzz: 1")),
        ("limits", of_filter("limits: {zzz: 1}")),
        ("signature", of_filter("signature: {zzz: 1}")),
        ("allow", of_filter("allow: {zzz: 1}")),
        ("route", format!("{up}routes: [{{zzz: 1}}]\n")),
        (
            "override",
            format!(
                "{up}filters: [{{name: f, module: plain.wasm}}]\nroutes: [{{filters: {{f: {{zzz: 1}}}}}}]\n"
            ),
        ),
        ("admin", format!("{}admin: {{zzz: 1}}\n", super::HEAD)),
    ] {
        let section = match definition {
            "" => &*SCHEMA,
            "override" => &SCHEMA["$defs"]["override"]["anyOf"][1],
            name => &SCHEMA["$defs"][name],
        };
        unvisited.retain(|name| *name != definition);
        let properties = section["properties"].as_object().unwrap();
        let own: BTreeSet<_> = properties.keys().cloned().collect();
        assert_eq!(own, known(&text), "`{definition}`");
        assert_eq!(section["additionalProperties"], false, "`{definition}`");
        for (key, schema) in properties {
            assert_eq!(schema["title"], **key, "`{definition}`");
            let about = schema["description"].as_str().unwrap_or_default();
            assert!(about.ends_with('.'), "`{definition}.{key}`: {about:?}");
        }
    }
    unvisited.retain(|name| {
        let control = name.split('.').next().unwrap_or_default();
        portcullis_plugins::builtin(control).is_none()
    });
    assert!(
        unvisited.is_empty(),
        "sections that no row visits: {unvisited:?}"
    );
}

#[test]
fn the_schema_is_one() {
    jsonschema::meta::validate(&SCHEMA).unwrap();
}

#[test]
fn each_control_has_its_own_configuration() {
    for (configuration, is_right) in [
        (
            "builtin:tls-policy, configuration: {minimum_version: '1.2'}",
            true,
        ),
        (
            "builtin:tls-policy, configuration: {minimum_version: '1.1'}",
            false,
        ),
        ("builtin:tls-policy, configuration: {profile: api}", false),
        (
            "builtin:security-headers, configuration: {profile: api}",
            true,
        ),
        (
            "builtin:security-headers, configuration: {profile: none}",
            false,
        ),
        ("builtin:jwt-auth, failure_policy: closed", true),
        ("builtin:jwt-auth, failure_policy: open", false),
        (
            "builtin:jwt-auth, configuration: {providers: [{issuer: a}]}",
            false,
        ),
        ("builtin:rate-limit, failure_policy: open", true),
        ("builtin:no-such", false),
        ("other.wasm, configuration: {anything: [1]}", true),
    ] {
        let text = format!(
            "{}filters: [{{name: f, module: {configuration}}}]\n",
            super::HEAD
        );
        let problems = problems(&text).unwrap();
        assert_eq!(
            problems.is_empty(),
            is_right,
            "{configuration}: {problems:?}"
        );
    }
}
