//! What an operator asks of the command line: lints, differences, layout, the manual.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::build_folder::repository;
use portcullis_tests::certificates::Certificates;
use serde_json::{Value, json};

use crate::hostile::guest;
use crate::served;

/// What a command said on both ways, if it ended as expected.
fn said(arguments: &[&str], code: i32) -> Result<String> {
    let output = served::run(arguments)?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    ensure!(
        output.status.code() == Some(code),
        "{arguments:?} ended with {} instead of {code}:\n{text}",
        output.status
    );
    Ok(text)
}

fn printed(arguments: &[&str], code: i32) -> Result<String> {
    let output = served::run(arguments)?;
    ensure!(
        output.status.code() == Some(code),
        "{arguments:?} ended with {} instead of {code}:\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

fn contains(text: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(
            text.contains(word),
            "it does not speak of {word:?}:\n{text}"
        );
    }
    Ok(())
}

fn write(folder: &Path, name: &str, text: impl AsRef<[u8]>) -> Result<String> {
    let path = folder.join(name);
    fs::write(&path, text)?;
    Ok(path.display().to_string())
}

/// A policy with an own module, on loopback, and nobody asked who he is.
fn plain_policy() -> Value {
    json!({
        "listeners": [{"name": "in", "address": "127.0.0.1:8080"}],
        "clusters": [{"name": "up", "endpoints": ["127.0.0.1:9"]}],
        "filters": [
            {"name": "headers", "module": "builtin:security-headers"},
            {"name": "own", "module": "own.wasm"},
        ],
        "routes": [{"name": "all", "cluster": "up"}, {"name": "api", "cluster": "up", "prefix": "/api"}],
    })
}

fn folder() -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("own.wasm"), guest("", "")?)?;
    Ok(folder)
}

#[test]
fn lints_warn_and_are_denied_and_allowed_by_name() -> Result<()> {
    let folder = folder()?;
    let file = write(folder.path(), "policy.yaml", plain_policy().to_string())?;
    contains(
        &said(&["check", &file], 0)?,
        &["warning: ", "[open-route]", "[unpinned-module]", ": ok"],
    )?;
    let denied = printed(&["check", &file, "--deny", "unpinned-module"], 1)?;
    contains(&denied, &["filters[1].module", "[unpinned-module]"])?;
    ensure!(!denied.contains("open-route"), "{denied}");
    let all = printed(&["check", &file, "--deny", "warnings"], 1)?;
    contains(&all, &["[open-route]", "[unpinned-module]"])?;
    let allowed = [
        "check",
        &file,
        "--deny=warnings",
        "--allow=open-route",
        "--allow=unpinned-module",
    ];
    let allowed = said(&allowed, 0)?;
    ensure!(!allowed.contains("warning"), "{allowed}");
    let json = printed(&["check", &file, "--format=json", "--deny=open-route"], 1)?;
    let json: Value = serde_json::from_str(&json)?;
    let lints = |list: &str| -> Vec<String> {
        let items = json[list].as_array().into_iter().flatten();
        items
            .map(|it| it["lint"].as_str().unwrap_or_default().to_owned())
            .collect()
    };
    assert_eq!(lints("errors"), ["open-route", "open-route"]);
    assert_eq!(lints("warnings"), ["unpinned-module"]);
    contains(
        &said(&["check", &file, "--deny", "no-such"], 2)?,
        &["is not a lint", "fail-open"],
    )?;
    contains(&said(&["check"], 2)?, &["POLICY.yaml"])?;
    said(&["check", &file, "--envoy", &file], 2)?;
    Ok(())
}

/// What is exported for Envoy stands up to the lints that the policy stands up to.
#[test]
fn an_export_passes_the_lints_and_a_careless_bootstrap_does_not() -> Result<()> {
    let folder = folder()?;
    let certificates = Certificates::make(folder.path())?;
    let file = |path: &Path| path.display().to_string();
    let mut policy = plain_policy();
    policy["listeners"][0]["tls"] = json!({
        "certificate_chain": file(&certificates.chain),
        "private_key": file(&certificates.key),
    });
    policy["listeners"][0]["address"] = "0.0.0.0:8443".into();
    policy["admin"] = json!({"address": "127.0.0.1:9901"});
    policy["filters"][1] = json!({"name": "jwt-auth", "module": "builtin:jwt-auth", "configuration": {
        "providers": [{"issuer": "https://issuer.test", "audiences": ["api"], "jwks": serde_json::from_slice::<Value>(
            &jwt_auth::testing::make("jwks", &json!(["p256"]), std::time::SystemTime::now()).map_err(anyhow::Error::msg)?)?}],
    }});
    policy["routes"][1]["filters"] = json!({"jwt-auth": "off"});
    let path = folder.path().join("policy.yaml");
    fs::write(&path, policy.to_string())?;
    let envoy = served::export(&path, &folder.path().join("out"))?;
    let told = said(&["check", "--envoy", &file(&envoy)], 0)?;
    let routes = told.matches("[open-route]").count();
    ensure!(routes >= 1, "the route that is open is not found:\n{told}");
    ensure!(
        told.matches("warning").count() == routes,
        "more than the open route:\n{told}"
    );
    ensure!(!told.contains("route `all`"), "it is not open:\n{told}");

    let text = fs::read_to_string(&envoy)?;
    let careless = text
        .replace("TLSv1_3", "TLSv1_2")
        .replace("normalize_path: true", "normalize_path: false")
        .replace("FAIL_RELOAD", "FAIL_OPEN")
        .replace("127.0.0.1", "0.0.0.0");
    ensure!(careless != text, "the export has changed its words");
    let careless = write(folder.path(), "careless.yaml", careless)?;
    let told = printed(&["check", "--envoy", &careless, "--deny=warnings"], 1)?;
    contains(
        &told,
        &[
            "[tls-floor]",
            "[path-forms]",
            "[fail-open]",
            "[admin-exposed]",
            "careless.yaml:",
        ],
    )?;
    for (bad, words) in [
        (file(&path), "neither an Envoy bootstrap"),
        (file(folder.path()), "it is a folder"),
        ("no-such.yaml".into(), "no such file"),
        (file(&folder.path().join("own.wasm")), "own.wasm"),
    ] {
        contains(&said(&["check", "--envoy", &bad], 1)?, &[words])?;
    }
    Ok(())
}

