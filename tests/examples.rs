//! The example policies at work, in Portcullis and in Envoy: only addresses and the places of files are changed.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, anyhow, ensure};
use portcullis_tests::build_folder::repository;
use portcullis_tests::certificates::Certificates;
use portcullis_tests::child::{Process, until};
use portcullis_tests::client::{Protocol, Route, Security};
use portcullis_tests::envoy::{self, Envoy};
use portcullis_tests::free_port::free_address;
use portcullis_tests::http1::{Answer, Request};
use portcullis_tests::report;
use portcullis_tests::upstream::Upstream;
use serde_json::{Value, json};

use crate::places;
use crate::served::Served;

/// How soon the first keys must be there.
const KEYS_BOUND: Duration = Duration::from_secs(30);

/// An example with its listeners on free ports and `changes` made, each of which must hit.
fn example(name: &str, changes: &[(&str, &str)]) -> Result<Value> {
    let path = repository().join("docs/policies").join(name);
    let mut text = fs::read_to_string(path)?;
    for (from, to) in changes {
        ensure!(text.contains(from), "{name} has no {from:?} any more");
        text = text.replace(from, to);
    }
    let mut policy: Value = serde_saphyr::from_str(&text)?;
    let listeners = policy.get_mut("listeners").and_then(Value::as_array_mut);
    for listener in listeners.context("no listeners")? {
        let listener = listener.as_object_mut().context("no listener")?;
        listener.insert("address".into(), json!(free_address()?.to_string()));
    }
    Ok(policy)
}

fn listener(policy: &Value, name: &str) -> Result<SocketAddr> {
    let listeners = policy.get("listeners").and_then(Value::as_array);
    let address = listeners
        .into_iter()
        .flatten()
        .find(|listener| listener.get("name").and_then(Value::as_str) == Some(name))
        .and_then(|listener| listener.get("address")?.as_str());
    Ok(address
        .with_context(|| format!("no listener {name}"))?
        .parse()?)
}

/// Runs `test` with the policy in the program itself, then in Envoy.
fn in_both(what: &str, policy: &Value, folder: &Path, test: impl Fn() -> Result<()>) -> Result<()> {
    let served = Served::start(policy)?;
    test().map_err(|error| blamed(&format!("{what} in Portcullis"), &error, &served.process))?;
    drop(served);
    if let Some(why) = envoy::left_out() {
        report::not_run(&format!("{what} in Envoy"), why);
        return Ok(());
    }
    let envoy = Envoy::start(&places::export(policy, folder)?, envoy::Options::default())?;
    test().map_err(|error| blamed(&format!("{what} in Envoy"), &error, envoy.process()))
}

/// The error first: what the process said last may be long.
fn blamed(what: &str, error: &anyhow::Error, process: &Process) -> anyhow::Error {
    anyhow!("{what}: {error:#}; it said:\n{}", process.last_words())
}

fn asked(host: &str, path: &str) -> Request {
    let mut request = Request::get(path);
    request.authority = host.as_bytes().to_vec();
    request
}

fn has(answer: &Answer, status: u16, header: &str) -> Result<()> {
    ensure!(
        answer.status == status && answer.header(header).is_some(),
        "expected {status} with {header}, got {} {:?} {}",
        answer.status,
        answer.headers,
        answer.text()
    );
    Ok(())
}

