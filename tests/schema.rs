//! `portcullis schema`: true to the controls' own types, to the examples and to what must be refused.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::build_folder::repository;
use serde_json::{Value, json};

use crate::bad_policy;
use crate::hostile::guest;
use crate::served;

fn printed(arguments: &[&str]) -> Result<Value> {
    let output = served::run(&[&["schema"], arguments].concat())?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The YAML blocks of a Markdown file that are whole policies.
fn policies_in(path: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(path)?;
    let blocks = text.split("```yaml\n").skip(1);
    let blocks = blocks.filter_map(|block| block.split("\n```").next());
    Ok(blocks
        .filter(|block| block.contains("listeners:") && block.contains("routes:"))
        .map(str::to_owned)
        .collect())
}

#[test]
fn the_examples_are_valid() -> Result<()> {
    let schema = printed(&[])?;
    jsonschema::meta::validate(&schema).map_err(|error| anyhow::anyhow!("{error}"))?;
    let validator = jsonschema::draft202012::new(&schema)?;
    let mut examples = Vec::new();
    for entry in fs::read_dir(repository().join("docs/policies"))? {
        let path = entry?.path();
        examples.push((path.display().to_string(), fs::read_to_string(&path)?));
    }
    for file in ["README.md", "docs/policy.md"] {
        let found = policies_in(&repository().join(file))?;
        examples.extend(found.into_iter().map(|text| (file.to_owned(), text)));
    }
    ensure!(
        examples.len() >= 4,
        "only {} examples found",
        examples.len()
    );
    for (name, text) in examples {
        let policy: Value = serde_saphyr::from_str(&text).context(name.clone())?;
        let errors: Vec<_> = validator
            .iter_errors(&policy)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        ensure!(errors.is_empty(), "{name}: {}", errors.join("\n"));
    }
    Ok(())
}

#[test]
fn bad_structure_is_refused() -> Result<()> {
    let validator = jsonschema::draft202012::new(&printed(&[])?)?;
    let right: Value =
        serde_saphyr::from_str(&bad_policy::text(&bad_policy::RIGHT, "127.0.0.1:80"))?;
    ensure!(validator.is_valid(&right), "the right policy is refused");
    // What structure alone tells; the rest needs files, references, or a module that runs.
    let structural = [
        "unknown key",
        "no such control",
        "refused configuration",
        "unknown key of a control",
        "fails open where it authenticates",
        "unknown choice for unknown imports",
    ];
    let mut refused = 0;
    for row in bad_policy::ROWS {
        let policy: Value = serde_saphyr::from_str(&bad_policy::text(row, "127.0.0.1:80"))?;
        let is_structural = structural.contains(&row.name);
        ensure!(
            validator.is_valid(&policy) != is_structural,
            "{}: expected it to be {}",
            row.name,
            if is_structural { "refused" } else { "taken" }
        );
        refused += usize::from(is_structural);
    }
    ensure!(refused == structural.len(), "a row was renamed");
    Ok(())
}

#[test]
fn a_modules_own_schema_is_taken_from_its_section() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let own = json!({
        "type": "object",
        "properties": {"depth": {"$ref": "#/$defs/Depth"}},
        "additionalProperties": false,
        "$defs": {"Depth": {"type": "integer", "maximum": 3}},
    });
    let mut module = guest("", "")?;
    let (name, data) = (b"portcullis.schema", own.to_string().into_bytes());
    let mut section = vec![u8::try_from(name.len())?];
    section.extend_from_slice(name);
    section.extend_from_slice(&data);
    module.push(0);
    let mut length = section.len();
    while length >= 0x80 {
        module.push(u8::try_from(length & 0x7f)? | 0x80);
        length >>= 7;
    }
    module.push(u8::try_from(length)?);
    module.extend_from_slice(&section);
    fs::write(folder.path().join("own.wasm"), module)?;
    let policy = |depth: u32| {
        json!({
            "listeners": [{"name": "in", "address": "127.0.0.1:80"}],
            "clusters": [{"name": "up", "endpoints": ["127.0.0.1:9"]}],
            "filters": [{"name": "own", "module": "./own.wasm", "configuration": {"depth": depth}}],
            "routes": [{"name": "all", "cluster": "up"}],
        })
    };
    let file = folder.path().join("policy.yaml");
    fs::write(&file, policy(1).to_string())?;
    let schema = printed(&[&file.display().to_string()])?;
    jsonschema::meta::validate(&schema).map_err(|error| anyhow::anyhow!("{error}"))?;
    let validator = jsonschema::draft202012::new(&schema)?;
    ensure!(validator.is_valid(&policy(3)), "its own schema takes it");
    ensure!(!validator.is_valid(&policy(4)), "its own schema refuses it");
    for (bad, words) in [
        ("no-such.yaml".to_owned(), "no such file"),
        (folder.path().display().to_string(), "it is a folder"),
        (
            folder.path().join("own.wasm").display().to_string(),
            "own.wasm",
        ),
    ] {
        let output = served::run(&["schema", &bad])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(1) && said.contains(words),
            "{bad}: {said}"
        );
    }
    Ok(())
}
