//! What other members send.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| raft::fuzzing::peer_messages(data));
