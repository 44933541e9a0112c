//! What a link from one node to another does to what is sent over it.

use std::{collections::VecDeque, ops::RangeInclusive, time::Duration};

use rand::{Rng as _, rngs::StdRng};
use tokio::time::Instant;

use super::call::Flight;

/// One direction between two nodes.
#[derive(Debug, Clone)]
pub struct Link {
    /// Each message takes a time drawn from this.
    pub delay: RangeInclusive<Duration>,
    /// The part of messages that are lost: a request or an answer that is one message never arrives; one of a stream
    /// comes late, as TCP sends it again, or the stream breaks.
    pub loss: f64,
    /// The part of requests that arrive twice, of those that may be asked twice.
    pub duplication: f64,
    pub bytes_per_second: Option<u64>,
}

impl Default for Link {
    /// Two machines in one place.
    fn default() -> Link {
        Link { delay: ms(0.2)..=ms(2.0), loss: 0.0, duplication: 0.0, bytes_per_second: None }
    }
}

impl Link {
    /// As the default, and some messages are lost, and some arrive twice.
    pub fn unreliable(loss: f64, duplication: f64) -> Link {
        Link { loss, duplication, ..Link::default() }
    }

    /// A link that is full of something else.
    pub fn clogged() -> Link {
        Link { delay: ms(100.0)..=ms(2_000.0), bytes_per_second: Some(64 << 10), ..Link::default() }
    }
}

fn ms(ms: f64) -> Duration {
    Duration::from_secs_f64(ms / 1_000.0)
}

#[derive(Debug)]
pub struct LinkState {
    pub link: Link,
    pub blocked_since: Option<Instant>,
    /// What arrived while it was blocked: sent again when it is open.
    pub stalled: VecDeque<Flight>,
    /// When what has been sent has left.
    free_at: Option<Instant>,
    latest_arrival: Option<Instant>,
}

impl LinkState {
    pub fn new(link: Link) -> LinkState {
        LinkState { link, blocked_since: None, stalled: VecDeque::new(), free_at: None, latest_arrival: None }
    }

    pub fn delay(&self, rng: &mut StdRng) -> Duration {
        rng.random_range(self.link.delay.clone())
    }

    /// When `bytes` sent now arrive, and whether they overtake others.
    pub fn arrival(&mut self, now: Instant, bytes: usize, rng: &mut StdRng) -> (Instant, bool) {
        let mut left = now;
        if let Some(rate) = self.link.bytes_per_second {
            let takes = Duration::from_nanos((bytes as u64).saturating_mul(1_000_000_000) / rate.max(1));
            left = self.free_at.map_or(now, |free| free.max(now)) + takes;
            self.free_at = Some(left);
        }
        let at = left + self.delay(rng);
        let overtakes = self.latest_arrival.is_some_and(|latest| at < latest);
        self.latest_arrival = self.latest_arrival.max(Some(at));
        (at, overtakes)
    }
}
