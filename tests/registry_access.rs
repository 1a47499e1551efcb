//! Ways to a registry: through a proxy, and with a refresh token; and what an index of images leads to. The registry is real, the proxy and the token server
//! do what their protocols ask.

use std::fs;
use std::io::{BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Output;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use portcullis_tests::certificates::{Certificates, SERVER_NAME};
use portcullis_tests::client::Route;
use portcullis_tests::http1::{Request, read_request_head};
use portcullis_tests::redis_server::ScriptedServer;
use portcullis_tests::registry_server::{self, ISSUER, PASSWORD, RegistryServer, SERVICE, USER};
use portcullis_tests::report;
use serde_json::{Value, json};

use crate::served;

fn left_out(what: &str) -> bool {
    let why = registry_server::left_out();
    if let Some(why) = why {
        report::not_run(what, why);
    }
    why.is_some()
}

fn run(home: &Path, environment: &[(&str, String)], arguments: &[&str]) -> Result<Output> {
    let mut command = served::command()?;
    command
        .env("XDG_CACHE_HOME", home)
        .env("DOCKER_CONFIG", home)
        .args(arguments);
    for name in [
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
        "NO_PROXY",
        "no_proxy",
    ] {
        command.env_remove(name);
    }
    for (name, value) in environment {
        command.env(name, value);
    }
    Ok(command.output()?)
}

fn printed(output: Output) -> Result<String> {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{said}");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn refused(output: &Output) -> Result<String> {
    let said = [&*output.stdout, &*output.stderr].concat();
    let said = String::from_utf8(said)?;
    ensure!(output.status.code() == Some(1), "not refused: {said}");
    Ok(said)
}

/// A proxy that knows one name, and lets in who shows these credentials; what it was asked for, a line each.
fn proxy(
    known: String,
    leads_to: SocketAddr,
    credentials: &'static str,
    asked: Arc<Mutex<Vec<String>>>,
) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let expected = format!("Basic {}", STANDARD.encode(credentials));
    // It ends with the process.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (known, expected, asked) = (known.clone(), expected.clone(), Arc::clone(&asked));
            std::thread::spawn(move || relay(stream, &known, leads_to, &expected, &asked));
        }
    });
    Ok(address)
}

fn relay(
    mut client: TcpStream,
    known: &str,
    leads_to: SocketAddr,
    expected: &str,
    asked: &Mutex<Vec<String>>,
) -> Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let (line, headers) = read_request_head(&mut reader)?.context("no request")?;
    if let Ok(mut asked) = asked.lock() {
        asked.push(line.clone());
    }
    let shown = headers
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(b"proxy-authorization"));
    let is_let_in = shown.is_some_and(|(_, value)| value == expected.as_bytes());
    if !is_let_in {
        client.write_all(b"HTTP/1.1 407 Who are you\r\ncontent-length: 0\r\n\r\n")?;
        return Ok(());
    }
    if line != format!("CONNECT {known} HTTP/1.1") {
        client.write_all(b"HTTP/1.1 403 Not there\r\ncontent-length: 0\r\n\r\n")?;
        return Ok(());
    }
    let mut server = TcpStream::connect(leads_to)?;
    client.write_all(b"HTTP/1.1 200 Go on\r\n\r\n")?;
    let (mut back_from, mut back_to) = (server.try_clone()?, client.try_clone()?);
    std::thread::spawn(move || {
        std::io::copy(&mut back_from, &mut back_to).ok();
        back_to.shutdown(Shutdown::Write).ok();
    });
    std::io::copy(&mut reader, &mut server)?;
    server.shutdown(Shutdown::Write)?;
    Ok(())
}

