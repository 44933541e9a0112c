//! Leases: keys that go when their holder does.
//!
//! What was granted is part of the replicated store; when it expires is not. That is the leader's to decide, by its
//! own monotonic clock:
//!
//! ```text
//! apply ───────── granted, revoked ──> Clock        table.rs: when each lease is due, a function of the time it is told
//!                                        │ due      clock.rs: the task that proposes LeaseExpire { ids, term }
//! client ── keep alive ──> any member ── leader_request.rs ──> the leader: is it still? then renewed in memory
//! ```
//!
//! Invariants:
//! - A member that does not lead expires nothing. One that begins to lead gives every lease its full time again (or
//!   what a checkpoint left of it), for it cannot know of renewals before: a lease may live longer than was promised,
//!   never shorter.
//! - An expiry names the term in which it was decided, and has no effect in another.
//! - A lease is renewed only by a leader that a majority has just confirmed.

mod clock;
mod leader_request;
mod service;
mod table;
#[cfg(test)]
mod tests;

use std::time::Duration;

use bytes::Bytes;
use proto::{
    LeaseId,
    command::{Command, command::Op},
};
use raft::{Standing, Status as RaftStatus};
use storage::LeaseInfo;
use tokio::sync::watch::Receiver;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{context::Context, gates::Gate};

/// (etcd: `lease/lessor.go`, defaultLeaseCheckpointInterval.)
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(5 * 60);

pub use clock::Clock;
pub use leader_request::leader_handler;
pub use service::LeaseService;

/// What the clock needs of the member it runs on.
#[tonic::async_trait]
pub(crate) trait Member: Send + Sync + 'static {
    fn standing(&self) -> Standing;
    fn watch_status(&self) -> Receiver<RaftStatus>;
    /// See [`raft::Node::read_index`].
    async fn read_index(&self) -> Result<(), Status>;
    /// See [`raft::Node::propose_as_leader`].
    async fn propose_as_leader(&self, op: Op) -> Result<(), Status>;
    fn leases(&self) -> Vec<LeaseInfo>;
    fn lease_keys(&self, id: LeaseId) -> Vec<Bytes>;
    fn election_timeout(&self) -> Duration;
    /// How often what is left of long leases is noted; None: never.
    fn checkpoint_interval(&self) -> Option<Duration>;
    /// Cancelled when the member stops.
    fn shutdown(&self) -> CancellationToken;
}

#[tonic::async_trait]
impl Member for Context {
    fn standing(&self) -> Standing {
        self.node.standing()
    }

    fn watch_status(&self) -> Receiver<RaftStatus> {
        self.node.watch_status()
    }

    async fn read_index(&self) -> Result<(), Status> {
        self.node.read_index().await.map_err(|error| self.raft_error(error))
    }

    async fn propose_as_leader(&self, op: Op) -> Result<(), Status> {
        let command = prost::Message::encode_to_vec(&Command { op: Some(op), auth: None });
        self.node.propose_as_leader(command.into()).await.map_err(|error| self.raft_error(error))?;
        Ok(())
    }

    fn leases(&self) -> Vec<LeaseInfo> {
        self.store.leases()
    }

    fn lease_keys(&self, id: LeaseId) -> Vec<Bytes> {
        self.store.lease_keys(id)
    }

    fn election_timeout(&self) -> Duration {
        self.election_timeout
    }

    fn checkpoint_interval(&self) -> Option<Duration> {
        self.gates.is_on(Gate::LeaseCheckpoint).then_some(CHECKPOINT_INTERVAL)
    }

    fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }
}
