//! `portcullis test`: cases on modules, in our host without a socket and in Envoy, and how it is told where one does not hold.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::build_folder::{build_folder, repository};
use portcullis_tests::{envoy, report};
use serde_json::Value;

use crate::control_crate::{NAME, ended, folder, told};
use crate::example;
use crate::served;

/// What `portcullis test` prints on both ways, if it ends with this code.
fn tested(arguments: impl FnOnce(&mut Command) -> &mut Command, code: i32) -> Result<String> {
    let mut command = served::command()?;
    let output = ended(arguments(command.arg("test")))?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    ensure!(
        output.status.code() == Some(code),
        "{command:?}: {} instead of {code}\n{text}",
        output.status
    );
    Ok(text)
}

/// The same as data.
fn as_json(arguments: impl FnOnce(&mut Command) -> &mut Command, code: i32) -> Result<Value> {
    let mut command = served::command()?;
    let output = ended(arguments(command.args(["test", "--format", "json"])))?;
    ensure!(
        output.status.code() == Some(code),
        "{command:?}: {} instead of {code}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn contains(text: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(text.contains(part), "no {part:?} in:\n{text}");
    }
    Ok(())
}

fn count(report: &Value, verdict: &str) -> Result<u64> {
    let number = report.get(verdict).and_then(Value::as_u64);
    number.with_context(|| format!("no {verdict} in {report:#}"))
}

/// The new control's module, as `portcullis test` leaves it.
fn module() -> Result<PathBuf> {
    Ok(build_folder()?.join("tests-control/target/portcullis/body-gate.wasm"))
}

#[test]
fn a_new_control_is_green_and_a_wrong_expectation_is_shown() -> Result<()> {
    let (folder, _lock) = folder()?;
    let text = tested(|it| it.arg("--dir").arg(&folder), 0)?;
    contains(
        &text,
        &[
            "host   holds    XML is refused\n",
            "host   not run  a body that says it twice is refused (hosts may join the two)\n",
            "\n6 hold, 0 do not, 1 not run\n",
        ],
    )?;

    let place = tempfile::tempdir()?;
    let cases = fs::read_to_string(folder.join("cases.yaml"))?;
    let right = "content-type: application/problem+json";
    ensure!(
        cases.contains(right),
        "the template's cases have no {right:?}"
    );
    let wrong = place.path().join("wrong.yaml");
    fs::write(&wrong, cases.replace(right, "content-type: text/plain"))?;
    let module = module()?;
    let text = tested(
        |it| it.arg("--module").arg(&module).arg("--cases").arg(&wrong),
        1,
    )?;
    contains(
        &text,
        &[
            "host   FAILS    XML is refused\n",
            "case \"XML is refused\" in host, step 1, round 1: POST / over TLSv1.3\n\
             response header content-type\n  - text/plain\n  + application/problem+json\n  log ",
            "media_type",
            "\n5 hold, 1 do not, 1 not run\n",
        ],
    )?;

    let report = as_json(
        |it| {
            it.arg("--module").arg(&module).arg("--cases").arg(&wrong);
            it.args(["--case", "XML"])
        },
        1,
    )?;
    let at = |pointer: &str| {
        let found = report.pointer(pointer);
        found.with_context(|| format!("no {pointer} in {report:#}"))
    };
    ensure!(at("/control")? == NAME && at("/fails")? == 1 && at("/holds")? == 0);
    ensure!(at("/results/0/case")? == "XML is refused" && at("/results/0/verdict")? == "fails");
    ensure!(at("/results/0/place")? == "host" && at("/results/0/step")? == 1);
    ensure!(at("/results/0/mismatches/0/what")? == "response header content-type");
    ensure!(at("/results/0/mismatches/0/expected")? == "text/plain");
    ensure!(at("/results/0/mismatches/0/found")? == "application/problem+json");
    ensure!(at("/results/0/log/0")?.to_string().contains("media_type"));
    in_envoy(&folder, &module, &wrong)
}

/// The same in Envoy: green, and the same difference.
fn in_envoy(folder: &Path, module: &Path, wrong: &Path) -> Result<()> {
    if let Some(why) = envoy::left_out() {
        report::not_run("portcullis test --envoy", why);
        return Ok(());
    }
    let program = envoy::program()?;
    let cases = folder.join("cases.yaml");
    let text = tested(
        |it| {
            it.arg("--module").arg(module).arg("--cases").arg(&cases);
            it.arg("--envoy").arg(&program)
        },
        0,
    )?;
    contains(
        &text,
        &[
            "envoy  holds    XML is refused\n",
            "envoy  not run  a body that says it twice is refused (hosts may join the two)\n",
            "\n12 hold, 0 do not, 2 not run\n",
        ],
    )?;
    let text = tested(
        |it| {
            it.arg("--module").arg(module).arg("--cases").arg(wrong);
            it.arg("--envoy").arg(&program).args(["--case", "XML"])
        },
        1,
    )?;
    contains(
        &text,
        &[
            "case \"XML is refused\" in envoy, step 1, round 1: POST / over TLSv1.3\n\
             response header content-type\n  - text/plain\n  + application/problem+json\n  log ",
            "\n0 hold, 2 do not, 0 not run\n",
        ],
    )
}