#[test]
fn a_proxy_leads_to_a_registry() -> Result<()> {
    if left_out("a registry beyond a proxy") {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let home = folder.path();
    let certificates = Certificates::make(home)?;
    let registry = RegistryServer::guarded(&certificates)?;
    // Only the proxy knows where that is.
    let host = format!("{SERVER_NAME}:{}", registry.address().port());
    let config = json!({"auths": {&host: {"username": USER, "password": PASSWORD}}});
    fs::write(home.join("config.json"), config.to_string())?;
    let asked = Arc::new(Mutex::new(Vec::new()));
    let proxy = proxy(
        host.clone(),
        registry.address(),
        "me:s3cret:",
        Arc::clone(&asked),
    )?;
    let trusted = (
        "SSL_CERT_FILE",
        certificates.authority.display().to_string(),
    );
    let image = format!("{host}/a:1");
    let push = ["push", &*image, "--module", "builtin:tls-policy"];
    let with = |name: &'static str, value: String| [trusted.clone(), (name, value)];

    let address = format!("http://me:s3cret%3A@{proxy}");
    let reference = printed(run(home, &with("HTTPS_PROXY", address.clone()), &push)?)?;
    ensure!(
        reference.starts_with(&format!("oci://{host}/a@sha256:")),
        "{reference}"
    );
    let lines = std::mem::take(&mut *asked.lock().map_err(|_| anyhow::anyhow!("poisoned"))?);
    ensure!(
        !lines.is_empty()
            && lines
                .iter()
                .all(|line| *line == format!("CONNECT {host} HTTP/1.1")),
        "{lines:?}"
    );
    let inspect = ["inspect", &*reference];
    let all = run(home, &with("all_proxy", address.clone()), &inspect)?;
    ensure!(printed(all)?.contains("tls-policy"));

    let fresh = tempfile::tempdir()?;
    let without = [
        &with("HTTPS_PROXY", address.clone())[..],
        &[("NO_PROXY", "example.test".into())],
    ];
    let said = refused(&run(fresh.path(), &without.concat(), &inspect)?)?;
    ensure!(
        said.contains(&format!("{host}: failed to lookup address")),
        "{said}"
    );
    for (value, words) in [
        (
            format!("http://me:not-s3cret@{proxy}"),
            format!("{host}: the proxy {proxy} (HTTPS_PROXY): 407: it wants USER:PASSWORD@"),
        ),
        (
            proxy.to_string(),
            format!("the proxy {proxy} (HTTPS_PROXY): 407"),
        ),
        (
            "http://127.0.0.1:1".into(),
            "the proxy 127.0.0.1:1 (HTTPS_PROXY): Connection refused".into(),
        ),
        (
            "socks5://me:s3cret@127.0.0.1:1".into(),
            "HTTPS_PROXY is not http://[USER:PASSWORD@]HOST:PORT".into(),
        ),
    ] {
        let said = refused(&run(
            fresh.path(),
            &with("HTTPS_PROXY", value.clone()),
            &inspect,
        )?)?;
        ensure!(
            said.contains(&words) && !said.contains("s3cret"),
            "{value}: {said}"
        );
    }
    let elsewhere = ["inspect", &*reference.replace("example.test", "other.test")];
    let said = refused(&run(
        fresh.path(),
        &with("HTTPS_PROXY", address),
        &elsewhere,
    )?)?;
    ensure!(
        said.contains("it answers 403 Forbidden to CONNECT other.test:"),
        "{said}"
    );
    Ok(())
}

/// Gives tokens for whatever is asked with this refresh token.
fn token_server(
    refresh_token: &'static str,
    key: EcdsaKeyPair,
    certificate: Vec<u8>,
    given: Arc<AtomicUsize>,
) -> Result<ScriptedServer> {
    ScriptedServer::start(None, move |stream| {
        let mut reader = BufReader::new(&mut *stream);
        let (line, headers) = read_request_head(&mut reader)?.context("no request")?;
        let length = headers
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(b"content-length"));
        let length = length.map_or("0".into(), |(_, value)| String::from_utf8_lossy(value));
        let length = length.parse()?;
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let fields: Vec<(String, String)> = form_fields(&String::from_utf8(body)?);
        let field = |name: &str| {
            fields
                .iter()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.as_str())
        };
        let is_asked = line == "POST /token HTTP/1.1"
            && field("grant_type") == Some("refresh_token")
            && field("refresh_token") == Some(refresh_token)
            && field("service") == Some(SERVICE)
            && field("client_id").is_some();
        let answer = match (is_asked, field("scope")) {
            (true, Some(scope)) => {
                given.fetch_add(1, Ordering::SeqCst);
                let token = token(scope, &key, &certificate)?;
                (
                    "200 OK",
                    json!({"access_token": token, "scope": scope}).to_string(),
                )
            }
            _ => ("401 Unauthorized", String::new()),
        };
        let head = format!(
            "HTTP/1.1 {}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            answer.0,
            answer.1.len()
        );
        stream.write_all(head.as_bytes())?;
        Ok(stream.write_all(answer.1.as_bytes())?)
    })
}

