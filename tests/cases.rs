//! The cases of every control in their three places: natively, as Wasm in Portcullis over sockets, and as Wasm in
//! stock Envoy over sockets with the configuration that `export envoy` makes of the very same policy. One
//! comparison for all: the SDK's `Expect::check`.
//!
//! Every case has a policy of its own, so a fresh plugin. In Portcullis that is a proxy of its own, in this process;
//! starting Envoy takes seconds, so there the exports of all cases of a control are put into one configuration, side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use jwt_auth::JwtAuth;
use portcullis_sdk::Control;
use portcullis_sdk::testing::{
    Callout, Case, Cases, Harness, Make, Outcome, Place, Policy, Step, Tested, TlsVersion,
    UpstreamSeen, Value, no_make,
};
use portcullis_tests::build_folder::repository;
use portcullis_tests::certificates::Certificates;
use portcullis_tests::client::{Protocol, Route, Security};
use portcullis_tests::envoy::{self, Envoy};
use portcullis_tests::grpc_upstream::GrpcUpstream;
use portcullis_tests::http1::{Answer, Headers, Request};
use portcullis_tests::report;
use portcullis_tests::upstream::Upstream;
use rate_limit::RateLimit;
use security_headers::SecurityHeaders;
use serde_json::json;
use tempfile::TempDir;
use tls_policy::TlsPolicy;

use crate::case_table::{Verdict, report as report_cases};
use crate::envoy_batch::{beside, lowered};
use crate::example;
use crate::grpc_callouts;
use crate::places::{ANY_PORT, Here, export};
use crate::set_properties;

/// All controls in one module.
type OneModule = Policy<policy::Controls>;

#[test]
fn jwt_auth() -> Result<()> {
    run_both::<JwtAuth>(&jwt_auth::testing::make)
}

#[test]
fn rate_limit() -> Result<()> {
    run_both::<RateLimit>(&no_make)
}

#[test]
fn security_headers() -> Result<()> {
    run_both::<SecurityHeaders>(&no_make)
}

#[test]
fn tls_policy() -> Result<()> {
    run_both::<TlsPolicy>(&no_make)
}

#[test]
fn policy() -> Result<()> {
    let cases = cases_of(OneModule::NAME)?;
    run::<OneModule>(
        OneModule::NAME,
        &cases,
        &["plugin", "request"],
        &jwt_auth::testing::make,
    )
}

/// The SDK's examples, as the linker leaves them; natively they run in its own tests.
#[test]
fn examples() -> Result<()> {
    for example in ["smallest", "roles", "opa", "grpc_authorizer", "json_body"] {
        let module = example::build("portcullis-sdk", example)?;
        let cases = repository().join(format!("sdk/examples/{example}.yaml"));
        let Cases { control, cases } = Cases::read(cases)?;
        let module = (example, control.as_str(), module.display().to_string());
        run_module(module, &cases, &["plugin", "request"], &no_make, None)?;
    }
    Ok(())
}

