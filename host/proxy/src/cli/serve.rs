//! `portcullis serve`.

use std::process::ExitCode;

use super::PolicyFile;
use super::output::note;
use crate::policy::Policy;
use crate::serve::{self, ServeError, ServeOptions};

/// Runs a policy
///
/// Starts every plugin first and binds ports last, so a policy that does not work binds nothing: its problems go to standard error as
/// `file:line: key: reason`, and the exit code is 1. SIGTERM and Ctrl-C drain: no new
/// connections, requests in flight end, a second signal ends at once.
///
/// SIGHUP, or a change of the policy file, reloads it: the new policy is tried out and started beside the one that runs and then takes its
/// place, without a lost request; certificates and modules are read again. A policy that does not work changes nothing: its problems go to
/// the log, and `/policy` of the admin listener shows them.
///
/// Exit codes: 0 drained; 1 the policy does not work, or a port cannot be had; 2 wrong usage.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  portcullis serve policy.yaml --log warn --log-format json")]
pub(super) struct Serve {
    #[command(flatten)]
    file: PolicyFile,

    /// Reload on SIGHUP only, not when the policy file changes
    #[arg(long)]
    no_watch: bool,
}

impl Serve {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let policy = match Policy::load(&self.file.policy) {
            Ok(policy) => policy,
            Err(errors) => {
                note(&errors.to_string());
                return Ok(ExitCode::FAILURE);
            }
        };
        for warning in &policy.warnings {
            tracing::warn!("{warning}");
        }
        let options = ServeOptions {
            signals: true,
            hangup: true,
            watch: !self.no_watch,
            ..ServeOptions::default()
        };
        let running = match serve::serve(policy, options) {
            Ok(running) => running,
            Err(ServeError::Policy(problem)) => {
                note(&problem.to_string());
                return Ok(ExitCode::FAILURE);
            }
            Err(error) => return Err(error.into()),
        };
        for (listener, address) in running.addresses() {
            tracing::info!(listener, %address, "listening");
        }
        if let Some(address) = running.admin() {
            tracing::info!(%address, "admin listening");
        }
        running.wait()?;
        Ok(ExitCode::SUCCESS)
    }
}
