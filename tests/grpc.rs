//! gRPC callouts in Portcullis and in Envoy: one guest makes them and tells what it saw, callback by callback.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;

use anyhow::{Result, ensure};
use portcullis_tests::build_folder::repository;
use portcullis_tests::certificates::Certificates;
use portcullis_tests::client::Route;
use portcullis_tests::free_port::free_address;
use portcullis_tests::grpc_upstream::GrpcUpstream;
use portcullis_tests::http1::Request;
use serde_json::json;

use crate::places::{ANY_PORT, in_both};

/// Blocks of a request's headers (`--- do=call …`) and the transcript that both hosts must give. `*` stands for words of the host's own.
const TRANSCRIPTS: &str = "tests/guests/observers/grpc.txt";

#[test]
fn callouts_answer_as_in_envoy() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let module = folder.path().join("grpc.wasm");
    let guest = repository().join("tests/guests/observers/grpc.wat");
    fs::write(&module, wat::parse_file(guest)?)?;
    let certificates = Certificates::make(folder.path())?;
    let plain = GrpcUpstream::start(None)?;
    let secure = GrpcUpstream::start(Some(certificates.server(&[b"h2"])?))?;
    let down = free_address()?;
    let cluster = |name: &str, address: SocketAddr| json!({"name": name, "endpoints": [address.to_string()], "protocol": "http2"});
    let mut over_tls = cluster("secure", secure.address());
    if let Some(keys) = over_tls.as_object_mut() {
        keys.insert(
            "tls".into(),
            json!({"sni": certificates.name, "ca": certificates.authority}),
        );
    }
    let policy = json!({
        "workers": 1,
        "listeners": [{"name": "plain", "address": ANY_PORT}],
        "clusters": [cluster("grpc", plain.address()), over_tls, cluster("down", down)],
        "filters": [{"name": "observer", "module": module, "clusters": ["grpc", "secure", "down"]}],
        "routes": [{"name": "all", "cluster": "grpc"}],
    });
    let text = fs::read_to_string(repository().join(TRANSCRIPTS))?;
    let rows: Vec<(&str, Vec<&str>)> = text
        .split("--- ")
        .skip(1)
        .filter_map(|block| {
            let (headers, expected) = block.split_once('\n')?;
            Some((headers, expected.lines().collect()))
        })
        .collect();
    ensure!(rows.len() > 40, "only {} rows", rows.len());
    in_both("gRPC callouts", &policy, "plain", |address| {
        let mut wrong = String::new();
        for (headers, expected) in &rows {
            let seen = transcript(address, headers)?;
            let is_right = seen.lines().count() == expected.len()
                && seen
                    .lines()
                    .zip(expected)
                    .all(|(seen, expected)| matches(seen, expected));
            if !is_right {
                writeln!(wrong, "--- {headers}\n{seen}")?;
            }
        }
        ensure!(wrong.is_empty(), "{wrong}");
        Ok(())
    })
}

/// Whether a line is as expected; one `*` stands for anything.
fn matches(seen: &str, expected: &str) -> bool {
    match expected.split_once('*') {
        Some((start, end)) => seen
            .strip_prefix(start)
            .is_some_and(|rest| rest.ends_with(end)),
        None => seen == expected,
    }
}

fn transcript(address: SocketAddr, headers: &str) -> Result<String> {
    let mut request = Request::get("/");
    for header in headers.split(' ') {
        let (name, value) = header.split_once('=').unwrap_or((header, ""));
        request = request.header(&format!("x-{name}"), value);
    }
    let answer = Route::plain(address).send(&request)?;
    Ok(answer.text())
}
