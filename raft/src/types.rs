//! openraft, told what Pintle's entries, members and answers are. Nothing of this leaves the crate.
//!
//! openraft counts log entries from 0; etcd, and so everything outside this crate, from 1. [`position`] is the one way
//! from here to there.

use std::fmt;

use bytes::Bytes;
use proto::command::Outcome;

openraft::declare_raft_types!(
    /// Standard Raft: at most one leader in a term, so that a term names its leader, as clients of etcd expect.
    pub TypeConfig:
        D = Command,
        R = Outcome,
        NodeId = u64,
        Node = Peer,
        LeaderId = openraft::impls::leader_id_std::LeaderId<Self::Term, Self::NodeId>,
        AsyncRuntime = crate::runtime::Runtime,
);

pub type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub type Vote = openraft::alias::VoteOf<TypeConfig>;
pub type Entry = openraft::alias::EntryOf<TypeConfig>;
pub type Payload = openraft::alias::PayloadOf<TypeConfig>;
pub type Membership = openraft::Membership<u64, Peer>;
pub type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
pub type Snapshot = openraft::alias::SnapshotOf<TypeConfig, crate::state_machine::SnapshotData>;
pub type Raft = openraft::Raft<TypeConfig, crate::state_machine::StateMachine>;

/// The id of an entry.
pub fn log_id(term: u64, index: u64) -> LogId {
    LogId { leader_id: term.into(), index }
}

/// An entry's place as it is counted outside: from 1 on.
pub fn position(index: u64) -> u64 {
    index + 1
}

/// The number of entries up to and with this one.
pub fn position_of(id: Option<&LogId>) -> u64 {
    id.map_or(0, |id| position(id.index))
}

/// An encoded `command::Command`.
#[derive(Clone, PartialEq)]
pub struct Command(pub Bytes);

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command of {} bytes", self.0.len())
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What Raft knows of a member besides its id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    pub name: String,
    pub urls: Vec<String>,
    /// Counts for a learner only: it was added as a voter, and becomes one when it has caught up.
    pub joins_as_voter: bool,
}
