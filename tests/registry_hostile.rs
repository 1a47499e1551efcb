//! Registries that are broken or mean harm: each is refused with its reason, after few bytes and little time.

use std::fmt::Write as _;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use portcullis_tests::redis_server::{Duplex, ScriptedServer};
use serde_json::{Value, json};

use crate::registry::{refused, run};

/// Less than a pull's time-out, on a busy machine.
const SOON: Duration = Duration::from_secs(40);

/// What a registry answers.
enum Body {
    Whole(Vec<u8>),
    /// More is promised than comes.
    Cut(Vec<u8>),
    /// It never ends.
    Endless,
}

struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Body,
}

impl Reply {
    fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Body::Whole(body.into()),
        }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// A registry without TLS that answers to a path and a request's head (lower-case) as it is told.
fn registry(
    answer: impl Fn(&str, &str) -> Reply + Send + Sync + 'static,
    sent: Arc<AtomicUsize>,
) -> Result<ScriptedServer> {
    ScriptedServer::start(None, move |stream| {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            // A ClientHello: hung up on, as a server without TLS does.
            if stream.read(&mut byte)? == 0 || byte == [0x16] && head.is_empty() {
                return Ok(());
            }
            head.push(byte[0]);
        }
        let head = String::from_utf8(head)?;
        let path = head.split(' ').nth(1).context("no path")?;
        write_reply(stream, &answer(path, &head), &sent)
    })
}

fn write_reply(stream: &mut dyn Duplex, reply: &Reply, sent: &AtomicUsize) -> Result<()> {
    let mut head = format!("HTTP/1.1 {} x\r\nconnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        write!(head, "{name}: {value}\r\n")?;
    }
    match &reply.body {
        Body::Whole(bytes) => write!(head, "content-length: {}\r\n\r\n", bytes.len())?,
        Body::Cut(bytes) => write!(head, "content-length: {}\r\n\r\n", bytes.len() + 1)?,
        Body::Endless => head.push_str("\r\n"),
    }
    stream.write_all(head.as_bytes())?;
    match &reply.body {
        Body::Whole(bytes) | Body::Cut(bytes) => stream.write_all(bytes)?,
        Body::Endless => loop {
            let chunk = [b' '; 16 * 1024];
            stream.write_all(&chunk)?;
            sent.fetch_add(chunk.len(), Ordering::Relaxed);
        },
    }
    Ok(())
}

fn sha256(bytes: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, bytes);
    let digits = digest.as_ref().iter().map(|byte| format!("{byte:02x}"));
    digits.collect()
}

fn base64(text: &str) -> String {
    STANDARD.encode(text)
}

/// A bare module, and a manifest that names it with this size.
fn image(size: usize) -> (Vec<u8>, Vec<u8>) {
    let module = b"\0asm\x01\0\0\0".to_vec();
    let blob = json!({"mediaType": "application/wasm", "digest": format!("sha256:{}", sha256(&module)), "size": size});
    let manifest = json!({"schemaVersion": 2, "config": blob, "layers": [blob]});
    (manifest.to_string().into_bytes(), module)
}

