//! The life of exchanges in the native harness: what becomes of each decision, and what the host does around it.

#![expect(
    clippy::unwrap_used,
    reason = "a panic is a failed test, in its control too"
)]

use std::time::{Duration, SystemTime};

use portcullis_sdk::prelude::*;
use portcullis_sdk::testing::{self, Cases, Harness, Outcome, Step, no_make};

/// A control that does what the request's `x-do` header says.
struct Puppet {
    ticks: u32,
    counter: Counter,
    jwks: Vec<u8>,
}

#[derive(Default)]
struct State {
    seen: Vec<u8>,
}

#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct Config {
    tick_ms: u64,
    refuse: bool,
}

impl Control for Puppet {
    const METADATA: Metadata = Metadata::new(
        "puppet",
        "1.0.0",
        Callbacks::REQUEST_HEADERS
            .and(Callbacks::REQUEST_BODY)
            .and(Callbacks::RESPONSE_HEADERS)
            .and(Callbacks::RESPONSE_BODY)
            .and(Callbacks::TICK)
            .and(Callbacks::HTTP_CALL_RESPONSE)
            .and(Callbacks::LOG),
    );
    type Config = Config;
    type State = State;

    fn configure(config: Config, plugin: &mut PluginContext) -> Result<Self, ConfigError> {
        if config.refuse {
            return Err(ConfigError::new("refuse", "must not be true"));
        }
        plugin
            .set_tick_period(Duration::from_millis(config.tick_ms))
            .unwrap();
        plugin.declare_owned_request_headers(&["x-user"]);
        Ok(Self {
            ticks: 0,
            counter: plugin.counter("logged"),
            jwks: Vec::new(),
        })
    }

    fn on_request_headers(
        &mut self,
        state: &mut State,
        request: &mut Request,
    ) -> Result<Decision, Error> {
        state.seen = request.header("x-do")?.unwrap_or_default();
        match state.seen.as_slice() {
            b"refuse" => Ok(LocalResponse::refuse(429, "limit", "Too Many Requests")
                .problem_type("https://example.test/limit")
                .member("limit", 100_u32)
                .header("retry-after", "7")
                .into()),
            b"redirect" => {
                Ok(LocalResponse::redirect(308, b"https://example.test/".to_vec()).into())
            }
            b"answer" => Ok(LocalResponse::answer(200, "hello").into()),
            b"split" => Ok(LocalResponse::redirect(308, b"/\r\nset-cookie: a=b".to_vec()).into()),
            b"fail" => Err(Error::new("no idea")),
            b"headers" => {
                let all = request.all_headers()?;
                assert_eq!(all.all("x-two").count(), 2);
                assert_eq!(request.headers("x-two")?.len(), 2);
                request.set_header("x-two", "3")?;
                request.remove_header("x-do")?;
                assert!(request.set_header("x", "a\r\nb").is_err());
                Ok(Decision::Continue)
            }
            b"properties" => {
                assert_eq!(
                    request.property(&["jwt.sub"])?.as_deref(),
                    Some(&b"alice"[..])
                );
                assert_eq!(
                    request.property(&["request", "method"])?.as_deref(),
                    Some(&b"GET"[..])
                );
                request.set_property("later", b"x")?;
                let connection = request.connection();
                assert_eq!(connection.tls_version()?, Some(TlsVersion::Tls13));
                assert!(connection.is_tls()? && !connection.mtls()?);
                assert_eq!(
                    connection.source_address()?,
                    Some("127.0.0.1".parse().unwrap())
                );
                Ok(Decision::Continue)
            }
            b"shared" => {
                let shared = request.shared();
                assert_eq!(shared.get("k")?, None);
                assert_eq!(shared.set("k", b"1", None)?, CasOutcome::Stored);
                let (value, cas) = shared.get("k")?.unwrap();
                assert_eq!(value, b"1");
                assert_eq!(shared.set("k", b"2", Some(cas))?, CasOutcome::Stored);
                assert_eq!(shared.set("k", b"3", Some(cas))?, CasOutcome::Mismatch);
                assert_eq!(shared.set("new", b"3", Some(cas))?, CasOutcome::Stored);
                Ok(Decision::Continue)
            }
            b"verify" => {
                let verified =
                    request
                        .foreign()
                        .verify_signature("sha256", b"key", b"signature", b"text")?;
                let word = match verified {
                    Verified::Bad => "bad",
                    Verified::Good => "good",
                    Verified::Unavailable => "unavailable",
                };
                Ok(LocalResponse::answer(200, word).into())
            }
            b"owned" => {
                let seen = request.property(&["portcullis.owned_request_headers"])?;
                assert_eq!(seen, None);
                Ok(Decision::Continue)
            }
            b"jwks" => Ok(LocalResponse::answer(200, self.jwks.clone()).into()),
            _ => Ok(Decision::Continue),
        }
    }

