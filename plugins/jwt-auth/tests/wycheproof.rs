//! C2SP/wycheproof's JWS vectors through the path that tokens take: in the guest alone, and with a host that serves
//! `verify_signature` (here aws-lc, as in Portcullis).

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a vector of another shape fails the test"
)]

#[path = "../examples/verify.rs"]
#[expect(unreachable_pub, reason = "an example is a crate of its own")]
mod verify;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::SystemTime;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, UnparsedPublicKey,
    VerificationAlgorithm,
};
use portcullis_sdk::Status;
use portcullis_sdk::testing::{Harness, Step, no_make};
use serde_json::{Value, json};

use verify::Verify;

#[test]
fn in_the_guest() {
    check(false);
}

#[test]
fn with_the_hosts_crypto() {
    check(true);
}

/// Vectors that call a signature by PS384 good under a key whose `alg` is PS256. A key serves one algorithm
/// (RFC 8725 section 3.1), so they are refused as they are, and good once the key says PS384.
const KEY_FOR_ANOTHER_ALGORITHM: [u64; 2] = [346, 350];

fn check(host_crypto: bool) {
    let text =
        std::fs::read_to_string("tests/data/wycheproof/json_web_signature_test.json").unwrap();
    let vectors: Value = serde_json::from_str(&text).unwrap();
    let asked = Rc::new(Cell::new(0));
    let mut harness = Harness::<Verify>::new(SystemTime::now());
    harness
        .configure(&json!({"host_crypto": host_crypto}).to_string())
        .unwrap();
    let counted = Rc::clone(&asked);
    let serve = move |arguments: &[u8]| {
        counted.set(counted.get() + 1);
        verify_signature(arguments)
    };
    harness.set_foreign_function("verify_signature", Box::new(serve));
    let mut verdict = |jwk: &Value, jws: &Value| {
        let step = json!({"request": {"headers": [["x-jwk", jwk.to_string()], ["x-jws", jws]]}});
        let outcome = harness
            .exchange(&serde_json::from_value::<Step>(step).unwrap(), &no_make)
            .unwrap();
        assert_eq!(outcome.status, 200);
        String::from_utf8(outcome.body).unwrap()
    };
    let mut counts = BTreeMap::new();
    for group in vectors["testGroups"].as_array().unwrap() {
        // A symmetric key stands under `private` alone.
        let jwk = group.get("public").unwrap_or(&group["private"]);
        for test in group["tests"].as_array().unwrap() {
            let id = test["tcId"].as_u64().unwrap();
            let valid = test["result"] == "valid";
            let expected = match (jwk["kty"].as_str().unwrap(), jwk["crv"].as_str()) {
                // What this control never does, whatever the vector says.
                ("oct", _) => "unusable: a symmetric key: whoever can check a token could make one",
                (_, Some("P-521")) => "bad",
                _ if KEY_FOR_ANOTHER_ALGORITHM.contains(&id) => {
                    let mut jwk = jwk.clone();
                    jwk["alg"] = "PS384".into();
                    assert_eq!(
                        (verdict(&jwk, &test["jws"]).as_str(), valid),
                        ("good", true),
                        "vector {id}"
                    );
                    "bad"
                }
                _ if valid => "good",
                _ => "bad",
            };
            assert_eq!(
                verdict(jwk, &test["jws"]),
                expected,
                "vector {id} ({}, {})",
                group["comment"],
                test["comment"]
            );
            *counts
                .entry(expected.split(':').next().unwrap())
                .or_insert(0) += 1;
        }
    }
    assert_eq!(
        counts,
        BTreeMap::from([("good", 32), ("bad", 329), ("unusable", 40)])
    );
    // RS* and ES256 signatures of the right length.
    assert_eq!(asked.get(), if host_crypto { 254 } else { 0 });
}

/// What Envoy and Portcullis serve under this name, with aws-lc.
fn verify_signature(arguments: &[u8]) -> Result<Vec<u8>, Status> {
    let [hash, key, signature, text] = fields(arguments).ok_or(Status::BAD_ARGUMENT)?;
    let elliptic = key.get(..40).is_some_and(|head| {
        head.windows(7)
            .any(|oid| oid == b"\x2a\x86\x48\xce\x3d\x02\x01")
    });
    let algorithm: &'static dyn VerificationAlgorithm = match (hash, elliptic) {
        (b"sha256", false) => &RSA_PKCS1_2048_8192_SHA256,
        (b"sha384", false) => &RSA_PKCS1_2048_8192_SHA384,
        (b"sha512", false) => &RSA_PKCS1_2048_8192_SHA512,
        (b"sha256", true) => &ECDSA_P256_SHA256_ASN1,
        (b"sha384", true) => &ECDSA_P384_SHA384_ASN1,
        _ => return Err(Status::BAD_ARGUMENT),
    };
    let good = UnparsedPublicKey::new(algorithm, key)
        .verify(text, signature)
        .is_ok();
    Ok(if good { vec![8, 1] } else { Vec::new() })
}

/// The four fields of `VerifySignatureArguments`, in their order.
fn fields(mut message: &[u8]) -> Option<[&[u8]; 4]> {
    let mut out: [&[u8]; 4] = Default::default();
    for (tag, out) in [0x0a, 0x12, 0x1a, 0x22].into_iter().zip(&mut out) {
        message = message.strip_prefix(&[tag])?;
        let mut length = 0;
        for shift in (0..28).step_by(7) {
            let (byte, rest) = message.split_first()?;
            message = rest;
            length |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        (*out, message) = message.split_at_checked(length)?;
    }
    message.is_empty().then_some(out)
}
