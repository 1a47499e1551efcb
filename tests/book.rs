//! README and the book (`docs/book`) say what is true: policies pass `portcullis check`, commands and options exist, code stands in the
//! repository, contracts are those of the controls, links lead somewhere.
//!
//! What a fenced block is, by the words behind its three backquotes:
//!
//! | words | checked |
//! |---|---|
//! | `yaml` | a whole policy: `portcullis check` |
//! | `yaml,configuration` | a control's configuration, on the control's own page: the same, in a policy around it |
//! | `yaml,cases` | a case file: read by the SDK |
//! | `yaml,fragment` | not; counted |
//! | `rust` | every line in a row stands in one file of [`SOURCES`] |
//! | `json` | it is JSON |
//! | `console` | `portcullis …` behind `$ `: the command and its options exist |
//! | `text` | not |

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use portcullis_sdk::testing::Cases;
use portcullis_tests::build_folder::repository;
use portcullis_tests::certificates::Certificates;
use portcullis_tests::report;
use serde_json::{Value, json};

use crate::hostile::guest;
use crate::served;

/// Where the code of `rust` blocks stands.
const SOURCES: &[&str] = &[
    "host/proxy/template/src/lib.rs",
    "plugins/policy/src/lib.rs",
    "sdk/examples/grpc_authorizer.rs",
    "sdk/examples/json_body.rs",
    "sdk/examples/opa.rs",
    "sdk/examples/roles.rs",
    "sdk/examples/smallest.rs",
];

/// The controls whose page is their contract.
const CONTRACTS: &[&str] = &[
    "jwt-auth",
    "policy",
    "rate-limit",
    "security-headers",
    "tls-policy",
];

/// A page: its path from the repository's root, and its text.
struct Page {
    path: String,
    text: String,
}

/// A fenced block of a page.
struct Block {
    /// `docs/book/concepts.md:12`, of its first line.
    place: String,
    words: String,
    text: String,
}

fn chapters() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(repository().join("docs/book"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        ensure!(
            name.ends_with(".md"),
            "docs/book/{name}: not a chapter, name it NAME.md"
        );
        names.push(name);
    }
    names.sort();
    Ok(names)
}

fn page(path: &str) -> Result<Page> {
    let text = fs::read_to_string(repository().join(path)).with_context(|| path.to_owned())?;
    Ok(Page {
        path: path.to_owned(),
        text,
    })
}

/// README, what the book begins with, and all chapters.
fn pages() -> Result<Vec<Page>> {
    let chapters = chapters()?.into_iter().map(|it| format!("docs/book/{it}"));
    [
        String::from("README.md"),
        String::from("docs/introduction.md"),
    ]
    .into_iter()
    .chain(chapters)
    .map(|path| page(&path))
    .collect()
}

impl Page {
    fn blocks(&self) -> Result<Vec<Block>> {
        let mut blocks = Vec::new();
        let mut open: Option<Block> = None;
        for (index, line) in self.text.lines().enumerate() {
            match (&mut open, line.strip_prefix("```")) {
                (None, Some(words)) => {
                    open = Some(Block {
                        place: format!("{}:{}", self.path, index + 2),
                        words: words.to_owned(),
                        text: String::new(),
                    });
                }
                (Some(_), Some("")) => blocks.extend(open.take()),
                (Some(block), _) => {
                    block.text.push_str(line);
                    block.text.push('\n');
                }
                (None, None) => {}
            }
        }
        match open {
            Some(block) => bail!("{}: the block does not end", block.place),
            None => Ok(blocks),
        }
    }

    /// The text outside of fenced blocks and code between backquotes, with the number of each line.
    fn prose(&self) -> impl Iterator<Item = (usize, String)> {
        let mut fenced = false;
        self.text.lines().enumerate().filter_map(move |(at, line)| {
            let fence = line.starts_with("```");
            fenced ^= fence;
            let spans = line.split('`').step_by(2);
            (!fenced && !fence).then(|| (at + 1, spans.collect::<Vec<_>>().join("`")))
        })
    }
}

