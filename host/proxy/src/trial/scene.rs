//! The policy around a case: a listener without TLS and one with it, the control, and every cluster that the case answers for.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use portcullis_cases::Case;
use portcullis_module::Description;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The name on the certificate.
pub(super) const SERVER_NAME: &str = "example.test";

/// A listener of the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listener {
    Plain,
    /// From TLS 1.2 on.
    Tls,
}

impl Listener {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Tls => "tls",
        }
    }
}

/// The module that cases are run on.
#[derive(Debug)]
pub(crate) struct Control {
    /// As the cases have it.
    pub(super) name: String,
    /// Absolute.
    pub(super) module: PathBuf,
    /// Whether it wants bodies while it holds headers.
    pub(super) awaits_body: bool,
}

impl Control {
    /// A module, if it is the one that the cases of `name` are about.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is that of another control.
    pub(crate) fn of(module: &Path, cases: &Path, name: &str) -> anyhow::Result<Self> {
        let (path, cases) = (module.display(), cases.display());
        let bytes = std::fs::read(module).with_context(|| format!("cannot read {path}"))?;
        if !bytes.starts_with(b"\0asm") {
            bail!("{path} is not a Wasm module");
        }
        let description = Description::read(&bytes).with_context(|| path.to_string())?;
        if let Some(of) = description.as_ref().filter(|of| of.name != name) {
            bail!(
                "{cases} has the cases of {name:?}, and {path} is {:?}",
                of.name
            );
        }
        let module = module.canonicalize();
        Ok(Self {
            name: name.to_owned(),
            module: module.with_context(|| format!("cannot find {path}"))?,
            awaits_body: description.is_some_and(|it| it.awaits_body),
        })
    }
}

/// What the listener with TLS shows; the files go with it.
#[derive(Debug)]
pub(crate) struct Certificate {
    folder: TempDir,
    pub(super) der: CertificateDer<'static>,
}

impl Certificate {
    pub(crate) fn make() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a folder for a certificate")?;
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new([SERVER_NAME.to_owned()])?.self_signed(&key)?;
        let der = certificate.der().clone();
        let made = Self { folder, der };
        for (path, text) in [
            (made.chain(), certificate.pem()),
            (made.key(), key.serialize_pem()),
        ] {
            std::fs::write(&path, text)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(made)
    }

    fn chain(&self) -> PathBuf {
        self.folder.path().join("server.pem")
    }

    fn key(&self) -> PathBuf {
        self.folder.path().join("server.key")
    }

    /// Where relative paths of a policy start, and what is written for a while can go.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Where the clusters of a case are.
#[derive(Debug)]
pub(super) struct Surroundings {
    /// Behind every name of the policy: many of them stand in one Envoy.
    pub(super) suffix: String,
    /// Where requests go.
    pub(super) upstream: SocketAddr,
    /// What the plugin may call, by the names that the case has.
    pub(super) callouts: BTreeMap<String, SocketAddr>,
}

impl Surroundings {
    /// Where nobody is called. Every control may call clusters on loopback.
    pub(super) fn nowhere(case: &Case) -> Self {
        let nobody = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 1);
        let names = case.callouts.iter().map(|it| (it.cluster.clone(), nobody));
        Self {
            suffix: String::new(),
            upstream: nobody,
            callouts: names.collect(),
        }
    }

    /// A name as it stands in the policy.
    pub(super) fn named(&self, name: &str) -> String {
        format!("{name}{}", self.suffix)
    }
}

/// The policy of a case.
pub(super) fn policy(
    case: &Case,
    control: &Control,
    certificate: &Certificate,
    around: &Surroundings,
) -> Value {
    let mut upstream = String::from("upstream");
    while around.callouts.contains_key(&upstream) {
        upstream.push_str("-of-routes");
    }
    let upstream = around.named(&upstream);
    let mut configuration = case.configuration.clone();
    let mut clusters = vec![json!({"name": upstream, "endpoints": [around.upstream.to_string()]})];
    let mut callable = Vec::new();
    for (name, address) in &around.callouts {
        let unique = around.named(name);
        rename(&mut configuration, name, &unique);
        let mut callouts = case.callouts.iter().filter(|it| it.cluster == *name);
        let protocol = match callouts.any(|it| it.grpc_status.is_some()) {
            true => "http2",
            false => "http1",
        };
        let endpoints = [address.to_string()];
        clusters.push(json!({"name": unique, "endpoints": endpoints, "protocol": protocol}));
        callable.push(unique);
    }
    let mut filter = json!({
        "name": around.named(&control.name),
        "module": control.module,
        "configuration": configuration,
        "clusters": callable,
    });
    if let (true, Some(keys)) = (control.awaits_body, filter.as_object_mut()) {
        keys.insert("allow_on_headers_stop_iteration".into(), true.into());
    }
    json!({
        "workers": 1,
        "listeners": [
            {"name": around.named(Listener::Plain.name()), "address": "127.0.0.1:0"},
            {"name": around.named(Listener::Tls.name()), "address": "127.0.0.1:0", "tls": {
                "certificate_chain": certificate.chain(),
                "private_key": certificate.key(),
                "minimum_version": "1.2",
            }},
        ],
        "clusters": clusters,
        "filters": [filter],
        "routes": [{"name": "all", "cluster": upstream}],
    })
}

/// Puts `new` where a configuration says `old` and nothing else.
fn rename(configuration: &mut Value, old: &str, new: &str) {
    match configuration {
        Value::String(text) if text == old => new.clone_into(text),
        Value::Array(items) => items.iter_mut().for_each(|item| rename(item, old, new)),
        Value::Object(members) => {
            for item in members.values_mut() {
                rename(item, old, new);
            }
        }
        _ => {}
    }
}
