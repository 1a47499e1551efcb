//! Several controls in one module, in the harness: they decide as a chain of filters would.

#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a panic is a failed test, in its control too"
)]

use std::time::{Duration, SystemTime};

use portcullis_sdk::prelude::*;
use portcullis_sdk::testing::{Callout, Harness, Outcome, Policy, Step, Value, no_make};

/// Leaves its name in headers and properties, and does what `x-<letter>` says.
macro_rules! puppet {
    ($control:ident, $name:literal, $letter:literal) => {
        #[derive(Default)]
        struct $control {
            ticks: u32,
            held: Vec<(CallId, Held)>,
        }

        impl Control for $control {
            const METADATA: Metadata = Metadata::new(
                $name,
                "1.0.0",
                Callbacks::REQUEST_HEADERS
                    .and(Callbacks::REQUEST_BODY)
                    .and(Callbacks::RESPONSE_HEADERS)
                    .and(Callbacks::TICK)
                    .and(Callbacks::HTTP_CALL_RESPONSE)
                    .and(Callbacks::LOG),
            );
            type Config = Config;
            /// Bytes of the body seen.
            type State = usize;

            fn configure(config: Config, plugin: &mut PluginContext) -> Result<Self, ConfigError> {
                if config.fail {
                    return Err(ConfigError::new("fail", "must not be true"));
                }
                plugin
                    .set_tick_period(Duration::from_millis(config.tick_ms))
                    .unwrap();
                Ok(Self::default())
            }

            fn on_request_headers(
                &mut self,
                _: &mut usize,
                request: &mut Request<'_>,
            ) -> Result<Decision, Error> {
                let before = request.property(&["trail"])?.unwrap_or_default();
                request.set_property("trail", &[&before, $letter.as_bytes()].concat())?;
                let trail = request.property(&["trail"])?.unwrap_or_default();
                request.set_header(concat!("x-trail-", $letter), trail)?;
                let key = "count";
                let stored = request.shared().get(key)?;
                let count = stored.map_or(0, |(value, _)| value.len()) + 1;
                let _ = request.shared().set(key, &vec![0; count], None)?;
                request.set_header(concat!("x-count-", $letter), count.to_string())?;
                request.set_header(concat!("x-ticks-", $letter), self.ticks.to_string())?;
                match request.header(concat!("x-", $letter))?.as_deref() {
                    Some(b"refuse") => {
                        Ok(LocalResponse::refuse(403, "told_to", "Forbidden").into())
                    }
                    Some(b"call") => {
                        let headers = [(":method", "GET"), (":path", "/"), (":authority", "x")];
                        let second = Duration::from_secs(1);
                        let call = request.http_call("cluster", &headers, b"", second)?;
                        self.held.push((call, request.hold()));
                        Ok(Decision::Continue)
                    }
                    _ => Ok(Decision::Continue),
                }
            }

            fn on_request_body(
                &mut self,
                seen: &mut usize,
                body: &mut Body<'_>,
            ) -> Result<Decision, Error> {
                let bytes = body.read(0, usize::MAX)?;
                if bytes.starts_with(concat!("hold", $letter).as_bytes()) && !body.end_of_stream() {
                    body.hold();
                    return Ok(Decision::Continue);
                }
                *seen += bytes.len();
                if bytes.starts_with(b"upper") {
                    body.replace(&bytes.to_ascii_uppercase())?;
                }
                Ok(Decision::Continue)
            }

            fn on_response_headers(
                &mut self,
                seen: &mut usize,
                response: &mut Response<'_>,
            ) -> Result<Decision, Error> {
                let own = if response.is_own() { "!" } else { "" };
                let trail = response.header("x-back")?.unwrap_or_default();
                let trail = [&trail, $letter.as_bytes(), own.as_bytes()].concat();
                response.set_header("x-back", trail)?;
                response.set_header(concat!("x-seen-", $letter), seen.to_string())?;
                Ok(Decision::Continue)
            }

            fn on_tick(&mut self, _: &mut PluginContext) {
                self.ticks += 1;
            }

            fn on_http_call_response(
                &mut self,
                plugin: &mut PluginContext,
                call: CallId,
                response: &HttpCallResponse<'_>,
            ) {
                let at = self.held.iter().position(|(id, _)| *id == call).unwrap();
                let (_, held) = self.held.swap_remove(at);
                let decision = match response.status().unwrap() {
                    Some(200) => Decision::Continue,
                    _ => LocalResponse::refuse(403, "answer", "Forbidden").into(),
                };
                plugin.release(held, Ok(decision));
            }

            fn on_log(&mut self, seen: &usize, log: &mut Log<'_>) {
                log.log(
                    Level::Info,
                    "over",
                    &[("seen", Field::Number(*seen as u64))],
                );
            }
        }
    };
}

