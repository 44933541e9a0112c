//! When operations are due in an open loop: operation *i* at `begin + i/rate`.

use std::time::{Duration, Instant};

pub struct Schedule {
    begin: Instant,
    rate: f64,
    total: u64,
    next: u64,
}

impl Schedule {
    pub fn new(begin: Instant, end: Instant, rate: f64) -> Schedule {
        Schedule { begin, rate, total: ((end - begin).as_secs_f64() * rate) as u64, next: 0 }
    }

    fn due_at(&self, index: u64) -> Instant {
        self.begin + Duration::from_secs_f64(index as f64 / self.rate)
    }

    /// When the next operation is, or was, due; `None` when there are no more.
    pub fn next_due(&self) -> Option<Instant> {
        (self.next < self.total).then(|| self.due_at(self.next))
    }

    /// Takes the next operation if it is due.
    pub fn take(&mut self, now: Instant) -> Option<Instant> {
        let due = self.next_due().filter(|due| *due <= now)?;
        self.next += 1;
        Some(due)
    }

    /// How many operations are due in [start, end).
    pub fn count_between(&self, start: Instant, end: Instant) -> u64 {
        let below = |at: Instant| {
            let mut index = (at.saturating_duration_since(self.begin).as_secs_f64() * self.rate) as u64;
            while index > 0 && self.due_at(index - 1) >= at {
                index -= 1;
            }
            while self.due_at(index) < at {
                index += 1;
            }
            index.min(self.total)
        };
        below(end) - below(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_knows_how_many_operations_are_due() {
        let begin = Instant::now();
        let mut schedule = Schedule::new(begin, begin + Duration::from_secs(3), 1000.0);
        assert_eq!(schedule.total, 3000);
        let (start, end) = (begin + Duration::from_secs(1), begin + Duration::from_secs(3));
        assert!((1999..=2001).contains(&schedule.count_between(start, end)));
        let now = begin + Duration::from_micros(2500);
        let taken = std::iter::from_fn(|| schedule.take(now)).count();
        assert_eq!(taken, 3);
        assert!(schedule.next_due().is_some_and(|due| due > now));
    }
}