#[test]
fn policies_are_compared_by_what_they_mean() -> Result<()> {
    let folder = folder()?;
    let old = write(folder.path(), "old.yaml", plain_policy().to_string())?;
    // Defaults written out, another order, other layout, comments.
    let mut same = plain_policy();
    same["routes"].as_array_mut().context("routes")?.reverse();
    same["drain_timeout"] = "30s".into();
    same["filters"][0]["failure_policy"] = "closed".into();
    let text = format!("# the same\n{}", serde_json::to_string_pretty(&same)?);
    let same = write(folder.path(), "same.yaml", text)?;
    assert_eq!(said(&["diff", &old, &same], 0)?, "");

    let mut changed = plain_policy();
    changed["filters"][0]["configuration"] = json!({"profile": "website"});
    changed["filters"][1]["configuration"] = json!({"hmac_secret": "correct horse battery staple"});
    changed["filters"]
        .as_array_mut()
        .context("filters")?
        .reverse();
    changed["routes"][1] = json!({"name": "web", "cluster": "up", "prefix": "/web"});
    changed["listeners"][0]["address"] = "127.0.0.1:8081".into();
    changed["workers"] = 2.into();
    let new = write(folder.path(), "new.yaml", changed.to_string())?;
    let told = said(&["diff", &old, &new], 1)?;
    contains(
        &told,
        &[
            "~ listener `in`",
            "- address: 127.0.0.1:8080",
            "+ address: 127.0.0.1:8081",
            "a socket is bound for the new address",
            "~ filter `headers`",
            "profile: website",
            "- route `api`",
            "+ route `web`",
            "order: [\"own\",\"headers\"]",
            "~ workers",
            "[removed]",
        ],
    )?;
    ensure!(!told.contains("horse"), "a secret is shown:\n{told}");
    let json: Value = serde_json::from_str(&printed(&["diff", &old, &new, "--format=json"], 1)?)?;
    ensure!(
        json["differences"]
            .as_array()
            .is_some_and(|it| it.len() == 7),
        "{json:#}"
    );
    // A secret alone: seen, not shown.
    let mut other = changed.clone();
    other["filters"][0]["configuration"] = json!({"hmac_secret": "incorrect horse battery staple"});
    let other = write(folder.path(), "other.yaml", other.to_string())?;
    let told = said(&["diff", &new, &other], 1)?;
    contains(&told, &["~ filter `own`", "hmac_secret: [removed]"])?;
    ensure!(!told.contains("horse"), "a secret is shown:\n{told}");
    // The same name, other bytes.
    let elsewhere = folder.path().join("elsewhere");
    fs::create_dir(&elsewhere)?;
    fs::write(elsewhere.join("own.wasm"), guest("", "(func)")?)?;
    let moved = write(&elsewhere, "policy.yaml", plain_policy().to_string())?;
    contains(
        &said(&["diff", &old, &moved], 1)?,
        &["~ filter `own`", "sha256: "],
    )?;

    contains(
        &said(&["diff", &old, "no-such.yaml"], 2)?,
        &["no such file"],
    )?;
    let broken = write(folder.path(), "broken.yaml", "listeners: 1\n")?;
    contains(&said(&["diff", &broken, &old], 2)?, &["broken.yaml:1"])?;
    said(&["diff", &old], 2)?;
    Ok(())
}