/// Puts what a policy names beside it: certificates, and for modules from files a guest that takes any configuration (what a module
/// of one's own answers is looked at in `control_crate`).
fn furnish(policy: &Value, folder: &Path) -> Result<()> {
    let made = tempfile::tempdir()?;
    let certificates = Certificates::make(made.path())?;
    let list = |key: &str| {
        policy
            .get(key)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
    };
    let put = |name: Option<&Value>, bytes: &dyn Fn() -> Result<Vec<u8>>| -> Result<()> {
        let Some(name) = name.and_then(Value::as_str) else {
            return Ok(());
        };
        ensure!(Path::new(name).is_relative(), "{name} is on one machine");
        let path = folder.join(name);
        fs::create_dir_all(path.parent().context("no folder")?)?;
        Ok(fs::write(path, bytes()?)?)
    };
    let read = |path: &Path| -> Result<Vec<u8>> { Ok(fs::read(path)?) };
    for listener in list("listeners") {
        let tls = |key: &str| listener.pointer(&format!("/tls/{key}"));
        put(tls("certificate_chain"), &|| read(&certificates.chain))?;
        put(tls("private_key"), &|| read(&certificates.key))?;
        put(tls("client_ca"), &|| read(&certificates.authority))?;
    }
    for cluster in list("clusters") {
        let ca = cluster.pointer("/tls/ca");
        put(ca.filter(|ca| *ca != "system"), &|| {
            read(&certificates.authority)
        })?;
    }
    for filter in list("filters") {
        let module = filter.get("module").filter(|module| {
            let name = module.as_str();
            name.is_some_and(|name| !name.starts_with("builtin:"))
        });
        put(module, &|| guest("", ""))?;
    }
    Ok(())
}

