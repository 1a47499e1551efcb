//! Requests that two servers could read in two ways: Portcullis and Envoy with the export give the same answer, and what is known to
//! differ stands here.

use std::io::Read as _;

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::client::Route;
use portcullis_tests::http1::read_answer;
use portcullis_tests::upstream::Upstream;
use serde_json::{Value, json};

use crate::places::{ANY_PORT, Place, in_each};

/// Everything takes a token but what is below `/public`, on any host and on one that has routes of its own.
fn policy(upstream: &Upstream) -> Result<Value> {
    let jwk = jwt_auth::testing::public_jwk("rsa-1").map_err(anyhow::Error::msg)?;
    Ok(json!({
        "workers": 1,
        "listeners": [{"name": "plain", "address": ANY_PORT}],
        "clusters": [{"name": "upstream", "endpoints": [upstream.address().to_string()]}],
        "filters": [
            {"name": "security-headers", "module": "builtin:security-headers"},
            {"name": "jwt-auth", "module": "builtin:jwt-auth", "configuration": {
                "providers": [{"issuer": "https://issuer.test", "audiences": ["api"], "jwks": {"keys": [jwk]}}],
            }},
        ],
        "routes": [
            {"name": "all", "cluster": "upstream"},
            {"name": "public", "prefix": "/public", "cluster": "upstream", "filters": {"jwt-auth": "off"}},
            {"name": "own", "host": "own.test", "cluster": "upstream", "filters": {"jwt-auth": "off"}},
        ],
    }))
}

/// Host, path, and the status here and in Envoy. What has parameters behind plain dots is resolved by Envoy 1.40 as a servlet container
/// would, before it routes and forwards it; we refuse it.
const DOT_SEGMENTS: &[(&str, &str, u16, u16)] = &[
    ("example.test", "/public/hello", 200, 200),
    ("example.test", "/hello", 401, 401),
    ("example.test", "/public/../hello", 401, 401),
    ("example.test", "/public/..;/hello", 400, 401),
    ("example.test", "/public/..;", 400, 401),
    ("example.test", "/public/..;a=b/hello?c=d", 400, 401),
    ("example.test", "/public/..;/../hello", 400, 401),
    ("example.test", "/..;/hello", 400, 401),
    ("example.test", "/public/.;/hello", 400, 200),
    ("example.test", "/public/.;a=b", 400, 200),
    ("example.test", "/public//..;//hello", 400, 200),
    ("example.test", "/public\\..;\\hello", 400, 400),
    ("example.test", "/public/%2e%2e;/hello", 400, 400),
    ("example.test", "/public/.%2E;/hello", 400, 400),
    ("example.test", "/public/%2e;/hello", 400, 400),
    ("example.test", "/public/..%3b/hello", 400, 400),
    ("example.test", "/public/..%3Bx/hello", 400, 400),
    ("example.test", "/public/%2e%2E%3b/hello", 400, 400),
    ("example.test", "/public/a;b=c/hello", 200, 200),
    ("example.test", "/public/..a;/hello", 200, 200),
    ("example.test", "/public/...;/hello", 200, 200),
    ("example.test", "/public/hello?a=/..;/b", 200, 200),
    ("own.test", "/hello", 200, 200),
    ("own.test", "/a/%2e%2e;/hello", 400, 400),
];

