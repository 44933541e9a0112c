//! What must hold of all that clients see, checked as they see it.
//!
//! A revision names a state of the whole store, and all members count revisions alike. So linearizability needs no
//! search here: watchers tell what happened at each revision, and every answer names the revision that it belongs to.
//!
//! - Revisions are dense, and an event is the same wherever and whenever it is seen (invariants 3 and 4 of the design).
//! - A write that was acknowledged stands at its revision; one that certainly failed stands nowhere; none stands twice.
//! - A read shows the state at the revision that it names.
//! - What began after something else had been answered has no smaller revision (real-time order); a write has a larger
//!   one. Serializable reads are free of this.
//! - A watch from the past tells each change that it is to tell, once and in order.
//! - Nothing below a compaction is read any more, and nothing above it is refused as compacted.
//! - A key goes away only when somebody deletes it, or revokes its lease, or lets that expire: not before its time.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use proto::mvccpb::{self, KeyValue, event::EventType};

/// Revisions whose events are kept. Older answers are not checked against them.
const KEPT: i64 = 20_000;

/// One change, as a watcher tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub key: Bytes,
    /// None: it was deleted.
    pub kv: Option<Version>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    pub value: Bytes,
    pub created: i64,
    pub modified: i64,
    pub version: i64,
    pub lease: i64,
}

impl Version {
    pub fn of(kv: &KeyValue) -> Version {
        Version {
            value: kv.value.clone(),
            created: kv.create_revision,
            modified: kv.mod_revision,
            version: kv.version,
            lease: kv.lease,
        }
    }
}

fn change_of(event: &mvccpb::Event) -> Change {
    let kv = event.kv.clone().unwrap_or_default();
    let is_put = event.r#type() == EventType::Put;
    Change { key: kv.key.clone(), kv: is_put.then(|| Version::of(&kv)) }
}

/// What a client was answered that is to be compared with a state.
#[derive(Debug, Clone)]
pub enum Claim {
    /// A range at the revision holds exactly these.
    Holds { from: Bytes, to: Bytes, keys: Vec<(Bytes, Version)> },
    /// This was written at the revision: the values by key.
    Wrote { values: Vec<(Bytes, Bytes)> },
    /// The comparison `mod revision of key == expected` came out so, against the state before the revision if it is a
    /// write's, and at the revision otherwise.
    Compared { key: Bytes, expected: i64, equal: bool },
    /// So many keys were deleted at the revision.
    Deleted { key: Bytes, count: i64 },
}

/// What became of a value that only one write puts.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    /// It may be found, once.
    Asked,
    Found(i64),
    /// It must not be found.
    Refused,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    /// Not before this time may its keys go, unless it is revoked.
    expires: Duration,
    is_revoked: bool,
}

#[derive(Default)]
pub struct Oracle {
    /// Events by revision, dense up to `frontier`.
    events: BTreeMap<i64, Vec<Change>>,
    frontier: i64,
    /// The versions of each key, oldest first.
    keys: BTreeMap<Bytes, VecDeque<(i64, Option<Version>)>>,
    /// Claims about revisions that are not known yet.
    waiting: BTreeMap<i64, Vec<(Claim, String)>>,
    fates: BTreeMap<Bytes, Fate>,
    /// Deletes that were asked for and have not been found: how many, by key.
    deletes: BTreeMap<Bytes, i64>,
    leases: BTreeMap<i64, Lease>,
    /// The highest revision that anybody asked to compact at, and the highest that was compacted at for certain.
    compaction_asked: i64,
    compacted: i64,
    /// Clocks went wrong: leases may expire at any time.
    pub clocks_lie: bool,
    /// Nobody is there who could answer, but for serializable reads.
    pub is_without_quorum: bool,
    /// The highest revision that anybody was told.
    told: i64,
    pub checked: u64,
}

/// What a watch is to tell.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The revision it begins with.
    pub from: i64,
    /// None: all keys.
    pub key: Option<Bytes>,
    pub puts: bool,
    pub deletes: bool,
}

impl Wanted {
    fn has(&self, change: &Change) -> bool {
        let is_its_kind = if change.kv.is_some() { self.puts } else { self.deletes };
        is_its_kind && self.key.as_ref().is_none_or(|key| *key == change.key)
    }
}

type Checked = Result<(), String>;

impl Oracle {
    pub fn new() -> Oracle {
        Oracle { frontier: 1, told: 1, ..Oracle::default() }
    }

    /// All up to this revision is known.
    pub fn frontier(&self) -> i64 {
        self.frontier
    }

    /// What an operation that begins now must not fall behind.
    pub fn floor(&self) -> i64 {
        self.told
    }

    /// Somebody was told of a revision that is to count for the order of later operations.
    pub fn told(&mut self, revision: i64, floor: i64, is_write: bool, what: &str) -> Checked {
        if self.is_without_quorum {
            return Err(format!("{what}: answered at revision {revision}, without a quorum"));
        }
        if revision < floor + i64::from(is_write) {
            return Err(format!("{what}: answered at revision {revision}, but {floor} was known before it began"));
        }
        self.told = self.told.max(revision);
        Ok(())
    }

