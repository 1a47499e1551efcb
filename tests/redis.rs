//! Redis callouts over sockets: one guest makes them, to a real Redis, and to servers that fail in each way a server can.
//!
//! Only here: Envoy has none of these hostcalls, they are Higress'.

use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use portcullis_tests::build_folder::repository;
use portcullis_tests::certificates::Certificates;
use portcullis_tests::child::until;
use portcullis_tests::client::Route;
use portcullis_tests::free_port::free_address;
use portcullis_tests::http1::Request;
use portcullis_tests::redis_server::{self, Duplex, RedisServer, ScriptedServer};
use portcullis_tests::report;
use portcullis_tests::upstream::Upstream;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::places::{ANY_PORT, Here};

/// No reply: `NetworkError`, and `BROKEN_CONNECTION` for who asks.
const FAILED: &str = "reply 1 11 ";

/// How soon calls that are too late must have ended.
const ENDED_BOUND: Duration = Duration::from_secs(20);

/// Of `GET k` on the wire.
const GET_BYTES: usize = 20;

/// A running proxy with the guest in `tests/guests/observers/redis.wat`.
struct Bed {
    address: SocketAddr,
    _upstream: Upstream,
    _here: Here,
    folder: TempDir,
}

impl Bed {
    /// With these clusters, all of which the guest may call but for `forbidden`.
    fn start(clusters: &[(&str, SocketAddr)], filter: &Value) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let listed = clusters
            .iter()
            .map(|(name, address)| json!({"name": name, "endpoints": [address.to_string()]}));
        Self::start_in(folder, listed.collect(), filter)
    }

    fn start_in(folder: TempDir, mut clusters: Vec<Value>, filter: &Value) -> Result<Self> {
        let upstream = Upstream::start()?;
        let module = folder.path().join("redis.wasm");
        let guest = repository().join("tests/guests/observers/redis.wat");
        fs::write(&module, wat::parse_file(guest)?)?;
        let names = clusters.iter().filter_map(|cluster| cluster.get("name"));
        let allowed: Vec<_> = names.filter(|name| *name != "forbidden").cloned().collect();
        clusters.push(json!({"name": "upstream", "endpoints": [upstream.address().to_string()]}));
        let mut own = json!({"name": "observer", "module": module, "clusters": allowed});
        if let (Some(own), Some(filter)) = (own.as_object_mut(), filter.as_object()) {
            own.extend(filter.clone());
        }
        let policy = json!({
            "workers": 1,
            "listeners": [{"name": "plain", "address": ANY_PORT}],
            "clusters": clusters,
            "filters": [own],
            "routes": [{"name": "all", "cluster": "upstream"}],
        });
        let here = Here::start(&policy, folder.path())?;
        Ok(Self {
            address: here.listener("plain")?,
            _upstream: upstream,
            _here: here,
            folder,
        })
    }

    /// What the guest answers to a request with these headers.
    fn send(&self, headers: &[(&str, &str)]) -> Result<String> {
        let mut request = Request::get("/");
        for (name, value) in headers {
            request = request.header(name, value.replace("\r\n", "~"));
        }
        let answer = Route::plain(self.address).send(&request)?;
        match answer.status {
            200 => Ok(answer.text()),
            status => Ok(format!("status {status}")),
        }
    }

    fn call(&self, cluster: &str, words: &[&str]) -> Result<String> {
        self.send(&[
            ("x-cluster", cluster),
            ("x-query", &redis_server::command(words)),
        ])
    }

    /// The same after `proxy_redis_init`.
    fn call_as(&self, cluster: &str, user: &str, password: &str, words: &[&str]) -> Result<String> {
        self.send(&[
            ("x-cluster", cluster),
            ("x-timeout", "5000"),
            ("x-user", user),
            ("x-password", password),
            ("x-query", &redis_server::command(words)),
        ])
    }

    /// The same with a time-out of so many ms.
    fn call_within(
        &self,
        cluster: &str,
        timeout_ms: &str,
        more: &[(&str, &str)],
    ) -> Result<String> {
        let query = redis_server::command(&["GET", "k"]);
        let mut headers = vec![
            ("x-cluster", cluster),
            ("x-timeout", timeout_ms),
            ("x-query", query.as_str()),
        ];
        headers.extend_from_slice(more);
        self.send(&headers)
    }
}

/// Redis, unless it is to be left out.
fn redis(what: &str) -> Result<Option<RedisServer>> {
    if let Some(why) = redis_server::left_out() {
        report::not_run(what, why);
        return Ok(None);
    }
    RedisServer::start().map(Some)
}

