//! A reload to a policy whose module is not signed as the policy asks.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::child::until;
use portcullis_tests::client::Route;
use portcullis_tests::free_port::free_address;
use portcullis_tests::http1::Request;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::reloaded::{BOUND, Counted};
use crate::served::Served;

/// Lets every request pass: `(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (i32.const 0))`, with a memory, an
/// allocator and the ABI's version. In bytes, since these are signed.
const MODULE: &[u8] = b"\0asm\x01\0\0\0\
    \x01\x10\x03`\0\0`\x01\x7f\x01\x7f`\x03\x7f\x7f\x7f\x01\x7f\x03\x04\x03\0\x01\x02\x05\x03\x01\0\x01\
    \x07H\x04\x06memory\x02\0\x17proxy_abi_version_0_2_1\0\0\x06malloc\0\x01\x18proxy_on_request_headers\0\x02\
    \n\x0e\x03\x02\0\x0b\x04\0A\x08\x0b\x04\0A\0\x0b";

/// A section of the name `x` behind it: another module that does the same.
const SECTION: &[u8] = b"\0\x02\x01x";

/// What rust-minisign 0.10 made of [`MODULE`].
const KEY: &str = "RWSnbYaQcQA9FnDdWYL+01NKzZS7vXZMezbbzqG0H1tysEwPQYC5M0XE";
const SIGNATURE: &str = "untrusted comment: signature of a test
RUSnbYaQcQA9FuS6mf06wIQ8we5qKDabi6i5dZZn/q0sDqZL1NKii7Li9Za31zOEFCl3Vi81ngYhKaJMgPdasPoLBegRkU9IJA0=
trusted comment: a module that lets all pass
BAUrrrRk/AfDYVGzrG/h691QpazC645mJ88oqi9fEQcTFxx8RYeUmQb1SCbs8TvGRqVHYVzxZA4DJWvMwcB3CA==
";
/// Of another pair.
const OTHER_KEY: &str = "RWTjLR5p6AgTca9RRzytMvn95hhBl7bOChZoVl3zgo9MLbGqnopolegv";

/// What `serve` does after SIGHUP.
fn reloads(served: &Served, result: &str) -> Result<f64> {
    let result = format!("result=\"{result}\"");
    served.metric(&["portcullis_reloads_total", &result])
}

/// The line of the policy file that `text` stands on.
fn line_of(policy: &Path, text: &str) -> Result<usize> {
    let policy = fs::read_to_string(policy)?;
    let found = policy.lines().position(|line| line.contains(text));
    Ok(found.with_context(|| format!("no {text}"))? + 1)
}

#[test]
fn a_reload_with_a_bad_signature_changes_nothing_and_says_why() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let module = folder.path().join("control.wasm");
    let signature = folder.path().join("control.wasm.minisig");
    fs::write(&module, MODULE)?;
    fs::write(&signature, SIGNATURE)?;
    let upstream = Counted::start()?;
    let address = free_address()?;
    let policy = |key: &str| {
        json!({
            "listeners": [{"name": "plain", "address": address.to_string()}],
            "clusters": [{"name": "upstream", "endpoints": [upstream.address()]}],
            "filters": [{
                "name": "control",
                "module": module,
                "signature": {"minisign_public_key": key, "file": signature},
            }],
            "routes": [{"name": "all", "cluster": "upstream"}],
        })
    };
    let served = Served::start_with(&policy(KEY), &["--no-watch"])?;
    let told = || -> Result<Value> { Ok(serde_json::from_slice(&served.admin("/policy")?.body)?) };
    let serves = || -> Result<()> {
        let answer = Route::plain(address).send(&Request::get("/"))?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    };
    let before = told()?["filters"].clone();
    ensure!(before[0]["sha256"].is_string(), "{before}");
    let (wasm, minisig) = (module.display(), signature.display());
    let changed = [MODULE, SECTION].concat();
    let cut = SIGNATURE.lines().next().unwrap_or_default();
    for (round, (key, bytes, signed, reason)) in [
        (
            KEY,
            &*changed,
            SIGNATURE,
            format!("{minisig} does not sign {wasm}: one of them was changed"),
        ),
        (
            KEY,
            MODULE,
            cut,
            format!("{minisig} is not a minisign signature: four lines"),
        ),
        (
            OTHER_KEY,
            MODULE,
            SIGNATURE,
            format!("{minisig} was made with another key than `minisign_public_key`"),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        fs::write(&module, bytes)?;
        fs::write(&signature, signed)?;
        served.write(&policy(key))?;
        served.process.signal(Signal::HUP)?;
        let refused = u32::try_from(round)? + 1;
        until(BOUND, "a refused reload", || {
            Ok(reloads(&served, "refused")? >= f64::from(refused))
        })?;
        let line = line_of(&served.policy(), "\"file\"")?;
        let said = format!(
            "{}:{line}: filters[0].signature.file: {reason}",
            served.policy().display()
        );
        let log = served.process.log();
        ensure!(log.contains(&said), "not said: {said}\n{log}");
        let told = told()?;
        let problems = told["reload"].to_string();
        ensure!(problems.contains(&reason), "{problems}");
        ensure!(told["filters"] == before, "{}", told["filters"]);
        ensure!(served.metric(&["portcullis_last_reload_refused"])? == 1.0);
        serves()?;
    }
    ensure!(reloads(&served, "done")? == 0.0, "something was taken over");
    // What is signed as it should be is taken again.
    fs::write(&module, MODULE)?;
    fs::write(&signature, SIGNATURE)?;
    served.write(&policy(KEY))?;
    served.process.signal(Signal::HUP)?;
    until(BOUND, "a reload", || Ok(reloads(&served, "done")? >= 1.0))?;
    ensure!(told()?["filters"] == before);
    ensure!(served.metric(&["portcullis_last_reload_refused"])? == 0.0);
    serves()
}
