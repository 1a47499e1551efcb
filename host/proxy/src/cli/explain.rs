//! `portcullis explain`.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use bytes::Bytes;
use clap::ValueEnum;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version};
use portcullis_runtime::TlsVersion;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::PolicyFile;
use super::output::{Format, note, print, print_json};
use crate::explain::{self, ExplainError, Question, Transport, UpstreamAnswer};
use crate::module_cache::DiskCache;
use crate::policy::{self, Policy};
use crate::serve;

/// Shows what a policy does with a request, filter by filter, without a server
///
/// Runs the policy's real plugins on the request, which is made canonical and routed as `serve` does it, and prints which route it takes and why, each
/// filter's decision in order, what it changes of the headers (- and +), what it logs and how long it takes; then what goes upstream, the filters on
/// the way back, and the answer. No port is bound and nothing is called. A filter that holds the headers until it has seen the body is shown that,
/// --body or --response-body, before the headers go on.
///
/// Callouts are not made: a filter that waits for one holds the request, and this says so, unless --callout has the answer. Timers run once, as in a
/// proxy that has just started, and counters begin at zero. Times are those of one run on VMs that have served nothing yet.
///
/// Credentials (authorization, cookies) are shown as their lengths. A filter's own log lines are shown from the level that --log says.
///
/// Exit codes: 0 explained, whatever the answer; 1 the policy does not work, or the question does not fit it; 2 wrong usage.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  portcullis explain policy.yaml --request 'GET /admin'
  portcullis explain policy.yaml --request 'POST /orders HTTP/2' --header 'host: api.example.com' --header \"authorization: Bearer $TOKEN\" --body @order.json
  portcullis explain policy.yaml --request 'GET /' --tls none --listener http --format json
  portcullis explain policy.yaml --request 'GET /' --callout idp=@jwks.json --response 500 --response-header 'server: nginx'")]
pub(super) struct Explain {
    #[command(flatten)]
    file: PolicyFile,

    /// Method and target, as in `GET /path?query`, with `HTTP/1.0`, `HTTP/1.1` or `HTTP/2` behind them if it is not 1.1
    #[arg(long, value_name = "LINE", value_parser = request_line)]
    request: (Method, Uri, Version),

    /// A header of the request; again for more. `host` is `localhost` where none is given
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,

    /// The request's body: text, or the bytes of a file
    #[arg(long, value_name = "TEXT|@FILE")]
    body: Option<String>,

    /// Which listener it comes in by; the first with TLS if not given, else the first
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,

    /// What the client speaks; if not given, TLS 1.3 where the listener has TLS
    #[arg(long, value_enum, value_name = "VERSION")]
    tls: Option<Tls>,

    /// The client's certificate (PEM), for listeners with `client_ca`; whether that has signed it is not looked at
    #[arg(long, value_name = "FILE")]
    client_certificate: Option<PathBuf>,

    /// The client's address
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", value_parser = source)]
    source: SocketAddr,

    /// The status of the upstream's answer
    #[arg(long = "response", value_name = "STATUS", default_value = "200", value_parser = status)]
    status: StatusCode,

    /// A header of the upstream's answer; again for more
    #[arg(long = "response-header", value_name = "NAME: VALUE", value_parser = header)]
    response_headers: Vec<(HeaderName, HeaderValue)>,

    /// The body of the upstream's answer: text, or the bytes of a file
    #[arg(long, value_name = "TEXT|@FILE")]
    response_body: Option<String>,

    /// What a cluster answers to plugins that call it: a status, or 200 with the bytes of a file; again for more clusters
    #[arg(long = "callout", value_name = "CLUSTER=STATUS|@FILE", value_parser = callout)]
    callouts: Vec<(String, String)>,

    /// Show credentials in full
    #[arg(long)]
    show_credentials: bool,

    /// How it is printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Tls {
    #[value(name = "1.3")]
    V13,
    #[value(name = "1.2")]
    V12,
    /// Plaintext
    None,
}

