//! The connection that a request is taken to come over: what its listener would let in, and the facts that filters read of it.

use std::rc::Rc;

use http::header;
use portcullis_runtime::{ConnectionInfo, TlsVersion};

use super::{ExplainError, Question, Transport};
use crate::fields::Scheme;
use crate::head::host_of;
use crate::policy::{Listener, Policy, TlsVersion as Floor};
use crate::tls::ServerTls;

/// A connection that was let in.
pub(crate) struct Opened {
    /// For properties.
    pub(crate) info: Rc<ConnectionInfo>,
    /// By the connection.
    pub(crate) scheme: Scheme,
}

/// The listener that the question names, or the one that clients are likeliest to come in by.
pub(super) fn listener<'p>(
    policy: &'p Policy,
    question: &Question,
) -> Result<&'p Listener, ExplainError> {
    let wrong = |text: String| Err(ExplainError::Question(text));
    let http = || policy.listeners.iter().filter(|it| it.tcp.is_none());
    let Some(name) = &question.listener else {
        let first = http().find(|it| it.tls.is_some()).or_else(|| http().next());
        return first.map_or_else(|| wrong("the policy has no listener for HTTP".into()), Ok);
    };
    match policy.listeners.iter().find(|it| it.name == *name) {
        Some(it) if it.tcp.is_some() => wrong(format!(
            "--listener: `{name}` passes TCP connections on, it has no requests"
        )),
        Some(it) => Ok(it),
        None => {
            let names: Vec<_> = http().map(|it| it.name.as_str()).collect();
            wrong(format!(
                "--listener: there is no listener `{name}`, there are: {}",
                names.join(", ")
            ))
        }
    }
}

/// The connection, or why the listener would not take it.
pub(super) fn open(
    listener: &Listener,
    question: &Question,
) -> Result<Result<Opened, String>, ExplainError> {
    let mut info = ConnectionInfo::new(1, question.source, listener.address);
    let Some(tls) = &listener.tls else {
        return Ok(match question.transport {
            Some(Transport::Tls(_)) => Err(format!(
                "listener `{}` is plaintext: a TLS handshake is not HTTP, and the connection is closed",
                listener.name
            )),
            _ => Ok(Opened {
                info: Rc::new(info),
                scheme: Scheme::Http,
            }),
        });
    };
    let version = match question.transport {
        None => TlsVersion::V1_3,
        Some(Transport::Tls(version)) => version,
        Some(Transport::Plaintext) => {
            return Ok(Err(format!(
                "listener `{}` takes TLS only: plaintext HTTP is no handshake, and the connection is closed",
                listener.name
            )));
        }
    };
    if version < TlsVersion::V1_3 && tls.minimum_version == Floor::Tls13 {
        return Ok(Err(format!(
            "listener `{}` asks for TLS 1.3 (`tls.minimum_version`): the handshake fails",
            listener.name
        )));
    }
    if tls.require_client_certificate && question.certificate.is_none() {
        return Ok(Err(format!(
            "listener `{}` asks for a client certificate (--client-certificate): the handshake fails",
            listener.name
        )));
    }
    let server = ServerTls::new(tls, &[]).map_err(ExplainError::Question)?;
    let named = question
        .headers
        .iter()
        .find(|(name, _)| *name == header::HOST);
    let host = match (question.target.host(), named) {
        (Some(host), _) => Some(host.to_ascii_lowercase()),
        (None, Some((_, value))) => Some(host_of(value).into_owned()),
        (None, None) => None,
    };
    // RFC 6066 §3: an address is not a server's name.
    let name =
        host.filter(|host| host.parse::<std::net::IpAddr>().is_err() && !host.starts_with('['));
    // Without `client_ca` the client is not asked for one.
    let shown = question
        .certificate
        .as_ref()
        .filter(|_| tls.client_ca.is_some());
    info.tls = Some(server.facts_of(version, name.as_deref(), shown));
    Ok(Ok(Opened {
        info: Rc::new(info),
        scheme: Scheme::Https,
    }))
}
