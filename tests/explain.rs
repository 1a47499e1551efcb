//! `portcullis explain` says what `portcullis serve` does: the same requests put to both.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context as _, Result, ensure};
use portcullis_tests::client::Route;
use portcullis_tests::http1::{Answer, Headers, Request};
use portcullis_tests::upstream::Upstream;
use serde_json::{Value, json};

use crate::hostile::guest;
use crate::places::{ANY_PORT, Here};
use crate::served;

/// What differs from one exchange to the next, or is the connection's.
const NOT_COMPARED: &[&str] = &[
    "date",
    "connection",
    "x-request-id",
    "transfer-encoding",
    "ratelimit",
];

fn made(kind: &str, argument: &Value) -> Result<Vec<u8>> {
    jwt_auth::testing::make(kind, argument, SystemTime::now()).map_err(anyhow::Error::msg)
}

/// A guest that holds every request for a callout that it never makes, or traps.
fn guests(folder: &Path) -> Result<()> {
    let callback = |body: &str| {
        format!(
            "(func (export \"proxy_on_request_headers\") (param i32 i32 i32) (result i32) {body})"
        )
    };
    fs::write(
        folder.join("holds.wasm"),
        guest("", &callback("(i32.const 1)"))?,
    )?;
    fs::write(
        folder.join("traps.wasm"),
        guest("", &callback("unreachable"))?,
    )?;
    Ok(())
}

/// Holds the headers of both directions until it has seen the end of the body; then it answers a body that begins with `n` with 403, and puts what
/// it has seen last into a header of any other.
const GATE: &str = r#"(module
  (import "env" "proxy_get_buffer_bytes" (func $buffer (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_add_header_map_value" (func $add (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_send_local_response" (func $answer (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "x-seen")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 1024))
  (func $head (param $end i32) (result i32) (i32.eqz (local.get $end)))
  (func $body (param $kind i32) (param $end i32) (result i32)
    (if (i32.eqz (local.get $end)) (then (return (i32.const 1))))
    (drop (call $buffer (local.get $kind) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 4)))
    (if (i32.eq (i32.load8_u (i32.const 1024)) (i32.const 110)) (then
      (drop (call $answer (i32.const 403) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1)))
      (return (i32.const 1))))
    ;; Buffer 0 is the request's body and map 0 its headers, buffer 1 the response's and map 2.
    (drop (call $add (i32.shl (local.get $kind) (i32.const 1)) (i32.const 16) (i32.const 6) (i32.const 1024) (i32.const 1)))
    (i32.const 0))
  (func (export "proxy_on_request_headers") (param i32 i32) (param $end i32) (result i32) (call $head (local.get $end)))
  (func (export "proxy_on_request_body") (param i32 i32) (param $end i32) (result i32) (call $body (i32.const 0) (local.get $end)))
  (func (export "proxy_on_response_headers") (param i32 i32) (param $end i32) (result i32) (call $head (local.get $end)))
  (func (export "proxy_on_response_body") (param i32 i32) (param $end i32) (result i32) (call $body (i32.const 1) (local.get $end))))
"#;

/// Two filters that want the body first, around one that does not.
fn policy_with_gates(upstream: &Upstream, folder: &Path) -> Result<Value> {
    let module = folder.join("gate.wasm");
    fs::write(&module, wat::parse_str(GATE)?)?;
    let gate = |name: &str| json!({"name": name, "module": module, "allow_on_headers_stop_iteration": true});
    Ok(json!({
        "workers": 1,
        "listeners": [{"name": "plain", "address": ANY_PORT}],
        "clusters": [{"name": "upstream", "endpoints": [upstream.address().to_string()]}],
        "filters": [
            gate("outer"),
            {"name": "limit", "module": "builtin:rate-limit", "configuration": {"key": "address"}},
            gate("inner"),
        ],
        "routes": [{"name": "all", "cluster": "upstream"}],
    }))
}

