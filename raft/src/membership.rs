//! Carrying out changes of the membership where this member leads. [`crate::change`] has the rules.

use std::{sync::Arc, time::Duration};

use openraft::{
    Instant as _,
    async_runtime::WatchReceiver as _,
    entry::RaftPayload as _,
    errors::{ClientWriteError, RaftError as WriteError},
    raft::Precondition,
};
use proto::EtcdError;
use storage::Store;
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, MissedTickBehavior, timeout_at},
};

use crate::{
    RaftError,
    change::{Change, ChangePolicy, Step, View},
    read_index::ReadIndex,
    roster::Roster,
    types::{Membership, Payload, Raft, TypeConfig, position, position_of},
};

/// Why a change was not made, or is not known to be.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ChangeError {
    /// By the rules; nothing was changed.
    #[error("{0}")]
    Refused(EtcdError),
    #[error("{0}")]
    Raft(#[from] RaftError),
}

/// Makes changes, one after the other. Cheap to clone.
#[derive(Clone)]
pub struct Changes {
    pub member: u64,
    pub raft: Raft,
    pub store: Store,
    pub reads: ReadIndex,
    pub roster: watch::Receiver<Arc<Roster>>,
    pub heartbeat: Duration,
    pub election_timeout: Duration,
    /// Held from the look at the membership to the end of the change.
    pub one_at_a_time: Arc<Mutex<()>>,
}

/// What came of one attempt.
enum Attempt {
    /// Made so by the entry at this position.
    Made(u64),
    /// Another change is on its way, or this leader has just begun: nothing was changed.
    TooEarly,
}

impl Changes {
    /// Makes a change if this member leads; gives the position of its entry, which is applied here.
    pub async fn make(&self, change: &Change, policy: ChangePolicy, deadline: Instant) -> Result<u64, ChangeError> {
        let make = async {
            let _one = self.one_at_a_time.lock().await;
            loop {
                let view = self.view().await?;
                let step = view.plan(change, policy).map_err(ChangeError::Refused)?;
                match self.carry_out(&view, step).await? {
                    Attempt::Made(index) => return Ok(index),
                    // A delay: another change on its way ends with its entry, and openraft tells of no such end.
                    Attempt::TooEarly => tokio::time::sleep(self.heartbeat).await,
                }
            }
        };
        timeout_at(deadline, make).await.unwrap_or(Err(RaftError::Timeout.into()))
    }

    /// What is known now: all that was committed when the call began, if this member leads.
    async fn view(&self) -> Result<View, RaftError> {
        let index = self.reads.index_here().await.map_err(|_| RaftError::NotLeader)?;
        let mut applied = self.raft.metrics();
        while position_of(applied.borrow_and_update().last_applied.as_ref()) < index {
            applied.changed().await.map_err(|_| RaftError::Stopped)?;
        }
        Ok(self.view_now())
    }

    fn view_now(&self) -> View {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let heard = metrics.heartbeat.iter().flatten().filter_map(|(id, at)| at.map(|at| (*id, at.elapsed())));
        // An answer waits for the member's disk, and for the one before it. (etcd wants a connection, whatever is answered.)
        let others = heard.filter(|(_, silence)| *silence < 2 * self.election_timeout).map(|(id, _)| id);
        let matched = metrics.replication.iter().flatten().map(|(id, log_id)| (*id, position_of(log_id.as_ref())));
        View {
            local: self.member,
            roster: Roster::clone(&self.roster.borrow()),
            started: self
                .store
                .member_attributes()
                .iter()
                .filter(|said| !said.name.is_empty())
                .map(|said| said.id)
                .collect(),
            active: others.chain([self.member]).collect(),
            matched: matched.collect(),
            last: metrics.last_log_index.map_or(0, position),
        }
    }

    async fn carry_out(&self, view: &View, step: Step) -> Result<Attempt, RaftError> {
        // What the step goes out from must still be the newest.
        let unchanged = [Precondition::LastMembershipLogId { last_membership_log_id: *view.roster.stored.log_id() }];
        let written = match step {
            Step::Append(membership) => self.raft.append_membership(membership, Payload::blank(), unchanged).await,
            Step::Set(changes) => self.raft.change_membership_if(changes, true, unchanged).await,
        };
        match written {
            Ok(response) => Ok(Attempt::Made(position(response.log_id.index))),
            Err(WriteError::Fatal(fatal)) => Err(RaftError::Fatal(fatal.to_string())),
            Err(WriteError::APIError(error)) => too_early(error),
        }
    }

    /// Makes voters of those that were added as such, as soon as they have what the leader had half an election timeout
    /// ago.
    /// (Raft dissertation, section 4.2.1: the last round of catching up is that short.)
    pub async fn seat_newcomers(self) {
        let mut ticks = tokio::time::interval(self.election_timeout / 2);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut leads_in = None;
        let mut metrics = self.raft.metrics();
        loop {
            ticks.tick().await;
            let now = {
                let now = metrics.borrow_and_update();
                if now.running_state.is_err() {
                    return;
                }
                let is_waiting = now.state.is_leader() && has_newcomers(now.membership_config.membership());
                is_waiting.then_some((now.current_term, now.last_log_index.map_or(0, position)))
            };
            if let (Some((before, goal)), Some((term, _))) = (leads_in, now)
                && before == term
            {
                self.seat(goal).await;
            }
            leads_in = now;
        }
    }

    async fn seat(&self, goal: u64) {
        let _one = self.one_at_a_time.lock().await;
        let view = self.view_now();
        let is_in_step =
            |id: &u64| view.active.contains(id) && view.matched.get(id).is_some_and(|matched| *matched >= goal);
        let Some(id) = newcomers(view.roster.membership()).find(is_in_step) else { return };
        let Some(step) = view.seat(id) else { return };
        match tokio::time::timeout(2 * self.election_timeout, self.carry_out(&view, step)).await {
            Ok(Ok(Attempt::Made(index))) => {
                tracing::info!(member = format!("{id:x}"), index, "a new member has caught up and votes now")
            }
            Ok(Ok(Attempt::TooEarly)) | Err(_) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a new member does not vote yet"),
        }
    }
}

fn has_newcomers(membership: &Membership) -> bool {
    newcomers(membership).next().is_some()
}

/// Those that were added as voters and are none yet.
fn newcomers(membership: &Membership) -> impl Iterator<Item = u64> {
    membership.learner_ids().filter(|id| membership.get_node(id).is_some_and(|peer| peer.joins_as_voter))
}

fn too_early(error: ClientWriteError<TypeConfig>) -> Result<Attempt, RaftError> {
    match &error {
        ClientWriteError::ForwardToLeader(_) => Err(RaftError::NotLeader),
        ClientWriteError::LogEntryDiscarded(_) => Err(RaftError::LeaderChanged),
        ClientWriteError::PreconditionFailed(_) | ClientWriteError::ChangeMembershipError(_) => {
            tracing::debug!(%error, "a change of the membership waits");
            Ok(Attempt::TooEarly)
        }
    }
}
