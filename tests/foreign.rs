//! Envoy's foreign functions, asked by the same guest in Portcullis and in Envoy.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::client::{Connection, Route};
use portcullis_tests::http1::{Answer, Request};
use portcullis_tests::upstream::Upstream;
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use crate::places::{ANY_PORT, Here, in_both};
use crate::probe::{self, Ask, STEP, Step, Told};

const OK: u8 = 0;
const NOT_FOUND: u8 = 1;
const BAD_ARGUMENT: u8 = 2;
const SERIALIZATION_FAILURE: u8 = 3;

/// One field of a protobuf message: at most 127 bytes, or a string.
fn bytes(tag: u8, value: &[u8]) -> Vec<u8> {
    let len = u8::try_from(value.len()).unwrap_or(u8::MAX);
    [&[tag << 3 | 2, len], value].concat()
}

/// One field: a small number.
fn number(tag: u8, value: u8) -> Vec<u8> {
    vec![tag << 3, value]
}

fn responding(asks: Vec<Ask<'_>>) -> Step<'_> {
    Step {
        asks,
        goes_on: false,
    }
}

fn module(configuring: &[Ask<'_>], steps: &[Step<'_>]) -> Result<NamedTempFile> {
    let file = NamedTempFile::with_suffix(".wasm")?;
    std::fs::write(file.path(), probe::module(configuring, steps)?)?;
    Ok(file)
}

fn policy(upstream: &Upstream, module: &NamedTempFile) -> Value {
    json!({
        "workers": 1,
        "listeners": [{"name": "plain", "address": ANY_PORT}],
        "clusters": [{"name": "upstream", "endpoints": [upstream.address().to_string()]}],
        "filters": [{"name": "probe", "module": module.path()}],
        "routes": [{"name": "all", "cluster": "upstream"}],
    })
}

fn step(connection: &mut Connection, step: usize) -> Result<Vec<Told>> {
    let answer =
        connection.exchange(&Request::get("/").header(STEP, probe::letter(step).to_string()))?;
    ensure!(answer.status == 200, "got {}", answer.status);
    probe::answers(&answer.body)
}

fn statuses(told: &[Told]) -> Vec<u8> {
    told.iter().map(|(status, _)| *status).collect()
}

#[test]
fn arguments_are_judged_alike() -> Result<()> {
    let cluster = [bytes(1, b"envoy.tcp_proxy.cluster"), bytes(2, b"somewhere")].concat();
    let port = |value: &[u8]| [bytes(1, b"envoy.upstream.dynamic_port"), bytes(2, value)].concat();
    let (port, no_port) = (port(b"80"), port(b"x"));
    let nobody = [bytes(1, b"no.such.object"), bytes(2, b"1")].concat();
    // A length beyond the end.
    let malformed = [0x0a, 0x7f, 0x00];
    let no_key = bytes(1, b"sha256");
    let two_keys = [bytes(1, b"sha256"), bytes(2, b"a"), bytes(5, b"b")].concat();
    let rows: Vec<(Ask<'_>, u8)> = vec![
        (Ask::Foreign("no_such_function", b""), NOT_FOUND),
        (Ask::Foreign("uncompress", b""), SERIALIZATION_FAILURE),
        (
            Ask::Foreign("uncompress", b"no zlib"),
            SERIALIZATION_FAILURE,
        ),
        (Ask::Foreign("verify_signature", b""), BAD_ARGUMENT),
        (Ask::Foreign("verify_signature", &malformed), BAD_ARGUMENT),
        (Ask::Foreign("verify_signature", &no_key), BAD_ARGUMENT),
        (Ask::Foreign("verify_signature", &two_keys), BAD_ARGUMENT),
        (Ask::Foreign("declare_property", &malformed), BAD_ARGUMENT),
        (
            Ask::Foreign("set_envoy_filter_state", &malformed),
            BAD_ARGUMENT,
        ),
        (Ask::Foreign("set_envoy_filter_state", &nobody), NOT_FOUND),
        (
            Ask::Foreign("set_envoy_filter_state", &no_port),
            BAD_ARGUMENT,
        ),
        (Ask::Foreign("set_envoy_filter_state", &port), OK),
        (Ask::Foreign("set_envoy_filter_state", &cluster), OK),
        (Ask::Foreign("clear_route_cache", b"whatever"), OK),
    ];
    let (mut asks, expected): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    asks.push(Ask::Property("filter_state\0envoy.tcp_proxy.cluster"));
    let module = module(&[], &[responding(asks)])?;
    let upstream = Upstream::start()?;
    in_both(
        "foreign functions",
        &policy(&upstream, &module),
        "plain",
        |address| {
            let mut told = step(&mut Route::plain(address).open()?, 0)?;
            let kept = told.pop().context("no answers")?;
            ensure!(statuses(&told) == expected, "got {:?}", statuses(&told));
            ensure!(told.iter().all(|(_, bytes)| bytes.is_empty()), "{told:?}");
            ensure!(kept == (OK, b"somewhere".to_vec()), "kept {kept:?}");
            Ok(())
        },
    )
}

#[test]
fn zlib_packs_and_unpacks() -> Result<()> {
    use std::io::{Read as _, Write as _};
    let text = b"to be or not to be, that is the question ".repeat(50);
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&text)?;
    let packed = encoder.finish()?;
    let module = module(
        &[],
        &[responding(vec![
            Ask::Foreign("compress", &text),
            Ask::Foreign("compress", b""),
            Ask::Foreign("uncompress", &packed),
        ])],
    )?;
    let upstream = Upstream::start()?;
    in_both("zlib", &policy(&upstream, &module), "plain", |address| {
        let told = step(&mut Route::plain(address).open()?, 0)?;
        ensure!(statuses(&told) == [OK; 3], "got {:?}", statuses(&told));
        for (index, expected) in [(0, &text[..]), (1, b"")] {
            let (_, packed) = told.get(index).context("no answer")?;
            let mut plain = Vec::new();
            flate2::read::ZlibDecoder::new(&packed[..]).read_to_end(&mut plain)?;
            ensure!(plain == expected, "unpacks to {} bytes", plain.len());
        }
        ensure!(
            told.get(2).is_some_and(|(_, plain)| *plain == text),
            "unpacked otherwise"
        );
        Ok(())
    })
}

