//! Ports for the servers that tests start.

use std::{
    net::TcpListener,
    process,
    sync::atomic::{AtomicUsize, Ordering},
};

/// Below those that Linux gives to outgoing connections and to listeners that ask for any (from 32768 up), so that
/// none is taken between being given here and being listened on.
const FIRST: usize = 10_000;
const COUNT: usize = 18_000;

/// Nobody listens on it, and no other call in this process gives it again, so that no test reaches another's server.
pub fn free_port() -> u16 {
    static GIVEN: AtomicUsize = AtomicUsize::new(0);
    // Test processes that run side by side begin far from each other.
    let begin = process::id() as usize * 997;
    for _ in 0..COUNT {
        let port = (FIRST + (begin + GIVEN.fetch_add(1, Ordering::Relaxed)) % COUNT) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port from {FIRST} to {} is free", FIRST + COUNT - 1);
}
