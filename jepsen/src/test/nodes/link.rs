//! What becomes of a packet on its way from one node to another.
//!
//! The faults are those of Linux's netem, with its meanings: a reordered packet is one that is not delayed while others
//! are, so that it overtakes them.

use std::time::{Duration, Instant};

use rand::{Rng, rngs::StdRng};

use super::damage::Damage;

/// What a throttled link keeps waiting; what comes on top of that is lost, as in a router.
const BACKLOG_BYTES_MAX: u64 = 256 * 1024;

/// The faults of one direction of one link; none by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    pub cut: bool,
    pub lost_permille: u32,
    pub duplicated_permille: u32,
    /// Of those that would be delayed.
    pub reordered_permille: u32,
    pub delay: Duration,
    /// At most so much is added to the delay.
    pub jitter: Duration,
    pub bytes_per_second: Option<u64>,
    /// Of snapshots only.
    pub damage: Option<Damage>,
}

/// How many packets met which fate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub passed: u64,
    pub cut: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub reordered: u64,
    pub delayed: u64,
    pub throttled: u64,
    pub damaged: u64,
}

impl Traffic {
    /// What came on top of what was before.
    pub fn since(self, before: Traffic) -> Traffic {
        Traffic {
            passed: self.passed - before.passed,
            cut: self.cut - before.cut,
            lost: self.lost - before.lost,
            duplicated: self.duplicated - before.duplicated,
            reordered: self.reordered - before.reordered,
            delayed: self.delayed - before.delayed,
            throttled: self.throttled - before.throttled,
            damaged: self.damaged - before.damaged,
        }
    }
}

/// What a link remembers from packet to packet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// When the throttled link has carried all that was given to it.
    idle_at: Option<Instant>,
    /// When the last packet that kept its place arrives: none that keeps its place arrives earlier.
    last_due: Option<Instant>,
}

/// When a packet arrives: not at all, once, or twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Lost,
    Due(Instant),
    Twice(Instant),
}

impl Link {
    pub fn fate(
        &self,
        bytes: usize,
        now: Instant,
        memory: &mut Memory,
        random: &mut StdRng,
        traffic: &mut Traffic,
    ) -> Fate {
        if self.cut {
            traffic.cut += 1;
            return Fate::Lost;
        }
        if hits(random, self.lost_permille) {
            traffic.lost += 1;
            return Fate::Lost;
        }
        let Some(sent) = self.throttle(bytes, now, memory, traffic) else { return Fate::Lost };
        let due = self.delay(sent, memory, random, traffic);
        traffic.passed += 1;
        if hits(random, self.duplicated_permille) {
            traffic.duplicated += 1;
            return Fate::Twice(due);
        }
        Fate::Due(due)
    }

    /// When the link has carried the packet; `None` if too many wait already.
    fn throttle(&self, bytes: usize, now: Instant, memory: &mut Memory, traffic: &mut Traffic) -> Option<Instant> {
        let Some(rate) = self.bytes_per_second else { return Some(now) };
        let begin = memory.idle_at.map_or(now, |idle| idle.max(now));
        let waiting = (begin - now).as_secs_f64() * rate as f64;
        if waiting > BACKLOG_BYTES_MAX as f64 {
            traffic.throttled += 1;
            return None;
        }
        let end = begin + Duration::from_secs_f64(bytes as f64 / rate as f64);
        memory.idle_at = Some(end);
        if begin > now {
            traffic.throttled += 1;
        }
        Some(end)
    }

    fn delay(&self, sent: Instant, memory: &mut Memory, random: &mut StdRng, traffic: &mut Traffic) -> Instant {
        if self.delay.is_zero() && self.jitter.is_zero() {
            return sent.max(memory.last_due.unwrap_or(sent));
        }
        if hits(random, self.reordered_permille) {
            traffic.reordered += 1;
            return sent;
        }
        traffic.delayed += 1;
        let due = sent + self.delay + self.jitter.mul_f64(random.random());
        let due = due.max(memory.last_due.unwrap_or(due));
        memory.last_due = Some(due);
        due
    }
}

