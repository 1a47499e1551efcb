//! Builds `portcullis` as it is shipped: with fat link-time optimisation, and guided by a profile of it under load (rustc book, *Profile-guided
//! Optimization*). Two builds with a short training between them; the result is `target/dist/portcullis`. Needs Linux or macOS and rustup, which
//! adds LLVM's tools to the toolchain.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use portcullis_benches::kind::Kind;
use portcullis_benches::load::{self, Protocol};
use portcullis_benches::peer::{Programs, Setting, Tokens, UNREACHED_LIMIT};
use portcullis_tests::build_folder::{build_folder, repository};
use rustix::process::Signal;

/// Build portcullis as it is shipped: link-time optimised, guided by a profile of it under load.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// Seconds of each kind of load in the training
    #[arg(long, default_value_t = 4)]
    seconds: u64,
}

/// How long a trained process may take to drain and to write its profile.
const EXIT_TIMEOUT: Duration = Duration::from_secs(60);
/// Connections of the training.
const CONNECTIONS: usize = 16;

fn main() -> ExitCode {
    match dist(&Arguments::parse()) {
        Ok(program) => {
            println!("{}", program.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dist(arguments: &Arguments) -> Result<PathBuf> {
    let host = answer(Command::new("rustc").args(["--print", "host-tuple"]))?;
    let profdata = profdata(&host)?;
    let folder = build_folder()?.join("pgo");
    let raw = folder.join("raw");
    if raw.exists() {
        std::fs::remove_dir_all(&raw).with_context(|| format!("cannot empty {}", raw.display()))?;
    }
    std::fs::create_dir_all(&raw).with_context(|| format!("cannot make {}", raw.display()))?;

    eprintln!("1 of 3: a build that counts what runs");
    let flag = format!("-Cprofile-generate={}", raw.display());
    let counting = build(&host, &folder, &flag)?;
    eprintln!("2 of 3: training");
    train(counting, Duration::from_secs(arguments.seconds))?;
    let merged = folder.join("merged.profdata");
    run(Command::new(profdata)
        .arg("merge")
        .arg("-o")
        .arg(&merged)
        .arg(&raw))?;
    eprintln!("3 of 3: the build that the profile guides");
    let flag = format!("-Cprofile-use={}", merged.display());
    let built = build(&host, &folder, &flag)?;

    let shipped = build_folder()?.join("dist");
    std::fs::create_dir_all(&shipped)?;
    let shipped = shipped.join("portcullis");
    std::fs::copy(&built, &shipped)
        .with_context(|| format!("cannot copy to {}", shipped.display()))?;
    Ok(shipped)
}

/// Both builds have the same profile: cargo's names for symbols depend on it, and the profile goes by those names. `--target` keeps the flags
/// away from build scripts.
fn build(host: &str, folder: &Path, flag: &str) -> Result<PathBuf> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args([
            "build",
            "--profile",
            "dist",
            "--package",
            "portcullis",
            "--bin",
            "portcullis",
        ])
        .args(["--target", host])
        .arg("--target-dir")
        .arg(folder)
        // Unlike RUSTFLAGS it is not cut at blanks, which a path may have.
        .env("CARGO_ENCODED_RUSTFLAGS", flag)
        .current_dir(repository());
    run(&mut cargo)?;
    Ok(folder.join(host).join("dist/portcullis"))
}

/// What the comparison measures: with and without controls, HTTP/1.1 and HTTP/2, tokens that are in the cache and tokens that are not.
fn train(program: PathBuf, duration: Duration) -> Result<()> {
    let folder = tempfile::tempdir().context("no temporary folder")?;
    let programs = Programs {
        portcullis: program,
        ..Programs::default()
    };
    let setting = Setting::new(folder, programs)?;
    for kind in [
        Kind::Portcullis,
        Kind::PortcullisFour,
        Kind::PortcullisPolicy,
    ] {
        let peer = setting.start(kind, UNREACHED_LIMIT)?;
        for protocol in [Protocol::Http1, Protocol::Http2] {
            for tokens in [Tokens::Same, Tokens::New] {
                let load = setting.load(&peer, protocol, tokens, CONNECTIONS, None, duration);
                let outcome = load::run(&load)?;
                ensure!(
                    outcome.good > 0 && outcome.other.is_empty(),
                    "the training got other answers than 200: {outcome:?}"
                );
                eprintln!(
                    "{kind}, {protocol}, {tokens:?} tokens: {} requests",
                    outcome.good
                );
            }
        }
        // Its end writes the profile.
        let mut process = peer.process.context("it is no process of its own")?;
        process.signal(Signal::TERM)?;
        let status = process.wait(EXIT_TIMEOUT)?;
        ensure!(
            status.success(),
            "it ended badly ({status}): {}",
            process.last_words()
        );
    }
    Ok(())
}

/// `llvm-profdata` of the compiler in use: another version's cannot read its profiles.
fn profdata(host: &str) -> Result<PathBuf> {
    let sysroot = answer(Command::new("rustc").args(["--print", "sysroot"]))?;
    let tool = Path::new(&sysroot)
        .join("lib/rustlib")
        .join(host)
        .join("bin/llvm-profdata");
    if !tool.exists() {
        run(Command::new("rustup").args(["component", "add", "llvm-tools"]))
            .context("LLVM's tools are needed")?;
    }
    ensure!(tool.exists(), "there is no {}", tool.display());
    Ok(tool)
}

fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().display().to_string();
    let status = command
        .status()
        .with_context(|| format!("cannot run {name}"))?;
    ensure!(status.success(), "{name} failed ({status})");
    Ok(())
}

fn answer(command: &mut Command) -> Result<String> {
    let name = command.get_program().display().to_string();
    let output = command
        .output()
        .with_context(|| format!("cannot run {name}"))?;
    ensure!(output.status.success(), "{name} failed ({})", output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
