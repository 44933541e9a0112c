//! What a store says has happened, and whether that can be true.
//!
//! A store's history is what a watch on all keys tells: every change, by revision. [`History`] takes it in again and
//! again, after each fault, and insists that
//!
//! - no revision is missing, and none is told twice;
//! - what was told once never changes;
//! - each event follows from the ones before it: versions count up, a deleted key existed.
//!
//! From the history follows what the store held at each revision, which ranges are then compared with:
//!
//! | revision | event | state after it |
//! |---|---|---|
//! | 2 | put a = 1 | a = 1 (created 2, modified 2, version 1) |
//! | 3 | put a = 2 | a = 2 (created 2, modified 3, version 2) |
//! | 4 | delete a | |
//!
//! [`Ledger`] compares the history with what writers asked for and were told.

mod ledger;
mod read;

use std::{
    collections::BTreeMap,
    fmt,
    ops::{Deref, RangeInclusive},
};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use proto::mvccpb::{self, KeyValue, event::EventType};

pub use ledger::{Change, Ledger, Outcome, Write};
pub use read::{all_keys, read_history};

/// One key's change.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub key: Bytes,
    /// `None`: the key was deleted.
    pub value: Option<Bytes>,
    pub create_revision: i64,
    pub mod_revision: i64,
    pub version: i64,
}

impl Event {
    pub fn from_wire(event: mvccpb::Event) -> Result<Event> {
        let kind = event.r#type();
        let kv = event.kv.context("an event without a key")?;
        Ok(Event {
            key: kv.key,
            value: (kind == EventType::Put).then_some(kv.value),
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
        })
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.key.escape_ascii();
        match &self.value {
            Some(value) => {
                let shown = value[..value.len().min(40)].escape_ascii();
                write!(f, "put {key} = {shown} at revision {} (version {})", self.mod_revision, self.version)
            }
            None => write!(f, "delete {key} at revision {}", self.mod_revision),
        }
    }
}

/// All keys at one revision.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State(BTreeMap<Bytes, KeyValue>);

impl Deref for State {
    type Target = BTreeMap<Bytes, KeyValue>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl State {
    /// Takes the next event, if it can follow.
    fn apply(&mut self, event: &Event) -> Result<()> {
        let previous = self.0.get(&event.key);
        let Some(value) = &event.value else {
            ensure!(previous.is_some(), "{event}, but the key did not exist");
            self.0.remove(&event.key);
            return Ok(());
        };
        let (created, version) = match previous {
            Some(previous) => (previous.create_revision, previous.version + 1),
            None => (event.mod_revision, 1),
        };
        ensure!(
            (event.create_revision, event.version) == (created, version),
            "{event}, created at {}: expected version {version}, created at {created}",
            event.create_revision,
        );
        let kv = KeyValue {
            key: event.key.clone(),
            value: value.clone(),
            create_revision: created,
            mod_revision: event.mod_revision,
            version,
            lease: 0,
        };
        self.0.insert(event.key.clone(), kv);
        Ok(())
    }

    /// Whether a range over all keys that start with `prefix` is what this state holds.
    pub fn check_range(&self, prefix: &[u8], answer: &[KeyValue]) -> Result<()> {
        let mut expected =
            self.0.range(Bytes::copy_from_slice(prefix)..).take_while(|(key, _)| key.starts_with(prefix));
        let mut answered = answer.iter();
        loop {
            match (expected.next(), answered.next()) {
                (None, None) => return Ok(()),
                (Some((_, expected)), Some(answered)) if expected == answered => (),
                (expected, answered) => {
                    bail!("expected {}, the answer has {}", show(expected.map(|(_, kv)| kv)), show(answered),)
                }
            }
        }
    }
}

fn show(kv: Option<&KeyValue>) -> String {
    let Some(kv) = kv else { return "no further key".to_owned() };
    format!(
        "{} = {} (created {}, modified {}, version {})",
        kv.key.escape_ascii(),
        kv.value[..kv.value.len().min(40)].escape_ascii(),
        kv.create_revision,
        kv.mod_revision,
        kv.version,
    )
}

/// Everything a store has told, from its last known compaction on.
#[derive(Default)]
pub struct History {
    /// The state at the revision up to which the history was forgotten.
    base: State,
    base_revision: i64,
    revisions: BTreeMap<i64, Vec<Event>>,
    tip: State,
}

impl History {
    /// An empty store is at revision 1.
    pub fn new() -> History {
        History { base_revision: 1, ..History::default() }
    }

