//! `portcullis fmt`.

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::output::{note, print};
use crate::layout::lay_out;
use crate::policy;

/// Lays policy files out in one way
///
/// Indentation, spacing, quotes and the end of the file are made alike; comments, blank lines between parts and the order of keys stay. The file is read before and
/// after: one whose meaning or comments would not survive is left alone, and that is said. It need not be a policy that works.
///
/// Prints the files that it changed, or, with --check, those that it would change. `-` reads standard input and prints what it makes of it.
///
/// Exit codes: 0 done, or nothing to do; 1 --check found something to do, or a file cannot be laid out; 2 wrong usage.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  portcullis fmt policy.yaml
  portcullis fmt --check policies/*.yaml
  portcullis fmt - < policy.yaml")]
pub(super) struct Fmt {
    /// Change nothing
    #[arg(long)]
    check: bool,

    /// The policy files, or `-`
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
}

impl Fmt {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let mut failed = false;
        let mut text = String::new();
        for file in &self.files {
            match self.one(file) {
                Ok(Some(line)) => {
                    failed |= self.check;
                    let _ = write!(text, "{line}");
                }
                Ok(None) => {}
                Err(reason) => {
                    note(&reason);
                    failed = true;
                }
            }
        }
        print(&text)?;
        Ok(if failed {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        })
    }

    /// What is printed of a file.
    fn one(&self, file: &Path) -> Result<Option<String>, String> {
        let name = file.display();
        let is_input = file == Path::new("-");
        let bytes = if is_input {
            let mut bytes = Vec::new();
            let read = std::io::stdin().lock().read_to_end(&mut bytes);
            read.map_err(|error| format!("-: {error}"))?;
            bytes
        } else {
            policy::read_text(file).map_err(|reason| format!("{name}: {reason}"))?
        };
        let before = String::from_utf8(bytes).map_err(|_| format!("{name}:1: not UTF-8"))?;
        let after =
            lay_out(&before).map_err(|(line, reason)| format!("{name}:{line}: {reason}"))?;
        match (is_input, self.check) {
            (true, false) => return Ok(Some(after)),
            _ if before == after => return Ok(None),
            (_, true) => {}
            (false, false) => std::fs::write(file, after)
                .map_err(|error| format!("{name}: cannot be written: {error}"))?,
        }
        Ok(Some(format!("{name}\n")))
    }
}
