//! Every public item of the SDK and of its case format has an example in its documentation, or in that of its type.
//!
//! Looked for in the text: a type, a trait, a function and an exported macro need an example of their own; a method needs one, or its type's
//! must name it. Doc tests run the examples.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::build_folder::repository;

/// The crates' sources, and the files that say what of them is public.
const SOURCES: &[(&str, &[&str])] = &[
    ("sdk/src", &["sdk/src/lib.rs", "sdk/src/testing.rs"]),
    ("sdk/cases/src", &["sdk/cases/src/lib.rs"]),
];

/// Items without one, as `Type` or `Type::method`. It may only shrink.
const EXCEPTIONS: &[&str] = &[];

/// Macros of the SDK's own whose methods become those of `Request`, `Response` and the like.
const METHOD_MACROS: &[&str] = &["field_functions", "exchange_functions", "request_functions"];

struct Item {
    /// The type, or the item itself.
    owner: String,
    method: Option<String>,
    documentation: String,
}

/// What a line without its indentation declares.
enum Declared<'a> {
    Type(&'a str),
    Trait(&'a str),
    Macro(&'a str),
    Function(&'a str),
}

impl<'a> Declared<'a> {
    /// And whether it is `pub`, not `pub(crate)`.
    fn of(line: &'a str) -> Option<(Self, bool)> {
        let (mut rest, is_public) = match line.strip_prefix("pub ") {
            Some(rest) => (rest, true),
            None => (line, false),
        };
        for word in ["const ", "async ", "unsafe "] {
            rest = rest.strip_prefix(word).unwrap_or(rest);
        }
        let (word, rest) = rest.split_once(' ')?;
        let name = word_at_start(rest);
        let declared = match word {
            "struct" | "enum" => Self::Type(name),
            "trait" => Self::Trait(name),
            "macro_rules!" => Self::Macro(name),
            "fn" => Self::Function(name),
            _ => return None,
        };
        Some((declared, is_public))
    }
}

fn word_at_start(text: &str) -> &str {
    let is_end = |c: char| !c.is_alphanumeric() && c != '_';
    text.split(is_end).next().unwrap_or_default()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_')
}

/// Whether there is Rust code between fences: without a language, or only compiled.
fn has_example(documentation: &str) -> bool {
    let fences = documentation.lines().map(str::trim);
    let mut fences = fences.filter(|line| line.starts_with("```")).step_by(2);
    fences.any(|opened| ["```", "```no_run"].contains(&opened))
}

/// What a file declares that its users can name, where the types in `public` are re-exported.
fn items(text: &str, public: &BTreeSet<String>) -> Vec<Item> {
    let text = text.split("#[cfg(test)]\nmod tests {").next();
    let mut found = Vec::new();
    let (mut documentation, mut is_hidden, mut is_exported) = (String::new(), false, false);
    // Whose methods stand here, and whether those that are not `pub` count.
    let (mut owner, mut is_trait) = (None, false);
    for line in text.unwrap_or_default().lines() {
        let bare = line.trim();
        if let Some(said) = bare.strip_prefix("///") {
            documentation.push_str(said);
            documentation.push('\n');
            continue;
        }
        if bare.starts_with("#[") {
            is_hidden |= bare.contains("doc(hidden)");
            is_exported |= bare.contains("macro_export");
            continue;
        }
        let is_outermost = !line.starts_with(' ');
        let mut add = |owner: &str, method: Option<&str>| {
            if !is_hidden {
                found.push(Item {
                    owner: owner.to_owned(),
                    method: method.map(str::to_owned),
                    documentation: documentation.clone(),
                });
            }
        };
        if is_outermost && bare.starts_with("impl") {
            owner = implementor(bare).filter(|it| public.contains(*it));
            is_trait = false;
        }
        match Declared::of(bare) {
            Some((Declared::Type(name) | Declared::Trait(name), is_public)) if is_outermost => {
                let is_named = is_public && public.contains(name);
                owner = is_named.then_some(name);
                is_trait = bare.contains("trait ");
                if is_named {
                    add(name, None);
                }
            }
            Some((Declared::Macro(name), _)) if is_outermost => {
                owner = METHOD_MACROS.contains(&name).then_some(name);
                is_trait = false;
                if is_exported {
                    add(name, None);
                }
            }
            Some((Declared::Function(name), true)) if is_outermost && public.contains(name) => {
                add(name, None);
            }
            Some((Declared::Function(name), is_public)) if line.starts_with("    ") => {
                if let (Some(owner), true) = (owner, is_public || is_trait) {
                    add(owner, Some(name));
                }
            }
            _ => {}
        }
        if !bare.is_empty() && !bare.starts_with("//") {
            documentation.clear();
            (is_hidden, is_exported) = (false, false);
        }
    }
    found
}

/// The type of an `impl` that is of no trait.
fn implementor(line: &str) -> Option<&str> {
    if line.contains(" for ") {
        return None;
    }
    let rest = line.strip_prefix("impl")?;
    let mut depth = 0_usize;
    let begins = rest.find(|c: char| {
        match c {
            '<' => depth += 1,
            '>' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0 && c.is_alphabetic()
    })?;
    rest.get(begins..).map(word_at_start)
}

/// Every name in the `pub use` of these files.
fn exported(files: &[&str]) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for file in files {
        let text = read(Path::new(file))?;
        // The prelude names nothing new, and the parts of macros are hidden.
        let text = text.split("pub mod prelude").next().unwrap_or_default();
        for list in text.split("pub use ").skip(1) {
            let list = list.split(';').next().unwrap_or_default();
            names.extend(words(list).map(str::to_owned));
        }
    }
    Ok(names)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(repository().join(path)).with_context(|| path.display().to_string())
}

/// Those without an example; and how many there are.
fn without_example(items: &[Item]) -> Vec<String> {
    let types: BTreeMap<_, _> = items
        .iter()
        .filter(|item| item.method.is_none())
        .map(|item| (item.owner.as_str(), item.documentation.as_str()))
        .collect();
    let lacks = |item: &&Item| {
        let of_type = types.get(item.owner.as_str()).copied().unwrap_or_default();
        let shown = |method: &String| words(of_type).any(|word| word == method);
        let is_shown = has_example(of_type) && item.method.as_ref().is_some_and(shown);
        !has_example(&item.documentation) && !is_shown
    };
    let name = |item: &Item| match &item.method {
        Some(method) => format!("{}::{method}", item.owner),
        None => item.owner.clone(),
    };
    items.iter().filter(lacks).map(name).collect()
}

#[test]
fn every_public_item_of_the_sdk_has_an_example() -> Result<()> {
    let (mut count, mut lacking) = (0, BTreeSet::new());
    for (folder, says) in SOURCES {
        let public = exported(says)?;
        let mut folders = vec![repository().join(folder)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder)? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let items = items(&read(&path)?, &public);
                count += items.len();
                lacking.extend(without_example(&items));
            }
        }
    }
    ensure!(count > 200, "only {count} public items found");
    let known: BTreeSet<_> = EXCEPTIONS.iter().map(|it| (*it).to_owned()).collect();
    let new: Vec<_> = lacking.difference(&known).collect();
    ensure!(new.is_empty(), "without an example: {new:?}");
    let gone: Vec<_> = known.difference(&lacking).collect();
    ensure!(
        gone.is_empty(),
        "have an example by now, so they are no exceptions: {gone:?}"
    );
    Ok(())
}

#[test]
fn what_lacks_an_example_is_found() {
    let public = BTreeSet::from(["Shown".to_owned(), "Bare".to_owned(), "loose".to_owned()]);
    let text = "
/// A type.
///
/// ```
/// Shown::new().known();
/// ```
pub struct Shown<'a>(&'a str);

impl<'a> Shown<'a> {
    /// Shown above.
    pub fn known(&self) {}

    /// Not shown.
    #[must_use]
    pub const fn unknown(&self) {}

    /// ```text
    /// no code
    /// ```
    pub async fn prose(&self) {}

    pub(crate) fn own(&self) {}

    #[doc(hidden)]
    pub fn hidden(&self) {}
}

/// In words.
pub trait Bare {
    /// ```
    /// own();
    /// ```
    fn one(&self);
    fn two(&self);
}

pub struct Private;

impl Private {
    pub fn method(&self) {}
}

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self) {}
}

pub fn loose() {}

/// A macro.
#[macro_export]
macro_rules! made { () => {} }

macro_rules! field_functions {
    () => {
        /// In words.
        pub fn header(&self) {}
    };
}
";
    let items = items(text, &public);
    assert_eq!(
        without_example(&items),
        [
            "Shown::unknown",
            "Shown::prose",
            "Bare",
            "Bare::two",
            "loose",
            "made",
            "field_functions::header"
        ]
    );
    assert_eq!(items.len(), 10);
}
