//! What Kubernetes' API server says of a resource: validators that the npm packages `@kubernetes-models/…` have compiled from the published CRDs.
//!
//! `@kubernetes-models/istio` 3.0.1 is made of the CRDs of Istio 1.29.2, `@kubernetes-models/envoy-gateway` 2.0.0 of the types that Envoy Gateway's
//! CRD is made of. They know types, choices, bounds and what is required; a field that a CRD does not have is pruned by the API server, and here it is
//! refused. CRDs' CEL rules are not run.
//!
//! `PORTCULLIS_NODE=none` leaves them out.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::build_folder::{installed_from_npm, repository};

/// A kind of resource.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    package: &'static str,
    version: &'static str,
    /// In the package's folder, without its suffix.
    class: &'static str,
}

/// Istio's.
pub const WASM_PLUGIN: Model = Model {
    package: "@kubernetes-models/istio",
    version: "3.0.1",
    class: "extensions.istio.io/v1alpha1/WasmPlugin",
};

/// Envoy Gateway's.
pub const ENVOY_EXTENSION_POLICY: Model = Model {
    package: "@kubernetes-models/envoy-gateway",
    version: "2.0.0",
    class: "gateway.envoyproxy.io/v1alpha1/EnvoyExtensionPolicy",
};

impl Model {
    /// What is wrong with each of the resources; empty where nothing is.
    ///
    /// # Errors
    /// When the package cannot be installed, or Node.js cannot be run.
    pub fn faults(&self, resources: &[Value]) -> Result<Vec<Vec<String>>> {
        let manifest = format!("node_modules/{}/package.json", self.package);
        let manifest = installed_from_npm(self.package, self.version, &manifest).context(
            "this test validates with npm's @kubernetes-models; PORTCULLIS_NODE=none leaves it out and says what was not run",
        )?;
        let folder = manifest.parent().context("a package without a folder")?;
        let mut node = Command::new("node")
            .arg(repository().join("tests/kubernetes/validate.mjs"))
            .arg(folder)
            .arg(self.class)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("`node` cannot be run")?;
        let mut stdin = node.stdin.take().context("no standard input")?;
        stdin.write_all(&serde_json::to_vec(resources)?)?;
        drop(stdin);
        let output = node.wait_with_output()?;
        if !output.status.success() {
            bail!("node: {}", String::from_utf8_lossy(&output.stderr));
        }
        let faults: Vec<Vec<String>> = serde_json::from_slice(&output.stdout)?;
        if faults.len() != resources.len() {
            bail!("{} answers to {} resources", faults.len(), resources.len());
        }
        Ok(faults)
    }
}
