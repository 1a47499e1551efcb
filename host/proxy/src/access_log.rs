//! The access log: one JSON line a request, off unless the policy turns it on.
//!
//! No query, no header and no cookie is written: they may hold secrets. Lines go to a thread of their own through a bounded queue; when that
//! is full they are dropped and counted, so that a slow disk stops no request.

use std::fs::File;
use std::io::{self, BufWriter, Write};
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
use crate::limits::ACCESS_LOG_LINES_MAX;
use crate::policy;
use crate::stream::Record;
use crate::worker::RouteState;

/// Where lines are handed in. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct AccessLog {
    lines: SyncSender<Vec<u8>>,
    dropped: Arc<AtomicU64>,
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
    /// Opens it; `None` where it is off.
    ///
    /// # Errors
    ///
    /// The file cannot be opened for appending; the reason names it.
    pub(crate) fn open(policy: &policy::AccessLog) -> Result<Option<Self>, String> {
        let out: Box<dyn Write + Send> = match policy {
            policy::AccessLog::Off => return Ok(None),
            policy::AccessLog::Stdout => Box::new(io::stdout()),
            policy::AccessLog::File(path) => Box::new(
                append_to(path)
                    .map_err(|error| format!("cannot append to {}: {error}", path.display()))?,
            ),
        };
        let (lines, queue) = sync_channel(ACCESS_LOG_LINES_MAX);
        std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write_all(out, &queue))
            .map_err(|error| format!("no thread for the access log: {error}"))?;
        let dropped = Arc::default();
        Ok(Some(Self { lines, dropped }))
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
        let error = AccessLog::open(&policy::AccessLog::File(path.clone())).unwrap_err();
        let expected = format!("cannot append to {}: ", path.display());
        assert!(error.starts_with(&expected), "{error}");
        // With a reader it is a log like any other.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let _reader = rustix::fs::open(&path, flags, Mode::empty()).unwrap();
        assert!(AccessLog::open(&policy::AccessLog::File(path)).is_ok());
    }
}
