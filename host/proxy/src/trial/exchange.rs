//! What came of the exchanges of a case, wherever they ran, compared with what was expected.

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderMap, Request, Response};
use portcullis_cases::{Case, Fields, Outcome, RequestSpec, TlsVersion, UpstreamSeen};

use super::report::{Failure, Verdict};
use crate::policy::Problem;

/// An exchange that was tried.
pub(super) struct Tried {
    pub(super) outcome: Result<Outcome, Miss>,
    /// What the plugin logged and called meanwhile.
    pub(super) log: Vec<String>,
}

/// Why there is nothing to compare.
#[derive(Debug)]
pub(crate) enum Miss {
    /// It did not come to an end as a case can expect one.
    Failed(String),
    /// It cannot be tried here.
    NotRun(String),
}

impl Miss {
    /// The control does not start with the case's configuration.
    pub(super) fn refused(problems: &[Problem]) -> Self {
        let lines = problems.iter().map(|problem| {
            // The policy is made here: what the case's author has of it is the filter.
            let key = &problem.place.key;
            let key = key.strip_prefix("filters[0].").unwrap_or(key);
            format!("{key}: {}", problem.reason)
        });
        Self::Failed(lines.collect::<Vec<_>>().join("\n"))
    }
}

impl From<Miss> for Verdict {
    fn from(miss: Miss) -> Self {
        match miss {
            Miss::Failed(reason) => Self::Fails(Failure::default().because(reason)),
            Miss::NotRun(reason) => Self::NotRun { reason },
        }
    }
}

/// Tries every exchange of a case, by the index of its step; the first that is not as expected ends it. `log` is what the plugin said before.
pub(super) fn compare(
    case: &Case,
    mut log: Vec<String>,
    mut exchange: impl FnMut(usize) -> Tried,
) -> Verdict {
    for (index, step) in case.steps.iter().enumerate() {
        for round in 1..=step.repeat {
            let tried = exchange(index);
            log.extend(tried.log);
            let failure = Failure {
                step: index + 1,
                round,
                request: request_line(&step.request),
                log: std::mem::take(&mut log),
                ..Failure::default()
            };
            let outcome = match tried.outcome {
                Ok(outcome) => outcome,
                Err(Miss::Failed(reason)) => return Verdict::Fails(failure.because(reason)),
                Err(miss) => return miss.into(),
            };
            let mismatches = step.expect.check(&outcome);
            if !mismatches.is_empty() {
                return Verdict::Fails(Failure {
                    mismatches,
                    ..failure
                });
            }
        }
    }
    Verdict::Holds
}

fn request_line(spec: &RequestSpec) -> String {
    let over = spec.tls.0.map_or("plaintext", TlsVersion::as_str);
    format!("{} {} over {over}", spec.method, spec.path)
}

/// What came, in a case's words. Without an answer the exchange was reset, and its status is 0.
pub(super) fn outcome(
    answer: Option<Response<Bytes>>,
    upstream: Option<Request<Bytes>>,
) -> Outcome {
    let upstream = upstream.map(seen);
    let Some(answer) = answer else {
        return Outcome {
            upstream,
            ..Outcome::default()
        };
    };
    let (head, body) = answer.into_parts();
    Outcome {
        status: head.status.as_u16(),
        headers: fields(&head.headers),
        body: body.to_vec(),
        upstream,
    }
}

fn seen(request: Request<Bytes>) -> UpstreamSeen {
    let (head, body) = request.into_parts();
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut headers: Fields = vec![
        (b":method".to_vec(), head.method.as_str().into()),
        (b":path".to_vec(), path.into()),
    ];
    if let Some(host) = head.headers.get(HOST) {
        headers.push((b":authority".to_vec(), host.as_bytes().to_vec()));
    }
    headers.extend(fields(&head.headers));
    UpstreamSeen {
        headers,
        body: body.to_vec(),
    }
}

fn fields(headers: &HeaderMap) -> Fields {
    let pairs = headers.iter();
    pairs
        .map(|(name, value)| (name.as_str().into(), value.as_bytes().to_vec()))
        .collect()
}
