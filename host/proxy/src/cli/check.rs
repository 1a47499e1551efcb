//! `portcullis check`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Value, json};

use super::output::{Format, note, print, print_json};
use crate::canary;
use crate::envoy_lint;
use crate::export::Findings;
use crate::module_cache::DiskCache;
use crate::policy::{Lint, Policy, PolicyErrors, Problem, Warning};
use crate::serve;

/// Checks a policy, or an Envoy configuration, and says what is wrong with it and what is risky
///
/// Prints each problem to standard output as `file:line: key: reason` and exits with 1 if there is any: they are what it is for, so they can be
/// piped. (`serve`, `export` and `demo` print the same lines to standard error.) Beyond the file itself it reads every certificate, key and
/// module that the policy names, and lets each plugin start and judge its own configuration. No port is bound and nothing is called.
///
/// Warnings name what is allowed but risky, and the lint that says so in brackets. They go to standard error and do not change the exit code, unless --deny
/// makes problems of them.
///
/// With --envoy, the same lints look at an Envoy bootstrap (YAML or JSON), or at what /config_dump of Envoy's admin interface gives. Envoy itself says what is
/// wrong with it (`envoy --mode validate`).
///
/// Exit codes: 0 nothing is wrong; 1 something is, or is denied; 2 wrong usage.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Check {
    /// The policy file
    #[arg(value_name = "POLICY.yaml", required_unless_present = "envoy")]
    policy: Option<PathBuf>,

    /// An Envoy bootstrap or config dump to look at instead
    #[arg(long, value_name = "FILE", conflicts_with = "policy")]
    envoy: Option<PathBuf>,

    /// Make a problem of a lint's warnings, or of all (`warnings`); again for more
    #[arg(long, value_name = "LINT|warnings", value_parser = denied)]
    deny: Vec<Denied>,

    /// Do not warn of this; again for more. Goes before --deny
    #[arg(long, value_name = "LINT")]
    allow: Vec<Lint>,

    /// How problems and warnings are printed: `file:line: key: reason`, or one object with `errors` and `warnings`
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

const AFTER_HELP: &str = "Lints:
  fail-open             a filter lets requests by unchecked while it is down
  open-route            no filter on a route authenticates
  tls-floor             TLS below 1.3 is accepted
  plaintext-listener    plaintext HTTP that others than this machine can reach
  certificate-validity  a certificate has expired, or is not valid yet
  headers-not-first     security-headers is not the first filter
  weak-secret           an HMAC secret that can be guessed
  admin-exposed         an admin interface that others can reach (Envoy; policies refuse it)
  unknown-imports       a module's unknown imports trap when they are called
  unpinned-module       neither a digest nor a signature says which module it must be
  unused-filter         a filter that no route runs
  shadow-mode           a control decides, and nothing comes of it
  path-forms            paths reach routes and filters in more than one form (Envoy)
  client-address        clients can claim any address (Envoy)

Examples:
  portcullis check policy.yaml && systemctl reload portcullis
  portcullis check policy.yaml --deny warnings --allow open-route
  portcullis check --envoy envoy.yaml
  curl -s localhost:9901/config_dump > dump.json && portcullis check --envoy dump.json --format json";

/// What `--deny` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Denied {
    All,
    One(Lint),
}

fn denied(text: &str) -> Result<Denied, String> {
    match text {
        "warnings" => Ok(Denied::All),
        name => name.parse().map(Denied::One),
    }
}

impl Check {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let (file, found) = match (&self.envoy, &self.policy) {
            (Some(file), _) => (file.as_path(), of_envoy(file)),
            (None, Some(file)) => (file.as_path(), of_policy(file)?),
            (None, None) => return Ok(ExitCode::from(2)),
        };
        let (errors, warnings) = found;
        let kept = warnings
            .into_iter()
            .filter(|it| !self.allow.contains(&it.lint));
        let is_denied = |it: &Warning| {
            self.deny.contains(&Denied::All) || self.deny.contains(&Denied::One(it.lint))
        };
        let (refused, warnings): (Vec<_>, Vec<_>) = kept.partition(is_denied);
        match self.format {
            Format::Text => print_text(file, &errors, &refused, &warnings)?,
            Format::Json => {
                let errors = errors.iter().map(as_json);
                let errors: Vec<_> = errors.chain(refused.iter().map(warning_as_json)).collect();
                let warnings: Vec<_> = warnings.iter().map(warning_as_json).collect();
                print_json(&json!({"errors": errors, "warnings": warnings}))?;
            }
        }
        Ok(if errors.is_empty() && refused.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

/// Problems and warnings.
type Found = (Vec<Problem>, Vec<Warning>);

fn of_envoy(file: &Path) -> Found {
    match envoy_lint::check(file) {
        Ok(warnings) => (Vec::new(), warnings),
        Err(PolicyErrors(problems)) => (problems, Vec::new()),
    }
}

fn of_policy(file: &Path) -> anyhow::Result<Found> {
    Ok(match Policy::load(file) {
        Ok(policy) => match plugins(&policy)? {
            Ok(_) => (Vec::new(), policy.warnings),
            Err(PolicyErrors(problems)) => (problems, policy.warnings),
        },
        Err(PolicyErrors(problems)) => (problems, Vec::new()),
    })
}

/// Tries the policy's plugins out. The outer error is this machine's fault, the inner one the policy's.
pub(super) fn plugins(policy: &Policy) -> anyhow::Result<Result<Findings, PolicyErrors>> {
    if policy.instances.is_empty() {
        return Ok(Ok(Findings::default()));
    }
    let runtime = serve::runtime()?;
    Ok(canary::try_out(policy, &runtime, &DiskCache::of_user()))
}

fn print_text(
    file: &Path,
    errors: &[Problem],
    refused: &[Warning],
    warnings: &[Warning],
) -> std::io::Result<()> {
    for warning in warnings {
        note(&format!("warning: {warning}"));
    }
    let mut text = String::new();
    for error in errors {
        let _ = writeln!(text, "{error}");
    }
    for warning in refused {
        let _ = writeln!(text, "{warning}");
    }
    if text.is_empty() {
        let _ = writeln!(text, "{}: ok", file.display());
    }
    print(&text)
}

fn as_json(problem: &Problem) -> Value {
    json!({
        "file": problem.place.file.display().to_string(),
        "line": problem.place.line,
        "key": &*problem.place.key,
        "reason": problem.reason,
    })
}

fn warning_as_json(warning: &Warning) -> Value {
    let mut json = as_json(&warning.problem);
    if let Some(members) = json.as_object_mut() {
        members.insert("lint".into(), warning.lint.name().into());
    }
    json
}

#[cfg(test)]
mod tests {
    use super::{AFTER_HELP, Lint};

    #[test]
    fn the_help_names_every_lint() {
        for lint in Lint::ALL {
            let line = format!("\n  {:<22}", lint.name());
            assert!(AFTER_HELP.contains(&line), "{lint}");
        }
    }
}
