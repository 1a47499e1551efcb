//! A policy's chain as a file of Kubernetes resources, for Istio or for Envoy Gateway.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::oci::ImageReference;
use crate::policy::{Policy, PolicyErrors, WasmModule};

use super::kubernetes::{self, Chain, ControlPlane, KubernetesOptions};
use super::{Findings, envoy_gateway, istio};

/// An export that can be written: nothing of the policy stands against it.
#[derive(Debug)]
pub struct Prepared {
    chain: Chain,
    options: KubernetesOptions,
    policy: PathBuf,
}

/// Makes an export ready. The outer error is this machine's, the inner ones are what of the policy cannot be said.
///
/// # Errors
///
/// The program lacks a module.
pub fn prepare(
    policy: &Policy,
    findings: &Findings,
    options: KubernetesOptions,
) -> anyhow::Result<Result<Prepared, PolicyErrors>> {
    let chain = match kubernetes::chain(policy, findings, &options)? {
        Ok(chain) => chain,
        Err(problems) => return Ok(Err(problems)),
    };
    let count = chain.plugins.len();
    if options.plane == ControlPlane::EnvoyGateway && count > envoy_gateway::PLUGINS_MAX {
        let most = envoy_gateway::PLUGINS_MAX;
        let surplus = chain.plugins.get(most);
        let problem = surplus.map(|plugin| {
            let reason =
                format!("the chain has {count} filters, an EnvoyExtensionPolicy takes {most}");
            plugin.instance.filter.place.problem(reason)
        });
        return Ok(Err(PolicyErrors(problem.into_iter().collect())));
    }
    Ok(Ok(Prepared {
        chain,
        options,
        policy: policy.file.to_path_buf(),
    }))
}

impl Prepared {
    /// What the policy says and the resources do not.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.chain.notes
    }

    /// The modules that have to be in the registry, each with where to.
    pub(crate) fn to_push(&self) -> impl Iterator<Item = (ImageReference, &WasmModule)> {
        let plugins = self.chain.plugins.iter();
        plugins.filter_map(|plugin| Some((plugin.tagged()?, plugin.module.as_ref()?)))
    }

    /// How to push the modules that are not in the registry yet, one command each; `folder` is where they have been written to.
    pub fn commands(&self, folder: &Path) -> Vec<String> {
        let plugins = self.chain.plugins.iter();
        let command = plugins.filter_map(|plugin| {
            let file = plugin.file(folder);
            let image = plugin.tagged()?.to_string();
            let image = image.strip_prefix(crate::oci::SCHEME).unwrap_or(&image);
            Some(format!(
                "portcullis push {image} --module {}",
                file.display()
            ))
        });
        command.collect()
    }

    /// Writes the resources into `folder`, which is made if it is missing, and, if asked to, the modules that have to be pushed.
    ///
    /// # Errors
    ///
    /// A file that cannot be written.
    pub fn write(&self, folder: &Path, with_modules: bool) -> anyhow::Result<Vec<PathBuf>> {
        let write = |path: PathBuf, bytes: &[u8]| -> anyhow::Result<PathBuf> {
            let named = || format!("cannot write {}", path.display());
            std::fs::write(&path, bytes).with_context(named)?;
            Ok(path)
        };
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let name = match self.options.plane {
            ControlPlane::Istio => "istio.yaml",
            ControlPlane::EnvoyGateway => "envoy-gateway.yaml",
        };
        let mut written = vec![write(folder.join(name), self.text()?.as_bytes())?];
        for plugin in &self.chain.plugins {
            if let (Some(module), true) = (&plugin.module, with_modules) {
                written.push(write(plugin.file(folder), &module.bytes)?);
            }
        }
        Ok(written)
    }

    fn text(&self) -> anyhow::Result<String> {
        let (target, resources) = match self.options.plane {
            ControlPlane::Istio => ("istio", istio::resources(&self.chain, &self.options)),
            ControlPlane::EnvoyGateway => (
                "envoy-gateway",
                envoy_gateway::resources(&self.chain, &self.options),
            ),
        };
        let mut text = String::new();
        writeln!(
            text,
            "# Written by `portcullis export {target} {}`; change the policy and export again.",
            self.policy.display()
        )?;
        if let Some(route) = &self.options.route {
            writeln!(text, "# The chain of route {route}.")?;
        }
        for note in &self.chain.notes {
            writeln!(text, "# Note: {note}.")?;
        }
        let mut first = true;
        for resource in resources {
            if !first {
                text.push_str("---\n");
            }
            first = false;
            let options = serde_saphyr::ser_options! {
                compact_list_indent: true,
                prefer_block_scalars: false,
            };
            serde_saphyr::to_fmt_writer_with_options(&mut text, &resource, options)?;
            if !text.ends_with('\n') {
                text.push('\n');
            }
        }
        Ok(text)
    }
}