#[derive(Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Config {
    fail: bool,
    tick_ms: u64,
}

puppet!(A, "control-a", "a");
puppet!(B, "control-b", "b");
puppet!(C, "control-c", "c");

type Three = Policy<(A, B, C)>;

const ALL: &str = r#"{"controls": [
    {"control": "control-a", "configuration": {"tick_ms": 100}},
    {"control": "control-b", "configuration": {"tick_ms": 250}},
    {"control": "control-c"}
]}"#;

fn configured(json: &str) -> Harness<Three> {
    let mut harness = Harness::new(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));
    harness.configure(json).unwrap();
    harness
}

fn step(headers: &[(&str, &str)], body: &str) -> Step {
    let mut step = Step::default();
    step.request.headers = headers
        .iter()
        .map(|(name, value)| ((*name).into(), Value::Text((*value).into())))
        .collect();
    step.request.body = body.into();
    step
}

fn exchange(harness: &mut Harness<Three>, headers: &[(&str, &str)], body: &str) -> Outcome {
    harness.exchange(&step(headers, body), &no_make).unwrap()
}

fn seen<'a>(outcome: &'a Outcome, name: &str) -> &'a str {
    let upstream = outcome.upstream.as_ref().map(|it| it.headers.as_slice());
    let mut all = outcome.headers.iter().chain(upstream.unwrap_or_default());
    let value = all.find(|(known, _)| known == name.as_bytes());
    std::str::from_utf8(&value.unwrap_or_else(|| panic!("no {name}")).1).unwrap()
}

#[test]
fn requests_pass_in_order_and_responses_in_reverse() {
    let mut harness = configured(ALL);
    let outcome = exchange(&mut harness, &[], "");
    assert_eq!(outcome.status, 200);
    assert_eq!(seen(&outcome, "x-trail-c"), "abc");
    assert_eq!(seen(&outcome, "x-back"), "cba");

    let mut harness =
        configured(r#"{"controls": [{"control": "control-c"}, {"control": "control-a"}]}"#);
    let outcome = exchange(&mut harness, &[], "");
    assert_eq!(seen(&outcome, "x-trail-a"), "ca");
    assert_eq!(seen(&outcome, "x-back"), "ac");
    assert!(!outcome.headers.iter().any(|(name, _)| name == b"x-seen-b"));
}

#[test]
fn a_refusal_ends_the_chain_and_its_answer_passes_those_before_it() {
    let mut harness = configured(ALL);
    let outcome = exchange(&mut harness, &[("x-b", "refuse")], "");
    assert_eq!((outcome.status, outcome.upstream.is_none()), (403, true));
    assert_eq!(seen(&outcome, "x-back"), "b!a");
    let log = harness.log();
    let over = log
        .iter()
        .filter(|(_, line)| line.contains("\"over\""))
        .count();
    assert_eq!(over, 2, "the third was never reached: {log:?}");
    assert_eq!(
        harness.metric("portcullis.control-b.refused.told_to"),
        Some(1)
    );
    // The next exchange knows nothing of this one.
    let outcome = exchange(&mut harness, &[], "");
    assert_eq!(seen(&outcome, "x-trail-c"), "abc");
}

#[test]
fn a_call_holds_those_behind() {
    for (status, passes) in [(200, true), (503, false)] {
        let mut harness = configured(ALL);
        harness.set_callouts(vec![Callout::new("cluster", status)]);
        let outcome = exchange(&mut harness, &[("x-b", "call")], "");
        if passes {
            assert_eq!(seen(&outcome, "x-trail-c"), "abc");
            assert_eq!(seen(&outcome, "x-back"), "cba");
        } else {
            assert_eq!(outcome.status, 403);
            assert_eq!(seen(&outcome, "x-back"), "b!a");
        }
    }
}

#[test]
fn a_body_is_shown_to_each_once_though_one_holds_it() {
    for (body, through) in [
        ("plain body", "plain body"),
        ("holdb and then some", "holdb and then some"),
        ("holda and then some", "holda and then some"),
        ("holdc and then some", "holdc and then some"),
    ] {
        let mut harness = configured(ALL);
        let outcome = exchange(&mut harness, &[], body);
        for letter in ["a", "b", "c"] {
            let bytes = seen(&outcome, &format!("x-seen-{letter}"));
            assert_eq!(bytes, body.len().to_string(), "{body}, {letter}");
        }
        let upstream = outcome.upstream.unwrap();
        assert_eq!(upstream.body, through.as_bytes());
    }
}

#[test]
fn shared_data_is_each_filters_own() {
    let mut harness = configured(
        r#"{"controls": [
            {"control": "control-a", "filter": "first"},
            {"control": "control-b", "filter": "second"}
        ]}"#,
    );
    exchange(&mut harness, &[], "");
    let outcome = exchange(&mut harness, &[], "");
    assert_eq!(seen(&outcome, "x-count-a"), "2");
    assert_eq!(seen(&outcome, "x-count-b"), "2");
}

