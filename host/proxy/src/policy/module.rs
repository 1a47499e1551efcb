//! A filter's `module`: the bytes of a Wasm file, and what it says of itself.

use std::path::PathBuf;

use bytes::Bytes;
use portcullis_runtime::Module;

use crate::digest::digest;
use crate::oci::{self, ImageReference};

use super::limits::MODULE_BYTES_MAX;
use super::reader::{self, Section};
use super::signature::ModuleSignature;

/// The bytes of a Wasm module and where they came from.
#[derive(Clone)]
pub struct WasmModule {
    /// Where it came from.
    pub source: ModuleSource,
    /// A Wasm binary by its header.
    pub bytes: Bytes,
    /// SHA-256 of the bytes, lower-case hex.
    pub sha256: String,
    /// The control's own name, from its metadata.
    pub control: Option<String>,
    /// Whether the control authenticates or authorises, from its metadata; such a filter may not fail open.
    pub authenticates: bool,
    /// Whether the control wants request bodies while it holds their headers, from its metadata.
    pub awaits_body: bool,
    /// Who signed it, where the policy asks for that.
    pub signature: Option<ModuleSignature>,
    /// Whether the policy says which module it must be, by digest or signature.
    pub is_pinned: bool,
}

/// Where a module came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModuleSource {
    /// Carried in this binary: `builtin:NAME`.
    Builtin(String),
    /// A file; absolute path.
    File(PathBuf),
    /// An image in a registry, with a digest.
    Image(ImageReference),
}

impl std::fmt::Debug for WasmModule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:?} ({} bytes, {})",
            self.source,
            self.bytes.len(),
            self.sha256
        )
    }
}

impl std::fmt::Display for ModuleSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Builtin(name) => write!(f, "builtin:{name}"),
            Self::File(path) => path.display().fmt(f),
            Self::Image(image) => image.fmt(f),
        }
    }
}

impl ModuleSource {
    /// Fetches the module; the reason names it.
    fn bytes(&self) -> Result<Bytes, String> {
        match self {
            Self::Builtin(name) => builtin(name),
            Self::File(path) => reader::read_file(path, MODULE_BYTES_MAX).map(Bytes::from),
            Self::Image(image) => oci::module(image, MODULE_BYTES_MAX)
                .map_err(|reason| format!("{image} cannot be pulled: {reason}")),
        }
    }

    /// What `builtin:NAME` or `oci://…` names; none where it is a path. The reason is ready to be shown.
    pub(crate) fn named(text: &str) -> Option<Result<Self, String>> {
        if let Some(name) = text.strip_prefix("builtin:") {
            return Some(Ok(Self::Builtin(name.to_owned())));
        }
        text.starts_with(oci::SCHEME)
            .then(|| pinned(text).map(Self::Image))
    }
}

impl WasmModule {
    /// Reads a module and looks at its header and metadata; whether it compiles is for the runtime to say.
    pub fn read(source: ModuleSource) -> Result<Self, String> {
        let bytes = source.bytes()?;
        match bytes.get(..8) {
            Some(b"\0asm\x01\0\0\0") => {}
            Some(b"\0asm\x0d\0\x01\0") => {
                return Err(format!(
                    "{source} is a Wasm component, a core module is needed"
                ));
            }
            _ => return Err(format!("{source} is not a Wasm module")),
        }
        let sha256 = digest(&bytes);
        let metadata = Module::metadata_of(&bytes)
            .map_err(|error| format!("{source} cannot be loaded: {error}"))?;
        Ok(Self {
            authenticates: metadata.as_ref().is_some_and(|it| it.authenticates),
            awaits_body: metadata.as_ref().is_some_and(|it| it.awaits_body),
            control: metadata.map(|it| it.name),
            signature: None,
            is_pinned: false,
            source,
            sha256,
            bytes,
        })
    }

    /// The same module, made smaller.
    pub(crate) fn with_bytes(self, bytes: Vec<u8>) -> Self {
        Self {
            sha256: digest(&bytes),
            bytes: bytes.into(),
            ..self
        }
    }

    /// Whether it finds out who calls. tls-policy authorises connections, whoever is behind them.
    pub(super) fn knows_the_caller(&self) -> bool {
        self.authenticates && self.control.as_deref() != Some("tls-policy")
    }

    pub(super) fn from_section(section: &Section<'_>) -> Option<Self> {
        let sha256 = section.optional("sha256").map(|field| field.parse(sha256));
        let field = section.required("module")?;
        let source = match ModuleSource::named(field.string()?) {
            Some(Ok(source)) => source,
            Some(Err(reason)) => {
                field.refuse(reason);
                return None;
            }
            None => ModuleSource::File(field.path()?),
        };
        let mut module = match Self::read(source) {
            Ok(module) => module,
            Err(reason) => {
                field.refuse(reason);
                return None;
            }
        };
        if let Some(field) = section.optional("signature") {
            module.signature = Some(ModuleSignature::read(field, &module)?);
        }
        let has_digest = matches!(module.source, ModuleSource::Image(_));
        module.is_pinned = has_digest || sha256.is_some() || module.signature.is_some();
        match sha256 {
            None => Some(module),
            Some(Some(expected)) if expected == module.sha256 => Some(module),
            Some(expected) => {
                if let (Some(field), Some(_)) = (section.optional("sha256"), expected) {
                    field.refuse(format!("{} has sha256 {}", module.source, module.sha256));
                }
                None
            }
        }
    }
}

/// An image with a digest. Whoever may push to a repository may move its tags, so a tag does not say what would run.
fn pinned(text: &str) -> Result<ImageReference, String> {
    let image = ImageReference::parse(text)?;
    if image.digest().is_some() {
        return Ok(image);
    }
    let reason = format!("{image} has no digest: whoever can push there decides what runs");
    Err(match oci::resolve(&image) {
        Ok(digest) => format!("{reason}; what it names now is {}", image.pinned(&digest)),
        Err(error) => format!(
            "{reason}; write the reference that `portcullis push` prints, with @sha256:… (its digest cannot be found out: {error})"
        ),
    })
}

/// 64 hex digits, lower-cased.
fn sha256(text: &str) -> Result<String, String> {
    if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(text.to_ascii_lowercase());
    }
    Err(format!(
        "`{text}` is not a sha256: 64 hexadecimal digits in quotes"
    ))
}

fn builtin(name: &str) -> Result<Bytes, String> {
    portcullis_plugins::builtin(name)
        .map(|builtin| Bytes::from_static(builtin.module))
        .ok_or_else(|| {
            format!(
                "there is no builtin `{name}`; there are: {}",
                builtin_names()
            )
        })
}

/// For messages.
pub(super) fn builtin_names() -> String {
    let names: Vec<_> = portcullis_plugins::all()
        .iter()
        .map(|builtin| builtin.name)
        .collect();
    names.join(", ")
}
