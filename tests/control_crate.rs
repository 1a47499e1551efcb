//! A new control, as a stranger makes one: `portcullis new`, `cargo test`, `portcullis build`, `portcullis inspect`, and the module at work in
//! Portcullis and in Envoy. It stands outside of the workspace; what cargo builds for it stays in the build folder from run to run.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::build_folder::build_folder;
use portcullis_tests::client::Route;
use portcullis_tests::http1::Request;
use portcullis_tests::upstream::Upstream;
use serde_json::{Value, json};

use crate::places::{ANY_PORT, in_both};
use crate::served;

pub(crate) const NAME: &str = "body-gate";

/// The crate's folder, and the lock that keeps it: tests run beside each other, and runs of them too. Cargo knows crates by their paths, so the
/// path is the same in each run; the crate is written anew only where `portcullis new` makes something else, or cargo would build it each time.
pub(crate) fn folder() -> Result<(PathBuf, File)> {
    let place = build_folder()?.join("tests-control");
    fs::create_dir_all(&place)?;
    let lock = File::create(place.join(".lock"))?;
    lock.lock()?;
    let folder = place.join(NAME);
    let new = tempfile::tempdir_in(&place)?;
    let made = new.path().join(NAME);
    let said = told(served::command()?.args(["new", NAME, "--dir"]).arg(&made))?;
    for step in [
        "cargo test ",
        "portcullis test ",
        "portcullis bench ",
        "portcullis build ",
    ] {
        ensure!(said.contains(step), "`new` does not name {step}:\n{said}");
    }
    if folder.is_dir() {
        // What runs in it leaves locks and what proptest found.
        for left in ["Cargo.lock", "proptest-regressions"] {
            let left = folder.join(left);
            if left.is_file() {
                fs::copy(&left, made.join(left.file_name().unwrap_or_default()))?;
            }
        }
        if files(&folder)? == files(&made)? {
            return Ok((folder, lock));
        }
        fs::remove_dir_all(&folder)?;
    }
    fs::rename(&made, &folder)?;
    Ok((folder, lock))
}

