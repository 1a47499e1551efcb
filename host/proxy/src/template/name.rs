//! A new control's name, in the three forms that code has it in.

use std::str::FromStr;

/// Names of crates that the new one uses, and those that cargo refuses as a package.
const TAKEN: [&str; 17] = [
    "alloc",
    "build",
    "core",
    "deps",
    "examples",
    "incremental",
    "libfuzzer-sys",
    "portcullis-cases",
    "portcullis-sdk",
    "proc-macro",
    "proptest",
    "schemars",
    "serde",
    "std",
    "test",
    "tests",
    "vendor",
];

/// Words of the language that a library cannot be called by (The Rust Reference, keywords).
const KEYWORDS: [&str; 51] = [
    "abstract", "as", "async", "await", "become", "box", "break", "const", "continue", "crate",
    "do", "dyn", "else", "enum", "extern", "false", "final", "fn", "for", "gen", "if", "impl",
    "in", "let", "loop", "macro", "match", "mod", "move", "mut", "override", "priv", "pub", "ref",
    "return", "self", "static", "struct", "super", "trait", "true", "try", "type", "typeof",
    "unsafe", "unsized", "use", "virtual", "where", "while", "yield",
];

/// Letters of a name: it is a file's name, and a label of metrics.
const LEN_MAX: usize = 64;

/// The name of a control and its package: lower-case letters, digits and `-`, from a letter on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(String);

/// Why a name is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NameError(String);

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let refuse = |reason: &str| Err(NameError(reason.to_owned()));
        if !text.starts_with(|c: char| c.is_ascii_lowercase()) {
            return refuse("must begin with a lower-case letter, like body-gate");
        }
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if let Some(other) = text.chars().find(|c| !allowed(*c)) {
            return refuse(&format!(
                "has {other:?}; lower-case letters, digits and - make a name, like body-gate"
            ));
        }
        if text.ends_with('-') || text.contains("--") {
            return refuse("has a - with no word behind it");
        }
        if text.len() > LEN_MAX {
            return refuse(&format!("is longer than {LEN_MAX} letters"));
        }
        if TAKEN.contains(&text) || KEYWORDS.contains(&text) {
            return refuse("is a word of cargo or the language, or a crate that controls use");
        }
        Ok(Self(text.to_owned()))
    }
}

impl Name {
    /// `body-gate`
    #[must_use]
    pub fn package(&self) -> &str {
        &self.0
    }

    /// `body_gate`
    #[must_use]
    pub fn library(&self) -> String {
        self.0.replace('-', "_")
    }

    /// `BodyGate`
    #[must_use]
    pub fn control(&self) -> String {
        let capital = |word: &str| {
            let (first, rest) = word.split_at_checked(1).unwrap_or((word, ""));
            first.to_ascii_uppercase() + rest
        };
        self.0.split('-').map(capital).collect()
    }

    /// A text of the template with this name for the template's own.
    #[must_use]
    pub fn put_into(&self, text: &str) -> String {
        text.replace("my-control", self.package())
            .replace("my_control", &self.library())
            .replace("MyControl", &self.control())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_names_of_crates() {
        for (text, control) in [
            ("gate", "Gate"),
            ("body-gate", "BodyGate"),
            ("a1-2b", "A12b"),
        ] {
            let name: Name = text.parse().unwrap();
            assert_eq!(name.control(), control);
            assert_eq!(name.library(), text.replace('-', "_"));
        }
        for (text, reason) in [
            ("", "begin"),
            ("1gate", "begin"),
            ("-gate", "begin"),
            ("Gate", "begin"),
            ("body_gate", "'_'"),
            ("../gate", "begin"),
            ("gate/x", "'/'"),
            ("gäte", "'ä'"),
            ("gate-", "behind"),
            ("gate--x", "behind"),
            ("match", "word"),
            ("test", "word"),
            ("serde", "crate"),
            (&"g".repeat(65), "longer"),
        ] {
            let error = text.parse::<Name>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
