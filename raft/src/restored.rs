//! A cluster that begins with a state that came from elsewhere, from a backup or another store.
//!
//! To Raft it is as if a snapshot had been installed that ends at the first entry: the one with the first membership,
//! which all members have in common. The log begins behind it. A member that comes without the state is thereby sent a
//! snapshot, and never the log alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use openraft::storage::RaftLogStorage as _;
use proto::MemberId;
use storage::Applied;

use crate::{
    Member, StartError,
    log::{Folder, Log},
    node::peer_of,
    roster::Roster,
    state_machine::applied_id,
    types::{Membership, Peer, StoredMembership, Vote, log_id, position},
};

const TERM: u64 = 1;
const INDEX: u64 = 0;

/// The place in the log that the state of each of these members has.
pub fn first_state(members: &[Member]) -> Result<Applied, StartError> {
    let peers: BTreeMap<u64, Peer> = members.iter().map(peer_of).collect();
    let voters: BTreeSet<u64> = peers.keys().copied().collect();
    let membership = Membership::new(vec![voters], peers).map_err(|error| StartError::Config(error.to_string()))?;
    let stored = StoredMembership::new(Some(log_id(TERM, INDEX)), membership);
    let membership = Roster { stored, ..Roster::default() }.to_bytes();
    Ok(Applied { index: position(INDEX), term: TERM, membership })
}

/// Makes the log of `member`, whose state has the place `applied`, in a folder that is empty. Returns once it is on the
/// disk.
pub async fn begin_log(wal_dir: &Path, member: MemberId, applied: &Applied) -> Result<(), StartError> {
    let io = |error: std::io::Error| StartError::Io(error.to_string());
    let first = applied_id(applied).expect("a first state has a place in the log");
    let mut log = Log::open(Folder::of(wal_dir), Arc::new(()), true)?;
    log.note_installation(first).await?;
    log.purge(first).await.map_err(io)?;
    // Nobody leads in that term any more.
    log.save_vote(&Vote::new(TERM, member.0)).await.map_err(io)
}
