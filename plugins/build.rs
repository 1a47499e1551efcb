//! Builds every control beside this file for `wasm32-wasip1`, prunes the modules, and writes the table that
//! `src/lib.rs` includes. Where `prebuilt/` exists, as in a packaged crate, it takes the modules from there.
//!
//! Why it is as it is (each was tried the other way):
//!
//! - The nested cargo has a target folder of its own, one for all profiles: the outer one holds the lock on its own
//!   folder, and under `cargo clippy` and `cargo test` the modules are the same.
//! - Its environment is cleared of what the outer cargo and clippy's driver leave there, or it would run clippy.
//! - The `proxy-wasm` crate exports all 27 callbacks. A host calls what is exported, so what a control does not use is
//!   cut after linking (in Envoy 8 µs of CPU a request instead of 19).
//! - Panics become a bare `unreachable`: the messages and the formatting behind them are a third of a small module. A
//!   control cannot panic on client bytes; if one does, the trap says in which VM.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use walrus::{FunctionBuilder, FunctionKind, Module, ModuleConfig};

const TARGET: &str = "wasm32-wasip1";

/// Modules that verify signatures in the guest may be larger.
const CONTROLS_WITH_CRYPTO: [&str; 2] = ["jwt-auth", POLICY];
/// Links all the others.
const POLICY: &str = "policy";
const MODULE_BYTES_MAX: usize = 150 * 1024;
const MODULE_WITH_CRYPTO_BYTES_MAX: usize = 900 * 1024;

/// Exports that stay, whatever a control implements: the life of contexts (without `on_delete` they would leak) and
/// memory.
const EXPORTS_KEPT: [&str; 7] = [
    "_initialize",
    "memory",
    "proxy_abi_version_0_2_1",
    "proxy_on_configure",
    "proxy_on_context_create",
    "proxy_on_delete",
    "proxy_on_memory_allocate",
];

/// Parts of the (mangled) names of functions that never return: a panic, and the checks that end in one.
const PANICS: [&str; 14] = [
    "4core9panicking",
    "3std9panicking11begin_panic",
    "3std9panicking15panic_with_hook",
    "3std9panicking13panic_handler",
    "4core4cell22panic_already_borrowed",
    "4core4cell30panic_already_mutably_borrowed",
    "4core6option13expect_failed",
    "4core6option13unwrap_failed",
    "4core6result13unwrap_failed",
    "5alloc18handle_alloc_error",
    "8rust_oom",
    "slice_error_fail",
    "slice_index_fail",
    "18panic_access_error",
];

/// What only the report of a panic uses: its look-up of `RUST_BACKTRACE`, and standard error.
const PANIC_REPORT: [&str; 6] = [
    "3std3env7__var_os",
    "3std3sys5stdio4unix6Stderr",
    "3std3sys9backtrace",
    "3std5alloc24default_alloc_error_hook",
    "3std5panic19get_backtrace_style",
    "3std2io17default_write_fmt",
];

/// Functions that would use standard output or error for a purpose of their own.
const PRINTS: [&str; 2] = ["3std2io5stdio6__print", "3std2io5stdio7__eprint"];

