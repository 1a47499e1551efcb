//! Random hostcalls from random callbacks of one exchange, against a model of the stream (see `fuzz_model`).
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: fuzz_model::Input| fuzz_model::run(&input));
