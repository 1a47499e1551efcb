//! What came of a control's cases, place by place, as a table and as a failure.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Result, bail};
use portcullis_sdk::testing::{Case, Place};
use portcullis_tests::report;

const PLACES: [Place; 3] = [Place::Native, Place::Host, Place::Envoy];

/// What came of a case in a place.
pub(crate) enum Verdict {
    Holds,
    Fails(String),
    LeftOut,
}

impl From<Option<Result<(), String>>> for Verdict {
    fn from(result: Option<Result<(), String>>) -> Self {
        match result {
            None => Self::LeftOut,
            Some(Ok(())) => Self::Holds,
            Some(Err(reason)) => Self::Fails(reason),
        }
    }
}

/// Prints the table; fails with the differences, if there are any.
pub(crate) fn report(
    control: &str,
    cases: &[Case],
    results: &BTreeMap<(usize, Place), Verdict>,
) -> Result<()> {
    let width = cases
        .iter()
        .map(|case| case.name.chars().count())
        .max()
        .unwrap_or_default()
        + 2;
    let mut table = format!("\n{control:<width$}  native  host  envoy\n");
    let mut failures = String::new();
    for (index, case) in cases.iter().enumerate() {
        let mut marks = Vec::new();
        for place in PLACES {
            marks.push(match results.get(&(index, place)) {
                Some(Verdict::Holds) => '✓',
                Some(Verdict::Fails(reason)) => {
                    writeln!(failures, "case {:?} in {place:?}:\n{reason}\n", case.name)?;
                    '✗'
                }
                Some(Verdict::LeftOut) | None => '–',
            });
        }
        let name = &case.name;
        let because = case
            .because
            .as_deref()
            .map(|because| format!("  ({because})"))
            .unwrap_or_default();
        if let [native, host, envoy] = marks[..] {
            writeln!(
                table,
                "  {name:<width$}  {native:^4}  {host:^4}  {envoy:^5}{because}"
            )?;
        }
    }
    report::say(&table);
    if !failures.is_empty() {
        bail!("the places do not agree with the cases of {control}\n\n{failures}");
    }
    Ok(())
}
