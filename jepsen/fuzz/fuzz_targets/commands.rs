//! Commands of the log, applied: two stores that get them in batches of different sizes come to the same state, and so
//! does one that is closed and opened in between.
#![no_main]

#[path = "../bench.rs"]
mod bench;

use prost::Message;
use proto::command::Command;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut data = data;
    let mut commands = Vec::new();
    while let Ok(command) = Command::decode_length_delimited(&mut data) {
        if command.op.is_some() {
            commands.push(command);
        }
        if data.is_empty() || commands.len() >= 32 {
            break;
        }
    }
    if !commands.is_empty() {
        bench::apply_twice(&commands);
    }
});
