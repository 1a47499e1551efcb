//! The way to a registry through a proxy: `HTTPS_PROXY` (or `ALL_PROXY`) and `NO_PROXY`, in capitals or not, as curl and Go's programs read them.
//!
//! The proxy is asked for a tunnel (`CONNECT`, RFC 9110 §9.3.6), and TLS with the registry runs within it: the proxy sees a host's name and nothing else.
//! What is on this machine is never asked for through a proxy.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{HOST, PROXY_AUTHORIZATION};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::Empty;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use tokio_rustls::TlsConnector;

use crate::limits::RESPONSE_HEAD_BYTES_MAX;

use super::connection::{Duplex, dial, encrypt};
use super::url::{Scheme, Url, is_loopback};

/// Each is read in capitals first.
const VARIABLES: [&str; 4] = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];

/// Which proxy is for whom.
pub(super) struct Proxies {
    matcher: Arc<Matcher>,
}

impl Proxies {
    /// # Errors
    ///
    /// A variable names no proxy that is spoken to: to go without it would be another way than was asked for.
    pub(super) fn of_environment() -> Result<Self, String> {
        for variable in VARIABLES {
            let Some(value) = std::env::var_os(variable).filter(|it| !it.is_empty()) else {
                continue;
            };
            // It may have a password, so it is not repeated.
            is_spoken(value.to_str().unwrap_or_default())
                .then_some(())
                .ok_or_else(|| {
                    format!(
                        "{variable} is not http://[USER:PASSWORD@]HOST:PORT, nor that with https"
                    )
                })?;
        }
        Ok(Self {
            matcher: Arc::new(Matcher::from_env()),
        })
    }

    /// The proxy that leads there, if one does.
    pub(super) fn to(&self, url: &Url) -> Option<Intercept> {
        if url.scheme == Scheme::Http || is_loopback(&url.host) {
            return None;
        }
        self.matcher
            .intercept(&url.to_string().parse::<Uri>().ok()?)
    }
}

/// Whether it is the address of a proxy over HTTP, with or without TLS.
fn is_spoken(proxy: &str) -> bool {
    let matcher = Matcher::builder().https(proxy.to_owned()).build();
    let found = matcher.intercept(&Uri::from_static("https://registry.test/"));
    let scheme = found.as_ref().and_then(|found| found.uri().scheme_str());
    matches!(scheme, Some("http" | "https"))
}

/// A connection to there through a proxy.
pub(super) async fn tunnel(
    proxy: &Intercept,
    url: &Url,
    tls: &TlsConnector,
) -> Result<Box<dyn Duplex>, String> {
    let address = proxy.uri().authority().map_or("", |it| it.as_str());
    let named = |error: String| format!("the proxy {address}: {error}");
    let is_secure = proxy.uri().scheme_str() == Some("https");
    let host = proxy.uri().host().unwrap_or_default();
    let host = host.trim_matches(['[', ']']);
    let port = proxy.uri().port_u16();
    let port = port.unwrap_or(if is_secure { 443 } else { 80 });
    let stream = dial(host, port)
        .await
        .map_err(|error| named(error.to_string()))?;
    let stream: Box<dyn Duplex> = match is_secure {
        false => Box::new(stream),
        true => {
            let stream = encrypt(tls, host, stream).await;
            Box::new(stream.map_err(|error| named(error.to_string()))?)
        }
    };
    connect(stream, url, proxy.basic_auth())
        .await
        .map_err(named)
}

async fn connect(
    stream: Box<dyn Duplex>,
    url: &Url,
    authorization: Option<&HeaderValue>,
) -> Result<Box<dyn Duplex>, String> {
    let target = url.host_and_port();
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = Method::CONNECT;
    let uri = target.parse();
    *request.uri_mut() = uri.map_err(|_| format!("{target} is not a host and a port"))?;
    let host = HeaderValue::from_str(&target);
    let host = host.map_err(|_| format!("{target} is not a host and a port"))?;
    request.headers_mut().insert(HOST, host);
    if let Some(authorization) = authorization {
        let headers = request.headers_mut();
        headers.insert(PROXY_AUTHORIZATION, authorization.clone());
    }
    let mut builder = hyper::client::conn::http1::Builder::new();
    builder.max_buf_size(RESPONSE_HEAD_BYTES_MAX);
    let (mut sender, connection) = builder
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    tokio::spawn(connection.with_upgrades());
    let answer = sender.send_request(request).await;
    let answer = answer.map_err(|error| error.to_string())?;
    match answer.status() {
        status if status.is_success() => {}
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            return Err("407: it wants USER:PASSWORD@ in HTTPS_PROXY, or another".into());
        }
        status => return Err(format!("it answers {status} to CONNECT {target}")),
    }
    let upgraded = hyper::upgrade::on(answer).await;
    let upgraded = upgraded.map_err(|error| error.to_string())?;
    Ok(Box::new(TokioIo::new(upgraded)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_proxy_over_http_is_told_from_one_that_is() {
        for spoken in [
            "http://proxy.example.com:3128",
            "https://me:secret@proxy.example.com",
            "proxy:3128",
            "http://[2001:db8::1]:3128/",
        ] {
            assert!(is_spoken(spoken), "{spoken}");
        }
        for not in [
            "socks5://proxy:1080",
            "ftp://proxy",
            "http://",
            "a b",
            "/etc",
        ] {
            assert!(!is_spoken(not), "{not}");
        }
    }

    #[test]
    fn this_machine_is_never_behind_a_proxy() {
        let matcher = Matcher::builder()
            .all("http://proxy:3128")
            .no("internal.test,10.0.0.0/8")
            .build();
        let proxies = Proxies {
            matcher: Arc::new(matcher),
        };
        for (url, through) in [
            ("https://ghcr.io/v2/", true),
            ("https://[2001:db8::7]/v2/", true),
            ("https://registry.internal.test/v2/", false),
            ("https://10.1.2.3:5000/v2/", false),
            ("https://localhost:5000/v2/", false),
            ("https://127.0.0.1/v2/", false),
            ("https://[::1]/v2/", false),
            ("http://127.0.0.1:5000/v2/", false),
        ] {
            let url = Url::parse(url).expect(url);
            assert_eq!(proxies.to(&url).is_some(), through, "{url}");
        }
    }
}
