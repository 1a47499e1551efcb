//! Whatever bytes a client and an upstream send, the control does not panic.
#![no_main]

use std::time::SystemTime;

use libfuzzer_sys::fuzz_target;
use my_control::MyControl;
use portcullis_sdk::testing::{AnyExchange, Harness};

fuzz_target!(|bytes: &[u8]| {
    let mut harness = Harness::<MyControl>::new(SystemTime::UNIX_EPOCH);
    harness.configure("{}").expect("the default configuration");
    harness.any_exchange(&AnyExchange::new(&["content-type"], bytes));
});
