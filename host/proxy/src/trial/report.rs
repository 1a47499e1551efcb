//! What came of the cases, as data and as text.

use std::fmt;
use std::path::Path;

use portcullis_cases::Mismatch;
use serde::Serialize;

/// What came of all cases.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    control: String,
    /// As it was named.
    module: String,
    /// The file, as it was named.
    cases: String,
    holds: usize,
    fails: usize,
    not_run: usize,
    results: Vec<Row>,
}

/// What came of a case in a place.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    /// Its name.
    pub(crate) case: String,
    /// As in a case's `places`.
    pub(crate) place: &'static str,
    #[serde(flatten)]
    pub(crate) verdict: Verdict,
}

/// Whether a case holds.
#[derive(Debug, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub(crate) enum Verdict {
    Holds,
    Fails(Failure),
    NotRun { reason: String },
}

/// The first exchange of a case that is not as expected.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Failure {
    /// From 1; 0 where it did not get to the first.
    pub(crate) step: usize,
    /// From 1.
    pub(crate) round: u32,
    /// `GET /path over TLSv1.3`.
    pub(crate) request: String,
    /// Why there is nothing to compare.
    pub(crate) reason: Option<String>,
    /// What was expected and what came.
    pub(crate) mismatches: Vec<Mismatch>,
    /// What the plugin logged and called meanwhile.
    pub(crate) log: Vec<String>,
}

impl Failure {
    pub(super) fn because(self, reason: String) -> Self {
        Self {
            reason: Some(reason),
            ..self
        }
    }
}

impl Report {
    pub(super) fn new(control: String, module: &Path, cases: &Path, results: Vec<Row>) -> Self {
        let count = |which: fn(&Verdict) -> bool| {
            let rows = results.iter().filter(|row| which(&row.verdict));
            rows.count()
        };
        Self {
            control,
            module: module.display().to_string(),
            cases: cases.display().to_string(),
            holds: count(|it| matches!(it, Verdict::Holds)),
            fails: count(|it| matches!(it, Verdict::Fails(_))),
            not_run: count(|it| matches!(it, Verdict::NotRun { .. })),
            results,
        }
    }

    /// Whether some case was run, and all that were hold.
    pub(crate) fn all_hold(&self) -> bool {
        self.fails == 0 && self.holds > 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            control,
            module,
            cases,
            ..
        } = self;
        writeln!(f, "{control}: {cases} on {module}\n")?;
        for row in &self.results {
            let Row { case, place, .. } = row;
            match &row.verdict {
                Verdict::Holds => writeln!(f, "  {place:<5}  holds    {case}")?,
                Verdict::Fails(_) => writeln!(f, "  {place:<5}  FAILS    {case}")?,
                Verdict::NotRun { reason } => {
                    writeln!(f, "  {place:<5}  not run  {case} ({reason})")?;
                }
            }
        }
        for row in &self.results {
            if let Verdict::Fails(failure) = &row.verdict {
                let Row { case, place, .. } = row;
                write!(f, "\ncase {case:?} in {place}{failure}")?;
            }
        }
        writeln!(
            f,
            "\n{} hold, {} do not, {} not run",
            self.holds, self.fails, self.not_run
        )
    }
}

/// As it stands behind the case's name: where, the differences, the log.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.step {
            0 => writeln!(f, ", before its first step:")?,
            step => writeln!(f, ", step {step}, round {}: {}", self.round, self.request)?,
        }
        for line in self.reason.iter().flat_map(|reason| reason.lines()) {
            writeln!(f, "{line}")?;
        }
        for mismatch in &self.mismatches {
            writeln!(f, "{mismatch}")?;
        }
        for line in &self.log {
            writeln!(f, "  log {line}")?;
        }
        Ok(())
    }
}
