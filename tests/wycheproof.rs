//! C2SP/wycheproof's JWS vectors in Wasm, in Portcullis and in Envoy, each with the host's `verify_signature` and
//! without. jwt-auth's own tests run the same vectors natively.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::build_folder::repository;
use portcullis_tests::client::Route;
use portcullis_tests::http1::Request;
use portcullis_tests::upstream::Upstream;
use serde_json::{Value, json};

use crate::example;
use crate::places::{ANY_PORT, in_both};

/// Vectors that call a signature by PS384 good under a key whose `alg` is PS256. A key serves one algorithm
/// (RFC 8725 section 3.1), so they are refused as they are, and good once the key says PS384.
const KEY_FOR_ANOTHER_ALGORITHM: [u64; 2] = [346, 350];

/// A key, a token, and what must be said of it.
struct Vector {
    id: String,
    jwk: String,
    jws: String,
    verdict: &'static str,
}

#[test]
fn vectors_in_wasm() -> Result<()> {
    let vectors = vectors()?;
    let upstream = Upstream::start()?;
    let policy = json!({
        "workers": 1,
        "listeners": [{"name": "plain", "address": ANY_PORT}],
        "clusters": [{"name": "upstream", "endpoints": [upstream.address().to_string()]}],
        "filters": [{"name": "verify", "module": example::build("jwt-auth", "verify")?, "configuration": {"host_crypto": false}}],
        "routes": [
            {"name": "guest", "cluster": "upstream"},
            {"name": "host", "prefix": "/host", "cluster": "upstream", "filters": {"verify": {"configuration": {"host_crypto": true}}}},
        ],
    });
    in_both("wycheproof's JWS vectors", &policy, "plain", |address| {
        for path in ["/guest", "/host"] {
            let mut connection = Route::plain(address).open()?;
            let mut counts = BTreeMap::new();
            for vector in &vectors {
                let request = Request::get(path)
                    .header("x-jwk", &*vector.jwk)
                    .header("x-jws", &*vector.jws);
                let answer = connection
                    .exchange(&request)
                    .with_context(|| format!("vector {}", vector.id))?;
                let verdict = answer.text();
                ensure!(
                    answer.status == 200 && verdict.starts_with(vector.verdict),
                    "{path}, vector {}: expected {}, got {} {verdict}",
                    vector.id,
                    vector.verdict,
                    answer.status
                );
                *counts.entry(vector.verdict).or_insert(0) += 1;
            }
            ensure!(
                counts == BTreeMap::from([("good", 34), ("bad", 329), ("unusable", 40)]),
                "the vectors are others than they were: {counts:?}"
            );
        }
        Ok(())
    })
}

fn vectors() -> Result<Vec<Vector>> {
    let path =
        repository().join("plugins/jwt-auth/tests/data/wycheproof/json_web_signature_test.json");
    let file: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
    let list = |value: &Value, key: &str| {
        value
            .get(key)
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    };
    let text = |value: &Value, key: &str| {
        value
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let mut vectors = Vec::new();
    for group in list(&file, "testGroups") {
        // A symmetric key stands under `private` alone.
        let jwk = group
            .get("public")
            .or(group.get("private"))
            .context("a group without a key")?;
        for test in list(&group, "tests") {
            let id = test.get("tcId").and_then(Value::as_u64).unwrap_or_default();
            let valid = text(&test, "result") == "valid";
            let verdict = match (&*text(jwk, "kty"), &*text(jwk, "crv")) {
                // What jwt-auth never does, whatever the vector says.
                ("oct", _) => "unusable",
                (_, "P-521") => "bad",
                _ if KEY_FOR_ANOTHER_ALGORITHM.contains(&id) => {
                    let mut jwk = jwk.clone();
                    if let Some(members) = jwk.as_object_mut() {
                        members.insert("alg".into(), "PS384".into());
                    }
                    vectors.push(Vector {
                        id: format!("{id} with its own algorithm's key"),
                        jwk: jwk.to_string(),
                        jws: text(&test, "jws"),
                        verdict: "good",
                    });
                    "bad"
                }
                _ if valid => "good",
                _ => "bad",
            };
            vectors.push(Vector {
                id: id.to_string(),
                jwk: jwk.to_string(),
                jws: text(&test, "jws"),
                verdict,
            });
        }
    }
    Ok(vectors)
}
