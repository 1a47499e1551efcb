//! `cargo run` and `cargo test --workspace` ask for the same features of every crate that both compile: where they differ, Cargo compiles the crate twice,
//! and all that stands on it. wasmtime alone takes five minutes.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::build_folder::repository;

/// Crates (name and version) with each set of features that they are compiled with.
fn features(selection: &[&str]) -> Result<BTreeMap<String, Vec<String>>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(repository())
        .args([
            "tree",
            "--offline",
            "--prefix=none",
            "--no-dedupe",
            "--format={p}|{f}",
        ])
        .args(selection)
        .output()?;
    ensure!(
        output.status.success(),
        "cargo tree: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut found = BTreeMap::<_, Vec<_>>::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        // Between trees are empty lines, and headings such as `[build-dependencies]`.
        let Some((what, features)) = line.split_once('|') else {
            ensure!(line.is_empty() || line.starts_with('['), "{line}");
            continue;
        };
        // A crate, its version, and where it comes from if that is not the registry.
        let name: Vec<_> = what.split(' ').take(2).collect();
        let known = found.entry(name.join(" ")).or_default();
        if !known.iter().any(|it| it == features) {
            known.push(features.to_owned());
        }
    }
    Ok(found)
}

#[test]
fn the_tests_compile_nothing_of_the_product_again() -> Result<()> {
    let product = features(&["--edges=normal,build"])?;
    let all = features(&["--workspace", "--edges=normal,build,dev"])?;
    ensure!(product.len() > 200, "{product:?}");
    for (name, sets) in &product {
        let with_tests = all
            .get(name)
            .with_context(|| format!("{name} is not in the workspace"))?;
        for set in sets {
            ensure!(
                with_tests.contains(set),
                "`cargo run` compiles {name} with the features [{set}], `cargo test --workspace` with {with_tests:?}: \
                 ask for the latter where host/proxy/Cargo.toml says \"For their features alone\", or compile it twice"
            );
        }
    }
    Ok(())
}
