//! A child process whose words are kept and which is killed when it is dropped.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How often a condition is looked at again.
const POLL: Duration = Duration::from_millis(5);

/// A running program; killed and reaped on drop.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; what it writes to standard output and standard error goes to the file `log`.
    ///
    /// # Errors
    /// When the log cannot be made or the program cannot be started.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let out = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stderr(out.try_clone().context("cannot share the log")?)
            .stdout(out)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Self {
            child,
            log: log.to_path_buf(),
        })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// All it has written so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(&self.log).map_or_else(
            |error| format!("(no log: {error})"),
            |bytes| String::from_utf8_lossy(&bytes).into_owned(),
        )
    }

    /// The last lines it has written, for an error message.
    #[must_use]
    pub fn last_words(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let from = lines.len().saturating_sub(40);
        lines.get(from..).unwrap_or_default().join("\n")
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let id = i32::try_from(self.child.id()).context("a process id beyond i32")?;
        let id = Pid::from_raw(id).context("process id 0")?;
        kill_process(id, signal).context("cannot send the signal")
    }

    /// Its exit status, if it has ended.
    ///
    /// # Errors
    /// When the kernel will not say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child
            .try_wait()
            .context("cannot ask for the exit status")
    }

    /// Waits until it ends.
    ///
    /// # Errors
    /// When it has not ended within `bound`.
    pub fn wait(&mut self, bound: Duration) -> Result<ExitStatus> {
        let mut status = None;
        until(bound, "the end of the process", || {
            status = self.ended()?;
            Ok(status.is_some())
        })
        .with_context(|| format!("its last words:\n{}", self.last_words()))?;
        status.context("no exit status")
    }

    /// Its resident memory in bytes, now.
    ///
    /// # Errors
    /// When it is gone.
    pub fn resident_bytes(&self) -> Result<u64> {
        self.status_bytes("VmRSS:")
    }

    /// The most resident memory that it ever had, in bytes.
    ///
    /// # Errors
    /// When it is gone.
    pub fn resident_bytes_max(&self) -> Result<u64> {
        self.status_bytes("VmHWM:")
    }

    fn status_bytes(&self, field: &str) -> Result<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let kib: u64 = status
            .lines()
            .find_map(|line| line.strip_prefix(field))
            .and_then(|rest| rest.split_whitespace().next())
            .with_context(|| format!("{path} has no {field}"))?
            .parse()
            .with_context(|| format!("{field} is no number"))?;
        Ok(kib * 1024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it is gone already, which is what is wanted.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Polls until `condition` holds.
///
/// # Errors
/// The condition's own, and when it does not hold within `bound`; `what` names it.
pub fn until(
    bound: Duration,
    what: &str,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let start = Instant::now();
    while !condition()? {
        if start.elapsed() > bound {
            bail!("waited {bound:?} in vain for {what}");
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}