#[test]
fn declared_properties_stay_and_last_as_declared() -> Result<()> {
    let once = [bytes(1, b"once"), number(2, 1)].concat();
    let lasting = [bytes(1, b"lasting"), number(3, 1), number(5, 2)].concat();
    let configuring = [
        Ask::Foreign("declare_property", &once),
        Ask::Foreign("declare_property", &lasting),
        Ask::Foreign("declare_property", &once),
        Ask::Foreign("declare_property", b"\x0a\x7f"),
    ];
    let steps = [
        responding(vec![
            Ask::SetProperty("once", "1"),
            Ask::SetProperty("once", "2"),
            Ask::Property("once"),
            Ask::SetProperty("plain", "1"),
            Ask::SetProperty("plain", "2"),
            Ask::Property("plain"),
            Ask::SetProperty("lasting", "1"),
            Ask::Property("lasting"),
        ]),
        responding(vec![
            Ask::Property("once"),
            Ask::Property("plain"),
            Ask::Property("lasting"),
            Ask::SetProperty("lasting", "2"),
            Ask::Property("lasting"),
        ]),
    ];
    let module = module(&configuring, &steps)?;
    let upstream = Upstream::start()?;
    in_both(
        "declared properties",
        &policy(&upstream, &module),
        "plain",
        |address| {
            let mut connection = Route::plain(address).open()?;
            let none = || (OK, Vec::new());
            let is = |value: &str| (OK, value.as_bytes().to_vec());
            let configured = vec![
                none(),
                none(),
                (BAD_ARGUMENT, Vec::new()),
                (BAD_ARGUMENT, Vec::new()),
            ];
            let first = [
                configured.clone(),
                vec![
                    none(),
                    (BAD_ARGUMENT, Vec::new()),
                    is("1"),
                    none(),
                    none(),
                    is("2"),
                    none(),
                    is("1"),
                ],
            ]
            .concat();
            let told = step(&mut connection, 0)?;
            ensure!(told == first, "first: {told:?}");
            let missing = (NOT_FOUND, Vec::new());
            let second = [
                configured.clone(),
                vec![missing.clone(), missing.clone(), is("1"), none(), is("2")],
            ]
            .concat();
            let told = step(&mut connection, 1)?;
            ensure!(told == second, "second, same connection: {told:?}");
            let told = step(&mut Route::plain(address).open()?, 1)?;
            let elsewhere = told.get(configured.len() + 2);
            ensure!(elsewhere == Some(&missing), "another connection: {told:?}");
            Ok(())
        },
    )
}

