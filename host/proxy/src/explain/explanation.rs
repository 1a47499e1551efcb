//! The explanation as data: `--format json` prints it as it is, `text` renders it.

use serde::Serialize;

use super::{Question, Transport};
use crate::policy::Listener;

/// What happened to a request.
#[derive(Debug, Serialize)]
pub(crate) struct Explanation {
    /// What was asked.
    pub(crate) request: Asked,
    /// What plugins did before the request came; those that did nothing worth telling are left out.
    pub(crate) start: Vec<Started>,
    /// What the proxy itself makes of the request before a filter sees it.
    pub(crate) head: Vec<Change>,
    /// Absent where the request was refused before, or no route takes it.
    pub(crate) route: Option<Taken>,
    /// Every filter's part, in order of time.
    pub(crate) steps: Vec<Step>,
    /// What went upstream, if the request got that far.
    pub(crate) upstream: Option<Sent>,
    /// How it ended.
    pub(crate) outcome: Outcome,
    /// What was taken for granted, and what could not be done here.
    pub(crate) notes: Vec<String>,
}

/// The request and what it came over.
#[derive(Debug, Serialize)]
pub(crate) struct Asked {
    /// The request line.
    pub(crate) line: String,
    /// The listener's name.
    pub(crate) listener: String,
    /// `file:line` of the listener.
    pub(crate) place: String,
    /// `TLSv1.3`; absent for plaintext.
    pub(crate) tls: Option<&'static str>,
    /// Who asks.
    pub(crate) source: String,
    /// Bytes.
    pub(crate) body: usize,
}

/// What one plugin did when it was started.
#[derive(Debug, Serialize)]
pub(crate) struct Started {
    /// The plugin: a filter's name, or `FILTER@ROUTE`.
    pub(crate) filter: String,
    #[serde(flatten)]
    pub(crate) said: Said,
}

/// What a plugin told the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Said {
    /// Log lines, as `level: text`.
    pub(crate) log: Vec<String>,
    /// Callouts it asked for.
    pub(crate) callouts: Vec<String>,
}

impl Said {
    pub(crate) fn is_nothing(&self) -> bool {
        self.log.is_empty() && self.callouts.is_empty()
    }
}

/// One field put on or taken off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Change {
    /// Whether it came or went.
    pub(crate) change: ChangeKind,
    /// Lower case; `:path` and its like for pseudo-headers.
    pub(crate) name: String,
    /// Escaped where it is not text; the length only, where it is a credential.
    pub(crate) value: String,
}

/// Whether a field came or went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ChangeKind {
    Removed,
    Added,
}

/// The route that was taken, and why.
#[derive(Debug, Serialize)]
pub(crate) struct Taken {
    pub(crate) name: String,
    /// `file:line`.
    pub(crate) place: String,
    /// Why this one, in words.
    pub(crate) because: Vec<String>,
    pub(crate) cluster: String,
    /// Filters that are off here.
    pub(crate) off: Vec<String>,
}

/// A filter's part in one phase.
#[derive(Debug, Serialize)]
pub(crate) struct Step {
    pub(crate) phase: &'static str,
    /// From 1, in the order of requests.
    pub(crate) position: usize,
    pub(crate) filter: String,
    /// `file:line`.
    pub(crate) place: String,
    pub(crate) decision: Decision,
    /// What it changed of the headers that are on their way; of an answer it made, everything.
    pub(crate) changes: Vec<Change>,
    /// Bytes of the body that it was shown and that it left, in a body's phase.
    pub(crate) body: Option<(usize, usize)>,
    #[serde(flatten)]
    pub(crate) said: Said,
    /// Wall time of the callback, hostcalls included, on a VM that has served nothing yet.
    pub(crate) microseconds: Option<f64>,
}

/// What a filter made of what it was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Decision {
    Continue,
    Pause,
    /// It had paused, and lets go on.
    Resume,
    Respond,
    Reset,
    Broke,
    /// It has no callback for this.
    NotConcerned,
    /// The request or the answer did not get to it.
    NotReached,
}

/// What goes to the upstream.
#[derive(Debug, Serialize)]
pub(crate) struct Sent {
    pub(crate) cluster: String,
    /// Any of these.
    pub(crate) endpoints: Vec<String>,
    pub(crate) line: String,
    pub(crate) headers: Vec<(String, String)>,
    /// As text, escaped where it is none.
    pub(crate) body: String,
}

/// How it ended.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// The client gets this.
    Answer {
        /// `the upstream`, `filter NAME`, `the proxy`.
        by: String,
        status: u16,
        headers: Vec<(String, String)>,
        body: String,
    },
    /// A filter holds it and waits for what cannot come here.
    Held { filter: String, waits_for: String },
    /// The connection or the stream is reset.
    Reset { by: String },
    /// There was no request: the connection was not let in, or what was sent is not HTTP.
    NoRequest { reason: String },
}

impl Explanation {
    pub(super) fn new(question: &Question, listener: &Listener) -> Self {
        let version = match question.version {
            http::Version::HTTP_10 => "HTTP/1.0",
            http::Version::HTTP_2 => "HTTP/2",
            _ => "HTTP/1.1",
        };
        let tls = match (question.transport, &listener.tls) {
            (Some(Transport::Tls(version)), _) => Some(version.as_str()),
            (None, Some(_)) => Some(portcullis_runtime::TlsVersion::V1_3.as_str()),
            _ => None,
        };
        Self {
            request: Asked {
                line: format!("{} {} {version}", question.method, question.target),
                listener: listener.name.clone(),
                place: place(&listener.place),
                tls,
                source: question.source.ip().to_string(),
                body: question.body.len(),
            },
            start: Vec::new(),
            head: Vec::new(),
            route: None,
            steps: Vec::new(),
            upstream: None,
            outcome: Outcome::Reset {
                by: "the proxy".into(),
            },
            notes: Vec::new(),
        }
    }
}

/// `file:line`.
pub(super) fn place(place: &crate::policy::Place) -> String {
    format!("{}:{}", place.file.display(), place.line)
}
