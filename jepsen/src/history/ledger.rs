//! What writers asked for and were told, against what happened.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;

use super::{Event, History};

/// What a write does. Each value that is written is unique: it begins with the write's number and a colon.
#[derive(Clone, Debug)]
pub enum Change {
    /// One value under one or more keys, in one transaction.
    Put {
        keys: Vec<Bytes>,
        value: Bytes,
    },
    /// A counter that was read as one less.
    Count {
        key: Bytes,
        value: Bytes,
    },
    Delete {
        key: Bytes,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome {
    /// Acknowledged as done at a revision.
    Done(i64),
    /// No answer, or an error: it may have been done, or may still be.
    Unknown,
}

/// One attempt to change the store.
#[derive(Clone, Debug)]
pub struct Write {
    pub number: u64,
    pub change: Change,
    /// The highest revision that anyone had been told when this write began: its own must be higher.
    pub begun_after: i64,
    pub outcome: Outcome,
}

/// The number at the beginning of a value.
fn number_of(value: &[u8]) -> Option<u64> {
    let end = value.iter().position(|byte| *byte == b':')?;
    std::str::from_utf8(&value[..end]).ok()?.parse().ok()
}

/// All writes so far whose outcome still matters.
#[derive(Default)]
pub struct Ledger {
    unknown: HashMap<u64, Write>,
    counters: BTreeMap<Bytes, Counter>,
    acknowledged: u64,
    unknown_done: u64,
}

#[derive(Default)]
struct Counter {
    value: u64,
    acknowledged: u64,
    unknown: u64,
}

impl Ledger {
    /// Acknowledged writes so far, each found in the history.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Writes without an answer that turned out to be done.
    pub fn unknown_done(&self) -> u64 {
        self.unknown_done
    }

    /// Checks that the revisions from `from` on are made of these writes and earlier ones of unknown outcome: all that
    /// were acknowledged, each once and whole, and nothing else.
    pub fn check(&mut self, history: &History, from: i64, writes: Vec<Write>) -> Result<()> {
        let mut done: HashMap<i64, Write> = HashMap::new();
        for write in writes {
            if let Change::Count { key, .. } = &write.change {
                let counter = self.counters.entry(key.clone()).or_default();
                match write.outcome {
                    Outcome::Done(_) => counter.acknowledged += 1,
                    Outcome::Unknown => counter.unknown += 1,
                }
            }
            match write.outcome {
                Outcome::Unknown => {
                    self.unknown.insert(write.number, write);
                }
                Outcome::Done(revision) => {
                    ensure!(
                        (from..=history.revision()).contains(&revision),
                        "acknowledged but lost: {write:?} (revisions {from} to {} are new)",
                        history.revision(),
                    );
                    ensure!(
                        revision > write.begun_after,
                        "{write:?} got a revision that had been told before it began"
                    );
                    if let Some(other) = done.insert(revision, write) {
                        bail!("two writes were told revision {revision}: {other:?} and {:?}", done[&revision]);
                    }
                }
            }
        }
        for (revision, events) in history.between(from..=history.revision()) {
            match done.remove(&revision) {
                Some(write) => {
                    ensure!(
                        is_made_of(&write.change, events),
                        "acknowledged but lost: {write:?}; at its revision happened [{}]",
                        super::join(events),
                    );
                    self.acknowledged += 1;
                }
                None => {
                    self.claim_unknown(events).with_context(|| format!("nobody wrote [{}]", super::join(events)))?;
                    self.unknown_done += 1;
                }
            }
            self.count(events)?;
        }
        Ok(())
    }

    /// Takes out the write of unknown outcome that made these events.
    fn claim_unknown(&mut self, events: &[Event]) -> Option<()> {
        let first = events.first()?;
        let number = match &first.value {
            Some(value) => number_of(value)?,
            // Deletes carry no number, and those of one key are alike.
            None => *self.unknown.iter().find(|(_, write)| is_made_of(&write.change, events))?.0,
        };
        is_made_of(&self.unknown.get(&number)?.change, events).then(|| self.unknown.remove(&number))?.map(drop)
    }

    fn count(&mut self, events: &[Event]) -> Result<()> {
        for event in events {
            let (Some(counter), Some(value)) = (self.counters.get_mut(&event.key), &event.value) else { continue };
            let text = String::from_utf8_lossy(value);
            let value: u64 = text.split_once(':').and_then(|(_, value)| value.parse().ok()).context("no counter")?;
            ensure!(value == counter.value + 1, "a counter went from {} to {value}: {event}", counter.value);
            counter.value = value;
        }
        Ok(())
    }

    /// Checks each counter against the number of times that it was incremented.
    pub fn check_counters(&self) -> Result<()> {
        for (key, counter) in &self.counters {
            let most = counter.acknowledged + counter.unknown;
            ensure!(
                (counter.acknowledged..=most).contains(&counter.value),
                "{} is {} after {} acknowledged and {} unacknowledged increments",
                key.escape_ascii(),
                counter.value,
                counter.acknowledged,
                counter.unknown,
            );
        }
        Ok(())
    }
}

/// Whether a revision's events are this change, whole and with nothing else.
fn is_made_of(change: &Change, events: &[Event]) -> bool {
    let (keys, value) = match change {
        Change::Put { keys, value } => (keys.as_slice(), Some(value)),
        Change::Count { key, value } => (std::slice::from_ref(key), Some(value)),
        Change::Delete { key } => (std::slice::from_ref(key), None),
    };
    events.len() == keys.len() && events.iter().all(|event| keys.contains(&event.key) && event.value.as_ref() == value)
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{delete, put},
        *,
    };

    fn history(events: Vec<Event>) -> History {
        let mut history = History::new();
        let to = events.last().map_or(1, |event| event.mod_revision);
        history.take(2, to, events).unwrap();
        history
    }

    fn write(value: &'static str, keys: &[&'static str], outcome: Outcome) -> Write {
        let keys = keys.iter().map(|key| Bytes::from(*key)).collect();
        let number = number_of(value.as_bytes()).unwrap();
        Write { number, change: Change::Put { keys, value: value.into() }, begun_after: 1, outcome }
    }

