//! The smallest example, in the harness: what README shows works.

#[path = "../examples/smallest.rs"]
mod smallest;

use std::time::SystemTime;

use portcullis_sdk::testing::{self, AnyExchange, Harness};

#[test]
fn the_smallest_control_holds_its_cases() {
    testing::check::<smallest::ClosedPath>("examples/smallest.yaml");
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
