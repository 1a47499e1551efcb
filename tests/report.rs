//! Lines for the person who runs the tests: past libtest's capture, since what was left out and how the places
//! compare must be seen when everything passes, too.

use std::io::Write as _;

/// Writes `text` and a newline to standard error at once, whole.
pub fn say(text: &str) {
    let line = format!("{text}\n");
    // A closed standard error is no reason to fail a test.
    drop(std::io::stderr().lock().write_all(line.as_bytes()));
}

/// Says that `what` was not run, and `why`.
pub fn not_run(what: &str, why: &str) {
    say(&format!("NOT RUN ({why}): {what}"));
}
