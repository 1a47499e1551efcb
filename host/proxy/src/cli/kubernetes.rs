//! `portcullis export istio` and `portcullis export envoy-gateway`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use super::PolicyFile;
use super::check;
use super::output::{note, print};
use super::push::Pushed;
use crate::export::{self, ControlPlane, KubernetesOptions, Target};
use crate::oci::ImageReference;
use crate::policy::Policy;

/// Writes a policy's filters as Istio WasmPlugin resources
///
/// Writes DIR/istio.yaml: one WasmPlugin (extensions.istio.io/v1alpha1) a filter, in phase AUTHN with priorities in the policy's order, each with its
/// configuration, its failure policy (`closed` is FAIL_RELOAD, which Istio 1.29 has), and its module as an image by digest. Neighbours that can be one filter become one, as
/// in `export envoy`; --separate keeps them apart.
///
/// Modules are images: those that the policy names by `module: oci://…`, and for the others --image says where they are to be. --push puts them there;
/// without it they are written to DIR, and the commands that push them are told. The same module always has the same digest.
///
/// A resource has one chain. Where the policy's routes run different filters, --route says whose chain is written. What the policy says of listeners, TLS, routes,
/// clusters, bounds and allow-lists is the mesh's own: it is told on standard error and in the file. A filter that awaits bodies while it holds headers is
/// refused, since no WasmPlugin can say so. So is a number that Istio would round.
///
/// Exit codes: 0 written; 1 the policy does not work or cannot be said there, or a file or the registry fails; 2 wrong usage.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  portcullis export istio policy.yaml --out istio --image ghcr.io/acme/controls --push --namespace istio-system --selector istio=ingressgateway
  portcullis export istio policy.yaml --out istio --target-ref Gateway/edge --route api
  kubectl apply -f istio/istio.yaml")]
pub(super) struct Istio {
    #[command(flatten)]
    resources: Resources,

    /// A label of the workloads that the filters are for; may be given several times. Without it and without --target-ref: all of the namespace, or, in Istio's root namespace, of the mesh
    #[arg(long, value_name = "KEY=VALUE", value_parser = label, conflicts_with = "target_ref")]
    selector: Vec<(String, String)>,

    /// What the filters are for: Gateway/NAME, GatewayClass/NAME, Service/NAME or ServiceEntry/NAME; may be given several times
    #[arg(long, value_name = "KIND/NAME", value_parser = istio_target)]
    target_ref: Vec<Target>,
}

/// Writes a policy's filters as an Envoy Gateway EnvoyExtensionPolicy
///
/// Writes DIR/envoy-gateway.yaml: an EnvoyExtensionPolicy (gateway.envoyproxy.io/v1alpha1) whose list of Wasm extensions is the chain, each with its configuration,
/// its failure policy, and its module as an image by digest. Neighbours that can be one filter become one, as in `export envoy`; --separate keeps them apart.
///
/// Modules are images: those that the policy names by `module: oci://…`, and for the others --image says where they are to be. --push puts them there;
/// without it they are written to DIR, and the commands that push them are told. The same module always has the same digest.
///
/// A resource has one chain. Where the policy's routes run different filters, export each with --route NAME and --target-ref HTTPRoute/NAME. What the policy says of
/// listeners, TLS, routes, clusters, bounds and allow-lists is the gateway's own: it is told on standard error and in the file. A filter that awaits bodies while
/// it holds headers is refused, since no EnvoyExtensionPolicy can say so.
///
/// Exit codes: 0 written; 1 the policy does not work or cannot be said there, or a file or the registry fails; 2 wrong usage.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  portcullis export envoy-gateway policy.yaml --out eg --target-ref Gateway/edge --image ghcr.io/acme/controls --push
  portcullis export envoy-gateway policy.yaml --out eg-api --name api --target-ref HTTPRoute/api --route api --image ghcr.io/acme/controls
  kubectl apply -f eg/envoy-gateway.yaml")]
pub(super) struct EnvoyGateway {
    #[command(flatten)]
    resources: Resources,

    /// What the filters are for: Gateway/NAME, HTTPRoute/NAME or GRPCRoute/NAME; may be given several times
    #[arg(long, value_name = "KIND/NAME", value_parser = gateway_target, required = true)]
    target_ref: Vec<Target>,
}

/// What both take.
#[derive(Debug, clap::Args)]
struct Resources {
    #[command(flatten)]
    file: PolicyFile,

    /// The folder to write to; it is made if it is missing
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// Where modules that are in no registry yet are to be: each in a repository of its filter's name below this one
    #[arg(long, value_name = "HOST/REPOSITORY", value_parser = repository)]
    image: Option<ImageReference>,

    /// Push these modules, as `portcullis push` does, with their versions as tags
    #[arg(long, requires = "image")]
    push: bool,

