//! The SDK and the controls: whatever bytes a client and an upstream send, nothing panics, and what the SDK reads of them
//! means one thing. `Reads` is a control that reads all there is; the built-in ones stand behind it.
#![no_main]

use std::cell::RefCell;
use std::time::{Duration, SystemTime};

use jwt_auth::JwtAuth;
use libfuzzer_sys::fuzz_target;
use portcullis_sdk::prelude::*;
use portcullis_sdk::serde_json::{self, Value, json};
use portcullis_sdk::sfv::FieldType as _;
use portcullis_sdk::testing::{AnyExchange, Harness, Policy};
use rate_limit::RateLimit;
use security_headers::SecurityHeaders;
use tls_policy::TlsPolicy;

/// Headers that somebody here reads.
const NAMES: [&str; 8] = [
    "authorization",
    "cookie",
    "priority",
    "origin",
    "access-control-request-method",
    "x-forwarded-host",
    "strict-transport-security",
    "content-security-policy",
];

/// Reads all that can be read of a request.
struct Reads;

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct Config {}

impl Control for Reads {
    const METADATA: Metadata = Metadata::new(
        "reads",
        "1.0.0",
        Callbacks::REQUEST_HEADERS.and(Callbacks::REQUEST_BODY),
    );
    type Config = Config;
    type State = ();

    fn configure(_: Config, _: &mut PluginContext) -> Result<Self, ConfigError> {
        Ok(Self)
    }

    fn on_request_headers(&mut self, _: &mut (), request: &mut Request) -> Result<Decision, Error> {
        cookies(&request.cookies()?);
        if let Ok(query) = request.query() {
            form(&query);
        }
        structured(&request.all_headers()?)?;
        Ok(Decision::Continue)
    }

    fn on_request_body(&mut self, _: &mut (), body: &mut Body) -> Result<Decision, Error> {
        if !body.end_of_stream() {
            body.hold();
            return Ok(Decision::Continue);
        }
        let bytes = body.read(0, body.size())?;
        if let Ok(fields) = Form::parse(&bytes) {
            form(&fields);
        }
        json_text(&bytes);
        Ok(Decision::Continue)
    }
}

fn cookies(cookies: &Cookies) {
    for (name, value) in cookies.iter() {
        let Ok(name) = std::str::from_utf8(name) else {
            continue;
        };
        assert!(cookies.all(name).any(|found| found == value));
        let differ = cookies.all(name).any(|found| found != value);
        assert_eq!(cookies.get(name).is_err(), differ, "{name}");
    }
}

fn form(form: &Form) {
    for (name, value) in form.iter() {
        let differ = form.all(name).any(|found| found != value);
        assert_eq!(form.get(name).is_err(), differ, "{name}");
    }
}

/// What is written is read back as it was.
fn structured(headers: &FieldPairs) -> Result<(), Error> {
    for name in NAMES {
        if let Ok(Some(item)) = headers.structured_item(name) {
            let again = portcullis_sdk::sfv::Parser::new(&item.serialize()).parse();
            assert_eq!(again.ok(), Some(item));
        }
        if let Ok(Some(list)) = headers.structured_list(name)
            && let Some(text) = list.serialize()
        {
            let again = portcullis_sdk::sfv::Parser::new(&text).parse();
            assert_eq!(again.ok(), Some(list));
        }
        if let Ok(Some(dictionary)) = headers.structured_dictionary(name)
            && let Some(text) = dictionary.serialize()
        {
            let again = portcullis_sdk::sfv::Parser::new(&text).parse();
            assert_eq!(again.ok(), Some(dictionary));
        }
    }
    Ok(())
}

/// What is taken, serde_json takes too, and sees the same in it.
fn json_text(bytes: &[u8]) {
    let Ok(text) = JsonText::parse(bytes) else {
        return;
    };
    match serde_json::from_slice::<Value>(bytes) {
        Ok(theirs) => same(&text, &theirs),
        Err(error) => assert!(error.to_string().contains("number out of range"), "{error}"),
    }
}

fn same(ours: &JsonText<'_>, theirs: &Value) {
    match theirs {
        Value::Null => assert!(ours.is_null()),
        Value::Bool(flag) => assert_eq!(ours.as_bool(), Some(*flag)),
        Value::Number(number) => assert_eq!(ours.as_u64(), number.as_u64()),
        Value::String(string) => assert_eq!(ours.as_str().as_deref(), Some(string.as_str())),
        Value::Array(values) => {
            let items: Vec<_> = ours.items().into_iter().flatten().collect();
            assert_eq!(items.len(), values.len());
            for (ours, theirs) in items.iter().zip(values) {
                same(ours, theirs);
            }
        }
        Value::Object(values) => {
            let members: Vec<_> = ours.members().into_iter().flatten().collect();
            assert_eq!(members.len(), values.len());
            for (key, value) in &members {
                same(value, &values[key.as_ref()]);
                let step = key.replace('~', "~0").replace('/', "~1");
                let pointer = JsonPointer::new(&format!("/{step}")).expect("it is escaped");
                let found = ours.pointer(&pointer).expect("it is there");
                assert_eq!(found.as_bytes(), value.as_bytes());
            }
        }
    }
}

type Controls = Policy<(Reads, SecurityHeaders, TlsPolicy, JwtAuth, RateLimit)>;

/// One module of all controls; its log and counters grow, so it is made anew now and then.
struct Running {
    harness: Harness<Controls>,
    exchanges: u32,
}

const EXCHANGES_MAX: u32 = 1000;

impl Running {
    fn new() -> Self {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_777_593_600);
        let keys = jwt_auth::testing::make("jwks", &json!(["ed25519", "p256"]), now);
        let keys: Value = serde_json::from_slice(&keys.expect("the test keys")).expect("a key set");
        let provider = json!({"issuer": "i", "audiences": ["a"], "jwks": keys});
        // A preflight passes jwt-auth, so that those behind it see something.
        let jwt =
            json!({"providers": [provider], "bypass_cors_preflight": true, "share_claims": true});
        let configuration = json!({"controls": [
            {"control": "reads"},
            {"control": "security-headers"},
            {"control": "tls-policy", "configuration": {"minimum_version": "1.2"}},
            {"control": "jwt-auth", "configuration": jwt},
            {"control": "rate-limit", "configuration": {"key": "address"}},
        ]});
        let mut harness = Harness::new(now);
        harness
            .configure(&configuration.to_string())
            .expect("a good configuration");
        Self {
            harness,
            exchanges: 0,
        }
    }
}

thread_local! {
    static RUNNING: RefCell<Running> = RefCell::new(Running::new());
}

fuzz_target!(|bytes: &[u8]| {
    json_text(bytes);
    if let Ok(fields) = Form::parse(bytes) {
        form(&fields);
    }
    RUNNING.with_borrow_mut(|running| {
        if running.exchanges >= EXCHANGES_MAX {
            *running = Running::new();
        }
        running.exchanges += 1;
        let outcome = running
            .harness
            .any_exchange(&AnyExchange::new(&NAMES, bytes));
        // Nobody here is without a token, but a preflight.
        let is_answered = outcome.upstream.is_some() || outcome.status >= 300;
        assert!(is_answered, "{outcome:?}");
    });
});
