//! The cases, the configurations that are refused, and what takes more than a case can say.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use portcullis_sdk::testing::{Callout, Harness, Policy, Step, check_with};
use portcullis_sdk::{
    Callbacks, ConfigError, Control, Decision, Error, Metadata, PluginContext, Request,
};
use serde_json::{Value, json};

use crate::JwtAuth;
use crate::testing::{Token, make, public_jwk};

/// 2026-05-01T00:00:00Z
const START: u64 = 1_777_593_600;

#[test]
fn cases() {
    check_with::<JwtAuth>("cases.yaml", &make);
}

fn start() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(START)
}

fn inline() -> Value {
    json!({
        "providers": [{
            "issuer": "https://issuer.test", "audiences": ["api"],
            "jwks": {"keys": [public_jwk("rsa-1").unwrap(), public_jwk("ed25519").unwrap()]},
        }],
        "claims_to_headers": [{"claim": "sub", "header": "x-user"}],
        "claims_to_properties": [{"claim": "email"}],
    })
}

fn remote() -> Value {
    json!({
        "providers": [{
            "issuer": "https://issuer.test", "audiences": ["api"],
            "remote_jwks": {"cluster": "idp", "authority": "idp.test", "path": "/jwks"},
        }],
    })
}

/// `path` is a JSON pointer; what it points at is replaced by `value`, or taken out where that is null.
fn with(mut configuration: Value, path: &str, value: Value) -> Value {
    let (parent, name) = path.rsplit_once('/').unwrap();
    match configuration.pointer_mut(parent).unwrap() {
        Value::Object(members) if value.is_null() => drop(members.remove(name)),
        Value::Object(members) => drop(members.insert(name.to_owned(), value)),
        Value::Array(values) => values[name.parse::<usize>().unwrap()] = value,
        _ => panic!("{path} is in neither an object nor a list"),
    }
    configuration
}

