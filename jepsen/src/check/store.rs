//! The whole of etcd's key space as a model: every version of every key, leases, and what a request answers.
//!
//! It is sequential and so plain that it can be believed. [`Store::execute`] does a request and tells what a store
//! must answer; [`Store::undo`] takes it back, which is what a search needs. Versions are kept for ever, so that a
//! read of an old revision, the state before an event and a watch can be judged:
//!
//! | revision | request | versions of a |
//! |---|---|---|
//! | 2 | put a = 1 | 2: 1 |
//! | 3 | delete a | 2: 1, 3: none |

mod execute;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

pub use execute::{Executed, Undo};

use super::history::{Answer, Blob, KeyValue, Keys, Range};

#[derive(Clone, Debug, PartialEq)]
pub struct Version {
    pub revision: i64,
    /// `None`: the key was deleted.
    pub kv: Option<KeyValue>,
}

#[derive(Clone, Debug)]
pub struct Store {
    revision: i64,
    compacted: i64,
    /// In the order of revisions, which differ.
    versions: BTreeMap<Blob, Vec<Version>>,
    /// The versions by revision.
    log: BTreeSet<(i64, Blob)>,
    leases: BTreeMap<i64, Lease>,
    fingerprint: u128,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lease {
    Granted,
    /// Its grant has no known outcome. It is taken as granted as soon as anyone needs it.
    Possible,
    Revoked,
}

impl Default for Store {
    fn default() -> Store {
        Store::new(1, [])
    }
}

impl Store {
    /// A store whose older revisions nobody asks for.
    pub fn new(revision: i64, kvs: impl IntoIterator<Item = KeyValue>) -> Store {
        let version = |kv: KeyValue| (kv.key.clone(), vec![Version { revision: kv.mod_revision, kv: Some(kv) }]);
        Store {
            revision,
            compacted: 0,
            versions: kvs.into_iter().map(version).collect(),
            log: BTreeSet::new(),
            leases: BTreeMap::new(),
            fingerprint: 0,
        }
    }

    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// A lease that may have been granted.
    pub fn lease_is_possible(&mut self, lease: i64) {
        self.leases.entry(lease).or_insert(Lease::Possible);
    }

    /// Stands for all that tells this state from others that the same requests could have led to.
    pub fn fingerprint(&self) -> u128 {
        self.fingerprint
    }

    /// The key as it was at a revision.
    pub fn at(&self, key: &[u8], revision: i64) -> Option<&KeyValue> {
        at(self.versions.get(key)?, revision)
    }

    /// All keys as they were at a revision, in their order.
    pub fn range<'a>(&'a self, keys: &Keys, revision: i64) -> impl Iterator<Item = &'a KeyValue> + use<'a> {
        self.within(keys).filter_map(move |(_, versions)| at(versions, revision))
    }

    /// What a range answers that is read at a revision, whatever has been compacted since.
    pub fn read_at(&self, range: &Range, newest: i64) -> Answer {
        let revision = if range.revision > 0 { range.revision } else { newest };
        let mut kvs: Vec<KeyValue> = self.range(&range.keys, revision).cloned().collect();
        let count = kvs.len() as i64;
        if range.count_only {
            return Answer::Range { kvs: Vec::new(), count, more: false };
        }
        let more = range.limit > 0 && count > range.limit;
        if more {
            kvs.truncate(usize::try_from(range.limit).expect("more than nothing"));
        }
        if range.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Blob::default());
        }
        Answer::Range { kvs, count, more }
    }

    /// What was done to a key at a revision; `Some(None)`: it was deleted.
    pub fn written_at(&self, key: &[u8], revision: i64) -> Option<Option<&KeyValue>> {
        let versions = self.versions.get(key)?;
        let place = versions.binary_search_by_key(&revision, |version| version.revision).ok()?;
        Some(versions[place].kv.as_ref())
    }

    /// All that was done at these revisions, in their order, and in that of keys within one.
    pub fn written(&self, revisions: RangeInclusive<i64>) -> impl Iterator<Item = (i64, &Blob, Option<&KeyValue>)> {
        let keys = self.log.range((*revisions.start(), Blob::default())..);
        let keys = keys.take_while(move |(revision, _)| revisions.contains(revision));
        keys.map(|(revision, key)| (*revision, key, self.written_at(key, *revision).expect("the log names versions")))
    }

    /// Takes it from someone who was told that this was done, next of all.
    pub fn witness(&mut self, revision: i64, key: Blob, kv: Option<KeyValue>) {
        assert!(revision >= self.revision, "told in order");
        self.revision = revision;
        self.log.insert((revision, key.clone()));
        self.versions.entry(key).or_default().push(Version { revision, kv });
    }

    fn within<'a>(&'a self, keys: &Keys) -> impl Iterator<Item = (&'a Blob, &'a Vec<Version>)> + use<'a> {
        let (first, keys) = (keys.key.clone(), keys.clone());
        self.versions.range(first..).take_while(move |(key, _)| keys.contains(key))
    }
}

fn at(versions: &[Version], revision: i64) -> Option<&KeyValue> {
    let after = versions.partition_point(|version| version.revision <= revision);
    versions[..after].last()?.kv.as_ref()
}