    fn on_request_body(&mut self, state: &mut State, body: &mut Body) -> Result<Decision, Error> {
        if state.seen == b"hold" {
            if !body.end_of_stream() {
                body.hold();
                return Ok(Decision::Continue);
            }
            let all = body.read(0, body.size())?;
            body.replace(&[b"<", all.as_slice(), b">"].concat())?;
        }
        Ok(Decision::Continue)
    }

    fn on_response_headers(
        &mut self,
        state: &mut State,
        response: &mut Response,
    ) -> Result<Decision, Error> {
        response.set_header("x-own", response.is_own().to_string())?;
        match state.seen.as_slice() {
            b"refuse late" if response.status()? == 200 => {
                Ok(LocalResponse::refuse(502, "leak", "Bad Gateway").into())
            }
            b"answer" => Err(Error::new("too late")),
            b"properties" => {
                assert_eq!(response.property(&["later"])?.as_deref(), Some(&b"x"[..]));
                Ok(Decision::Continue)
            }
            _ => Ok(Decision::Continue),
        }
    }

    fn on_response_body(&mut self, state: &mut State, _: &mut Body) -> Result<Decision, Error> {
        match state.seen.as_slice() {
            b"fail last" => Err(Error::new("the body is no good")),
            _ => Ok(Decision::Continue),
        }
    }

    fn on_tick(&mut self, plugin: &mut PluginContext) {
        self.ticks += 1;
        let headers = [
            (":method", "GET"),
            (":path", "/jwks"),
            (":authority", "idp.test"),
        ];
        assert!(
            plugin
                .http_call("nowhere", &headers, b"", Duration::from_secs(1))
                .is_err()
        );
        assert!(
            plugin
                .http_call("idp", &headers[..1], b"", Duration::from_secs(1))
                .is_err()
        );
        plugin
            .http_call("idp", &headers, b"", Duration::from_secs(1))
            .unwrap();
    }

    fn on_http_call_response(
        &mut self,
        _: &mut PluginContext,
        _: CallId,
        response: &HttpCallResponse,
    ) {
        if response.status() == Ok(Some(200)) {
            assert!(response.body(1).is_err());
            self.jwks = [
                response.body(100).unwrap(),
                self.ticks.to_string().into_bytes(),
            ]
            .concat();
        }
    }

    fn on_log(&mut self, _: &State, _: &mut Log) {
        self.counter.increment(1);
    }
}

/// One step of a case file, for what is checked by hand.
fn step(yaml: &str) -> Step {
    let cases = Cases::parse(&format!(
        "control: puppet\ncases:\n  - name: x\n    steps:\n      - {yaml}"
    ));
    cases.unwrap().cases.remove(0).steps.remove(0)
}

fn doing(word: &str) -> Step {
    step(&format!(
        "{{request: {{headers: [[x-do, {word}]]}}, expect: {{status: 200}}}}"
    ))
}

fn configured() -> Harness<Puppet> {
    let mut harness = Harness::new(SystemTime::now());
    harness.configure("").unwrap();
    harness
}

fn header<'a>(outcome: &'a Outcome, name: &str) -> Option<&'a str> {
    let (_, value) = outcome
        .headers
        .iter()
        .find(|(known, _)| known == name.as_bytes())?;
    std::str::from_utf8(value).ok()
}

#[test]
fn cases() {
    testing::check::<Puppet>("tests/life.yaml");
}

#[test]
fn a_refusal_is_logged_counted_and_tied_together() {
    let mut harness = configured();
    for _ in 0..2 {
        harness.exchange(&doing("refuse"), &no_make).unwrap();
    }
    let outcome = harness.exchange(&doing("refuse"), &no_make).unwrap();
    let id = header(&outcome, "x-policy-decision-id").unwrap();
    let problem: serde_json::Value = serde_json::from_slice(&outcome.body).unwrap();
    let expected = serde_json::json!({"type": "https://example.test/limit", "title": "Too Many Requests",
        "status": 429, "decision_id": id, "limit": 100});
    assert_eq!(problem, expected);
    let (level, line) = harness.log().pop().unwrap();
    assert_eq!(level, Level::Info);
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    let expected = serde_json::json!({"control": "puppet", "decision": "refuse", "reason": "limit", "status": 429,
        "decision_id": id});
    assert_eq!(line, expected);
    assert_eq!(harness.metric("portcullis.puppet.refused.limit"), Some(3));
    assert_eq!(harness.metric("portcullis.puppet.logged"), Some(3));
}