/// Of `application/x-www-form-urlencoded`.
fn form_fields(body: &str) -> Vec<(String, String)> {
    let decoded = |text: &str| {
        let text = text.replace('+', " ");
        let mut pieces = text.split('%');
        let mut plain = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            let (digits, rest) = piece.split_at_checked(2).unwrap_or(("3f", piece));
            plain.push(char::from(u8::from_str_radix(digits, 16).unwrap_or(b'?')));
            plain.push_str(rest);
        }
        plain
    };
    let pairs = body.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(key, value)| (decoded(key), decoded(value)))
        .collect()
}

/// A registry's token, as the distribution project specifies it.
fn token(scope: &str, key: &EcdsaKeyPair, certificate: &[u8]) -> Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let [kind, name, actions] = scope.split(':').collect::<Vec<_>>()[..] else {
        anyhow::bail!("scope {scope}");
    };
    let actions: Vec<_> = actions.split(',').collect();
    let header = json!({"typ": "JWT", "alg": "ES256", "x5c": [STANDARD.encode(certificate)]});
    let claims = json!({
        "iss": ISSUER, "sub": "deployer", "aud": SERVICE, "iat": now, "nbf": now - 60, "exp": now + 300, "jti": "1",
        "access": [{"type": kind, "name": name, "actions": actions}],
    });
    let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let signed = format!("{}.{}", part(&header), part(&claims));
    let signature = key.sign(&SystemRandom::new(), signed.as_bytes());
    let signature = signature.map_err(|_| anyhow::anyhow!("not signed"))?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

#[test]
fn a_refresh_token_gets_a_token() -> Result<()> {
    if left_out("a registry that wants tokens") {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let home = folder.path();
    let certificate = rcgen::generate_simple_self_signed(["tokens.test".to_owned()])?;
    let authority = home.join("tokens.pem");
    fs::write(&authority, certificate.cert.pem())?;
    let key = certificate.signing_key.serialize_der();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key);
    let key = key.map_err(|error| anyhow::anyhow!("{error}"))?;
    let given = Arc::new(AtomicUsize::new(0));
    let secret = "refresh+me/ 100%";
    let tokens = token_server(
        secret,
        key,
        certificate.cert.der().to_vec(),
        Arc::clone(&given),
    )?;
    let realm = format!("http://{}/token", tokens.address());
    let registry = RegistryServer::wanting_tokens(&realm, &authority)?;
    let host = registry.address().to_string();
    let image = format!("{host}/acme/a:1");
    let push = ["push", &*image, "--module", "builtin:tls-policy"];
    let configure = |token: &str| {
        let config = json!({"auths": {&host: {"identitytoken": token}}});
        fs::write(home.join("config.json"), config.to_string())
    };
    configure("another")?;
    let said = refused(&run(home, &[], &push)?)?;
    ensure!(
        said.contains(&format!("no token: {realm} answers 401")) && !said.contains("another"),
        "{said}"
    );
    configure(secret)?;
    let reference = printed(run(home, &[], &push)?)?;
    ensure!(given.load(Ordering::SeqCst) > 0, "no token was asked for");
    // A helper's word for the same.
    let helper = home.join("docker-credential-tests");
    let told = json!({"ServerURL": host, "Username": "<token>", "Secret": secret});
    fs::write(
        &helper,
        format!("#!/bin/sh\ncat > /dev/null\necho '{told}'\n"),
    )?;
    fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    fs::write(
        home.join("config.json"),
        json!({"credHelpers": {&host: "tests"}}).to_string(),
    )?;
    let search = format!(
        "{}:{}",
        home.display(),
        std::env::var("PATH").unwrap_or_default()
    );
    let before = given.load(Ordering::SeqCst);
    let inspected = run(home, &[("PATH", search)], &["inspect", &reference])?;
    ensure!(printed(inspected)?.contains("tls-policy"));
    ensure!(
        given.load(Ordering::SeqCst) > before,
        "the helper's token was not used"
    );
    Ok(())
}