pub(super) fn hits(random: &mut StdRng, permille: u32) -> bool {
    permille > 0 && random.random_ratio(permille.min(1000), 1000)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    /// Sends packets, one each millisecond, and gives their fates.
    fn send(link: Link, packets: u32) -> (Vec<Fate>, Traffic, Instant) {
        let (start, mut memory, mut traffic) = (Instant::now(), Memory::default(), Traffic::default());
        let mut random = StdRng::seed_from_u64(1);
        let mut now = start;
        let fates = (0..packets).map(|_| {
            now += Duration::from_millis(1);
            link.fate(1000, now, &mut memory, &mut random, &mut traffic)
        });
        (fates.collect(), traffic, start)
    }

    fn due(fate: &Fate) -> Instant {
        match fate {
            Fate::Due(due) | Fate::Twice(due) => *due,
            Fate::Lost => panic!("lost"),
        }
    }

    #[test]
    fn a_sound_link_passes_all_at_once() {
        let (fates, traffic, start) = send(Link::default(), 3);
        for (index, fate) in fates.iter().enumerate() {
            assert_eq!(*fate, Fate::Due(start + Duration::from_millis(index as u64 + 1)));
        }
        assert_eq!(traffic, Traffic { passed: 3, ..Traffic::default() });
    }

    #[test]
    fn a_cut_link_passes_nothing() {
        let (fates, traffic, _) = send(Link { cut: true, ..Link::default() }, 50);
        assert!(fates.iter().all(|fate| *fate == Fate::Lost));
        assert_eq!(traffic, Traffic { cut: 50, ..Traffic::default() });
    }

    #[test]
    fn a_lossy_link_loses_about_its_share() {
        let (fates, traffic, _) = send(Link { lost_permille: 200, ..Link::default() }, 10_000);
        assert!((1800..2200).contains(&traffic.lost), "{traffic:?}");
        assert_eq!(fates.iter().filter(|fate| **fate == Fate::Lost).count() as u64, traffic.lost);
    }

    #[test]
    fn a_delaying_link_keeps_the_order_whatever_the_jitter() {
        let link = Link { delay: Duration::from_millis(20), jitter: Duration::from_millis(30), ..Link::default() };
        let (fates, traffic, start) = send(link, 500);
        assert!(fates.is_sorted_by_key(due));
        assert!(due(&fates[0]) >= start + Duration::from_millis(21));
        assert_eq!(traffic.delayed, 500);
    }

    #[test]
    fn a_reordering_link_lets_some_overtake() {
        let link = Link { delay: Duration::from_millis(20), reordered_permille: 250, ..Link::default() };
        let (fates, traffic, _) = send(link, 500);
        assert!(!fates.is_sorted_by_key(due));
        assert!(traffic.reordered > 50 && traffic.delayed > 300, "{traffic:?}");
    }

    #[test]
    fn a_duplicating_link_delivers_some_twice() {
        let (fates, traffic, _) = send(Link { duplicated_permille: 100, ..Link::default() }, 1000);
        let twice = fates.iter().filter(|fate| matches!(fate, Fate::Twice(_))).count() as u64;
        assert!(twice > 50 && twice == traffic.duplicated, "{traffic:?}");
    }

    #[test]
    fn a_throttled_link_carries_its_rate_and_loses_what_it_cannot_keep() {
        let link = Link { bytes_per_second: Some(100_000), ..Link::default() };
        let (fates, traffic, start) = send(link, 2000);
        let last = fates.iter().filter(|fate| **fate != Fate::Lost).map(due).max().unwrap();
        let carried = fates.iter().filter(|fate| **fate != Fate::Lost).count() as f64 * 1000.0;
        let seconds = (last - start).as_secs_f64();
        assert!((carried / seconds - 100_000.0).abs() < 2000.0, "{carried} bytes in {seconds} s");
        assert!(fates.contains(&Fate::Lost) && traffic.throttled > 0);
    }
}
