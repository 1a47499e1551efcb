//! The way to a registry through a proxy: `HTTPS_PROXY` (or `ALL_PROXY`) and `NO_PROXY`, in capitals or not; what is empty is not there.
//!
//! The proxy is asked for a tunnel (`CONNECT`, RFC 9110 §9.3.6), and TLS with the registry runs within it: the proxy sees a host's name and nothing else.
//! What is on this machine is never asked for through a proxy.

use bytes::Bytes;
use http::header::{HOST, PROXY_AUTHORIZATION};
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::Empty;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::limits::REGISTRY_CONNECT_TIMEOUT;

use super::connection::{Duplex, describe, dial, encrypt, handshake};
use super::url::{Scheme, Url, is_loopback};

/// Which proxy is for whom.
pub(super) struct Proxies {
    /// The variable that names one, and what it says.
    proxy: Option<(&'static str, String)>,
    /// Who is reached without it, by commas.
    exceptions: String,
}

/// A proxy that is spoken to.
pub(super) struct Proxy {
    variable: &'static str,
    is_secure: bool,
    host: String,
    port: u16,
    authorization: Option<HeaderValue>,
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
    pub(super) fn to(&self, url: &Url) -> Result<Option<Proxy>, String> {
        let Some((variable, proxy)) = &self.proxy else {
            return Ok(None);
        };
        if url.scheme == Scheme::Http || is_loopback(&url.host) || self.is_exempt(url) {
            return Ok(None);
        }
        // It may have a password, so it is not repeated.
        let wrong = || {
            format!(
                "{variable} is not http://[USER:PASSWORD@]HOST:PORT, nor that with https (`@`, `/`, `?`, `#` and `%` in a password as %40, %2f, %3f, %23 and %25)"
            )
        };
        Proxy::parse(variable, proxy).ok_or_else(wrong).map(Some)
    }

    /// An entry is `*`, an address, a network (`10.0.0.0/8`), or a name for itself and all under it, with or without `.` or `*.` before; a port after it
    /// restricts it to that port.
    fn is_exempt(&self, url: &Url) -> bool {
        let mut entries = Vec::new();
        for entry in self.exceptions.split(',').map(str::trim) {
            if entry == "*" {
                return true;
            }
            let entry = entry.strip_prefix('*').unwrap_or(entry);
            match entry.rsplit_once(':') {
                Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                    if port.parse() == Ok(url.port) {
                        entries.push(host.trim_matches(['[', ']']));
                    }
                }
                _ => entries.push(entry),
            }
        }
        let matcher = Matcher::builder().https("http://any").no(entries.join(","));
        let uri = url.to_string().parse::<Uri>();
        uri.is_ok_and(|uri| matcher.build().intercept(&uri).is_none())
    }
}

