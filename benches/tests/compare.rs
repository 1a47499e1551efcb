//! The comparison as a user runs it, with the peers that need nothing installed and no time to speak of.

use std::process::Command;

use anyhow::{Context as _, Result};

fn compare(arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let output = Command::new(env!("CARGO_BIN_EXE_compare"))
        .args(arguments)
        .output()?;
    Ok((
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    ))
}

#[test]
fn one_short_round_gives_ratios_and_pictures() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("comparison");
    let (code, said) = compare(&[
        "--peers",
        "direct,portcullis,portcullis-policy",
        "--rounds",
        "1",
        "--seconds",
        "0.2",
        "--out",
        &out.display().to_string(),
    ])?;
    assert_eq!(code, Some(0), "{said}");
    let read =
        |name: &str| std::fs::read_to_string(out.join(name)).with_context(|| name.to_owned());
    let json: serde_json::Value = serde_json::from_str(&read("compare.json")?)?;
    let ratios = &json["ratios"];
    let over = &ratios["cpu_policy_module_over_plain"];
    assert_eq!(over["rounds"], 1, "{over}");
    assert!(
        over["median"].as_f64().is_some_and(|ratio| ratio > 0.0),
        "{over}"
    );
    // nginx took no part.
    assert!(ratios["cpu_plain_vs_nginx"].is_null());
    let turns = json["turns"].as_array().context("no turns")?;
    let subjects: Vec<String> = turns
        .iter()
        .map(|turn| format!("{} {}", turn["peer"], turn["protocol"]))
        .collect();
    assert_eq!(subjects.len(), 4, "{subjects:?}");
    assert!(subjects.contains(&"\"portcullis\" \"HTTP/2\"".to_owned()));
    // Seven tenths of the slowest, and all the same.
    let slowest = turns
        .iter()
        .filter_map(|turn| turn["saturation"]["rps"].as_f64())
        .fold(f64::INFINITY, f64::min);
    for turn in turns {
        let rate = turn["open"]["rate"].as_f64().context("no rate")?;
        assert!((rate - 0.7 * slowest).abs() < 1e-6 * slowest, "{turn}");
        assert!(turn["open"]["cpu_us"].as_f64().is_some_and(|cpu| cpu > 0.0));
    }
    assert!(read("compare.md")?.starts_with("20"));
    assert!(read("latency.svg")?.contains("portcullis-policy"));
    assert!(read("cost.svg")?.contains("portcullis, HTTP/2"));
    Ok(())
}

#[test]
fn what_cannot_be_had_is_named_with_the_way_around_it() -> Result<()> {
    let (code, said) = compare(&["--peers", "nginx", "--nginx", "/nowhere/nginx"])?;
    assert_eq!(code, Some(1));
    assert!(
        said.contains("/nowhere/nginx") && said.contains("--without nginx"),
        "{said}"
    );
    let (code, said) = compare(&["--peers", "baseline"])?;
    assert_eq!(code, Some(1));
    assert!(
        said.contains("baseline peers need --baseline FILE"),
        "{said}"
    );
    for wrong in [["--peers", "apache"], ["--seconds", "0"], ["--rounds", "0"]] {
        let (code, said) = compare(&wrong)?;
        assert_eq!(code, Some(2), "{wrong:?}: {said}");
    }
    Ok(())
}
