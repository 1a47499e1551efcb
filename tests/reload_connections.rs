//! Connections across reloads that end their listener's terms, or come in the middle of a handshake.

use std::io::ErrorKind::{TimedOut, WouldBlock};
use std::io::{BufReader, Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, Result, bail, ensure};
use portcullis_tests::certificates::{Certificates, SERVER_NAME};
use portcullis_tests::child::until;
use portcullis_tests::client::{Route, Security};
use portcullis_tests::free_port::free_address;
use portcullis_tests::http1::{Request, read_answer};
use serde_json::{Value, json};

use crate::reloaded::{BOUND, Reloaded, expect_close, metric, set_edition};

/// An HTTP/2 client that answers nothing: no SETTINGS, no PING, no GOAWAY.
struct Deaf(TcpStream);

/// RFC 9113 §6.
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;

impl Deaf {
    fn connect(address: std::net::SocketAddr) -> Result<Self> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(BOUND))?;
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")?;
        Ok(Self(stream))
    }

    fn open(&mut self, id: u32, path: &str) -> Result<()> {
        // RFC 7541: GET, http, and two fields by the index of their name.
        let mut block = vec![0x82, 0x86];
        for (name, value) in [(0x04, path), (0x01, "localhost")] {
            block.extend([name, u8::try_from(value.len())?]);
            block.extend(value.as_bytes());
        }
        let length = u32::try_from(block.len())?.to_be_bytes();
        // END_STREAM and END_HEADERS.
        self.0
            .write_all(&[length.get(1..).unwrap_or_default(), &[HEADERS, 5]].concat())?;
        self.0
            .write_all(&[&id.to_be_bytes()[..], &block].concat())?;
        Ok(())
    }

    /// What comes first on this stream: its answer, or a reset.
    fn first(&mut self, id: u32) -> Result<u8> {
        loop {
            let mut head = [0; 9];
            self.0.read_exact(&mut head)?;
            let [a, b, c, kind, _, stream @ ..] = head;
            let mut payload = vec![0; usize::try_from(u32::from_be_bytes([0, a, b, c]))?];
            self.0.read_exact(&mut payload)?;
            if u32::from_be_bytes(stream) == id {
                return Ok(kind);
            }
        }
    }
}

#[test]
fn a_client_that_does_not_let_http2_end_opens_no_more_streams() -> Result<()> {
    let mut proxy = Reloaded::start(|_, _| {})?;
    let mut client = Deaf::connect(proxy.address("plain")?)?;
    client.open(1, "/held")?;
    proxy.upstream.wait()?;
    client.open(3, "/")?;
    ensure!(client.first(3)? == HEADERS);
    // Its listener goes, and with it the connection should.
    proxy.reload(|policy| {
        set_edition(policy, 2);
        policy["listeners"] = json!([{"name": "second", "address": "127.0.0.1:0"}]);
    })?;
    let mut id = 3;
    until(BOUND, "a stream to be refused", || {
        id += 2;
        client.open(id, "/")?;
        match client.first(id)? {
            HEADERS => Ok(false),
            RST_STREAM => Ok(true),
            other => bail!("a frame of kind {other} on stream {id}"),
        }
    })?;
    // What it has asked for it gets, and then no more.
    proxy.upstream.let_go.send(())?;
    ensure!(client.first(1)? == HEADERS);
    match std::io::copy(&mut client.0, &mut std::io::sink()) {
        Err(error) if matches!(error.kind(), TimedOut | WouldBlock) => {
            Err(error).context("the connection stays")
        }
        // At its end, or reset.
        _ => Ok(()),
    }
}

#[test]
fn tcp_connections_are_closed_where_others_are_let_in() -> Result<()> {
    let mut made = None;
    let mut proxy = Reloaded::start(|policy, folder| {
        let certificates = Certificates::make(folder).unwrap();
        policy["listeners"] = json!([
            policy["listeners"][0],
            {"name": "tcp", "address": "127.0.0.1:0", "tcp": {"cluster": "upstream"}, "tls": {
                "certificate_chain": certificates.chain, "private_key": certificates.key,
            }},
        ]);
        made = Some(certificates);
    })?;
    let certificates = made.context("no certificates")?;
    let route = Route::tls(proxy.address("tcp")?, Security::Tls13, &certificates);
    let mut kept = route.open()?;
    ensure!(kept.exchange(&Request::get("/"))?.status == 200);
    proxy.reload(|policy| set_edition(policy, 2))?;
    ensure!(kept.exchange(&Request::get("/"))?.status == 200);
    let authority = certificates.authority.clone();
    proxy.reload(|policy| {
        policy["listeners"][1]["tls"]["client_ca"] = json!(authority);
        policy["listeners"][1]["tls"]["require_client_certificate"] = true.into();
    })?;
    expect_close(&mut kept).context("a client without a certificate stays")
}

#[test]
fn a_tcp_connection_goes_where_its_listener_led_when_it_came() -> Result<()> {
    let mut made = None;
    let address = free_address()?;
    let mut proxy = Reloaded::start(|policy, folder| {
        let certificates = Certificates::make(folder).unwrap();
        policy["listeners"] = json!([
            policy["listeners"][0],
            {"name": "tcp", "address": address.to_string(), "tcp": {"cluster": "upstream"}, "tls": {
                "certificate_chain": certificates.chain, "private_key": certificates.key,
            }},
        ]);
        made = Some(certificates);
    })?;
    let certificates = made.context("no certificates")?;
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(BOUND))?;
    until(BOUND, "the connection to be accepted", || {
        Ok(metric(&proxy, &["portcullis_downstream_connections{"])? == 1.0)
    })?;
    // Another name, and another cluster, where nobody is.
    let nowhere = free_address()?;
    proxy.reload(|policy| {
        policy["clusters"] = json!([
            policy["clusters"][0], {"name": "nowhere", "endpoints": [nowhere.to_string()]},
        ]);
        policy["listeners"][1]["name"] = "renamed".into();
        policy["listeners"][1]["tcp"]["cluster"] = "nowhere".into();
    })?;
    let config = certificates.client(&rustls::version::TLS13, b"http/1.1")?;
    let session = rustls::ClientConnection::new(config, SERVER_NAME.try_into()?)?;
    let mut stream = BufReader::new(rustls::StreamOwned::new(session, stream));
    Request::get("/").write(stream.get_mut())?;
    let answer = read_answer(&mut stream, b"GET")?;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(())
}

#[test]
fn the_number_of_workers_is_told_as_it_is() -> Result<()> {
    let mut proxy = Reloaded::start(|_, _| {})?;
    let told = |proxy: &Reloaded| -> Result<Value> {
        let told: Value = serde_json::from_slice(&proxy.admin("/policy")?.body)?;
        Ok(told["workers"].clone())
    };
    ensure!(told(&proxy)? == 2);
    proxy.reload(|policy| policy["workers"] = 3.into())?;
    ensure!(told(&proxy)? == 2, "a reload starts no worker");
    Ok(())
}
