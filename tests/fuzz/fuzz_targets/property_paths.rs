//! Property paths: any bytes are looked up, on HTTP exchanges with and without TLS and on root contexts, and what a plugin sets under a path
//! is found under it again.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    portcullis_runtime::fuzzing::property_path(bytes);
});
