//! The admin listener, on loopback only: `/ready`, `/metrics`, `/policy`. It reads, and changes nothing.
//!
//! A browser on the same machine may be told to come here by a foreign page; a `Host` that is not loopback is refused (DNS rebinding).

use std::convert::Infallible;
use std::rc::{Rc, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::task::JoinSet;

use crate::acceptor::Bound;
use crate::front::Front;
use crate::limits::FIRST_REQUEST_TIMEOUT;
use crate::policy::FailurePolicy;

/// What the admin listener shows.
pub(crate) struct Admin(Weak<Front>);

impl Admin {
    /// Of this front thread, for as long as it runs.
    pub(crate) fn new(front: Weak<Front>) -> Self {
        Self(front)
    }

    /// Serves until it is dropped, and its connections with it: a page that was taken out is not to answer any more.
    pub(crate) async fn serve(self, bound: Bound) {
        let listener = match bound.into_tokio() {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "admin listener lost");
                return;
            }
        };
        let this = Rc::new(self);
        let mut connections = JoinSet::new();
        loop {
            let accepted = listener.accept().await;
            while connections.try_join_next().is_some() {}
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let this = Rc::clone(&this);
            connections.spawn_local(async move {
                let service = service_fn(|request| {
                    std::future::ready(Ok::<_, Infallible>(this.answer(&request)))
                });
                let mut http = http1::Builder::new();
                http.timer(TokioTimer::new())
                    .header_read_timeout(FIRST_REQUEST_TIMEOUT);
                http.serve_connection(TokioIo::new(stream), service)
                    .await
                    .ok();
            });
        }
    }

    fn policy(front: &Front) -> Bytes {
        let mut policy = front.plan().policy.view();
        if let Some(keys) = policy.as_object_mut() {
            keys.insert("reload".into(), front.reloads.borrow().view());
            // As many as there are: a reload does not change that.
            keys.insert("workers".into(), front.workers.len().into());
        }
        serde_json::to_vec_pretty(&policy)
            .unwrap_or_default()
            .into()
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let text = "text/plain; charset=utf-8";
        let (status, kind, body) = if !is_for_loopback(request.headers()) {
            (
                StatusCode::FORBIDDEN,
                text,
                Bytes::from_static(b"host is not loopback\n"),
            )
        } else if !matches!(*request.method(), Method::GET | Method::HEAD) {
            (
                StatusCode::METHOD_NOT_ALLOWED,
                text,
                Bytes::from_static(b"only GET\n"),
            )
        } else {
            let front = self.0.upgrade();
            match (request.uri().path(), front) {
                ("/ready", Some(front)) => {
                    let (status, body) = readiness(&front);
                    (status, text, Bytes::from(body))
                }
                (_, None) => (
                    StatusCode::SERVICE_UNAVAILABLE,
                    text,
                    Bytes::from_static(b"draining\n"),
                ),
                ("/metrics", Some(front)) => {
                    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                    (StatusCode::OK, kind, Bytes::from(front.figures().to_text()))
                }
                ("/policy", Some(front)) => {
                    (StatusCode::OK, "application/json", Self::policy(&front))
                }
                _ => (
                    StatusCode::NOT_FOUND,
                    text,
                    Bytes::from_static(b"there are /ready, /metrics and /policy\n"),
                ),
            }
        };
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        );
        if status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }
}

/// Not ready while a plugin that requests cannot do without has no VM somewhere.
fn readiness(front: &Front) -> (StatusCode, String) {
    if !front.ready.get() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned());
    }
    let figures = front.figures();
    let instances = &figures.plan.policy.instances;
    let mut lines = String::new();
    let mut status = StatusCode::OK;
    for (plugin, workers) in figures.waiting() {
        let passes = instances.iter().any(|instance| {
            instance.name == plugin && instance.filter.failure_policy == FailurePolicy::Open
        });
        let meanwhile = if passes {
            "requests pass it"
        } else {
            status = StatusCode::SERVICE_UNAVAILABLE;
            "requests are refused"
        };
        lines.push_str(&format!(
            "plugin {plugin} does not start on {workers} of {} workers: {meanwhile}\n",
            figures.workers.len()
        ));
    }
    let word = if status == StatusCode::OK {
        "ready\n"
    } else {
        "not ready\n"
    };
    (status, format!("{word}{lines}"))
}

fn is_for_loopback(headers: &HeaderMap) -> bool {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or_default();
    let name = host
        .rsplit_once(':')
        .filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()))
        .map_or(host, |(name, _)| name);
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || address
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_hosts_are_answered() {
        let rows = [
            ("127.0.0.1:9901", true),
            ("localhost", true),
            ("LOCALHOST:1", true),
            ("[::1]:9901", true),
            ("127.9.9.9", true),
            ("evil.example:9901", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example:80", false),
            ("", false),
        ];
        for (host, expected) in rows {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static(host));
            assert_eq!(is_for_loopback(&headers), expected, "{host}");
        }
        assert!(!is_for_loopback(&HeaderMap::new()));
    }
}
