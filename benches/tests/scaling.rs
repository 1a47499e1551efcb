//! The measurement of growth as a user runs it, small enough to take seconds.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use portcullis_benches::aims;
use portcullis_benches::subject::SERIES;

#[test]
fn a_short_run_has_every_series_and_every_aim() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("scaling");
    let output = Command::new(env!("CARGO_BIN_EXE_scaling"))
        .args(["--rounds", "2", "--visit", "1", "--largest", "300", "--out"])
        .arg(&out)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    let read =
        |name: &str| std::fs::read_to_string(out.join(name)).with_context(|| name.to_owned());
    let json: serde_json::Value = serde_json::from_str(&read("scaling.json")?)?;
    let markdown = read("scaling.md")?;
    for (key, title, _, numbers) in SERIES {
        let series = &json["series"][key];
        let points = series["points"].as_array().context(key)?;
        let measured: Vec<_> = points.iter().filter_map(|it| it["n"].as_u64()).collect();
        let expected: Vec<u64> = numbers
            .iter()
            .map(|n| u64::from(*n))
            .filter(|n| *n <= 300)
            .collect();
        ensure!(measured == expected, "{key}: {measured:?}");
        for point in points {
            ensure!(point["us"]["rounds"] == 2, "{key}: {point}");
            // A life is a difference of two: on a machine that stands still for a moment it may be below 0.
            ensure!(point["us"]["median"].is_f64(), "{key}: {point}");
        }
        let exponent = series.get("exponent");
        ensure!(
            exponent.is_some_and(|it| it.is_null() || it["median"].is_f64()),
            "{key}: {series}"
        );
        ensure!(markdown.contains(title), "{key} is not in the tables");
        ensure!(
            read(&format!("{key}.svg"))?.ends_with("</svg>\n"),
            "{key} is not drawn"
        );
    }
    for aim in aims::VISITED.iter().chain(&aims::SERVED) {
        let outcome = &json["aims"][aim.key];
        ensure!(
            outcome["figure"]["median"].is_f64(),
            "{}: {outcome}",
            aim.key
        );
        ensure!(
            outcome["met"].is_boolean() == aim.at_most.is_some(),
            "{}: {outcome}",
            aim.key
        );
    }
    // Two gibibytes in two workers with 14 filters would be a figure of something else.
    let resident = json["aims"]["resident"]["figure"]["median"].as_f64();
    ensure!(
        resident.is_some_and(|mib| (5.0..2048.0).contains(&mib)),
        "{resident:?}"
    );
    Ok(())
}

#[test]
fn wrong_usage_is_told_from_what_cannot_be_measured() -> Result<()> {
    for (arguments, code, said) in [
        (["--rounds", "0"], 2, "rounds"),
        (["--largest", "none"], 2, "largest"),
        (
            ["--portcullis", "/nowhere/portcullis"],
            1,
            "cannot read /nowhere/portcullis",
        ),
        (["--out", "/proc/nowhere"], 1, "cannot make /proc/nowhere"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_scaling"))
            .args(arguments)
            .output()?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(code) && told.contains(said),
            "{arguments:?}: {told}"
        );
    }
    Ok(())
}
