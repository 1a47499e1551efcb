//! The smallest example, in the harness: what README shows works.

#[path = "../examples/smallest.rs"]
mod smallest;

use portcullis_sdk::testing;

#[test]
fn the_smallest_control_holds_its_cases() {
    testing::check::<smallest::ClosedPath>("examples/smallest.yaml");
}