#[test]
fn no_control_is_left_out() -> Result<()> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(repository().join("plugins"))? {
        let folder = entry?.path();
        if folder.join("Cargo.toml").is_file() {
            assert!(
                folder.join("cases.yaml").is_file(),
                "{} has no cases.yaml",
                folder.display()
            );
            found.insert(folder.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
    let run = [
        JwtAuth::METADATA.name,
        RateLimit::METADATA.name,
        SecurityHeaders::METADATA.name,
        TlsPolicy::METADATA.name,
        OneModule::NAME,
    ];
    assert_eq!(found, run.iter().map(|name| (*name).to_owned()).collect());
    let carried: BTreeSet<String> = portcullis_plugins::all()
        .iter()
        .map(|it| it.name.to_owned())
        .collect();
    assert_eq!(found, carried, "the controls that the program carries");
    Ok(())
}

/// A control's cases with its own module, and with the one of all controls: the answers are the same.
fn run_both<C: Control>(make: Make<'_>) -> Result<()> {
    let control = C::METADATA.name;
    let mut cases = cases_of(control)?;
    run::<C>(control, &cases, &["plugin", "request"], make)?;
    for case in &mut cases {
        let alone = case.configuration.take();
        case.configuration = json!({"controls": [{"control": control, "configuration": alone}]});
    }
    run::<OneModule>(
        &format!("{control} in one module"),
        &cases,
        &["plugin"],
        make,
    )
}

fn cases_of(control: &str) -> Result<Vec<Case>> {
    let folder = repository().join("plugins").join(control);
    let cases = Cases::read(folder.join("cases.yaml"))?;
    assert_eq!(cases.control, control, "the cases are another control's");
    Ok(cases.cases)
}

/// Runs a built-in control's cases in every place; in our host with each `isolation`.
fn run<T: Tested>(title: &str, cases: &[Case], isolations: &[&str], make: Make<'_>) -> Result<()> {
    let module = format!("builtin:{}", T::NAME);
    let native = |case: &Case| native::<T>(case, make);
    run_module(
        (title, T::NAME, module),
        cases,
        isolations,
        make,
        Some(&native),
    )
}

/// Runs a case natively; the error is a diff.
type Native<'a> = &'a dyn Fn(&Case) -> Result<(), String>;

/// Runs cases of a control and its module in every place; natively where that can be done here.
fn run_module(
    (title, control, module): (&str, &str, String),
    cases: &[Case],
    isolations: &[&str],
    make: Make<'_>,
    native: Option<Native<'_>>,
) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let certificates = Certificates::make(folder.path())?;
    let run = Run {
        control,
        module,
        make,
        certificates,
        folder,
    };
    let mut results: BTreeMap<(usize, Place), Verdict> = BTreeMap::new();
    for (index, case) in cases.iter().enumerate() {
        let native = native.filter(|_| case.places.contains(&Place::Native));
        results.insert(
            (index, Place::Native),
            native.map(|native| native(case)).into(),
        );
        let host = case.places.contains(&Place::Host).then(|| {
            run.host(index, case, isolations)
                .map_err(|error| format!("{error:#}"))
        });
        results.insert((index, Place::Host), host.into());
    }
    run.envoy(cases, &mut results)?;
    report_cases(title, cases, &results)
}

fn native<T: Tested>(case: &Case, make: Make<'_>) -> Result<(), String> {
    let mut harness = Harness::<T>::new(SystemTime::now());
    harness.set_callouts(case.callouts.clone());
    harness.configure(&case.configuration.to_string())?;
    for (index, step) in case.steps.iter().enumerate() {
        harness.advance(step.advance, make)?;
        for round in 0..step.repeat {
            let outcome = harness.exchange(step, make)?;
            compare(index, round, step, &outcome)?;
        }
    }
    Ok(())
}

fn compare(index: usize, round: u32, step: &Step, outcome: &Outcome) -> Result<(), String> {
    let mismatches = step.expect.check(outcome);
    if mismatches.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = mismatches.iter().map(ToString::to_string).collect();
    Err(format!(
        "step {}, round {}:\n{}",
        index + 1,
        round + 1,
        lines.join("\n")
    ))
}

/// All cases of one control.
struct Run<'a> {
    control: &'a str,
    module: String,
    make: Make<'a>,
    certificates: Certificates,
    folder: TempDir,
}

/// One case with the servers that it needs beside the one under test.
struct Scene {
    upstream: Upstream,
    callouts: BTreeMap<String, Upstream>,
    /// Kept for as long as the case runs.
    _grpc: Vec<(String, GrpcUpstream)>,
    policy: serde_json::Value,
}

