//! A new control's crate: what `portcullis new` writes.
//!
//! The template is a crate of its own in `host/proxy/template`, called `my-control`; the new one differs in its name and
//! in where its SDK is.

mod name;
mod sdk;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use name::{Name, NameError};
pub use sdk::{Sdk, SdkError};

/// The template's files; those marked are programs.
const FILES: &[(&str, &str, bool)] = &[
    ("Cargo.toml", include_str!("../template/Cargo.toml"), false),
    ("README.md", include_str!("../template/README.md"), false),
    (".gitignore", include_str!("../template/gitignore"), false),
    (
        "rust-toolchain.toml",
        include_str!("../template/rust-toolchain.toml"),
        false,
    ),
    ("cases.yaml", include_str!("../template/cases.yaml"), false),
    ("src/lib.rs", include_str!("../template/src/lib.rs"), false),
    (
        "tests/cases.rs",
        include_str!("../template/tests/cases.rs"),
        false,
    ),
    (
        "tests/any_bytes.rs",
        include_str!("../template/tests/any_bytes.rs"),
        false,
    ),
    (
        "fuzz/Cargo.toml",
        include_str!("../template/fuzz/Cargo.toml"),
        false,
    ),
    (
        "fuzz/fuzz_targets/any_bytes.rs",
        include_str!("../template/fuzz/fuzz_targets/any_bytes.rs"),
        false,
    ),
    ("fuzz/run", include_str!("../template/fuzz/run"), true),
    (
        "fuzz/instrument",
        include_str!("../template/fuzz/instrument"),
        true,
    ),
];

/// Why a crate cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// There is something in its place.
    #[error("{0} exists and is not an empty folder; --dir names another one")]
    Taken(PathBuf),
    /// A file or folder cannot be written.
    #[error("cannot write {0}: {1}")]
    Write(PathBuf, io::Error),
}

/// Writes the crate. `folder` is made, unless it is there and empty; where anything fails, nothing of it stays.
///
/// # Errors
///
/// Where something stands in its place, or the disk refuses.
pub fn write(name: &Name, sdk: &Sdk, folder: &Path) -> Result<(), TemplateError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| TemplateError::Write(path, error)
    };
    // `symlink_metadata`: a link is something, wherever it leads.
    match fs::symlink_metadata(folder) {
        Ok(found) => {
            let empty = found.is_dir()
                && fs::read_dir(folder)
                    .map_err(failed(folder))?
                    .next()
                    .is_none();
            if !empty {
                return Err(TemplateError::Taken(folder.to_owned()));
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(TemplateError::Write(folder.to_owned(), error)),
    }
    let parent = match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(failed(parent))?;
    // Beside the place, so that the whole can be moved there in one step.
    let beside = tempfile::Builder::new()
        .prefix(".portcullis-new-")
        .tempdir_in(parent)
        .map_err(failed(parent))?;
    let whole = beside.path().join(name.package());

    for (path, text, program) in FILES {
        let text = match *path {
            "Cargo.toml" => sdk.point(text, ""),
            "fuzz/Cargo.toml" => sdk.point(text, "../"),
            _ => (*text).to_owned(),
        };
        let path = whole.join(path);
        put(&path, &name.put_into(&text)).map_err(failed(&path))?;
        if *program {
            make_executable(&path).map_err(failed(&path))?;
        }
    }
    for (path, text) in sdk.files() {
        let path = whole.join(sdk::VENDORED).join(path);
        put(&path, text).map_err(failed(&path))?;
    }
    // Over an empty folder this works where the system allows it (Linux does); elsewhere the folder goes first.
    match fs::rename(&whole, folder) {
        Err(_) if folder.is_dir() => fs::remove_dir(folder)
            .and_then(|()| fs::rename(&whole, folder))
            .map_err(failed(folder)),
        done => done.map_err(failed(folder)),
    }
}

fn put(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, text)
}

#[cfg(unix)]
fn make_executable(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;

    // Who may read it may run it, as the caller's umask says.
    let mode = fs::metadata(path)?.permissions().mode();
    fs::set_permissions(path, fs::Permissions::from_mode(mode | (mode & 0o444) >> 2))
}

#[cfg(not(unix))]
fn make_executable(_: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(name: &str, folder: &Path) -> Result<(), TemplateError> {
        write(&name.parse().unwrap(), &Sdk::Carried, folder)
    }

    #[test]
    fn the_whole_crate_bears_the_name() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("body-gate");
        new("body-gate", &folder).unwrap();
        for (path, _, _) in FILES {
            let text = fs::read_to_string(folder.join(path)).unwrap();
            for rest in ["my-control", "my_control", "MyControl"] {
                assert!(!text.contains(rest), "{path} has {rest}");
            }
        }
        let lib = fs::read_to_string(folder.join("src/lib.rs")).unwrap();
        assert!(lib.contains("pub struct BodyGate("), "{lib}");
        let code = lib.lines().filter(|line| !line.trim().is_empty());
        let code = code.filter(|line| !line.trim().starts_with("//")).count();
        assert!(code < 60, "the template has {code} lines of code");
        let left: Vec<_> = fs::read_dir(place.path()).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "{left:?}");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = fs::metadata(folder.join("fuzz/run")).unwrap().permissions();
            assert_ne!(mode.mode() & 0o100, 0, "fuzz/run is no program");
        }
    }

    #[test]
    fn what_is_there_stays_and_nothing_is_added() {
        let place = tempfile::tempdir().unwrap();
        let full = place.path().join("full");
        fs::create_dir(&full).unwrap();
        fs::write(full.join("mine"), "mine").unwrap();
        let file = place.path().join("file");
        fs::write(&file, "mine").unwrap();
        for folder in [&full, &file] {
            let error = new("gate", folder).unwrap_err();
            assert!(matches!(error, TemplateError::Taken(_)), "{error}");
        }
        let below_a_file = new("gate", &file.join("gate")).unwrap_err();
        assert!(matches!(below_a_file, TemplateError::Write(_, _)));
        assert_eq!(fs::read_to_string(full.join("mine")).unwrap(), "mine");
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 2);

        let empty = place.path().join("empty");
        fs::create_dir(&empty).unwrap();
        new("gate", &empty).unwrap();
        assert!(empty.join("src/lib.rs").is_file());
    }
}
