//! The example controls, in the harness: what README and the book show works.

#[path = "../examples/grpc_authorizer.rs"]
mod grpc_authorizer;
#[path = "../examples/json_body.rs"]
mod json_body;
#[path = "../examples/opa.rs"]
mod opa;
#[path = "../examples/roles.rs"]
mod roles;
#[path = "../examples/smallest.rs"]
mod smallest;

use std::time::SystemTime;

use portcullis_sdk::Async;
use portcullis_sdk::testing::{self, AnyExchange, Harness};

#[test]
fn a_rule_on_headers() {
    testing::check::<smallest::ClosedPath>("examples/smallest.yaml");
}

#[test]
fn a_rule_on_what_was_verified() {
    testing::check::<roles::Roles>("examples/roles.yaml");
}

#[test]
fn a_question_to_a_service() {
    testing::check::<Async<opa::Opa>>("examples/opa.yaml");
}

#[test]
fn a_question_in_grpc() {
    testing::check::<Async<grpc_authorizer::GrpcAuthorizer>>("examples/grpc_authorizer.yaml");
}

/// The same in a module of several: the policy knows whose the call is.
#[test]
fn a_question_in_grpc_among_others() {
    type Two = testing::Policy<(smallest::ClosedPath, Async<grpc_authorizer::GrpcAuthorizer>)>;
    for (status, expected) in [(0, 200), (7, 403), (14, 500)] {
        let mut callout = testing::Callout::new("authz", 200);
        callout.grpc_status = Some(status);
        callout.body = Some(testing::Value::Text("\u{8}\u{1}".into()));
        let mut harness = Harness::<Two>::new(SystemTime::UNIX_EPOCH);
        harness.set_callouts(vec![callout]);
        let controls = r#"{"controls": [
            {"control": "closed-path", "configuration": {"prefix": "/admin"}},
            {"control": "grpc-authorizer", "configuration": {"cluster": "authz"}}]}"#;
        harness.configure(controls).expect("a good configuration");
        let outcome = harness.exchange(&testing::Step::default(), &testing::no_make);
        assert_eq!(outcome.expect("an outcome").status, expected);
    }
}

#[test]
fn a_rule_on_bodies() {
    testing::check::<Async<json_body::JsonBody>>("examples/json_body.yaml");
}

/// What an exchange of given bytes is: the path is the bytes', UTF-8 or not.
#[test]
fn an_exchange_of_any_bytes_goes_through_the_control() {
    let mut harness = Harness::<smallest::ClosedPath>::new(SystemTime::UNIX_EPOCH);
    harness
        .configure(r#"{"prefix": "/admin"}"#)
        .expect("a good configuration");
    for (bytes, status) in [
        (&b"\x01\x07/admin\xff"[..], 403),
        (b"\x01\x02/\xff", 200),
        (b"", 200),
        (b"\x01\x06/admin\x03\x01x\x05\x01\x01", 403),
        (b"\x05\x01\x96", 400),
    ] {
        let outcome = harness.any_exchange(&AnyExchange::new(&[], bytes));
        assert_eq!(outcome.status, status, "{}", bytes.escape_ascii());
    }
}
