//! Who leads, and how far the log has come.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use openraft::{Instant as _, ServerState, async_runtime::WatchReceiver as _, metrics::RaftMetrics};
use proto::MemberId;
use storage::host;
use tokio::{sync::watch, time::MissedTickBehavior};

use crate::{
    Standing, Status,
    roster::is_voting,
    types::{Peer, Raft, TypeConfig, position_of},
};

/// Knows the leader. Cheap to clone.
#[derive(Clone)]
pub struct Leadership {
    member: u64,
    raft: Raft,
    status: watch::Receiver<Status>,
    standing: Arc<Shared>,
}

/// A [`Standing`] that is read without a lock: the term above three bits. No term comes near 61 bits.
struct Shared(AtomicU64);

impl Shared {
    fn set(&self, standing: Standing) {
        let Standing { term, has_leader, is_leader, is_learner } = standing;
        let bits = u64::from(has_leader) | u64::from(is_leader) << 1 | u64::from(is_learner) << 2;
        self.0.store(term << 3 | bits, Ordering::Release);
    }

    fn get(&self) -> Standing {
        let packed = self.0.load(Ordering::Acquire);
        let is_set = |bit: u32| packed >> bit & 1 == 1;
        Standing { term: packed >> 3, has_leader: is_set(0), is_leader: is_set(1), is_learner: is_set(2) }
    }
}

impl Leadership {
    /// Starts the task that follows Raft, which ends with it. A leader that has not heard from a quorum for an election
    /// timeout is none any more. `removed` tells when this member has been removed, `failure` why it must not go on.
    pub fn start(
        member: u64,
        raft: Raft,
        election_timeout: Duration,
        mut removed: watch::Receiver<bool>,
        mut failure: watch::Receiver<Option<String>>,
    ) -> Self {
        let (mut raft_metrics, mut roles_changed) = (raft.metrics(), raft.server_metrics());
        let now = status_of(&raft_metrics.borrow_watched(), election_timeout);
        let standing = Arc::new(Shared(AtomicU64::new(0)));
        standing.set(Standing::from(&now));
        let (sender, status) = watch::channel(now);
        let told = standing.clone();
        host::spawn(async move {
            let mut ticks = tokio::time::interval(election_timeout / 4);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            // Everything changes with each entry, and is followed only where it matters: behind a change of roles, which
            // is told of just before everything is, and while an isolated leader waits to hear of the others.
            let (mut follows_all, mut has_ended) = (true, false);
            while !has_ended {
                // The isolation of a leader is no change that Raft tells of.
                tokio::select! {
                    changed = roles_changed.changed() => (follows_all, has_ended) = (true, changed.is_err()),
                    changed = raft_metrics.changed(), if follows_all => {
                        (follows_all, has_ended) = (false, changed.is_err());
                    }
                    // Whoever told it may have ended; the ticks go on.
                    Ok(()) = removed.changed() => {}
                    Ok(()) = failure.changed() => {}
                    _ = ticks.tick() => {}
                }
                let is_removed = *removed.borrow_and_update();
                let mut now = {
                    let metrics = raft_metrics.borrow_and_update();
                    let now = Status { is_removed, ..status_of(&metrics, election_timeout) };
                    follows_all |= metrics.state == ServerState::Leader && !now.is_leader;
                    now
                };
                now.fatal = failure.borrow_and_update().clone().or(now.fatal);
                let is_stopped = now.fatal.is_some();
                sender.send_if_modified(|status| {
                    let is_new = roles(status) != roles(&now);
                    // Before anybody is told of the change.
                    told.set(Standing::from(&now));
                    *status = now;
                    is_new
                });
                if is_stopped {
                    return;
                }
            }
        });
        Leadership { member, raft, status, standing }
    }

    pub fn member(&self) -> u64 {
        self.member
    }

    /// The leader and where it is found.
    pub fn leader(&self) -> Option<(u64, Peer)> {
        let leader = self.status.borrow().leader?.0;
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let peer = metrics.membership_config.membership().get_node(&leader)?.clone();
        Some((leader, peer))
    }

    pub fn watch(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    pub fn standing(&self) -> Standing {
        self.standing.get()
    }

    /// The status with the newest indexes.
    pub fn now(&self) -> Status {
        let watched = self.status.borrow().clone();
        let indexes = self.raft.data_metrics();
        let indexes = indexes.borrow_watched();
        Status {
            last_log_index: position_of(indexes.last_log.as_ref()),
            committed_index: position_of(indexes.cluster_committed.as_ref()),
            applied_index: position_of(indexes.last_applied.as_ref()),
            ..watched
        }
    }
}

/// What a change of is worth telling.
fn roles(status: &Status) -> (Option<MemberId>, bool, u64, &Option<String>, bool, bool) {
    (status.leader, status.is_leader, status.term, &status.fatal, status.is_learner, status.is_removed)
}

fn status_of(metrics: &RaftMetrics<TypeConfig>, election_timeout: Duration) -> Status {
    let leads = metrics.state == ServerState::Leader && metrics.current_leader == Some(metrics.id);
    let is_alone = metrics.membership_config.membership().voter_ids().all(|id| id == metrics.id);
    let silence = metrics.last_quorum_acked.as_ref().map(|acked| acked.elapsed());
    let is_isolated = leads && !is_alone && silence.is_some_and(|silence| silence > election_timeout);
    Status {
        leader: metrics.current_leader.filter(|_| !is_isolated).map(MemberId),
        is_leader: leads && !is_isolated,
        is_learner: is_learner(metrics),
        term: metrics.current_term,
        last_log_index: metrics.last_log_index.map_or(0, |index| index + 1),
        committed_index: position_of(metrics.cluster_committed.as_ref()),
        applied_index: position_of(metrics.last_applied.as_ref()),
        fatal: metrics.running_state.as_ref().err().map(|error| error.to_string()),
        is_removed: false,
    }
}

/// To those outside, who was added as a voter is one.
fn is_learner(metrics: &RaftMetrics<TypeConfig>) -> bool {
    let membership = metrics.membership_config.membership();
    metrics.state == ServerState::Learner
        && membership.get_node(&metrics.id).is_some_and(|peer| !is_voting(membership, metrics.id, peer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standing_is_read_as_it_was_set() {
        let shared = Shared(AtomicU64::new(0));
        assert_eq!(shared.get(), Standing::default());
        for bits in 0..8 {
            let standing = Standing {
                term: 1 << 60 | 5,
                has_leader: bits & 1 > 0,
                is_leader: bits & 2 > 0,
                is_learner: bits & 4 > 0,
            };
            shared.set(standing);
            assert_eq!(shared.get(), standing);
        }
    }
}
