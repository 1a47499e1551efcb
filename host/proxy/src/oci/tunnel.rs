//! The way to a registry through a proxy: `HTTPS_PROXY` (or `ALL_PROXY`) and `NO_PROXY`, in capitals or not, as curl and Go's programs read them.
//!
//! The proxy is asked for a tunnel (`CONNECT`, RFC 9110 §9.3.6), and TLS with the registry runs within it: the proxy sees a host's name and nothing else.
//! What is on this machine is never asked for through a proxy.

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

/// Which proxy is for whom.
pub(super) struct Proxies {
    /// The variable that names one, and what it says.
    proxy: Option<(&'static str, String)>,
    /// Who is reached without it.
    exceptions: String,
}

impl Proxies {
    pub(super) fn of_environment() -> Self {
        let first = |names: &[&'static str]| {
            let mut set = names.iter().filter_map(|name| {
                let value = std::env::var_os(name).filter(|it| !it.is_empty())?;
                Some((*name, value.to_string_lossy().into_owned()))
            });
            set.next()
        };
        Self {
            proxy: first(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]),
            exceptions: first(&["NO_PROXY", "no_proxy"]).map_or(String::new(), |(_, value)| value),
        }
    }

    /// The proxy that leads there, if one does.
    ///
    /// # Errors
    ///
    /// The variable names none that is spoken to: to go without it would be another way than was asked for.
    pub(super) fn to(&self, url: &Url) -> Result<Option<Intercept>, String> {
        let Some((variable, proxy)) = &self.proxy else {
            return Ok(None);
        };
        if url.scheme == Scheme::Http || is_loopback(&url.host) {
            return Ok(None);
        }
        let uri = url.to_string().parse::<Uri>();
        let uri = uri.map_err(|_| format!("{url} is no URL"))?;
        let exceptions = Matcher::builder().https("http://any").no(&*self.exceptions);
        if exceptions.build().intercept(&uri).is_none() {
            return Ok(None);
        }
        let found = Matcher::builder().https(&**proxy).build().intercept(&uri);
        let found = found.filter(|it| matches!(it.uri().scheme_str(), Some("http" | "https")));
        // It may have a password, so it is not repeated.
        let wrong =
            || format!("{variable} is not http://[USER:PASSWORD@]HOST:PORT, nor that with https");
        found.ok_or_else(wrong).map(Some)
    }
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

    fn through(proxy: &str, url: &str) -> Result<Option<String>, String> {
        let proxies = Proxies {
            proxy: Some(("HTTPS_PROXY", proxy.to_owned())),
            exceptions: "internal.test, 10.0.0.0/8".to_owned(),
        };
        let found = proxies.to(&Url::parse(url).expect(url))?;
        Ok(found.map(|found| found.uri().to_string()))
    }

    #[test]
    fn what_is_no_proxy_over_http_is_refused() {
        let url = "https://ghcr.io/v2/";
        for (proxy, address) in [
            (
                "http://proxy.example.com:3128",
                "http://proxy.example.com:3128/",
            ),
            (
                "https://me:secret@proxy.example.com",
                "https://proxy.example.com/",
            ),
            ("proxy:3128", "http://proxy:3128/"),
            ("http://[2001:db8::1]:3128/", "http://[2001:db8::1]:3128/"),
        ] {
            assert_eq!(through(proxy, url).unwrap().as_deref(), Some(address));
        }
        for proxy in [
            "socks5://me:secret@proxy:1080",
            "ftp://proxy",
            "http://",
            "a b",
            "/etc",
        ] {
            let reason = through(proxy, url).expect_err(proxy);
            assert!(reason.starts_with("HTTPS_PROXY is not http://"), "{reason}");
            assert!(!reason.contains("secret"), "{reason}");
            // Who needs no proxy is not kept away by one.
            assert_eq!(through(proxy, "https://localhost/v2/"), Ok(None));
            assert_eq!(through(proxy, "https://10.1.2.3/v2/"), Ok(None));
        }
    }

    #[test]
    fn this_machine_is_never_behind_a_proxy() {
        for (url, is_through) in [
            ("https://ghcr.io/v2/", true),
            ("https://[2001:db8::7]/v2/", true),
            ("https://registry.internal.test/v2/", false),
            ("https://10.1.2.3:5000/v2/", false),
            ("https://localhost:5000/v2/", false),
            ("https://127.0.0.1/v2/", false),
            ("https://[::1]/v2/", false),
            ("http://127.0.0.1:5000/v2/", false),
        ] {
            let found = through("http://proxy:3128", url).expect(url);
            assert_eq!(found.is_some(), is_through, "{url}");
        }
    }
}