#[test]
fn an_index_leads_to_its_image_for_wasm() -> Result<()> {
    if left_out("an index of images in a registry") {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let home = folder.path();
    let registry = RegistryServer::start()?;
    let push = |module: &str| -> Result<String> {
        let image = format!("{}/a:{module}", registry.address());
        let module = format!("builtin:{module}");
        let reference = printed(run(home, &[], &["push", &image, "--module", &module])?)?;
        Ok(reference.rsplit('@').next().unwrap_or_default().to_owned())
    };
    let (ours, other) = (push("tls-policy")?, push("rate-limit")?);
    let manifest_kind = "application/vnd.oci.image.manifest.v1+json";
    let size = |digest: &str| -> Result<usize> {
        let request =
            Request::get(&format!("/v2/a/manifests/{digest}")).header("accept", manifest_kind);
        Ok(Route::plain(registry.address()).send(&request)?.body.len())
    };
    let listed = |digest: &str, architecture: &str| -> Result<Value> {
        Ok(json!({
            "mediaType": manifest_kind, "digest": digest, "size": size(digest)?,
            "platform": {"architecture": architecture, "os": "wasip1"},
        }))
    };
    for (kind, manifests, found) in [
        (
            "application/vnd.oci.image.index.v1+json",
            vec![listed(&ours, "wasm")?, listed(&other, "unknown")?],
            Some("tls-policy"),
        ),
        (
            "application/vnd.docker.distribution.manifest.list.v2+json",
            vec![listed(&ours, "amd64")?, listed(&other, "wasm")?],
            Some("rate-limit"),
        ),
        (
            "application/vnd.oci.image.index.v1+json",
            vec![listed(&ours, "wasm")?, listed(&other, "wasm")?],
            None,
        ),
    ] {
        let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": manifests});
        let mut put = Request::get("/v2/a/manifests/index")
            .header("content-type", kind)
            .post(index.to_string());
        put.method = b"PUT".to_vec();
        let answer = Route::plain(registry.address()).send(&put)?;
        ensure!(answer.status == 201, "{} {}", answer.status, answer.text());
        let digest = answer
            .header("docker-content-digest")
            .context("no digest")?;
        let reference = format!("oci://{}/a@{digest}", registry.address());
        let output = run(home, &[], &["inspect", &reference])?;
        let Some(found) = found else {
            let said = refused(&output)?;
            ensure!(
                said.contains("an index of 2 images, 2 of them for Wasm"),
                "{said}"
            );
            continue;
        };
        ensure!(printed(output)?.contains(found));
        // Once more from the cache alone: index, manifest and layer.
        let gone = reference.replace(&registry.address().to_string(), "127.0.0.1:1");
        ensure!(printed(run(home, &[], &["inspect", &gone])?)?.contains(found));
    }
    Ok(())
}