#[test]
fn an_error_is_a_refusal() {
    let mut harness = configured();
    let outcome = harness.exchange(&doing("fail"), &no_make).unwrap();
    assert_eq!((outcome.status, outcome.upstream.is_none()), (500, true));
    let (level, line) = harness.log().pop().unwrap();
    assert_eq!(level, Level::Error);
    assert!(
        line.contains("no idea")
            && line.contains(header(&outcome, "x-policy-decision-id").unwrap()),
        "{line}"
    );
    assert!(!String::from_utf8(outcome.body).unwrap().contains("no idea"));
    assert_eq!(harness.metric("portcullis.puppet.refused.error"), Some(1));
}

#[test]
fn without_a_configuration_everything_is_refused() {
    let mut harness = Harness::<Puppet>::new(SystemTime::now());
    assert_eq!(
        harness
            .exchange(&doing("nothing"), &no_make)
            .unwrap()
            .status,
        500
    );
    for (json, line) in [
        (
            "{\"refuse\": true}",
            "configuration: refuse: must not be true",
        ),
        (
            "{\"x\": 1}",
            "configuration: x: unknown field `x`, expected `tick_ms` or `refuse`",
        ),
        (
            "{} {}",
            "configuration: something stands behind the value (JSON, byte 3)",
        ),
    ] {
        assert_eq!(harness.configure(json), Err(line.into()));
    }
    assert_eq!(
        harness
            .exchange(&doing("nothing"), &no_make)
            .unwrap()
            .status,
        500
    );
    harness.configure("{}").unwrap();
    assert_eq!(
        harness
            .exchange(&doing("nothing"), &no_make)
            .unwrap()
            .status,
        200
    );
    harness.configure("[]").unwrap_err();
    assert_eq!(
        harness
            .exchange(&doing("nothing"), &no_make)
            .unwrap()
            .status,
        200,
        "the old one stays"
    );
}

#[test]
fn a_refusal_after_the_headers_are_out_resets_the_stream() {
    let outcome = configured()
        .exchange(&doing("fail last"), &no_make)
        .unwrap();
    assert_eq!((outcome.status, outcome.body.len()), (0, 0));
}

#[test]
fn the_hosts_crypto_is_used_where_it_is() {
    let mut harness = configured();
    let verify = |harness: &mut Harness<Puppet>| {
        String::from_utf8(harness.exchange(&doing("verify"), &no_make).unwrap().body).unwrap()
    };
    assert_eq!(verify(&mut harness), "unavailable");
    harness.set_foreign_function("verify_signature", Box::new(|_| Ok(vec![8, 1])));
    assert_eq!(verify(&mut harness), "good");
    harness.set_foreign_function("verify_signature", Box::new(|_| Ok(Vec::new())));
    assert_eq!(verify(&mut harness), "bad");
    harness.set_foreign_function("verify_signature", Box::new(|_| Err(Status::BAD_ARGUMENT)));
    let refused = serde_json::from_str::<serde_json::Value>(&verify(&mut harness)).unwrap();
    assert_eq!(refused["status"], 500);
}

#[test]
fn owned_headers_are_declared_to_the_host_and_not_to_exchanges() {
    let mut harness = configured();
    assert_eq!(harness.owned_request_headers(), ["x-user"]);
    let outcome = harness.exchange(&doing("owned"), &no_make).unwrap();
    assert_eq!(outcome.status, 200);
}

#[test]
fn files_of_cases_that_say_nothing_are_refused() {
    for (yaml, reason) in [
        ("control: x\ncases:\n  - name: a\n", "expects nothing"),
        (
            "control: x\ncases:\n  - name: a\n    expect: {}\n",
            "expects nothing",
        ),
        (
            "control: x\ncases:\n  - {name: a, expect: {status: 1}}\n  - {name: a, expect: {status: 1}}\n",
            "taken",
        ),
        (
            "control: x\ncases:\n  - {name: a, expect: {status: 1}, places: [native]}\n",
            "because",
        ),
        (
            "control: x\ncases:\n  - {name: a, steps: [{expect: {status: 1}, advance: 1s}]}\n",
            "native",
        ),
        (
            "control: x\ncases:\n  - {name: a, steps: [{expect: {status: 1}}], expect: {status: 1}}\n",
            "beside",
        ),
        (
            "control: x\ncases:\n  - {name: a, expect: {statsu: 1}}\n",
            "statsu",
        ),
        (
            "control: x\ncases:\n  - {name: a, request: {tls: TLSv9}, expect: {status: 1}}\n",
            "TLSv9",
        ),
    ] {
        let error = Cases::parse(yaml).unwrap_err().to_string();
        assert!(error.contains(reason), "{yaml}\n{error}");
    }
}