#[test]
fn dot_segments_with_parameters_lead_nowhere() -> Result<()> {
    let upstream = Upstream::start()?;
    in_each("dot segments", &policy(&upstream)?, |place, address_of| {
        let address = address_of("plain")?;
        let mut failures = String::new();
        for (host, path, here, envoy) in DOT_SEGMENTS {
            let status = match place {
                Place::Portcullis => *here,
                Place::Envoy => *envoy,
            };
            let mut connection = Route::plain(address).open()?;
            connection.write(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes())?;
            let answer = read_answer(connection.reader(), b"GET").context(*path)?;
            if answer.status != status {
                failures.push_str(&format!("{host}{path}: {status}, not {}\n", answer.status));
            }
            if answer.header("x-content-type-options").as_deref() != Some("nosniff") {
                failures.push_str(&format!("{host}{path}: no security headers\n"));
            }
            let seen = upstream.take_seen();
            let climbs = |target: &str| {
                let path = target.split('?').next().unwrap_or_default();
                path.split('/').any(is_climb)
            };
            if (seen.len() == 1) != (status == 200) || seen.iter().any(|seen| climbs(&seen.path)) {
                failures.push_str(&format!("{host}{path}: the upstream saw {seen:?}\n"));
            }
        }
        ensure!(failures.is_empty(), "{failures}");
        Ok(())
    })
}

/// What a servlet container takes for a dot segment.
fn is_climb(segment: &str) -> bool {
    let segment = segment.replace("%2e", ".").replace("%3b", ";");
    let name = segment.split(';').next().unwrap_or_default();
    name == "." || name == ".."
}

/// A request with its answers: here and in Envoy, the status and whether the security headers are on.
type Framing = (&'static str, &'static str, (u16, bool), (u16, bool));

/// Heads that a parser refuses before there is a request. hyper answers them without headers; Envoy, too, where it has no request yet.
const FRAMINGS: &[Framing] = &[
    (
        // RFC 9112 §6.1 leaves it open to refuse the request or to go by the chunks; both places close the connection behind it.
        "a length and chunks",
        "POST /public HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        (200, true),
        (400, true),
    ),
    (
        "chunks and a length",
        "POST /public HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n",
        (200, true),
        (400, true),
    ),
    (
        "a chunk whose length is none",
        "POST /public HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nab\r\n0\r\n\r\n",
        (400, true),
        (400, true),
    ),
    (
        "two lengths",
        "POST /public HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        (400, false),
        (400, true),
    ),
    (
        "an unknown coding",
        "POST /public HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n",
        (400, false),
        (501, true),
    ),
    (
        "chunks that are not last",
        "POST /public HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        (400, false),
        (501, true),
    ),
    (
        "a space before the colon",
        "GET /public HTTP/1.1\r\nhost: a\r\nx-a : b\r\n\r\n",
        (400, false),
        (400, true),
    ),
    ("no HTTP at all", "what?\r\n\r\n", (400, false), (400, true)),
];

#[test]
fn what_cannot_be_framed_in_one_way_only() -> Result<()> {
    let upstream = Upstream::start()?;
    in_each("framing", &policy(&upstream)?, |place, address_of| {
        let address = address_of("plain")?;
        let mut failures = String::new();
        for (name, bytes, here, envoy) in FRAMINGS {
            let expected = match place {
                Place::Portcullis => *here,
                Place::Envoy => *envoy,
            };
            let mut connection = Route::plain(address).open()?;
            connection.write(bytes.as_bytes())?;
            let answer = read_answer(connection.reader(), b"POST").context(*name)?;
            let nosniff = answer.header("x-content-type-options").is_some();
            if (answer.status, nosniff) != expected {
                failures.push_str(&format!(
                    "{name}: {expected:?}, not {:?}\n",
                    (answer.status, nosniff)
                ));
            }
            let mut rest = Vec::new();
            // Nothing behind it may be taken for a request.
            connection
                .reader()
                .read_to_end(&mut rest)
                .with_context(|| format!("{name}: the connection stays open"))?;
            ensure!(rest.is_empty(), "{name}: there is more than one answer");
        }
        for seen in upstream.take_seen() {
            let length = |(name, _): &(Vec<u8>, Vec<u8>)| name == b"content-length";
            ensure!(
                !seen.headers.iter().any(length),
                "the length reached the upstream: {:?}",
                seen.headers
            );
        }
        ensure!(failures.is_empty(), "{failures}");
        Ok(())
    })
}
