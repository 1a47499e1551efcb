//! `portcullis push`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use portcullis_module::Description;
use serde_json::json;

use super::output::{Format, note, print, print_json};
use crate::crate_build::{Crate, CrateError};
use crate::oci::{self, Image, ImageReference};
use crate::policy::{ModuleSource, WasmModule};

/// Pushes a module to a registry, as an image that Istio, Envoy Gateway and policies pull
///
/// The image has one tar+gzip layer with `plugin.wasm` in it (the "compat" variant of the Wasm image specification, with OCI's media types): Istio and Envoy
/// Gateway both pull it, and every registry takes it. Name, version and summary of a module made by `portcullis build` become its annotations. The same module
/// always makes the same image.
///
/// What is printed names the image by its digest, for `module:` in a policy, `url:` of Istio's WasmPlugin, and `image.url` of Envoy Gateway's
/// EnvoyExtensionPolicy.
///
/// Credentials are those of `docker login`: `auths`, `credHelpers` and `credsStore` of config.json in $DOCKER_CONFIG or ~/.docker. Certificates are always verified
/// (SSL_CERT_FILE names other roots); only a registry on this machine may do without TLS.
///
/// Exit codes: 0 pushed; 1 the module or the registry says no; 2 wrong usage.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  portcullis push ghcr.io/acme/my-control:1.0.0                        builds the crate in this folder first
  portcullis push ghcr.io/acme/my-control:1.0.0 --module target/portcullis/my-control.wasm
  portcullis push localhost:5000/jwt-auth --module builtin:jwt-auth    the tag is the module's version

In a policy:
  filters:
    - name: my-control
      module: oci://ghcr.io/acme/my-control@sha256:…")]
pub(super) struct Push {
    /// Where to: HOST[:PORT]/REPOSITORY[:TAG]; without a tag, the module's version is one
    #[arg(value_name = "IMAGE")]
    image: String,

    /// The module: a .wasm file, or `builtin:NAME`
    #[arg(long, value_name = "FILE|builtin:NAME", conflicts_with = "dir")]
    module: Option<String>,

    /// Without --module: the folder with the control's Cargo.toml, which is built as by `portcullis build`
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,

    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

impl Push {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let image = match ImageReference::parse(&self.image) {
            Ok(image) if image.digest().is_some() => {
                bail!("{image}: a digest is what comes of a push; name a tag, or nothing");
            }
            Ok(image) => image,
            Err(reason) => bail!("{reason}"),
        };
        let source = match &self.module {
            Some(name) => match ModuleSource::named(name) {
                Some(source) => source.map_err(anyhow::Error::msg)?,
                None => ModuleSource::File(name.into()),
            },
            None => {
                let built = Crate::open(&self.dir, false).and_then(|it| it.build(&[], false));
                match built {
                    Ok((path, _)) => ModuleSource::File(path),
                    // Cargo has said why.
                    Err(CrateError::Cargo) => return Ok(ExitCode::FAILURE),
                    Err(error) => return Err(error.into()),
                }
            }
        };
        let module = WasmModule::read(source).map_err(anyhow::Error::msg)?;
        let pushed = Pushed::push(&module, image)?;
        match self.format {
            Format::Text => {
                note(&format!("pushed {} as {}", module.source, pushed.tagged));
                print(&format!("{}\n", pushed.pinned))?;
            }
            Format::Json => {
                let description = pushed.description.as_ref();
                print_json(&json!({
                    "reference": pushed.pinned.to_string(),
                    "digest": pushed.pinned.digest().map(|hex| format!("sha256:{hex}")),
                    "tag": pushed.tagged.tag(),
                    "module": module.source.to_string(),
                    "module_sha256": module.sha256,
                    "name": description.map(|it| &it.name),
                    "version": description.map(|it| &it.version),
                    "summary": description.map(|it| &it.summary),
                }))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A module that is in a registry now.
pub(super) struct Pushed {
    tagged: ImageReference,
    pub(super) pinned: ImageReference,
    description: Option<Description>,
}

impl Pushed {
    /// Pushes to a tag; the module's version where the reference has none.
    pub(super) fn push(module: &WasmModule, to: ImageReference) -> anyhow::Result<Self> {
        let description = Description::read(&module.bytes)?;
        let tagged = match (to.tag(), &description) {
            (Some(_), _) => to,
            (None, Some(it)) => to.tagged(&it.version).map_err(anyhow::Error::msg)?,
            (None, None) => bail!(
                "{to} has no tag, and {} no version: name a tag",
                module.source
            ),
        };
        let image = Image::of(&module.bytes, description.as_ref())
            .with_context(|| format!("{} cannot be packed", module.source))?;
        oci::push(&image, &tagged)
            .map_err(anyhow::Error::msg)
            .with_context(|| format!("{tagged} cannot be pushed"))?;
        Ok(Self {
            pinned: tagged.pinned(&image.digest),
            tagged,
            description,
        })
    }
}