fn get(address: SocketAddr, path: &str, step: usize) -> Result<Answer> {
    Route::plain(address).send(&Request::get(path).header(STEP, probe::letter(step).to_string()))
}

#[test]
fn a_changed_request_is_routed_anew() -> Result<()> {
    let steps = [
        Step {
            asks: vec![Ask::SetHeader("x-other", "/other/x")],
            goes_on: true,
        },
        Step {
            asks: vec![
                Ask::SetHeader(":path", "/other/x"),
                Ask::Foreign("clear_route_cache", b""),
            ],
            goes_on: true,
        },
        // Envoy clears it by itself when request headers change.
        Step {
            asks: vec![Ask::SetHeader(":path", "/other/y")],
            goes_on: true,
        },
        Step {
            asks: vec![Ask::Foreign("clear_route_cache", b"")],
            goes_on: true,
        },
        Step {
            asks: vec![Ask::SetHeader(":authority", "nowhere.example")],
            goes_on: true,
        },
    ];
    let module = module(&[], &steps)?;
    let (here, other) = (Upstream::start()?, Upstream::start()?);
    let policy = json!({
        "workers": 1,
        "listeners": [{"name": "plain", "address": ANY_PORT}],
        "clusters": [
            {"name": "here", "endpoints": [here.address().to_string()]},
            {"name": "other", "endpoints": [other.address().to_string()]},
        ],
        "filters": [{"name": "probe", "module": module.path()}],
        "routes": [
            {"name": "here", "host": "example.test", "cluster": "here"},
            {"name": "other", "host": "example.test", "prefix": "/other", "cluster": "other"},
        ],
    });
    in_both("clear_route_cache", &policy, "plain", |address| {
        for (step, status, seen_here, seen_other) in [
            (0, 200, Some("/start"), None),
            (1, 200, None, Some("/other/x")),
            (2, 200, None, Some("/other/y")),
            (3, 200, Some("/start"), None),
            (4, 404, None, None),
        ] {
            let answer = get(address, "/start", step)?;
            ensure!(
                answer.status == status,
                "step {step}: got {}",
                answer.status
            );
            for (name, upstream, expected) in
                [("here", &here, seen_here), ("other", &other, seen_other)]
            {
                let seen: Vec<_> = upstream
                    .take_seen()
                    .into_iter()
                    .map(|seen| seen.path)
                    .collect();
                let expected: Vec<_> = expected.into_iter().collect();
                ensure!(seen == expected, "step {step}: {name} sees {seen:?}");
            }
        }
        Ok(())
    })
}

/// Unlike in Envoy, where the request would get there: `/guarded` has a filter that `/` has not.
#[test]
fn routing_anew_is_no_way_around_a_filter() -> Result<()> {
    let path = |path| Step {
        asks: vec![Ask::SetHeader(":path", path)],
        goes_on: true,
    };
    let steps = [
        path("/guarded"),
        path("/open/../guarded/./x"),
        path("/open/%2e%2e/guarded"),
        path("/open/../x"),
        path("/open/%2F"),
    ];
    let module = module(&[], &steps)?;
    let upstream = Upstream::start()?;
    let policy = json!({
        "workers": 1,
        "listeners": [{"name": "plain", "address": ANY_PORT}],
        "clusters": [{"name": "upstream", "endpoints": [upstream.address().to_string()]}],
        "filters": [
            {"name": "probe", "module": module.path()},
            {"name": "tls-policy", "module": "builtin:tls-policy"},
        ],
        "routes": [
            {"name": "open", "cluster": "upstream", "filters": {"tls-policy": "off"}},
            {"name": "guarded", "prefix": "/guarded", "cluster": "upstream"},
        ],
    });
    let folder = tempfile::tempdir()?;
    let here = Here::start(&policy, folder.path())?;
    let address = here.listener("plain")?;
    for (step, status, expected) in [
        (0, 500, None),
        (1, 500, None),
        (2, 500, None),
        (3, 200, Some("/x")),
        (4, 400, None),
    ] {
        let answer = get(address, "/start", step)?;
        ensure!(
            answer.status == status,
            "step {step}: got {}",
            answer.status
        );
        let seen: Vec<_> = upstream
            .take_seen()
            .into_iter()
            .map(|seen| seen.path)
            .collect();
        let expected: Vec<_> = expected.into_iter().collect();
        ensure!(seen == expected, "step {step}: upstream sees {seen:?}");
    }
    Ok(())
}

