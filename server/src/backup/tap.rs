//! What has been applied and not yet archived: a queue between apply, which must not wait, and the archive.
//!
//! A queue that is too long is let go whole. That, and a snapshot of another member in the store's place, is a *gap*: the
//! archive ends its chain and begins another.

use parking_lot::Mutex;
use storage::LogEntry;
use tokio::sync::Notify;

use super::{Time, segment::Entry};

/// What the queue holds at most, in bytes: what is applied while the backup directory hangs.
const BYTES_MAX: usize = 64 << 20;
/// From so many on the archive does not wait for its time.
const BYTES_SOON: usize = 8 << 20;

#[derive(Default)]
pub struct Tap {
    queue: Mutex<Queue>,
    /// There is much in the queue.
    pub soon: Notify,
}

#[derive(Default)]
struct Queue {
    entries: Vec<Entry>,
    bytes: usize,
    gap: Option<Gap>,
}

/// Why entries are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Gap {
    #[error("more than {} MiB of the log could not be archived in time", BYTES_MAX >> 20)]
    TooLong,
    #[error("a snapshot of another member took the store's place")]
    Snapshot,
}

impl Queue {
    fn lose(&mut self, gap: Gap) {
        *self = Queue { gap: Some(gap), ..Queue::default() };
    }
}

impl Tap {
    /// Entries were applied; behind each the store had one of `revisions`.
    pub fn logged(&self, entries: &[LogEntry], revisions: &[i64]) {
        let time = Time::now();
        let mut queue = self.queue.lock();
        if queue.gap.is_some() {
            return;
        }
        let before = queue.bytes;
        for (entry, revision) in entries.iter().zip(revisions) {
            let entry = Entry::new(entry, *revision, time);
            queue.bytes += cost(&entry);
            queue.entries.push(entry);
        }
        if queue.bytes > BYTES_MAX {
            queue.lose(Gap::TooLong);
        }
        // Once only: what cannot be archived now is tried again when it is time.
        if before < BYTES_SOON && queue.bytes >= BYTES_SOON {
            self.soon.notify_one();
        }
    }

    /// The whole store was replaced.
    pub fn restored(&self) {
        self.queue.lock().lose(Gap::Snapshot);
    }

    /// Begins anew: what is applied from now on is kept.
    pub fn arm(&self) {
        *self.queue.lock() = Queue::default();
    }

    /// All that is there, to be given back if it could not be archived.
    pub fn take(&self) -> Result<Vec<Entry>, Gap> {
        let mut queue = self.queue.lock();
        match queue.gap {
            Some(gap) => Err(gap),
            None => {
                queue.bytes = 0;
                Ok(std::mem::take(&mut queue.entries))
            }
        }
    }

    /// Puts entries back that were taken.
    pub fn put_back(&self, mut entries: Vec<Entry>) {
        let mut queue = self.queue.lock();
        if queue.gap.is_some() {
            return;
        }
        queue.bytes += entries.iter().map(cost).sum::<usize>();
        entries.append(&mut queue.entries);
        queue.entries = entries;
        if queue.bytes > BYTES_MAX {
            queue.lose(Gap::TooLong);
        }
    }

    pub fn bytes(&self) -> usize {
        self.queue.lock().bytes
    }
}

/// In memory.
fn cost(entry: &Entry) -> usize {
    size_of::<Entry>() + entry.command.as_ref().map_or(0, |command| command.len())
}

#[cfg(test)]
mod tests {
    use storage::Payload;

    use super::*;

    fn logged(tap: &Tap, index: u64, bytes: usize) {
        let payload = Payload::Command(vec![0; bytes].into());
        tap.logged(&[LogEntry { index, term: 1, payload }], &[index as i64]);
    }

    fn indexes(taken: Result<Vec<Entry>, Gap>) -> Vec<u64> {
        taken.unwrap().iter().map(|entry| entry.index).collect()
    }

    #[test]
    fn what_is_put_back_comes_before_what_was_applied_meanwhile() {
        let tap = Tap::default();
        logged(&tap, 1, 10);
        let taken = tap.take().unwrap();
        logged(&tap, 2, 10);
        tap.put_back(taken);
        assert_eq!(indexes(tap.take()), [1, 2]);
        assert_eq!(indexes(tap.take()), [0; 0]);
    }

    #[test]
    fn a_queue_that_is_too_long_is_a_gap_until_it_begins_anew() {
        let tap = Tap::default();
        for index in 1..=65 {
            logged(&tap, index, 1 << 20);
        }
        logged(&tap, 66, 1);
        assert_eq!(tap.take(), Err(Gap::TooLong));
        assert_eq!(tap.bytes(), 0);
        tap.arm();
        logged(&tap, 67, 1);
        assert_eq!(indexes(tap.take()), [67]);
        tap.restored();
        assert_eq!(tap.take(), Err(Gap::Snapshot));
    }
}
