//! What was told about revisions: what was written at them.
//!
//! Whoever reads a key is told at which revision it was written. That holds whoever wrote it, and so says where a write
//! of unknown outcome was done, if it was.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use super::{
    super::{
        history::{
            Answer, Blob, CompareResult, CompareTarget, Event, History, KeyValue, Put, Request, Response, Txn, TxnOp,
            TxnResult, WatchSeen,
        },
        store::Store,
        verdict::Anomaly,
    },
    model::Judged,
};

/// By revision and key.
#[derive(Clone, Debug, Default)]
pub struct Evidence(BTreeMap<i64, BTreeMap<Blob, Told>>);

/// What is known to have been done to a key at a revision.
#[derive(Clone, Debug, PartialEq)]
enum Told {
    Put(KeyValue),
    /// Told with a later version.
    Created,
    /// Told by a comparison that succeeded.
    Written,
    Deleted,
}

impl Evidence {
    /// The newest revision about which something is known.
    pub fn last(&self) -> Option<i64> {
        self.0.last_key_value().map(|(revision, _)| *revision)
    }

    /// What watchers were told. If they contradict each other, the first one counts here.
    pub fn of_watches(history: &History) -> Evidence {
        let mut evidence = Evidence::default();
        for entry in history.entries() {
            let Event::Watch(note) = &entry.event else { continue };
            let WatchSeen::Events { events, .. } = &note.seen else { continue };
            for event in events {
                let at = evidence.0.entry(event.revision()).or_default();
                let told = if event.delete { Told::Deleted } else { Told::Put(event.kv.clone()) };
                at.entry(event.key().clone()).or_insert(told);
            }
        }
        evidence
    }

    pub fn of_key(&self, key: &Blob) -> Evidence {
        let told = self.0.iter().filter_map(|(revision, at)| Some((*revision, at.get(key)?.clone())));
        Evidence(told.map(|(revision, told)| (revision, BTreeMap::from([(key.clone(), told)]))).collect())
    }

    /// What answers tell, besides what is known.
    pub fn of_operations(operations: &[Judged], known: &Evidence) -> Result<Evidence, Anomaly> {
        let mut evidence = known.clone();
        for operation in operations {
            let Some(response) = &operation.response else { continue };
            for (revision, key, written) in compared(&operation.request, response) {
                evidence.0.entry(revision).or_default().entry(key).or_insert(written);
            }
            for kv in told(&operation.request, response) {
                evidence.take(kv).map_err(|before| Anomaly {
                    name: "not linearizable",
                    explanation: format!("{operation} contradicts what was told before: {before:?}"),
                    entries: vec![operation.invoked],
                })?;
            }
        }
        Ok(evidence)
    }

    /// Gives back what contradicts it.
    fn take(&mut self, kv: &KeyValue) -> Result<(), Told> {
        let at = self.0.entry(kv.mod_revision).or_default();
        match at.get(&kv.key) {
            Some(Told::Put(known)) if known == kv => {}
            Some(Told::Created) if kv.create_revision == kv.mod_revision => {}
            Some(Told::Written) => {}
            Some(before) => return Err(before.clone()),
            None => {}
        }
        at.insert(kv.key.clone(), Told::Put(kv.clone()));
        let at = self.0.entry(kv.create_revision).or_default();
        match at.entry(kv.key.clone()).or_insert(Told::Created) {
            Told::Put(created) if created.create_revision == kv.create_revision => Ok(()),
            Told::Created => Ok(()),
            written @ Told::Written => {
                *written = Told::Created;
                Ok(())
            }
            before => Err(before.clone()),
        }
    }

    /// Whether what is written at the store's revision is what was told.
    pub fn agrees(&self, store: &Store) -> bool {
        let revision = store.revision();
        let Some(at) = self.0.get(&revision) else { return true };
        at.iter().all(|(key, told)| match (told, store.at(key, revision)) {
            (Told::Put(told), Some(kv)) => told == kv,
            (Told::Created, Some(kv)) => kv.create_revision == revision,
            (Told::Written, Some(kv)) => kv.mod_revision == revision,
            (Told::Deleted, None) => store.at(key, revision - 1).is_some(),
            _ => false,
        })
    }

    pub fn has(&self, revision: i64) -> bool {
        self.0.contains_key(&revision)
    }

    /// The first of these revisions about which something is known, and which is nobody's.
    pub fn first_unclaimed(&self, revisions: RangeInclusive<i64>, claimed: &BTreeSet<i64>) -> Option<i64> {
        self.0.range(revisions).map(|(revision, _)| *revision).find(|revision| !claimed.contains(revision))
    }

