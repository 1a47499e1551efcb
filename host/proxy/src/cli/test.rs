//! `portcullis test`.

use std::path::PathBuf;
use std::process::ExitCode;

use super::output::{Format, print, print_json};
use super::subject::Subject;
use crate::trial::Trial;

/// Runs a control's cases on its Wasm module
///
/// Builds the control as `portcullis build` does, and runs every case of cases.yaml whose `places` include `host` on the module in this host: the plugin
/// is the real one, its VM too, and the request is made canonical as `serve` does it. No port is bound for that and nothing is called: the case says
/// what the client sends and what the upstream and other clusters answer. Each case has a plugin of its own.
///
/// A case that does not hold is shown as a diff of its first wrong exchange: - is what was expected, + what came (status, headers, body, what the
/// upstream saw), under it what the plugin logged from the level that --log says.
///
/// With --envoy the cases whose `places` include `envoy` also run in that Envoy (1.40 is what is tried), with what `portcullis export envoy` writes, over
/// ports of loopback that the system chooses: one Envoy for all cases.
///
/// What cannot be run is listed with its reason: cases of other places, values that only the crate's own tests can make (`check_with`), TLS below
/// 1.2, and requests that only raw bytes can say; in Envoy also `properties` that an earlier filter would leave. Timers run in real time while a
/// control holds a request, here for 5 s at most.
///
/// Exit codes: 0 all that were run hold; 1 some do not, none was run, or the control does not build; 2 wrong usage.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  portcullis test
  portcullis test --envoy ~/bin/envoy-1.40
  portcullis test --dir controls/body-gate --case 'is refused' --log debug
  portcullis test --module body-gate.wasm --cases cases.yaml --format json | jq '.results[] | select(.verdict == \"fails\")'")]
pub(super) struct Test {
    #[command(flatten)]
    subject: Subject,

    /// Run them in Envoy, too: the program, `envoy` from the PATH if it is left out
    #[arg(long, value_name = "PROGRAM", num_args = 0..=1, default_missing_value = "envoy")]
    envoy: Option<PathBuf>,

    /// How it is printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

impl Test {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let Some((module, cases)) = self.subject.find() else {
            return Ok(ExitCode::FAILURE);
        };
        let trial = Trial {
            module: &module,
            cases: &cases,
            named: self.subject.case.as_deref(),
            envoy: self.envoy.as_deref(),
        };
        let report = trial.run()?;
        match self.format {
            Format::Text => print(&report.to_string())?,
            Format::Json => print_json(&report)?,
        }
        Ok(match report.all_hold() {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        })
    }
}
