//! `portcullis check`.

use std::fmt::Write as _;
use std::process::ExitCode;

use serde_json::json;

use super::PolicyFile;
use super::output::{Format, note, print};
use crate::canary;
use crate::export::Findings;
use crate::module_cache::DiskCache;
use crate::policy::{Policy, PolicyErrors, Problem};
use crate::serve;

/// Checks a policy and says everything that is wrong with it
///
/// Prints each problem to standard output as `file:line: key: reason` and exits with 1 if there is any: they are what it is for, so they can be
/// piped. (`serve`, `export` and `demo` print the same lines to standard error.) Beyond the file itself it reads every certificate, key and
/// module that the policy names, and lets each plugin start and judge its own configuration. No port is bound and nothing is called.
///
/// Warnings name what is allowed but risky; they go to standard error and do not change the exit code.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  portcullis check policy.yaml && systemctl reload portcullis")]
pub(super) struct Check {
    #[command(flatten)]
    file: PolicyFile,

    /// How problems and warnings are printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

impl Check {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let (errors, warnings) = match Policy::load(&self.file.policy) {
            Ok(policy) => match plugins(&policy)? {
                Ok(_) => (Vec::new(), policy.warnings),
                Err(PolicyErrors(problems)) => (problems, policy.warnings),
            },
            Err(PolicyErrors(problems)) => (problems, Vec::new()),
        };
        match self.format {
            Format::Text => print_text(&self.file, &errors, &warnings)?,
            Format::Json => {
                let list = |problems: &[Problem]| problems.iter().map(as_json).collect::<Vec<_>>();
                let all = json!({"errors": list(&errors), "warnings": list(&warnings)});
                print(&format!("{all:#}\n"))?;
            }
        }
        Ok(if errors.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

/// Tries the policy's plugins out. The outer error is this machine's fault, the inner one the policy's.
pub(super) fn plugins(policy: &Policy) -> anyhow::Result<Result<Findings, PolicyErrors>> {
    if policy.instances.is_empty() {
        return Ok(Ok(Findings::default()));
    }
    let runtime = serve::runtime()?;
    Ok(canary::try_out(policy, &runtime, &DiskCache::of_user()))
}

fn print_text(file: &PolicyFile, errors: &[Problem], warnings: &[Problem]) -> std::io::Result<()> {
    for warning in warnings {
        note(&format!("warning: {warning}"));
    }
    let mut text = String::new();
    for error in errors {
        let _ = writeln!(text, "{error}");
    }
    if errors.is_empty() {
        let _ = writeln!(text, "{}: ok", file.policy.display());
    }
    print(&text)
}

fn as_json(problem: &Problem) -> serde_json::Value {
    json!({
        "file": problem.place.file.display().to_string(),
        "line": problem.place.line,
        "key": &*problem.place.key,
        "reason": problem.reason,
    })
}
