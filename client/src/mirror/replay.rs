//! What the source did at one revision, done in the destination in one transaction.

use super::{Failure, Mirror, PROGRESS_KEY, Record, Result, leases::Leases};
use crate::{
    Compare, Comparison, Delete, Error, EtcdError, LeaseId, Op, Put, Txn,
    mvccpb::{Event, KeyValue, event::EventType},
};

/// How it is known what the destination has.
#[derive(Debug)]
pub(super) enum Way {
    Recorded(Record),
    SameRevisions(Kept),
}

/// The destination's revision is the source's.
#[derive(Debug)]
pub(super) struct Kept {
    pub revision: i64,
}

impl Way {
    /// The revision of the source that the destination has.
    pub fn revision(&self) -> i64 {
        match self {
            Way::Recorded(record) => record.progress.revision,
            Way::SameRevisions(kept) => kept.revision,
        }
    }
}

fn kv(event: &Event) -> &KeyValue {
    event.kv.as_ref().expect("etcd sends no event without its key")
}

pub(super) fn revision(event: &Event) -> i64 {
    kv(event).mod_revision
}

pub(super) fn put(kv: &KeyValue) -> Put {
    Put::new(kv.key.clone(), kv.value.clone()).lease(LeaseId(kv.lease))
}

fn op(event: &Event) -> Op {
    match event.r#type() {
        EventType::Put => Op::put(put(kv(event))),
        EventType::Delete => Op::delete(Delete::key(kv(event).key.clone())),
    }
}

/// Holds only before these changes were made, also when it is looked at much later: afterwards the key is gone, or was
/// changed at their revision, or after it. A revision changes a key once at most.
fn not_done_yet(change: &Event) -> Vec<Comparison> {
    let KeyValue { key, mod_revision, .. } = kv(change);
    let before = Compare::mod_revision(key.clone()).less_than(*mod_revision);
    match change.r#type() {
        EventType::Put => vec![before],
        EventType::Delete => vec![Compare::mod_revision(key.clone()).greater_than(0), before],
    }
}

impl Mirror {
    /// `changes`: all of one revision.
    pub(super) async fn replay(&self, way: &mut Way, leases: &mut Leases, changes: &[Event]) -> Result<()> {
        let revision = revision(&changes[0]);
        for attempt in 0.. {
            self.patiently_ensure(leases, changes.iter().map(kv)).await?;
            let done = match way {
                Way::Recorded(record) => {
                    // The source may have been a mirror itself.
                    let ops = changes.iter().filter(|event| kv(event).key != PROGRESS_KEY).map(op).collect();
                    let next = record.progress.at(revision);
                    self.commit(record, ops, next).await
                }
                Way::SameRevisions(kept) => self.commit_at(kept, changes).await,
            };
            match done {
                // It has run out between the two requests.
                Err(Failure::Destination(Error::Etcd(EtcdError::LeaseNotFound))) if attempt == 0 => {
                    leases.forget(changes.iter().map(|event| LeaseId(kv(event).lease)));
                }
                done => {
                    done?;
                    break;
                }
            }
        }
        self.status.send_modify(|status| {
            status.transactions += 1;
            status.mirrored(revision);
        });
        Ok(())
    }

    /// Makes the leases of these keys.
    pub(super) async fn patiently_ensure<'a>(
        &self,
        leases: &mut Leases,
        keys: impl Iterator<Item = &'a KeyValue>,
    ) -> Result<()> {
        for kv in keys.filter(|kv| kv.lease != 0) {
            while let Err(failure) = leases.ensure(LeaseId(kv.lease), kv.mod_revision).await {
                self.wait_out(failure).await?;
            }
        }
        Ok(())
    }

    async fn commit_at(&self, kept: &mut Kept, changes: &[Event]) -> Result<()> {
        let revision = revision(&changes[0]);
        let mut txn = Txn::all_of(changes.iter().map(op).collect());
        for condition in not_done_yet(&changes[0]) {
            txn = txn.when(condition);
        }
        let answer = self.to_destination(|| self.destination.txn(txn.clone())).await?;
        // When the conditions do not hold it was done before, by this mirror or another, and the revision is this one.
        let there = answer.header.as_ref().map_or(0, |header| header.revision);
        if there != revision {
            let reason = format!(
                "it is at revision {there} and not {revision} with the source's changes of revision {revision}: somebody \
                 else writes to it, or leases have run out there; import a new snapshot"
            );
            return Err(Failure::Diverged(reason));
        }
        kept.revision = revision;
        Ok(())
    }
}

impl Way {
    /// The source is not needed any more.
    pub async fn finish(&self, mirror: &Mirror) -> Result<()> {
        match self {
            Way::Recorded(record) => mirror.forget_progress(record).await,
            Way::SameRevisions(_) => Ok(()),
        }
    }
}
