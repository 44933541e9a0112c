//! What a member finds when it starts: its log and its store, without taking part in a cluster. For tests that ask what
//! a crash has left.

use std::{path::Path, sync::Arc};

use openraft::{RaftLogReader as _, storage::RaftLogStorage as _, vote::RaftLeaderId as _};
use storage::{LogEntry, Store};

use crate::{
    StartError,
    disk::FileSystem,
    log::{Folder, Log},
    node::check_fit,
    state_machine::{roster_of, to_log_entry},
    types::{LogId, position},
};

/// An entry's term and index; indexes count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    pub term: u64,
    pub index: u64,
}

/// Whom a member has promised itself to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ballot {
    pub term: u64,
    pub member: u64,
    /// The member leads, and is no mere candidate.
    pub is_leader: bool,
}

/// A log, as it was read from its files.
#[derive(Debug)]
pub struct Recovered {
    pub ballot: Option<Ballot>,
    /// Entries up to here are gone.
    pub purged: Option<EntryId>,
    /// What the log knows to be committed.
    pub committed: Option<EntryId>,
    /// Where the log ends, with the entries it has let go.
    pub last: Option<EntryId>,
    /// All that the log holds.
    pub ids: Vec<EntryId>,
    /// Those that the store has not applied, to be applied to it.
    pub unapplied: Vec<LogEntry>,
}

/// Reads the log in `wal_dir` as [`crate::Node::start`] does, and checks that it fits to `store`.
///
/// # Errors
/// Those with which a member refuses to start.
pub async fn read(data_dir: &Path, wal_dir: &Path, segment_bytes: u64, store: &Store) -> Result<Recovered, StartError> {
    let folder = Folder { disk: Arc::new(FileSystem), path: wal_dir.into(), segment_bytes };
    let mut log = Log::open(folder, Arc::new(()), true)?;
    check_fit(&log, store, data_dir)?;
    let io = |error: std::io::Error| StartError::Io(error.to_string());
    let applied = store.applied();
    let mut roster = Arc::new(roster_of(&applied).map_err(io)?);
    let state = log.get_log_state().await.map_err(io)?;
    let first = state.last_purged_log_id.map_or(0, |id| id.index + 1);
    let entries = log.try_get_log_entries(first..).await.map_err(io)?;
    let ids = entries.iter().map(|entry| id_of(&entry.log_id)).collect();
    let unapplied = entries.into_iter().filter(|entry| position(entry.log_id.index) > applied.index);
    Ok(Recovered {
        ballot: log.read_vote().await.map_err(io)?.map(|vote| Ballot {
            term: vote.leader_id.term(),
            member: *vote.leader_id.node_id(),
            is_leader: vote.committed,
        }),
        purged: state.last_purged_log_id.as_ref().map(id_of),
        committed: log.read_committed().await.map_err(io)?.as_ref().map(id_of),
        last: state.last_log_id.as_ref().map(id_of),
        ids,
        unapplied: unapplied.map(|entry| to_log_entry(entry, &mut roster)).collect(),
    })
}

fn id_of(id: &LogId) -> EntryId {
    EntryId { term: id.leader_id.term, index: position(id.index) }
}
