//! The serialized form of header maps: what decodes must encode back to the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    portcullis_runtime::fuzzing::pairs_round_trip(bytes);
});
