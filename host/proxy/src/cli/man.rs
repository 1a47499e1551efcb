//! `portcullis man`: the manual, from what the command line knows of itself.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Arg, ArgAction, Args, Command, CommandFactory as _};

use super::output::print;

/// Prints the manual page, or writes one for each command
///
/// Exit codes: 0 done; 1 a page cannot be written; 2 wrong usage.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  portcullis man | man -l -
  portcullis man --dir /usr/local/share/man/man1
  portcullis man --markdown > cli.md")]
pub(super) struct Man {
    /// Write portcullis.1 and a page for each command into this folder; it is made if it is missing
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Print the whole manual as Markdown instead
    #[arg(long, conflicts_with = "dir")]
    markdown: bool,
}

impl Man {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let mut command = super::Arguments::command().disable_help_subcommand(true);
        command.build();
        if let Some(folder) = &self.dir {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
            let mut written = String::new();
            write_pages(&command, folder, &mut written)?;
            print(&written)?;
        } else if self.markdown {
            print(&markdown(&command))?;
        } else {
            print(&String::from_utf8_lossy(&page(&command)?))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn page(command: &Command) -> std::io::Result<Vec<u8>> {
    let name = command.get_bin_name().unwrap_or(command.get_name());
    let name = name.replace(' ', "-");
    // A page's name lives as long as the program: clap wants it so.
    let command = command.clone().name(String::leak(name) as &'static str);
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    Ok(page)
}

fn write_pages(command: &Command, folder: &Path, written: &mut String) -> anyhow::Result<()> {
    let name = command.get_bin_name().unwrap_or(command.get_name());
    let path = folder.join(format!("{}.1", name.replace(' ', "-")));
    std::fs::write(&path, page(command)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    let _ = writeln!(written, "{}", path.display());
    let mut commands = command.get_subcommands().filter(|it| !it.is_hide_set());
    commands.try_for_each(|it| write_pages(it, folder, written))
}

fn markdown(command: &Command) -> String {
    let mut text = String::from(
        "# The command line\n\nMade by `portcullis man --markdown`; a test holds it to the program.\n\n",
    );
    let _ = writeln!(
        text,
        "Results go to standard output, everything else to standard error. Exit codes: {}\n",
        super::EXIT_CODES
    );
    section(command, &mut text);
    text
}

fn section(command: &Command, text: &mut String) {
    let name = command.get_bin_name().unwrap_or(command.get_name());
    let _ = writeln!(text, "## `{name}`\n");
    if let Some(about) = command.get_long_about().or(command.get_about()) {
        let _ = writeln!(text, "{}\n", plain(&about.to_string()));
    }
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ");
    let _ = writeln!(text, "```text\n{usage}\n```\n");
    let is_root = name == command.get_name();
    let arguments = command.get_arguments().filter(|it| {
        let is_automatic = matches!(it.get_id().as_str(), "help" | "version");
        !it.is_hide_set() && !is_automatic && (is_root || !it.is_global_set())
    });
    let arguments: Vec<_> = arguments.collect();
    if !arguments.is_empty() {
        let _ = writeln!(text, "| argument | meaning | default |\n|---|---|---|");
        for argument in arguments {
            let _ = writeln!(text, "{}", row(argument));
        }
        text.push('\n');
    }
    if let Some(after) = command.get_after_help() {
        let _ = writeln!(text, "```text\n{after}\n```\n");
    }
    for command in command.get_subcommands().filter(|it| !it.is_hide_set()) {
        section(command, text);
    }
}

fn row(argument: &Arg) -> String {
    let takes_value = matches!(argument.get_action(), ArgAction::Set | ArgAction::Append);
    let names = argument.get_value_names().unwrap_or_default();
    let value = names.iter().map(|it| format!("{it}")).collect::<Vec<_>>();
    let value = value.join(" ");
    let written = match argument.get_long() {
        Some(long) if takes_value => format!("--{long} {value}"),
        Some(long) => format!("--{long}"),
        None => value,
    };
    let mut meaning = argument
        .get_long_help()
        .or(argument.get_help())
        .map(|it| plain(&it.to_string()))
        .unwrap_or_default();
    let choices: Vec<_> = argument
        .get_possible_values()
        .iter()
        .filter(|it| takes_value && !it.is_hide_set())
        .map(|it| match it.get_help() {
            Some(help) => format!("`{}` ({help})", it.get_name()),
            None => format!("`{}`", it.get_name()),
        })
        .collect();
    if !choices.is_empty() {
        let _ = write!(meaning, ": {}", choices.join(", "));
    }
    let default: Vec<_> = argument
        .get_default_values()
        .iter()
        .filter(|_| takes_value)
        .map(|it| format!("`{}`", it.to_string_lossy()))
        .collect();
    let default = match default.is_empty() {
        true if argument.is_required_set() => "required".to_owned(),
        _ => default.join(" "),
    };
    let cell = |text: &str| text.replace('|', "\\|").replace('\n', " ");
    format!(
        "| `{}` | {} | {} |",
        cell(&written),
        cell(&meaning),
        cell(&default)
    )
}

/// Lines that clap has not wrapped yet.
fn plain(text: &str) -> String {
    text.trim().to_owned()
}
