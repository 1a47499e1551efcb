//! HTTP callouts: what a plugin asks of a named cluster, and what comes back.

use std::time::Duration;

use bytes::Bytes;

use crate::{
    abi::Status,
    fields::{FieldList, Fields as _},
};

/// A callout's id: 4, 8, 12 … as in Envoy, whose low two bits tell the kind of callout. They count on when a VM is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CalloutId(pub u32);

/// A request to a cluster.
#[derive(Clone, Debug)]
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
    /// What `proxy_get_status` tells.
    pub(crate) status: (u32, &'static str),
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
                status: (0, ""),
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
                    status: (0, ""),
                }
            }
            HttpCallResponse::Reset => Self {
                status: (Status::BrokenConnection as u32, "reset"),
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