    /// The highest revision that it has taken in.
    pub fn revision(&self) -> i64 {
        self.revisions.last_key_value().map_or(self.base_revision, |(revision, _)| *revision)
    }

    /// The revision up to which nothing is known but the state.
    pub fn base_revision(&self) -> i64 {
        self.base_revision
    }

    pub fn at(&self, revision: i64) -> &[Event] {
        self.revisions.get(&revision).map_or(&[], Vec::as_slice)
    }

    pub fn between(&self, revisions: RangeInclusive<i64>) -> impl Iterator<Item = (i64, &[Event])> {
        self.revisions.range(revisions).map(|(revision, events)| (*revision, events.as_slice()))
    }

    pub fn tip(&self) -> &State {
        &self.tip
    }

    /// Takes what a store tells about revisions `from..=to`, all of it.
    pub fn take(&mut self, from: i64, to: i64, events: Vec<Event>) -> Result<()> {
        ensure!(
            from > self.base_revision && from <= self.revision() + 1,
            "the history is known from {} to {}, but was read from {from} on",
            self.base_revision,
            self.revision(),
        );
        ensure!(to >= self.revision(), "the store is at revision {to}, and was at {} before", self.revision());
        let known = self.revision();
        let mut told = group(events)?;
        for expected in from..=to {
            let events = told.remove(&expected).with_context(|| format!("revision {expected} is missing"))?;
            if expected <= known {
                ensure!(
                    self.at(expected) == events,
                    "revision {expected} has changed: it was [{}] and is now [{}]",
                    join(self.at(expected)),
                    join(&events),
                );
                continue;
            }
            for event in &events {
                self.tip.apply(event)?;
            }
            self.revisions.insert(expected, events);
        }
        match told.first_key_value() {
            Some((revision, _)) => bail!("revision {revision} was told when {from} to {to} were asked for"),
            None => Ok(()),
        }
    }

    /// Forgets what the store may have forgotten.
    pub fn compact(&mut self, revision: i64) {
        assert!(revision <= self.revision(), "compacted beyond the known history");
        let kept = self.revisions.split_off(&(revision + 1));
        for event in std::mem::replace(&mut self.revisions, kept).into_values().flatten() {
            self.base.apply(&event).expect("events were checked when they were taken");
        }
        self.base_revision = self.base_revision.max(revision);
    }

