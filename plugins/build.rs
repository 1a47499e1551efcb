//! Builds every control beside this file for `wasm32-wasip1`, finishes the modules, and writes the table that
//! `src/lib.rs` includes. Where `prebuilt/` exists, as in a packaged crate, it takes the modules from there.
//!
//! Why it is as it is (each was tried the other way):
//!
//! - The nested cargo has a target folder of its own, one for all profiles: the outer one holds the lock on its own
//!   folder, and under `cargo clippy` and `cargo test` the modules are the same.
//! - What the outer cargo and clippy's driver leave in its environment is cleared, and what a control does not use is
//!   cut after linking: see `sdk/module`.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use portcullis_module::toolchain::{self, Progress, TARGET};
use portcullis_module::{Description, Finished, Names};

/// Modules that verify signatures in the guest may be larger. The bounds count no schema: hosts skip it.
const CONTROLS_WITH_CRYPTO: [&str; 2] = ["jwt-auth", POLICY];
/// Links all the others.
const POLICY: &str = "policy";
const MODULE_BYTES_MAX: usize = 150 * 1024;
const MODULE_WITH_CRYPTO_BYTES_MAX: usize = 900 * 1024;

fn main() -> Result<()> {
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var("OUT_DIR")?);
    println!("cargo::rerun-if-changed=build.rs");

    let prebuilt = here.join("prebuilt");
    let mut modules = BTreeMap::new();
    if prebuilt.is_dir() {
        println!("cargo::rerun-if-changed=prebuilt");
        for entry in fs::read_dir(&prebuilt)? {
            let path = entry?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "wasm")
            {
                let finished =
                    Finished::read(fs::read(&path)?).with_context(|| path.display().to_string())?;
                modules.insert(stem(&path)?, finished);
            }
        }
    } else {
        let controls = controls(&here)?;
        // Together with its controls' own exports the policy would have each twice, and cargo unites the features of what
        // it builds at once.
        let (policy, alone): (Vec<_>, Vec<_>) = controls.into_iter().partition(|it| it == POLICY);
        for controls in [alone, policy] {
            let twins = build(&here, &out, &controls, Schema::Made)?;
            let linked = build(&here, &out, &controls, Schema::Left)?;
            for ((control, linked), twin) in controls.into_iter().zip(linked).zip(twins) {
                let finished = portcullis_module::finish(&linked, &twin, names())
                    .with_context(|| format!("cannot finish {control}"))?;
                modules.insert(control, finished);
            }
        }
    }
    if modules.is_empty() {
        bail!(
            "there is no control beside {}",
            here.join("build.rs").display()
        );
    }
    write_table(&out, &modules)
}

/// The folders beside this file that hold a crate, sorted.
fn controls(here: &Path) -> Result<Vec<String>> {
    let mut controls = Vec::new();
    for entry in fs::read_dir(here)? {
        let path = entry?.path();
        if path.join("Cargo.toml").is_file() {
            println!(
                "cargo::rerun-if-changed={}",
                path.join("Cargo.toml").display()
            );
            println!("cargo::rerun-if-changed={}", path.join("src").display());
            controls.push(stem(&path)?);
        }
    }
    controls.sort();
    Ok(controls)
}

/// Whether the modules can make the schemas of their configurations.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Schema {
    Made,
    Left,
}

/// Builds the controls; returns the linked modules, in their order.
fn build(here: &Path, out: &Path, controls: &[String], schema: Schema) -> Result<Vec<Vec<u8>>> {
    let workspace = here.parent().context("the crate stands in no workspace")?;
    for file in [
        "Cargo.toml",
        "Cargo.lock",
        "rust-toolchain.toml",
        "sdk/Cargo.toml",
        "sdk/src",
    ] {
        println!("cargo::rerun-if-changed={}", workspace.join(file).display());
    }
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    toolchain::add_target(&rustc, workspace, Progress::Kept)?;

    // OUT_DIR is <target>/<profile>/build/<package>/out.
    let target_dir = out
        .ancestors()
        .nth(4)
        .context("OUT_DIR is not in a target folder")?
        .join("modules");
    let cargo = env::var_os("CARGO").context("CARGO is not set")?;
    let mut cargo = toolchain::build(&cargo, workspace);
    cargo.args(["--lib", "--locked", "--profile", "module"]);
    cargo
        .arg("--manifest-path")
        .arg(workspace.join("Cargo.toml"));
    cargo.arg("--target-dir").arg(&target_dir);
    for control in controls {
        cargo.args([
            "--package",
            control,
            "--features",
            &format!("{control}/module"),
        ]);
    }
    if schema == Schema::Made {
        let sdk = "portcullis-sdk";
        cargo.args(["--package", sdk, "--features", &format!("{sdk}/schema")]);
    }
    let output = cargo.output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!(
            "the controls do not build for {TARGET}:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let built = target_dir.join(TARGET).join("module");
    let read = |control: &String| {
        let path = built.join(format!("{}.wasm", control.replace('-', "_")));
        fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    controls.iter().map(read).collect()
}

/// `PORTCULLIS_MODULE_NAMES=1` keeps the names of functions, for profilers.
fn names() -> Names {
    match env::var_os("PORTCULLIS_MODULE_NAMES") {
        Some(_) => Names::Kept,
        None => Names::Dropped,
    }
}

/// Writes the modules and the table of them.
fn write_table(out: &Path, modules: &BTreeMap<String, Finished>) -> Result<()> {
    let mut table = String::from("&[\n");
    for (control, finished) in modules {
        let max = match CONTROLS_WITH_CRYPTO.contains(&control.as_str()) {
            true => MODULE_WITH_CRYPTO_BYTES_MAX,
            false => MODULE_BYTES_MAX,
        };
        let size = finished.bytes_without_schema();
        if size > max {
            println!("cargo::warning={control} has {size} bytes as a module, more than its {max}");
        }
        let path = out.join(format!("{control}.wasm"));
        fs::write(&path, &finished.bytes)?;
        let Description {
            name,
            version,
            summary,
            authenticates,
            callbacks,
            capabilities,
            schema,
            ..
        } = &finished.description;
        if name != control {
            bail!("the control in {control}/ calls itself {name}");
        }
        let schema = schema
            .as_ref()
            .with_context(|| format!("{control} has no schema"))?;
        table.push_str(&format!(
            "    Builtin {{ name: {name:?}, version: {version:?}, summary: {summary:?}, authenticates: {authenticates}, \
             callbacks: &{callbacks:?}, capabilities: &{capabilities:?}, schema: {schema:?}, \
             module: include_bytes!({path:?}) }},\n",
        ));
    }
    table.push(']');
    fs::write(out.join("builtins.rs"), table)?;
    Ok(())
}

fn stem(path: &Path) -> Result<String> {
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    Ok(stem
        .with_context(|| format!("{} is no name", path.display()))?
        .to_owned())
}