    /// Revisions that only one operation of unknown outcome can have made, by operation.
    pub fn reservations(&self, operations: &[Judged], claimed: &BTreeSet<i64>) -> BTreeMap<usize, i64> {
        let unknown: Vec<usize> =
            (0..operations.len()).filter(|operation| operations[*operation].response.is_none()).collect();
        let mut reserved = BTreeMap::new();
        for (revision, at) in self.0.iter().filter(|(revision, _)| !claimed.contains(revision)) {
            let makes = |operation: &&usize| {
                at.iter().all(|(key, told)| may_write(&operations[**operation].request, key, told))
            };
            let mut makers = unknown.iter().filter(makes);
            if let (Some(maker), None) = (makers.next(), makers.next()) {
                reserved.insert(*maker, *revision);
            }
        }
        reserved
    }
}

/// Whether a request can leave this of a key.
fn may_write(request: &Request, key: &Blob, told: &Told) -> bool {
    match request {
        Request::As { request, .. } => may_write(request, key, told),
        Request::Put(put) => may_put(put, key, told),
        Request::DeleteRange(delete) => *told == Told::Deleted && delete.keys.contains(key),
        Request::Txn(txn) => txn_may_write(txn, key, told),
        Request::LeaseRevoke { .. } => *told == Told::Deleted,
        _ => false,
    }
}

fn may_put(put: &Put, key: &Blob, told: &Told) -> bool {
    put.key == *key
        && match told {
            Told::Put(kv) => put.ignore_value || put.value == kv.value,
            Told::Created | Told::Written => true,
            Told::Deleted => false,
        }
}

fn txn_may_write(txn: &Txn, key: &Blob, told: &Told) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match op {
        TxnOp::Put(put) => may_put(put, key, told),
        TxnOp::DeleteRange(delete) => *told == Told::Deleted && delete.keys.contains(key),
        TxnOp::Range(_) => false,
        TxnOp::Txn(txn) => txn_may_write(txn, key, told),
    })
}

/// What a transaction whose comparisons held tells about revisions that it named.
fn compared(request: &Request, response: &Response) -> Vec<(i64, Blob, Told)> {
    let (Request::Txn(txn), Answer::Txn { succeeded: true, .. }) = (request, &response.answer) else {
        return Vec::new();
    };
    let equal = txn.compares.iter().filter(|compare| compare.result == CompareResult::Equal && compare.keys.is_one());
    let named = equal.filter_map(|compare| match compare.target {
        CompareTarget::ModRevision(revision) => Some((revision, compare.keys.key.clone(), Told::Written)),
        CompareTarget::CreateRevision(revision) => Some((revision, compare.keys.key.clone(), Told::Created)),
        _ => None,
    });
    named.filter(|(revision, _, _)| *revision > 0).collect()
}

/// All key-values of an answer that are whole.
fn told<'a>(request: &Request, response: &'a Response) -> Vec<&'a KeyValue> {
    fn of_results<'a>(results: &'a [TxnResult], all: &mut Vec<&'a KeyValue>) {
        for result in results {
            match result {
                TxnResult::Put { prev_kv } => all.extend(prev_kv),
                TxnResult::Range { kvs, .. } => all.extend(kvs),
                TxnResult::DeleteRange { prev_kvs, .. } => all.extend(prev_kvs),
                TxnResult::Txn { results, .. } => of_results(results, all),
            }
        }
    }
    let mut all = Vec::new();
    match &response.answer {
        _ if without_values(request) => {}
        Answer::Put { prev_kv } => all.extend(prev_kv),
        Answer::Range { kvs, .. } => all.extend(kvs),
        Answer::DeleteRange { prev_kvs, .. } => all.extend(prev_kvs),
        Answer::Txn { results, .. } => of_results(results, &mut all),
        _ => {}
    }
    all
}

fn without_values(request: &Request) -> bool {
    fn of_txn(txn: &Txn) -> bool {
        txn.success.iter().chain(&txn.failure).any(|op| match op {
            TxnOp::Range(range) => range.keys_only,
            TxnOp::Txn(txn) => of_txn(txn),
            TxnOp::Put(_) | TxnOp::DeleteRange(_) => false,
        })
    }
    match request {
        Request::As { request, .. } => without_values(request),
        Request::Range(range) => range.keys_only,
        Request::Txn(txn) => of_txn(txn),
        _ => false,
    }
}
