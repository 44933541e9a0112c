//! Changes as they are told: to the observer at once, to a watcher that reads history later.

use std::{sync::Arc, time::Duration};

use proto::{
    EtcdError, KeyRange, LeaseId, Revision,
    mvccpb::{KeyValue, event::EventType},
};

use crate::{
    apply::LogEntry,
    auth::AuthChange,
    db::EVENTS,
    error::{ReadError, StorageError},
    keys,
    record::{EventRecord, Kind},
    stats::Work,
    store::Store,
};

/// How many events of other keys one call of [`Store::events`] passes over at most.
const SCANNED_MAX: usize = 100_000;

/// A put or a delete.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub kind: EventType,
    /// For a delete: the key and the mod revision.
    pub kv: KeyValue,
    pub revision: Revision,
    /// The version it superseded; None for a create.
    pub prev: Option<Revision>,
}

/// A change to a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseChange {
    /// TTL in seconds.
    Granted {
        id: LeaseId,
        ttl: i64,
    },
    Revoked {
        id: LeaseId,
    },
    /// Remaining TTL in seconds.
    Checkpointed {
        id: LeaseId,
        remaining_ttl: i64,
    },
}

/// What one batch of log entries changed.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// The current main revision now.
    pub revision: i64,
    /// The compacted revision now.
    pub compacted: i64,
    /// In order of revisions.
    pub events: Vec<Arc<Event>>,
    pub leases: Vec<LeaseChange>,
    pub auth: Vec<AuthChange>,
}

/// Learns of every change on the thread that applies it: after it was written and can be read, before it is answered.
/// Must not block.
pub trait Observer: Send + Sync + 'static {
    fn applied(&self, change: Change);
    /// The same batch as it stood in the log, with the store's revision behind each entry.
    fn logged(&self, _entries: &[LogEntry], _revisions: &[i64]) {}
    /// The whole state was replaced by a snapshot.
    fn restored(&self, revision: i64, compacted: i64);
    /// How long something took, for metrics. Called from any thread.
    fn took(&self, _work: Work, _time: Duration) {}
}

impl Event {
    pub(crate) fn put(revision: Revision, kv: KeyValue, prev: Option<Revision>) -> Self {
        Event { kind: EventType::Put, kv, revision, prev }
    }

    pub(crate) fn delete(revision: Revision, key: bytes::Bytes, prev: Revision) -> Self {
        let kv = KeyValue { key, mod_revision: revision.main, ..Default::default() };
        Event { kind: EventType::Delete, kv, revision, prev: Some(prev) }
    }
}

impl Store {
    /// History: every event in `range` with `from <= main revision <= to`, in order; whole revisions only, and after
    /// the first one no more than about `max_bytes`. With it the revision to go on from, `to + 1` when all was read.
    ///
    /// # Errors
    /// `Compacted` when `from` lies below the compacted revision.
    pub fn events(
        &self,
        range: &KeyRange,
        from: i64,
        to: i64,
        max_bytes: usize,
    ) -> Result<(Vec<Arc<Event>>, i64), ReadError> {
        let view = self.inner.view();
        let to = to.min(view.revision);
        let (mut events, mut lost) = (Vec::new(), None);
        let (mut bytes, mut scanned, mut last, mut next) = (0, 0, from, to + 1);
        view.db.each_event(from, to, |at, record| {
            if at.main != last && (bytes > max_bytes || scanned > SCANNED_MAX) {
                next = at.main;
                return Ok(false);
            }
            (last, scanned) = (at.main, scanned + 1);
            if !range.contains(&record.key) {
                return Ok(true);
            }
            let event = match (record.kind, record.prev) {
                (Kind::Delete, Some(prev)) => Event::delete(at, record.key, prev),
                (Kind::Delete, None) => {
                    return Err(view.db.damaged(EVENTS, &keys::event_key(at), "a delete supersedes nothing"));
                }
                (Kind::Put, prev) => match view.db.version(&record.key, at)? {
                    Some(kv) => Event::put(at, kv, prev),
                    None => {
                        lost = Some(at);
                        return Ok(false);
                    }
                },
            };
            bytes += event.kv.key.len() + event.kv.value.len();
            events.push(Arc::new(event));
            Ok(true)
        })?;
        // Checked last, since a compaction may have gone past `from` meanwhile; only then may a version be missing.
        if from < self.compacted_revision() {
            return Err(EtcdError::Compacted.into());
        }
        match lost {
            Some(at) => Err(view.db.damaged(EVENTS, &keys::event_key(at), "the version of a put is missing").into()),
            None => Ok((events, next)),
        }
    }

    /// The version before the revision of `event`; None for a create, for a key that was not there then, and when that
    /// revision has been compacted. (etcd: `v3rpc/watch.go` reads it at the revision before.)
    pub fn previous(&self, event: &Event) -> Result<Option<KeyValue>, StorageError> {
        let view = self.inner.view();
        let mut prev = event.prev;
        // What the same transaction wrote before does not count.
        while let Some(at) = prev.filter(|at| at.main == event.revision.main) {
            let key = keys::event_key(at);
            let record = view.db.get(EVENTS, &key)?;
            let record = record.map(|value| EventRecord::decode(&key, &value)).transpose();
            prev = record.map_err(|e| view.db.damaged(EVENTS, &key, e))?.and_then(|record| record.prev);
        }
        match prev {
            Some(at) if event.revision.main > view.compacted => view.db.version(&event.kv.key, at),
            _ => Ok(None),
        }
    }
}