/// ECDSA signatures differ each time, so each is checked; what Envoy signs we verify, and the other way round.
#[test]
fn what_either_signs_the_other_verifies() -> Result<()> {
    let key = rcgen::KeyPair::generate()?;
    let long = |tag: u8, value: &[u8]| -> Result<Vec<u8>> {
        let len = u16::try_from(value.len())?;
        let varint = [u8::try_from(len & 0x7f)? | 0x80, u8::try_from(len >> 7)?];
        Ok([&[tag << 3 | 2], &varint[..], value].concat())
    };
    let der = key.serialize_der();
    let asked = |hash: &[u8], key: &[u8]| -> Result<Vec<u8>> {
        Ok([bytes(1, hash), long(2, key)?, bytes(3, b"text")].concat())
    };
    let good = asked(b"SHA256", &der)?;
    let pem = [
        bytes(1, b"sha256"),
        bytes(3, b"text"),
        long(4, key.serialize_pem().as_bytes())?,
    ]
    .concat();
    let unknown_hash = asked(b"md5", &der)?;
    let no_key = bytes(1, b"sha256");
    let broken_key = asked(b"sha256", b"no key at all")?;
    let module = module(
        &[],
        &[responding(vec![
            Ask::Foreign("sign", &good),
            Ask::Foreign("sign", &pem),
            Ask::Foreign("sign", &unknown_hash),
            Ask::Foreign("sign", &no_key),
            Ask::Foreign("sign", &broken_key),
            Ask::Foreign("sign", &[0x0a, 0x7f, 0x00]),
        ])],
    )?;
    let upstream = Upstream::start()?;
    let spki = {
        use rcgen::PublicKeyData as _;
        key.subject_public_key_info()
    };
    in_both("sign", &policy(&upstream, &module), "plain", |address| {
        let told = step(&mut Route::plain(address).open()?, 0)?;
        let expected = [OK, OK, OK, BAD_ARGUMENT, OK, BAD_ARGUMENT];
        ensure!(statuses(&told) == expected, "got {told:?}");
        for (_, result) in told.iter().take(2) {
            // SignResult: result (1) true, signature (2).
            let signature = result
                .strip_prefix(&[0x08, 0x01, 0x12])
                .and_then(|rest| rest.split_first())
                .map(|(_, signature)| signature)
                .context("no signature")?;
            let question = [
                bytes(1, b"sha256"),
                long(2, &spki)?,
                bytes(3, signature),
                bytes(4, b"text"),
            ]
            .concat();
            let verdict = portcullis::foreign::ForeignFunctions::default()
                .call("verify_signature", &question)
                .map_err(|status| anyhow::anyhow!("{status:?}"))?;
            ensure!(verdict == [0x08, 0x01], "not verified: {verdict:?}");
        }
        let error = told.get(2).map(|(_, result)| result.clone());
        let sentence = bytes(3, b"md5 is not supported.");
        ensure!(error == Some(sentence), "for md5: {error:?}");
        let error = told.get(4).map(|(_, result)| result.clone());
        let sentence = "Invalid key type: private key required for signing operation.";
        ensure!(
            error == Some(bytes(3, sentence.as_bytes())),
            "for no key: {error:?}"
        );
        Ok(())
    })
}