fn policy(upstream: &Upstream, folder: &Path) -> Result<Value> {
    let file = |name: &str| folder.join(name).display().to_string();
    let keys: Value = serde_json::from_slice(&made("jwks", &json!(["p256"]))?)?;
    Ok(json!({
        "workers": 1,
        "listeners": [{"name": "plain", "address": ANY_PORT}],
        "clusters": [{"name": "upstream", "endpoints": [upstream.address().to_string()]}],
        "filters": [
            {"name": "security-headers", "module": "builtin:security-headers", "configuration": {"profile": "api"}},
            {"name": "tls-policy", "module": "builtin:tls-policy", "configuration": {"redirect_plaintext": true}},
            // A machine that stalls charges the stall to whoever runs.
            {"name": "jwt-auth", "module": "builtin:jwt-auth", "limits": {"callback_time": "1s"}, "configuration": {
                "providers": [{"issuer": "https://issuer.test", "audiences": ["api"], "jwks": keys}],
                "claims_to_headers": [{"claim": "sub", "header": "x-user"}],
            }},
            {"name": "rate-limit", "module": "builtin:rate-limit", "configuration": {"key": "address"}},
            {"name": "holds", "module": file("holds.wasm")},
            {"name": "traps", "module": file("traps.wasm")},
        ],
        "routes": [
            {"name": "all", "cluster": "upstream", "host": "a.test", "filters": {"tls-policy": "off", "holds": "off", "traps": "off"}},
            {"name": "public", "cluster": "upstream", "host": "a.test", "prefix": "/public", "filters": {
                "tls-policy": "off", "jwt-auth": "off", "holds": "off", "traps": "off"}},
            {"name": "tls", "cluster": "upstream", "host": "a.test", "prefix": "/tls", "filters": {"holds": "off", "traps": "off"}},
            {"name": "holds", "cluster": "upstream", "host": "a.test", "prefix": "/holds", "filters": {
                "tls-policy": "off", "jwt-auth": "off", "traps": "off"}},
            {"name": "traps", "cluster": "upstream", "host": "a.test", "prefix": "/traps", "filters": {
                "tls-policy": "off", "jwt-auth": "off", "holds": "off"}},
        ],
    }))
}

/// Ids made anew for each exchange look alike: `-` for `0123abcd-…`.
fn without_ids(text: &str) -> String {
    let is_id = |window: &str| {
        let parts: Vec<_> = window.split('-').map(str::len).collect();
        parts == [8, 4, 4, 4, 12] && window.chars().all(|c| c.is_ascii_hexdigit() || c == '-')
    };
    let mut out = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        match rest.get(..36).filter(|window| is_id(window)) {
            Some(_) => {
                out.push('-');
                rest = rest.get(36..).unwrap_or_default();
            }
            None => {
                out.push(c);
                rest = rest.get(c.len_utf8()..).unwrap_or_default();
            }
        }
    }
    out
}

fn comparable(headers: impl Iterator<Item = (String, String)>) -> Vec<String> {
    let mut lines: Vec<_> = headers
        .filter(|(name, _)| !NOT_COMPARED.contains(&name.as_str()))
        .map(|(name, value)| without_ids(&format!("{name}: {value}")))
        .collect();
    lines.sort();
    lines
}

fn of_wire(headers: &Headers) -> Vec<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    comparable(
        headers
            .iter()
            .map(|(name, value)| (text(name).to_lowercase(), text(value))),
    )
}

fn of_json(headers: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let pairs = headers.as_array().into_iter().flatten();
    comparable(pairs.map(|pair| (text(&pair[0]), text(&pair[1]))))
}

/// Asks `explain`; the answer of the upstream is what [`upstream`] gives, unless `more` says otherwise.
fn explained(policy: &Path, request: &Request, more: &[&str]) -> Result<Value> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut arguments = vec![
        "explain".to_owned(),
        policy.display().to_string(),
        "--show-credentials".to_owned(),
        "--format=json".to_owned(),
        format!(
            "--request={} {}",
            text(&request.method),
            text(&request.path)
        ),
        format!("--header=host: {}", text(&request.authority)),
    ];
    for (name, value) in &request.headers {
        arguments.push(format!("--header={}: {}", text(name), text(value)));
    }
    if !more.iter().any(|it| it.starts_with("--response-body")) {
        arguments.push("--response-body=ok".to_owned());
    }
    if let Some(body) = &request.body {
        arguments.push(format!("--body={}", text(body)));
    }
    arguments.extend(more.iter().map(|it| (*it).to_owned()));
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let output = served::run(&arguments)?;
    ensure!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn decisions<'e>(explanation: &'e Value, phase: &str) -> Vec<(&'e str, &'e str)> {
    let steps = explanation["steps"].as_array().into_iter().flatten();
    steps
        .filter(|step| step["phase"] == phase)
        .filter_map(|step| Some((step["filter"].as_str()?, step["decision"].as_str()?)))
        .collect()
}