    /// The route whose chain is written, where the policy's routes run different filters
    #[arg(long, value_name = "NAME")]
    route: Option<String>,

    /// What the resources are called, or begin with
    #[arg(long, value_name = "NAME", default_value = "portcullis", value_parser = resource_name)]
    name: String,

    /// The resources' namespace; if left out, the one of whoever applies them
    #[arg(long, value_name = "NAMESPACE", value_parser = resource_name)]
    namespace: Option<String>,

    /// A secret in that namespace with the registry's credentials (kubernetes.io/dockerconfigjson)
    #[arg(long, value_name = "SECRET", value_parser = resource_name)]
    pull_secret: Option<String>,

    /// Write a filter for each, also where several could be one
    #[arg(long)]
    separate: bool,
}

impl Istio {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        self.resources
            .run(ControlPlane::Istio, self.target_ref, self.selector)
    }
}

impl EnvoyGateway {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        self.resources
            .run(ControlPlane::EnvoyGateway, self.target_ref, Vec::new())
    }
}

impl Resources {
    fn run(
        self,
        plane: ControlPlane,
        targets: Vec<Target>,
        selector: Vec<(String, String)>,
    ) -> anyhow::Result<ExitCode> {
        let options = KubernetesOptions {
            plane,
            name: self.name,
            namespace: self.namespace,
            targets,
            selector,
            pull_secret: self.pull_secret,
            images: self.image,
            route: self.route,
            separate: self.separate,
        };
        let prepared = match Policy::load(&self.file.policy) {
            Ok(policy) => match check::plugins(&policy)? {
                Ok(findings) => export::prepare(&policy, &findings, options)?,
                Err(errors) => Err(errors),
            },
            Err(errors) => Err(errors),
        };
        let prepared = match prepared {
            Ok(prepared) => prepared,
            Err(errors) => {
                note(&errors.to_string());
                return Ok(ExitCode::FAILURE);
            }
        };
        for remark in prepared.notes() {
            note(&format!("note: {remark}"));
        }
        if self.push {
            for (image, module) in prepared.to_push() {
                let pushed = Pushed::push(module, image)?;
                note(&format!("pushed {} as {}", module.source, pushed.pinned));
            }
        }
        let written = prepared.write(&self.out, !self.push)?;
        if !self.push {
            for command in prepared.commands(&self.out) {
                note(&format!("note: not pushed yet: {command}"));
            }
        }
        let mut text = String::new();
        for path in written {
            let _ = writeln!(text, "{}", path.display());
        }
        print(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A repository; tags and digests are the modules' own.
fn repository(text: &str) -> Result<ImageReference, String> {
    let image = ImageReference::parse(text)?;
    if image.tag().is_some() || image.digest().is_some() {
        return Err("neither a tag nor a digest belongs here: each module has its own".into());
    }
    Ok(image)
}

/// RFC 1123, as Kubernetes asks of names.
fn resource_name(text: &str) -> Result<String, String> {
    let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let good = text.starts_with(letters)
        && text.ends_with(letters)
        && text.chars().all(|c| letters(c) || c == '-' || c == '.');
    if good && text.len() <= 180 {
        return Ok(text.to_owned());
    }
    Err("a name in Kubernetes has up to 180 lower-case letters, digits, `-` and `.`, with a letter or digit at both ends".into())
}

fn label(text: &str) -> Result<(String, String), String> {
    let letters = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && (key.to_owned() + value).chars().all(letters) => {
            Ok((key.to_owned(), value.to_owned()))
        }
        _ => Err("a label is KEY=VALUE, as in istio=ingressgateway".into()),
    }
}

const GATEWAY_API: &str = "gateway.networking.k8s.io";

fn istio_target(text: &str) -> Result<Target, String> {
    let kinds = [
        ("Gateway", GATEWAY_API),
        ("GatewayClass", GATEWAY_API),
        ("Service", ""),
        ("ServiceEntry", "networking.istio.io"),
    ];
    target(text, &kinds)
}

fn gateway_target(text: &str) -> Result<Target, String> {
    let kinds = ["Gateway", "HTTPRoute", "GRPCRoute"].map(|kind| (kind, GATEWAY_API));
    target(text, &kinds)
}

fn target(text: &str, kinds: &[(&str, &str)]) -> Result<Target, String> {
    let (kind, name) = text
        .split_once('/')
        .ok_or("a target is KIND/NAME, as in Gateway/edge")?;
    let Some((kind, group)) = kinds.iter().find(|(known, _)| *known == kind) else {
        let known: Vec<_> = kinds.iter().map(|(kind, _)| *kind).collect();
        return Err(format!("`{kind}` is not one of {}", known.join(", ")));
    };
    Ok(Target {
        group: (*group).to_owned(),
        kind: (*kind).to_owned(),
        name: resource_name(name)?,
    })
}
