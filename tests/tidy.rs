//! The rules of the house that a compiler does not check.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::build_folder::repository;

/// Lines of code that a file may have; comments, empty lines and tests do not count.
const LINES_MAX: usize = 500;

/// Files that may be longer, and why.
const LONGER: &[(&str, &str)] = &[];

/// The layers of host/runtime/src from below: a file may use its own layer and those before it, tests aside.
const LAYERS: &[&[&str]] = &[
    &["abi", "limits", "allow"],
    &[
        "pairs",
        "fields",
        "exchange",
        "embedder",
        "spec",
        "stats",
        "recorder",
        "body",
        "stream",
        "context",
        "shared_data",
        "shared_queue",
        "shared",
        "callout",
        "grpc",
        "grpc_service",
        "redis",
        "metrics",
        "property",
        "filter_state",
        "local_response",
        "log_rate",
        "bounds",
    ],
    &["memory", "cards"],
    &["state"],
    &["hostcalls"],
    &["metadata", "signature", "exports", "imports"],
    &["module", "module_cache"],
    &["runtime"],
    &["vm"],
    &["snapshot"],
    &["plugin"],
    &["chain"],
    &["fuzzing"],
];

/// Words that name no thing (they stand for nothing in the vocabulary of ABI, Envoy, or this project).
const WORDS_AVOIDED: &[&str] = &[
    "handler",
    "manager",
    "executor",
    "middleware",
    "hook",
    "util",
    "utils",
    "common",
    "helper",
    "helpers",
];

/// Every Rust file of the repository's own, as paths from its root.
fn sources() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![repository()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if name.starts_with('.') || name == "target" || name == "prebuilt" {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if name.ends_with(".rs") {
                found.push(path.strip_prefix(repository())?.to_path_buf());
            }
        }
    }
    ensure!(found.len() > 50, "only {} Rust files found", found.len());
    found.sort();
    Ok(found)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(repository().join(path)).with_context(|| path.display().to_string())
}

/// A file's code without the tests at its end.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or(text)
}

#[test]
fn the_code_map_of_readme_names_what_is_there() -> Result<()> {
    let readme = read(Path::new("README.md"))?;
    let mut named = BTreeSet::new();
    for quoted in readme.split('`').skip(1).step_by(2) {
        let path = quoted.trim_end_matches('/');
        let folder = path.split('/').next().unwrap_or_default();
        let of_ours = ["host", "sdk", "plugins", "tests", "benches", "docs"].contains(&folder);
        let is_path = path.contains('/') && !path.contains([' ', '*', '<', '{', '$']);
        if of_ours && is_path {
            assert!(
                repository().join(path).exists(),
                "README.md names {path}, which is not there"
            );
            named.insert(path.to_owned());
        }
    }
    for member in members()? {
        assert!(
            readme.contains(&member),
            "README.md does not name the workspace member {member}"
        );
    }
    assert!(!named.is_empty(), "README.md names no path in backquotes");
    Ok(())
}

fn members() -> Result<Vec<String>> {
    let manifest = read(Path::new("Cargo.toml"))?;
    let list = manifest
        .split("members = [")
        .nth(1)
        .and_then(|rest| rest.split("\n]").next());
    Ok(list
        .context("Cargo.toml has no members")?
        .lines()
        .filter_map(|line| line.split('"').nth(1).map(str::to_owned))
        .collect())
}

#[test]
fn every_member_says_what_it_is() -> Result<()> {
    let manifest = read(Path::new("Cargo.toml"))?;
    let list = manifest
        .split("members = [")
        .nth(1)
        .and_then(|rest| rest.split("\n]").next())
        .unwrap();
    let mut block = "";
    for line in list.lines().filter(|line| line.contains('"')) {
        // One remark may stand for a run of equals, on the first of them.
        let remark = line.split('#').nth(1).unwrap_or(block);
        assert!(!remark.trim().is_empty(), "no remark beside {line}");
        block = remark;
    }
    for member in members()? {
        let own = read(&Path::new(&member).join("Cargo.toml"))?;
        assert!(
            own.contains("\ndescription = \""),
            "{member} has no description"
        );
        assert!(
            own.contains("[lints]\nworkspace = true"),
            "{member} does not take the workspace's lints"
        );
    }
    Ok(())
}