impl Proxy {
    /// hyper-util's matcher takes what is no URL for one, and a part of a password for a host; so what has more than the parts of one is nothing.
    fn parse(variable: &'static str, text: &str) -> Option<Self> {
        let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.matches('@').count() > 1 || rest.contains(['/', '?', '#']) {
            return None;
        }
        let matcher = Matcher::builder().https(text.to_owned()).build();
        let found = matcher.intercept(&Uri::from_static("https://registry.test/"))?;
        let is_secure = match found.uri().scheme_str()? {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        let authority = found.uri().authority()?;
        let port = match authority.port_u16() {
            Some(port) => port,
            None if authority.as_str() == authority.host() => {
                if is_secure {
                    443
                } else {
                    80
                }
            }
            None => return None,
        };
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        (!host.is_empty()).then(|| Self {
            variable,
            is_secure,
            host,
            port,
            authorization: found.basic_auth().cloned(),
        })
    }
}

/// A connection to there through a proxy, in time.
pub(super) async fn tunnel(
    proxy: &Proxy,
    url: &Url,
    tls: &TlsConnector,
) -> Result<Box<dyn Duplex>, String> {
    let Proxy { host, port, .. } = proxy;
    let opened = timeout(REGISTRY_CONNECT_TIMEOUT, async {
        let stream = dial(host, *port).await.map_err(|error| error.to_string())?;
        let stream: Box<dyn Duplex> = match proxy.is_secure {
            false => Box::new(stream),
            true => {
                let stream = encrypt(tls, host, stream).await;
                Box::new(stream.map_err(|error| error.to_string())?)
            }
        };
        connect(stream, url, proxy.authorization.as_ref()).await
    });
    let opened = opened.await.map_err(|_| "no tunnel in time".to_owned());
    opened
        .flatten()
        .map_err(|error| format!("the proxy {host}:{port} ({}): {error}", proxy.variable))
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
    let (mut sender, connection) = handshake(stream).await?;
    tokio::spawn(connection.with_upgrades());
    let answer = sender.send_request(request).await;
    let answer = answer.map_err(|error| describe(&error))?;
    match answer.status() {
        status if status.is_success() => {}
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            return Err("407: it wants USER:PASSWORD@ before its host, or another".into());
        }
        status => return Err(format!("it answers {status} to CONNECT {target}")),
    }
    let upgraded = hyper::upgrade::on(answer).await;
    let upgraded = upgraded.map_err(|error| describe(&error))?;
    Ok(Box::new(TokioIo::new(upgraded)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(proxy: &str, url: &str) -> Result<Option<String>, String> {
        let proxies = Proxies {
            proxy: Some(("HTTPS_PROXY", proxy.to_owned())),
            exceptions: "internal.test, 10.0.0.0/8,*.corp.test , ports.test:5000".to_owned(),
        };
        let found = proxies.to(&Url::parse(url).expect(url))?;
        Ok(found.map(|found| {
            let scheme = if found.is_secure { "https" } else { "http" };
            format!("{scheme} {} {}", found.host, found.port)
        }))
    }

    #[test]
    fn what_is_no_proxy_over_http_is_refused() {
        let url = "https://ghcr.io/v2/";
        for (proxy, address) in [
            (
                "http://proxy.example.com:3128",
                "http proxy.example.com 3128",
            ),
            (
                "https://me:secret@proxy.example.com",
                "https proxy.example.com 443",
            ),
            ("http://me:se%40cret@proxy", "http proxy 80"),
            ("proxy:3128", "http proxy 3128"),
            ("http://[2001:db8::1]:3128/", "http 2001:db8::1 3128"),
        ] {
            assert_eq!(through(proxy, url).unwrap().as_deref(), Some(address));
        }
        for proxy in [
            "socks5://me:secret@proxy:1080",
            "http://me:se@secret@proxy:3128",
            "http://me:se/secret@proxy:3128",
            "http://me:se?secret@proxy:3128",
            "http://me:se#secret@proxy:3128",
            "http://proxy:99999",
            "http://proxy:port",
            "http://proxy:3128/path",
            "ftp://proxy",
            "http://",
            "http://:3128",
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
    fn exceptions_and_this_machine_are_reached_without() {
        for (url, is_through) in [
            ("https://ghcr.io/v2/", true),
            ("https://[2001:db8::7]/v2/", true),
            ("https://internal.test.example/v2/", true),
            ("https://registry.internal.test/v2/", false),
            ("https://internal.test/v2/", false),
            ("https://a.corp.test/v2/", false),
            ("https://ports.test:5000/v2/", false),
            ("https://ports.test/v2/", true),
            ("https://10.1.2.3:5000/v2/", false),
            ("https://localhost:5000/v2/", false),
            ("https://127.0.0.1/v2/", false),
            ("https://[::1]/v2/", false),
            ("http://127.0.0.1:5000/v2/", false),
        ] {
            let found = through("http://proxy:3128", url).expect(url);
            assert_eq!(found.is_some(), is_through, "{url}");
        }
        let nobody = Proxies {
            proxy: Some(("all_proxy", "http://proxy".into())),
            exceptions: "a.test, *".into(),
        };
        for url in ["https://ghcr.io/v2/", "https://10.1.2.3/v2/"] {
            assert!(nobody.to(&Url::parse(url).unwrap()).unwrap().is_none());
        }
    }
}