#[test]
fn commands_reach_redis_and_replies_come_back() -> Result<()> {
    let Some(redis) = redis("commands to a real Redis")? else {
        return Ok(());
    };
    for isolation in ["shared", "plugin", "request"] {
        // Said once at the start, for the VMs of all requests.
        let filter = json!({"isolation": isolation, "configuration": {"c": "redis?db=1"}});
        let bed = Bed::start(&[("redis", redis.address())], &filter)?;
        let (key, value) = (format!("key of {isolation}"), "a~b\r\n");
        assert_eq!(
            bed.call("redis", &["SET", &key, isolation])?,
            "reply 0 +OK\r\n"
        );
        let expected = format!("reply 0 ${}\r\n{isolation}\r\n", isolation.len());
        assert_eq!(bed.call("redis", &["GET", &key])?, expected);
        assert_eq!(redis.ask(&["GET", &key])?, "$-1", "in database 0");
        assert_eq!(bed.call("redis", &["GET", "nothing"])?, "reply 0 $-1\r\n");
        assert_eq!(
            bed.call("redis", &["INCR", &key])?,
            "reply 0 -ERR value is not an integer or out of range\r\n"
        );
        assert_eq!(
            bed.call("redis?db=1", &["LRANGE", "list", "0", "-1"])?,
            "reply 0 *0\r\n"
        );
        assert_eq!(redis.ask(&["SET", "other", value])?, "+OK");
        // Each of many at once gets its own, on one connection.
        thread::scope(|scope| -> Result<()> {
            let ask = |number: usize| bed.call("redis", &["ECHO", &format!("{number:03}")]);
            let asked: Vec<_> = (0..40)
                .map(|number| (number, scope.spawn(move || ask(number))))
                .collect();
            for (number, reply) in asked {
                let reply = reply
                    .join()
                    .map_err(|_| anyhow::anyhow!("a thread panicked"))??;
                assert_eq!(reply, format!("reply 0 $3\r\n{number:03}\r\n"));
            }
            Ok(())
        })?;
        let clients = redis.ask(&["CLIENT", "LIST"])?;
        assert_eq!(clients.lines().count(), 2, "beside this one:\n{clients}");
        // A VM that dies takes its call along; the next reply is not taken for it.
        let doomed = redis_server::command(&["ECHO", "of the dead"]);
        let doomed = [
            ("x-cluster", "redis"),
            ("x-query", &doomed),
            ("x-trap", "1"),
        ];
        assert_eq!(bed.send(&doomed)?, "status 503");
        assert_eq!(
            bed.call("redis", &["ECHO", "alive"])?,
            "reply 0 $5\r\nalive\r\n"
        );
        // RESP3, for this connection.
        assert!(bed.call("redis", &["HELLO", "3"])?.contains("%7\r\n"));
        assert_eq!(bed.call("redis", &["GET", "nothing"])?, "reply 0 _\r\n");
    }
    Ok(())
}

#[test]
fn passwords_are_sent_and_refused() -> Result<()> {
    let Some(redis) = redis("Redis with passwords")? else {
        return Ok(());
    };
    let alice = [
        "ACL",
        "SETUSER",
        "alice",
        "on",
        ">wonder land",
        "~*",
        "+ping",
    ];
    assert_eq!(redis.ask(&alice)?, "+OK");
    let config = ["CONFIG", "SET", "requirepass", "secret"];
    assert_eq!(redis.ask(&config)?, "+OK");
    let bed = Bed::start(&[("redis", redis.address())], &json!({}))?;
    let unknown = "reply 0 -NOAUTH Authentication required.\r\n";
    assert_eq!(bed.call("redis", &["PING"])?, unknown);
    let right = "reply 0 +PONG\r\n";
    assert_eq!(bed.call_as("redis", "", "secret", &["PING"])?, right);
    assert_eq!(
        bed.call("redis", &["PING"])?,
        right,
        "on the same connection"
    );
    assert_eq!(bed.call_as("redis", "", "wrong", &["PING"])?, unknown);
    assert_eq!(
        bed.call_as("redis?db=2", "", "wrong", &["PING"])?,
        unknown,
        "before a database can be chosen"
    );
    assert_eq!(
        bed.call_as("redis", "alice", "wonder land", &["PING"])?,
        right
    );
    let forbidden = bed.call("redis", &["GET", "k"])?;
    assert!(forbidden.starts_with("reply 0 -NOPERM"), "{forbidden}");
    assert_eq!(
        bed.call_as("redis?db=99", "", "secret", &["PING"])?,
        FAILED,
        "no such database"
    );
    assert_eq!(bed.call_as("redis", "", "secret", &["PING"])?, right);
    Ok(())
}

