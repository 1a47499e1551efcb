//! The `portcullis` command.
//!
//! Exit codes: `EXIT_CODES`. Results go to standard output, everything else to standard error.

mod bench;
mod build;
mod check;
mod completions;
mod demo;
mod description;
mod diff;
mod explain;
mod export;
mod fmt;
mod inspect;
mod kubernetes;
mod man;
mod new;
mod output;
mod plugins;
mod push;
mod schema;
mod serve;
mod subject;
mod test;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;

use output::note;

/// Runs security controls as Proxy-Wasm plugins at the edge.
///
/// One policy file says who listens, which controls run where, and where requests go. The same policy runs in this proxy (`serve`) and in
/// a stock Envoy (`export envoy`), and its filters under Istio and Envoy Gateway (`export istio`, `export envoy-gateway`).
///
/// Exit codes: 0 done; 1 refused, failed, or found something wrong; 2 the command line itself is wrong (for `diff` also: a policy does not work).
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, propagate_version = true, after_help = FIRST_STEPS)]
struct Arguments {
    #[command(subcommand)]
    command: Command,

    /// What is logged to standard error: off, error, warn, info, debug, trace, or by module as in `info,portcullis=debug`
    #[arg(long, global = true, default_value = "info", value_name = "FILTER")]
    log: String,

    /// How it is logged
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, value_name = "FORMAT")]
    log_format: LogFormat,
}

/// Of every command; the help of each says what they mean for it.
const EXIT_CODES: &str = "0 done; 1 refused, failed, or found something wrong; 2 the command line itself is wrong (for `diff` also: a policy does not work).";

const FIRST_STEPS: &str = "First steps:
  portcullis demo                             see four controls decide, with curl lines to try
  portcullis check policy.yaml                every mistake in a policy, with its line
  portcullis explain policy.yaml --request 'GET /'  what it does with a request, filter by filter
  portcullis serve policy.yaml                run it
  portcullis export envoy policy.yaml --out d the same in Envoy: envoy -c d/envoy.yaml

A control of your own:
  portcullis new my-control                   a crate that builds and passes, with the SDK in it
  cd my-control && cargo test                 its cases, natively
  portcullis test                             builds it, and runs its cases in Wasm
  portcullis bench                            what they cost, callback by callback
  portcullis build                            target/portcullis/my-control.wasm, for any Proxy-Wasm host
  portcullis inspect FILE                     what a module is, needs and can be configured with
  portcullis push HOST/REPOSITORY:TAG         into a registry: for policies, Istio and Envoy Gateway";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object a line
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Serve),
    Check(check::Check),
    Explain(Box<explain::Explain>),
    Diff(diff::Diff),
    Fmt(fmt::Fmt),
    Schema(schema::Schema),
    Demo(demo::Demo),
    Export(Export),
    New(new::New),
    Build(build::Build),
    Test(test::Test),
    Bench(bench::Bench),
    Push(push::Push),
    Inspect(inspect::Inspect),
    Plugins(Plugins),
    Completions(completions::Completions),
    Man(man::Man),
}

/// Writes a policy for another proxy
#[derive(Debug, clap::Args)]
struct Export {
    #[command(subcommand)]
    target: ExportTarget,
}

#[derive(Debug, Subcommand)]
enum ExportTarget {
    Envoy(export::Envoy),
    Istio(kubernetes::Istio),
    EnvoyGateway(kubernetes::EnvoyGateway),
}

/// Lists, inspects and writes out plugin modules
#[derive(Debug, clap::Args)]
struct Plugins {
    #[command(subcommand)]
    command: plugins::Command,
}

/// Runs the command line of this process.
#[must_use]
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = start_log(&arguments.log, arguments.log_format) {
        note(&format!("error: --log: {error}"));
        return ExitCode::from(2);
    }
    let done = match arguments.command {
        Command::Serve(command) => command.run(),
        Command::Check(command) => command.run(),
        Command::Explain(command) => command.run(),
        Command::Diff(command) => command.run(),
        Command::Fmt(command) => command.run(),
        Command::Schema(command) => command.run(),
        Command::Completions(command) => command.run(),
        Command::Man(command) => command.run(),
        Command::Demo(command) => command.run(),
        Command::Export(Export { target }) => match target {
            ExportTarget::Envoy(command) => command.run(),
            ExportTarget::Istio(command) => command.run(),
            ExportTarget::EnvoyGateway(command) => command.run(),
        },
        Command::New(command) => command.run(),
        Command::Build(command) => command.run(),
        Command::Test(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Push(command) => command.run(),
        Command::Inspect(command) => command.run(),
        Command::Plugins(Plugins { command }) => command.run(),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            note(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn start_log(filter: &str, format: LogFormat) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter).map_err(|error| error.to_string())?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr())
        && std::env::var_os("NO_COLOR").is_none();
    match format {
        LogFormat::Text => log.with_ansi(ansi).with_target(false).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

/// A policy file to work on.
#[derive(Debug, clap::Args)]
struct PolicyFile {
    /// The policy file
    #[arg(value_name = "POLICY.yaml")]
    policy: PathBuf,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Arguments::command().debug_assert();
    }
}