#[test]
fn each_has_its_ticks() {
    let mut harness = configured(ALL);
    harness
        .advance(Duration::from_millis(1000), &no_make)
        .unwrap();
    let outcome = exchange(&mut harness, &[], "");
    assert_eq!(seen(&outcome, "x-ticks-a"), "10");
    // Every 250 ms, looked at every 100: at 300, 600 and 900.
    assert_eq!(seen(&outcome, "x-ticks-b"), "3");
    assert_eq!(seen(&outcome, "x-ticks-c"), "0");
}

#[test]
fn shadow_is_each_controls_own() {
    let mut harness = configured(
        r#"{"controls": [
            {"control": "control-a", "configuration": {"shadow": true}},
            {"control": "control-b"}
        ]}"#,
    );
    let outcome = exchange(&mut harness, &[("x-a", "refuse")], "");
    assert_eq!(outcome.status, 200);
    assert_eq!(
        harness.metric("portcullis.control-a.shadow.refused.told_to"),
        Some(1)
    );
    assert_eq!(harness.metric("portcullis.control-a.refused.told_to"), None);
    let log = harness.log();
    let audit = log.iter().find(|(_, line)| line.contains("told_to"));
    assert!(audit.unwrap().1.ends_with("\"shadow\":true}"), "{log:?}");
    assert_eq!(exchange(&mut harness, &[("x-b", "refuse")], "").status, 403);
}

#[test]
fn a_bad_configuration_is_named_by_its_path() {
    for (json, line) in [
        (
            "{}",
            "configuration: controls: must name at least one control",
        ),
        (
            r#"{"controls": 1}"#,
            "configuration: controls: must be a list",
        ),
        (
            r#"{"control": []}"#,
            "configuration: control: unknown field, expected `controls` or `measure_one_in`",
        ),
        (
            r#"{"controls": [{"control": "control-a"}], "measure_one_in": 0}"#,
            "configuration: measure_one_in: must be a whole number from 1 to 4294967295",
        ),
        (
            r#"{"controls": [{"control": "x"}]}"#,
            "configuration: controls[0].control: `x` is not in this module; it has control-a, control-b, control-c",
        ),
        (
            r#"{"controls": [{}]}"#,
            "configuration: controls[0].control: is missing",
        ),
        (
            r#"{"controls": [{"control": "control-a"}, {"control": "control-a"}]}"#,
            "configuration: controls[1].filter: `control-a` comes twice",
        ),
        (
            r#"{"controls": [{"control": "control-a"}, {"control": "control-b", "configuration": {"fail": true}}]}"#,
            "configuration: controls[1].configuration.fail: must not be true",
        ),
        (
            r#"{"controls": [{"control": "control-a", "configuration": {"shadow": 1}}]}"#,
            "configuration: controls[0].configuration.shadow: must be true or false",
        ),
    ] {
        let mut harness = Harness::<Three>::new(SystemTime::UNIX_EPOCH);
        assert_eq!(harness.configure(json).unwrap_err(), line);
        // Unconfigured, it refuses.
        assert_eq!(exchange(&mut harness, &[], "").status, 500, "{json}");
    }
    // A bad one leaves the old one in place.
    let mut harness = configured(ALL);
    assert!(harness.configure("{}").is_err());
    assert_eq!(exchange(&mut harness, &[], "").status, 200);
}

/// The time of each control's callbacks, of one exchange in three. The clock moves by each look at it.
#[test]
fn time_is_measured_where_the_configuration_asks() {
    let measured = |name: &str, harness: &Harness<Three>| {
        harness.metric(&format!("portcullis.{name}.callback_ns"))
    };
    let mut harness = configured(ALL);
    exchange(&mut harness, &[], "");
    assert_eq!(measured("control-a", &harness), None, "nothing asks");

    let all = ALL.strip_suffix('}').unwrap();
    let mut harness = configured(&format!("{all}, \"measure_one_in\": 3}}"));
    for (step, expected) in [(1, 1), (2, 1), (3, 1), (4, 4), (5, 4)] {
        harness.set_clock_step(Duration::from_nanos(step));
        exchange(&mut harness, &[], "body");
        for name in ["control-a", "control-b", "control-c"] {
            assert_eq!(measured(name, &harness), Some(expected), "{name}, {step}");
        }
    }
}