impl Explain {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let policy = match Policy::load(&self.file.policy) {
            Ok(policy) => policy,
            Err(errors) => {
                note(&errors.to_string());
                return Ok(ExitCode::FAILURE);
            }
        };
        let format = self.format;
        let question = self.question()?;
        let runtime = match policy.instances.is_empty() {
            true => None,
            false => Some(serve::runtime()?),
        };
        let cache = DiskCache::of_user();
        match explain::explain(&policy, runtime.as_deref(), &cache, &question) {
            Ok(explanation) => match format {
                Format::Text => print(&explanation.to_string())?,
                Format::Json => print_json(&explanation)?,
            },
            Err(ExplainError::Policy(errors)) => {
                note(&errors.to_string());
                return Ok(ExitCode::FAILURE);
            }
            Err(error) => return Err(error.into()),
        }
        Ok(ExitCode::SUCCESS)
    }

    fn question(self) -> anyhow::Result<Question> {
        let (method, target, version) = self.request;
        let certificate = match &self.client_certificate {
            Some(file) => Some(certificate(file)?),
            None => None,
        };
        let callouts = self.callouts.iter().map(|(cluster, answer)| {
            let answer = match answer.strip_prefix('@') {
                Some(file) => UpstreamAnswer {
                    status: StatusCode::OK,
                    headers: HeaderMap::new(),
                    body: read(Path::new(file))?,
                },
                None => UpstreamAnswer {
                    status: status(answer).map_err(anyhow::Error::msg)?,
                    headers: HeaderMap::new(),
                    body: Bytes::new(),
                },
            };
            Ok((cluster.clone(), answer))
        });
        Ok(Question {
            callouts: callouts.collect::<anyhow::Result<_>>()?,
            method,
            target,
            version,
            headers: self.headers,
            body: content(self.body)?,
            listener: self.listener,
            transport: self.tls.map(|tls| match tls {
                Tls::V13 => Transport::Tls(TlsVersion::V1_3),
                Tls::V12 => Transport::Tls(TlsVersion::V1_2),
                Tls::None => Transport::Plaintext,
            }),
            certificate,
            source: self.source,
            properties: Vec::new(),
            upstream: UpstreamAnswer {
                status: self.status,
                headers: self.response_headers.into_iter().collect(),
                body: content(self.response_body)?,
            },
            credentials: self.show_credentials,
        })
    }
}

fn certificate(file: &Path) -> anyhow::Result<CertificateDer<'static>> {
    let pem = read(file)?;
    CertificateDer::from_pem_slice(&pem)
        .ok()
        .with_context(|| format!("{} holds no PEM certificate", file.display()))
}

/// Of a file whose bytes are a body; no filter may hold more.
const BYTES_MAX: u64 = 64 << 20;

fn read(file: &Path) -> anyhow::Result<Bytes> {
    let bytes = policy::read_bytes(file, BYTES_MAX).map_err(anyhow::Error::msg)?;
    Ok(bytes.into())
}

fn content(argument: Option<String>) -> anyhow::Result<Bytes> {
    let argument = argument.unwrap_or_default();
    match argument.strip_prefix('@') {
        Some(file) => read(Path::new(file)),
        None => Ok(argument.into()),
    }
}

fn request_line(text: &str) -> Result<(Method, Uri, Version), String> {
    let mut words = text.split_ascii_whitespace();
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Err("a method and a target are needed, as in `GET /path`".into());
    };
    let version = match words.next() {
        None | Some("HTTP/1.1") => Version::HTTP_11,
        Some("HTTP/1.0") => Version::HTTP_10,
        Some("HTTP/2" | "HTTP/2.0") => Version::HTTP_2,
        Some(other) => {
            return Err(format!(
                "`{other}` is not a version, it may be HTTP/1.0, HTTP/1.1 or HTTP/2"
            ));
        }
    };
    if words.next().is_some() {
        return Err("more than a method, a target and a version; a target has no spaces".into());
    }
    let method =
        Method::from_bytes(method.as_bytes()).map_err(|_| format!("`{method}` is not a method"))?;
    let target = target
        .parse()
        .map_err(|error| format!("`{target}` is not a request target: {error}"))?;
    Ok((method, target, version))
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text
        .split_once(':')
        .ok_or("a name, a colon and a value are needed, as in `accept: text/html`")?;
    let name = HeaderName::from_bytes(name.trim().as_bytes())
        .map_err(|_| format!("`{name}` is not a header's name"))?;
    let value = HeaderValue::from_bytes(value.trim().as_bytes())
        .map_err(|_| format!("the value of `{name}` has bytes that a header cannot carry"))?;
    Ok((name, value))
}

fn status(text: &str) -> Result<StatusCode, String> {
    let status: Result<StatusCode, _> = text.parse();
    let status = status.ok().filter(|it| !it.is_informational());
    status.ok_or_else(|| format!("`{text}` is not the status of an answer, from 200 to 999"))
}

fn source(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 40_000));
    address
        .or_else(|_| text.parse())
        .map_err(|_| format!("`{text}` is not an address such as 192.0.2.7 or [2001:db8::1]:4711"))
}

fn callout(text: &str) -> Result<(String, String), String> {
    let (cluster, answer) = text
        .split_once('=')
        .ok_or("a cluster, `=` and a status or @FILE are needed, as in `idp=@jwks.json`")?;
    if !answer.starts_with('@') {
        status(answer)?;
    }
    Ok((cluster.to_owned(), answer.to_owned()))
}
