//! Answers that the proxy makes itself: little in the body (RFC 9457), the request's id to find the rest in the log by.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};

use crate::fields::{HttpFields, Pseudo};
use crate::upstream::UpstreamFault;

/// Where the SDK and the runtime put a decision's id, too.
const X_POLICY_DECISION_ID: HeaderName = HeaderName::from_static("x-policy-decision-id");

/// An answer of the proxy.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    /// Its status.
    pub(crate) status: StatusCode,
    /// Says what the client may know.
    pub(crate) title: &'static str,
}

impl Problem {
    /// `title` is for the client: it names no host and no address.
    pub(crate) const fn new(status: StatusCode, title: &'static str) -> Self {
        Self { status, title }
    }

    /// Headers, and the body unless it answers a HEAD.
    pub(crate) fn write(&self, id: &HeaderValue, method: &Method) -> (HttpFields, Bytes) {
        let body = format!(
            r#"{{"type":"about:blank","title":"{}","status":{},"decision_id":"{}"}}"#,
            self.title,
            self.status.as_u16(),
            id.to_str().unwrap_or_default(),
        );
        let mut headers = HeaderMap::with_capacity(12);
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(X_POLICY_DECISION_ID, id.clone());
        let fields = HttpFields {
            pseudo: Pseudo::Response {
                status: self.status,
            },
            headers,
        };
        let body = if *method == Method::HEAD {
            Bytes::new()
        } else {
            Bytes::from(body)
        };
        (fields, body)
    }
}

impl From<UpstreamFault> for Problem {
    fn from(fault: UpstreamFault) -> Self {
        match fault {
            UpstreamFault::NoAddress | UpstreamFault::Connect => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "upstream unavailable")
            }
            UpstreamFault::Closed | UpstreamFault::Protocol => {
                Self::new(StatusCode::BAD_GATEWAY, "bad answer from upstream")
            }
            UpstreamFault::Timeout => Self::new(StatusCode::GATEWAY_TIMEOUT, "upstream timed out"),
            UpstreamFault::Request => Self::new(StatusCode::BAD_REQUEST, "bad request body"),
        }
    }
}
