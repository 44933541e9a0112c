//! Consensus: one log on all members, applied to each one's store. openraft decides, and its types end here.
//!
//! ```text
//! Node            node.rs           what the server calls: propose, read_index, status, members
//!  ├ propose.rs                     batches of proposals, to the log or to the leader
//!  ├ read_index.rs                  linearizable reads
//!  ├ status.rs                      who leads
//!  ├ change.rs, membership.rs       changes of the membership: the rules, and carrying them out
//!  ├ campaign.rs                    time between campaigns that gave no leader
//!  ├ contact.rs                     who does not answer, for the log
//!  ├ heartbeat.rs                   says to the others that the leader is there
//!  ├ force_new.rs                   a cluster of one, when the majority is lost
//!  ├ restored.rs                     a cluster that begins with a state from elsewhere
//!  ├ roster.rs, removal.rs          the members as applied, and who was removed
//!  ├ members.rs                     who they are
//!  ├ meter.rs                       what is told to metrics
//!  ├ recovered.rs                   what a member finds when it starts
//!  ├ state_machine.rs               committed entries to the store
//!  ├ log/                           segment files, group commit, recovery
//!  ├ disk.rs                        what the log needs of a disk
//!  ├ runtime.rs                     where openraft's tasks run
//!  └ network/                       peers, replication, snapshots
//! ```
//!
//! Invariants:
//! - A proposal is answered when a quorum has synced it and this member has applied it.
//! - What is applied is in this member's log, and synced: the store is never ahead of the log.
//! - The log lets go only of what the store has made durable.
//! - A failed write or sync of the log stops the node; it is never tried again.

mod campaign;
mod change;
mod contact;
mod convert;
pub mod disk;
mod force_new;
#[cfg(fuzzing)]
pub mod fuzzing;
mod heartbeat;
mod log;
mod members;
mod membership;
mod meter;
mod network;
mod node;
mod propose;
mod read_index;
pub mod recovered;
mod removal;
pub mod restored;
mod roster;
mod runtime;
mod state_machine;
mod status;
mod types;

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use proto::{ClusterId, MemberId};

use self::disk::Disk;

pub use change::{Change, ChangePolicy};
pub use log::make as make_log;
pub use members::{Members, MembershipError};
pub use membership::ChangeError;
pub use meter::{LogWrite, Meter, PeerEvent};
pub use network::connect::{Connect, PeerChannel, PeerStream, Reach};
pub use node::Node;

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub id: MemberId,
    /// Empty until the member has started.
    pub name: String,
    pub peer_urls: Vec<String>,
    /// Empty until the member has started.
    pub client_urls: Vec<String>,
    pub is_learner: bool,
}

/// The size of a segment of the log, unless a single batch is larger. The store is flushed as often as a segment fills.
pub const SEGMENT_BYTES: u64 = 64 << 20;

pub struct Config {
    pub member: MemberId,
    pub cluster: ClusterId,
    /// The membership that a new cluster begins with: the same on all its members. Not looked at when there is a log.
    pub initial_members: Vec<Member>,
    /// The cluster runs already: `initial_members` are those to ask, and the leader tells the rest.
    pub is_joining: bool,
    /// Goes on alone with the data there is: all other members are removed.
    pub force_new_cluster: bool,
    /// Snapshots on their way stand in `member/snapshots` below it.
    pub data_dir: PathBuf,
    pub wal_dir: PathBuf,
    /// Where `wal_dir` is.
    pub disk: Arc<dyn Disk>,
    pub heartbeat: Duration,
    pub election_timeout: Duration,
    /// Entries between two looks at whether the log can be cut.
    pub snapshot_count: u64,
    /// How the other members are reached.
    pub reach: Reach,
    /// Log entries kept behind a flushed store, for followers that lag.
    pub catch_up_entries: u64,
    /// The log is synced after each write. Without that a crash of the machine may lose what was acknowledged.
    pub is_log_synced: bool,
    /// Of a segment of the log: [`SEGMENT_BYTES`] but in tests.
    pub segment_bytes: u64,
    pub meter: Arc<dyn Meter>,
}

/// An entry of the log. Those of members and leaders have no command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedEntry {
    /// Counts from 1.
    pub index: u64,
    pub term: u64,
    pub command: Option<Bytes>,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0}")]
    Damaged(String),
    #[error("{0}")]
    Io(String),
    #[error("{0}")]
    Config(String),
}

/// Why a proposal or a linearizable read has no answer. (A refusal by the rules is an outcome, and none of these.)
#[derive(Debug, Clone, thiserror::Error)]
pub enum RaftError {
    #[error("no leader")]
    NoLeader,
    /// A proposal's fate is unknown.
    #[error("timed out")]
    Timeout,
    /// A proposal's fate is unknown.
    #[error("leader changed")]
    LeaderChanged,
    #[error("stopped")]
    Stopped,
    #[error("too many requests")]
    Overloaded,
    #[error("not leader")]
    NotLeader,
    /// This node cannot go on.
    #[error("{0}")]
    Fatal(String),
}

/// A member's view of the cluster. Indexes count from 1; 0 is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    pub leader: Option<MemberId>,
    pub is_leader: bool,
    pub is_learner: bool,
    pub term: u64,
    pub last_log_index: u64,
    pub committed_index: u64,
    pub applied_index: u64,
    /// Why this node cannot go on.
    pub fatal: Option<String>,
    /// This member has been removed from the cluster, for ever.
    pub is_removed: bool,
}

/// What of a [`Status`] nearly every request asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    pub term: u64,
    pub has_leader: bool,
    pub is_leader: bool,
    pub is_learner: bool,
}

impl From<&Status> for Standing {
    fn from(status: &Status) -> Standing {
        Standing {
            term: status.term,
            has_leader: status.leader.is_some(),
            is_leader: status.is_leader,
            is_learner: status.is_learner,
        }
    }
}

/// Answers what other members ask this one as the leader; requests and answers are in the encoding of its owner.
#[tonic::async_trait]
pub trait LeaderHandler: Send + Sync + 'static {
    async fn handle(&self, request: Bytes) -> Result<Bytes, tonic::Status>;
}
