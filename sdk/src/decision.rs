//! What a control concludes: [`Decision`], and the answer it may give by itself: [`LocalResponse`].

use crate::error::Error;
use crate::fields;
use crate::log::{push_json_string, push_number};

/// What a control concludes about an exchange.
///
/// ```
/// use portcullis_sdk::{Decision, LocalResponse};
///
/// fn decide(known: bool) -> Decision {
///     match known {
///         true => Decision::Continue,
///         false => LocalResponse::refuse(403, "unknown", "Forbidden").into(),
///     }
/// }
/// assert!(matches!(decide(true), Decision::Continue));
/// assert!(matches!(decide(false), Decision::Respond(_)));
/// ```
#[derive(Debug)]
#[must_use]
pub enum Decision {
    /// It may go on.
    Continue,
    /// It ends here, with this answer.
    Respond(LocalResponse),
}

impl From<LocalResponse> for Decision {
    fn from(response: LocalResponse) -> Self {
        Self::Respond(response)
    }
}

/// An answer that the control gives in the upstream's place: a refusal, a redirect, or an answer of its own.
///
/// ```
/// use portcullis_sdk::LocalResponse;
///
/// let refusal = LocalResponse::refuse(503, "queue_full", "Service Unavailable")
///     .header("retry-after", "5")
///     .member("queue", "orders");
/// let redirect = LocalResponse::redirect(308, b"https://example.test/".to_vec());
/// let answer = LocalResponse::answer(200, "pong").header("content-type", "text/plain");
/// # let _ = (refusal, redirect, answer);
/// ```
#[derive(Debug)]
#[must_use]
pub struct LocalResponse {
    pub(crate) status: u16,
    pub(crate) verdict: Verdict,
    headers: Vec<(&'static str, Vec<u8>)>,
    content: Content,
}

/// Why a control answers; it decides what is logged and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Neither logged nor counted.
    Answer,
    /// Logged, and counted as `redirected`.
    Redirect,
    /// Logged with its reason, and counted as `refused.<reason>`.
    Refuse(&'static str),
}

#[derive(Debug)]
enum Content {
    Bytes(Vec<u8>),
    /// `members` is `,"key":value` for each extra member.
    Problem {
        uri: &'static str,
        title: &'static str,
        members: String,
    },
}

impl LocalResponse {
    /// A refusal: an RFC 9457 problem, `{"type", "title", "status", "decision_id"}`. `reason` is a constant word for
    /// metric and log (`token_expired`); the body does not show it. The title is for people and gives nothing away.
    pub fn refuse(status: u16, reason: &'static str, title: &'static str) -> Self {
        let content = Content::Problem {
            uri: "about:blank",
            title,
            members: String::new(),
        };
        Self {
            status,
            verdict: Verdict::Refuse(reason),
            headers: Vec::new(),
            content,
        }
    }

    /// A redirect without a body.
    pub fn redirect(status: u16, location: Vec<u8>) -> Self {
        let headers = vec![("location", location)];
        Self {
            status,
            verdict: Verdict::Redirect,
            headers,
            content: Content::Bytes(Vec::new()),
        }
    }

    /// An answer that is no refusal, such as one to a preflight request; neither logged nor counted. Set the
    /// `content-type` of a body.
    pub fn answer(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            verdict: Verdict::Answer,
            headers: Vec::new(),
            content: Content::Bytes(body.into()),
        }
    }

    /// The problem's `type`, a URI; `about:blank` if not set. Only a refusal has one.
    ///
    /// ```
    /// use portcullis_sdk::prelude::*;
    ///
    /// fn too_large() -> Decision {
    ///     let refusal = LocalResponse::refuse(413, "too_large", "Content Too Large");
    ///     refusal.problem_type("https://example.org/problems/too-large").into()
    /// }
    /// assert!(matches!(too_large(), Decision::Respond(_)));
    /// ```
    pub fn problem_type(mut self, uri: &'static str) -> Self {
        if let Content::Problem { uri: set, .. } = &mut self.content {
            *set = uri;
        }
        self
    }

    /// One more member of the problem. Only a refusal has them.
    pub fn member(mut self, key: &'static str, value: impl Into<serde_json::Value>) -> Self {
        if let Content::Problem { members, .. } = &mut self.content {
            members.push(',');
            push_json_string(members, key);
            members.push(':');
            members.push_str(&value.into().to_string());
        }
        self
    }

    /// One more header. A value with CR, LF or NUL turns the answer into a bare 500.
    pub fn header(mut self, name: &'static str, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Status, headers in the pair encoding, and body, ready for the host.
    pub(crate) fn encode(&self, decision_id: &str) -> Result<(Vec<u8>, Vec<u8>), Error> {
        let mut body = Vec::new();
        let mut extra: [Option<(&str, &[u8])>; 2] = [None, None];
        match &self.content {
            Content::Bytes(bytes) => body.extend_from_slice(bytes),
            Content::Problem {
                uri,
                title,
                members,
            } => {
                let mut json = String::with_capacity(160 + members.len());
                json.push_str("{\"type\":");
                push_json_string(&mut json, uri);
                json.push_str(",\"title\":");
                push_json_string(&mut json, title);
                json.push_str(",\"status\":");
                push_number(&mut json, u64::from(self.status));
                json.push_str(",\"decision_id\":");
                push_json_string(&mut json, decision_id);
                json.push_str(members);
                json.push('}');
                body = json.into_bytes();
                extra[0] = Some(("content-type", b"application/problem+json"));
            }
        }
        if self.verdict != Verdict::Answer {
            extra[1] = Some(("x-policy-decision-id", decision_id.as_bytes()));
        }
        for (name, value) in &self.headers {
            fields::check_name(name)?;
            fields::check_value(value)?;
        }
        let own = self
            .headers
            .iter()
            .map(|(name, value)| (*name, value.as_slice()));
        let pairs = extra
            .into_iter()
            .flatten()
            .chain(own)
            .map(|(name, value)| (name.as_bytes(), value));
        Ok((fields::encode(pairs), body))
    }
}