    fn count(value: &'static str, outcome: Outcome) -> Write {
        let number = number_of(value.as_bytes()).unwrap();
        Write { number, change: Change::Count { key: "c".into(), value: value.into() }, begun_after: 1, outcome }
    }

    fn check(events: Vec<Event>, writes: Vec<Write>) -> String {
        let mut ledger = Ledger::default();
        let result = ledger.check(&history(events), 2, writes).and_then(|()| ledger.check_counters());
        result.map_or_else(|error| format!("{error:#}"), |()| "fine".to_owned())
    }

    #[test]
    fn acknowledged_and_possible_writes_explain_a_history() {
        let events = vec![put("a", "1:", 2, 2, 1), put("b", "2:", 3, 3, 1), put("c", "2:", 3, 3, 1), delete("a", 4)];
        let deleted =
            |outcome| Write { number: 4, change: Change::Delete { key: "a".into() }, begun_after: 1, outcome };
        let writes = vec![
            write("1:", &["a"], Outcome::Done(2)),
            write("2:", &["b", "c"], Outcome::Unknown),
            write("3:", &["b"], Outcome::Unknown),
            deleted(Outcome::Done(4)),
        ];
        assert_eq!(check(events.clone(), writes.clone()), "fine");
        let mut unanswered = writes;
        unanswered[3] = deleted(Outcome::Unknown);
        assert_eq!(check(events.clone(), unanswered.clone()), "fine");
        unanswered.pop();
        assert_eq!(check(events, unanswered), "nobody wrote [delete a at revision 4]");
    }

    #[test]
    fn a_lost_write_is_found() {
        let first = put("a", "1:", 2, 2, 1);
        let lost_tail = vec![write("1:", &["a"], Outcome::Done(2)), write("2:", &["b"], Outcome::Done(3))];
        assert!(check(vec![first.clone()], lost_tail).starts_with("acknowledged but lost"));
        let replaced = vec![write("2:", &["a"], Outcome::Done(2)), write("1:", &["a"], Outcome::Unknown)];
        assert!(check(vec![first.clone()], replaced).starts_with("acknowledged but lost"));
        let torn = vec![write("1:", &["a", "b"], Outcome::Done(2))];
        assert!(check(vec![first], torn).starts_with("acknowledged but lost"));
    }

    #[test]
    fn a_write_that_is_done_twice_or_by_halves_or_by_nobody_is_found() {
        let twice = vec![put("a", "1:", 2, 2, 1), put("a", "1:", 2, 3, 2)];
        assert!(check(twice.clone(), vec![write("1:", &["a"], Outcome::Done(2))]).starts_with("nobody wrote"));
        assert!(check(twice, vec![write("1:", &["a"], Outcome::Unknown)]).starts_with("nobody wrote"));
        let half = vec![put("a", "1:", 2, 2, 1)];
        assert!(check(half.clone(), vec![write("1:", &["a", "b"], Outcome::Unknown)]).starts_with("nobody wrote"));
        assert!(check(half, vec![]).starts_with("nobody wrote"));
    }

    #[test]
    fn a_revision_told_to_two_writes_or_out_of_order_is_found() {
        let events = vec![put("a", "1:", 2, 2, 1)];
        let first = write("1:", &["a"], Outcome::Done(2));
        let both = vec![first.clone(), write("2:", &["a"], Outcome::Done(2))];
        assert!(check(events.clone(), both).starts_with("two writes were told revision 2"));
        assert!(check(events, vec![Write { begun_after: 2, ..first }]).contains("told before it began"));
    }

    #[test]
    fn a_counter_that_skips_or_repeats_is_found() {
        let writes = vec![count("1:1", Outcome::Done(2)), count("2:2", Outcome::Done(3))];
        let fine = vec![put("c", "1:1", 2, 2, 1), put("c", "2:2", 2, 3, 2)];
        assert_eq!(check(fine, writes), "fine");
        let stale = vec![count("1:1", Outcome::Done(2)), count("2:1", Outcome::Done(3))];
        let repeated = vec![put("c", "1:1", 2, 2, 1), put("c", "2:1", 2, 3, 2)];
        assert!(check(repeated, stale).starts_with("a counter went from 1 to 1"));
    }
}
