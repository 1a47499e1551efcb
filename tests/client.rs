//! A client over TCP and TLS: HTTP/1.1 by hand ([`crate::http1`]), HTTP/2 by hyper.
//!
//! rustls speaks TLS 1.2 and 1.3. TLS 1.1, which only Envoy will still take, goes through Python's `ssl` and the
//! system's OpenSSL at security level 0; Python is there, since pip brought Envoy.

use std::io::{BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use socket2::{Domain, Socket, Type};

use crate::certificates::{Certificates, SERVER_NAME};
use crate::http1::{Answer, Headers, Request, read_answer};

/// An answer that takes longer is no answer.
const ANSWER_BOUND: Duration = Duration::from_secs(20);

/// How the connection is secured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// Not at all.
    Plaintext,
    /// Through Python and OpenSSL; HTTP/1.1 only.
    Tls11,
    /// TLS 1.2 exactly.
    Tls12,
    /// TLS 1.3 exactly.
    Tls13,
}

/// The protocol above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http11,
    /// HTTP/2; with prior knowledge on plaintext.
    Http2,
}

/// Where and how to connect.
#[derive(Clone, Copy, Debug)]
pub struct Route<'a> {
    /// The server.
    pub address: SocketAddr,
    /// How the connection is secured.
    pub security: Security,
    /// What to speak.
    pub protocol: Protocol,
    /// The address to come from: any of 127.0.0.0/8 on Linux.
    pub source: Option<IpAddr>,
    /// Whom to trust; needed for TLS.
    pub certificates: Option<&'a Certificates>,
}

impl<'a> Route<'a> {
    /// HTTP/1.1 on plaintext.
    #[must_use]
    pub fn plain(address: SocketAddr) -> Self {
        Self {
            address,
            security: Security::Plaintext,
            protocol: Protocol::Http11,
            source: None,
            certificates: None,
        }
    }

    /// HTTP/1.1 on TLS.
    #[must_use]
    pub fn tls(address: SocketAddr, security: Security, certificates: &'a Certificates) -> Self {
        Self {
            security,
            certificates: Some(certificates),
            ..Self::plain(address)
        }
    }

    /// Sends one request on a connection of its own and reads the whole answer.
    ///
    /// # Errors
    /// When there is no connection, no whole answer, or none within 20 s.
    pub fn send(&self, request: &Request) -> Result<Answer> {
        match self.protocol {
            Protocol::Http11 => self.open()?.exchange(request),
            Protocol::Http2 => tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?
                .block_on(async {
                    tokio::time::timeout(ANSWER_BOUND, self.send_http2(request)).await
                })
                .context("no answer in time")?,
        }
    }

    /// Opens a connection for HTTP/1.1.
    ///
    /// # Errors
    /// When the server does not take it, or the handshake fails.
    pub fn open(&self) -> Result<Connection> {
        let stream = match self.security {
            Security::Plaintext => Stream::Plain(self.connect()?),
            Security::Tls11 => Stream::Python(Relay::start(self.address, self.source)?),
            Security::Tls12 | Security::Tls13 => {
                let session = rustls::ClientConnection::new(
                    self.tls_config(b"http/1.1")?,
                    self.server_name()?,
                )?;
                let mut stream = rustls::StreamOwned::new(session, self.connect()?);
                while stream.conn.is_handshaking() {
                    stream
                        .conn
                        .complete_io(&mut stream.sock)
                        .context("the TLS handshake failed")?;
                }
                Stream::Tls(Box::new(stream))
            }
        };
        Ok(Connection {
            stream: BufReader::new(stream),
        })
    }

    fn tls_config(&self, alpn: &[u8]) -> Result<std::sync::Arc<rustls::ClientConfig>> {
        let version = match self.security {
            Security::Tls12 => &rustls::version::TLS12,
            Security::Tls13 => &rustls::version::TLS13,
            Security::Tls11 | Security::Plaintext => {
                bail!("rustls does not speak {:?}", self.security)
            }
        };
        self.certificates
            .context("a TLS client needs certificates to trust")?
            .client(version, alpn)
    }

