//! `docs/compatibility.md`, made of what a run saw. A line that this run cannot know, since a host or a compiler was left out, is
//! compared with nothing.

use std::fs;

use anyhow::{Context as _, Result, bail};
use portcullis_tests::build_folder::repository;
use portcullis_tests::envoy;

use super::functions::{self, VERSIONS};
use super::languages::LANGUAGES;
use super::row::{Chapter, FOLDER, Row};
use super::{Run, Seen};
use crate::languages::{self, InPlace};

const PATH: &str = "docs/compatibility.md";

/// A line, and whether this run knows it.
type Line = (String, bool);

/// Compares the committed document with what was seen, or writes it where `PORTCULLIS_WRITE_DOCS` says so.
pub(crate) fn check(chapters: &[Chapter], ours: &Run, theirs: Option<&Run>) -> Result<()> {
    let lines = render(chapters, ours, theirs)?;
    let path = repository().join(PATH);
    if std::env::var_os("PORTCULLIS_WRITE_DOCS").is_some() {
        if lines.iter().any(|(_, is_known)| !is_known) {
            bail!("{PATH} is not written by a run that leaves something out");
        }
        let text: Vec<&str> = lines.iter().map(|(line, _)| line.as_str()).collect();
        fs::write(&path, text.join("\n") + "\n")?;
        return Ok(());
    }
    let committed = fs::read_to_string(&path).with_context(|| format!("cannot read {PATH}"))?;
    let committed: Vec<&str> = committed.lines().collect();
    for (index, (line, is_known)) in lines.iter().enumerate() {
        let there = committed.get(index).copied().unwrap_or_default();
        if *is_known && line != there {
            bail!(
                "{PATH}:{}: it says\n{there}\nand this run saw\n{line}\nPORTCULLIS_WRITE_DOCS=1 writes it anew",
                index + 1
            );
        }
    }
    if committed.len() != lines.len() {
        bail!("{PATH} has lines that nothing stands for; PORTCULLIS_WRITE_DOCS=1 writes it anew");
    }
    Ok(())
}

fn render(chapters: &[Chapter], ours: &Run, theirs: Option<&Run>) -> Result<Vec<Line>> {
    let rows: usize = chapters.iter().map(|chapter| chapter.rows.len()).sum();
    let deviations = rows_of(chapters)
        .filter(|row| row.deviates.is_some())
        .count();
    let mut lines = Vec::new();
    let mut say = |text: String| lines.push((text, true));
    say("# Compatibility".into());
    say(String::new());
    say(format!(
        "Made by a test run (`tests/behaviour`): the same guests and requests against stock Envoy {} and against Portcullis, over sockets.",
        envoy::VERSION
    ));
    say("`PORTCULLIS_WRITE_DOCS=1 cargo test --release --workspace --test portcullis behaviour` writes it anew; without, the test fails".into());
    say("where a host answers otherwise than it says here.".into());
    say(String::new());
    say(format!(
        "{rows} rows of behaviour, of which Portcullis answers {} as Envoy does and {deviations} otherwise, for the reason given with each.",
        rows - deviations
    ));
    say(String::new());
    lines.extend(functions_table(ours, theirs));
    lines.extend(languages_table(ours, theirs)?);
    let mut index = 0;
    for chapter in chapters {
        lines.extend([
            (format!("## {}", chapter.title), true),
            (String::new(), true),
            (
                format!(
                    "The requests and the probe's scripts: [{0}](../{FOLDER}/{0}).",
                    chapter.file
                ),
                true,
            ),
            (String::new(), true),
            ("| | Envoy | Portcullis |".into(), true),
            ("|---|---|---|".into(), true),
        ]);
        for row in &chapter.rows {
            let theirs = theirs.map(|run| &run.rows);
            lines.push(row_line(row, &ours.rows, theirs, index));
            index += 1;
        }
        lines.push((String::new(), true));
    }
    lines.pop();
    Ok(lines)
}

fn rows_of(chapters: &[Chapter]) -> impl Iterator<Item = &Row> {
    chapters.iter().flat_map(|chapter| &chapter.rows)
}