    /// This value will be asked to be written, by one operation.
    pub fn asked(&mut self, value: &Bytes) {
        self.fates.insert(value.clone(), Fate::Asked);
    }

    /// The operation was certainly not carried out.
    pub fn refused(&mut self, value: &Bytes, what: &str) -> Checked {
        match self.fates.insert(value.clone(), Fate::Refused) {
            Some(Fate::Found(revision)) => Err(format!("{what}: refused, and yet it was done at revision {revision}")),
            _ => Ok(()),
        }
    }

    pub fn asked_to_delete(&mut self, key: &Bytes) {
        *self.deletes.entry(key.clone()).or_default() += 1;
    }

    /// A delete was answered, and has deleted nothing.
    pub fn found_nothing_to_delete(&mut self, key: &Bytes) {
        if let Some(asked) = self.deletes.get_mut(key) {
            *asked -= 1;
        }
    }

    /// The lease was granted or renewed by a call that began at `began`.
    pub fn lease_lives(&mut self, id: i64, began: Duration, ttl: i64) {
        let expires = began + Duration::from_secs(ttl.max(0) as u64);
        let lease = self.leases.entry(id).or_insert(Lease { expires, is_revoked: false });
        lease.expires = lease.expires.max(expires);
    }

    pub fn lease_is_revoked(&mut self, id: i64) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.is_revoked = true;
        }
    }

    pub fn asked_to_compact(&mut self, revision: i64) {
        self.compaction_asked = self.compaction_asked.max(revision);
    }

    pub fn compacted_at(&mut self, revision: i64) {
        self.compacted = self.compacted.max(revision);
    }

    /// Nothing below this is to be read any more by who begins now.
    pub fn compacted(&self) -> i64 {
        self.compacted
    }

    /// A revision was called compacted.
    pub fn refused_as_compacted(&self, revision: i64, what: &str) -> Checked {
        if revision >= self.compaction_asked {
            let asked = self.compaction_asked;
            return Err(format!("{what}: refused as compacted, but nobody asked for more than {asked}"));
        }
        Ok(())
    }

    /// What a watch that began in the past was told until somebody stopped it.
    pub fn told_past(&mut self, wanted: &Wanted, told: &[mvccpb::Event], what: &str) -> Checked {
        let revision = |event: &mvccpb::Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
        // What nobody else has seen yet will be compared when somebody has.
        let last = told.last().map_or(0, revision).min(self.frontier);
        if wanted.from > last || self.events.first_key_value().is_none_or(|(first, _)| *first > wanted.from) {
            return Ok(());
        }
        self.checked += 1;
        let known = self.events.range(wanted.from..=last);
        let mut expected = known.flat_map(|(at, changes)| changes.iter().map(move |change| (*at, change)));
        let mut told = told.iter().filter(|event| revision(event) <= last);
        loop {
            let next = expected.find(|(_, change)| wanted.has(change));
            let (at, change, event) = match (next, told.next()) {
                (None, None) => return Ok(()),
                (Some((at, change)), Some(event)) => (at, change, event),
                (missed, event) => return Err(format!("{what}: expected {missed:?}, was told {event:?}")),
            };
            if revision(event) != at || change_of(event) != *change {
                return Err(format!("{what}: expected {change:?} at {at}, was told {event:?}"));
            }
            self.check_previous(at, change, event)?;
        }
    }

    /// What a watcher saw at one revision: all of it.
    pub fn observe(&mut self, revision: i64, events: &[mvccpb::Event], now: Duration) -> Checked {
        let changes: Vec<Change> = events.iter().map(change_of).collect();
        if revision <= self.frontier {
            return match self.events.get(&revision) {
                Some(known) if *known != changes => {
                    Err(format!("revision {revision} was seen as {known:?}, and is now seen as {changes:?}"))
                }
                _ => Ok(()),
            };
        }
        if revision != self.frontier + 1 {
            return Err(format!("a watcher of all keys went from revision {} to {revision}", self.frontier));
        }
        for (change, event) in changes.iter().zip(events) {
            self.change(revision, change, now)?;
            self.check_previous(revision, change, event)?;
        }
        for change in &changes {
            self.keys.entry(change.key.clone()).or_default().push_back((revision, change.kv.clone()));
        }
        self.events.insert(revision, changes);
        self.frontier = revision;
        self.settle()?;
        self.forget();
        Ok(())
    }

    /// Follows from what was there before?
    fn change(&mut self, revision: i64, change: &Change, now: Duration) -> Checked {
        let before = self.at(&change.key, revision - 1).cloned();
        let key = change.key.escape_ascii();
        match &change.kv {
            Some(kv) => {
                let (created, version) = before.as_ref().map_or((revision, 1), |kv| (kv.created, kv.version + 1));
                if (kv.modified, kv.created, kv.version) != (revision, created, version) {
                    return Err(format!("revision {revision} put {key} as {kv:?} over {before:?}"));
                }
                match self.fates.get_mut(&kv.value) {
                    Some(fate @ Fate::Asked) => *fate = Fate::Found(revision),
                    Some(Fate::Found(first)) => {
                        return Err(format!("what put {key} at revision {first} was done again at {revision}"));
                    }
                    Some(Fate::Refused) => return Err(format!("revision {revision} put {key}, which was refused")),
                    None => return Err(format!("revision {revision} put {key} = {:?}: nobody asked", kv.value)),
                }
            }
            None => {
                let Some(before) = before else {
                    return Err(format!("revision {revision} deleted {key}, which was not there"));
                };
                let lease = self.leases.get(&before.lease).copied();
                let by_lease = lease.is_some_and(|lease| lease.is_revoked || self.clocks_lie || now >= lease.expires);
                let asked = self.deletes.entry(change.key.clone()).or_default();
                if *asked > 0 {
                    *asked -= 1;
                } else if !by_lease {
                    return Err(format!("revision {revision} deleted {key} at {now:?}: nobody asked; lease {lease:?}"));
                }
            }
        }
        Ok(())
    }

    fn check_previous(&self, revision: i64, change: &Change, event: &mvccpb::Event) -> Checked {
        let Some(told) = &event.prev_kv else { return Ok(()) };
        let before = self.at(&change.key, revision - 1);
        if before != Some(&Version::of(told)) {
            let key = change.key.escape_ascii();
            return Err(format!("revision {revision} told {told:?} as the version of {key} before it, not {before:?}"));
        }
        Ok(())
    }

    fn at(&self, key: &Bytes, revision: i64) -> Option<&Version> {
        let versions = self.keys.get(key)?;
        let index = versions.partition_point(|(at, _)| *at <= revision);
        versions.get(index.checked_sub(1)?)?.1.as_ref()
    }

    /// An answer names a revision. It is compared as soon as that is known.
    pub fn claim(&mut self, revision: i64, claim: Claim, what: String) -> Checked {
        if revision > self.frontier {
            self.waiting.entry(revision).or_default().push((claim, what));
            return Ok(());
        }
        self.check(revision, &claim, &what)
    }

    fn settle(&mut self) -> Checked {
        while let Some(entry) = self.waiting.first_entry().filter(|entry| *entry.key() <= self.frontier) {
            let (revision, claims) = entry.remove_entry();
            for (claim, what) in claims {
                self.check(revision, &claim, &what)?;
            }
        }
        Ok(())
    }

    fn check(&mut self, revision: i64, claim: &Claim, what: &str) -> Checked {
        if revision + KEPT <= self.frontier {
            return Ok(());
        }
        self.checked += 1;
        let wrong = |is: &dyn std::fmt::Debug| Err(format!("{what}: revision {revision}: {claim:?}, but it is {is:?}"));
        match claim {
            Claim::Holds { from, to, keys } => {
                let range = self.keys.range(from.clone()..to.clone()).map(|(key, _)| key);
                let state: Vec<(Bytes, Version)> =
                    range.filter_map(|key| Some((key.clone(), self.at(key, revision)?.clone()))).collect();
                if state != *keys { wrong(&state) } else { Ok(()) }
            }
            Claim::Wrote { values } => {
                let events = self.events.get(&revision);
                let is_there = |(key, value): &(Bytes, Bytes)| {
                    events.is_some_and(|events| {
                        events.iter().any(|c| c.key == *key && c.kv.as_ref().is_some_and(|kv| kv.value == *value))
                    })
                };
                if values.iter().all(is_there) { Ok(()) } else { wrong(&events) }
            }
            Claim::Compared { key, expected, equal } => {
                let at = if *equal { revision - 1 } else { revision };
                let found = self.at(key, at).map_or(0, |kv| kv.modified);
                if (found == *expected) == *equal { Ok(()) } else { wrong(&found) }
            }
            Claim::Deleted { key, count } => {
                let events = self.events.get(&revision).map_or(&[][..], Vec::as_slice);
                let found = events.iter().filter(|c| c.key == *key && c.kv.is_none()).count() as i64;
                if *count == 0 || found == *count { Ok(()) } else { wrong(&found) }
            }
        }
    }

    /// Lets go of what is too old to be asked for.
    fn forget(&mut self) {
        let oldest = self.frontier - 2 * KEPT;
        if self.events.first_key_value().is_none_or(|(first, _)| *first > oldest) {
            return;
        }
        let kept = self.frontier - KEPT;
        self.events = self.events.split_off(&kept);
        for versions in self.keys.values_mut() {
            while versions.get(1).is_some_and(|(at, _)| *at <= kept) {
                versions.pop_front();
            }
        }
        self.keys.retain(|_, versions| versions.len() > 1 || versions.front().is_some_and(|(_, kv)| kv.is_some()));
        self.fates.retain(|_, fate| !matches!(fate, Fate::Found(revision) if *revision < kept));
    }
}