#[test]
fn faulty_configurations_are_refused_by_key_and_reason() {
    let jwk = |name: &str, member: &str, value: Value| {
        let mut jwk = public_jwk(name).unwrap();
        jwk[member] = value;
        json!({"keys": [jwk]})
    };
    let rsa = public_jwk("rsa-1").unwrap();
    let jwks = "/providers/0/jwks";
    let long = "x".repeat(1025);
    let mut wrong = Vec::new();
    for (configuration, expected) in [
        (json!({}), "missing field `providers`"),
        (
            json!({"providers": []}),
            "providers: must have 1 to 16 entries",
        ),
        (with(inline(), "/skew", json!(1)), "unknown field `skew`"),
        (
            with(inline(), "/providers/0/issuer", Value::Null),
            "missing field `issuer`",
        ),
        (
            with(inline(), "/providers/0/issuer", json!("")),
            "providers[0].issuer: must have 1 to 1024 bytes",
        ),
        (
            with(inline(), "/providers/0/issuer", json!(long)),
            "providers[0].issuer: must have 1 to 1024 bytes",
        ),
        (
            with(inline(), "/providers/0/audiences", Value::Null),
            "missing field `audiences`",
        ),
        (
            with(inline(), "/providers/0/audiences", json!([])),
            "providers[0].audiences: must have 1 to 64 entries",
        ),
        (
            with(inline(), "/providers/0/audiences", json!([""])),
            "providers[0].audiences[0]: must have",
        ),
        (
            with(inline(), "/providers/0/algorithms", json!([])),
            "providers[0].algorithms: must have 1 to 64 entries",
        ),
        (
            with(inline(), "/providers/0/algorithms", json!(["none"])),
            "unknown variant `none`",
        ),
        (
            with(inline(), "/providers/0/algorithms", json!(["HS256"])),
            "unknown variant `HS256`",
        ),
        (
            with(inline(), "/providers/0/algorithms", json!(["PS256"])),
            "providers[0].jwks.keys: has no key that serves",
        ),
        (
            with(inline(), "/providers/0/max_lifetime_seconds", json!(0)),
            "providers[0].max_lifetime_seconds: must be between",
        ),
        (
            with(
                inline(),
                "/providers/0/max_lifetime_seconds",
                json!(2_592_001),
            ),
            "max_lifetime_seconds: must be between",
        ),
        (
            with(inline(), "/providers/0/max_lifetime_seconds", json!(-1)),
            "providers[0].max_lifetime_seconds: expected u32",
        ),
        (
            with(inline(), "/providers/0/token_types", json!([])),
            "providers[0].token_types: must have 1 to 64 entries",
        ),
        (
            with(inline(), "/clock_skew_seconds", json!(301)),
            "clock_skew_seconds: must be 300 or less",
        ),
        // Keys
        (
            with(inline(), jwks, Value::Null),
            "providers[0]: must have either `jwks` or `remote_jwks`",
        ),
        (
            with(
                inline(),
                "/providers/0/remote_jwks",
                remote()["providers"][0]["remote_jwks"].clone(),
            ),
            "must have either",
        ),
        (
            with(inline(), jwks, json!([])),
            "providers[0].jwks: a JWK set is an object",
        ),
        (
            with(inline(), jwks, json!({"keys": {}})),
            "providers[0].jwks: a JWK set is an object",
        ),
        (
            with(inline(), jwks, json!({"keys": []})),
            "providers[0].jwks.keys: has no key",
        ),
        (
            with(inline(), jwks, json!({"keys": [1]})),
            "providers[0].jwks.keys[0]: a key is an object",
        ),
        (
            with(inline(), jwks, json!({"keys": [{}]})),
            "keys[0]: `kty` is missing",
        ),
        (
            with(
                inline(),
                jwks,
                json!({"keys": [rsa, {"kty": "oct", "k": "AA"}]}),
            ),
            "keys[1]: a symmetric key",
        ),
        (
            with(inline(), jwks, jwk("rsa-1", "k", json!("AA"))),
            "keys[0]: a symmetric key",
        ),
        (
            with(inline(), jwks, jwk("rsa-1", "d", json!("AA"))),
            "keys[0]: a private key",
        ),
        (
            with(
                inline(),
                jwks,
                json!({"keys": [public_jwk("rsa-small").unwrap()]}),
            ),
            "keys[0]: an RSA key must have 2048",
        ),
        (
            with(inline(), jwks, jwk("rsa-1", "n", json!("_w".repeat(684)))),
            "keys[0]: an RSA key must have 8192",
        ),
        (
            with(
                inline(),
                jwks,
                jwk("rsa-1", "n", json!(format!("{}g", "_".repeat(341)))),
            ),
            "keys[0]: not an RSA key",
        ),
        (
            with(inline(), jwks, jwk("rsa-1", "n", json!("AQAB=="))),
            "keys[0]: a number of the key is not base64url",
        ),
        (
            with(inline(), jwks, jwk("rsa-1", "n", json!(1))),
            "keys[0]: a number of the key is missing",
        ),
        (
            with(inline(), jwks, jwk("rsa-1", "e", json!("AQ"))),
            "keys[0]: the public exponent must be above 1",
        ),
        (
            with(inline(), jwks, jwk("rsa-1", "e", json!(""))),
            "keys[0]: the public exponent must be odd",
        ),
        (
            with(inline(), jwks, jwk("rsa-1", "e", json!("Ag"))),
            "keys[0]: the public exponent must be odd",
        ),
        (
            with(inline(), jwks, jwk("rsa-1", "e", json!("_________w"))),
            "keys[0]: not an RSA key",
        ),
        (
            with(inline(), jwks, jwk("rsa-1", "alg", json!("ES256"))),
            "keys[0]: an RSA key does not fit its `alg`",
        ),
        (
            with(inline(), jwks, jwk("rsa-1", "crv", json!("P-256"))),
            "keys[0]: an RSA key has no `crv`",
        ),
        (
            with(inline(), jwks, jwk("rsa-1", "kid", json!(1))),
            "keys[0]: `kty`, `use`, `alg`, `kid` and `crv` must be text",
        ),
        (
            with(inline(), jwks, jwk("rsa-1", "kid", json!(""))),
            "keys[0]: `kid` must have 1 to 256 bytes",
        ),
        (
            with(inline(), jwks, jwk("rsa-1", "key_ops", json!("verify"))),
            "keys[0]: `key_ops` must be a list",
        ),
        (
            with(inline(), jwks, jwk("rsa-1", "key_ops", json!(["encrypt"]))),
            "has no key that serves",
        ),
        (
            with(inline(), jwks, jwk("rsa-1", "use", json!("enc"))),
            "has no key that serves",
        ),
        (
            with(inline(), jwks, jwk("rsa-1", "alg", json!("RSA-OAEP"))),
            "has no key that serves",
        ),
        (
            with(inline(), jwks, jwk("p256", "alg", json!("ES384"))),
            "keys[0]: a P-256 key does not fit its `alg`",
        ),
        (
            with(inline(), jwks, jwk("p256", "x", json!("AA"))),
            "keys[0]: `x` and `y` must have the full size",
        ),
        (
            with(inline(), jwks, jwk("p256", "x", json!("A".repeat(43)))),
            "keys[0]: not a point on P-256",
        ),
        (
            with(inline(), jwks, jwk("p384", "x", json!("A".repeat(64)))),
            "keys[0]: not a point on P-384",
        ),
        (
            with(inline(), jwks, jwk("p256", "crv", json!("P-521"))),
            "has no key that serves",
        ),
        (
            with(inline(), jwks, jwk("ed25519", "x", json!("AA"))),
            "keys[0]: an Ed25519 key has 32 bytes",
        ),
        (
            with(inline(), jwks, jwk("ed25519", "x", json!("A".repeat(43)))),
            "keys[0]: an Ed25519 key of small order",
        ),
        (
            with(inline(), jwks, json!({"keys": [rsa, rsa]})),
            "keys[1]: `kid` and algorithm are those of an earlier key",
        ),
        (
            with(inline(), jwks, json!({"keys": many(65)})),
            "keys[64]: a set may hold 64 usable keys",
        ),
        // Fetched keys
        (
            with(remote(), "/providers/0/remote_jwks/cluster", json!("")),
            "providers[0].remote_jwks.cluster: must have",
        ),
        (
            with(
                remote(),
                "/providers/0/remote_jwks/authority",
                json!("https://idp.test"),
            ),
            "authority: must be a host",
        ),
        (
            with(
                remote(),
                "/providers/0/remote_jwks/authority",
                json!("idp test"),
            ),
            "authority: must be a host",
        ),
        (
            with(remote(), "/providers/0/remote_jwks/path", json!("jwks")),
            "path: must start with /",
        ),
        (
            with(
                remote(),
                "/providers/0/remote_jwks/path",
                json!("/j\r\nx: y"),
            ),
            "path: must start with /",
        ),
        (
            with(
                remote(),
                "/providers/0/remote_jwks/refresh_seconds",
                json!(59),
            ),
            "refresh_seconds: must be between",
        ),
        (
            with(
                remote(),
                "/providers/0/remote_jwks/refresh_seconds",
                json!(86_401),
            ),
            "refresh_seconds: must be between",
        ),
        (
            with(remote(), "/providers/0/remote_jwks/timeout_ms", json!(0)),
            "timeout_ms: must be between 1 and 30000",
        ),
        (
            with(
                remote(),
                "/providers/0/remote_jwks/timeout_ms",
                json!(30_001),
            ),
            "timeout_ms: must be between 1 and 30000",
        ),
        (
            with(remote(), "/providers/0/remote_jwks/uri", json!("x")),
            "unknown field `uri`",
        ),
        // Claims
        (
            with(
                inline(),
                "/providers/0/required_claims",
                json!([{"claim": 1}]),
            ),
            "must be a claim's name or a list of names",
        ),
        (
            with(
                inline(),
                "/providers/0/required_claims",
                json!([{"claim": []}]),
            ),
            "required_claims[0].claim: must have 1 to 8",
        ),
        (
            with(
                inline(),
                "/providers/0/required_claims",
                json!([{"claim": "a", "equals": 1, "contains": 1}]),
            ),
            "may have one of",
        ),
        (
            with(
                inline(),
                "/providers/0/required_claims",
                json!([{"claim": "a", "equals": 1.5}]),
            ),
            "must be text, a whole number",
        ),
        (
            with(
                inline(),
                "/providers/0/required_claims",
                json!([{"claim": "a", "one_of": []}]),
            ),
            "[0].one_of: must have 1 to 64",
        ),
        (
            with(inline(), "/claims_to_headers/0/header", json!("x user")),
            "claims_to_headers[0].header: must be a header name",
        ),
        (
            with(inline(), "/claims_to_headers/0/header", json!(":path")),
            "claims_to_headers[0].header: must be a header name",
        ),
        (
            with(inline(), "/claims_to_headers/0/header", json!("Host")),
            "header: is a header with a meaning of its own",
        ),
        (
            with(
                inline(),
                "/claims_to_headers/0/header",
                json!("X-Envoy-Peer"),
            ),
            "header: is a header with a meaning",
        ),
        (
            with(
                inline(),
                "/claims_to_headers",
                json!([{"claim": "a", "header": "x"}, {"claim": "b", "header": "X"}]),
            ),
            "claims_to_headers[1].header: is that of an earlier claim",
        ),
        (
            with(inline(), "/claims_to_properties", json!([{"claim": "sub"}])),
            "claims_to_properties[0].property: is set already",
        ),
        // A claim of that name would stand for all of them.
        (
            with(
                inline(),
                "/claims_to_properties",
                json!([{"claim": "claims"}]),
            ),
            "claims_to_properties[0].property: is set already",
        ),
        (
            with(
                inline(),
                "/claims_to_properties",
                json!([{"claim": ["a", "b"]}]),
            ),
            "property: must name the property",
        ),
        // Challenges
        (
            with(inline(), "/realm", json!("a\"b")),
            "realm: must be printable ASCII without quotes",
        ),
        (
            with(inline(), "/realm", json!("a\nb")),
            "realm: must be printable ASCII",
        ),
        (
            with(inline(), "/resource_metadata", json!("http://a")),
            "resource_metadata: must be an https URL",
        ),
        (
            with(inline(), "/required_scopes", json!(["a b"])),
            "required_scopes[0]: must be one scope",
        ),
        (
            with(inline(), "/required_scopes", json!(["é"])),
            "required_scopes[0]: must be printable ASCII",
        ),
        (
            json!({"providers": [inline()["providers"][0], inline()["providers"][0]]}),
            "providers[1].issuer: is that of an earlier",
        ),
    ] {
        let refused = Harness::<JwtAuth>::new(start())
            .configure(&configuration.to_string())
            .err()
            .unwrap_or_default();
        if !refused.contains(expected) {
            wrong.push(format!("{refused}\nshould say {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    for good in [inline(), remote()] {
        Harness::<JwtAuth>::new(start())
            .configure(&good.to_string())
            .unwrap();
    }
}

/// That many sound keys.
fn many(count: usize) -> Vec<Value> {
    (0..count)
        .map(|number| {
            with(
                public_jwk("ed25519").unwrap(),
                "/kid",
                json!(number.to_string()),
            )
        })
        .collect()
}

/// Tells the upstream what it was told was verified.
struct Told;

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct Nothing {}

impl Control for Told {
    const METADATA: Metadata = Metadata::new("told", "1.0.0", Callbacks::REQUEST_HEADERS);
    type Config = Nothing;
    type State = ();

    fn configure(_: Nothing, _: &mut PluginContext) -> Result<Self, ConfigError> {
        Ok(Self)
    }

    fn on_request_headers(
        &mut self,
        _: &mut (),
        request: &mut Request<'_>,
    ) -> Result<Decision, Error> {
        if let Some(claims) = request.verified_claims()? {
            let roles = claims.claim("roles").and_then(|it| it.items());
            let roles: Vec<_> = roles.into_iter().flatten().collect();
            let roles: Vec<_> = roles.iter().filter_map(|it| it.as_str()).collect();
            request.set_header("x-told", roles.join(","))?;
        }
        Ok(Decision::Continue)
    }
}

#[test]
fn verified_claims_reach_the_controls_behind_and_no_others_do() {
    let roles = |key: &str, roles: &[&str]| token(json!({"key": key, "claims": {"roles": roles}}));
    let good = roles("rsa-1", &["reader"]);
    let [header, _, signature] = good.split('.').collect::<Vec<_>>()[..] else {
        panic!("{good}")
    };
    let payload = roles("rsa-1", &["admin"]);
    let payload = payload.split('.').nth(1).unwrap();
    let forged = format!("{header}.{payload}.{signature}");
    for share in [true, false] {
        let configuration = with(inline(), "/share_claims", json!(share));
        let mut harness = Harness::<Policy<(JwtAuth, Told)>>::new(start());
        let controls =
            json!([{"control": "jwt-auth", "configuration": configuration}, {"control": "told"}]);
        let controls = json!({"controls": controls});
        harness.configure(&controls.to_string()).unwrap();
        for (token, told) in [
            (&good, Some(share.then_some("reader"))),
            (&good, Some(share.then_some("reader"))), // remembered
            (&forged, None),
            (&roles("rsa-2", &["admin"]), None),
        ] {
            let step = json!({"request": {"headers": [
                ["authorization", format!("Bearer {token}")],
                ["jwt.claims", "{\"roles\":[\"admin\"]}"],
            ]}});
            let step: Step = serde_json::from_value(step).unwrap();
            let outcome = harness.exchange(&step, &make).unwrap();
            let seen = outcome.upstream.map(|seen| {
                let mut told = seen
                    .headers
                    .into_iter()
                    .filter(|(name, _)| name == b"x-told");
                told.next()
                    .map(|(_, value)| String::from_utf8(value).unwrap())
            });
            let told = told.map(|told| told.map(String::from));
            assert_eq!(
                (outcome.status == 200, seen),
                (told.is_some(), told),
                "{token}"
            );
        }
    }
}

struct World(Harness<JwtAuth>);

impl World {
    fn new(configuration: &Value, callouts: Value) -> Self {
        let mut harness = Harness::new(start());
        harness.set_callouts(serde_json::from_value::<Vec<Callout>>(callouts).unwrap());
        harness.configure(&configuration.to_string()).unwrap();
        Self(harness)
    }

    fn send(&mut self, token: &str) -> u16 {
        let step = json!({"request": {"headers": [["authorization", format!("Bearer {token}")]]}});
        self.0
            .exchange(&serde_json::from_value::<Step>(step).unwrap(), &make)
            .unwrap()
            .status
    }

    fn advance(&mut self, seconds: u64) {
        // Below the ticks that one advance may fire.
        for chunk in (0..seconds).step_by(9000) {
            self.0
                .advance(Duration::from_secs((seconds - chunk).min(9000)), &make)
                .unwrap();
        }
    }

    fn refused(&self, reason: &str) -> u64 {
        self.0
            .metric(&format!("portcullis.jwt-auth.refused.{reason}"))
            .unwrap_or(0)
    }
}

fn token(members: Value) -> String {
    serde_json::from_value::<Token>(members)
        .unwrap()
        .mint(start())
        .unwrap()
}

#[test]
fn a_remembered_token_meets_the_rules_each_time() {
    let mut world = World::new(&inline(), json!([]));
    let token = token(json!({}));
    assert_eq!(world.send(&token), 200);
    world.advance(359);
    assert_eq!(world.send(&token), 200, "within the skew");
    world.advance(1);
    assert_eq!(world.send(&token), 401);
    assert_eq!(world.send(&token), 401, "and the signature is checked anew");
    assert_eq!(world.refused("token_expired"), 2);
}

#[test]
fn a_remembered_token_goes_with_its_key() {
    let set = |key: &str| json!({"cluster": "idp", "headers": [["cache-control", "max-age=60"]], "body": {"jwks": [key]}});
    let mut world = World::new(&remote(), json!([set("rsa-1"), set("rsa-1"), set("rsa-2")]));
    let token = token(json!({}));
    assert_eq!(world.send(&token), 503);
    world.advance(2);
    assert_eq!(world.send(&token), 200);
    world.advance(61);
    assert_eq!(world.send(&token), 200, "the same key again");
    world.advance(61);
    assert_eq!(world.send(&token), 401);
    assert_eq!(world.refused("key_unknown"), 1);
    assert_eq!(world.0.metric("portcullis.jwt-auth.jwks_fetched"), Some(3));
}

#[test]
fn old_keys_serve_for_a_day_and_no_longer() {
    let first = json!({"cluster": "idp", "body": {"jwks": ["rsa-1"]}});
    let mut world = World::new(&remote(), json!([first, {"cluster": "idp", "status": 500}]));
    let long = json!({"exp": {"now": 200_000}, "iat": null});
    let configuration = with(
        remote(),
        "/providers/0/max_lifetime_seconds",
        json!(300_000),
    );
    world.0 = World::new(
        &configuration,
        json!([first, {"cluster": "idp", "status": 500}]),
    )
    .0;
    let token = token(json!({"claims": long}));
    world.advance(1);
    assert_eq!(world.send(&token), 200);
    world.advance(600 + 24 * 3600);
    assert_eq!(world.send(&token), 200);
    world.advance(1);
    assert_eq!(world.send(&token), 503);
    assert_eq!(world.refused("keys_missing"), 1);
    let failed = world
        .0
        .metric("portcullis.jwt-auth.jwks_fetch_failed")
        .unwrap();
    assert!(
        (17_200..=17_400).contains(&failed),
        "one try each five seconds: {failed}"
    );
}

#[test]
fn unknown_kids_bring_one_fetch_each_thirty_seconds() {
    let mut world = World::new(
        &remote(),
        json!([{"cluster": "idp", "body": {"jwks": ["ed25519"]}}]),
    );
    world.advance(1);
    for second in 0..300 {
        for number in 0..10 {
            assert_eq!(
                world.send(&token(
                    json!({"key": "ed25519", "header": {"kid": format!("{second}-{number}")}})
                )),
                401
            );
        }
        world.advance(1);
    }
    let fetched = world.0.metric("portcullis.jwt-auth.jwks_fetched");
    assert_eq!(fetched, Some(11), "the first, and one each thirty seconds");
}

#[test]
fn no_token_is_ever_logged() {
    let mut world = World::new(&inline(), json!([]));
    for members in [
        json!({}),
        json!({"tamper": "signature"}),
        json!({"claims": {"exp": 1}}),
        json!({"sign": "none"}),
    ] {
        let token = token(members);
        world.send(&token);
        for (_, line) in world.0.log() {
            for part in token.split('.').filter(|part| !part.is_empty()) {
                assert!(!line.contains(part), "{line}");
            }
            assert!(!line.contains("alice"), "{line}");
        }
    }
    assert!(world.0.log().len() >= 3);
}
