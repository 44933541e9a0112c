//! The command line and the environment.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| server::fuzzing::flags(text));
