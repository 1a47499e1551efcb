//! TCP listeners in Portcullis and in Envoy: one guest watches the connections, changes and ends them, and tells what it saw.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use portcullis_tests::build_folder::repository;
use portcullis_tests::certificates::Certificates;
use portcullis_tests::child::until;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use socket2::SockRef;

use crate::places::{ANY_PORT, Here, in_both};
use crate::served;

/// What does not come within it does not come.
const BOUND: Duration = Duration::from_secs(20);

/// An upstream that sends back what it gets, ends when its client does, and ends by itself after a `q`. One thread a connection; they end with
/// the process.
fn echo() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut stream = stream;
                let mut buffer = vec![0; 65536];
                while let Ok(size @ 1..) = stream.read(&mut buffer) {
                    let bytes = buffer.get(..size).unwrap_or_default();
                    if stream.write_all(bytes).is_err() || bytes.starts_with(b"q") {
                        break;
                    }
                }
            });
        }
    });
    Ok(address)
}

/// One client connection.
struct Client(TcpStream);

impl Client {
    fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(BOUND))?;
        stream.set_nodelay(true)?;
        Ok(Self(stream))
    }

    fn send(&mut self, bytes: &str) -> Result<()> {
        Ok(self.0.write_all(bytes.as_bytes())?)
    }

    fn expect(&mut self, expected: &str) -> Result<()> {
        let mut got = vec![0; expected.len()];
        self.0
            .read_exact(&mut got)
            .with_context(|| format!("instead of {expected}"))?;
        ensure!(
            got == expected.as_bytes(),
            "got {} for {expected}",
            got.escape_ascii()
        );
        Ok(())
    }

    /// The rest, up to the end.
    fn rest(&mut self) -> Result<String> {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => {}
            // Closed with bytes unread is a reset; the end all the same.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            Err(error) => return Err(error.into()),
        }
        Ok(String::from_utf8_lossy(&rest).into_owned())
    }

    fn end(&self) -> Result<()> {
        match self.0.shutdown(Shutdown::Write) {
            // The other side was quicker; what it said is still there to be read.
            Err(error) if error.kind() == std::io::ErrorKind::NotConnected => Ok(()),
            ended => Ok(ended?),
        }
    }

    /// Closes with a reset.
    fn reset(self) -> Result<()> {
        SockRef::from(&self.0).set_linger(Some(Duration::ZERO))?;
        Ok(())
    }
}

/// What the guest has seen since the last time; without the line about the connection that asks.
fn transcript(address: SocketAddr) -> Result<String> {
    let mut client = Client::connect(address)?;
    client.send("?")?;
    client.end()?;
    let text = client.rest()?;
    // What others did meanwhile may stand behind it.
    let (before, own) = match text.rfind("new ") {
        Some(at) => text.split_at(at),
        None => bail!("the guest has seen nothing: {text}"),
    };
    let (_, after) = own.split_once('\n').unwrap_or_default();
    Ok(format!("{before}{after}"))
}

/// Collects transcripts until one ends as it is to.
fn saw(address: SocketAddr, expected: &str) -> Result<()> {
    let mut text = String::new();
    until(BOUND, "the guest to see it", || {
        text.push_str(&transcript(address)?);
        Ok(text.len() >= expected.len())
    })
    .with_context(|| format!("seen:\n{text}instead of:\n{expected}"))?;
    ensure!(text == expected, "seen:\n{text}instead of:\n{expected}");
    Ok(())
}

const NEW: &str = "new 2 1 0 12 0\n";
const END: &str = "done\nlog\ndelete\n";

fn rewrites(address: SocketAddr) -> Result<()> {
    let mut client = Client::connect(address)?;
    client.send("r1")?;
    client.expect("Xr1Y")?;
    client.end()?;
    ensure!(client.rest()?.is_empty());
    let expected =
        "downstream 2 0 r1\nupstream 3 0 Xr1\ndownstream 0 1 \nupstream 0 1 \nupstream closed 0\n";
    saw(
        address,
        &format!("{NEW}{expected}downstream closed 1\n{END}"),
    )
}