/// An upstream that answers as [`explained`] is told.
fn upstream() -> Result<Upstream> {
    let upstream = Upstream::start()?;
    upstream.answer(Answer {
        status: 200,
        headers: vec![(b"server".to_vec(), b"nginx/1.0".to_vec())],
        body: b"ok".to_vec(),
        ..Answer::default()
    });
    Ok(upstream)
}

#[test]
fn it_says_what_the_proxy_does() -> Result<()> {
    let folder = tempfile::tempdir()?;
    guests(folder.path())?;
    let upstream = upstream()?;
    let policy = policy(&upstream, folder.path())?;
    let token = [b"Bearer ".to_vec(), made("jwt", &json!({"key": "p256"}))?].concat();
    let asked = |path: &str| {
        let mut request = Request::get(path);
        request.authority = b"A.test:8080".to_vec();
        request
    };
    let with_token = |request: Request| request.header("authorization", token.clone());
    let mut head = with_token(asked("/head"));
    head.method = b"HEAD".to_vec();
    let mut elsewhere = asked("/");
    elsewhere.authority = b"b.test".to_vec();
    let rows: Vec<(&str, Request)> = vec![
        ("no token", asked("/")),
        ("a token", with_token(asked("/a?b=c"))),
        (
            "a bad token",
            asked("/").header("authorization", "Bearer x"),
        ),
        (
            "what a client says about itself",
            asked("/public/x")
                .header("x-user", "mallory")
                .header("x-forwarded-for", "203.0.113.9")
                .header("x-forwarded-proto", "https")
                .header("x-envoy-internal", "true"),
        ),
        (
            "hop by hop",
            with_token(asked("/"))
                .header("connection", "x-a")
                .header("x-a", "1")
                .header("te", "trailers"),
        ),
        ("a path to be made canonical", asked("/tls/..//public/./x")),
        ("an escaped slash", asked("/public/a%2fb")),
        ("a body", with_token(asked("/post")).post("hello")),
        ("HEAD", head),
        ("a redirect", asked("/tls/x?y")),
        ("plaintext refused", asked("/tls/x").post("z")),
        ("another host", elsewhere),
        ("a trap", asked("/traps")),
        ("an unknown expectation", {
            let mut request = asked("/");
            request
                .headers
                .push((b"expect".to_vec(), b"magic".to_vec()));
            request
        }),
    ];
    compare(&policy, folder.path(), &upstream, rows)
}

