//! The lease clock: expires leases while this member leads, and renews them.

use std::{
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use parking_lot::Mutex;
use proto::{
    EtcdError, LeaseId,
    command::{LeaseCheckpoint, LeaseExpire, command::Op, lease_checkpoint},
    etcdserverpb::LeaseTimeToLiveResponse,
};
use storage::{LeaseChange, host, planted};
use tokio::sync::Notify;
use tonic::Status;

use super::{
    Member,
    table::{Renewal, Table},
};
use crate::context::Context;

/// How many leases one entry expires. Each may have many keys, and all of them are deleted in one go.
const EXPIRED_MAX: usize = 500;
/// The pause after a full entry (so etcd's 1000 leases per second at most), and after one that had no effect.
const PAUSE: Duration = Duration::from_millis(500);
/// How many leases one entry notes the rest of. (etcd: `lease/lessor.go`, maxLeaseCheckpointBatchSize.)
const CHECKPOINTED_MAX: usize = 1000;

/// The clock of all leases.
#[derive(Default)]
pub struct Clock {
    table: Mutex<Table>,
    /// A lease may be due earlier than the task thinks.
    granted: Notify,
    /// Leases were revoked, or this member does not lead any more.
    changed: Notify,
    /// Weak: the member's services hold the clock.
    member: OnceLock<Weak<dyn Member>>,
    renewed: AtomicU64,
    expired: AtomicU64,
}

impl Clock {
    /// Before the store is open; see [`Clock::attach`].
    pub fn new() -> Arc<Clock> {
        Arc::default()
    }

    /// Renewals and expiries on this member while it led.
    pub fn counts(&self) -> (u64, u64) {
        (self.renewed.load(Relaxed), self.expired.load(Relaxed))
    }

    /// Starts the clock, once store and node are there. Within a runtime.
    pub fn attach(self: &Arc<Self>, context: Arc<Context>) {
        self.start(context);
    }

    pub(super) fn start(self: &Arc<Self>, member: Arc<dyn Member>) {
        assert!(self.member.set(Arc::downgrade(&member)).is_ok(), "a clock is attached once");
        if let Some(interval) = member.checkpoint_interval() {
            self.table.lock().checkpoint_every(interval);
        }
        self.reload(member.as_ref());
        host::spawn(self.clone().run(member));
    }

    /// Takes changes in, as they are applied.
    pub fn applied(&self, changes: &[LeaseChange]) {
        if changes.is_empty() {
            return;
        }
        let now = host::now();
        let mut table = self.table.lock();
        let due = table.next_due();
        for &change in changes {
            table.apply(change, now);
        }
        let earlier = table.next_due().is_some_and(|next| due.is_none_or(|due| next < due));
        drop(table);
        if earlier {
            self.granted.notify_one();
        }
        self.changed.notify_waiters();
    }

    /// The store was replaced by another.
    pub fn restored(&self) {
        // Without a member the clock has not started: it will read all leases when it does.
        if let Some(member) = self.member.get().and_then(Weak::upgrade) {
            self.reload(member.as_ref());
        }
        self.changed.notify_waiters();
    }

    /// Leases by expiry, where this member knows it.
    pub fn ids(&self) -> Vec<LeaseId> {
        self.table.lock().ids()
    }

    /// Renews leases, on the leader, if there is nothing to wait for but its majority: None when there is. Else as
    /// [`Clock::keep_alive`].
    pub(super) async fn keep_alive_at_once(&self, ids: &[LeaseId]) -> Result<Option<Vec<i64>>, Status> {
        let term = self.confirm_leading(self.member()?.as_ref()).await?;
        let (mut table, now) = (self.table.lock(), host::now());
        let mut ttls = Vec::with_capacity(ids.len());
        for &id in ids {
            ttls.push(match table.renew(id, term, now) {
                Renewal::Renewed { ttl } => {
                    self.renewed.fetch_add(1, Relaxed);
                    ttl
                }
                Renewal::Unknown => 0,
                Renewal::NotLeading => return Err(EtcdError::NotLeader.into()),
                Renewal::Checkpointed | Renewal::Expired => return Ok(None),
            });
        }
        Ok(Some(ttls))
    }

    /// Renews a lease, on the leader. The TTL that it has now, in seconds; 0 when there is no such lease.
    pub(super) async fn keep_alive(&self, id: LeaseId) -> Result<i64, Status> {
        let member = self.member()?;
        let member = member.as_ref();
        let shutdown = member.shutdown();
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let term = self.confirm_leading(member).await?;
            let renewal = self.table.lock().renew(id, term, host::now());
            match renewal {
                Renewal::Renewed { ttl } => {
                    self.renewed.fetch_add(1, Relaxed);
                    return Ok(ttl);
                }
                Renewal::Unknown => return Ok(0),
                Renewal::NotLeading => return Err(EtcdError::NotLeader.into()),
                Renewal::Checkpointed => self.clear_checkpoint(member, id, term).await?,
                // Whether it can be revoked is not certain before it is.
                Renewal::Expired => tokio::select! {
                    () = changed => {}
                    () = shutdown.cancelled() => return Err(EtcdError::Stopped.into()),
                },
            }
        }
    }

    /// What is left of a lease, on the leader. TTL -1 when there is no such lease.
    pub(super) async fn time_to_live(&self, id: LeaseId, keys: bool) -> Result<LeaseTimeToLiveResponse, Status> {
        let member = self.member()?;
        let term = self.confirm_leading(member.as_ref()).await?;
        let left = {
            let table = self.table.lock();
            if table.leading() != Some(term) {
                return Err(EtcdError::NotLeader.into());
            }
            table.time_left(id, host::now())
        };
        let mut response = LeaseTimeToLiveResponse { id: id.0, ttl: -1, ..Default::default() };
        if let Some(time) = left {
            (response.ttl, response.granted_ttl) = (time.left, time.granted);
            if keys {
                response.keys = member.lease_keys(id);
            }
        }
        Ok(response)
    }

    /// The term in which this member leads, as the clock knows it.
    #[cfg(test)]
    pub(super) fn leading(&self) -> Option<u64> {
        self.table.lock().leading()
    }

    fn member(&self) -> Result<Arc<dyn Member>, Status> {
        // Not started yet: nobody has elected this member. Or it has ended.
        self.member.get().and_then(Weak::upgrade).ok_or_else(|| EtcdError::NotLeader.into())
    }

    fn reload(&self, member: &dyn Member) {
        // The lock first: what is applied meanwhile comes after, and is not lost.
        let mut table = self.table.lock();
        table.replace(member.leases(), host::now());
        drop(table);
        self.granted.notify_one();
    }

    /// The term in which this member leads, confirmed by a majority; all that was committed is applied.
    async fn confirm_leading(&self, member: &dyn Member) -> Result<u64, Status> {
        let term = self.table.lock().leading().ok_or(EtcdError::NotLeader)?;
        if planted!(StaleLeaderRenews) {
            return Ok(term);
        }
        member.read_index().await?;
        // A member that has stopped leading asks the new leader, and that succeeds too.
        let now = member.standing();
        if now.is_leader && now.term == term { Ok(term) } else { Err(EtcdError::NotLeader.into()) }
    }

    async fn clear_checkpoint(&self, member: &dyn Member, id: LeaseId, term: u64) -> Result<(), Status> {
        let checkpoints = vec![lease_checkpoint::Entry { id: id.0, remaining_ttl: 0 }];
        member.propose_as_leader(Op::LeaseCheckpoint(LeaseCheckpoint { checkpoints, term })).await
    }

    async fn run(self: Arc<Self>, member: Arc<dyn Member>) {
        let (mut status, shutdown) = (member.watch_status(), member.shutdown());
        // At most one entry is under way: the next one shall not name the same leases again.
        let mut expiring: FuturesUnordered<BoxFuture<'_, bool>> = FuturesUnordered::new();
        let mut checkpointing: FuturesUnordered<BoxFuture<'_, ()>> = FuturesUnordered::new();
        let mut paused_until = host::now();
        loop {
            let term = {
                let status = status.borrow_and_update();
                status.is_leader.then_some(status.term)
            };
            let due = self.set_leading(term, member.election_timeout()).map(|due| due.max(paused_until));
            let checkpoint_due = self.table.lock().next_checkpoint();
            tokio::select! {
                () = shutdown.cancelled() => break,
                changed = status.changed() => if changed.is_err() {
                    break;
                },
                Some(pause) = expiring.next(), if !expiring.is_empty() => if pause {
                    paused_until = host::now() + PAUSE;
                },
                () = self.granted.notified() => {}
                Some(()) = checkpointing.next(), if !checkpointing.is_empty() => {}
                () = until(checkpoint_due), if checkpointing.is_empty() => if let Some(term) = term {
                    let due = self.table.lock().due_checkpoints(CHECKPOINTED_MAX, host::now());
                    if !due.is_empty() {
                        checkpointing.push(checkpoint(member.as_ref(), due, term).boxed());
                    }
                },
                () = until(due), if expiring.is_empty() => if let Some(term) = term {
                    let ids = self.table.lock().due(EXPIRED_MAX, host::now());
                    if !ids.is_empty() {
                        expiring.push(self.expire(member.as_ref(), ids, term).boxed());
                    }
                },
            }
        }
        self.set_leading(None, member.election_timeout());
    }

    /// Takes in who leads; returns when the next lease is due here.
    fn set_leading(&self, term: Option<u64>, extension: Duration) -> Option<Instant> {
        let mut table = self.table.lock();
        if table.leading() != term {
            match term {
                // As in etcd: how long the election took is not known.
                Some(term) => table.lead(term, extension, host::now()),
                None => table.follow(),
            }
            self.changed.notify_waiters();
        }
        table.next_due()
    }

    /// Proposes that these leases expire. Whether a pause is due before the next.
    async fn expire(&self, member: &dyn Member, ids: Vec<LeaseId>, term: u64) -> bool {
        let op = Op::LeaseExpire(LeaseExpire { ids: ids.iter().map(|id| id.0).collect(), term });
        if let Err(error) = member.propose_as_leader(op).await {
            tracing::warn!(%error, leases = ids.len(), "expired leases could not be revoked yet");
            return true;
        }
        self.expired.fetch_add(ids.len() as u64, Relaxed);
        let table = self.table.lock();
        ids.len() == EXPIRED_MAX || ids.iter().any(|&id| table.contains(id))
    }
}

async fn until(time: Option<Instant>) {
    match time {
        // A delay: a lease expires by the clock, and nothing else tells of it.
        Some(time) => tokio::time::sleep(time.saturating_duration_since(host::now())).await,
        None => std::future::pending().await,
    }
}

/// Proposes to note what is left of these leases.
async fn checkpoint(member: &dyn Member, left: Vec<(LeaseId, i64)>, term: u64) {
    let checkpoints =
        left.iter().map(|&(id, remaining_ttl)| lease_checkpoint::Entry { id: id.0, remaining_ttl }).collect();
    if let Err(error) = member.propose_as_leader(Op::LeaseCheckpoint(LeaseCheckpoint { checkpoints, term })).await {
        tracing::warn!(%error, leases = left.len(), "what is left of leases could not be noted");
    }
}