/// The `proxy-wasm` crate's own getters stand in every context's table of methods; the SDK calls none of them (they
/// panic on what a client can bring about). Its methods that a host calls start with these words.
const CONTEXT_METHODS: &str = "10proxy_wasm6traits";
const CONTEXT_METHODS_CALLED: [&str; 3] = ["on_", "create_", "get_type"];

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
                modules.insert(stem(&path)?, fs::read(&path)?);
            }
        }
    } else {
        let controls = controls(&here)?;
        // Together with its controls' own exports the policy would have each twice, and cargo unites the features of what
        // it builds at once.
        let (policy, alone): (Vec<_>, Vec<_>) =
            controls.iter().cloned().partition(|it| it == POLICY);
        build(&here, &out, &alone)?;
        let built = build(&here, &out, &policy)?;
        for control in controls {
            let path = built.join(format!("{}.wasm", control.replace('-', "_")));
            let linked =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let pruned =
                prune(&linked).with_context(|| format!("cannot prune {}", path.display()))?;
            modules.insert(control, pruned);
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

/// Builds the controls; returns the folder with the linked modules.
fn build(here: &Path, out: &Path, controls: &[String]) -> Result<PathBuf> {
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
    add_target()?;

    // OUT_DIR is <target>/<profile>/build/<package>/out.
    let target_dir = out
        .ancestors()
        .nth(4)
        .context("OUT_DIR is not in a target folder")?
        .join("modules");
    let mut cargo = Command::new(env::var_os("CARGO").context("CARGO is not set")?);
    cargo.args([
        "build",
        "--locked",
        "--lib",
        "--profile",
        "module",
        "--target",
        TARGET,
    ]);
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
    for (name, _) in env::vars_os() {
        if name.to_str().is_none_or(is_of_the_outer_build) {
            cargo.env_remove(name);
        }
    }
    // No path of this machine in the messages of panics; the modules come out the same everywhere.
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    let mut flags = vec![remap(workspace, "portcullis")];
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home =
        cargo_home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    flags.extend(cargo_home.map(|home| remap(&home, "cargo")));
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    let output = cargo.output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!(
            "the controls do not build for {TARGET}:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(target_dir.join(TARGET).join("module"))
}

/// Whether a variable belongs to the build that runs this script, and would mislead the nested one.
fn is_of_the_outer_build(name: &str) -> bool {
    const KEPT: [&str; 3] = ["CARGO_HOME", "CARGO_MAKEFLAGS", "CARGO_TERM_COLOR"];
    const PREFIXES_KEPT: [&str; 4] = [
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTRIES_",
        "CARGO_REGISTRY_",
    ];
    const OURS: [&str; 9] = [
        "DEBUG",
        "HOST",
        "NUM_JOBS",
        "OPT_LEVEL",
        "OUT_DIR",
        "PROFILE",
        "RUSTDOC",
        "RUSTFLAGS",
        "TARGET",
    ];
    let of_cargo = name == "CARGO" || name.starts_with("CARGO_");
    let kept = KEPT.contains(&name) || PREFIXES_KEPT.iter().any(|prefix| name.starts_with(prefix));
    let of_compiler =
        name.starts_with("RUSTC") || name.starts_with("CLIPPY_") || OURS.contains(&name);
    (of_cargo && !kept) || of_compiler
}

/// Makes sure that the compiler has the standard library of the target; rustup can add it.
fn add_target() -> Result<()> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let sysroot = Command::new(rustc)
        .args(["--print", "sysroot"])
        .output()
        .context("cannot run rustc")?;
    let sysroot = PathBuf::from(String::from_utf8_lossy(&sysroot.stdout).trim());
    if sysroot
        .join("lib/rustlib")
        .join(TARGET)
        .join("lib")
        .is_dir()
    {
        return Ok(());
    }
    let mut rustup = Command::new("rustup");
    rustup.args(["target", "add", TARGET]);
    // The active toolchain, which rustup's proxy names in the environment, is the one that lacks the target.
    if let Ok(toolchain) = env::var("RUSTUP_TOOLCHAIN") {
        rustup.args(["--toolchain", &toolchain]);
    }
    let added = rustup.output();
    if added.as_ref().is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    let reason = added.map_or_else(
        |error| error.to_string(),
        |o| String::from_utf8_lossy(&o.stderr).into_owned(),
    );
    bail!(
        "the controls are built for {TARGET}, which this toolchain lacks ({}); add it with `rustup target add {TARGET}`\n{reason}",
        sysroot.display()
    );
}

/// Cuts what the control does not use.
fn prune(linked: &[u8]) -> Result<Vec<u8>> {
    let mut config = ModuleConfig::new();
    config
        .generate_name_section(env::var_os("PORTCULLIS_MODULE_NAMES").is_some())
        .generate_producers_section(false);
    let mut module = config.parse(linked)?;
    let metadata = section(&module).context("it has no section `portcullis`")?;
    let callbacks = value(&metadata, "callbacks").context("its section names no callbacks")?;

    let unused: Vec<_> = module
        .exports
        .iter()
        .filter(|export| {
            let name = export.name.as_str();
            !EXPORTS_KEPT.contains(&name) && !callbacks.split(',').any(|callback| callback == name)
        })
        .map(|export| export.id())
        .collect();
    for export in unused {
        module.exports.delete(export);
    }
    silence_panics(&mut module)?;
    walrus::passes::gc::run(&mut module);
    let prints = |name: &str| PRINTS.iter().any(|print| name.contains(print));
    if module
        .funcs
        .iter()
        .any(|function| function.name.as_deref().is_some_and(prints))
    {
        bail!("it prints: a control logs through the SDK");
    }
    Ok(module.emit_wasm())
}

/// Puts a bare `unreachable` in the place of each function that every panic passes through.
fn silence_panics(module: &mut Module) -> Result<()> {
    let found: Vec<_> = module
        .funcs
        .iter_local()
        .filter(|(id, function)| {
            let name = module.funcs.get(*id).name.as_deref().unwrap_or_default();
            let panics = PANICS.iter().any(|panic| name.contains(panic))
                && module.types.results(function.ty()).is_empty();
            panics
                || PANIC_REPORT.iter().any(|report| name.contains(report))
                || is_unused_getter(name)
        })
        .map(|(id, function)| (id, function.ty()))
        .collect();
    if found.is_empty() {
        bail!("no panic found by name: has the profile stripped them?");
    }
    for (id, ty) in found {
        let (params, results) = (
            module.types.params(ty).to_vec(),
            module.types.results(ty).to_vec(),
        );
        let arguments = params
            .iter()
            .map(|param| module.locals.add(*param))
            .collect();
        let mut builder = FunctionBuilder::new(&mut module.types, &params, &results);
        builder.func_body().unreachable();
        module.funcs.get_mut(id).kind = FunctionKind::Local(builder.local_func(arguments));
    }
    Ok(())
}

/// Whether it is a method of a context that neither the host nor the SDK calls, by its (mangled) name.
fn is_unused_getter(name: &str) -> bool {
    let Some((_, path)) = name.split_once(CONTEXT_METHODS) else {
        return false;
    };
    // `7Context15get_shared_data17h…`: the trait, then the method, each after its length.
    let method = path
        .trim_start_matches(|c: char| c.is_ascii_digit())
        .split_once(|c: char| c.is_ascii_digit());
    let method = method.map(|(_, rest)| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
    method.is_some_and(|method| {
        !CONTEXT_METHODS_CALLED
            .iter()
            .any(|called| method.starts_with(called))
    })
}

/// The text of the custom section `portcullis`.
fn section(module: &Module) -> Option<String> {
    let (_, section) = module
        .customs
        .iter()
        .find(|(_, section)| section.name() == "portcullis")?;
    String::from_utf8(section.data(&Default::default()).into_owned()).ok()
}

/// The value of a key in the section.
fn value<'a>(section: &'a str, key: &str) -> Option<&'a str> {
    section
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
}

/// Writes the modules and the table of them.
fn write_table(out: &Path, modules: &BTreeMap<String, Vec<u8>>) -> Result<()> {
    let mut table = String::from("&[\n");
    for (control, bytes) in modules {
        let max = match CONTROLS_WITH_CRYPTO.contains(&control.as_str()) {
            true => MODULE_WITH_CRYPTO_BYTES_MAX,
            false => MODULE_BYTES_MAX,
        };
        if bytes.len() > max {
            println!(
                "cargo::warning={control} has {} bytes as a module, more than its {max}",
                bytes.len()
            );
        }
        let path = out.join(format!("{control}.wasm"));
        fs::write(&path, bytes)?;
        let metadata = section(&Module::from_buffer(bytes)?)
            .with_context(|| format!("{control} has no section `portcullis`"))?;
        let field =
            |key| value(&metadata, key).with_context(|| format!("{control} names no {key}"));
        let name = field("name")?;
        if name != control {
            bail!("the control in {control}/ calls itself {name}");
        }
        table.push_str(&format!(
            "    Builtin {{ name: {name:?}, version: {:?}, summary: {:?}, module: include_bytes!({path:?}) }},\n",
            field("version")?,
            field("summary")?,
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