#[test]
fn calls_without_a_reply_end_all_the_same() -> Result<()> {
    let silent = ScriptedServer::start(None, |stream| {
        drop(stream.read_to_end(&mut Vec::new()));
        Ok(())
    })?;
    let breaking = AtomicUsize::new(0);
    // Every other connection breaks in mid-reply.
    let broken = ScriptedServer::start(None, move |stream| {
        stream.read_exact(&mut [0; GET_BYTES])?;
        if breaking.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
            stream.write_all(b"$10\r\nhalf")?;
            return Ok(());
        }
        answer_all(stream, b"+whole\r\n", b"+again\r\n")
    })?;
    let huge = ScriptedServer::start(None, |stream| {
        answer_all(stream, b"$1048577\r\n", &[b'a'; 65536])
    })?;
    let endless = ScriptedServer::start(None, |stream| answer_all(stream, b"+a", &[b'a'; 65536]))?;
    let web = ScriptedServer::start(None, |stream| {
        answer_all(stream, b"HTTP/1.1 400 Bad Request\r\n\r\n", b"")
    })?;
    let chatty =
        ScriptedServer::start(None, |stream| answer_all(stream, b"+one\r\n+two\r\n", b""))?;
    let clusters = [
        ("silent", silent.address()),
        ("broken", broken.address()),
        ("huge", huge.address()),
        ("endless", endless.address()),
        ("web", web.address()),
        ("chatty", chatty.address()),
        ("down", free_address()?),
        ("forbidden", silent.address()),
    ];
    let bed = Bed::start(&clusters, &json!({"limits": {"callouts_in_flight": 2}}))?;
    assert_eq!(bed.call_within("silent", "150", &[])?, FAILED);
    for cluster in ["huge", "endless", "web", "down", "broken"] {
        let seen = bed.call_within(cluster, "20000", &[]);
        assert_eq!(seen.context(cluster)?, FAILED, "{cluster}");
    }
    for reply in ["+whole", "+again"] {
        let seen = bed.call_within("broken", "20000", &[])?;
        assert_eq!(
            seen,
            format!("reply 0 {reply}\r\n"),
            "on the next connection"
        );
    }
    for _ in 0..3 {
        let seen = bed.call_within("chatty", "20000", &[])?;
        assert_eq!(seen, "reply 0 +one\r\n", "the other is nobody's");
    }
    assert_eq!(bed.call_within("forbidden", "1000", &[])?, "init 2 call 2");
    assert_eq!(bed.call_within("unheard-of", "1000", &[])?, "init 2 call 2");
    for query in ["PING\r\n", "*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nPING\r\n", ""] {
        let seen = bed.send(&[("x-cluster", "silent"), ("x-query", query)])?;
        assert_eq!(seen, "call 2", "{query:?}");
    }
    // More than are allowed, and as many again once these have ended.
    let many = |times| bed.call_within("silent", "150", &[("x-times", times)]);
    assert_eq!(many("3")?, "call 10");
    until(ENDED_BOUND, "the calls to end", || Ok(many("2")? == FAILED))?;
    Ok(())
}

/// Answers the first command with one thing, and each after it with another.
fn answer_all(stream: &mut dyn Duplex, first: &[u8], others: &[u8]) -> Result<()> {
    let mut buffer = [0; 1024];
    stream.write_all(first)?;
    stream.flush()?;
    if others.len() > 1024 {
        loop {
            stream.write_all(others)?;
        }
    }
    while stream.read(&mut buffer)? > 0 {
        stream.write_all(others)?;
        stream.flush()?;
    }
    Ok(())
}

#[test]
fn a_cluster_may_have_tls() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let certificates = Certificates::make(folder.path())?;
    let server = ScriptedServer::start(Some(certificates.server(&[])?), |stream| {
        stream.read_exact(&mut [0; GET_BYTES])?;
        answer_all(stream, b"+hidden\r\n", b"+again\r\n")
    })?;
    let cluster = |name: &str, tls: Value| json!({"name": name, "endpoints": [server.address().to_string()], "tls": tls});
    let clusters = vec![
        cluster(
            "outbound|6379||redis.dns",
            json!({"sni": certificates.name, "ca": certificates.authority}),
        ),
        cluster(
            "impostor",
            json!({"sni": "other.test", "ca": certificates.authority}),
        ),
    ];
    let bed = Bed::start_in(folder, clusters, &json!({}))?;
    for reply in ["+hidden", "+again"] {
        let seen = bed.call_within("outbound|6379||redis.dns", "20000", &[])?;
        assert_eq!(seen, format!("reply 0 {reply}\r\n"));
    }
    assert_eq!(bed.call_within("impostor", "20000", &[])?, FAILED);
    assert!(bed.folder.path().is_dir());
    Ok(())
}