/// Every file below a folder, by its path, with what it holds.
fn files(folder: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(one) = folders.pop() {
        for entry in fs::read_dir(&one)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push((path.strip_prefix(folder)?.to_path_buf(), fs::read(&path)?));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// What a command that must succeed prints.
pub(crate) fn told(command: &mut Command) -> Result<String> {
    let output = ended(command)?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

pub(crate) fn ended(command: &mut Command) -> Result<Output> {
    // The tests' own cargo has set these for the workspace.
    for name in ["CARGO", "CARGO_MANIFEST_DIR", "RUSTFLAGS", "RUSTC_WRAPPER"] {
        command.env_remove(name);
    }
    let target = build_folder()?.join("tests-control/target");
    command
        .env("CARGO_TARGET_DIR", target)
        .output()
        .with_context(|| format!("cannot run {command:?}"))
}

fn build(folder: &Path) -> Result<Output> {
    ended(served::command()?.args(["build", "--dir"]).arg(folder))
}

#[test]
fn a_new_control_passes_its_tests_and_runs_in_both_hosts() -> Result<()> {
    let (folder, _lock) = folder()?;
    let tested = told(Command::new("cargo").arg("test").current_dir(&folder))?;
    for test in [
        "test cases ... ok",
        "test any_bytes_are_decided ... ok",
        "test what_is_wrong_in_a_configuration_is_named ... ok",
    ] {
        ensure!(tested.contains(test), "no {test:?}:\n{tested}");
    }

    let built = build(&folder)?;
    let text = String::from_utf8_lossy(&built.stdout);
    ensure!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
    for part in [
        "0.1.0",
        "request_headers",
        "media_types: array, default [\"application/json\"]",
        "proxy_send_local_response",
        "_initialize",
        "bytes",
    ] {
        ensure!(text.contains(part), "build does not tell {part}:\n{text}");
    }
    let module = build_folder()?.join("tests-control/target/portcullis/body-gate.wasm");
    let size = fs::metadata(&module)?.len();
    ensure!(size < 150 * 1024, "the smallest control has {size} bytes");

    let inspected = told(
        served::command()?
            .arg("inspect")
            .arg(&module)
            .args(["--format", "json"]),
    )?;
    let inspected: Value = serde_json::from_str(&inspected)?;
    let at = |pointer: &str| {
        let found = inspected.pointer(pointer);
        found.with_context(|| format!("no {pointer} in {inspected:#}"))
    };
    ensure!(at("/description/name")? == NAME && at("/instantiates")? == true);
    ensure!(at("/description/schema/properties/media_types/items/type")? == "string");
    ensure!(at("/description/schema/additionalProperties")? == false);
    let exports = at("/exports")?.to_string();
    ensure!(
        !exports.contains("schema") && !exports.contains("proxy_on_log"),
        "{exports}"
    );

    let upstream = Upstream::start()?;
    let policy = json!({
        "workers": 1,
        "listeners": [{"name": "plain", "address": ANY_PORT}],
        "clusters": [{"name": "upstream", "endpoints": [upstream.address().to_string()]}],
        // With no more than it says that it needs.
        "filters": [{
            "name": NAME,
            "module": module,
            "configuration": {"media_types": ["application/json"]},
            "allow": {"capabilities": at("/description/capabilities")?},
        }],
        "routes": [{"name": "all", "cluster": "upstream"}],
    });
    in_both("a new control", &policy, "plain", |address| {
        for (media_type, status) in [("application/json", 200), ("text/html", 415)] {
            let request = Request::get("/").header("content-type", media_type);
            let answer = Route::plain(address).send(&request.post("{}"))?;
            ensure!(
                answer.status == status,
                "{media_type}: expected {status}, got {}",
                answer.status
            );
            ensure!(
                (status == 200) == answer.header("x-policy-decision-id").is_none(),
                "{media_type}: {:?}",
                answer.headers
            );
        }
        Ok(())
    })
}

#[test]
fn a_crate_that_cannot_be_built_is_told_why() -> Result<()> {
    let place = tempfile::tempdir()?;
    let empty = place.path().join("empty");
    fs::create_dir(&empty)?;
    let control = |name: &str, manifest: &str| -> Result<PathBuf> {
        let folder = place.path().join(name);
        told(
            served::command()?
                .args(["new", "gate", "--dir"])
                .arg(&folder),
        )?;
        let path = folder.join("Cargo.toml");
        let text = fs::read_to_string(&path)?;
        fs::write(&path, text.replace(manifest, ""))?;
        Ok(folder)
    };
    let no_cdylib = control("no-cdylib", "\"cdylib\", ")?;
    let no_sdk = control(
        "no-sdk",
        "portcullis-sdk = { path = \"vendor/portcullis-sdk\" }\n",
    )?;
    let nothing_at_all = place.path().join("no-such-folder");
    for (folder, reason) in [
        (&empty, "portcullis new NAME"),
        (&nothing_at_all, "portcullis new NAME"),
        (&no_cdylib, "crate-type = [\"cdylib\", \"rlib\"]"),
        (&no_sdk, "does not depend on portcullis-sdk"),
    ] {
        let output = build(folder)?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(1) && told.contains(reason),
            "{}: {} {told}",
            folder.display(),
            output.status
        );
    }
    Ok(())
}

/// In the same folder, so that cargo compiles nothing but the control.
#[test]
fn what_the_compiler_and_the_module_say_is_passed_on() -> Result<()> {
    let (folder, _lock) = folder()?;
    let path = folder.join("src/lib.rs");
    let lib = fs::read_to_string(&path)?;
    for (name, from, to, reason) in [
        (
            "broken",
            "type State = ();",
            "type State = u;",
            "cannot find type `u`",
        ),
        ("silent", "export!(BodyGate);", "", "export!(MyControl);"),
        (
            "prints",
            "        if request.end_of_stream() {",
            "        println!(\"{:?}\", request.path());\n        if request.end_of_stream() {",
            "it prints",
        ),
    ] {
        ensure!(lib.contains(from), "the template has no {from:?} any more");
        fs::write(&path, lib.replace(from, to))?;
        let output = build(&folder);
        fs::write(&path, &lib)?;
        let output = output?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(1) && told.contains(reason),
            "{name}: {} {told}",
            output.status
        );
        ensure!(output.stdout.is_empty(), "{name} is described");
    }
    Ok(())
}

#[test]
fn a_name_or_a_folder_that_cannot_be_is_refused() -> Result<()> {
    let place = tempfile::tempdir()?;
    fs::write(place.path().join("taken"), "mine")?;
    for (arguments, code, reason) in [
        (&["new", "Gate"][..], 2, "lower-case letter"),
        (&["new", "serde"], 2, "crate that controls use"),
        (&["new", "taken"], 1, "is not an empty folder"),
        (&["new", "gate", "--dir", "."], 1, "is not an empty folder"),
        (&["new", "gate", "--sdk", "nowhere"], 2, "neither a version"),
        (&["new"], 2, "<NAME>"),
    ] {
        let output = served::command()?
            .args(arguments)
            .current_dir(place.path())
            .output()?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(code) && told.contains(reason),
            "{arguments:?}: {} {told}",
            output.status
        );
    }
    let left = fs::read_dir(place.path())?.count();
    ensure!(left == 1, "{left} things stand where one stood");
    Ok(())
}

/// Builtin controls say what they are: what `inspect` tells of them is what they need, and what they take.
#[test]
fn builtin_controls_need_what_they_say() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for control in portcullis_plugins::all() {
        let schema: Value = serde_json::from_str(control.schema)?;
        ensure!(
            schema.pointer("/properties").is_some(),
            "{}: {schema}",
            control.name
        );
        for callback in control.callbacks {
            ensure!(
                control.capabilities.contains(callback),
                "{} does not need its {callback}",
                control.name
            );
        }
        let policy = folder.path().join(format!("{}.yaml", control.name));
        let text = json!({
            "listeners": [{"name": "plain", "address": ANY_PORT}],
            "clusters": [{"name": "upstream", "endpoints": ["127.0.0.1:9"]}],
            "filters": [{
                "name": "it",
                "module": format!("builtin:{}", control.name),
                "allow": {"capabilities": control.capabilities},
                "configuration": match control.name {
                    "jwt-auth" => json!({"providers": [
                        {"issuer": "https://idp.test", "audiences": ["a"], "jwks": {"keys": [{
                            "alg": "ES256", "crv": "P-256", "kid": "k", "kty": "EC", "use": "sig",
                            "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
                            "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
                        }]}},
                    ]}),
                    "policy" => json!({"controls": [{"control": "security-headers"}]}),
                    _ => json!({}),
                },
            }],
            "routes": [{"name": "all", "cluster": "upstream"}],
        });
        fs::write(&policy, text.to_string())?;
        let output = ended(served::command()?.arg("check").arg(&policy))?;
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{}: {told}", control.name);
    }
    Ok(())
}
