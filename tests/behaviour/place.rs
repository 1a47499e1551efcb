//! A host with the probe in it, and what comes of one row there.

use std::io::{BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use portcullis_tests::child::until;
use portcullis_tests::client::{Protocol, Route};
use portcullis_tests::free_port::free_address;
use portcullis_tests::http1::{Answer, Headers, Request, read_answer, read_request_body};
use portcullis_tests::raw_upstream::RawUpstream;
use portcullis_tests::upstream::Upstream;
use serde_json::{Map, Value, json};

use super::row::{Chapter, Row};
use crate::places::ANY_PORT;

/// How long the report of a row may take: a callout's timeout, and Envoy's deferred deletion.
const REPORT_BOUND: Duration = Duration::from_secs(10);

/// How long the callee holds what waits for the row's own answer: a request that is held then never gets one by itself.
const GATE_BOUND: Duration = Duration::from_millis(150);

/// The answers that a row's request may ask the upstream for, by path.
fn answers() -> [(&'static str, Answer); 4] {
    let header = |name: &str, value: &str| (name.into(), value.into());
    let answer = |status, headers, body: &str, trailers| Answer {
        status,
        headers,
        body: body.into(),
        trailers,
    };
    [
        ("/", answer(200, vec![header("t-up", "1")], "ok", vec![])),
        (
            "/twice",
            answer(
                200,
                vec![header("t-up", "1"), header("t-up", "2")],
                "ok",
                vec![],
            ),
        ),
        (
            "/trailers",
            answer(200, vec![], "ok", vec![header("t-sum", "9")]),
        ),
        (
            "/alone/trailers",
            answer(200, vec![], "ok", vec![header("t-sum", "9")]),
        ),
    ]
}

/// Whether the row's client has its answer.
#[derive(Debug, Default)]
struct Gate {
    is_open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn set(&self, is_open: bool) {
        *self.is_open.lock().unwrap_or_else(PoisonError::into_inner) = is_open;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let guard = self.is_open.lock().unwrap_or_else(PoisonError::into_inner);
        drop(
            self.changed
                .wait_timeout_while(guard, GATE_BOUND, |is_open| !*is_open),
        );
    }
}

/// A guest beside the probes, on a route of its own.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    pub(crate) name: String,
    pub(crate) module: Value,
}

/// The servers around one host.
#[derive(Debug)]
pub(crate) struct Scene {
    upstream: Upstream,
    callee: RawUpstream,
    gate: Arc<Gate>,
    /// Where nobody listens.
    nobody: SocketAddr,
}

impl Scene {
    pub(crate) fn start() -> Result<Self> {
        let upstream = Upstream::start()?;
        for (path, answer) in answers() {
            upstream.answer_at(path, answer);
        }
        upstream.answer(answers()[0].1.clone());
        let gate = Arc::new(Gate::default());
        let held = Arc::clone(&gate);
        let callee = RawUpstream::start(move |line, headers, stream| {
            let mut body = Vec::new();
            read_request_body(stream, headers, &mut |part| body.extend_from_slice(part))?;
            match line.split(' ').nth(1).unwrap_or_default() {
                "/gate" => held.wait(),
                // The other end gives up first.
                "/hang" => std::thread::park_timeout(REPORT_BOUND),
                "/reset" => return Ok(false),
                "/broken" => {
                    stream
                        .get_mut()
                        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")?;
                    return Ok(false);
                }
                _ => {}
            }
            let head = format!(
                "HTTP/1.1 200 OK\r\nt-callee: 1\r\nt-callee: 2\r\ncontent-length: {}\r\n\r\ncallee {}",
                7 + body.len(),
                String::from_utf8_lossy(&body)
            );
            stream.get_mut().write_all(head.as_bytes())?;
            Ok(true)
        })?;
        Ok(Self {
            upstream,
            callee,
            gate,
            nobody: free_address()?,
        })
    }

    /// The policy: `/two` passes two probes, `/fragile` one that may break, `/alone` one that may hold headers alone and then the first, `/<name>` each guest of `guests`, all else the first probe.
    pub(crate) fn policy(&self, probe: &Path, chapters: &[Chapter], guests: &[Guest]) -> Value {
        let clusters = json!(["upstream", "callee", "nobody"]);
        let mut rows = chapters.iter().flat_map(|chapter| &chapter.rows);
        let start = rows
            .find_map(|row| row.start.as_deref())
            .unwrap_or_default();
        let mut filters = vec![
            json!({"name": "alone", "module": probe, "clusters": clusters, "allow_on_headers_stop_iteration": true}),
            json!({"name": "probe", "module": probe, "clusters": clusters, "configuration": {"script": start}}),
            json!({"name": "second", "module": probe, "clusters": clusters}),
            json!({"name": "fragile", "module": probe, "clusters": clusters}),
        ];
        let mut ways = vec![
            ("two", vec!["probe", "second"]),
            ("fragile", vec!["fragile"]),
            ("alone", vec!["alone", "probe"]),
        ];
        for guest in guests {
            filters.push(json!({"name": guest.name, "module": guest.module}));
            ways.push((&guest.name, vec![&guest.name]));
        }
        let route = |name: &str, prefix: String, on: &[&str]| {
            let off = filters.iter().filter_map(|filter| filter["name"].as_str());
            let off: Map<String, Value> = off
                .filter(|filter| !on.contains(filter))
                .map(|filter| (filter.to_owned(), "off".into()))
                .collect();
            json!({"name": name, "prefix": prefix, "cluster": "upstream", "filters": off})
        };
        let mut routes: Vec<Value> = ways
            .iter()
            .map(|(name, on)| route(name, format!("/{name}"), on))
            .collect();
        routes.push(route("all", "/".into(), &["probe"]));
        json!({
            "workers": 1,
            "listeners": [{"name": "plain", "address": ANY_PORT}],
            "clusters": [
                {"name": "upstream", "protocol": "http2", "endpoints": [self.upstream.address().to_string()]},
                {"name": "callee", "endpoints": [self.callee.address().to_string()]},
                {"name": "nobody", "endpoints": [self.nobody.to_string()]},
            ],
            "filters": filters,
            "routes": routes,
        })
    }

    /// Sends a row's request without a care for what comes.
    pub(crate) fn provoke(&self, address: SocketAddr, row: &Row) {
        drop(send(address, row));
    }

    /// Sends a row's request to the host at `address` and tells what was seen, a line each.
    pub(crate) fn observe(&self, address: SocketAddr, row: &Row) -> Result<String> {
        drop(self.upstream.take_seen());
        let mut seen = Vec::new();
        if row.start.is_none() {
            self.gate.set(false);
            let answer = send(address, row);
            self.gate.set(true);
            seen.push(told(answer));
        }
        let mut reports = Vec::new();
        for plugin in row.reporters() {
            let mut report = String::new();
            until(REPORT_BOUND, "the report", || {
                let (text, is_over) = fetch(address, row, plugin)?;
                report = text;
                Ok((is_over || row.start.is_some()) && report.contains(&row.until))
            })
            .with_context(|| format!("seen so far: {seen:?}\n{report}"))?;
            reports.extend(report.lines().map(|line| match plugin {
                "probe" => line.to_owned(),
                other => format!("{other} {line}"),
            }));
        }
        for request in self.upstream.take_seen() {
            let mut line = format!("upstream: {} {}", request.method, request.path);
            line.push_str(&shown(&request.headers));
            if !request.body.is_empty() {
                line.push_str(&format!(" {}", bytes(&request.body)));
            }
            if !request.trailers.is_empty() {
                line.push_str(&format!(" trailers{}", shown(&request.trailers)));
            }
            seen.push(line);
        }
        // What every row has need not be read a hundred times.
        seen.retain(|line| {
            ![
                "client: 200; t-up: 1 'ok'",
                "upstream: GET /; host: example.test",
            ]
            .contains(&line.as_str())
        });
        reports.extend(seen);
        Ok(reports.join("\n"))
    }
}

fn send(address: SocketAddr, row: &Row) -> Result<Answer> {
    let ask = &row.request;
    let mut request = Request::get(row.path());
    if let Some(body) = &ask.body {
        request = request.post(&**body);
    }
    if let Some(method) = &ask.method {
        request.method = method.as_bytes().to_vec();
    }
    for (name, value) in &ask.headers {
        request = request.header(name, &**value);
    }
    for (plugin, script) in row.scripts() {
        request = request.header(&format!("x-{plugin}"), script);
    }
    request = request.header("x-row", &*row.name);
    let mut route = Route::plain(address);
    if ask.http2 {
        route.protocol = Protocol::Http2;
        return route.send(&request);
    }
    match ask.patience_ms {
        Some(ms) => send_patiently(address, &request, Duration::from_millis(ms)),
        None => route.send(&request),
    }
}

/// Waits no longer than that for each part of the answer.
pub(crate) fn send_patiently(
    address: SocketAddr,
    request: &Request,
    patience: Duration,
) -> Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(patience))?;
    request.write(&mut stream)?;
    read_answer(&mut BufReader::new(stream), &request.method)
}