#[test]
fn files_are_laid_out_and_keep_their_meaning() -> Result<()> {
    let folder = folder()?;
    let crooked = "# who listens\nlisteners:\n    - {name:  in,address: '127.0.0.1:8080'}   # loopback\n\n\n\nclusters: [ {name: up, endpoints: [127.0.0.1:9]} ]\nroutes:\n- {name: all, cluster: up}";
    let file = write(folder.path(), "policy.yaml", crooked)?;
    let check = printed(&["fmt", "--check", &file], 1)?;
    assert_eq!(check, format!("{file}\n"));
    assert_eq!(
        fs::read_to_string(&file)?,
        crooked,
        "--check changes nothing"
    );
    assert_eq!(printed(&["fmt", &file], 0)?, format!("{file}\n"));
    let laid_out = fs::read_to_string(&file)?;
    contains(
        &laid_out,
        &[
            "# who listens\n",
            "# loopback\n",
            "{name: in, address: \"127.0.0.1:8080\"}",
        ],
    )?;
    ensure!(laid_out.ends_with("cluster: up}\n"), "{laid_out}");
    assert_eq!(printed(&["fmt", "--check", &file], 0)?, "");
    said(&["check", &file], 0)?;
    let before = write(folder.path(), "before.yaml", crooked)?;
    said(&["diff", &before, &file], 0)?;

    // The project's own examples keep to it.
    let mut examples = Vec::new();
    for entry in fs::read_dir(repository().join("docs/policies"))? {
        let path = entry?.path();
        // The demo's keys are put into one line of its policy by a program.
        if !path.ends_with("demo.yaml") {
            examples.push(path.display().to_string());
        }
    }
    ensure!(examples.len() >= 2, "{examples:?}");
    let mut arguments = vec!["fmt", "--check"];
    arguments.extend(examples.iter().map(String::as_str));
    assert_eq!(printed(&arguments, 0)?, "");

    let binary = folder.path().join("own.wasm").display().to_string();
    let duplicate = write(folder.path(), "twice.yaml", "a: 1\na: 2\n")?;
    let text = fs::read_to_string(&duplicate)?;
    let dir = folder.path().display().to_string();
    for (bad, words) in [
        (binary.as_str(), "own.wasm:1"),
        (&duplicate, "twice.yaml:2"),
        (&dir, "it is a folder"),
        ("no-such.yaml", "no such file"),
    ] {
        contains(&said(&["fmt", bad], 1)?, &[words])?;
    }
    assert_eq!(
        fs::read_to_string(&duplicate)?,
        text,
        "what is refused is left alone"
    );
    said(&["fmt"], 2)?;
    Ok(())
}

#[test]
fn builtin_controls_are_listed_for_scripts() -> Result<()> {
    let list: Value = serde_json::from_str(&printed(&["plugins", "list", "--format", "json"], 0)?)?;
    let names: Vec<_> = list
        .as_array()
        .context("no list")?
        .iter()
        .filter_map(|it| it["name"].as_str())
        .collect();
    let all: Vec<_> = portcullis_plugins::all().iter().map(|it| it.name).collect();
    assert_eq!(names, all);
    ensure!(
        list[0]["sha256"].as_str().is_some_and(|it| it.len() == 64),
        "{list:#}"
    );
    Ok(())
}

#[test]
fn shells_complete_it_and_the_manual_is_whole() -> Result<()> {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = printed(&["completions", shell], 0)?;
        contains(&script, &["portcullis", "explain", "inspect"])?;
    }
    said(&["completions", "csh"], 2)?;

    let folder = tempfile::tempdir()?;
    let out = folder.path().join("man1");
    let written = printed(&["man", "--dir", &out.display().to_string()], 0)?;
    let pages: Vec<PathBuf> = written.lines().map(PathBuf::from).collect();
    for name in [
        "portcullis.1",
        "portcullis-explain.1",
        "portcullis-export-envoy.1",
        "portcullis-plugins-inspect.1",
    ] {
        let page = pages.iter().find(|it| it.ends_with(name)).context(name)?;
        let text = fs::read_to_string(page)?;
        contains(&text, &[".TH", ".SH SYNOPSIS"])?;
    }
    contains(&printed(&["man"], 0)?, &[".TH portcullis 1", "explain"])?;
    let taken = write(folder.path(), "file", "")?;
    said(&["man", "--dir", &taken], 1)?;
    Ok(())
}

/// Compares `docs/cli.md` with the program, or writes it where `PORTCULLIS_WRITE_DOCS` says so.
#[test]
fn the_page_on_the_command_line_is_true() -> Result<()> {
    let made = printed(&["man", "--markdown"], 0)?;
    let path = repository().join("docs/cli.md");
    if std::env::var_os("PORTCULLIS_WRITE_DOCS").is_some() {
        fs::write(&path, &made)?;
        return Ok(());
    }
    let kept = fs::read_to_string(&path).context("cannot read docs/cli.md")?;
    for (index, (kept, made)) in kept.lines().zip(made.lines()).enumerate() {
        ensure!(
            kept == made,
            "docs/cli.md:{}: it says\n{kept}\nand the program\n{made}\nPORTCULLIS_WRITE_DOCS=1 writes it anew",
            index + 1
        );
    }
    ensure!(
        kept == made,
        "docs/cli.md ends elsewhere; PORTCULLIS_WRITE_DOCS=1 writes it anew"
    );
    // Every command says how it ends.
    for section in made.split("\n## ").skip(1) {
        let name = section.lines().next().unwrap_or_default();
        let has_commands = section.contains("<COMMAND>");
        ensure!(
            has_commands || section.contains("xit code"),
            "{name} does not say its exit codes"
        );
    }
    Ok(())
}