    fn server_name(&self) -> Result<ServerName<'static>> {
        let name = self
            .certificates
            .map_or(SERVER_NAME, |certificates| certificates.name);
        ServerName::try_from(name).context("no server name")
    }

    fn connect(&self) -> Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(self.address), Type::STREAM, None)?;
        if let Some(source) = self.source {
            socket
                .bind(&SocketAddr::new(source, 0).into())
                .with_context(|| format!("cannot come from {source}"))?;
        }
        socket
            .connect_timeout(&self.address.into(), ANSWER_BOUND)
            .with_context(|| format!("cannot connect to {}", self.address))?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_BOUND))?;
        stream.set_write_timeout(Some(ANSWER_BOUND))?;
        Ok(stream)
    }

    async fn send_http2(&self, request: &Request) -> Result<Answer> {
        let stream = self.connect()?;
        stream.set_nonblocking(true)?;
        let stream = tokio::net::TcpStream::from_std(stream)?;
        let scheme = match self.security {
            Security::Plaintext => "http",
            _ => "https",
        };
        let mut built = http::Request::builder().method(&request.method[..]).uri(
            http::Uri::builder()
                .scheme(scheme)
                .authority(&request.authority[..])
                .path_and_query(&request.path[..])
                .build()?,
        );
        for (name, value) in &request.headers {
            built = built.header(&name[..], http::HeaderValue::from_bytes(value)?);
        }
        let built = built.body(Full::new(Bytes::from(
            request.body.clone().unwrap_or_default(),
        )))?;
        if self.security == Security::Plaintext {
            exchange_http2(TokioIo::new(stream), built).await
        } else {
            let connector = tokio_rustls::TlsConnector::from(self.tls_config(b"h2")?);
            let stream = connector
                .connect(self.server_name()?, stream)
                .await
                .context("the TLS handshake failed")?;
            if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
                bail!("the server does not take HTTP/2 (ALPN)");
            }
            exchange_http2(TokioIo::new(stream), built).await
        }
    }
}

async fn exchange_http2<S>(stream: S, request: http::Request<Full<Bytes>>) -> Result<Answer>
where
    S: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream)
            .await
            .context("no HTTP/2 connection")?;
    let exchange = async {
        let response = sender
            .send_request(request)
            .await
            .context("no HTTP/2 answer")?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.context("the HTTP/2 body broke off")?;
        let trailers = body.trailers().map(lines).unwrap_or_default();
        Ok(Answer {
            status: head.status.as_u16(),
            headers: lines(&head.headers),
            body: body.to_bytes().to_vec(),
            trailers,
        })
    };
    tokio::select! {
        answer = exchange => answer,
        ended = connection => bail!("the HTTP/2 connection ended: {ended:?}"),
    }
}

fn lines(headers: &http::HeaderMap) -> Headers {
    headers
        .iter()
        .map(|(name, value)| (name.as_str().as_bytes().to_vec(), value.as_bytes().to_vec()))
        .collect()
}

/// An open connection for HTTP/1.1, to which any bytes can be written.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<Stream>,
}

impl Connection {
    /// Sends a request and reads its answer. The answer counts even if the server would not take all of the
    /// request (a refusal of a body that is too long comes before its end).
    ///
    /// # Errors
    /// When there is no whole answer.
    pub fn exchange(&mut self, request: &Request) -> Result<Answer> {
        let written = request.write(self.stream.get_mut());
        let answer = read_answer(&mut self.stream, &request.method);
        match (written, answer) {
            (_, Ok(answer)) => Ok(answer),
            (Err(error), Err(_)) | (Ok(()), Err(error)) => Err(error),
        }
    }

    /// Sends raw bytes.
    ///
    /// # Errors
    /// When the server does not take them.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.get_mut().write_all(bytes)?;
        Ok(self.stream.get_mut().flush()?)
    }

    /// What the server sends, to be read by [`crate::http1`].
    pub fn reader(&mut self) -> &mut BufReader<impl Read + Write> {
        &mut self.stream
    }
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<rustls::StreamOwned<rustls::ClientConnection, TcpStream>>),
    Python(Relay),
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(bytes),
            Self::Tls(stream) => stream.read(bytes),
            Self::Python(relay) => relay.output.read(bytes),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
            Self::Python(relay) => relay.input.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
            Self::Python(relay) => relay.input.flush(),
        }
    }
}

/// Python between standard input and output and a TLS 1.1 connection.
#[derive(Debug)]
struct Relay {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
}

/// The certificate is not checked: this is the client that nobody should be. One thread for both ways: OpenSSL's connections are not for two, and one
/// that reads while another writes may take the answer for the end.
const RELAY: &str = r"
import os, select, socket, ssl, sys, warnings
warnings.simplefilter('ignore')
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
context.set_ciphers('ALL:@SECLEVEL=0')
context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
host, port, source, name = sys.argv[1:]
plain = socket.create_connection((host, int(port)), 20, (source, 0))
server = context.wrap_socket(plain, server_hostname=name)
assert server.version() == 'TLSv1.1', server.version()
sources = [0, server]
while True:
    ready = select.select(sources, [], [])[0]
    if 0 in ready:
        if data := os.read(0, 65536):
            server.settimeout(20)
            server.sendall(data)
        else:
            sources.remove(0)
    server.setblocking(False)
    try:
        while data := server.recv(65536):
            os.write(1, data)
        break
    except ssl.SSLWantReadError:
        pass
";

impl Relay {
    fn start(address: SocketAddr, source: Option<IpAddr>) -> Result<Self> {
        let source = source.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let mut child = Command::new("python3")
            .args(["-c", RELAY])
            .args([address.ip().to_string(), address.port().to_string()])
            .args([source.to_string(), SERVER_NAME.to_owned()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("TLS 1.1 goes through python3, which cannot be run")?;
        let input = child.stdin.take().context("no standard input")?;
        let output = child.stdout.take().context("no standard output")?;
        Ok(Self {
            child,
            input,
            output,
        })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