impl Run<'_> {
    /// With a VM for the plugin, and with one for each request: the answers are the same.
    fn host(&self, index: usize, case: &Case, isolations: &[&str]) -> Result<()> {
        for isolation in isolations {
            let mut scene = self.scene(index, case)?;
            let filters = scene.policy.get_mut("filters");
            for filter in filters
                .and_then(|it| it.as_array_mut())
                .into_iter()
                .flatten()
            {
                if let Some(keys) = filter.as_object_mut() {
                    keys.insert("isolation".into(), json!(isolation));
                }
            }
            let here = Here::start(&scene.policy, self.folder.path())?;
            let address = |kind: &str| here.listener(&listener_name(index, kind));
            let result = self.drive(case, &scene, address("plain")?, address("tls")?);
            result
                .map_err(anyhow::Error::msg)
                .with_context(|| format!("with isolation: {isolation}"))?;
        }
        Ok(())
    }

    fn envoy(&self, cases: &[Case], results: &mut BTreeMap<(usize, Place), Verdict>) -> Result<()> {
        let here = || {
            cases
                .iter()
                .enumerate()
                .filter(|(_, case)| case.places.contains(&Place::Envoy))
        };
        if let Some(why) = envoy::left_out() {
            for (_, case) in here() {
                report::not_run(&format!("{}: {} in Envoy", self.control, case.name), why);
            }
            return Ok(());
        }
        let mut scenes = BTreeMap::new();
        let mut configuration = None;
        for (index, case) in here() {
            let scene = self.scene(index, case)?;
            let exported = self
                .export(index, &scene)
                .with_context(|| format!("case {:?}", case.name))?;
            configuration = Some(beside(configuration, lowered(exported)));
            scenes.insert(index, scene);
        }
        let path = self.folder.path().join("envoy.yaml");
        fs::write(
            &path,
            serde_json::to_string_pretty(&configuration.context("no case runs in Envoy")?)?,
        )?;
        let envoy = Envoy::start(&path, envoy::Options::default())?;
        let listeners: BTreeMap<String, SocketAddr> = envoy.listeners()?.into_iter().collect();
        for (index, case) in here() {
            let address = |kind: &str| {
                let name = listener_name(index, kind);
                listeners
                    .get(&name)
                    .copied()
                    .with_context(|| format!("Envoy has no listener {name}"))
            };
            let scene = scenes.get(&index).context("no scene")?;
            let logged = envoy.process().log().len();
            let result = self
                .drive(case, scene, address("plain")?, address("tls")?)
                .map_err(|reason| {
                    let log = envoy.process().log();
                    format!(
                        "{reason}\nEnvoy says:\n{}",
                        log.get(logged..).unwrap_or_default()
                    )
                });
            results.insert((index, Place::Envoy), Some(result).into());
        }
        Ok(())
    }

    /// The export of a case's policy, read back.
    fn export(&self, index: usize, scene: &Scene) -> Result<serde_json::Value> {
        let folder = self.folder.path().join(format!("case-{index:03}"));
        fs::create_dir(&folder)?;
        let exported = export(&scene.policy, &folder)?;
        serde_saphyr::from_str(&fs::read_to_string(&exported)?)
            .with_context(|| format!("{} is no YAML", exported.display()))
    }

    /// The servers around a case, and its policy. Names are the case's own, so that many can stand in one Envoy.
    fn scene(&self, index: usize, case: &Case) -> Result<Scene> {
        let upstream = Upstream::start()?;
        let mut callouts: BTreeMap<String, Upstream> = BTreeMap::new();
        let over_http = |callout: &&Callout| callout.grpc_status.is_none();
        for callout in case.callouts.iter().filter(over_http) {
            if !callouts.contains_key(&callout.cluster) {
                callouts.insert(callout.cluster.clone(), Upstream::start()?);
            }
            let server = callouts
                .get(&callout.cluster)
                .context("it was just put there")?;
            let body = callout
                .body
                .as_ref()
                .map(|body| self.value(body))
                .transpose()?;
            let answer = Answer {
                status: callout.status,
                headers: self.headers(&callout.headers)?,
                body: body.unwrap_or_default(),
                ..Answer::default()
            };
            match &callout.path {
                Some(path) => server.answer_at(path, answer),
                None => server.answer(answer),
            }
        }
        let mut clusters = vec![json!({
            "name": format!("upstream-{index:03}"),
            "endpoints": [upstream.address().to_string()],
        })];
        let mut configuration = case.configuration.clone();
        let mut callable = Vec::new();
        for (name, server) in &callouts {
            let unique = format!("{name}-{index:03}");
            rename(&mut configuration, name, &unique);
            clusters.push(json!({"name": unique, "endpoints": [server.address().to_string()]}));
            callable.push(unique);
        }
        let grpc = grpc_callouts::servers(&case.callouts, |value| self.value(value))?;
        for (name, server) in &grpc {
            let unique = format!("{name}-{index:03}");
            rename(&mut configuration, name, &unique);
            let endpoint = server.address().to_string();
            clusters.push(json!({"name": unique, "endpoints": [endpoint], "protocol": "http2"}));
            callable.push(unique);
        }
        let mut filters = Vec::new();
        if case.steps.iter().any(|step| !step.properties.is_empty()) {
            let steps: Vec<_> = case.steps.iter().map(|step| &step.properties).collect();
            filters.push(json!({
                "name": format!("set-properties-{index:03}"),
                "module": self.module(index, &set_properties::module(&steps)?)?,
            }));
        }
        filters.push(json!({
            "name": format!("{}-{index:03}", self.control),
            "module": self.module,
            "configuration": configuration,
            "clusters": callable,
        }));
        let policy = json!({
            "workers": 1,
            "listeners": [
                {"name": listener_name(index, "plain"), "address": ANY_PORT},
                {"name": listener_name(index, "tls"), "address": ANY_PORT, "tls": {
                    "certificate_chain": self.certificates.chain,
                    "private_key": self.certificates.key,
                    "minimum_version": "1.2",
                }},
            ],
            "clusters": clusters,
            "filters": filters,
            "routes": [{"name": "all", "cluster": format!("upstream-{index:03}")}],
        });
        Ok(Scene {
            upstream,
            callouts,
            _grpc: grpc,
            policy,
        })
    }

    fn module(&self, index: usize, bytes: &[u8]) -> Result<PathBuf> {
        let path = self
            .folder
            .path()
            .join(format!("set-properties-{index:03}.wasm"));
        fs::write(&path, bytes)?;
        Ok(path)
    }

    fn value(&self, value: &Value) -> Result<Vec<u8>> {
        value
            .bytes(SystemTime::now(), self.make)
            .map_err(anyhow::Error::msg)
    }

    fn headers(&self, headers: &[(String, Value)]) -> Result<Headers> {
        headers
            .iter()
            .map(|(name, value)| Ok((name.clone().into_bytes(), self.value(value)?)))
            .collect()
    }

    /// Sends the case's requests and compares what comes of each.
    fn drive(
        &self,
        case: &Case,
        scene: &Scene,
        plain: SocketAddr,
        tls: SocketAddr,
    ) -> Result<(), String> {
        let told = |error: anyhow::Error| format!("{error:#}");
        for (index, step) in case.steps.iter().enumerate() {
            for round in 0..step.repeat {
                let answer = Answer {
                    status: step.upstream.status,
                    headers: self.headers(&step.upstream.headers).map_err(told)?,
                    body: step.upstream.body.clone().into_bytes(),
                    ..Answer::default()
                };
                scene.upstream.answer(answer);
                let request = self.request(index, step).map_err(told)?;
                let (address, security) = match step.request.tls.0 {
                    None => (plain, Security::Plaintext),
                    Some(TlsVersion::Tls11) => (tls, Security::Tls11),
                    Some(TlsVersion::Tls12) => (tls, Security::Tls12),
                    Some(TlsVersion::Tls13) => (tls, Security::Tls13),
                    Some(other) => return Err(format!("no client at hand speaks {other:?}")),
                };
                let route = Route {
                    address,
                    security,
                    protocol: match step.request.protocol.as_str() {
                        "HTTP/2" => Protocol::Http2,
                        _ => Protocol::Http11,
                    },
                    source: Some(loopback(step.request.source)?),
                    certificates: Some(&self.certificates),
                };
                let answer = match route.send(&request) {
                    Err(error) if step.expect.status != Some(0) => return Err(told(error)),
                    answer => answer.unwrap_or_default(),
                };
                let outcome = Outcome {
                    status: answer.status,
                    headers: answer.headers,
                    body: answer.body,
                    upstream: seen(&scene.upstream),
                };
                compare(index, round, step, &outcome)?;
            }
        }
        let silent = scene
            .callouts
            .iter()
            .find(|(_, server)| server.take_seen().is_empty());
        match silent {
            Some((name, _)) => Err(format!("cluster {name} was never called")),
            None => Ok(()),
        }
    }

    fn request(&self, index: usize, step: &Step) -> Result<Request> {
        let spec = &step.request;
        let mut headers = self.headers(&spec.headers)?;
        if !step.properties.is_empty() {
            headers.push((
                set_properties::STEP.into(),
                vec![set_properties::letter(index)],
            ));
        }
        Ok(Request {
            method: spec.method.clone().into_bytes(),
            path: spec.path.clone().into_bytes(),
            authority: spec.authority.clone().into_bytes(),
            headers,
            body: (!spec.body.is_empty()).then(|| spec.body.clone().into_bytes()),
        })
    }
}

