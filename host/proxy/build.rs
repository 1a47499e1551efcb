//! Writes the SDK's source, as `portcullis new` hands it out, into a table that `src/template/sdk.rs` includes: the
//! files under `src`, and a manifest that needs no workspace, of the SDK itself and of the crate of its own that it depends on. Tests and
//! examples stay here.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use toml::{Table, Value};

/// The crates handed out, as folders below `sdk`: the SDK, and what it depends on by a path.
const CRATES: [&str; 2] = ["", "cases"];

/// What a manifest for others leaves out: what is not handed out, and what only this workspace runs.
const LEFT_OUT: [&str; 5] = ["bench", "bin", "dev-dependencies", "example", "test"];

fn main() -> Result<()> {
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let workspace = here.ancestors().nth(2).context("no workspace above")?;
    let sdk = workspace.join("sdk");
    let root = workspace.join("Cargo.toml");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={}", root.display());

    let read = |path: &Path| -> Result<Table> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        text.parse().with_context(|| path.display().to_string())
    };
    let mut table = String::from("&[\n");
    for name in CRATES {
        let (manifest, src) = match name {
            "" => (sdk.join("Cargo.toml"), sdk.join("src")),
            name => (
                sdk.join(name).join("Cargo.toml"),
                sdk.join(name).join("src"),
            ),
        };
        for path in [&manifest, &src] {
            println!("cargo::rerun-if-changed={}", path.display());
        }
        let alone = on_its_own(read(&manifest)?, &read(&root)?)?;
        let text = alone.to_string();
        table.push_str(&format!("    ({:?}, {text:?}),\n", below(&sdk, &manifest)?));
        let mut files = Vec::new();
        collect(&src, &mut files)?;
        files.sort();
        for file in files {
            let name = below(&sdk, &file)?;
            table.push_str(&format!("    ({name:?}, include_str!({file:?})),\n"));
        }
    }
    table.push(']');
    fs::write(out.join("sdk_files.rs"), table)?;
    Ok(())
}

/// A file's path below a folder, as it is written in a manifest.
fn below(folder: &Path, file: &Path) -> Result<String> {
    let name = file.strip_prefix(folder)?;
    let name = name.to_str().context("a file's name is no UTF-8")?;
    Ok(name.replace('\\', "/"))
}

/// Every file below a folder.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        match path.is_dir() {
            true => collect(&path, files)?,
            false => files.push(path),
        }
    }
    Ok(())
}

/// The manifest with the workspace's values in the places that inherit them.
fn on_its_own(mut manifest: Table, root: &Table) -> Result<Table> {
    let workspace = table(root, "workspace")?;
    for section in LEFT_OUT {
        manifest.remove(section);
    }
    if let Some(Value::Table(package)) = manifest.get_mut("package") {
        package.remove("readme");
        inherit(package, table(workspace, "package")?)?;
    }
    if let Some(lints) = manifest.get_mut("lints") {
        *lints = Value::Table(table(workspace, "lints")?.clone());
    }
    let dependencies = table(workspace, "dependencies")?;
    if let Some(Value::Table(targets)) = manifest.get_mut("target") {
        for (_, target) in targets.iter_mut() {
            if let Value::Table(target) = target {
                inherit_dependencies(target, dependencies)?;
            }
        }
    }
    inherit_dependencies(&mut manifest, dependencies)?;
    Ok(manifest)
}

fn inherit_dependencies(owner: &mut Table, known: &Table) -> Result<()> {
    owner.remove("dev-dependencies");
    for group in ["dependencies", "build-dependencies"] {
        if let Some(Value::Table(group)) = owner.get_mut(group) {
            inherit(group, known)?;
            for (name, value) in group.iter_mut() {
                move_path(name, value)?;
            }
        }
    }
    Ok(())
}

/// A crate that is handed out stands below the SDK, as it does here; the workspace names it by its path from the root.
fn move_path(name: &str, dependency: &mut Value) -> Result<()> {
    let Some(path) = dependency.get_mut("path") else {
        return Ok(());
    };
    let below = path.as_str().and_then(|path| path.strip_prefix("sdk/"));
    let Some(folder) = CRATES.into_iter().find(|folder| below == Some(*folder)) else {
        bail!(
            "the SDK depends on {name} by its path, {path}: `portcullis new` does not hand that out"
        );
    };
    *path = folder.into();
    Ok(())
}

/// Puts the workspace's values where `workspace = true` stands. What else stands beside it (`features`, `optional`) is added.
fn inherit(values: &mut Table, known: &Table) -> Result<()> {
    for (key, value) in values.iter_mut() {
        let Value::Table(own) = value else { continue };
        if own.remove("workspace").is_none() {
            continue;
        }
        let theirs = known
            .get(key)
            .with_context(|| format!("the workspace has no {key}"))?;
        if own.is_empty() {
            *value = theirs.clone();
            continue;
        }
        let mut merged = match theirs {
            Value::Table(theirs) => theirs.clone(),
            version => Table::from_iter([("version".to_owned(), version.clone())]),
        };
        for (key, value) in std::mem::take(own) {
            match (merged.get_mut(&key), value) {
                (Some(Value::Array(known)), Value::Array(more)) => known.extend(more),
                (_, value) => {
                    merged.insert(key, value);
                }
            }
        }
        *value = Value::Table(merged);
    }
    Ok(())
}

fn table<'a>(of: &'a Table, key: &str) -> Result<&'a Table> {
    let found = of.get(key).and_then(Value::as_table);
    found.with_context(|| format!("Cargo.toml of the workspace has no [{key}]"))
}
