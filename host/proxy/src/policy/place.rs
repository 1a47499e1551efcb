//! Where something stood in the policy file, and what was wrong with it there.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

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

/// One thing wrong with a policy: `file:line: key: reason`.
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
        write!(f, "{}:{line}: {key}: {}", file.display(), self.reason)
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
