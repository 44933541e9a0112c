//! Durations, URLs, members and versions.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| server::fuzzing::texts(text));
