//! One HTTP/1.1 request to a registry on a connection of its own, and its answer within bounds.
//!
//! A pull takes three to five of them once a digest, so none is kept. Certificates are always verified, against the roots of the system
//! (`SSL_CERT_FILE` and `SSL_CERT_DIR` name others).

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderValue, Request, Response, response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1::{Connection, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::limits::{REGISTRY_CONNECT_TIMEOUT, RESPONSE_HEAD_BYTES_MAX};

use super::tunnel::{Proxies, tunnel};
use super::url::{Scheme, Url, is_loopback};

/// An answer that has been read to its end.
pub(super) type Answer = (response::Parts, Vec<u8>);

/// What requests are sent over.
pub(super) struct Dialler {
    tls: TlsConnector,
    proxies: Proxies,
}

impl Dialler {
    pub(super) fn new() -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(BuilderVerifierExt::with_platform_verifier)
            .map_err(|error| format!("TLS cannot be set up: {error}"))?;
        let config = config.with_no_client_auth();
        Ok(Self {
            tls: TlsConnector::from(Arc::new(config)),
            proxies: Proxies::of_environment(),
        })
    }

    /// How a registry on this host is spoken to: TLS, unless it is on this machine and what listens there speaks none. A certificate that is not
    /// good is no reason to go on without.
    pub(super) async fn scheme_of(&self, authority: &str) -> Result<Scheme, String> {
        let url = Url::new(Scheme::Https, authority, "/")?;
        if !is_loopback(&url.host) {
            return Ok(Scheme::Https);
        }
        let stream = self.reach(&url).await?;
        match encrypt(&self.tls, &url.host, stream).await {
            Ok(_) => Ok(Scheme::Https),
            Err(error) if is_not_tls(&error) => Ok(Scheme::Http),
            Err(error) => Err(format!("{}: {error}", url.authority())),
        }
    }

    /// Sends the request and reads the answer, of which the body may have `bytes_max`.
    pub(super) async fn exchange(
        &self,
        url: &Url,
        mut request: Request<Full<Bytes>>,
        bytes_max: u64,
    ) -> Result<Answer, String> {
        let named = |error: String| format!("{}: {error}", url.authority());
        *request.uri_mut() = url
            .path_and_query
            .parse()
            .map_err(|_| format!("{url} is not a valid path"))?;
        let host = HeaderValue::from_str(&url.authority());
        let host = host.map_err(|_| format!("{url} has no valid host"))?;
        request.headers_mut().insert(HOST, host);
        let stream = self.reach(url).await?;
        let answer = match url.scheme {
            Scheme::Http => converse(stream, request, bytes_max).await,
            Scheme::Https => {
                let stream = encrypt(&self.tls, &url.host, stream).await;
                let stream = stream.map_err(|error| named(error.to_string()))?;
                converse(stream, request, bytes_max).await
            }
        };
        answer.map_err(named)
    }

    /// A connection there, past a proxy where one stands between.
    async fn reach(&self, url: &Url) -> Result<Box<dyn Duplex>, String> {
        let named = |error: String| format!("{}: {error}", url.authority());
        if let Some(proxy) = self.proxies.to(url).map_err(named)? {
            return tunnel(&proxy, url, &self.tls).await.map_err(named);
        }
        let stream = dial(&url.host, url.port).await;
        let stream = stream.map_err(|error| named(error.to_string()))?;
        let peer = stream.peer_addr();
        let peer = peer.map_err(|error| named(error.to_string()))?;
        if url.scheme == Scheme::Http && !peer.ip().is_loopback() {
            return Err(named(format!(
                "it is {peer}, not this machine, and TLS is needed to every other"
            )));
        }
        Ok(Box::new(stream))
    }
}

/// A connection, in time.
pub(super) async fn dial(host: &str, port: u16) -> io::Result<TcpStream> {
    timeout(REGISTRY_CONNECT_TIMEOUT, TcpStream::connect((host, port)))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no connection in time"))?
}

/// TLS with this host, in time.
pub(super) async fn encrypt(
    tls: &TlsConnector,
    host: &str,
    stream: impl Duplex,
) -> io::Result<impl Duplex> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    timeout(REGISTRY_CONNECT_TIMEOUT, tls.connect(name, stream))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no TLS handshake in time"))?
}

/// A connection's bytes.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Duplex for T {}

/// Whether the other side answered a ClientHello with something that is no TLS, or hung up on it.
fn is_not_tls(error: &io::Error) -> bool {
    let tls = error.get_ref().and_then(|it| it.downcast_ref());
    match tls {
        Some(rustls::Error::InvalidMessage(_)) => true,
        Some(_) => false,
        None => matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
        ),
    }
}

/// HTTP/1.1 on a connection, with a bound on the head of what is answered.
pub(super) async fn handshake<B>(
    stream: impl Duplex,
) -> Result<(SendRequest<B>, Connection<TokioIo<impl Duplex>, B>), String>
where
    B: hyper::body::Body<Data: Send, Error: std::error::Error + Send + Sync> + 'static,
{
    let mut builder = hyper::client::conn::http1::Builder::new();
    builder.max_buf_size(RESPONSE_HEAD_BYTES_MAX);
    let shaken = builder.handshake(TokioIo::new(stream)).await;
    shaken.map_err(|error| describe(&error))
}

async fn converse(
    stream: impl Duplex,
    request: Request<Full<Bytes>>,
    bytes_max: u64,
) -> Result<Answer, String> {
    let (mut sender, connection) = handshake(stream).await?;
    // Whatever breaks it, the answer does not come.
    let driver = tokio::spawn(connection);
    let answer = async {
        let answer = sender.send_request(request).await;
        read(answer.map_err(|error| describe(&error))?, bytes_max).await
    };
    let answer = answer.await;
    driver.abort();
    answer
}

async fn read(answer: Response<Incoming>, bytes_max: u64) -> Result<Answer, String> {
    let too_long = || format!("its answer is longer than {bytes_max} bytes");
    let (parts, mut body) = answer.into_parts();
    if body.size_hint().lower() > bytes_max {
        return Err(too_long());
    }
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| describe(&error))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if (bytes.len() as u64).saturating_add(data.len() as u64) > bytes_max {
            return Err(too_long());
        }
        bytes.extend_from_slice(&data);
    }
    Ok((parts, bytes))
}

/// hyper keeps the reason in what it wraps.
pub(super) fn describe(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}
