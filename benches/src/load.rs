//! An open-loop load: requests start at a constant rate whatever the answers do, and a latency counts from the intended
//! start, so that a stalled server cannot hide its stall (coordinated omission). Without a rate, a closed loop finds the
//! saturation.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// How the load speaks to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub enum Protocol {
    /// HTTP/1.1, one request at a time on a connection.
    #[serde(rename = "HTTP/1.1")]
    Http1,
    /// HTTP/2, sixteen streams on a connection.
    #[serde(rename = "HTTP/2")]
    Http2,
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Http1 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        })
    }
}

/// One run of the load.
#[derive(Clone, Debug)]
pub struct Load {
    /// Where to.
    pub address: SocketAddr,
    /// TLS settings; plaintext without.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// HTTP/1.1 or HTTP/2.
    pub protocol: Protocol,
    /// Connections held open.
    pub connections: usize,
    /// Requests a second; as many as go through without.
    pub rate: Option<f64>,
    /// How long requests are started.
    pub duration: Duration,
    /// The `:authority` of every request.
    pub authority: String,
    /// The path of every request.
    pub path: String,
    /// Headers of every request.
    pub headers: Vec<(String, String)>,
    /// Bearer tokens, one a request in turn.
    pub tokens: Vec<String>,
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Answers with 200.
    pub good: u64,
    /// Answers with another status, by status.
    pub other: std::collections::BTreeMap<u16, u64>,
    /// Requests without an answer.
    pub failed: u64,
    /// From the intended start to the last byte of the body, sorted.
    pub latencies: Vec<Duration>,
    /// From the first intended start to the last answer.
    pub elapsed: Duration,
}

/// Streams in flight on one HTTP/2 connection.
const STREAMS_PER_CONNECTION: usize = 16;
/// An answer later than this counts as failed.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The intended starts that no connection has taken yet.
struct Schedule {
    due: RefCell<VecDeque<Instant>>,
    more: Notify,
    ended: AtomicBool,
    /// Requests begun.
    begun: Cell<usize>,
}

/// One request at a time, on a connection of its own or on a shared one.
enum Sender {
    Http1(hyper::client::conn::http1::SendRequest<Empty<Bytes>>),
    Http2(hyper::client::conn::http2::SendRequest<Empty<Bytes>>),
}

impl Sender {
    async fn send(
        &mut self,
        request: http::Request<Empty<Bytes>>,
    ) -> hyper::Result<http::Response<Incoming>> {
        match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::Http2(sender) => sender.send_request(request).await,
        }
    }
}

/// Runs one load on the calling thread.
///
/// # Errors
/// Where a connection cannot be made, or one breaks.
pub fn run(load: &Load) -> Result<Outcome> {
    sampled(load, || Ok(())).map(|(outcome, _)| outcome)
}

/// The same, and what `sample` says when all connections stand, and when the last answer is there: so handshakes are in no figure.
///
/// # Errors
/// As [`run`], and where `sample` fails.
pub fn sampled<T>(load: &Load, sample: impl FnMut() -> Result<T>) -> Result<(Outcome, [T; 2])> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    tokio::task::LocalSet::new().block_on(&runtime, drive(load, sample))
}

async fn drive<T>(load: &Load, mut sample: impl FnMut() -> Result<T>) -> Result<(Outcome, [T; 2])> {
    let mut senders = Vec::new();
    for _ in 0..load.connections {
        senders.extend(
            connect(load)
                .await
                .with_context(|| format!("connecting to {}", load.address))?,
        );
    }
    let schedule = Rc::new(Schedule {
        due: RefCell::default(),
        more: Notify::new(),
        ended: AtomicBool::new(false),
        begun: Cell::new(0),
    });
    let outcome = Rc::new(RefCell::new(Outcome::default()));
    let before = sample()?;
    let start = Instant::now();
    let end = start + load.duration;
    let pacer = load.rate.map(|rate| pace(rate, start, end));
    let tasks: Vec<_> = senders
        .into_iter()
        .map(|sender| {
            let (schedule, outcome, load) = (schedule.clone(), outcome.clone(), load.clone());
            tokio::task::spawn_local(
                async move { send(sender, &load, end, &schedule, &outcome).await },
            )
        })
        .collect();
    if let Some(mut due) = pacer {
        while let Some(instant) = due.recv().await {
            schedule.due.borrow_mut().push_back(instant);
            schedule.more.notify_one();
        }
        schedule.ended.store(true, Ordering::Relaxed);
        schedule.more.notify_waiters();
    }
    for task in tasks {
        task.await??;
    }
    let elapsed = start.elapsed();
    let after = sample()?;
    let mut outcome = Rc::try_unwrap(outcome)
        .map_err(|_| anyhow::anyhow!("a sender outlived the run"))?
        .into_inner();
    outcome.latencies.sort_unstable();
    outcome.elapsed = elapsed;
    Ok((outcome, [before, after]))
}