fn row_line(row: &Row, ours: &Seen, theirs: Option<&Seen>, index: usize) -> Line {
    let text = |seen: &Seen| match seen.get(index) {
        Some(Ok(text)) => cell(text),
        _ => "?".into(),
    };
    let name = &row.name;
    match &row.deviates {
        // Both see the same.
        None => (format!("| {name} | {} | the same |", text(ours)), true),
        Some(deviation) => {
            let envoy = theirs.map_or_else(String::new, text);
            let line = format!(
                "| {name} | {envoy} | {}<br>**{}** |",
                text(ours),
                deviation.because
            );
            (line, theirs.is_some())
        }
    }
}

/// What was seen, as one cell.
fn cell(seen: &str) -> String {
    if seen.is_empty() {
        return "the exchange as if there were no filter".into();
    }
    let lines: Vec<String> = seen
        .lines()
        .map(|line| format!("`{}`", line.replace('|', "\\|").replace('`', "'")))
        .collect();
    lines.join("<br>")
}

fn functions_table(ours: &Run, theirs: Option<&Run>) -> Vec<Line> {
    let mut lines: Vec<Line> = [
        "## Hostcalls",
        "",
        "By ABI version: `served`, with the status that both hosts answer to a call with zeros for all arguments while the plugin is",
        "configured; `12` is UNIMPLEMENTED. `–`: not a hostcall of that version; a module that imports it is refused by name.",
        "",
        "| | 0.1.0 | 0.2.0 | 0.2.1 |",
        "|---|---|---|---|",
    ]
    .map(|line| (line.to_owned(), true))
    .to_vec();
    for (name, _) in functions::all() {
        let mut line = format!("| `{name}` |");
        let mut is_known = true;
        for (index, version) in VERSIONS.into_iter().enumerate() {
            let position = functions::of(version).position(|(of, _)| of == name);
            let status = |run: &Run| run.functions.get(index)?.get(position?).copied();
            let cell = match (position, status(ours), theirs.map(status)) {
                (None, ..) => "–".into(),
                (_, Some(ours), Some(Some(theirs))) if ours != theirs => {
                    format!("{} ({theirs} in Envoy)", served(ours))
                }
                (_, Some(ours), theirs) => {
                    is_known &= theirs.is_some();
                    served(ours)
                }
                _ => "?".into(),
            };
            line.push_str(&format!(" {cell} |"));
        }
        lines.push((line, is_known));
    }
    lines.push((String::new(), true));
    lines
}

fn served(status: u8) -> String {
    match status {
        12 => "12".into(),
        status => format!("served, {status}"),
    }
}

fn languages_table(ours: &Run, theirs: Option<&Run>) -> Result<Vec<Line>> {
    let mut lines: Vec<Line> = [
        "## Guests",
        "",
        "| language | built with | Envoy | Portcullis |",
        "|---|---|---|---|",
    ]
    .map(|line| (line.to_owned(), true))
    .to_vec();
    let line = |language: &str, kit: &str, [envoy, ours]: [Option<&str>; 2]| {
        let text = |cell: Option<&str>| cell.unwrap_or("not run").to_owned();
        let line = format!("| {language} | {kit} | {} | {} |", text(envoy), text(ours));
        (line, envoy.is_some() && ours.is_some())
    };
    for (index, language) in LANGUAGES.iter().enumerate() {
        let cell = |run: &Run| match run.languages.get(index) {
            Some(true) => "loads, answers",
            _ => "answers wrongly",
        };
        let kit = format!("{}: [{1}](../{1})", language.kit, language.source);
        let cells = [theirs.map(cell), Some(cell(ours))];
        lines.push(line(language.language, &kit, cells));
    }
    for row in languages::table()? {
        let cell = |place: &InPlace| match (&place.loads, &place.answers) {
            (Ok(()), Ok(())) => "loads, answers",
            (Ok(()), Err(_)) => "loads, answers wrongly",
            (Err(_), _) => "does not load",
        };
        let cells = [&row.envoy, &row.portcullis].map(|place| place.as_ref().map(cell));
        lines.push(line(row.language, row.tool, cells));
    }
    lines.push((String::new(), true));
    Ok(lines)
}
