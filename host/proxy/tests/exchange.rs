//! Whole exchanges over sockets, without filters: what leaves the proxy towards the upstream, and what comes back.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests are tests"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Frame};
use hyper_util::rt::{TokioExecutor, TokioIo};
use portcullis::policy::Policy;
use portcullis::{Running, ServeOptions, serve};

/// An upstream that answers by path, a thread a connection; `/echo` gives back what it was sent.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer_all(&stream));
        }
    });
    address
}

fn answer_all(stream: &TcpStream) {
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let body = read_body(&head, &mut reader);
        let path = head.split(' ').nth(1).unwrap_or_default();
        let answer = match path.split('?').next().unwrap_or_default() {
            "/close" => return,
            "/half" => {
                writer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n0123456789").ok();
                return;
            }
            "/never" => {
                // Until the proxy gives up.
                let mut rest = Vec::new();
                reader.read_to_end(&mut rest).ok();
                return;
            }
            "/garbage" => "garbage\r\n\r\n".to_owned(),
            "/hop" => "HTTP/1.1 200 OK\r\nconnection: x-gone\r\nx-gone: 1\r\nkeep-alive: 5\r\nx-kept: 1\r\ncontent-length: 0\r\n\r\n".to_owned(),
            "/trailers" => "HTTP/1.1 200 OK\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 3\r\n\r\n".to_owned(),
            "/304" => "HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\n\r\n".to_owned(),
            "/ws" => {
                writer.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").ok();
                let mut line = String::new();
                reader.read_line(&mut line).ok();
                writer.write_all(format!("echo {line}").as_bytes()).ok();
                return;
            }
            "/head" => "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n".to_owned(),
            _ => {
                let text = format!("{head}{body}");
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len())
            }
        };
        if writer.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn read_body(head: &str, reader: &mut BufReader<&TcpStream>) -> String {
    let lower = head.to_ascii_lowercase();
    let mut out = String::new();
    if let Some((_, rest)) = lower.split_once("content-length: ") {
        let length = rest.split("\r\n").next().unwrap().parse().unwrap();
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok();
        out.push_str(&String::from_utf8_lossy(&body));
    } else if lower.contains("transfer-encoding: chunked") {
        // The last chunk, its trailers, an empty line.
        let is_whole = |text: &str| {
            text.ends_with("\r\n\r\n") && (text.starts_with("0\r\n") || text.contains("\r\n0\r\n"))
        };
        while !is_whole(&out) {
            if reader.read_line(&mut out).unwrap_or(0) == 0 {
                break;
            }
        }
    }
    out
}

fn start(upstream: SocketAddr, more: &str) -> Running {
    let unused = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let text = format!(
        r#"
listeners: [{{ name: main, address: "127.0.0.1:0" }}]
admin: {{ address: "127.0.0.1:0" }}
workers: 2
drain_timeout: 5s
clusters:
  - {{ name: up, endpoints: ["{upstream}"], request_timeout: 300ms }}
  - {{ name: down, endpoints: ["{unused}"] }}
routes:
  - {{ name: main, host: example.com, cluster: up }}
  - {{ name: down, host: example.com, prefix: /down, cluster: down }}
{more}"#
    );
    let policy = Policy::parse(Path::new("policy.yaml"), Path::new("/"), &text)
        .unwrap_or_else(|errors| panic!("{errors}"));
    serve(policy, ServeOptions::default()).unwrap()
}

/// Sends bytes and reads until the proxy closes.
fn talk(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok();
    String::from_utf8_lossy(&answer).into_owned()
}

struct Row {
    request: &'static str,
    has: &'static [&'static str],
    has_not: &'static [&'static str],
}

const fn row(
    request: &'static str,
    has: &'static [&'static str],
    has_not: &'static [&'static str],
) -> Row {
    Row {
        request,
        has,
        has_not,
    }
}