fn listener_name(index: usize, kind: &str) -> String {
    format!("case-{index:03}-{kind}")
}

fn loopback(source: IpAddr) -> Result<IpAddr, String> {
    if source.is_loopback() {
        Ok(source)
    } else {
        Err(format!(
            "{source} cannot be a client over sockets, only 127.0.0.N"
        ))
    }
}

/// What the upstream saw of the last exchange; every exchange is looked at before the next.
fn seen(upstream: &Upstream) -> Option<UpstreamSeen> {
    let seen = upstream.take_seen().pop()?;
    let mut headers = vec![
        (b":method".to_vec(), seen.method.into_bytes()),
        (b":path".to_vec(), seen.path.into_bytes()),
    ];
    if let Some((_, host)) = seen.headers.iter().find(|(name, _)| name == b"host") {
        headers.push((b":authority".to_vec(), host.clone()));
    }
    headers.extend(seen.headers);
    Some(UpstreamSeen {
        headers,
        body: seen.body.to_vec(),
    })
}

/// Puts `new` where a configuration says `old`.
fn rename(configuration: &mut serde_json::Value, old: &str, new: &str) {
    match configuration {
        serde_json::Value::String(text) if text == old => new.clone_into(text),
        serde_json::Value::Array(items) => items.iter_mut().for_each(|item| rename(item, old, new)),
        serde_json::Value::Object(members) => {
            members.values_mut().for_each(|item| rename(item, old, new))
        }
        _ => {}
    }
}
