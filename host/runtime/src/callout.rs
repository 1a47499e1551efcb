//! Callouts, and HTTP callouts in particular: what a plugin asks of a named cluster, and what comes back.

use std::{cell::Cell, rc::Rc, time::Duration};

use bytes::Bytes;

use crate::{
    abi::Status,
    fields::{FieldList, Fields as _},
};

/// A callout's id, as Envoy makes it: the low two bits tell its kind, the others count, each kind for itself (4, 8, 12 … for HTTP). They
/// count on when a VM is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CalloutId(pub u32);

impl CalloutId {
    /// What it is the id of.
    pub fn kind(self) -> CalloutKind {
        match self.0 & 3 {
            0 => CalloutKind::Http,
            1 => CalloutKind::GrpcCall,
            2 => CalloutKind::GrpcStream,
            _ => CalloutKind::Redis,
        }
    }
}

/// The kinds of callout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum CalloutKind {
    /// One HTTP request, one answer.
    Http = 0,
    /// One gRPC message each way.
    GrpcCall = 1,
    /// gRPC messages both ways.
    GrpcStream = 2,
    /// One Redis command, one reply.
    Redis = 3,
}

/// Where each kind's ids stand.
#[derive(Debug, Default)]
pub(crate) struct CalloutIds([Cell<u32>; 4]);

impl CalloutIds {
    /// The next one of a kind. Never below 4.
    pub(crate) fn next(&self, kind: CalloutKind) -> u32 {
        let first = kind as u32 + 4;
        let Some(last) = usize::try_from(kind as u32)
            .ok()
            .and_then(|kind| self.0.get(kind))
        else {
            return first;
        };
        let id = match last.get() {
            0 => first,
            last => last.checked_add(4).unwrap_or(first),
        };
        last.set(id);
        id
    }
}

/// How many callouts of a plugin are under way on one worker, whichever of its VMs made them.
#[derive(Debug, Default)]
pub(crate) struct InFlight(Rc<Cell<usize>>);

impl InFlight {
    /// A place for one more, if fewer than `most` are taken.
    pub(crate) fn enter(&self, most: usize) -> Option<Place> {
        let taken = self.0.get();
        (taken < most).then(|| {
            self.0.set(taken.saturating_add(1));
            Place(Rc::clone(&self.0))
        })
    }
}

/// A callout's place among those under way; given back when it is dropped, so that a VM that breaks holds none.
#[derive(Debug)]
pub(crate) struct Place(Rc<Cell<usize>>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// A request to a cluster.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HttpCall {
    /// One of [`PluginSpec::clusters`](crate::PluginSpec::clusters).
    pub cluster: String,
    /// Checked; `:method`, `:path` and `:authority` are there.
    pub headers: FieldList,
    /// May be empty.
    pub body: Bytes,
    /// May be empty.
    pub trailers: FieldList,
    /// From start to the whole answer.
    pub timeout: Duration,
}

/// Why a callout was not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CalloutError {
    /// There is no such cluster.
    #[error("unknown cluster")]
    UnknownCluster,
    /// The embedder takes no more.
    #[error("too many callouts")]
    Overloaded,
}

impl From<CalloutError> for Status {
    fn from(error: CalloutError) -> Self {
        match error {
            CalloutError::UnknownCluster => Self::BadArgument,
            CalloutError::Overloaded => Self::InternalFailure,
        }
    }
}

/// What became of a callout.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum HttpCallResponse {
    /// The cluster answered.
    Answer {
        /// `:status` first.
        headers: FieldList,
        /// Whole.
        body: Bytes,
        /// May be empty.
        trailers: FieldList,
    },
    /// No whole answer in time. The plugin sees Envoy's synthetic 504.
    Timeout,
    /// The connection broke. The plugin sees no headers, and status 11.
    Reset,
}

/// An answer while its callback runs.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) headers: FieldList,
    pub(crate) body: Bytes,
    pub(crate) trailers: FieldList,
    /// What `proxy_get_status` tells of a failure; an answer says nothing of its own.
    pub(crate) failure: Option<(Status, &'static str)>,
}

impl From<HttpCallResponse> for Answer {
    fn from(response: HttpCallResponse) -> Self {
        match response {
            HttpCallResponse::Answer {
                headers,
                body,
                trailers,
            } => Self {
                headers,
                body,
                trailers,
                failure: None,
            },
            HttpCallResponse::Timeout => {
                let body = Bytes::from_static(b"upstream request timeout");
                let mut headers = FieldList::new();
                headers.push(":status", "504");
                headers.push("content-length", "24");
                headers.push("content-type", "text/plain");
                Self {
                    headers,
                    body,
                    trailers: FieldList::new(),
                    failure: None,
                }
            }
            HttpCallResponse::Reset => Self {
                failure: Some((Status::BrokenConnection, "reset")),
                ..Self::default()
            },
        }
    }
}

/// Whether a callout can be sent with these headers. As in Envoy, `:authority` may be empty but must be there.
pub(crate) fn is_complete(headers: &FieldList) -> bool {
    [&b":method"[..], b":path", b":authority"]
        .iter()
        .all(|name| headers.get(name).is_some())
}
