//! `portcullis export istio` and `export envoy-gateway`: what they write is valid, in order and complete; what cannot be said is refused or told.

use std::fs;
use std::path::Path;
use std::process::Output;

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::assembly_script;
use portcullis_tests::kubernetes_models::{ENVOY_EXTENSION_POLICY, Model, WASM_PLUGIN};
use portcullis_tests::report;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::served;

const IMAGES: &str = "registry.example/controls";

/// A policy with these filters, and these routes beside `all`.
fn policy(filters: Value, routes: &[Value]) -> Value {
    let mut all = vec![json!({"name": "all", "prefix": "/", "cluster": "up"})];
    all.extend_from_slice(routes);
    json!({
        "listeners": [{"name": "in", "address": "127.0.0.1:0"}],
        "clusters": [
            {"name": "up", "endpoints": ["127.0.0.1:9"]},
            {"name": "idp", "endpoints": ["127.0.0.1:9"]},
        ],
        "filters": filters,
        "routes": all,
    })
}

/// All four controls, one of them with a failure policy of its own.
fn four() -> Value {
    json!([
        {"name": "security-headers", "module": "builtin:security-headers", "failure_policy": "open",
         "configuration": {"profile": "api", "remove": ["off", "1_000"]}},
        {"name": "tls-policy", "module": "builtin:tls-policy"},
        {"name": "jwt-auth", "module": "builtin:jwt-auth", "clusters": ["idp"], "configuration": {"providers": [{
            "issuer": "https://idp.example", "audiences": ["a"],
            "remote_jwks": {"cluster": "idp", "authority": "idp.example", "path": "/jwks"},
        }]}},
        {"name": "rate-limit", "module": "builtin:rate-limit"},
    ])
}

struct Exported {
    folder: TempDir,
    output: Output,
    file: &'static str,
}