fn fetch(address: SocketAddr, row: &Row, plugin: &str) -> Result<(String, bool)> {
    let path = match plugin {
        "second" => "/two",
        "alone" => "/alone",
        _ => "/",
    };
    let name = if row.start.is_some() {
        "start"
    } else {
        &row.name
    };
    let answer = Route::plain(address)
        .send(&Request::get(path).header(&format!("x-fetch-{plugin}"), name))?;
    Ok((
        answer.text(),
        answer.header("x-over").as_deref() == Some("1"),
    ))
}

/// The headers that speak of the probe: hosts add others of their own.
fn shown(headers: &Headers) -> String {
    const SHOWN: [&str; 6] = [
        "host",
        "content-type",
        "content-length",
        "grpc-status",
        "grpc-message",
        "location",
    ];
    let mut lines: Vec<String> = headers
        .iter()
        .filter_map(|(name, value)| {
            let name = String::from_utf8_lossy(name);
            let is_shown = name.starts_with("t-") || SHOWN.contains(&&*name);
            is_shown.then(|| format!("; {name}: {}", value.escape_ascii()))
        })
        .collect();
    lines.sort();
    lines.concat()
}

fn bytes(bytes: &[u8]) -> String {
    let shown = bytes.get(..80).unwrap_or(bytes);
    let more = if bytes.len() > 80 {
        format!("… {} bytes", bytes.len())
    } else {
        String::new()
    };
    format!("'{}'{more}", shown.escape_ascii())
}

fn told(answer: Result<Answer>) -> String {
    let Ok(answer) = answer else {
        return "client: no whole answer".into();
    };
    let text = answer.text();
    let is_problem = text.contains("decision_id") || text.starts_with("upstream connect error");
    let mut line = format!("client: {}", answer.status);
    // What a proxy says of its own to the client is none of its plugins' business.
    if !is_problem {
        let length = format!("; content-length: {}", answer.body.len());
        line.push_str(&shown(&answer.headers).replace(&length, ""));
        if !answer.body.is_empty() {
            line.push_str(&format!(" {}", bytes(&answer.body)));
        }
    }
    if !answer.trailers.is_empty() {
        line.push_str(&format!(" trailers{}", shown(&answer.trailers)));
    }
    line
}
