//! A control's crate, built into a module that can ship: what `portcullis build` does, and `portcullis test` first.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use portcullis_module::toolchain::{self, Progress, TARGET, ToolchainError};
use portcullis_module::{Description, Finished, ModuleError, Names};
use serde::Deserialize;

/// The profile, under a name that no manifest has.
const PROFILE: &str = "portcullis";

/// Small first (modules are compiled when they are loaded), then fast; the names of functions stay until the module is
/// finished.
const PROFILE_VALUES: [&str; 7] = [
    "inherits=\"release\"",
    "opt-level=\"s\"",
    "lto=\"fat\"",
    "codegen-units=1",
    "panic=\"abort\"",
    "debug=false",
    "strip=\"debuginfo\"",
];

const SDK: &str = "portcullis-sdk";

/// Why a crate is not built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum CrateError {
    #[error(
        "no Cargo.toml in {0}: `portcullis build` and `portcullis test` run in a control's folder, or --dir names it; `portcullis new NAME` makes one"
    )]
    NoManifest(PathBuf),
    #[error("cannot run cargo: {0}; Rust comes with https://rustup.rs")]
    NoCargo(io::Error),
    /// Cargo failed, and said why on standard error.
    #[error("cargo failed")]
    Cargo,
    #[error("cannot read what cargo says of {0}: {1}")]
    Metadata(PathBuf, serde_json::Error),
    #[error("{0} is a workspace without a package of its own: --dir names one of its members")]
    NoPackage(PathBuf),
    #[error(
        "{0}: the package makes no cdylib, so it cannot become a module; add\n\n[lib]\ncrate-type = [\"cdylib\", \"rlib\"]\n"
    )]
    NoCdylib(PathBuf),
    #[error(
        "{0}: the package does not depend on portcullis-sdk, so it is no control; `portcullis new NAME` makes one that does"
    )]
    NoSdk(PathBuf),
    #[error(transparent)]
    Toolchain(#[from] ToolchainError),
    #[error("{0}: {1}")]
    Module(PathBuf, ModuleError),
    #[error("{0}: {1}")]
    File(PathBuf, io::Error),
}

/// A control's crate.
#[derive(Debug)]
pub(crate) struct Crate {
    folder: PathBuf,
    package: String,
    library: String,
    /// What the crate calls the SDK.
    sdk: String,
    workspace: PathBuf,
    target: PathBuf,
}

/// What `cargo metadata` says, as far as it is asked (The Cargo Book, cargo-metadata).
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_root: PathBuf,
    target_directory: PathBuf,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
    targets: Vec<Target>,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    rename: Option<String>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    crate_types: Vec<String>,
}

impl Crate {
    /// The crate in a folder.
    pub(crate) fn open(folder: &Path, offline: bool) -> Result<Self, CrateError> {
        let no_manifest = || CrateError::NoManifest(folder.to_owned());
        let manifest = folder.join("Cargo.toml");
        let manifest = manifest.canonicalize().map_err(|_| no_manifest())?;
        let folder = manifest.parent().ok_or_else(no_manifest)?.to_owned();

        let mut cargo = Command::new("cargo");
        cargo
            .args(["metadata", "--no-deps", "--format-version", "1"])
            .args(offline.then_some("--offline"))
            .current_dir(&folder)
            .stderr(Stdio::inherit());
        let output = cargo.output().map_err(CrateError::NoCargo)?;
        if !output.status.success() {
            return Err(CrateError::Cargo);
        }
        let metadata: Metadata = serde_json::from_slice(&output.stdout)
            .map_err(|error| CrateError::Metadata(manifest.clone(), error))?;
        let is_here = |package: &Package| {
            let path = package.manifest_path.canonicalize();
            path.is_ok_and(|path| path == manifest)
        };
        let Some(package) = metadata.packages.into_iter().find(is_here) else {
            return Err(CrateError::NoPackage(manifest));
        };
        let is_cdylib = |target: &Target| target.crate_types.iter().any(|kind| kind == "cdylib");
        let Some(library) = package.targets.into_iter().find(is_cdylib) else {
            return Err(CrateError::NoCdylib(manifest));
        };
        let sdk = package.dependencies.into_iter().find(|one| one.name == SDK);
        let Some(sdk) = sdk else {
            return Err(CrateError::NoSdk(manifest));
        };
        Ok(Self {
            folder,
            package: package.name,
            library: library.name,
            sdk: sdk.rename.unwrap_or(sdk.name),
            workspace: metadata.workspace_root,
            target: metadata.target_directory,
        })
    }

    /// Builds and finishes it; returns where the module was written.
    pub(crate) fn build(
        &self,
        features: &[String],
        offline: bool,
    ) -> Result<(PathBuf, Finished), CrateError> {
        toolchain::add_target(OsStr::new("rustc"), &self.folder, Progress::Shown)?;
        let failed = |error| CrateError::Module(self.folder.clone(), error);
        let linked = self.link(features, offline)?;
        // Before another build: what is no control gets no schema either.
        Description::read(&linked)
            .and_then(|description| description.ok_or(ModuleError::NotExported))
            .map_err(failed)?;
        let mut features = features.to_vec();
        features.push(format!("{}/schema", self.sdk));
        let twin = self.link(&features, offline)?;
        let finished = portcullis_module::finish(&linked, &twin, Names::Dropped).map_err(failed)?;

        let folder = self.target.join("portcullis");
        let path = folder.join(format!("{}.wasm", self.package));
        fs::create_dir_all(&folder)
            .and_then(|()| fs::write(&path, &finished.bytes))
            .map_err(|error| CrateError::File(path.clone(), error))?;
        Ok((path, finished))
    }

    /// The module as the linker leaves it.
    fn link(&self, features: &[String], offline: bool) -> Result<Vec<u8>, CrateError> {
        let mut cargo = toolchain::build(OsStr::new("cargo"), &self.workspace);
        cargo
            .current_dir(&self.folder)
            .args(["--package", &self.package, "--profile", PROFILE])
            .arg("--target-dir")
            .arg(&self.target)
            .args(offline.then_some("--offline"));
        for value in PROFILE_VALUES {
            cargo.args(["--config", &format!("profile.{PROFILE}.{value}")]);
        }
        // What runs on each request is worth its bytes.
        for package in [self.package.as_str(), SDK] {
            let value = format!("profile.{PROFILE}.package.{package}.opt-level=3");
            cargo.args(["--config", &value]);
        }
        if !features.is_empty() {
            cargo.args(["--features", &features.join(",")]);
        }
        // Standard output is for the result.
        let status = cargo.stdout(Stdio::null()).status();
        if !status.map_err(CrateError::NoCargo)?.success() {
            return Err(CrateError::Cargo);
        }
        let linked = self.target.join(TARGET).join(PROFILE);
        let linked = linked.join(format!("{}.wasm", self.library.replace('-', "_")));
        fs::read(&linked).map_err(|error| CrateError::File(linked, error))
    }
}
