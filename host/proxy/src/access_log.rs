//! The access log: one JSON line a request, off unless the policy turns it on.
//!
//! No query, no header and no cookie is written: they may hold secrets. Lines go to a thread of their own through a bounded queue; when that
//! is full they are dropped and counted, so that a slow disk stops no request.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::Duration;

use http::uri::PathAndQuery;
use rustix::fs::{Mode, OFlags};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::connection::Connection;
use crate::edition::RouteState;
use crate::limits::ACCESS_LOG_LINES_MAX;
use crate::policy;
use crate::stream::Record;

/// Where lines are handed in. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct AccessLog {
    lines: SyncSender<Vec<u8>>,
    dropped: Arc<AtomicU64>,
    policy: policy::AccessLog,
    /// Device and number of the file.
    inode: Option<(u64, u64)>,
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    request_id: &'a str,
    client: std::net::IpAddr,
    method: &'a str,
    path: &'a str,
    protocol: &'static str,
    tls_version: Option<&'static str>,
    status: u16,
    flags: String,
    duration_us: u64,
    request_bytes: u64,
    response_bytes: u64,
    route: &'a str,
    cluster: &'a str,
    upstream: Option<std::net::SocketAddr>,
}

impl AccessLog {
    /// Opens it; `None` where it is off. An `earlier` one that writes to the same place goes on, unless its file was moved away since.
    ///
    /// # Errors
    ///
    /// The file cannot be opened for appending; the reason names it.
    pub(crate) fn open(
        policy: &policy::AccessLog,
        earlier: Option<&Self>,
    ) -> Result<Option<Self>, String> {
        if let Some(earlier) = earlier.filter(|it| it.policy == *policy && it.is_in_place()) {
            return Ok(Some(earlier.clone()));
        }
        let mut inode = None;
        let out: Box<dyn Write + Send> = match policy {
            policy::AccessLog::Off => return Ok(None),
            policy::AccessLog::Stdout => Box::new(io::stdout()),
            policy::AccessLog::File(path) => {
                let file = append_to(path)
                    .map_err(|error| format!("cannot append to {}: {error}", path.display()))?;
                inode = file.metadata().ok().map(|it| (it.dev(), it.ino()));
                Box::new(file)
            }
        };
        let (lines, queue) = sync_channel(ACCESS_LOG_LINES_MAX);
        std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write_all(out, &queue))
            .map_err(|error| format!("no thread for the access log: {error}"))?;
        let dropped = earlier
            .map(|it| Arc::clone(&it.dropped))
            .unwrap_or_default();
        Ok(Some(Self {
            lines,
            dropped,
            policy: policy.clone(),
            inode,
        }))
    }

    /// Whether its file is still the one of its name: not after a rotation.
    fn is_in_place(&self) -> bool {
        match &self.policy {
            policy::AccessLog::File(path) => {
                let found = std::fs::metadata(path).map(|it| (it.dev(), it.ino()));
                found.ok() == self.inode
            }
            policy::AccessLog::Off | policy::AccessLog::Stdout => true,
        }
    }

    /// Lines dropped because the writer did not keep up.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Writes one request down.
    pub(crate) fn write(
        &self,
        record: &Record,
        duration: Duration,
        connection: &Connection,
        route: &RouteState,
    ) {
        let begun = OffsetDateTime::from_unix_timestamp_nanos(i128::from(record.begun_unix_ns))
            .unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let line = Line {
            time: begun.format(&Rfc3339).unwrap_or_default(),
            request_id: record.id.to_str().unwrap_or_default(),
            client: connection.info.source.ip(),
            method: record.method.as_str(),
            path: record.path.as_ref().map_or("", PathAndQuery::path),
            protocol: record.protocol.as_str(),
            tls_version: connection.info.tls.as_ref().map(|tls| tls.version.as_str()),
            status: record.status,
            flags: record.flags.to_names(),
            duration_us: u64::try_from(duration.as_micros()).unwrap_or(u64::MAX),
            request_bytes: record.request_size,
            response_bytes: record.response_size,
            route: &route.info.name,
            cluster: &route.info.cluster,
            upstream: record.upstream,
        };
        let mut bytes = serde_json::to_vec(&line).unwrap_or_default();
        bytes.push(b'\n');
        if self.lines.try_send(bytes).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Opens without waiting: a FIFO that nobody reads would hold us until somebody does, so it is refused.
fn append_to(path: &Path) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC;
    let waitless = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = rustix::fs::open(path, waitless, Mode::from_raw_mode(0o666))?;
    // The log has a thread of its own, which may wait for its reader.
    rustix::fs::fcntl_setfl(&file, OFlags::APPEND)?;
    Ok(file.into())
}

/// Until the last sender is gone. Flushes whenever there is nothing to write.
fn write_all(out: Box<dyn Write + Send>, queue: &Receiver<Vec<u8>>) {
    let mut out = BufWriter::with_capacity(64 * 1024, out);
    let mut failed = false;
    loop {
        let line = match queue.try_recv() {
            Ok(line) => Some(line),
            Err(TryRecvError::Disconnected) => None,
            Err(TryRecvError::Empty) => {
                out.flush().ok();
                queue.recv().ok()
            }
        };
        let Some(line) = line else { break };
        if let Err(error) = out.write_all(&line)
            && !failed
        {
            failed = true;
            tracing::error!(%error, "access log cannot be written");
        }
    }
    out.flush().ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_without_a_reader_is_refused_without_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        let error = AccessLog::open(&policy::AccessLog::File(path.clone()), None).unwrap_err();
        let expected = format!("cannot append to {}: ", path.display());
        assert!(error.starts_with(&expected), "{error}");
        // With a reader it is a log like any other.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let _reader = rustix::fs::open(&path, flags, Mode::empty()).unwrap();
        assert!(AccessLog::open(&policy::AccessLog::File(path), None).is_ok());
    }

    #[test]
    fn a_file_that_was_moved_away_is_opened_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let to_file = policy::AccessLog::File(path.clone());
        let open = |policy, earlier: Option<&AccessLog>| AccessLog::open(policy, earlier).unwrap();
        let first = open(&to_file, None).unwrap();
        first.dropped.store(3, Ordering::Relaxed);
        let same = open(&to_file, Some(&first)).unwrap();
        assert_eq!(same.inode, first.inode);
        std::fs::rename(&path, folder.path().join("log.1")).unwrap();
        let next = open(&to_file, Some(&same)).unwrap();
        assert_ne!(next.inode, first.inode);
        assert_eq!(next.dropped(), 3, "counted on");
        assert!(open(&policy::AccessLog::Off, Some(&next)).is_none());
        assert_eq!(
            open(&policy::AccessLog::Stdout, Some(&next)).unwrap().inode,
            None
        );
    }
}
