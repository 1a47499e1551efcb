//! What clients and upstreams may do to the proxy: it answers as it must, serves the next request, and stays small.

use std::io::{BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::child::until;
use portcullis_tests::client::Route;
use portcullis_tests::free_port::free_address;
use portcullis_tests::http1::{Request, read_answer, read_body, read_head, read_request_body};
use portcullis_tests::raw_upstream::RawUpstream;
use portcullis_tests::upstream::Upstream;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::hostile::guest;
use crate::served::Served;

const GIB: u64 = 1 << 30;
const CHUNK: usize = 256 * 1024;

/// How much the proxy may grow while a GiB passes.
const GROWTH_BYTES_MAX: u64 = 48 << 20;

/// A proxy with security-headers, a guest that looks at bodies, and jwt-auth below `/api`.
pub(crate) struct Scene {
    pub(crate) served: Served,
    pub(crate) address: SocketAddr,
    folder: TempDir,
}

pub(crate) fn scene(upstream: SocketAddr) -> Result<Scene> {
    let folder = tempfile::tempdir()?;
    let looks = folder.path().join("looks.wasm");
    let text =
        "(func (export \"proxy_on_request_body\") (param i32 i32 i32) (result i32) (i32.const 0))
        (func (export \"proxy_on_response_body\") (param i32 i32 i32) (result i32) (i32.const 0))";
    std::fs::write(&looks, guest("", text)?)?;
    let jwk = jwt_auth::testing::public_jwk("rsa-1").map_err(anyhow::Error::msg)?;
    let address = free_address()?;
    let policy: Value = json!({
        "workers": 1,
        "access_log": folder.path().join("access.log"),
        "listeners": [{"name": "plain", "address": address.to_string()}],
        "clusters": [
            {"name": "upstream", "endpoints": [upstream.to_string()], "request_timeout": "off"},
            {"name": "nobody", "endpoints": [free_address()?.to_string()]},
        ],
        "filters": [
            {"name": "security-headers", "module": "builtin:security-headers"},
            {"name": "looks", "module": looks},
            {"name": "jwt-auth", "module": "builtin:jwt-auth", "configuration": {
                "providers": [{"issuer": "https://issuer.test", "audiences": ["api"], "jwks": {"keys": [jwk]}}],
            }},
        ],
        "routes": [
            {"name": "open", "cluster": "upstream", "filters": {"jwt-auth": "off"}},
            {"name": "api", "prefix": "/api", "cluster": "upstream"},
            {"name": "nobody", "prefix": "/nobody", "cluster": "nobody", "filters": {"jwt-auth": "off"}},
        ],
    });
    Ok(Scene {
        served: Served::start(&policy)?,
        address,
        folder,
    })
}

impl Scene {
    /// Waits until the access log has so many lines of a POST with just this flag.
    fn has_logged(&self, flag: &str, lines: usize) -> Result<()> {
        let flag = format!("\"flags\":\"{flag}\"");
        until(Duration::from_secs(20), &flag, || {
            let log = std::fs::read_to_string(self.folder.path().join("access.log"))?;
            let posts = log.lines().filter(|it| it.contains("\"method\":\"POST\""));
            Ok(posts.filter(|it| it.contains(&flag)).count() == lines)
        })
    }

    /// A request after this one is served, and nothing has panicked.
    pub(crate) fn serves(&self) -> Result<()> {
        let answer = Route::plain(self.address).send(&Request::get("/"))?;
        ensure!(
            answer.status == 200,
            "the next request got {}",
            answer.status
        );
        ensure!(
            !self.served.process.log().contains("panicked at"),
            "a thread of the host panicked"
        );
        Ok(())
    }
}

/// A request by name, byte for byte, and the status that it must get.
fn requests() -> Vec<(&'static str, Vec<u8>, u16)> {
    let with =
        |path: &str, name: &str, value: Vec<u8>| Request::get(path).header(name, value).head();
    let raw = |text: &str| text.as_bytes().to_vec();
    let many: String = (0..300).map(|index| format!("x-{index}: y\r\n")).collect();
    vec![
        (
            "bytes that are no UTF-8",
            with("/", "x-name", vec![0xff, 0xfe, 0x80]),
            200,
        ),
        (
            "a token of such bytes",
            with(
                "/api",
                "authorization",
                b"Bearer \xff\xfe.\x80.\xc0".to_vec(),
            ),
            401,
        ),
        (
            "a header of 100 KiB",
            with("/", "x-long", vec![b'a'; 100 * 1024]),
            431,
        ),
        (
            "a token of 1 MiB",
            with(
                "/api",
                "authorization",
                [b"Bearer ".to_vec(), vec![b'a'; 1 << 20]].concat(),
            ),
            431,
        ),
        (
            "300 headers",
            raw(&format!(
                "GET / HTTP/1.1\r\nhost: example.test\r\n{many}\r\n"
            )),
            431,
        ),
        ("no host", raw("GET / HTTP/1.1\r\n\r\n"), 400),
        (
            "two lengths",
            raw("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab"),
            400,
        ),
        (
            // RFC 9112 section 6.1: the chunks count; the length must not reach the upstream. Envoy refuses it (ambiguous.rs).
            "a length and chunks",
            raw(
                "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            ),
            200,
        ),
        (
            "a length that is none",
            raw("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n"),
            400,
        ),
        (
            "a chunk whose length is none",
            raw(
                "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nab\r\n0\r\n\r\n",
            ),
            400,
        ),
        (
            "a folded header",
            raw("GET / HTTP/1.1\r\nhost: a\r\nx-a: b\r\n c\r\n\r\n"),
            400,
        ),
        (
            "a space before the colon",
            raw("GET / HTTP/1.1\r\nhost: a\r\nx-a : b\r\n\r\n"),
            400,
        ),
        (
            "a NUL in a header",
            raw("GET / HTTP/1.1\r\nhost: a\r\nx-a: b\0c\r\n\r\n"),
            400,
        ),
        (
            "an escaped slash",
            raw("GET /a%2Fb HTTP/1.1\r\nhost: a\r\n\r\n"),
            400,
        ),
        (
            "an escaped backslash",
            raw("GET /a%5cb HTTP/1.1\r\nhost: a\r\n\r\n"),
            400,
        ),
        (
            "no HTTP at all",
            raw("\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"),
            400,
        ),
        (
            "an upstream that nobody is",
            raw("GET /nobody HTTP/1.1\r\nhost: a\r\n\r\n"),
            503,
        ),
        (
            "dots out of the open",
            raw("GET /open/../api HTTP/1.1\r\nhost: a\r\n\r\n"),
            401,
        ),
        (
            "an escaped dot out of the open",
            raw("GET /open/%2e%2e/api HTTP/1.1\r\nhost: a\r\n\r\n"),
            401,
        ),
        (
            "slashes before the path",
            raw("GET //api HTTP/1.1\r\nhost: a\r\n\r\n"),
            401,
        ),
        (
            "a backslash in the path",
            raw("GET /open\\..\\api HTTP/1.1\r\nhost: a\r\n\r\n"),
            401,
        ),
    ]
}

#[test]
fn odd_requests_get_their_status() -> Result<()> {
    let upstream = Upstream::start()?;
    let scene = scene(upstream.address())?;
    let mut failures = String::new();
    for (name, bytes, status) in requests() {
        let result = (|| {
            let mut connection = Route::plain(scene.address).open()?;
            // A server that refuses early may reset while the rest is still being sent; the answer counts.
            let written = connection.write(&bytes);
            let answer = read_answer(connection.reader(), b"GET")
                .with_context(|| format!("written: {written:?}"))?;
            ensure!(
                answer.status == status,
                "expected {status}, got {} {}",
                answer.status,
                answer.text()
            );
            scene.serves()
        })();
        if let Err(error) = result {
            failures.push_str(&format!("{name}: {error:#}\n"));
        }
    }
    assert!(
        failures.is_empty(),
        "{failures}\n{}",
        scene.served.process.last_words()
    );
    scene.has_logged("DPE", 1)?;
    // What hyper refuses by itself is counted when the connection ends.
    until(Duration::from_secs(20), "the unreadable heads", || {
        let count = |reason| {
            scene
                .served
                .metric(&["portcullis_unreadable_heads_total{", reason])
        };
        Ok((count("malformed")?, count("too_large")?) == (6.0, 3.0))
    })?;
    let seen = upstream.take_seen();
    for seen in &seen {
        let framed = seen
            .headers
            .iter()
            .filter(|(name, _)| name == b"content-length" || name == b"transfer-encoding");
        assert!(
            framed.count() <= 1,
            "two framings reached the upstream: {:?}",
            seen.headers
        );
    }
    let odd = seen
        .iter()
        .flat_map(|seen| &seen.headers)
        .find(|(name, _)| name == b"x-name");
    assert_eq!(
        odd.map(|(_, value)| value.as_slice()),
        Some(&[0xff, 0xfe, 0x80][..]),
        "bytes pass as they are"
    );
    Ok(())
}

#[test]
fn a_gib_up_and_a_gib_down_in_flat_memory() -> Result<()> {
    let upstream = RawUpstream::start(|line, headers, stream| {
        let mut bytes = 0_u64;
        read_request_body(stream, headers, &mut |part| bytes += part.len() as u64)?;
        let stream = stream.get_mut();
        if line.starts_with("GET /down") {
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {GIB}\r\n\r\n")?;
            let chunk = vec![b'd'; CHUNK];
            for _ in 0..GIB / CHUNK as u64 {
                stream.write_all(&chunk)?;
            }
        } else {
            let body = bytes.to_string();
            write!(
                stream,
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            )?;
        }
        Ok(true)
    })?;
    let scene = scene(upstream.address())?;
    scene.serves()?;
    let before = scene.served.process.resident_bytes()?;

    let mut connection = Route::plain(scene.address).open()?;
    connection.write(
        format!("POST /up HTTP/1.1\r\nhost: a\r\ncontent-length: {GIB}\r\n\r\n").as_bytes(),
    )?;
    let chunk = vec![b'u'; CHUNK];
    for _ in 0..GIB / CHUNK as u64 {
        connection.write(&chunk)?;
    }
    let answer = read_answer(connection.reader(), b"POST")?;
    assert_eq!(
        (answer.status, answer.text()),
        (200, GIB.to_string()),
        "the upstream got all of it"
    );

    connection.write(b"GET /down HTTP/1.1\r\nhost: a\r\n\r\n")?;
    let head = read_head(connection.reader())?;
    assert_eq!(head.status, 200);
    let mut bytes = 0_u64;
    read_body(connection.reader(), &head, b"GET", &mut |part| {
        bytes += part.len() as u64
    })?;
    assert_eq!(bytes, GIB, "the client got all of it");

    let grown = scene
        .served
        .process
        .resident_bytes_max()?
        .saturating_sub(before);
    assert!(
        grown < GROWTH_BYTES_MAX,
        "the proxy grew by {} MiB",
        grown >> 20
    );
    scene.serves()
}

#[test]
fn a_client_that_aborts_ends_its_request_at_the_upstream() -> Result<()> {
    let (tell, told) = mpsc::channel();
    let upstream = RawUpstream::start(move |line, headers, stream| {
        if line.starts_with("POST /aborted") {
            let mut bytes = 0_usize;
            let result = read_request_body(stream, headers, &mut |part| {
                bytes += part.len();
                // The receiver is gone only when the test has failed already.
                tell.send(bytes > 0).ok();
            });
            tell.send(result.is_ok()).ok();
            return Ok(false);
        }
        stream
            .get_mut()
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")?;
        Ok(true)
    })?;
    let scene = scene(upstream.address())?;
    let bound = Duration::from_secs(20);
    for _ in 0..20 {
        let mut connection = Route::plain(scene.address).open()?;
        connection
            .write(b"POST /aborted HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\npart")?;
        assert!(told.recv_timeout(bound)?, "the part arrives at once");
        drop(connection);
        while told
            .recv_timeout(bound)
            .context("the upstream never learns of the abort")?
        {}
        scene.serves()?;
    }
    scene.has_logged("DC", 20)
}

#[test]
fn an_upstream_that_dies() -> Result<()> {
    let upstream = RawUpstream::start(|line, _, stream| {
        let stream: &mut TcpStream = stream.get_mut();
        let words: &[u8] = match line.split(' ').nth(1).unwrap_or_default() {
            "/half" => b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf",
            "/half-chunk" => b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n64\r\nhalf",
            "/half-head" => b"HTTP/1.1 200 OK\r\nx-a: b",
            "/nothing" => b"",
            "/garbage" => b"\x00\x01\x02 what?\r\n\r\n",
            "/long-head" => return long_head(stream),
            _ => b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        };
        stream.write_all(words)?;
        stream.shutdown(Shutdown::Both)?;
        Ok(false)
    })?;
    let scene = scene(upstream.address())?;
    let mut failures = String::new();
    for (path, statuses) in [
        ("/half-head", &[502, 503][..]),
        ("/nothing", &[502, 503]),
        ("/garbage", &[502]),
        ("/long-head", &[502]),
    ] {
        let answer = Route::plain(scene.address).send(&Request::get(path));
        let status = answer.as_ref().map(|answer| answer.status).ok();
        if !status.is_some_and(|status| statuses.contains(&status)) {
            failures.push_str(&format!("{path}: expected {statuses:?}, got {answer:?}\n"));
        }
        scene.serves()?;
    }
    // The head had gone out: the client must not take the part for the whole.
    for path in ["/half", "/half-chunk"] {
        let answer = Route::plain(scene.address).send(&Request::get(path));
        if answer.is_ok_and(|answer| answer.status == 200) {
            failures.push_str(&format!("{path}: half an answer looks like a whole one\n"));
        }
        scene.serves()?;
    }
    assert!(
        failures.is_empty(),
        "{failures}\n{}",
        scene.served.process.last_words()
    );
    Ok(())
}

fn long_head(stream: &mut TcpStream) -> Result<bool> {
    stream.write_all(b"HTTP/1.1 200 OK\r\n")?;
    let line = format!("x-long: {}\r\n", "a".repeat(8 * 1024));
    for _ in 0..256 {
        stream.write_all(line.as_bytes())?;
    }
    Ok(false)
}

#[test]
fn a_thousand_connections_that_say_nothing() -> Result<()> {
    let upstream = Upstream::start()?;
    let scene = scene(upstream.address())?;
    let before = scene.served.process.resident_bytes()?;
    let mut silent = Vec::new();
    for _ in 0..1000 {
        silent.push(TcpStream::connect(scene.address)?);
    }
    scene.serves()?;
    let grown = scene
        .served
        .process
        .resident_bytes()?
        .saturating_sub(before);
    assert!(
        grown < GROWTH_BYTES_MAX,
        "1000 silent connections cost {} MiB",
        grown >> 20
    );
    drop(silent);
    scene.serves()
}

#[test]
fn a_pipeline_is_answered_in_order() -> Result<()> {
    let upstream = Upstream::start()?;
    let scene = scene(upstream.address())?;
    let stream = TcpStream::connect(scene.address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut stream = BufReader::new(stream);
    let mut all = Vec::new();
    for path in ["/1", "/api", "/3"] {
        all.extend_from_slice(&Request::get(path).head());
    }
    stream.get_mut().write_all(&all)?;
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(read_answer(&mut stream, b"GET")?.status);
    }
    assert_eq!(statuses, [200, 401, 200]);
    stream.get_ref().shutdown(Shutdown::Write)?;
    let mut rest = Vec::new();
    until(Duration::from_secs(20), "the end of the connection", || {
        Ok(stream.read_to_end(&mut rest).is_ok())
    })?;
    assert!(rest.is_empty(), "there is more than was asked for");
    Ok(())
}