const ROWS: &[Row] = &[
    row(
        "GET /echo/a/../b?q=1 HTTP/1.1\r\nHost: Example.com:80\r\nConnection: close, x-hop\r\nX-Hop: 1\r\nX-Forwarded-For: 1.1.1.1\r\n\
         X-Forwarded-Proto: https\r\nX-Request-Id: mine\r\nX-Envoy-Internal: true\r\nX-Forwarded-Client-Cert: By=me\r\n\r\n",
        &[
            "HTTP/1.1 200",
            "GET /echo/b?q=1 HTTP/1.1",
            "host: Example.com:80",
            "x-forwarded-for: 1.1.1.1,127.0.0.1",
            "x-forwarded-proto: http\r\n",
            "x-request-id: ",
        ],
        &["x-hop", "x-envoy", "client-cert", "mine"],
    ),
    row(
        "GET /a%2Fb HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n",
        &["HTTP/1.1 400", "decision_id", "application/problem+json"],
        &[],
    ),
    row(
        "GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
        &["HTTP/1.1 400"],
        &[],
    ),
    row(
        "GET / HTTP/1.1\r\nHost: a@example.com\r\nConnection: close\r\n\r\n",
        &["HTTP/1.1 400"],
        &[],
    ),
    row(
        "GET / HTTP/1.1\r\nHost: other.example\r\nConnection: close\r\n\r\n",
        &["HTTP/1.1 404", "x-policy-decision-id: "],
        &[],
    ),
    row(
        "GET http://example.com/echo HTTP/1.1\r\nHost: other.example\r\nConnection: close\r\n\r\n",
        &["HTTP/1.1 200", "host: example.com"],
        &["other.example"],
    ),
    row(
        "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n",
        &["HTTP/1.1 501"],
        &[],
    ),
    row(
        "GET /close HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n",
        &["HTTP/1.1 502"],
        &[],
    ),
    row(
        "GET /garbage HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n",
        &["HTTP/1.1 502"],
        &[],
    ),
    row(
        "GET /down HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n",
        &["HTTP/1.1 503"],
        &[],
    ),
    row(
        "GET /never HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n",
        &["HTTP/1.1 504"],
        &[],
    ),
    row(
        "HEAD /down HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n",
        &["HTTP/1.1 503", "content-length: "],
        &["decision_id"],
    ),
    row(
        "HEAD /head HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n",
        &["HTTP/1.1 200", "content-length: 5"],
        &[],
    ),
    row(
        "GET /304 HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n",
        &["HTTP/1.1 304", "etag: \"a\""],
        &["content-length", "transfer-encoding"],
    ),
    row(
        "GET /half HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n",
        &["HTTP/1.1 200", "0123456789"],
        &[],
    ),
    row(
        "GET /hop HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n",
        &["x-kept: 1"],
        &["x-gone", "keep-alive"],
    ),
    row(
        "GET /trailers HTTP/1.1\r\nHost: example.com\r\nTE: trailers\r\nConnection: close, te\r\n\r\n",
        &["HTTP/1.1 200", "abc", "x-sum: 3"],
        &[],
    ),
    row(
        "POST /echo HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 3\r\n\r\n",
        &["HTTP/1.1 200", "abc", "x-sum: 3"],
        &[],
    ),
    row(
        "POST /echo HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
        &[
            "HTTP/1.1 100",
            "HTTP/1.1 200",
            "content-length: 3\r\n",
            "abc",
        ],
        &["xpect"],
    ),
    row(
        "POST /echo HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\nExpect: tea\r\n\r\n",
        &["HTTP/1.1 417"],
        &[],
    ),
    row(
        "POST /echo HTTP/1.1\r\nHost: example.com\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        &[
            "HTTP/1.1 200",
            "transfer-encoding: chunked",
            "connection: close",
        ],
        &["content-length: 3\r\n"],
    ),
    row(
        "POST /echo HTTP/1.1\r\nHost: example.com\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        &["HTTP/1.1 400"],
        &[],
    ),
    row(
        "POST /echo HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: gzip\r\n\r\n",
        &["HTTP/1.1 400"],
        &[],
    ),
    row(
        "GET /ws HTTP/1.1\r\nHost: example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello\r\n",
        &["HTTP/1.1 101", "upgrade: websocket", "echo hello"],
        &[],
    ),
    row(
        "GET /echo HTTP/1.1\r\nHost: example.com\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n",
        &["HTTP/1.1 200"],
        &["h2c"],
    ),
];