#[test]
fn harm_is_refused_with_its_reason() -> Result<()> {
    let (manifest, module) = image(8);
    let (greedy, _) = image(1 << 40);
    let (pinned, pinned_greedy) = (sha256(&manifest), sha256(&greedy));
    let layers = |reply: fn(&[u8]) -> Reply| {
        let (manifest, module) = (manifest.clone(), module.clone());
        move |path: &str, _: &str| match path.contains("/manifests/") {
            true => Reply::new(200, manifest.clone()),
            false => reply(&module),
        }
    };
    type Answer = Box<dyn Fn(&str, &str) -> Reply + Send + Sync>;
    let rows: Vec<(&str, &str, Answer, &str)> = vec![
        (
            "an endless manifest",
            &pinned,
            Box::new(|_, _| Reply {
                status: 200,
                headers: Vec::new(),
                body: Body::Endless,
            }),
            "longer than 4194304 bytes",
        ),
        (
            "an endless error",
            &pinned,
            Box::new(|_, _| Reply {
                status: 500,
                headers: Vec::new(),
                body: Body::Endless,
            }),
            "longer than",
        ),
        (
            "a head without end",
            &pinned,
            Box::new(|_, _| Reply::new(200, "").with("x", "y".repeat(1 << 20))),
            "127.0.0.1",
        ),
        (
            "another manifest",
            &pinned,
            Box::new(|_, _| Reply::new(200, "{}")),
            "another manifest than was asked for",
        ),
        (
            "a manifest that promises a terabyte",
            &pinned_greedy,
            Box::new(move |_, _| Reply::new(200, greedy.clone())),
            "a module may have",
        ),
        (
            "another layer",
            &pinned,
            Box::new(layers(|_| Reply::new(200, "\0asm\x01\0\0\x01"))),
            "another layer",
        ),
        (
            "a shorter layer",
            &pinned,
            Box::new(layers(|it| Reply::new(200, &it[1..]))),
            "another layer",
        ),
        (
            "a layer cut short",
            &pinned,
            Box::new(layers(|it| Reply {
                status: 200,
                headers: Vec::new(),
                body: Body::Cut(it.to_vec()),
            })),
            "127.0.0.1",
        ),
        (
            "an endless layer",
            &pinned,
            Box::new(layers(|_| Reply {
                status: 200,
                headers: Vec::new(),
                body: Body::Endless,
            })),
            "longer than",
        ),
        (
            "redirects in a circle",
            &pinned,
            Box::new(layers(|_| {
                Reply::new(307, "").with("location", "/v2/a/blobs/again")
            })),
            "redirects without end",
        ),
        (
            "a redirect to plain HTTP elsewhere",
            &pinned,
            Box::new(layers(|_| {
                Reply::new(307, "").with("location", "http://169.254.169.254/latest")
            })),
            "TLS is needed",
        ),
        (
            "a redirect to a file",
            &pinned,
            Box::new(layers(|_| {
                Reply::new(302, "").with("location", "file:///etc/passwd")
            })),
            "not a URL",
        ),
        (
            "a token from plain HTTP elsewhere",
            &pinned,
            Box::new(|_, _| {
                Reply::new(401, "")
                    .with("www-authenticate", "Bearer realm=\"http://10.0.0.1/token\"")
            }),
            "no token: `http://10.0.0.1` is not followed",
        ),
        (
            "an error with control characters",
            &pinned,
            Box::new(|_, _| {
                Reply::new(
                    403,
                    r#"{"errors": [{"code": "DENIED", "message": "no\u001b[2Jway"}]}"#,
                )
            }),
            "403 Forbidden: DENIED no[2Jway",
        ),
    ];
    for (name, digest, answer, words) in rows {
        let home = tempfile::tempdir()?;
        let sent = Arc::new(AtomicUsize::new(0));
        let server = registry(answer, Arc::clone(&sent))?;
        let begun = Instant::now();
        let said = refused(
            home.path(),
            &format!("oci://{}/a@sha256:{digest}", server.address()),
        )
        .context(name)?;
        ensure!(said.contains(words), "{name}: {said}");
        ensure!(!said.contains('\u{1b}'), "{name}: {said}");
        ensure!(begun.elapsed() < SOON, "{name}: {:?}", begun.elapsed());
        // What the bound is, and what sockets hold.
        let sent = sent.load(Ordering::Relaxed);
        ensure!(sent < 32 << 20, "{name}: {sent} bytes were taken");
        let kept = fs::read_dir(home.path().join("portcullis"))
            .into_iter()
            .flatten();
        let kept = kept
            .flatten()
            .filter(|it| it.path().extension().is_some_and(|it| it == "blob"));
        ensure!(kept.count() == 0, "{name}: something of it is kept");
    }
    Ok(())
}

#[test]
fn credentials_are_for_whom_they_are_for() -> Result<()> {
    let (manifest, module) = image(8);
    let pinned = sha256(&manifest);
    let elsewhere_saw = Arc::new(AtomicUsize::new(0));
    let saw = Arc::clone(&elsewhere_saw);
    let elsewhere = registry(
        move |_, head| {
            let shown = head.to_ascii_lowercase().contains("\r\nauthorization:");
            saw.fetch_add(if shown { 1000 } else { 1 }, Ordering::SeqCst);
            Reply::new(200, module.clone())
        },
        Arc::default(),
    )?;
    let location = format!("http://{}/stored", elsewhere.address());
    let basic = format!("authorization: Basic {}", base64("me:hunter2"));
    let server = registry(
        move |path, head| {
            let host = head
                .split("\r\n")
                .find_map(|line| line.strip_prefix("host: "));
            let host = host.unwrap_or_default();
            if path.starts_with("/token?") {
                let asks =
                    path.contains("service=tests") && path.contains("scope=repository%3Aa%3Apull");
                return match asks && head.contains(&basic) {
                    true => Reply::new(200, r#"{"token": "t0ken"}"#),
                    false => Reply::new(401, ""),
                };
            }
            if !head.contains("authorization: Bearer t0ken") {
                let challenge = format!(
                    "Bearer realm=\"http://{host}/token\",service=\"tests\",scope=\"repository:a:pull\""
                );
                return Reply::new(401, "").with("www-authenticate", challenge);
            }
            match path.contains("/manifests/") {
                true => Reply::new(200, manifest.clone()),
                false => Reply::new(307, "").with("location", location.clone()),
            }
        },
        Arc::default(),
    )?;
    let home = tempfile::tempdir()?;
    let host = server.address().to_string();
    let config: Value = json!({"auths": {host: {"auth": base64("me:hunter2")}}});
    fs::write(home.path().join("config.json"), config.to_string())?;
    let reference = format!("oci://{}/a@sha256:{pinned}", server.address());
    // An empty module is pulled, and then has nothing that a plugin needs.
    let output = run(home.path(), &["--log", "trace", "inspect", &reference])?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(said.contains("size           8 bytes"), "{said}");
    for secret in ["hunter2", "t0ken", &base64("me:hunter2")] {
        ensure!(!said.contains(secret), "{secret} is in the log: {said}");
    }
    let saw = elsewhere_saw.load(Ordering::SeqCst);
    ensure!(
        saw == 1,
        "the other server was asked {} times, with credentials {} times",
        saw % 1000,
        saw / 1000
    );
    Ok(())
}