#[test]
fn the_api_edge() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let certificates = Certificates::make(folder.path())?;
    let orders = Upstream::start_tls(&certificates)?;
    let reports = Upstream::start()?;
    let idp = Upstream::start_tls(&certificates)?;
    let made = |kind: &str, argument: &Value| {
        jwt_auth::testing::make(kind, argument, SystemTime::now()).map_err(anyhow::Error::msg)
    };
    idp.answer_at(
        "/.well-known/jwks.json",
        Answer {
            status: 200,
            body: made("jwks", &json!(["p256"]))?,
            ..Answer::default()
        },
    );
    let file = |path: &Path| path.display().to_string();
    let named = |upstream: &Upstream| format!("[localhost:{}]", upstream.address().port());
    let authority = format!("ca: {}", file(&certificates.authority));
    let policy = example(
        "api-edge.yaml",
        &[
            ("tls/api.pem", &file(&certificates.chain)),
            ("tls/api.key", &file(&certificates.key)),
            ("ca: tls/internal-ca.pem", &authority),
            ("ca: system", &authority),
            ("[orders.internal:8443]", &named(&orders)),
            ("[idp.example.com:443]", &named(&idp)),
            (
                "10.0.0.7:8080, 10.0.0.8:8080",
                &reports.address().to_string(),
            ),
        ],
    )?;
    let address = listener(&policy, "https")?;
    in_both("api-edge.yaml", &policy, folder.path(), || {
        let send = |request: &Request, protocol| {
            Route {
                protocol,
                ..Route::tls(address, Security::Tls13, &certificates)
            }
            .send(request)
        };
        let token = |claims: &Value| -> Result<Vec<u8>> {
            let token = made("jwt", &json!({"key": "p256", "claims": claims}))?;
            Ok([b"Bearer ".to_vec(), token].concat())
        };
        let good = json!({"iss": "https://idp.example.com/", "aud": "orders-api"});
        let good = asked("api.example.com", "/orders/7")
            .header("authorization", token(&good)?)
            .header("x-user", "mallory");
        // Asked rarely: each of these requests counts towards the 600 a minute that an address has.
        until(KEYS_BOUND, "the issuer's keys", || {
            sleep(Duration::from_millis(250));
            Ok(send(&good, Protocol::Http11)?.status != 503)
        })?;
        drop(orders.take_seen());
        for protocol in [Protocol::Http11, Protocol::Http2] {
            let answer = send(&good, protocol)?;
            has(&answer, 200, "strict-transport-security")?;
            has(&answer, 200, "ratelimit")?;
            let seen = orders.take_seen();
            let users: Vec<_> = seen
                .iter()
                .flat_map(|seen| &seen.headers)
                .filter(|(name, _)| name == b"x-user")
                .map(|(_, value)| value.as_slice())
                .collect();
            ensure!(users == [b"alice"], "orders saw {seen:?}");
        }
        let wrong = json!({"iss": "https://idp.example.com/", "aud": "other"});
        let wrong = asked("api.example.com", "/orders/7").header("authorization", token(&wrong)?);
        has(&send(&wrong, Protocol::Http2)?, 401, "www-authenticate")?;
        let health = send(&asked("api.example.com", "/healthz"), Protocol::Http11)?;
        has(&health, 200, "strict-transport-security")?;
        let unasked = send(&asked("api.example.com", "/reports"), Protocol::Http11)?;
        has(&unasked, 401, "www-authenticate")?;
        let reported = Request {
            path: b"/reports/2026".to_vec(),
            ..good.clone()
        };
        let mut statuses = Vec::new();
        for _ in 0..12 {
            statuses.push(send(&reported, Protocol::Http11)?.status);
        }
        ensure!(
            statuses.first() == Some(&200) && statuses.last() == Some(&429),
            "ten reports a minute: {statuses:?}"
        );
        let old = Route::tls(address, Security::Tls12, &certificates).send(&good);
        ensure!(old.is_err(), "TLS 1.2 is taken: {old:?}");
        Ok(())
    })
}

#[test]
fn the_website() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let certificates = Certificates::make(folder.path())?;
    let (web, assets) = (Upstream::start()?, Upstream::start()?);
    let file = |path: &Path| path.display().to_string();
    let policy = example(
        "website.yaml",
        &[
            ("tls/site.pem", &file(&certificates.chain)),
            ("tls/site.key", &file(&certificates.key)),
            ("127.0.0.1:3000", &web.address().to_string()),
            ("127.0.0.1:3001", &assets.address().to_string()),
        ],
    )?;
    let (http, https) = (listener(&policy, "http")?, listener(&policy, "https")?);
    in_both("website.yaml", &policy, folder.path(), || {
        drop((web.take_seen(), assets.take_seen()));
        let secure = Route::tls(https, Security::Tls13, &certificates);
        let page = secure.send(&asked("www.example.com", "/"))?;
        has(&page, 200, "content-security-policy")?;
        has(&page, 200, "strict-transport-security")?;
        ensure!(web.take_seen().len() == 1, "the page is not the web's");
        let asset = secure.send(&asked("www.example.com", "/assets/a.css"))?;
        has(&asset, 200, "cross-origin-resource-policy")?;
        ensure!(
            asset.header("cross-origin-resource-policy").as_deref() == Some("cross-origin"),
            "{:?}",
            asset.headers
        );
        ensure!(
            assets.take_seen().len() == 1,
            "the asset is not the assets'"
        );
        let plain = Route::plain(http);
        let sent_on = plain.send(&asked("www.example.com", "/a?b"))?;
        ensure!(
            sent_on.header("location").as_deref() == Some("https://www.example.com/a?b"),
            "{sent_on:?}"
        );
        let posted = plain.send(&asked("www.example.com", "/").post("secret"))?;
        has(&posted, 403, "x-content-type-options")?;
        let mut statuses = Vec::new();
        for _ in 0..2000 {
            statuses.push(secure.send(&asked("www.example.com", "/"))?.status);
            if statuses.last() == Some(&429) {
                break;
            }
        }
        ensure!(
            statuses.first() == Some(&200) && statuses.contains(&429),
            "a burst of {}: {statuses:?}",
            statuses.len()
        );
        ensure!(
            secure
                .send(&asked("www.example.com", "/assets/a.css"))?
                .status
                == 200,
            "assets are not limited"
        );
        Ok(())
    })
}
