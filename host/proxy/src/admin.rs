//! The admin listener, on loopback only: `/ready`, `/metrics`, `/policy`. It reads, and changes nothing.
//!
//! A browser on the same machine may be told to come here by a foreign page; a `Host` that is not loopback is refused (DNS rebinding).

use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::task::spawn_local;

use crate::acceptor::Bound;
use crate::figures::Figures;
use crate::limits::FIRST_REQUEST_TIMEOUT;
use crate::policy::{
    Cluster, DownstreamTls, FilterInstance, Policy, TlsVersion, TrustedCa, UpstreamProtocol,
};

/// What the admin listener shows.
#[derive(Debug)]
pub(crate) struct Admin {
    figures: Figures,
    ready: Arc<AtomicBool>,
    policy: Bytes,
}

impl Admin {
    /// Of a proxy that is ready as long as `ready` says so.
    pub(crate) fn new(figures: Figures, ready: Arc<AtomicBool>) -> Self {
        let policy = show(&figures.plan.policy);
        let policy = serde_json::to_vec_pretty(&policy)
            .unwrap_or_default()
            .into();
        Self {
            figures,
            ready,
            policy,
        }
    }

    /// Serves until it is dropped.
    pub(crate) async fn serve(self, bound: Bound) {
        let listener = match bound.into_tokio() {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "admin listener lost");
                return;
            }
        };
        let this = Rc::new(self);
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let this = Rc::clone(&this);
            spawn_local(async move {
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
            match request.uri().path() {
                "/ready" if self.ready.load(Ordering::Relaxed) => {
                    (StatusCode::OK, text, Bytes::from_static(b"ready\n"))
                }
                "/ready" => (
                    StatusCode::SERVICE_UNAVAILABLE,
                    text,
                    Bytes::from_static(b"draining\n"),
                ),
                "/metrics" => {
                    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                    (StatusCode::OK, kind, Bytes::from(self.figures.to_text()))
                }
                "/policy" => (StatusCode::OK, "application/json", self.policy.clone()),
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

/// The policy as it runs. Keys, tokens and whatever else a configuration names a secret are left out.
fn show(policy: &Policy) -> Value {
    let listeners = policy.listeners.iter().map(|listener| {
        json!({
            "name": listener.name,
            "address": listener.address,
            "tls": listener.tls.as_ref().map(show_tls),
        })
    });
    let routes = policy.routes.iter().map(|route| {
        json!({
            "name": route.name,
            "host": route.host.to_string(),
            "prefix": route.prefix.as_str(),
            "cluster": route.cluster.name,
            "filters": route.chain.iter().map(|instance| &instance.name).collect::<Vec<_>>(),
            "off": route.off.iter().map(|filter| &filter.name).collect::<Vec<_>>(),
        })
    });
    json!({
        "file": policy.file.display().to_string(),
        "listeners": listeners.collect::<Vec<_>>(),
        "clusters": policy.clusters.iter().map(|cluster| show_cluster(cluster)).collect::<Vec<_>>(),
        "filters": policy.instances.iter().map(|instance| show_instance(instance)).collect::<Vec<_>>(),
        "routes": routes.collect::<Vec<_>>(),
        "admin": policy.admin.as_ref().map(|admin| admin.address),
        "access_log": format!("{:?}", policy.access_log),
        "drain_timeout": seconds(policy.drain_timeout),
    })
}

fn show_tls(tls: &DownstreamTls) -> Value {
    json!({
        "certificate_chain": tls.certificate_chain_file,
        "minimum_version": match tls.minimum_version {
            TlsVersion::Tls12 => "1.2",
            TlsVersion::Tls13 => "1.3",
        },
        "client_ca": tls.client_ca.as_ref().map(|trusted| &trusted.file),
        "require_client_certificate": tls.require_client_certificate,
    })
}

fn show_cluster(cluster: &Cluster) -> Value {
    let tls = cluster.tls.as_ref().map(|tls| {
        let ca = match &tls.ca {
            TrustedCa::System => "system".to_owned(),
            TrustedCa::File(trusted) => trusted.file.display().to_string(),
        };
        json!({ "sni": tls.sni.as_ref(), "ca": ca })
    });
    json!({
        "name": cluster.name,
        "endpoints": cluster.endpoints.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "protocol": match cluster.protocol {
            UpstreamProtocol::Http1 => "http1",
            UpstreamProtocol::Http2 => "http2",
        },
        "connect_timeout": seconds(cluster.connect_timeout),
        "request_timeout": cluster.request_timeout.map(seconds),
        "idle_timeout": seconds(cluster.idle_timeout),
        "tls": tls,
    })
}

fn show_instance(instance: &FilterInstance) -> Value {
    let filter = &instance.filter;
    let mut configuration = instance.configuration.to_json();
    hide_secrets(&mut configuration);
    json!({
        "name": instance.name,
        "module": filter.module.source.to_string(),
        "sha256": filter.module.sha256,
        "failure_policy": format!("{:?}", filter.failure_policy).to_ascii_lowercase(),
        "clusters": filter.clusters.iter().map(|cluster| &cluster.name).collect::<Vec<_>>(),
        "configuration": configuration,
    })
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

/// Values under names that tell of a secret, the private members of a JWK (RFC 7517, RFC 7518 §6), credentials in URLs, and text that holds
/// a JWK or a private key in itself.
fn hide_secrets(value: &mut Value) {
    const NAMES: [&str; 10] = [
        "secret",
        "password",
        "passwd",
        "passphrase",
        "token",
        "private",
        "credential",
        "api_key",
        "apikey",
        "authorization",
    ];
    const JWK: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];
    match value {
        Value::Object(members) => {
            let is_jwk = members.contains_key("kty");
            for (name, value) in members {
                let lower = name.to_ascii_lowercase();
                let secret = NAMES.iter().any(|part| lower.contains(part))
                    && !value.is_boolean()
                    && !value.is_number();
                if secret || (is_jwk && JWK.contains(&name.as_str())) {
                    *value = Value::from("<hidden>");
                } else {
                    hide_secrets(value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(hide_secrets),
        Value::String(text) => {
            if text.contains("PRIVATE KEY") {
                *text = "<hidden>".into();
            } else if text.trim_start().starts_with(['{', '[']) {
                if let Ok(mut inner) = serde_json::from_str::<Value>(text) {
                    hide_secrets(&mut inner);
                    *text = inner.to_string();
                }
            } else if let Some((scheme, rest)) = text.split_once("://")
                && let Some((_, host)) = rest.split_once('@')
            {
                *text = format!("{scheme}://<hidden>@{host}");
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let rows = [
            (
                json!({"a": {"client_secret": "x", "b": [1]}}),
                json!({"a": {"client_secret": "<hidden>", "b": [1]}}),
            ),
            (
                json!({"Api_Key": ["x"], "token_cache": 5, "tokens": true}),
                json!({"Api_Key": "<hidden>", "token_cache": 5, "tokens": true}),
            ),
            (
                json!([{"kty": "oct", "k": "x", "kid": "1"}]),
                json!([{"kty": "oct", "k": "<hidden>", "kid": "1"}]),
            ),
            (json!({"d": "plain"}), json!({"d": "plain"})),
            (
                json!({"jwks": r#"{"keys":[{"kty":"oct","k":"x"}]}"#}),
                json!({"jwks": r#"{"keys":[{"k":"<hidden>","kty":"oct"}]}"#}),
            ),
            (json!("-----BEGIN EC PRIVATE KEY-----"), json!("<hidden>")),
            (
                json!("https://u:p@host/x"),
                json!("https://<hidden>@host/x"),
            ),
            (json!("https://host/x"), json!("https://host/x")),
        ];
        for (mut value, expected) in rows {
            hide_secrets(&mut value);
            assert_eq!(value, expected);
        }
    }

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
