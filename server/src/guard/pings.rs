//! How often a client may ping, by gRPC's rules, which hyper does not have: a client that pings more often than
//! `--grpc-keepalive-min-time`, or without a call open more often than every two hours, gets a strike each time, and is
//! sent away after two. What the server has sent of an answer since the last ping clears them: pings that measure the
//! connection come with data. Source: grpc-go, `internal/transport/http2_server.go` (handlePing).

use std::{collections::HashSet, time::Duration};

use proto::http2::frame::{ACK, DATA, END_STREAM, HEADERS, PING, RST_STREAM};
use tokio::time::Instant;

use super::frames::Head;

const STRIKES_MAX: u32 = 2;
const WITHOUT_CALLS: Duration = Duration::from_secs(2 * 60 * 60);

#[derive(Debug)]
pub struct Pings {
    min_time: Duration,
    last: Option<Instant>,
    strikes: u32,
    /// Whether a part of an answer has gone out since the last ping.
    has_answered: bool,
    open: HashSet<u32>,
    last_stream: u32,
}

impl Pings {
    pub fn new(min_time: Duration) -> Pings {
        Pings { min_time, last: None, strikes: 0, has_answered: false, open: HashSet::new(), last_stream: 0 }
    }

    /// Takes a frame of the client. False when it has pinged once too often.
    #[must_use]
    pub fn received(&mut self, head: Head, now: Instant) -> bool {
        match head.kind {
            HEADERS if head.stream > self.last_stream => {
                self.last_stream = head.stream;
                self.open.insert(head.stream);
            }
            RST_STREAM => {
                self.open.remove(&head.stream);
            }
            PING if head.flags & ACK == 0 => return self.take(!self.open.is_empty(), now),
            _ => {}
        }
        true
    }

    /// Takes a frame of the server.
    pub fn sent(&mut self, head: Head) {
        if head.kind == DATA || head.kind == HEADERS {
            self.answered();
            if head.flags & END_STREAM != 0 {
                self.open.remove(&head.stream);
            }
        }
        if head.kind == RST_STREAM {
            self.open.remove(&head.stream);
        }
    }

    pub fn last_stream(&self) -> u32 {
        self.last_stream
    }

    /// Notes that a part of an answer has gone out.
    pub fn answered(&mut self) {
        self.has_answered = true;
    }

    /// Takes a ping. False when it is one too many.
    #[must_use]
    pub fn take(&mut self, has_calls: bool, now: Instant) -> bool {
        let last = self.last.replace(now);
        if std::mem::take(&mut self.has_answered) {
            self.strikes = 0;
            return true;
        }
        let apart = if has_calls { self.min_time } else { WITHOUT_CALLS };
        if last.is_some_and(|last| now.duration_since(last) < apart) {
            self.strikes += 1;
        }
        self.strikes <= STRIKES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_secs(5);

    fn ping() -> Head {
        Head { kind: PING, flags: 0, stream: 0 }
    }

    fn headers(flags: u8) -> Head {
        Head { kind: HEADERS, flags, stream: 1 }
    }

    /// How many of `pings` in a row are let through.
    fn let_through(pings: &mut Pings, apart: Duration, count: usize) -> usize {
        let begin = Instant::now();
        (0..count as u32).take_while(|i| pings.received(ping(), begin + apart * *i)).count()
    }

    #[test]
    fn two_strikes_are_let_through() {
        let mut pings = Pings::new(MIN);
        assert!(pings.received(headers(0), Instant::now()));
        assert_eq!(let_through(&mut pings, MIN / 2, 10), 3);
        let mut pings = Pings::new(MIN);
        assert!(pings.received(headers(0), Instant::now()));
        assert_eq!(let_through(&mut pings, MIN, 10), 10);
    }

    #[test]
    fn without_a_call_pings_are_rarer() {
        assert_eq!(let_through(&mut Pings::new(MIN), 2 * MIN, 10), 3);
        assert_eq!(let_through(&mut Pings::new(MIN), WITHOUT_CALLS, 10), 10);
        let mut pings = Pings::new(MIN);
        assert!(pings.received(headers(END_STREAM), Instant::now()));
        assert_eq!(let_through(&mut pings, MIN, 5), 5, "a call is open until it is answered");
        pings.sent(headers(END_STREAM));
        assert_eq!(let_through(&mut pings, MIN, 10), 3, "then none is open");
    }

    #[test]
    fn answers_clear_strikes_and_acknowledgements_are_no_pings() {
        let mut pings = Pings::new(MIN);
        let now = Instant::now();
        for _ in 0..10 {
            assert!(pings.received(ping(), now));
            pings.sent(Head { kind: DATA, flags: 0, stream: 1 });
            assert!(pings.received(Head { kind: PING, flags: ACK, stream: 0 }, now));
        }
    }
}
