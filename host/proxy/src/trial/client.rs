//! The client of a case that runs over sockets: one connection a request.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use portcullis_runtime::TlsVersion;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore, version};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::spawn_local;
use tokio_rustls::TlsConnector;

use super::scene::{Certificate, SERVER_NAME};
use crate::explain::{Question, Transport};
use crate::spawn::Local;

/// An answer that takes longer is no answer.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// Asks, and reads the whole answer.
pub(super) async fn ask(
    address: SocketAddr,
    question: &Question,
    certificate: &Certificate,
) -> anyhow::Result<Response<Bytes>> {
    let exchange = async {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(question.source.ip(), 0))?;
        let stream = socket.connect(address).await?;
        match question.transport {
            Some(Transport::Tls(version)) => {
                let config = config(version, question.version, certificate)?;
                let name = ServerName::try_from(SERVER_NAME)?;
                let connector = TlsConnector::from(Arc::new(config));
                let stream = connector.connect(name, stream).await;
                send(stream.context("the TLS handshake failed")?, question).await
            }
            _ => send(stream, question).await,
        }
    };
    let bounded = tokio::time::timeout(ANSWER_MAX, exchange).await;
    bounded.with_context(|| format!("no answer within {} s", ANSWER_MAX.as_secs()))?
}

/// Gets a page in plaintext, as Envoy's admin interface has them.
pub(super) async fn page(address: SocketAddr, path: &str) -> anyhow::Result<Response<Bytes>> {
    let request = Request::get(path)
        .header(http::header::HOST, address.to_string())
        .body(Full::<Bytes>::default())?;
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    spawn_local(connection);
    let (head, body) = sender.send_request(request).await?.into_parts();
    Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
}

fn config(
    tls: TlsVersion,
    protocol: Version,
    certificate: &Certificate,
) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der.clone())?;
    let versions: &[&rustls::SupportedProtocolVersion] = match tls {
        TlsVersion::V1_2 => &[&version::TLS12],
        _ => &[&version::TLS13],
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![match protocol {
        Version::HTTP_2 => b"h2".to_vec(),
        _ => b"http/1.1".to_vec(),
    }];
    Ok(config)
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    question: &Question,
) -> anyhow::Result<Response<Bytes>> {
    let mut request = Request::new(Full::new(question.body.clone()));
    *request.method_mut() = question.method.clone();
    *request.uri_mut() = question.target.clone();
    *request.version_mut() = question.version;
    for (name, value) in &question.headers {
        request.headers_mut().append(name.clone(), value.clone());
    }
    let io = TokioIo::new(stream);
    let response = match question.version {
        Version::HTTP_2 => {
            let (mut sender, connection) = http2::handshake(Local, io).await?;
            spawn_local(connection);
            sender.send_request(request).await?
        }
        _ => {
            let (mut sender, connection) = http1::handshake(io).await?;
            spawn_local(connection);
            sender.send_request(request).await?
        }
    };
    let (head, body) = response.into_parts();
    Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
}