/// A thread that hands out intended starts on time: the timer of the runtime knows whole milliseconds only.
fn pace(rate: f64, start: Instant, end: Instant) -> tokio::sync::mpsc::UnboundedReceiver<Instant> {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for number in 0_u64.. {
            let intended = start + Duration::from_secs_f64(number as f64 / rate);
            if intended >= end {
                break;
            }
            std::thread::sleep(intended.saturating_duration_since(Instant::now()));
            if sender.send(intended).is_err() {
                break;
            }
        }
    });
    receiver
}

/// The next intended start: the schedule's, or now where the load is a closed loop.
async fn next(load: &Load, end: Instant, schedule: &Schedule) -> Option<Instant> {
    if load.rate.is_none() {
        let now = Instant::now();
        return (now < end).then_some(now);
    }
    loop {
        let more = schedule.more.notified();
        if let Some(instant) = schedule.due.borrow_mut().pop_front() {
            return Some(instant);
        }
        if schedule.ended.load(Ordering::Relaxed) {
            return None;
        }
        more.await;
    }
}

async fn send(
    mut sender: Sender,
    load: &Load,
    end: Instant,
    schedule: &Schedule,
    outcome: &RefCell<Outcome>,
) -> Result<()> {
    let uri = match load.protocol {
        Protocol::Http1 => load.path.clone(),
        Protocol::Http2 => format!("https://{}{}", load.authority, load.path),
    };
    while let Some(intended) = next(load, end, schedule).await {
        let mut request = http::Request::get(&uri);
        if load.protocol == Protocol::Http1 {
            request = request.header("host", &load.authority);
        }
        for (name, value) in &load.headers {
            request = request.header(name, value);
        }
        let number = schedule.begun.replace(schedule.begun.get() + 1);
        if let Some(token) = number
            .checked_rem(load.tokens.len())
            .and_then(|place| load.tokens.get(place))
        {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let exchange = async {
            let response = sender.send(request.body(Empty::new())?).await?;
            let status = response.status().as_u16();
            response.into_body().collect().await?;
            anyhow::Ok(status)
        };
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, exchange).await;
        let mut outcome = outcome.borrow_mut();
        match answer {
            Ok(Ok(200)) => outcome.good += 1,
            Ok(Ok(status)) => *outcome.other.entry(status).or_default() += 1,
            Ok(Err(error)) => bail!("the connection to {} broke: {error:#}", load.address),
            Err(_) => outcome.failed += 1,
        }
        outcome.latencies.push(intended.elapsed());
    }
    Ok(())
}

/// Opens one connection; gives one sender for each request that may be in flight on it.
async fn connect(load: &Load) -> Result<Vec<Sender>> {
    let stream = TcpStream::connect(load.address).await?;
    stream.set_nodelay(true)?;
    let Some(tls) = &load.tls else {
        return handshake(TokioIo::new(stream), load.protocol).await;
    };
    let mut tls = rustls::ClientConfig::clone(tls);
    tls.alpn_protocols = vec![match load.protocol {
        Protocol::Http1 => b"http/1.1".to_vec(),
        Protocol::Http2 => b"h2".to_vec(),
    }];
    let name = rustls::pki_types::ServerName::try_from("localhost")?;
    let stream = tokio_rustls::TlsConnector::from(Arc::new(tls))
        .connect(name, stream)
        .await?;
    handshake(TokioIo::new(stream), load.protocol).await
}

async fn handshake<I>(io: I, protocol: Protocol) -> Result<Vec<Sender>>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    match protocol {
        Protocol::Http1 => {
            let (sender, connection) = hyper::client::conn::http1::handshake(io).await?;
            tokio::task::spawn_local(connection);
            Ok(vec![Sender::Http1(sender)])
        }
        Protocol::Http2 => {
            let (sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
            tokio::task::spawn_local(connection);
            Ok((0..STREAMS_PER_CONNECTION)
                .map(|_| Sender::Http2(sender.clone()))
                .collect())
        }
    }
}