#[test]
fn requests_and_answers_are_carried() {
    let running = start(upstream(), "");
    let address = running.address("main").unwrap();
    for Row {
        request,
        has,
        has_not,
    } in ROWS
    {
        let answer = talk(address, request);
        for part in *has {
            assert!(
                answer.contains(part),
                "{request}\n--- has no {part:?}:\n{answer}"
            );
        }
        for part in *has_not {
            assert!(
                !answer.contains(part),
                "{request}\n--- has {part:?}:\n{answer}"
            );
        }
    }
    let huge = format!(
        "GET /echo HTTP/1.1\r\nHost: example.com\r\nX-A: {}\r\n\r\n",
        "a".repeat(100 * 1024)
    );
    assert!(
        talk(address, &huge).starts_with("HTTP/1.1 431"),
        "a head of 100 KiB"
    );
    let many = format!(
        "GET /echo HTTP/1.1\r\nHost: example.com\r\n{}\r\n",
        "X: 1\r\n".repeat(150)
    );
    assert!(
        talk(address, &many).starts_with("HTTP/1.1 431"),
        "150 fields"
    );

    let admin = running.admin().unwrap();
    let ask = |path: &str| {
        talk(
            admin,
            &format!("GET {path} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n"),
        )
    };
    assert!(ask("/ready").starts_with("HTTP/1.1 200"));
    assert!(ask("/other").starts_with("HTTP/1.1 404"));
    assert!(ask("/policy").contains("\"prefix\": \"/down\""));
    let metrics = ask("/metrics");
    for line in [
        "portcullis_requests_total{code=\"503\"} 2",
        "portcullis_upstream_connect_failures_total{cluster=\"down\"} 2",
        "# EOF",
    ] {
        assert!(metrics.contains(line), "no {line}:\n{metrics}");
    }
    running.drain();
    running.wait().unwrap();
    assert!(
        TcpStream::connect(address).is_err(),
        "a drained proxy takes no connection"
    );
}

#[test]
fn a_closed_pooled_connection_costs_no_request() {
    // Closes each connection after one answer, without saying so.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(&stream);
            let mut line = String::new();
            while line != "\r\n" {
                line.clear();
                if reader.read_line(&mut line).unwrap_or(0) == 0 {
                    break;
                }
            }
            (&stream)
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                .ok();
        }
    });
    let running = start(address, "");
    for _ in 0..50 {
        let answer = talk(
            running.address("main").unwrap(),
            "GET / HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n",
        );
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    running.drain();
    running.wait().unwrap();
}

#[test]
fn http2_carries_bodies_and_trailers_both_ways() {
    let front = start(upstream(), "");
    let through = front.address("main").unwrap();
    // The same proxy once more in front, so that HTTP/2 is spoken on both sides.
    let text = format!(
        r#"
listeners: [{{ name: main, address: "127.0.0.1:0" }}]
clusters: [{{ name: up, endpoints: ["{through}"], protocol: http2 }}]
routes: [{{ name: main, cluster: up }}]
"#
    );
    let policy = Policy::parse(Path::new("policy.yaml"), Path::new("/"), &text)
        .unwrap_or_else(|errors| panic!("{errors}"));
    let outer = serve(policy, ServeOptions::default()).unwrap();
    let address = outer.address("main").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        tokio::spawn(connection);
        let trailers = http::HeaderMap::from_iter([(
            http::HeaderName::from_static("x-sum"),
            http::HeaderValue::from_static("3"),
        )]);
        let frames = [
            Frame::data(Bytes::from_static(b"abc")),
            Frame::trailers(trailers),
        ]
        .map(Ok::<_, std::convert::Infallible>);
        let mut frames = frames.into_iter();
        let body = FrameStream(move || frames.next());
        let request = http::Request::post("http://example.com/trailers")
            .header("te", "trailers")
            .header("trailer", "x-sum")
            .body(body);
        let answer = sender.send_request(request.unwrap()).await.unwrap();
        assert_eq!(answer.status(), 200);
        let collected = answer.into_body().collect().await.unwrap();
        assert_eq!(
            collected
                .trailers()
                .map(|trailers| trailers["x-sum"].clone()),
            Some("3".parse().unwrap())
        );
        assert_eq!(collected.to_bytes(), "abc");
    });
    for running in [outer, front] {
        running.drain();
        running.wait().unwrap();
    }
}

/// Frames as a body takes them.
struct FrameStream<F>(F);

impl<F, T> hyper::body::Body for FrameStream<F>
where
    F: FnMut() -> Option<Result<Frame<Bytes>, T>> + Unpin,
{
    type Data = Bytes;
    type Error = T;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, T>>> {
        std::task::Poll::Ready((self.0)())
    }
}
