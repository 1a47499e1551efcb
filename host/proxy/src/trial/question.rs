//! A case's words as HTTP: what is asked, and what upstreams answer.

use std::cell::Cell;
use std::net::SocketAddr;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderName, HeaderValue, Method, StatusCode, Uri, Version};
use portcullis_cases::{Case, Step, TlsVersion as Spoken, Value};
use portcullis_runtime::TlsVersion;

use super::exchange::Miss;
use super::scene::Listener;
use crate::explain::{GrpcAnswer, Prepared, Question, Said, Transport, UpstreamAnswer};

/// What each step of a case asks.
pub(super) fn questions(case: &Case) -> Result<Vec<Question>, Miss> {
    case.steps.iter().map(question).collect()
}

fn question(step: &Step) -> Result<Question, Miss> {
    let spec = &step.request;
    let (listener, transport) = match spec.tls.0 {
        None => (Listener::Plain, Transport::Plaintext),
        Some(Spoken::Tls13) => (Listener::Tls, Transport::Tls(TlsVersion::V1_3)),
        Some(Spoken::Tls12) => (Listener::Tls, Transport::Tls(TlsVersion::V1_2)),
        Some(older) => {
            let older = older.as_str();
            return Err(Miss::NotRun(format!(
                "the TLS library here, rustls, does not know {older}"
            )));
        }
    };
    let version = match spec.protocol.as_str() {
        "HTTP/2" => Version::HTTP_2,
        _ => Version::HTTP_11,
    };
    // HTTP/2 has the authority in its pseudo-headers, which hyper puts into the target.
    let target: Result<Uri, _> = match (version, spec.tls.0) {
        (Version::HTTP_2, Some(_)) => format!("https://{}{}", spec.authority, spec.path).parse(),
        (Version::HTTP_2, None) => format!("http://{}{}", spec.authority, spec.path).parse(),
        _ => spec.path.parse(),
    };
    let target = target.map_err(|_| unwritable("its path is no request target"))?;
    let method = Method::from_bytes(spec.method.as_bytes())
        .map_err(|_| unwritable("its method is no token"))?;
    let mut headers = Vec::new();
    if version != Version::HTTP_2 {
        let host = HeaderValue::from_str(&spec.authority);
        let host = host.map_err(|_| unwritable("its authority is no value of a header"))?;
        headers.push((HOST, host));
    }
    headers.extend(pairs(&spec.headers)?);
    Ok(Question {
        method,
        target,
        version,
        headers,
        body: spec.body.clone().into(),
        listener: Some(listener.name().to_owned()),
        transport: Some(transport),
        certificate: None,
        source: SocketAddr::new(spec.source, 40_000),
        properties: step.properties.clone().into_iter().collect(),
        upstream: UpstreamAnswer {
            status: status(step.upstream.status)?,
            headers: pairs(&step.upstream.headers)?.into_iter().collect(),
            body: step.upstream.body.clone().into(),
        },
        callouts: Vec::new(),
        credentials: true,
    })
}

/// What clusters answer, in the case's order.
pub(super) fn answers(case: &Case) -> Result<Vec<Prepared>, Miss> {
    let prepared = case.callouts.iter().map(|callout| {
        let body = callout.body.as_ref().map(bytes).transpose()?;
        let body = body.unwrap_or_default().into();
        let answer = match callout.grpc_status {
            Some(status) => Said::Grpc(GrpcAnswer {
                status,
                message: callout.grpc_message.clone(),
                body,
            }),
            None => Said::Http(UpstreamAnswer {
                status: status(callout.status)?,
                headers: pairs(&callout.headers)?.into_iter().collect(),
                body,
            }),
        };
        Ok(Prepared {
            cluster: callout.cluster.clone(),
            path: callout.path.clone().map(Bytes::from),
            answer,
        })
    });
    prepared.collect()
}

/// What a parser refuses before there is a request cannot be asked by way of one that is parsed.
fn unwritable(reason: &str) -> Miss {
    Miss::NotRun(format!("only raw bytes on a socket can say it: {reason}"))
}

fn status(code: u16) -> Result<StatusCode, Miss> {
    let status = StatusCode::from_u16(code);
    status.map_err(|_| unwritable(&format!("{code} is no status")))
}

fn pairs(headers: &[(String, Value)]) -> Result<Vec<(HeaderName, HeaderValue)>, Miss> {
    let made = headers.iter().map(|(name, value)| {
        let unfit = || unwritable(&format!("{name:?} and its value are no header"));
        let value = HeaderValue::from_bytes(&bytes(value)?).map_err(|_| unfit())?;
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| unfit())?;
        Ok((name, value))
    });
    made.collect()
}

/// A value as bytes. Those that the control's own tests make cannot be made here.
fn bytes(value: &Value) -> Result<Vec<u8>, Miss> {
    let is_unknown = Cell::new(false);
    let made = value.bytes(SystemTime::now(), &|name, _, _| {
        is_unknown.set(true);
        Err(format!(
            "only the crate's own tests can make its {name:?} value (`check_with`)"
        ))
    });
    made.map_err(|reason| match is_unknown.get() {
        true => Miss::NotRun(reason),
        false => Miss::Failed(reason),
    })
}