/// Puts requests to the proxy and to `explain`.
fn compare(
    policy: &Value,
    folder: &Path,
    upstream: &Upstream,
    rows: Vec<(&'static str, Request)>,
) -> Result<()> {
    let here = Here::start(policy, folder)?;
    let plain = here.listener("plain")?;
    let file = folder.join("policy.yaml");
    fs::write(&file, policy.to_string())?;
    for (name, request) in rows {
        let _ = upstream.take_seen();
        let answer = Route::plain(plain).send(&request).context(name)?;
        let seen = upstream.take_seen();
        let explanation =
            explained(&file, &request, &["--response-header=server: nginx/1.0"]).context(name)?;
        let outcome = explanation.get("outcome").context("no outcome")?;
        ensure!(
            outcome["kind"] == "answer" && outcome["status"] == answer.status,
            "{name}: the proxy answered {}, explained is {explanation:#}",
            answer.status
        );
        let (there, here) = (of_wire(&answer.headers), of_json(&outcome["headers"]));
        assert_eq!(
            there, here,
            "{name}: headers of the answer\n{explanation:#}"
        );
        let body = outcome["body"].as_str().unwrap_or_default();
        if request.method != b"HEAD" {
            assert_eq!(without_ids(&answer.text()), without_ids(body), "{name}");
        }
        let sent = explanation.get("upstream").context("no upstream")?;
        ensure!(
            seen.is_empty() == sent.is_null(),
            "{name}: the upstream saw {seen:?}, explained is {sent}"
        );
        if let Some(seen) = seen.first() {
            let line = format!("{} {} HTTP/1.1", seen.method, seen.path);
            assert_eq!(sent["line"], line, "{name}");
            assert_eq!(of_wire(&seen.headers), of_json(&sent["headers"]), "{name}");
            assert_eq!(
                sent["body"],
                String::from_utf8_lossy(&seen.body).into_owned()
            );
        }
    }
    Ok(())
}

#[test]
fn filters_that_want_the_body_before_they_let_the_headers_go_get_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    guests(folder.path())?;
    let upstream = upstream()?;
    let policy = policy_with_gates(&upstream, folder.path())?;
    let asked = || Request::get("/gate");
    let rows = vec![
        ("a body that may pass", asked().post("hello")),
        ("a body that may not", asked().post("no")),
        ("no body", asked()),
    ];
    compare(&policy, folder.path(), &upstream, rows)?;

    let file = folder.path().join("policy.yaml");
    let passed = explained(&file, &asked().post("hello"), &[])?;
    assert_eq!(
        decisions(&passed, "request headers"),
        [
            ("outer", "pause"),
            ("limit", "continue"),
            ("inner", "pause")
        ],
        "{passed:#}"
    );
    assert_eq!(
        decisions(&passed, "request body"),
        [("outer", "continue"), ("inner", "continue")],
        "{passed:#}"
    );
    assert_eq!(
        decisions(&passed, "response body"),
        [("inner", "continue"), ("outer", "continue")],
        "{passed:#}"
    );
    let refused = explained(&file, &asked().post("no"), &[])?;
    assert_eq!(
        decisions(&refused, "request headers"),
        [
            ("outer", "pause"),
            ("limit", "not_reached"),
            ("inner", "not_reached")
        ],
        "{refused:#}"
    );
    assert_eq!(refused["outcome"]["by"], "filter `outer`", "{refused:#}");
    // What the upstream answers can be refused for its body as well.
    let refused = explained(&file, &asked(), &["--response-body=nothing"])?;
    assert_eq!(refused["outcome"]["status"], 403, "{refused:#}");
    assert_eq!(refused["outcome"]["by"], "filter `inner`", "{refused:#}");
    Ok(())
}

#[test]
fn each_filters_part_is_told() -> Result<()> {
    let folder = tempfile::tempdir()?;
    guests(folder.path())?;
    let upstream = Upstream::start()?;
    let file = folder.path().join("policy.yaml");
    fs::write(&file, policy(&upstream, folder.path())?.to_string())?;
    let mut request = Request::get("/x");
    request.authority = b"a.test".to_vec();

    let refused = explained(&file, &request, &[])?;
    assert_eq!(
        decisions(&refused, "request headers"),
        [
            ("security-headers", "not_concerned"),
            ("jwt-auth", "respond"),
            ("rate-limit", "not_reached")
        ],
        "{refused:#}"
    );
    let on_the_way_back = decisions(&refused, "response headers");
    assert!(
        on_the_way_back.ends_with(&[("security-headers", "continue")]),
        "{refused:#}"
    );
    assert_eq!(refused["outcome"]["by"], "filter `jwt-auth`");
    assert_eq!(refused["route"]["name"], "all");
    let reasons = refused["route"]["because"].to_string();
    assert!(
        reasons.contains("host `a.test`") && reasons.contains("prefix /"),
        "{reasons}"
    );
    let steps = refused["steps"].as_array().context("steps")?;
    let timed = steps
        .iter()
        .find(|step| step["filter"] == "jwt-auth")
        .context("no jwt-auth")?;
    assert!(timed["microseconds"].as_f64().is_some_and(|it| it > 0.0));

    request.path = b"/holds".to_vec();
    let held = explained(&file, &request, &[])?;
    assert_eq!(held["outcome"]["kind"], "held");
    assert_eq!(held["outcome"]["filter"], "holds");

    request.path = b"/traps".to_vec();
    let broken = explained(&file, &request, &[])?;
    assert!(
        decisions(&broken, "request headers").contains(&("traps", "broke")),
        "{broken:#}"
    );
    assert_eq!(broken["outcome"]["status"], 503);
    Ok(())
}

