//! `portcullis export envoy`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::ensure;

use super::PolicyFile;
use super::check;
use super::output::{note, print};
use crate::export::{self, Scope};
use crate::policy::Policy;

/// Writes a policy as a bootstrap for a stock Envoy
///
/// Writes DIR/envoy.yaml and the modules. Envoy then decides as `portcullis serve` does: the same modules, TLS floor, path
/// normalisation and timeouts. `failure_policy: closed` becomes FAIL_RELOAD. Where routes differ, disabled filter instances are written
/// that the routes switch on, since Envoy cannot configure a Wasm filter per route.
///
/// Neighbouring filters whose controls are built in, and whose bounds and failure policy are the same, become one filter with one module that
/// runs them in their order: Envoy then enters Wasm once for all of them. Metrics, logs and answers stay the same. --separate writes a module
/// for each filter.
///
/// A policy that does not work is not exported: its problems go to standard error as `file:line: key: reason`, and the exit code is 1.
///
/// Envoy has no bounds on a plugin's CPU time, callouts and log, and no lists of the clusters, properties and foreign functions that it may use;
/// the list of its capabilities is written. It has no VM for a single request either: where the policy says `isolation: request`, a warning goes
/// to standard error and into the file.
///
/// Exit codes: 0 written; 1 the policy does not work, or a file cannot be written; 2 wrong usage.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  portcullis export envoy policy.yaml --out envoy && envoy -c envoy/envoy.yaml
  portcullis export envoy policy.yaml --out image --modules-at /etc/envoy/modules
  portcullis export envoy policy.yaml --out filters --filters-only")]
pub(super) struct Envoy {
    #[command(flatten)]
    file: PolicyFile,

    /// The folder to write to; it is made if it is missing
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// Where Envoy will find the modules, if they will not stay in DIR; an absolute path
    #[arg(long, value_name = "PATH")]
    modules_at: Option<PathBuf>,

    /// Write a module for each filter, also where several could be one
    #[arg(long)]
    separate: bool,

    /// Write only the HTTP filters and what routes say about them, for an Envoy that is configured otherwise
    #[arg(long)]
    filters_only: bool,
}

impl Envoy {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        if let Some(path) = &self.modules_at {
            ensure!(
                path.is_absolute(),
                "--modules-at: {} is not an absolute path",
                path.display()
            );
        }
        let tried = Policy::load(&self.file.policy);
        let tried = match tried {
            Ok(policy) => check::plugins(&policy)?.map(|findings| (policy, findings)),
            Err(errors) => Err(errors),
        };
        let (policy, findings) = match tried {
            Ok(ready) => ready,
            Err(errors) => {
                note(&errors.to_string());
                return Ok(ExitCode::FAILURE);
            }
        };
        for remark in export::isolation_remarks(&policy) {
            note(&format!("warning: {remark}"));
        }
        let policy = if self.separate {
            policy
        } else {
            export::in_one_module(&policy)?
        };
        let scope = if self.filters_only {
            Scope::Filters
        } else {
            Scope::Bootstrap
        };
        let written = export::write(
            &policy,
            &findings,
            &self.out,
            self.modules_at.as_deref(),
            scope,
        )?;
        let mut text = String::new();
        for path in std::iter::once(&written.configuration).chain(&written.modules) {
            let _ = writeln!(text, "{}", path.display());
        }
        print(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}
