//! HTTP/2 frames as they are watched.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: (&[u8], &[u8])| server::fuzzing::frames(input.0, input.1));