#[test]
fn imports_in_the_runtime_run_one_way() -> Result<()> {
    let layer_of = |module: &str| LAYERS.iter().position(|layer| layer.contains(&module));
    let mut wrong = Vec::new();
    for path in sources()? {
        let Ok(inside) = path.strip_prefix("host/runtime/src") else {
            continue;
        };
        let module = inside
            .iter()
            .next()
            .unwrap_or_default()
            .to_string_lossy()
            .trim_end_matches(".rs")
            .to_owned();
        if module == "lib"
            || inside
                .iter()
                .any(|part| part.to_string_lossy().contains("test"))
        {
            continue;
        }
        let Some(layer) = layer_of(&module) else {
            wrong.push(format!(
                "{} is in no layer of tests/tidy.rs",
                path.display()
            ));
            continue;
        };
        let text = read(&path)?;
        for used in without_tests(&text).split("crate::").skip(1) {
            for name in imported(used) {
                if layer_of(&name).is_some_and(|other| other > layer) {
                    wrong.push(format!(
                        "{} uses {name}, which stands above it",
                        path.display()
                    ));
                }
            }
        }
    }
    wrong.dedup();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// The modules named right behind `crate::`: one, or several in braces.
fn imported(rest: &str) -> Vec<String> {
    let word = |text: &str| {
        text.trim()
            .chars()
            .take_while(|c| c.is_ascii_lowercase() || *c == '_')
            .collect::<String>()
    };
    match rest.strip_prefix('{') {
        Some(group) => {
            let mut depth = 0_u32;
            let mut top = String::new();
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    c if depth == 0 => top.push(c),
                    _ => {}
                }
            }
            top.split(',').map(word).collect()
        }
        None => vec![word(rest)],
    }
}

#[test]
fn files_are_short() -> Result<()> {
    let mut long = Vec::new();
    for path in sources()? {
        let text = read(&path)?;
        let code = without_tests(&text)
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with("//"))
            .count();
        let name = path.display().to_string();
        let excused = LONGER.iter().any(|(file, _)| *file == name);
        // Tables of tests may be as long as they need.
        let tests = name.contains("/tests/") || name.ends_with("tests.rs");
        if code > LINES_MAX && !excused && !tests {
            long.push(format!("{name}: {code} lines of code"));
        }
        ensure!(
            !excused || code > LINES_MAX,
            "{name} is short enough now, take it off the list"
        );
    }
    assert!(
        long.is_empty(),
        "more than {LINES_MAX} lines of code:\n{}",
        long.join("\n")
    );
    Ok(())
}

#[test]
fn every_file_says_what_it_is_for() -> Result<()> {
    let mut silent = Vec::new();
    for path in sources()? {
        if !read(&path)?.starts_with("//!") {
            silent.push(path.display().to_string());
        }
    }
    assert!(
        silent.is_empty(),
        "no `//!` at the top of:\n{}",
        silent.join("\n")
    );
    Ok(())
}

#[test]
fn names_are_nouns_of_the_trade() -> Result<()> {
    let mut wrong = Vec::new();
    for path in sources()? {
        let text = read(&path)?;
        let stem = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let mut names = vec![stem];
        for line in text.lines() {
            let words: Vec<&str> = line
                .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .filter(|word| !word.is_empty())
                .collect();
            for pair in words.windows(2) {
                if let ["struct" | "enum" | "trait" | "mod" | "type" | "union", name] = pair {
                    names.push((*name).to_owned());
                }
                if let ["fn", name] = pair {
                    // A trait of the crate `proxy-wasm` wants this one.
                    let required = *name == "get_type";
                    if name.starts_with("get_") && !required && !line.trim_start().starts_with("//")
                    {
                        wrong.push(format!("{}: fn {name}", path.display()));
                    }
                }
            }
        }
        for name in names {
            let parts = parts(&name);
            if let Some(word) = WORDS_AVOIDED
                .iter()
                .find(|word| parts.iter().any(|part| part == *word))
            {
                wrong.push(format!("{}: {name} ({word})", path.display()));
            }
        }
    }
    wrong.dedup();
    assert!(wrong.is_empty(), "names to avoid:\n{}", wrong.join("\n"));
    Ok(())
}

/// The words of a name, in lower case: `FooBar` and `foo_bar` are `foo` and `bar`.
fn parts(name: &str) -> Vec<String> {
    let mut spaced = String::new();
    for c in name.chars() {
        if c == '_' || c.is_ascii_uppercase() {
            spaced.push(' ');
        }
        if c != '_' {
            spaced.push(c.to_ascii_lowercase());
        }
    }
    spaced.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn nothing_of_one_machine_is_in_the_repository() -> Result<()> {
    for path in sources()? {
        let text = read(&path)?;
        for place in [
            concat!("/work", "/main"),
            concat!("/work", "/shared"),
            concat!("/root", "/.cargo"),
        ] {
            assert!(!text.contains(place), "{} names {place}", path.display());
        }
    }
    Ok(())
}
