//! Requests, before any state is looked at.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| server::fuzzing::checks(data));
