//! A cluster of one out of a member's data, when the majority is lost for good (`--force-new-cluster`).
//!
//! The log gets one more entry: a membership with this member alone, in a term of its own. It counts from the moment it
//! is in the log, so that the member elects itself, commits all that it has, and goes on. The cluster keeps its id. All
//! others are removed thereby, and their ids refused for ever: one that comes back with the old log finds no ear.
//!
//! Source: etcd, `server/etcdserver/bootstrap.go` (bootstrapRaftFromWAL with ForceNewCluster). etcd drops entries that
//! are not known to be committed; here they stay, since a client may have been told of them.

use std::collections::{BTreeMap, BTreeSet};

use openraft::{
    RaftLogReader as _,
    entry::RaftEntry as _,
    storage::{RaftLogStorage as _, RaftLogStorageExt as _},
};

use crate::{
    StartError,
    log::Log,
    roster::Roster,
    types::{Entry, Membership, Payload, Vote, log_id},
};

/// Makes `member` the only one, unless it is. `applied` are the members that the store knows of.
pub async fn keep_only(log: &mut Log, applied: &Roster, member: u64) -> Result<(), StartError> {
    let io = |error: std::io::Error| StartError::Io(error.to_string());
    // Without data this is a new member like any other.
    let Some(last) = log.end() else { return Ok(()) };
    let newest = newest_membership(log, applied).await.map_err(io)?;
    let Some(own) = newest.get_node(&member).cloned() else {
        let reason =
            format!("--force-new-cluster: member {member:x} is not part of the cluster that its data describes");
        return Err(StartError::Config(reason));
    };
    let is_alone = newest.nodes().count() == 1 && newest.voter_ids().eq([member]);
    if is_alone {
        return Ok(());
    }
    let vote = log.read_vote().await.map_err(io)?;
    let term = vote.map_or(0, |vote| vote.leader_id.term).max(last.leader_id.term) + 1;
    let alone = Membership::new(vec![BTreeSet::from([member])], BTreeMap::from([(member, own)]));
    let alone = alone.map_err(|error| StartError::Config(error.to_string()))?;
    let entry = Entry::new(log_id(term, last.index + 1), Payload::Membership(alone));
    log.save_vote(&Vote::new(term, member)).await.map_err(io)?;
    log.blocking_append([entry]).await.map_err(|error| StartError::Io(error.to_string()))?;
    let removed = newest.nodes().filter(|(id, _)| **id != member).map(|(id, _)| format!("{id:x}"));
    tracing::warn!(removed = removed.collect::<Vec<_>>().join(","), "this member goes on alone, as a new cluster");
    Ok(())
}

/// What counts when the node starts: the last membership in the log, or what has been applied.
async fn newest_membership(log: &mut Log, applied: &Roster) -> Result<Membership, std::io::Error> {
    let mut newest = applied.membership().clone();
    let purged = log.purged().map_or(0, |id| id.index + 1);
    let mut next = applied.stored.log_id().map_or(purged, |id| purged.max(id.index + 1));
    loop {
        let entries = log.limited_get_log_entries(next, u64::MAX).await?;
        let Some(last) = entries.last() else { return Ok(newest) };
        next = last.log_id.index + 1;
        for entry in entries {
            if let Payload::Membership(membership) = entry.payload {
                newest = membership;
            }
        }
    }
}
