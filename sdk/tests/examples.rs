//! The example controls, in the harness: what README and the book show works.

#[path = "../examples/json_body.rs"]
mod json_body;
#[path = "../examples/opa.rs"]
mod opa;
#[path = "../examples/smallest.rs"]
mod smallest;

use portcullis_sdk::{Async, testing};

#[test]
fn a_rule_on_headers() {
    testing::check::<smallest::ClosedPath>("examples/smallest.yaml");
}

#[test]
fn a_question_to_a_service() {
    testing::check::<Async<opa::Opa>>("examples/opa.yaml");
}

#[test]
fn a_rule_on_bodies() {
    testing::check::<Async<json_body::JsonBody>>("examples/json_body.yaml");
}