/// What `portcullis check` says of a policy; an error if it refuses it.
fn check(text: &str) -> Result<()> {
    let policy: Value = serde_saphyr::from_str(text)?;
    let folder = tempfile::tempdir()?;
    furnish(&policy, folder.path())?;
    let file = folder.path().join("policy.yaml");
    fs::write(&file, text)?;
    let output = served::run(&["check", &file.display().to_string()])?;
    ensure!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// A policy around the configuration of one built-in control.
fn policy_around(control: &str, configuration: &Value) -> String {
    json!({
        "listeners": [{"name": "http", "address": "127.0.0.1:8080"}],
        "clusters": [
            {"name": "upstream", "endpoints": ["127.0.0.1:9"]},
            {"name": "idp", "endpoints": ["127.0.0.1:9"]},
        ],
        "filters": [{
            "name": control,
            "module": format!("builtin:{control}"),
            "clusters": ["idp"],
            "configuration": configuration,
        }],
        "routes": [{"name": "all", "cluster": "upstream"}],
    })
    .to_string()
}

#[test]
fn policies_configurations_and_cases_are_good() -> Result<()> {
    let mut counted: BTreeMap<String, usize> = BTreeMap::new();
    for page in pages()? {
        for block in page.blocks()? {
            let control = page.path.rsplit('/').next().unwrap_or_default();
            let control = control.trim_end_matches(".md");
            match block.words.as_str() {
                "yaml" => check(&block.text),
                "yaml,configuration" => serde_saphyr::from_str(&block.text)
                    .map_err(anyhow::Error::from)
                    .and_then(|configuration| check(&policy_around(control, &configuration))),
                "yaml,cases" => Cases::parse(&block.text).map(drop).map_err(Into::into),
                "json" => serde_json::from_str::<Value>(&block.text)
                    .map(drop)
                    .map_err(Into::into),
                "yaml,fragment" | "rust" | "console" | "text" | "" => Ok(()),
                other => bail!("{}: {other:?} is no kind of block", block.place),
            }
            .with_context(|| block.place)?;
            *counted.entry(block.words).or_default() += 1;
        }
    }
    for words in ["yaml", "yaml,configuration", "yaml,cases"] {
        ensure!(counted.contains_key(words), "no block of {words} was found");
    }
    report::say(&format!("README and book, blocks by kind: {counted:?}"));
    Ok(())
}

#[test]
fn what_is_wrong_in_a_policy_of_the_book_is_found() -> Result<()> {
    let good = policy_around("tls-policy", &json!({"minimum_version": "1.2"}));
    check(&good)?;
    ensure!(check(&good.replace("1.2", "1.1")).is_err(), "1.1 is taken");
    ensure!(
        check(&good.replace("minimum_version", "minimum")).is_err(),
        "an unknown key is taken"
    );
    Ok(())
}

#[test]
fn code_stands_in_the_repository() -> Result<()> {
    let mut sources = Vec::new();
    for source in SOURCES {
        sources.push(fs::read_to_string(repository().join(source)).context(*source)?);
    }
    let mut seen = 0;
    for page in pages()? {
        for block in page.blocks()?.iter().filter(|it| it.words == "rust") {
            ensure!(
                sources.iter().any(|source| source.contains(&block.text)),
                "{}: the code is in none of {SOURCES:?}",
                block.place
            );
            seen += 1;
        }
    }
    ensure!(seen > 0, "no code was found");
    Ok(())
}

/// The commands of a line of shell, word by word; a remark ends it.
fn commands(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let mut word = String::new();
    let mut quote = None;
    let end = |word: &mut String, commands: &mut Vec<Vec<String>>| {
        if let Some(command) = commands.last_mut().filter(|_| !word.is_empty()) {
            command.push(std::mem::take(word));
        }
    };
    for c in line.chars() {
        match (quote, c) {
            (Some(open), _) if open == c => quote = None,
            (Some(_), _) => word.push(c),
            (None, '\'' | '"') => quote = Some(c),
            (None, '#') if word.is_empty() => break,
            (None, '|' | '&' | ';') => {
                end(&mut word, &mut commands);
                commands.push(Vec::new());
            }
            (None, _) if c.is_whitespace() => end(&mut word, &mut commands),
            (None, _) => word.push(c),
        }
    }
    end(&mut word, &mut commands);
    commands.retain(|command| !command.is_empty());
    commands
}

/// The help of a command.
fn help(path: &[String]) -> Result<String> {
    let arguments: Vec<&str> = path.iter().map(String::as_str).chain(["--help"]).collect();
    let output = served::run(&arguments)?;
    ensure!(
        output.status.success(),
        "there is no command {path:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// The commands, or the options with their dashes, that a help text lists.
fn listed<'a>(help: &'a str, heading: &str) -> Vec<&'a str> {
    help.lines()
        .skip_while(|line| *line != heading)
        .skip(1)
        .take_while(|line| line.is_empty() || line.starts_with(' '))
        .flat_map(|line| {
            let indent = line.len() - line.trim_start().len();
            let words = line.split([' ', ',']).filter(|word| !word.is_empty());
            let of_options = heading == "Options:";
            words.take(match (of_options, indent) {
                (true, 2..=6) => 2,
                (false, 2) => 1,
                _ => 0,
            })
        })
        .collect()
}

/// Looks at one `portcullis …`, without its first word.
fn check_command(words: &[String], helps: &mut BTreeMap<Vec<String>, String>) -> Result<()> {
    let mut path: Vec<String> = Vec::new();
    loop {
        let text: &str = match helps.entry(path.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(help(&path)?),
        };
        let names = listed(text, "Commands:");
        if names.is_empty() {
            let options = listed(text, "Options:");
            ensure!(options.contains(&"--help"), "no options in {text}");
            for word in words.iter().filter(|word| word.starts_with('-')) {
                let name = word.split('=').next().unwrap_or_default();
                ensure!(
                    options.contains(&name),
                    "`{}` has no {name}",
                    path.join(" ")
                );
            }
            return Ok(());
        }
        let next = words.get(path.len()).context("a command is missing")?;
        ensure!(
            names.contains(&next.as_str()),
            "`portcullis {}` has no command {next}",
            path.join(" ")
        );
        path.push(next.clone());
    }
}

#[test]
fn commands_and_options_exist() -> Result<()> {
    let mut helps = BTreeMap::new();
    let mut seen = 0;
    for page in pages()? {
        for block in page.blocks()?.iter().filter(|it| it.words == "console") {
            let lines = block
                .text
                .lines()
                .filter_map(|line| line.strip_prefix("$ "));
            for command in lines.flat_map(commands) {
                if let Some(("portcullis", words)) = command
                    .split_first()
                    .map(|(program, words)| (program.as_str(), words))
                {
                    check_command(words, &mut helps)
                        .with_context(|| format!("{}: {command:?}", block.place))?;
                    seen += 1;
                }
            }
        }
    }
    ensure!(seen > 20, "only {seen} commands were found");
    for wrong in [
        "explian p.yaml",
        "check p.yaml --nope",
        "export",
        "plugins inspekt x",
    ] {
        let words: Vec<String> = wrong.split(' ').map(str::to_owned).collect();
        ensure!(
            check_command(&words, &mut helps).is_err(),
            "{wrong:?} passes"
        );
    }
    Ok(())
}

/// The headings of a page as a link names them: in lower case, spaces as dashes, other marks left out.
fn anchors(text: &str) -> Vec<String> {
    text.lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| {
            let heading = line.trim_start_matches('#').trim().to_lowercase();
            let kept = heading.chars().filter_map(|c| match c {
                ' ' => Some('-'),
                c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
                _ => None,
            });
            kept.collect()
        })
        .collect()
}

