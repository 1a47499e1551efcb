//! What a case cannot say, since it takes a cluster that answers or several workers, in Portcullis and in Envoy.

use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Result, anyhow, ensure};
use portcullis_tests::child::until;
use portcullis_tests::client::Route;
use portcullis_tests::http1::{Answer, Request};
use portcullis_tests::upstream::Upstream;
use serde_json::{Value, json};

use crate::places::{ANY_PORT, in_both};

/// How soon the first keys must be there.
const KEYS_BOUND: Duration = Duration::from_secs(30);

fn made(kind: &str, argument: &Value) -> Result<Vec<u8>> {
    jwt_auth::testing::make(kind, argument, SystemTime::now()).map_err(anyhow::Error::msg)
}

#[test]
fn keys_are_fetched_and_until_then_nobody_passes() -> Result<()> {
    let upstream = Upstream::start()?;
    let issuer = Upstream::start()?;
    let unavailable = Answer {
        status: 500,
        ..Answer::default()
    };
    issuer.answer(unavailable);
    issuer.answer_at(
        "/jwks",
        Answer {
            status: 200,
            body: made("jwks", &json!(["rsa-1"]))?,
            ..Answer::default()
        },
    );
    let policy = json!({
        "workers": 2,
        "listeners": [{"name": "plain", "address": ANY_PORT}],
        "clusters": [
            {"name": "upstream", "endpoints": [upstream.address().to_string()]},
            {"name": "issuer", "endpoints": [issuer.address().to_string()]},
        ],
        "filters": [{"name": "jwt-auth", "module": "builtin:jwt-auth", "clusters": ["issuer"], "configuration": {
            "providers": [{
                "issuer": "https://issuer.test", "audiences": ["api"],
                "remote_jwks": {"cluster": "issuer", "authority": "issuer.test", "path": "/jwks"},
            }],
        }}],
        "routes": [{"name": "all", "cluster": "upstream"}],
    });
    in_both("keys from a cluster", &policy, "plain", |address| {
        let ask = |argument: &Value| {
            let token = [b"Bearer ".to_vec(), made("jwt", argument)?].concat();
            Route::plain(address).send(&Request::get("/").header("authorization", token))
        };
        // Each on a connection of its own, so that every worker is asked.
        until(KEYS_BOUND, "the keys on every worker", || {
            let mut statuses = Vec::new();
            for _ in 0..16 {
                statuses.push(ask(&json!({}))?.status);
            }
            ensure!(
                statuses.iter().all(|status| [200, 503].contains(status)),
                "a good token got {statuses:?}"
            );
            Ok(statuses.iter().all(|status| *status == 200))
        })?;
        for bad in [
            json!({"key": "p256"}),
            json!({"claims": {"exp": {"now": -600}}}),
            json!({"sign": "none"}),
        ] {
            let answer = ask(&bad)?;
            ensure!(
                answer.status == 401,
                "{bad} got {} {}",
                answer.status,
                answer.text()
            );
        }
        let seen = issuer.take_seen();
        ensure!(!seen.is_empty(), "nobody fetched the keys");
        ensure!(
            seen.iter().all(|seen| seen.path == "/jwks"
                && seen
                    .headers
                    .contains(&(b"host".to_vec(), b"issuer.test".to_vec()))),
            "the keys were asked for otherwise: {seen:?}"
        );
        Ok(())
    })
}

#[test]
fn a_limit_is_exact_over_all_workers() -> Result<()> {
    const ALLOWED: usize = 20;
    let upstream = Upstream::start()?;
    let policy = json!({
        "workers": 2,
        "listeners": [{"name": "plain", "address": ANY_PORT}],
        "clusters": [{"name": "upstream", "endpoints": [upstream.address().to_string()]}],
        "filters": [{"name": "rate-limit", "module": "builtin:rate-limit", "configuration": {
            "limits": [{"name": "hourly", "requests": ALLOWED, "per": "3600s"}],
        }}],
        "routes": [{"name": "all", "cluster": "upstream"}],
    });
    in_both("a limit over two workers", &policy, "plain", |address| {
        let clients: Vec<_> = (0..8)
            .map(|_| {
                thread::spawn(move || -> Result<Vec<u16>> {
                    let mut statuses = Vec::new();
                    for _ in 0..10 {
                        statuses.push(Route::plain(address).send(&Request::get("/"))?.status);
                    }
                    Ok(statuses)
                })
            })
            .collect();
        let mut statuses = Vec::new();
        for client in clients {
            statuses.extend(client.join().map_err(|_| anyhow!("a client panicked"))??);
        }
        let passed = statuses.iter().filter(|status| **status == 200).count();
        let refused = statuses.iter().filter(|status| **status == 429).count();
        ensure!(
            (passed, refused) == (ALLOWED, 80 - ALLOWED),
            "of 80 {passed} passed and {refused} were refused"
        );
        Ok(())
    })
}
