//! `export envoy` of the example policies: stock Envoy accepts them as they are, and starts with them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::build_folder::repository;
use portcullis_tests::certificates::Certificates;
use portcullis_tests::envoy::{self, Envoy};
use portcullis_tests::report;

use crate::served;

/// The example policies with what they need to be complete, in a folder of their own.
fn examples(folder: &Path) -> Result<Vec<PathBuf>> {
    let certificates = Certificates::make(folder)?;
    let mut examples = Vec::new();
    for entry in fs::read_dir(repository().join("docs/policies"))? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let copy = folder.join(path.file_name().context("no name")?);
        let text = fs::read_to_string(&path)?;
        // The files that a deployment would have.
        for file in files_named(&text) {
            let made = match file {
                _ if file.ends_with(".key") => &certificates.key,
                _ if file.contains("ca.pem") => &certificates.authority,
                _ => &certificates.chain,
            };
            let place = folder.join(file);
            fs::create_dir_all(place.parent().context("no folder")?)?;
            if place != *made {
                fs::copy(made, place)?;
            }
        }
        fs::write(&copy, text)?;
        examples.push(copy);
    }
    examples.sort();
    ensure!(!examples.is_empty(), "there is no example policy");
    Ok(examples)
}

/// The PEM files that a policy names.
fn files_named(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c.is_whitespace() || "{},\"'".contains(c))
        .filter(|word| word.ends_with(".pem") || word.ends_with(".key"))
}

#[test]
fn example_policies_are_right() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for example in examples(folder.path())? {
        let output = served::run(&["check", &example.display().to_string()])?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
    }
    Ok(())
}

#[test]
fn envoy_accepts_the_example_policies() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for example in examples(folder.path())? {
        let name = example.file_stem().unwrap().to_string_lossy().into_owned();
        let exported = served::export(&example, &folder.path().join(&name))?;
        if let Some(why) = envoy::left_out() {
            report::not_run(
                &format!("envoy --mode validate of the example policy {name}"),
                why,
            );
        } else {
            Envoy::validate(&exported)?;
        }
    }
    Ok(())
}

#[test]
fn modules_may_live_elsewhere_and_filters_stand_alone() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let example = examples(folder.path())?.remove(0);
    let policy = example.display().to_string();
    let out = |name: &str| folder.path().join(name).display().to_string();
    let elsewhere = "/etc/envoy/modules";
    let run = |arguments: &[&str]| -> Result<()> {
        let output = served::run(arguments)?;
        ensure!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    };
    run(&[
        "export",
        "envoy",
        &policy,
        "--out",
        &out("one"),
        "--modules-at",
        elsewhere,
    ])?;
    let text = fs::read_to_string(folder.path().join("one/envoy.yaml"))?;
    ensure!(
        text.contains(&format!("filename: {elsewhere}/")),
        "no module at {elsewhere}:\n{text}"
    );
    run(&[
        "export",
        "envoy",
        &policy,
        "--out",
        &out("two"),
        "--filters-only",
    ])?;
    let text = fs::read_to_string(folder.path().join("two/http_filters.yaml"))?;
    ensure!(
        text.contains("http_filters:") && !text.contains("static_resources"),
        "{text}"
    );
    let relative = served::run(&[
        "export",
        "envoy",
        &policy,
        "--out",
        &out("three"),
        "--modules-at",
        "modules",
    ])?;
    ensure!(
        !relative.status.success(),
        "a relative --modules-at is accepted"
    );
    Ok(())
}