    /// Gives `check` the state at each of the revisions, which ascend and are not below the base.
    pub fn replay<T>(
        &self,
        points: impl IntoIterator<Item = (i64, T)>,
        mut check: impl FnMut(i64, &State, T) -> Result<()>,
    ) -> Result<()> {
        let mut state = self.base.clone();
        let mut events = self.revisions.iter().peekable();
        for (revision, point) in points {
            ensure!(
                (self.base_revision..=self.revision()).contains(&revision),
                "revision {revision} is not between {} and {}",
                self.base_revision,
                self.revision(),
            );
            while let Some((_, events)) = events.next_if(|(next, _)| **next <= revision) {
                for event in events {
                    state.apply(event).expect("events were checked when they were taken");
                }
            }
            check(revision, &state, point).with_context(|| format!("at revision {revision}"))?;
        }
        Ok(())
    }
}

/// Orders events by revision, which must be how they came, and a revision's events by key.
fn group(events: Vec<Event>) -> Result<BTreeMap<i64, Vec<Event>>> {
    let mut groups: BTreeMap<i64, Vec<Event>> = BTreeMap::new();
    let mut last = 0;
    for event in events {
        ensure!(event.mod_revision >= last, "{event} was told after revision {last}");
        last = event.mod_revision;
        let group = groups.entry(last).or_default();
        ensure!(group.iter().all(|other| other.key != event.key), "{event} was told twice");
        group.push(event);
    }
    Ok(groups)
}

fn join(events: &[Event]) -> String {
    events.iter().map(Event::to_string).collect::<Vec<String>>().join(", ")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub fn put(key: &'static str, value: &'static str, created: i64, revision: i64, version: i64) -> Event {
        Event { key: key.into(), value: Some(value.into()), create_revision: created, mod_revision: revision, version }
    }

    pub fn delete(key: &'static str, revision: i64) -> Event {
        Event { key: key.into(), value: None, create_revision: 0, mod_revision: revision, version: 0 }
    }

    fn told(events: Vec<Event>, to: i64) -> String {
        let result = History::new().take(2, to, events);
        result.map_or_else(|error| error.to_string(), |()| "taken".to_owned())
    }

    #[test]
    fn a_complete_history_is_taken_and_replayed() {
        let mut history = History::new();
        let events = vec![put("a", "1", 2, 2, 1), put("a", "2", 2, 3, 2), delete("a", 4), put("a", "3", 5, 5, 1)];
        history.take(2, 5, events).unwrap();
        let mut sizes = Vec::new();
        history
            .replay((1..=5).map(|revision| (revision, ())), |_, state, ()| {
                sizes.push(state.len());
                Ok(())
            })
            .unwrap();
        assert_eq!(sizes, [0, 1, 1, 0, 1]);
        history.compact(3);
        assert_eq!((history.base_revision(), history.revision()), (3, 5));
        assert_eq!(history.base["a".as_bytes()].version, 2);
    }

    #[test]
    fn a_missing_or_repeated_or_disordered_revision_is_found() {
        assert_eq!(told(vec![put("a", "1", 2, 2, 1)], 2), "taken");
        assert_eq!(told(vec![put("a", "1", 2, 2, 1), put("b", "1", 4, 4, 1)], 4), "revision 3 is missing");
        assert_eq!(told(vec![put("a", "1", 2, 2, 1)], 3), "revision 3 is missing");
        assert!(told(vec![put("a", "1", 2, 2, 1), put("a", "1", 2, 2, 1)], 2).ends_with("told twice"));
        assert!(told(vec![put("b", "1", 3, 3, 1), put("a", "1", 2, 2, 1)], 3).ends_with("told after revision 3"));
        assert!(told(vec![put("a", "1", 2, 2, 1), put("b", "1", 3, 3, 1)], 2).starts_with("revision 3 was told"));
    }

    #[test]
    fn an_event_that_cannot_follow_is_found() {
        assert!(told(vec![delete("a", 2)], 2).ends_with("did not exist"));
        assert!(told(vec![put("a", "1", 2, 2, 1), put("a", "2", 2, 3, 1)], 3).contains("expected version 2"));
        assert!(told(vec![put("a", "1", 2, 2, 1), put("a", "2", 3, 3, 2)], 3).contains("created at 2"));
    }

    #[test]
    fn a_change_of_what_was_told_is_found() {
        let mut history = History::new();
        history.take(2, 2, vec![put("a", "1", 2, 2, 1)]).unwrap();
        assert!(history.take(2, 2, vec![put("a", "2", 2, 2, 1)]).unwrap_err().to_string().contains("has changed"));
        assert!(history.take(2, 1, vec![]).unwrap_err().to_string().contains("was at 2 before"));
    }

    #[test]
    fn a_range_that_differs_from_the_state_is_found() {
        let mut history = History::new();
        history.take(2, 3, vec![put("a/1", "1", 2, 2, 1), put("b/1", "1", 3, 3, 1)]).unwrap();
        let all: Vec<KeyValue> = history.tip().values().cloned().collect();
        history.tip().check_range(b"", &all).unwrap();
        history.tip().check_range(b"a/", &all[..1]).unwrap();
        assert!(history.tip().check_range(b"", &all[..1]).is_err());
        assert!(history.tip().check_range(b"a/", &all).is_err());
        let mut changed = all;
        changed[1].value = "2".into();
        assert!(history.tip().check_range(b"", &changed).is_err());
    }
}
