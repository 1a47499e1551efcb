//! Where a new control takes its SDK from.

use std::path::{Path, PathBuf};

/// Where the SDK stands in a crate that carries it.
pub(super) const VENDORED: &str = "vendor/portcullis-sdk";

/// The SDK's source, of this very version (`build.rs`).
const FILES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/sdk_files.rs"));

/// The dependency as the template has it; `fuzz/Cargo.toml` has `../` before the path.
const DEPENDENCY: &str = "portcullis-sdk = { path = \"{up}vendor/portcullis-sdk\" }";

/// Where the SDK comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sdk {
    /// From this program, which writes its source beside the control.
    Carried,
    /// From a registry, by its version.
    Version(String),
    /// From a folder.
    Folder(PathBuf),
}

/// Why an SDK cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SdkError {
    /// It is neither a version nor a folder with the SDK.
    #[error("{0} is neither a version like 0.1.0 nor a folder with portcullis-sdk's Cargo.toml")]
    Unknown(String),
    /// The folder's path cannot stand in a manifest.
    #[error("the path of {0} is not UTF-8")]
    Path(PathBuf),
}

impl Sdk {
    /// As it is written behind `--sdk`: a version, or the path of a folder.
    ///
    /// # Errors
    ///
    /// Where it is neither.
    pub fn named(text: &str) -> Result<Self, SdkError> {
        let unknown = || SdkError::Unknown(text.to_owned());
        if is_version(text) {
            return Ok(Self::Version(text.to_owned()));
        }
        let folder = Path::new(text).canonicalize().map_err(|_| unknown())?;
        let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).map_err(|_| unknown())?;
        if !manifest.contains("name = \"portcullis-sdk\"") {
            return Err(unknown());
        }
        if folder.to_str().is_none() {
            return Err(SdkError::Path(folder));
        }
        Ok(Self::Folder(folder))
    }

    /// A manifest of the template, with its dependency on this SDK. `up` leads from its folder to the crate's.
    pub(super) fn point(&self, manifest: &str, up: &str) -> String {
        // A JSON string is a TOML basic string as well (TOML 1.0, String).
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let source = match self {
            Self::Carried => return manifest.to_owned(),
            Self::Version(version) => quoted(version),
            Self::Folder(folder) => format!("{{ path = {} }}", quoted(&folder.to_string_lossy())),
        };
        manifest.replace(
            &DEPENDENCY.replace("{up}", up),
            &format!("portcullis-sdk = {source}"),
        )
    }

    /// The files to write beside the control.
    pub(super) fn files(&self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Carried => FILES,
            Self::Version(_) | Self::Folder(_) => &[],
        }
    }
}

/// `0`, `0.1` or `0.1.0`, with what SemVer allows behind it.
fn is_version(text: &str) -> bool {
    let (numbers, rest) = match text.find(['-', '+']) {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let numeric = |part: &str| !part.is_empty() && part.bytes().all(|c| c.is_ascii_digit());
    numbers.split('.').count() <= 3
        && numbers.split('.').all(numeric)
        && rest
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || b".-+".contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_carried_sdk_needs_no_workspace() {
        let text = |path: &str| FILES.iter().find(|(it, _)| *it == path).unwrap().1;
        for folder in ["", "cases/"] {
            let manifest = text(&format!("{folder}Cargo.toml"));
            assert!(!manifest.contains("workspace"), "{manifest}");
            assert!(manifest.contains(&format!("version = {:?}", env!("CARGO_PKG_VERSION"))));
            assert!(text(&format!("{folder}src/lib.rs")).starts_with("//!"));
        }
        let manifest = text("Cargo.toml");
        assert!(manifest.contains("path = \"cases\""), "{manifest}");
        for (path, _) in FILES {
            let path = path.strip_prefix("cases/").unwrap_or(path);
            assert!(path == "Cargo.toml" || path.starts_with("src/"), "{path}");
        }
    }

    #[test]
    fn versions_and_folders_are_told_apart() {
        for version in ["0", "0.1", "0.1.0", "1.0.0-rc.1+x"] {
            assert_eq!(Sdk::named(version).unwrap(), Sdk::Version(version.into()));
        }
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("a \"b\"");
        std::fs::create_dir(&folder).unwrap();
        let text = folder.to_str().unwrap();
        for bad in [text, "no-such-folder", "1.2.3.4", "1..2", ""] {
            assert!(Sdk::named(bad).is_err(), "{bad}");
        }
        std::fs::write(
            folder.join("Cargo.toml"),
            "[package]\nname = \"portcullis-sdk\"\n",
        )
        .unwrap();
        let named = Sdk::named(text).unwrap();
        let before = "portcullis-sdk = { path = \"../vendor/portcullis-sdk\" }";
        let after = named.point(before, "../");
        assert!(
            after.starts_with("portcullis-sdk = { path = \"/") && after.contains("a \\\"b\\\""),
            "{after}"
        );
        let versioned = Sdk::Version("0.1.0".into()).point(before, "../");
        assert_eq!(versioned, "portcullis-sdk = \"0.1.0\"");
    }
}
