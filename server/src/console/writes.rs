//! How often keys are written, by the folder they are in: what a key holds up to its last slash.
//!
//! Bounded: so many folders, each with a minute's slots. A folder that nothing was written to for a minute makes room; when
//! there is none, writes to further folders are not counted.

use std::{collections::HashMap, time::Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use storage::host;

const FOLDERS_MAX: usize = 4096;
const SLOTS: usize = 60;
/// What a rate is of: the last seconds that are over.
const RATE_OF: u64 = 10;

/// Writes of the last minute.
pub struct Writes {
    began: Instant,
    folders: Mutex<HashMap<Bytes, Folder>>,
}

struct Folder {
    /// Writes by second, in a circle.
    slots: [u32; SLOTS],
    /// The second of the newest slot.
    last: u64,
}

impl Default for Writes {
    fn default() -> Writes {
        Writes { began: host::now(), folders: Mutex::default() }
    }
}

impl Writes {
    /// Counts a batch of written keys.
    pub fn count<'a>(&self, keys: impl Iterator<Item = &'a Bytes>) {
        self.count_at(self.second(), keys);
    }

    fn count_at<'a>(&self, now: u64, keys: impl Iterator<Item = &'a Bytes>) {
        let mut folders = self.folders.lock();
        for key in keys {
            let folder = folder(key);
            if let Some(known) = folders.get_mut(folder) {
                known.count(now);
                continue;
            }
            if folders.len() >= FOLDERS_MAX {
                folders.retain(|_, folder| folder.last + SLOTS as u64 > now);
            }
            if folders.len() < FOLDERS_MAX {
                let mut new = Folder { slots: [0; SLOTS], last: now };
                new.count(now);
                // A copy, so that the batch's memory is not held by a piece of it.
                folders.insert(Bytes::copy_from_slice(folder), new);
            }
        }
    }

    /// Writes per second to each folder that begins with `prefix`.
    pub fn rates(&self, prefix: &[u8]) -> Vec<(Bytes, f64)> {
        let now = self.second();
        let folders = self.folders.lock();
        let below = folders.iter().filter(|(name, _)| name.starts_with(prefix));
        below.map(|(name, folder)| (name.clone(), folder.rate(now))).collect()
    }

    fn second(&self) -> u64 {
        (host::now() - self.began).as_secs()
    }
}

impl Folder {
    fn count(&mut self, now: u64) {
        for passed in (self.last + 1..=now).take(SLOTS) {
            self.slots[passed as usize % SLOTS] = 0;
        }
        if now.saturating_sub(self.last) > SLOTS as u64 {
            self.slots = [0; SLOTS];
        }
        self.last = now.max(self.last);
        let slot = &mut self.slots[self.last as usize % SLOTS];
        *slot = slot.saturating_add(1);
    }

    fn rate(&self, now: u64) -> f64 {
        let oldest = self.last.saturating_sub(SLOTS as u64 - 1);
        let seconds = now.saturating_sub(RATE_OF)..now;
        let counted = seconds.filter(|second| (oldest..=self.last).contains(second));
        let writes: u64 = counted.map(|second| u64::from(self.slots[second as usize % SLOTS])).sum();
        writes as f64 / RATE_OF as f64
    }
}

/// With its slash; nothing for a key without one.
fn folder(key: &[u8]) -> &[u8] {
    &key[..key.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_of_the_seconds_that_are_over() {
        let mut folder = Folder { slots: [0; SLOTS], last: 100 };
        for second in [100, 100, 105, 109, 110] {
            folder.count(second);
        }
        assert_eq!(folder.rate(110), 0.4);
        assert_eq!(folder.rate(111), 0.3);
        assert_eq!(folder.rate(300), 0.0);
        folder.count(500);
        assert_eq!(folder.rate(501), 0.1, "what is old has left the circle");
    }

    #[test]
    fn folders_are_bounded_and_idle_ones_make_room() {
        let writes = Writes::default();
        let keys: Vec<Bytes> = (0..FOLDERS_MAX + 10).map(|i| format!("/{i}/k").into()).collect();
        writes.count_at(0, keys.iter());
        assert_eq!(writes.folders.lock().len(), FOLDERS_MAX);
        writes.count_at(SLOTS as u64, [Bytes::from_static(b"new/k")].iter());
        assert_eq!(writes.folders.lock().len(), 1);
    }

    #[test]
    fn a_folder_ends_at_the_last_slash() {
        for (key, expected) in [("/a/b/c", "/a/b/"), ("a", ""), ("a/", "a/"), ("", "")] {
            assert_eq!(folder(key.as_bytes()), expected.as_bytes(), "{key}");
        }
    }
}