#[test]
fn callouts_are_answered_as_told_and_else_said_to_be_missing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("policy.yaml");
    let policy = json!({
        "listeners": [{"name": "plain", "address": "127.0.0.1:8080"}],
        "clusters": [{"name": "up", "endpoints": ["127.0.0.1:9"]}, {"name": "issuer", "endpoints": ["127.0.0.1:9"]}],
        "filters": [{"name": "jwt-auth", "module": "builtin:jwt-auth", "clusters": ["issuer"],
            // As above: a machine that stalls charges the stall to whoever runs.
            "limits": {"callback_time": "1s"}, "configuration": {
            "providers": [{
                "issuer": "https://issuer.test", "audiences": ["api"],
                "remote_jwks": {"cluster": "issuer", "authority": "issuer.test", "path": "/jwks"},
            }],
        }}],
        "routes": [{"name": "all", "cluster": "up"}],
    });
    fs::write(&file, policy.to_string())?;
    let keys = folder.path().join("jwks.json");
    fs::write(&keys, made("jwks", &json!(["rsa-1"]))?)?;
    let token = [b"Bearer ".to_vec(), made("jwt", &json!({}))?].concat();
    let request = Request::get("/").header("authorization", token);
    let without = explained(&file, &request, &[])?;
    assert_ne!(without["outcome"]["by"], "the upstream", "{without:#}");
    let said = without["start"].to_string();
    assert!(
        said.contains("cluster `issuer`") && said.contains("not made"),
        "{without:#}"
    );
    let answer = format!("--callout=issuer=@{}", keys.display());
    let with = explained(&file, &request, &[&answer])?;
    assert_eq!(with["outcome"]["by"], "the upstream", "{with:#}");
    assert_eq!(with["upstream"]["line"], "GET / HTTP/1.1");

    // Credentials stay out of what people paste, unless they ask for them.
    let text = String::from_utf8_lossy(&made("jwt", &json!({}))?).into_owned();
    let policy = file.display().to_string();
    let header = format!("--header=authorization: Bearer {text}");
    let output = served::run(&["explain", &policy, "--request=GET /", &header, &answer])?;
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(shown.contains("authorization: ["), "{shown}");
    assert!(!shown.contains(&text), "{shown}");
    Ok(())
}

#[test]
fn a_question_that_fits_nothing_is_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    guests(folder.path())?;
    let upstream = Upstream::start()?;
    let file = folder.path().join("policy.yaml");
    fs::write(&file, policy(&upstream, folder.path())?.to_string())?;
    let file = file.display().to_string();
    let get = "--request=GET /";
    let huge = format!("--header=x-huge: {}", "x".repeat(70_000));
    for (arguments, code, words) in [
        (vec!["no-such.yaml", get], 1, "no such file"),
        (vec![file.as_str()], 2, "--request"),
        (vec![&file, "--request=GET"], 2, "a method and a target"),
        (vec![&file, "--request=GET / HTTP/3"], 2, "HTTP/3"),
        (vec![&file, get, "--header=nocolon"], 2, "a colon"),
        (vec![&file, get, "--listener=tls"], 1, "there are: plain"),
        (vec![&file, get, "--callout=idp=200"], 1, "no cluster `idp`"),
        (
            vec![&file, get, "--body=@no-such"],
            1,
            "cannot read no-such",
        ),
        (vec![&file, get, "--source=somewhere"], 2, "not an address"),
        (vec![&file, get, "--response=700000"], 2, "not the status"),
        (
            vec![&file, get, "--tls=1.3"],
            0,
            "plaintext: a TLS handshake is not HTTP",
        ),
        (vec![&file, get, &huge], 0, "431"),
        (
            vec![&file, "--request=GET /", "--header=host: b.test"],
            0,
            "no route takes host `b.test`",
        ),
        (vec![&file, "--request=GET a"], 0, "invalid path"),
    ] {
        let output = served::run(&[&["explain"], &arguments[..]].concat())?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        ensure!(
            output.status.code() == Some(code) && said.contains(words),
            "explain {:?} ended with {} and said:\n{}",
            arguments
                .iter()
                .map(|it| it.get(..60).unwrap_or(it))
                .collect::<Vec<_>>(),
            output.status,
            said.get(..2000).unwrap_or(&said)
        );
    }
    Ok(())
}