impl Exported {
    fn of(target: &str, policy: &Value, arguments: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("policy.yaml");
        fs::write(&path, serde_json::to_string_pretty(policy)?)?;
        let (path, out) = (path.display().to_string(), folder.path().join("out"));
        let out = out.display().to_string();
        let output = served::run(&[&["export", target, &path, "--out", &out], arguments].concat())?;
        let file = match target {
            "istio" => "istio.yaml",
            _ => "envoy-gateway.yaml",
        };
        Ok(Self {
            folder,
            output,
            file,
        })
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    fn out(&self) -> std::path::PathBuf {
        self.folder.path().join("out")
    }

    fn text(&self) -> Result<String> {
        ensure!(self.output.status.success(), "{}", self.said());
        fs::read_to_string(self.out().join(self.file)).context("no file was written")
    }

    fn resources(&self) -> Result<Vec<Value>> {
        Ok(serde_saphyr::from_multiple(&self.text()?)?)
    }
}

/// Says what is wrong with one of them.
fn validate(model: Model, resources: &[Value]) -> Result<()> {
    if let Some(why) = assembly_script::left_out() {
        report::not_run("validation of exported resources against their CRDs", why);
        return Ok(());
    }
    for (resource, faults) in resources.iter().zip(model.faults(resources)?) {
        ensure!(faults.is_empty(), "{}\n{resource:#}", faults.join("\n"));
    }
    Ok(())
}

#[test]
fn istio_gets_a_plugin_for_each_filter_in_order() -> Result<()> {
    let arguments = [
        "--image",
        IMAGES,
        "--separate",
        "--namespace",
        "istio-system",
        "--pull-secret",
        "registry",
        "--selector",
        "istio=ingressgateway",
    ];
    let exported = Exported::of("istio", &policy(four(), &[]), &arguments)?;
    let resources = exported.resources()?;
    validate(WASM_PLUGIN, &resources)?;
    let at = |path: &str| -> Vec<Value> {
        let found = resources.iter().map(|it| it.pointer(path).cloned());
        found.map(Option::unwrap_or_default).collect()
    };
    ensure!(
        at("/metadata/name")
            == [
                "portcullis-security-headers",
                "portcullis-tls-policy",
                "portcullis-jwt-auth",
                "portcullis-rate-limit"
            ],
        "{:?}",
        at("/metadata/name")
    );
    ensure!(at("/spec/priority") == [40, 30, 20, 10], "{resources:?}");
    ensure!(
        at("/spec/failStrategy") == ["FAIL_OPEN", "FAIL_RELOAD", "FAIL_RELOAD", "FAIL_RELOAD"],
        "{resources:?}"
    );
    ensure!(
        at("/spec/pluginConfig")[0] == json!({"profile": "api", "remove": ["off", "1_000"]}),
        "{resources:?}"
    );
    // Kubernetes reads YAML 1.1, in which these would be false and 1000.
    let text = exported.text()?;
    ensure!(
        text.contains("- \"off\"") && text.contains("- \"1_000\""),
        "{text}"
    );
    for resource in &resources {
        let spec = &resource["spec"];
        let sha256 = spec["sha256"].as_str().context("no sha256")?;
        let url = spec["url"].as_str().context("no url")?;
        ensure!(
            url.starts_with(&format!("oci://{IMAGES}/"))
                && url.ends_with(&format!("@sha256:{sha256}")),
            "{url}"
        );
        ensure!(
            spec["selector"]["matchLabels"] == json!({"istio": "ingressgateway"})
                && spec["imagePullSecret"] == "registry"
                && spec["phase"] == "AUTHN"
                && resource["metadata"]["namespace"] == "istio-system",
            "{resource:#}"
        );
    }
    // Told where it is run and where it is read.
    for words in ["calls cluster `idp`", "meshConfig", "`limits`"] {
        ensure!(exported.said().contains(words), "{}", exported.said());
        ensure!(text.contains(words), "{text}");
    }
    ensure!(
        exported.said().contains(&format!(
            "portcullis push {IMAGES}/jwt-auth:0.1.0 --module {}",
            exported.out().join("jwt-auth.wasm").display()
        )),
        "{}",
        exported.said()
    );
    Ok(())
}

#[test]
fn envoy_gateway_gets_one_list() -> Result<()> {
    let arguments = [
        "--image",
        IMAGES,
        "--target-ref",
        "Gateway/edge",
        "--target-ref",
        "HTTPRoute/api",
        "--pull-secret",
        "registry",
    ];
    let exported = Exported::of("envoy-gateway", &policy(four(), &[]), &arguments)?;
    let resources = exported.resources()?;
    validate(ENVOY_EXTENSION_POLICY, &resources)?;
    ensure!(resources.len() == 1, "{resources:?}");
    let spec = &resources[0]["spec"];
    let group = "gateway.networking.k8s.io";
    ensure!(
        spec["targetRefs"]
            == json!([
                {"group": group, "kind": "Gateway", "name": "edge"},
                {"group": group, "kind": "HTTPRoute", "name": "api"},
            ]),
        "{spec:#}"
    );
    let wasm = spec["wasm"].as_array().context("no list")?;
    let names: Vec<_> = wasm.iter().map(|it| &it["name"]).collect();
    // Neighbours with the same failure policy are one filter.
    ensure!(
        names == ["security-headers", "tls-policy+jwt-auth+rate-limit"],
        "{names:?}"
    );
    ensure!(
        wasm[0]["failOpen"] == true && wasm[1]["failOpen"] == false,
        "{wasm:?}"
    );
    let controls = wasm[1]["config"]["controls"]
        .as_array()
        .context("no controls")?;
    ensure!(controls.len() == 3, "{controls:?}");
    let image = &wasm[1]["code"]["image"];
    let url = image["url"].as_str().context("no url")?;
    let sha256 = image["sha256"].as_str().context("no sha256")?;
    ensure!(
        url == format!("{IMAGES}/tls-policy-jwt-auth-rate-limit@sha256:{sha256}"),
        "{url}"
    );
    ensure!(image["pullSecretRef"]["name"] == "registry", "{image:#}");
    Ok(())
}

#[test]
fn routes_that_differ_are_exported_one_by_one() -> Result<()> {
    let filters = json!([
        {"name": "security-headers", "module": "builtin:security-headers"},
        {"name": "rate-limit", "module": "builtin:rate-limit"},
    ]);
    let health = json!({"name": "health", "prefix": "/health", "cluster": "up", "filters": {"rate-limit": "off"}});
    let policy = policy(filters, &[health]);
    let arguments = [
        "--image",
        IMAGES,
        "--separate",
        "--target-ref",
        "HTTPRoute/x",
    ];
    let refused = Exported::of("envoy-gateway", &policy, &arguments)?;
    let said = refused.said();
    ensure!(refused.output.status.code() == Some(1), "{said}");
    ensure!(
        said.contains("policy.yaml:")
            && said.contains("route `health` runs other filters than route `all`"),
        "{said}"
    );
    ensure!(!refused.out().exists(), "something was written");
    for (route, expected) in [("all", 2), ("health", 1)] {
        let one = [&arguments[..], &["--route", route, "--name", route]].concat();
        let resources = Exported::of("envoy-gateway", &policy, &one)?.resources()?;
        validate(ENVOY_EXTENSION_POLICY, &resources)?;
        let wasm = resources[0]["spec"]["wasm"].as_array().context("no list")?;
        ensure!(wasm.len() == expected, "{route}: {wasm:?}");
        ensure!(resources[0]["metadata"]["name"] == route, "{resources:?}");
    }
    let one = [&arguments[..], &["--route", "no-such"]].concat();
    let said = Exported::of("envoy-gateway", &policy, &one)?.said();
    ensure!(said.contains("there are: all, health"), "{said}");
    Ok(())
}

#[test]
fn what_cannot_be_said_is_refused() -> Result<()> {
    let one = |filter: Value| policy(json!([filter]), &[]);
    let plain = json!({"name": "rate-limit", "module": "builtin:rate-limit"});
    let holds = json!({"name": "rate-limit", "module": "builtin:rate-limit", "allow_on_headers_stop_iteration": true});
    let alike = policy(
        json!([{"name": "a_b", "module": "builtin:rate-limit"}, {"name": "a.b", "module": "builtin:rate-limit"}]),
        &[],
    );
    let none = policy(json!([]), &[]);
    let image = ["--image", IMAGES, "--separate"];
    for (policy, arguments, words) in [
        (
            one(plain.clone()),
            &image[2..],
            "builtin:rate-limit is in no registry",
        ),
        (
            one(holds),
            &image[..],
            "awaits bodies while it holds headers",
        ),
        (alike, &image[..], "would both be called `a-b`"),
        (none, &image[..], "nothing to export"),
    ] {
        let exported = Exported::of("istio", &policy, arguments)?;
        let said = exported.said();
        ensure!(exported.output.status.code() == Some(1), "{words}: {said}");
        ensure!(
            said.contains(words) && said.contains("policy.yaml:"),
            "{words}: {said}"
        );
        ensure!(!exported.out().exists(), "{words}: something was written");
    }
    for (arguments, words) in [
        (vec!["--target-ref", "Pod/x"], "is not one of"),
        (vec!["--target-ref", "Gateway/X"], "a name in Kubernetes"),
        (vec!["--selector", "x"], "KEY=VALUE"),
        (vec!["--push"], "--image"),
        (vec!["--image", "registry.example/a:1"], "neither a tag"),
        (vec!["--image", "a/b"], "not a registry's host"),
    ] {
        let exported = Exported::of("istio", &one(plain.clone()), &arguments)?;
        let said = exported.said();
        ensure!(exported.output.status.code() == Some(2), "{words}: {said}");
        ensure!(said.contains(words), "{words}: {said}");
    }
    Ok(())
}

/// The validators themselves: what is wrong is found.
#[test]
fn wrong_resources_are_found() -> Result<()> {
    if let Some(why) = assembly_script::left_out() {
        report::not_run("validation of wrong resources against their CRDs", why);
        return Ok(());
    }
    let plugin = |spec: Value| json!({"apiVersion": "extensions.istio.io/v1alpha1", "kind": "WasmPlugin", "metadata": {"name": "x"}, "spec": spec});
    let policy = |spec: Value| json!({"apiVersion": "gateway.envoyproxy.io/v1alpha1", "kind": "EnvoyExtensionPolicy", "metadata": {"name": "x"}, "spec": spec});
    let plugins = [
        plugin(json!({"url": "oci://x"})),
        plugin(json!({})),
        plugin(json!({"url": "oci://x", "failStrategy": "FAIL"})),
        plugin(json!({"url": "oci://x", "failurePolicy": "x"})),
        plugin(json!({"url": "oci://x", "priority": "10"})),
    ];
    let policies = [
        policy(json!({"wasm": [{"code": {"type": "Image", "image": {"url": "x"}}}]})),
        policy(json!({"wasm": [{}]})),
        policy(json!({"wasm": [{"code": {"type": "File"}}]})),
        policy(
            json!({"wasm": [{"code": {"type": "Image", "image": {"url": "x", "digest": "y"}}}]}),
        ),
        policy(json!({"wasm": [{"code": {"type": "Image"}, "failOpen": "yes"}]})),
    ];
    for (model, resources) in [(WASM_PLUGIN, &plugins), (ENVOY_EXTENSION_POLICY, &policies)] {
        let faults = model.faults(resources)?;
        let (right, wrong) = faults.split_first().context("no answer")?;
        ensure!(right.is_empty(), "{right:?}");
        for (index, faults) in wrong.iter().enumerate() {
            ensure!(
                !faults.is_empty(),
                "nothing wrong with {:#}",
                resources[index + 1]
            );
        }
    }
    Ok(())
}

/// Where a folder of a policy matters: a path in it is a file's, also for these commands.
#[test]
fn modules_are_written_where_they_are_not_pushed() -> Result<()> {
    let filters = json!([{"name": "rate-limit", "module": "builtin:rate-limit"}]);
    let exported = Exported::of("istio", &policy(filters, &[]), &["--image", IMAGES])?;
    let text = exported.text()?;
    let wasm = exported.out().join("rate-limit.wasm");
    ensure!(is_module(&wasm)?, "{} is no module", wasm.display());
    let listed = String::from_utf8_lossy(&exported.output.stdout).into_owned();
    ensure!(listed.lines().count() == 2, "{listed}");
    ensure!(
        text.starts_with("# Written by `portcullis export istio"),
        "{text}"
    );
    Ok(())
}

fn is_module(path: &Path) -> Result<bool> {
    Ok(fs::read(path)?.starts_with(b"\0asm"))
}
