//! Where something stood in the policy file, and what was wrong with it there.

use std::fmt::{self, Write as _};
use std::path::Path;
use std::sync::Arc;

use super::limits::REASON_CHARS_MAX;

/// A position in the policy file, kept by everything that was read from it so that a later failure (a port in use, a filter that
/// refuses its configuration) can still name the line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file as the operator named it.
    pub file: Arc<Path>,
    /// Line, from 1.
    pub line: u64,
    /// The key with its path, such as `listeners[0].tls.private_key`; `policy` for the file as a whole.
    pub key: Arc<str>,
}

impl Place {
    /// A problem at this place. `reason` is lower case, without a full stop.
    pub fn problem(&self, reason: impl Into<String>) -> Problem {
        Problem {
            place: self.clone(),
            reason: reason.into(),
        }
    }
}

/// One thing wrong with a policy: `file:line: key: reason`, shown on one line. It may quote anybody (a policy under review, a module's log), so
/// what could move a terminal's cursor or forge a line is shown escaped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// Why; lower case, no full stop.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { file, line, key } = &self.place;
        let reason: String = self.reason.chars().take(REASON_CHARS_MAX).collect();
        let rest = if reason.len() < self.reason.len() {
            "…"
        } else {
            ""
        };
        let file = file.display().to_string();
        let (file, key, reason) = (Shown(&file), Shown(key), Shown(&reason));
        write!(f, "{file}:{line}: {key}: {reason}{rest}")
    }
}

/// Text with everything escaped that is not to be seen but obeyed: control characters, line ends, changes of writing direction.
struct Shown<'t>(&'t str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                c.escape_unicode().fmt(f)
            }
            c if c.is_control() => c.escape_default().fmt(f),
            c => f.write_char(c),
        })
    }
}

/// Everything wrong with a policy, in the file's order; never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n"))]
pub struct PolicyErrors(pub Vec<Problem>);

impl From<Problem> for PolicyErrors {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}
