//! `portcullis bench`: what is counted is exact, what is timed is only there; budgets and baselines decide by their figures.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::build_folder::repository;
use serde_json::{Value, json};

use crate::control_crate::ended;
use crate::served;

/// A built-in control's module, written out, and its cases.
struct Subject {
    folder: tempfile::TempDir,
    control: &'static str,
}

impl Subject {
    fn new(control: &'static str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut command = served::command()?;
        let output = ended(command.args(["plugins", "write"]).arg(folder.path()))?;
        ensure!(output.status.success(), "{command:?}: {}", output.status);
        Ok(Self { folder, control })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What `bench` prints on standard output, if it ends with this code.
    fn bench(&self, arguments: &[&str], code: i32) -> Result<String> {
        let cases = repository().join("plugins").join(self.control);
        let mut command = served::command()?;
        command
            .args(["bench", "--exchanges", "300", "--module"])
            .arg(self.file(&format!("{}.wasm", self.control)))
            .arg("--cases")
            .arg(cases.join("cases.yaml"))
            .args(arguments);
        let output = ended(&mut command)?;
        ensure!(
            output.status.code() == Some(code),
            "{command:?}: {} instead of {code}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        let text = match output.stdout.is_empty() {
            true => output.stderr,
            false => output.stdout,
        };
        Ok(String::from_utf8(text)?)
    }

    fn json(&self, arguments: &[&str], code: i32) -> Result<Value> {
        let all = [&["--format", "json"], arguments].concat();
        Ok(serde_json::from_str(&self.bench(&all, code)?)?)
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}

fn number(value: &Value, pointer: &str) -> Result<f64> {
    let number = value.pointer(pointer).and_then(Value::as_f64);
    number.with_context(|| format!("no number at {pointer} in {value:#}"))
}

#[test]
fn what_is_counted_is_exact_and_what_is_timed_is_there() -> Result<()> {
    let hsts = Subject::new("security-headers")?;
    let first = hsts.json(&["--case", "HSTS alone"], 0)?;
    let again = hsts.json(&["--case", "HSTS alone"], 0)?;
    let operators = number(&first, "/measured/0/operators")?;
    ensure!(operators > 100.0, "{operators} operators");
    ensure!((operators - number(&again, "/measured/0/operators")?).abs() < 1e-9);
    ensure!((number(&first, "/measured/0/exchanges")? - 300.0).abs() < 1e-9);
    let hostcalls = first.pointer("/measured/0/hostcalls");
    let expected = json!([
        {"hostcall": "proxy_add_header_map_value", "calls": 1.0},
        {"hostcall": "proxy_get_header_map_value", "calls": 1.0},
        {"hostcall": "proxy_get_property", "calls": 1.0},
    ]);
    ensure!(hostcalls == Some(&expected), "{hostcalls:?}");
    let callbacks = first.pointer("/measured/0/callbacks");
    let callbacks = callbacks
        .and_then(Value::as_array)
        .context("no callbacks")?;
    let names: Vec<_> = callbacks
        .iter()
        .filter_map(|it| it.pointer("/callback"))
        .collect();
    ensure!(
        names
            == [
                "proxy_on_context_create",
                "proxy_on_response_headers",
                "proxy_on_delete"
            ],
        "{names:?}"
    );
    let (p50, p99) = (
        number(&first, "/measured/0/exchange/p50_us")?,
        number(&first, "/measured/0/exchange/p99_us")?,
    );
    ensure!(p50 > 0.0 && p50 <= p99, "{p50} {p99}");
    Ok(())
}

#[test]
fn random_bytes_change_no_count() -> Result<()> {
    // Each refusal has an id of random bytes, and a digit above 9 takes an operator more.
    let tls = Subject::new("tls-policy")?;
    let count = || {
        number(
            &tls.json(&["--case", "TLS 1.2 is refused"], 0)?,
            "/measured/0/operators",
        )
    };
    let (first, again) = (count()?, count()?);
    ensure!((first - again).abs() < 1e-9, "{first} {again}");
    Ok(())
}

#[test]
fn budgets_and_baselines_decide() -> Result<()> {
    let hsts = Subject::new("security-headers")?;
    let (kept, page) = (hsts.file("kept.json"), hsts.file("cost.html"));
    let printed = hsts.bench(
        &[
            "--budget",
            "1000ms",
            "--save",
            text(&kept)?,
            "--html",
            text(&page)?,
        ],
        0,
    )?;
    ensure!(
        printed.contains("HSTS alone (200), 300 exchanges"),
        "{printed}"
    );
    ensure!(fs::read_to_string(&page)?.contains("<polyline"), "no curve");
    let printed = hsts.bench(&["--budget", "1ns"], 1)?;
    ensure!(printed.contains("HSTS alone  BROKEN"), "{printed}");

    let same = hsts.json(&["--baseline", text(&kept)?], 0)?;
    ensure!((number(&same, "/comparison/changes/0/operators")? - 1.0).abs() < 1e-9);
    // A control that was leaner before.
    let mut leaner: Value = serde_json::from_slice(&fs::read(&kept)?)?;
    let place = leaner
        .pointer_mut("/measured/0/operators")
        .context("no operators")?;
    *place = (place.as_f64().context("no number")? / 1.1).into();
    fs::write(&kept, leaner.to_string())?;
    let printed = hsts.bench(&["--baseline", text(&kept)?], 1)?;
    ensure!(printed.contains("GREW by more than 5%: "), "{printed}");
    hsts.bench(&["--baseline", text(&kept)?, "--tolerance", "11"], 0)?;

    let other = Subject::new("tls-policy")?;
    let printed = other.bench(&["--baseline", text(&kept)?], 1)?;
    ensure!(
        printed.contains(r#"the baseline is of "security-headers", and this is "tls-policy""#),
        "{printed}"
    );
    let printed = hsts.bench(&["--baseline", text(&page)?], 1)?;
    ensure!(printed.contains("is no measurement of --save"), "{printed}");
    fs::write(hsts.file("tls-policy.wasm"), "no module")?;
    let text_alone = Subject {
        control: "tls-policy",
        ..hsts
    };
    let printed = text_alone.bench(&[], 1)?;
    ensure!(
        printed.contains("tls-policy.wasm is not a Wasm module\n"),
        "{printed}"
    );
    let hsts = Subject {
        control: "security-headers",
        ..text_alone
    };
    let printed = hsts.bench(&["--case", "no such"], 1)?;
    ensure!(
        printed.contains(r#"no case has "no such" in its name"#),
        "{printed}"
    );
    hsts.bench(&["--budget", "5"], 2)?;
    Ok(())
}

#[test]
fn what_changes_its_answer_is_measured_until_then() -> Result<()> {
    let rate_limit = Subject::new("rate-limit")?;
    let cases = rate_limit.file("two.yaml");
    fs::write(
        &cases,
        r#"control: rate-limit
cases:
  - name: two hundred and fifty
    configuration: {limits: [{name: few, requests: 250, per: 1h, burst: 250}]}
    expect: {status: 200}
"#,
    )?;
    let mut command = served::command()?;
    command
        .args([
            "bench",
            "--exchanges",
            "300",
            "--format",
            "json",
            "--module",
        ])
        .arg(rate_limit.file("rate-limit.wasm"))
        .arg("--cases")
        .arg(&cases);
    let output = ended(&mut command)?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let told: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(
        (number(&told, "/measured/0/exchanges")? - 50.0).abs() < 1e-9,
        "{told:#}"
    );
    let note = told.pointer("/measured/0/note").and_then(Value::as_str);
    ensure!(
        note == Some("its answer became 429 after 250 exchanges: only those before are measured"),
        "{note:?}"
    );
    Ok(())
}

#[test]
fn each_step_of_a_case_is_measured_after_those_before_it() -> Result<()> {
    let rows = |told: &Value| -> Vec<(String, u64)> {
        let measured = told["measured"].as_array().cloned().unwrap_or_default();
        let row = |row: &Value| {
            let name = row["case"].as_str().unwrap_or_default().to_owned();
            (name, row["status"].as_u64().unwrap_or_default())
        };
        measured.iter().map(row).collect()
    };
    let rate_limit = Subject::new("rate-limit")?;
    let name = "a spent quota is refused with a problem";
    let told = rate_limit.json(&["--case", name], 0)?;
    let step = |number: u32| format!("{name}, step {number}");
    ensure!(rows(&told) == [(step(3), 429), (step(4), 429)], "{told:#}");
    // Asked again, the first two would not be what the case has.
    let left = json!([
        {"case": name, "reason": "its answer 200 becomes 429 after 2 exchanges: too few to measure"},
        {"case": step(2), "reason": "its answer 200 becomes 429 after 1 exchanges: too few to measure"},
    ]);
    ensure!(told["not_measured"] == left, "{told:#}");
    Ok(())
}