#[test]
fn what_cannot_be_tried_is_told() -> Result<()> {
    let (folder, _lock) = folder()?;
    told(served::command()?.args(["build", "--dir"]).arg(&folder))?;
    let module = module()?.display().to_string();
    let cases = folder.join("cases.yaml");
    let place = tempfile::tempdir()?;
    let file = |name: &str, text: &str| -> Result<String> {
        let path = place.path().join(name);
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let text = fs::read_to_string(&cases)?;
    let cases = cases.display().to_string();
    let other = file(
        "other.yaml",
        &text.replace("control: body-gate", "control: gate"),
    )?;
    let broken = file("broken.yaml", &text.replace("status: 415", "stats: 415"))?;
    let native = file(
        "native.yaml",
        "control: body-gate\ncases: [{name: it, places: [native], because: of that, request: {path: /}, expect: {status: 200}}]\n",
    )?;
    let old = file(
        "old.yaml",
        "control: body-gate\ncases: [{name: it, request: {tls: TLSv1.1}, expect: {status: 200}}]\n",
    )?;
    let made = file(
        "made.yaml",
        "control: body-gate\ncases: [{name: it, request: {headers: [[a, {jwt: {}}]]}, expect: {status: 200}}]\n",
    )?;
    let refused = file(
        "refused.yaml",
        "control: body-gate\ncases: [{name: it, configuration: {media_types: [JSON]}, request: {path: /}, expect: {status: 200}}]\n",
    )?;
    let no_module = file("no.wasm", "(module)")?;
    for (arguments, code, reason) in [
        (
            &["--module", &module, "--cases", &other][..],
            1,
            "the cases of \"gate\"",
        ),
        (&["--module", &module, "--cases", &broken], 1, "stats"),
        (
            &["--module", &module, "--cases", "/no/such"],
            1,
            "/no/such: ",
        ),
        (
            &["--module", &module, "--cases", &native],
            1,
            "not run  it (of that)",
        ),
        (
            &["--module", &module, "--cases", &old],
            1,
            "does not know TLSv1.1",
        ),
        (
            &["--module", &module, "--cases", &made],
            1,
            "make its \"jwt\" value",
        ),
        (
            &["--module", &module, "--cases", &refused],
            1,
            "case \"it\" in host, before its first step:\nconfiguration.media_types: must be like application/json\n",
        ),
        (
            &["--module", &module, "--cases", &cases, "--case", "nothing"],
            1,
            "no case has \"nothing\" in its name",
        ),
        (
            &[
                "--module",
                &module,
                "--cases",
                &cases,
                "--envoy",
                "/no/such/envoy",
            ],
            1,
            "--envoy names the program",
        ),
        (&["--module", &no_module, "--cases", &cases], 1, "no.wasm"),
        (&["--dir", "/no/such"], 1, "portcullis new NAME"),
        (&["--module", &module, "--features", "x"], 2, "--features"),
        (&["--format", "xml"], 2, "xml"),
    ] {
        let text = tested(|it| it.args(arguments), code)?;
        contains(&text, &[reason])?;
    }
    Ok(())
}

/// The builtin controls' own cases: what an earlier filter leaves, counters that last from step to step, plaintext and TLS.
#[test]
fn builtin_controls_hold_too() -> Result<()> {
    let place = tempfile::tempdir()?;
    told(
        served::command()?
            .args(["plugins", "write"])
            .arg(place.path()),
    )?;
    for (control, holds_all) in [
        ("jwt-auth", false),
        ("rate-limit", true),
        ("security-headers", true),
        ("tls-policy", true),
    ] {
        let module = place.path().join(format!("{control}.wasm"));
        let cases = repository()
            .join("plugins")
            .join(control)
            .join("cases.yaml");
        let report = as_json(
            |it| it.arg("--module").arg(&module).arg("--cases").arg(&cases),
            0,
        )?;
        ensure!(count(&report, "holds")? > 3, "{control}: {report:#}");
        let text = fs::read_to_string(&cases)?;
        let rows = report.get("results").and_then(Value::as_array);
        for row in rows.into_iter().flatten() {
            let reason = row.get("reason").and_then(Value::as_str);
            let known = |reason: &str| {
                let is_made = reason.contains("make its");
                text.contains(reason) || (is_made && !holds_all)
            };
            let is_run = row.get("verdict").is_some_and(|it| it == "holds");
            ensure!(
                is_run || reason.is_some_and(known),
                "{control} leaves out {row:#}"
            );
        }
    }
    Ok(())
}

/// A control that asks a service: the case has the answers.
#[test]
fn callouts_are_answered_by_the_case() -> Result<()> {
    let (good, _lock) = folder()?;
    let sdk = good.join("vendor/portcullis-sdk");
    let place = tempfile::tempdir()?;
    let folder = place.path().join("opa");
    let mut new = served::command()?;
    told(
        new.args(["new", "opa", "--sdk"])
            .arg(sdk)
            .arg("--dir")
            .arg(&folder),
    )?;
    let examples = repository().join("sdk/examples");
    fs::copy(examples.join("opa.rs"), folder.join("src/lib.rs"))?;
    fs::copy(examples.join("opa.yaml"), folder.join("cases.yaml"))?;
    let manifest = folder.join("Cargo.toml");
    let text = fs::read_to_string(&manifest)?;
    fs::write(
        &manifest,
        text.replace("schemars = \"1\"", "schemars = \"1\"\nserde_json = \"1\""),
    )?;
    let text = tested(|it| it.arg("--dir").arg(&folder), 0)?;
    contains(
        &text,
        &[
            "holds    what the service allows passes",
            "holds    a failure of the service is refused",
            "\n4 hold, 0 do not, 1 not run\n",
        ],
    )
}

/// Runs the cases of one of the SDK's examples, in our host and in Envoy: so many hold in each, this one among them.
fn example_holds(example: &str, cases: usize, case: &str) -> Result<()> {
    let module = example::build("portcullis-sdk", example)?;
    let file = repository().join(format!("sdk/examples/{example}.yaml"));
    let run = |program: Option<&Path>| {
        tested(
            |it| {
                it.arg("--module").arg(&module).arg("--cases").arg(&file);
                program
                    .into_iter()
                    .fold(it, |it, path| it.arg("--envoy").arg(path))
            },
            0,
        )
    };
    let hold = |count: usize| format!("\n{count} hold, 0 do not, 0 not run\n");
    if let Some(why) = envoy::left_out() {
        report::not_run(&format!("portcullis test --envoy of {example}"), why);
        return contains(&run(None)?, &[&hold(cases)]);
    }
    contains(
        &run(Some(&envoy::program()?))?,
        &[
            &format!("host   holds    {case}\n"),
            &format!("envoy  holds    {case}\n"),
            &hold(2 * cases),
        ],
    )
}

#[test]
fn grpc_calls_are_answered_by_the_case() -> Result<()> {
    example_holds("grpc_authorizer", 6, "a status may say no")
}

#[test]
fn bodies_are_shown_to_a_control_that_holds_the_headers_for_them() -> Result<()> {
    example_holds("json_body", 8, "an object that lacks it is refused")
}

/// A guest that holds each request until its timer has run, every 20 ms; without a period it runs never.
fn waiting(period_ms: u32) -> Result<Vec<u8>> {
    Ok(wat::parse_str(format!(
        r#"(module
  (import "env" "proxy_set_tick_period_milliseconds" (func $period (param i32) (result i32)))
  (import "env" "proxy_set_effective_context" (func $become (param i32) (result i32)))
  (import "env" "proxy_continue_stream" (func $continue (param i32) (result i32)))
  (memory (export "memory") 2)
  (global $held (mut i32) (i32.const 0))
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 65536))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32) (i32.const 1))
  (func (export "proxy_on_configure") (param i32 i32) (result i32)
    (drop (call $period (i32.const {period_ms})))
    (i32.const 1))
  (func (export "proxy_on_request_headers") (param $context i32) (param i32 i32) (result i32)
    (global.set $held (local.get $context))
    (i32.const 1))
  (func (export "proxy_on_tick") (param i32)
    (if (global.get $held) (then
      (drop (call $become (global.get $held)))
      (drop (call $continue (i32.const 0)))
      (global.set $held (i32.const 0))))))
"#
    ))?)
}

#[test]
fn timers_run_while_a_request_is_held() -> Result<()> {
    let place = tempfile::tempdir()?;
    let cases = place.path().join("cases.yaml");
    fs::write(
        &cases,
        "control: waiting\ncases: [{name: it waits, steps: [{repeat: 3, expect: {status: 200, upstream: {called: true}}}]}]\n",
    )?;
    for (period_ms, code, reason) in [
        (20, 0, "1 hold, 0 do not"),
        (0, 1, "the request is held, and nothing releases it"),
    ] {
        let module = place.path().join(format!("waiting-{period_ms}.wasm"));
        fs::write(&module, waiting(period_ms)?)?;
        let text = tested(
            |it| it.arg("--module").arg(&module).arg("--cases").arg(&cases),
            code,
        )?;
        contains(&text, &[reason])?;
    }
    Ok(())
}
