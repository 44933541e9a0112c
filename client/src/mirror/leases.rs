//! The source's leases in the destination.
//!
//! A lease is made there when a key needs it, or the source has it, and kept alive until the source has it no more and
//! all that the source deleted with it was deleted in the destination. Then it has no keys, and is revoked.

use std::collections::{HashMap, HashSet};

use super::{Failure, Mirror, Result, Way, replay};
use crate::{Client, Error, EtcdError, Get, LeaseId, LeaseKeeper, Op, mvccpb::KeyValue, revision};

/// For a lease that is gone at the source already, as long as its keys are not deleted yet.
const TTL_OF_GONE: i64 = 60;

/// A lease that is missing from a list may have been granted after the list was made, or be on its way out, with its keys
/// still there. One that is missing twice in a row is gone.
pub(super) const MISSING_TWICE: u32 = 2;

#[derive(Debug)]
struct Kept {
    keeper: LeaseKeeper,
    /// The source's revision when it was first heard of.
    known_since: i64,
    missing: u32,
    /// The source's revision when it was gone: its keys are deleted up to there.
    gone_at: Option<i64>,
}

#[derive(Debug)]
pub(super) struct Leases {
    source: Client,
    destination: Client,
    ttl_min: i64,
    kept: HashMap<LeaseId, Kept>,
    /// Those that the source had at the first look and the destination had not.
    suspects: Vec<LeaseId>,
}

pub(super) struct Poll {
    pub source_revision: i64,
    /// Leases have run out in the destination, with their keys.
    pub has_lost_some: bool,
}

impl Leases {
    pub fn new(source: &Client, destination: &Client, ttl_min: i64) -> Leases {
        let (source, destination) = (source.clone(), destination.clone());
        Leases { source, destination, ttl_min, kept: HashMap::new(), suspects: Vec::new() }
    }

    /// Keeps what another mirror, or an import, has made; notes what it should have made and is not there.
    pub async fn adopt(&mut self, mirrored: i64) -> Result<()> {
        let there = self.destination.leases().await.map_err(Failure::Destination)?.leases;
        for lease in &there {
            self.keep(LeaseId(lease.id), mirrored);
        }
        let wanted = self.source.leases().await.map_err(Failure::Source)?.leases;
        self.suspects = wanted.iter().map(|lease| LeaseId(lease.id)).filter(|id| !self.kept.contains_key(id)).collect();
        Ok(())
    }

    fn keep(&mut self, id: LeaseId, known_since: i64) {
        let keeper = || self.destination.keep_alive(id);
        self.kept.entry(id).or_insert_with(|| Kept { keeper: keeper(), known_since, missing: 0, gone_at: None });
    }

    pub fn forget(&mut self, ids: impl Iterator<Item = LeaseId>) {
        for id in ids {
            self.kept.remove(&id);
        }
    }

    /// Makes a lease, which a key has since `revision`.
    pub async fn ensure(&mut self, id: LeaseId, revision: i64) -> Result<()> {
        if let Some(kept) = self.kept.get_mut(&id) {
            kept.known_since = kept.known_since.max(revision);
            return Ok(());
        }
        let found = self.source.lease_time_to_live(id, false).await.map_err(Failure::Source)?;
        let ttl = if found.ttl < 0 { TTL_OF_GONE } else { found.granted_ttl };
        match self.destination.lease_grant(ttl.max(self.ttl_min), id).await {
            Ok(_) | Err(Error::Etcd(EtcdError::LeaseExist)) => {}
            Err(error) => return Err(Failure::Destination(error)),
        }
        self.keep(id, revision);
        Ok(())
    }

    /// Looks which leases came and went. `mirrored`: the revision that the destination has.
    pub async fn poll(&mut self, mirrored: i64) -> Result<Poll> {
        let list = self.source.leases().await.map_err(Failure::Source)?;
        let source_revision = revision(&list.header);
        let listed: HashSet<LeaseId> = list.leases.iter().map(|lease| LeaseId(lease.id)).collect();
        let lost: Vec<LeaseId> = listed.iter().copied().filter(|id| self.has_run_out(*id)).collect();
        self.forget(lost.iter().copied());
        let has_lost_some = !lost.is_empty();
        self.suspects.extend(lost);
        for id in &listed {
            self.ensure(*id, source_revision).await?;
        }
        let mut over = Vec::new();
        for (id, kept) in &mut self.kept {
            if listed.contains(id) {
                kept.missing = 0;
                kept.gone_at = None;
            } else if source_revision >= kept.known_since {
                kept.missing += 1;
                if kept.missing >= MISSING_TWICE {
                    kept.gone_at.get_or_insert(source_revision);
                }
            }
            if kept.gone_at.is_some_and(|gone_at| gone_at <= mirrored) {
                over.push(*id);
            }
        }
        for id in over {
            self.revoke(id).await?;
        }
        Ok(Poll { source_revision, has_lost_some })
    }

    fn has_run_out(&self, id: LeaseId) -> bool {
        self.kept.get(&id).is_some_and(|kept| kept.keeper.is_gone())
    }

    /// Revokes a lease that has no keys any more.
    async fn revoke(&mut self, id: LeaseId) -> Result<()> {
        let found = self.destination.lease_time_to_live(id, true).await.map_err(Failure::Destination)?;
        if !found.keys.is_empty() {
            tracing::warn!(lease = %id, keys = found.keys.len(), "the source's lease is gone, but not its keys here");
            return Ok(());
        }
        match self.destination.lease_revoke(id).await {
            Ok(_) | Err(Error::Etcd(EtcdError::LeaseNotFound)) => {
                self.kept.remove(&id);
                Ok(())
            }
            Err(error) => Err(Failure::Destination(error)),
        }
    }
}

impl Mirror {
    /// Puts back what the destination has deleted because its lease ran out while no mirror kept it alive. What the source
    /// has changed since will come by itself.
    pub(super) async fn restore_expired(&self, way: &mut Way, leases: &mut Leases) -> Result<()> {
        for id in std::mem::take(&mut leases.suspects) {
            let mirrored = way.revision();
            let lost: Vec<KeyValue> = self.keys_of(id).await?;
            let lost: Vec<KeyValue> = lost.into_iter().filter(|kv| kv.mod_revision <= mirrored).collect();
            self.patiently_ensure(leases, lost.iter()).await?;
            for kv in lost {
                let there = self.to_destination(|| self.destination.get(Get::key(kv.key.clone()))).await?;
                if there.kvs.first().is_some_and(|there| there.lease == kv.lease) {
                    continue;
                }
                match way {
                    Way::Recorded(record) => {
                        let next = record.progress.restored();
                        self.commit(record, vec![Op::put(replay::put(&kv))], next).await?;
                    }
                    Way::SameRevisions(_) => {
                        let reason = format!(
                            "lease {id} has run out there with its keys, because no mirror kept it alive; import a new \
                             snapshot, and give leases more time with --lease-ttl-min"
                        );
                        return Err(Failure::Diverged(reason));
                    }
                }
            }
        }
        Ok(())
    }

    /// The keys of one of the source's leases.
    async fn keys_of(&self, id: LeaseId) -> Result<Vec<KeyValue>> {
        let found = self.patient(|| self.source.lease_time_to_live(id, true)).await?;
        let mut keys = Vec::new();
        for key in found.keys {
            let answer = self.patient(|| self.source.get(Get::key(key.clone()))).await?;
            keys.extend(answer.kvs.into_iter().filter(|kv| kv.lease == id.0));
        }
        Ok(keys)
    }
}