fn holds(address: SocketAddr) -> Result<()> {
    let mut client = Client::connect(address)?;
    client.send("h1")?;
    saw(address, &format!("{NEW}downstream 2 0 h1\n"))?;
    client.send("2;")?;
    client.expect("h12;")?;
    client.send("t3")?;
    client.expect("t3")?;
    client.reset()?;
    let expected = "downstream 4 0 h12;\nupstream 4 0 h12;\ndownstream 2 0 t3\nupstream 2 0 t3\n";
    saw(address, &format!("{expected}downstream closed 2\n{END}"))
}

fn closes(address: SocketAddr) -> Result<()> {
    let mut client = Client::connect(address)?;
    client.send("c")?;
    ensure!(client.rest()?.is_empty());
    saw(
        address,
        &format!("{NEW}downstream 1 0 c\ndownstream closed 1\n{END}"),
    )?;
    let mut client = Client::connect(address)?;
    client.send("k1")?;
    ensure!(
        client.rest()?.is_empty(),
        "what it closed over came through"
    );
    let expected = "downstream 2 0 k1\nupstream 2 0 k1\ndownstream closed 1\n";
    saw(address, &format!("{NEW}{expected}{END}"))
}

fn is_closed_by_the_upstream(address: SocketAddr) -> Result<()> {
    let mut client = Client::connect(address)?;
    client.send("q")?;
    ensure!(client.rest()? == "q");
    drop(client);
    let text = format!("{NEW}downstream 1 0 q\n");
    let end = format!("upstream closed 0\ndownstream 0 1 \ndownstream closed 2\n{END}");
    // The end may come with the bytes or behind them.
    let split = format!("{text}upstream 1 0 q\nupstream 0 1 \n{end}");
    let joined = format!("{text}upstream 1 1 q\n{end}");
    let mut seen = String::new();
    until(BOUND, "the guest to see the end", || {
        seen.push_str(&transcript(address)?);
        Ok(seen.ends_with("delete\n"))
    })
    .with_context(|| seen.clone())?;
    ensure!(
        seen == split || seen == joined,
        "seen:\n{seen}instead of:\n{split}"
    );
    Ok(())
}

/// The connection that breaks a guest is closed, and so is every other one of that guest; the next one gets a fresh guest.
fn breaks(address: SocketAddr) -> Result<()> {
    let mut client = Client::connect(address)?;
    client.send("z")?;
    ensure!(client.rest()?.is_empty());
    until(BOUND, "a fresh guest", || {
        let mut client = Client::connect(address)?;
        client.send("r")?;
        client.end()?;
        Ok(client.rest()? == "XrY")
    })
}

fn policy(upstream: SocketAddr, module: &Value) -> Value {
    let listener = |name: &str, filters: Value| json!({"name": name, "address": ANY_PORT, "tcp": {"cluster": "echo", "idle_timeout": "30s", "filters": filters}});
    json!({
        "workers": 1,
        "listeners": [
            listener("open", json!([{"name": "watcher", "module": module}])),
            listener("door", json!([{"name": "porter", "module": module, "configuration": {"pause": true}}])),
        ],
        "clusters": [{"name": "echo", "endpoints": [upstream.to_string()]}],
    })
}

fn module(folder: &std::path::Path) -> Result<Value> {
    let path = folder.join("tcp.wasm");
    let guest = repository().join("tests/guests/observers/tcp.wat");
    fs::write(&path, wat::parse_file(guest)?)?;
    Ok(json!(path))
}

#[test]
fn connections_live_as_in_envoy() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let policy = policy(echo()?, &module(folder.path())?);
    for (what, test) in [
        ("rewriting", rewrites as fn(SocketAddr) -> Result<()>),
        ("holding", holds),
        ("closing", closes),
        ("an upstream that closes", is_closed_by_the_upstream),
    ] {
        for listener in ["open", "door"] {
            in_both(what, &policy, listener, test)?;
        }
    }
    in_both("breaking", &policy, "open", breaks)
}

