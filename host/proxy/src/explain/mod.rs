//! What a policy does with one request, and why, without a socket: the real plugins in the runtime's own chain, the request made canonical and routed by
//! the code that `serve` runs, and each filter's part written down.
//!
//! What cannot happen here is said, never passed over: callouts are not made (unless an answer to them is given beforehand), and whoever waits for one
//! holds the request; timers run once, as in a proxy that has just started; counters and shared data are empty. A control's cases run in the same way
//! ([`Stage::ask`]), exchange after exchange, and there timers run as time passes.

mod connection;
mod explanation;
mod phase;
mod prepared;
mod rehearsal;
mod report;
mod response;
mod run;
mod stage;
mod text;

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version};
use portcullis_runtime::{ModuleCache, Runtime, TlsVersion};
use rustls::pki_types::CertificateDer;

pub(crate) use explanation::{Explanation, Outcome};
pub(crate) use prepared::{Answers, GrpcAnswer, Prepared, Said};
pub(crate) use rehearsal::{Random, Time};
pub(crate) use stage::Stage;

use run::Traffic;

use crate::modules::Modules;
use crate::policy::{Policy, PolicyErrors};

/// What is asked.
#[derive(Debug)]
pub(crate) struct Question {
    /// As in the request line.
    pub(crate) method: Method,
    /// As in the request line: `/path?query`, or a whole URI.
    pub(crate) target: Uri,
    /// HTTP/1.0, 1.1 or 2.
    pub(crate) version: Version,
    /// As the client sends them.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// None where it is empty.
    pub(crate) body: Bytes,
    /// Which listener it comes in by; the first with TLS, else the first, if absent.
    pub(crate) listener: Option<String>,
    /// What the client speaks; what the listener asks for if absent.
    pub(crate) transport: Option<Transport>,
    /// What it shows in the handshake; taken as one that the listener's `client_ca` has signed.
    pub(crate) certificate: Option<CertificateDer<'static>>,
    /// Who asks.
    pub(crate) source: SocketAddr,
    /// What an earlier filter left, each under its one segment.
    pub(crate) properties: Vec<(String, String)>,
    /// What the upstream answers.
    pub(crate) upstream: UpstreamAnswer,
    /// What clusters answer to plugins.
    pub(crate) callouts: Vec<(String, UpstreamAnswer)>,
    /// Whether credentials are shown.
    pub(crate) credentials: bool,
}

/// What a client speaks below HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// No TLS.
    Plaintext,
    /// This version.
    Tls(TlsVersion),
}

/// An answer given beforehand.
#[derive(Clone, Debug)]
pub(crate) struct UpstreamAnswer {
    /// Its status.
    pub(crate) status: StatusCode,
    /// Its headers.
    pub(crate) headers: HeaderMap,
    /// Its body.
    pub(crate) body: Bytes,
}

/// Why there is no explanation.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExplainError {
    /// The policy does not work.
    #[error("{0}")]
    Policy(PolicyErrors),
    /// The question does not fit the policy.
    #[error("{0}")]
    Question(String),
}

/// Asks a policy.
///
/// # Errors
///
/// The policy's plugins do not load or start, or the question names what the policy does not have.
pub(crate) fn explain(
    policy: &Policy,
    runtime: Option<&Runtime>,
    cache: &dyn ModuleCache,
    question: &Question,
) -> Result<Explanation, ExplainError> {
    let nothing = Modules::default();
    let modules = match runtime {
        Some(runtime) => {
            let (modules, problems) = Modules::load(policy, runtime, cache, &nothing);
            if !problems.is_empty() {
                return Err(ExplainError::Policy(PolicyErrors(problems)));
            }
            modules
        }
        None => nothing,
    };
    for (cluster, _) in &question.callouts {
        if !policy.clusters.iter().any(|it| it.name == *cluster) {
            return Err(ExplainError::Question(format!(
                "--callout: there is no cluster `{cluster}`"
            )));
        }
    }
    let listener = connection::listener(policy, question)?;
    let mut explanation = Explanation::new(question, listener);
    let connection = match connection::open(listener, question)? {
        Ok(connection) => connection,
        Err(reason) => {
            explanation.outcome = explanation::Outcome::NoRequest { reason };
            return Ok(explanation);
        }
    };
    let answers = question.callouts.iter();
    let answers = answers.map(|(cluster, answer)| Prepared {
        cluster: cluster.clone(),
        path: None,
        answer: Said::Http(answer.clone()),
    });
    let stage = Stage::start(
        policy,
        &modules,
        Answers::new(answers.collect()),
        Time::Stands,
        Random::Drawn,
    )
    .map_err(ExplainError::Policy)?;
    stage.settle();
    explanation.start = stage.started();
    let (explanation, _) = run::Run::new(&stage, question, explanation, connection).ask();
    Ok(explanation)
}

impl Stage<'_> {
    /// Sends one request through plugins that stand already.
    ///
    /// # Errors
    ///
    /// The question names what the policy does not have.
    pub(crate) fn ask(&self, question: &Question) -> Result<(Explanation, Traffic), ExplainError> {
        let listener = connection::listener(self.policy, question)?;
        let mut explanation = Explanation::new(question, listener);
        match connection::open(listener, question)? {
            Ok(connection) => Ok(run::Run::new(self, question, explanation, connection).ask()),
            Err(reason) => {
                explanation.outcome = explanation::Outcome::NoRequest { reason };
                Ok((explanation, Traffic::default()))
            }
        }
    }
}
