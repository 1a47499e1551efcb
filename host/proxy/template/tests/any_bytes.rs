//! Whatever a client sends, the control decides; and what is wrong in a configuration is refused by name.

use std::time::SystemTime;

use my_control::MyControl;
use portcullis_sdk::testing::{AnyExchange, Harness};
use proptest::prelude::*;

/// The headers that the control reads.
const HEADERS: &[&str] = &["content-type"];

fn configured(json: &str) -> Result<Harness<MyControl>, String> {
    let mut harness = Harness::new(SystemTime::UNIX_EPOCH);
    harness.configure(json).map(|()| harness)
}

proptest! {
    #[test]
    fn any_bytes_are_decided(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let mut harness = configured("{}").expect("the default configuration");
        // A panic fails the test; a status is a decision.
        let outcome = harness.any_exchange(&AnyExchange::new(HEADERS, &bytes));
        prop_assert!((100..=999).contains(&outcome.status));
    }
}

#[test]
fn what_is_wrong_in_a_configuration_is_named() {
    for (json, reason) in [
        (r#"{"media_type": []}"#, "unknown field `media_type`"),
        (
            r#"{"media_types": ["JSON"]}"#,
            "must be like application/json",
        ),
    ] {
        let error = configured(json).err().unwrap_or_default();
        assert!(error.contains(reason), "{json}: {error}");
    }
}
