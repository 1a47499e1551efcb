//! `portcullis schema`.

use std::path::PathBuf;
use std::process::ExitCode;

use super::output::print_json;
use crate::policy::Policy;

/// Prints the JSON Schema of policy files, for editors and validators
///
/// The schema is of draft 2020-12. It has every key with what it is for, its choices and its default, and each builtin control's own configuration under the
/// `module` that names it. With a policy, the modules that it names are looked at, too: one that carries a schema in its custom section
/// `portcullis.schema` gets it.
///
/// It says what structure can say. That files are there, that names refer to something and that plugins take their configurations is for `check`.
///
/// Exit codes: 0 printed; 1 the policy cannot be read; 2 wrong usage.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  portcullis schema > policy.schema.json
  portcullis schema policy.yaml > policy.schema.json      with the modules that policy.yaml names

The first line of a policy then has editors with yaml-language-server complete and check it:
  # yaml-language-server: $schema=policy.schema.json")]
pub(super) struct Schema {
    /// A policy whose modules are looked at as well
    #[arg(value_name = "POLICY.yaml")]
    policy: Option<PathBuf>,
}

impl Schema {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let schema = Policy::json_schema(self.policy.as_deref()).map_err(anyhow::Error::msg)?;
        print_json(&schema)?;
        Ok(ExitCode::SUCCESS)
    }
}