#[test]
fn links_lead_somewhere() -> Result<()> {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for page in pages()? {
        let path = repository().join(&page.path);
        let folder = path.parent().context("no folder")?;
        for (at, line) in page.prose() {
            for link in line.split("](").skip(1) {
                let link = link.split(')').next().unwrap_or_default();
                if link.starts_with("https://") {
                    continue;
                }
                seen += 1;
                let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
                let target = match file {
                    "" => path.clone(),
                    file => folder.join(file),
                };
                let found = match anchor {
                    "" => target.exists(),
                    anchor => fs::read_to_string(&target)
                        .is_ok_and(|text| anchors(&text).iter().any(|it| it == anchor)),
                };
                if !found {
                    wrong.push(format!("{}:{at}: {link}", page.path));
                }
            }
        }
    }
    ensure!(seen > 50, "only {seen} links were found");
    ensure!(wrong.is_empty(), "nothing is there:\n{}", wrong.join("\n"));
    Ok(())
}

/// What stands beside the chapters and belongs to the book.
const REFERENCE: [&str; 6] = [
    "benchmarks.md",
    "cli.md",
    "compatibility.md",
    "introduction.md",
    "performance.md",
    "policy.md",
];

#[test]
fn the_summary_names_every_chapter_once() -> Result<()> {
    let summary = page("docs/SUMMARY.md")?;
    let mut named: Vec<String> = summary
        .prose()
        .flat_map(|(_, line)| {
            let links = line.split("](").skip(1);
            let files = links.filter_map(|link| link.split(')').next().map(str::to_owned));
            files.collect::<Vec<_>>()
        })
        .collect();
    named.sort();
    let chapters = chapters()?.into_iter().map(|it| format!("book/{it}"));
    let mut there: Vec<String> = chapters.chain(REFERENCE.map(str::to_owned)).collect();
    there.sort();
    ensure!(named == there, "SUMMARY.md: {named:?}\nfolder: {there:?}");
    Ok(())
}

/// A control's page, from the contract at the top of its code.
fn contract(control: &str) -> Result<String> {
    let path = format!("plugins/{control}/src/lib.rs");
    let source = fs::read_to_string(repository().join(&path)).with_context(|| path.clone())?;
    let mut page = format!(
        "# {control}\n\n<!-- The contract in {path}, word for word; PORTCULLIS_WRITE_DOCS=1 with tests/book.rs writes it anew. -->\n\n"
    );
    let mut fenced = false;
    for line in source.lines().map_while(|line| line.strip_prefix("//!")) {
        let line = line.strip_prefix(' ').unwrap_or(line);
        let fence = line.starts_with("```");
        fenced ^= fence;
        // Below the page's own heading; and its examples are configurations, not policies.
        if line.starts_with('#') && !fenced {
            page.push('#');
        }
        page.push_str(if fence && line == "```yaml" {
            "```yaml,configuration"
        } else {
            line
        });
        page.push('\n');
    }
    page.push_str(&format!(
        "\nThe code that keeps it: [{path}](../../{path}). Every key with its type: `portcullis inspect builtin:{control} --format json`.\n"
    ));
    Ok(page)
}

/// Compares each control's page with its contract, or writes it where `PORTCULLIS_WRITE_DOCS` says so.
#[test]
fn the_controls_pages_are_their_contracts() -> Result<()> {
    let builtin: Vec<&str> = portcullis_plugins::all().iter().map(|it| it.name).collect();
    for name in &builtin {
        ensure!(CONTRACTS.contains(name), "the book has no page on {name}");
    }
    for control in CONTRACTS {
        let made = contract(control)?;
        let path = format!("docs/book/{control}.md");
        if std::env::var_os("PORTCULLIS_WRITE_DOCS").is_some() {
            fs::write(repository().join(&path), made)?;
            continue;
        }
        let kept = page(&path)?.text;
        let mut lines = kept.lines().zip(made.lines()).enumerate();
        if let Some((index, (kept, made))) = lines.find(|(_, (kept, made))| kept != made) {
            bail!(
                "{path}:{}: it says\n{kept}\nand the contract\n{made}\nPORTCULLIS_WRITE_DOCS=1 writes it anew",
                index + 1
            );
        }
        ensure!(
            kept == made,
            "{path} ends elsewhere; PORTCULLIS_WRITE_DOCS=1 writes it anew"
        );
    }
    Ok(())
}