#[test]
fn a_large_transfer_comes_through_whole_and_over_tls() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let certificates = Certificates::make(folder.path())?;
    let mut policy = policy(echo()?, &module(folder.path())?);
    let tls = json!({"certificate_chain": certificates.chain, "private_key": certificates.key});
    for listener in ["/listeners/0", "/listeners/1"] {
        if let Some(keys) = policy.pointer_mut(listener).and_then(Value::as_object_mut) {
            keys.insert("tls".into(), tls.clone());
        }
    }
    // Thirty times what is held on the way.
    let sent: Vec<u8> = (0..8_u32 << 20).map(|at| b'A' + (at % 23) as u8).collect();
    in_both("a large transfer", &policy, "door", |address| {
        let config = certificates.client(&rustls::version::TLS13, b"")?;
        let mut config = Arc::unwrap_or_clone(config);
        config.alpn_protocols.clear();
        let name = ServerName::try_from(certificates.name)?;
        let session = rustls::ClientConnection::new(Arc::new(config), name)?;
        let socket = Client::connect(address)?.0;
        let mut stream = rustls::StreamOwned::new(session, socket);
        let mut received = Vec::with_capacity(sent.len());
        let mut buffer = vec![0; 65536];
        for chunk in sent.chunks(65536) {
            stream.write_all(chunk)?;
            stream.flush()?;
            let due = received.len() + chunk.len();
            while received.len() < due {
                let size = stream.read(&mut buffer)?;
                ensure!(size > 0, "ended after {} bytes", received.len());
                received.extend_from_slice(buffer.get(..size).unwrap_or_default());
            }
        }
        ensure!(received == sent, "the bytes were changed");
        Ok(())
    })
}

#[test]
fn a_stalled_reader_stops_the_sender() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let policy = policy(echo()?, &module(folder.path())?);
    let here = Here::start(&policy, folder.path())?;
    let mut client = Client::connect(here.listener("open")?)?;
    client.0.set_nonblocking(true)?;
    // Nothing is read of what comes back, so at last nothing more is taken.
    let chunk = vec![b'A'; 65536];
    let mut sent = 0_usize;
    let mut refused = 0;
    while refused < 100 {
        match client.0.write(&chunk) {
            Ok(size) => {
                sent += size;
                refused = 0;
                ensure!(sent < 256 << 20, "the proxy holds {sent} bytes");
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                refused += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error.into()),
        }
    }
    client.0.set_nonblocking(false)?;
    client.end()?;
    let mut received = Vec::new();
    client.0.read_to_end(&mut received)?;
    ensure!(
        received.len() == sent,
        "{} of {sent} came back",
        received.len()
    );
    Ok(())
}

#[test]
fn what_cannot_be_is_refused_before_a_port_is_bound() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let module = module(folder.path())?;
    let check = |policy: &Value, expected: &str| -> Result<()> {
        let path = folder.path().join("policy.yaml");
        fs::write(&path, serde_json::to_string_pretty(policy)?)?;
        let output = served::run(&["check", &path.display().to_string()])?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            said.contains(expected),
            "{said} instead of {expected}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    };
    let with = |pointer: &str, value: Value| {
        let mut policy = policy(SocketAddr::from((Ipv4Addr::LOCALHOST, 9)), &module);
        if let Some(place) = policy.pointer_mut(pointer) {
            *place = value;
        }
        policy
    };
    check(&with("/none", Value::Null), ": ok")?;
    check(
        &with("/listeners/0/tcp/cluster", json!("nowhere")),
        "there is no cluster `nowhere`",
    )?;
    check(
        &with("/listeners/0/tcp/filters/0/name", json!("porter")),
        "`porter` is already the name",
    )?;
    check(
        &with(
            "/listeners/0/tcp/filters/0/module",
            json!("builtin:tls-policy"),
        ),
        "has no callback of TCP connections",
    )?;
    check(
        &with("/listeners/0/tcp", json!({"cluster": "echo", "route": "x"})),
        "listeners[0].tcp.route: unknown key",
    )?;
    check(
        &with(
            "/listeners/0",
            json!({"name": "http", "address": "127.0.0.1:0"}),
        ),
        "`routes` is missing",
    )
}
