//! Between openraft's types and those of the wire and the store.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use openraft::{EntryPayload, entry::RaftEntry, vote::RaftLeaderId};
use prost::Message;
use proto::peer;

use crate::types::{Command, Entry, LogId, Membership, Peer, StoredMembership, Vote, log_id};

/// A message that does not say what it has to.
#[derive(Debug, thiserror::Error)]
#[error("malformed message: {0}")]
pub struct Malformed(pub &'static str);

impl From<Malformed> for tonic::Status {
    fn from(malformed: Malformed) -> Self {
        tonic::Status::invalid_argument(malformed.to_string())
    }
}

pub fn id_to_wire(id: &LogId) -> peer::LogId {
    peer::LogId { term: id.leader_id.term, index: id.index }
}

pub fn id_from_wire(id: peer::LogId) -> LogId {
    log_id(id.term, id.index)
}

pub fn vote_to_wire(vote: &Vote) -> peer::Ballot {
    peer::Ballot { term: vote.leader_id.term(), member: *vote.leader_id.node_id(), committed: vote.committed }
}

pub fn vote_from_wire(ballot: Option<peer::Ballot>) -> Result<Vote, Malformed> {
    let ballot = ballot.ok_or(Malformed("no vote"))?;
    Ok(match ballot.committed {
        true => Vote::new_committed(ballot.term, ballot.member),
        false => Vote::new(ballot.term, ballot.member),
    })
}

pub fn entry_to_wire(entry: Entry) -> peer::Entry {
    let payload = match entry.payload {
        EntryPayload::Blank => None,
        EntryPayload::Normal(command) => Some(peer::entry::Payload::Command(command.0)),
        EntryPayload::Membership(membership) => Some(peer::entry::Payload::Membership(membership_to_wire(&membership))),
    };
    peer::Entry { id: Some(id_to_wire(&entry.log_id)), payload }
}

pub fn entry_from_wire(entry: peer::Entry) -> Result<Entry, Malformed> {
    let id = id_from_wire(entry.id.ok_or(Malformed("an entry without id"))?);
    let payload = match entry.payload {
        None => EntryPayload::Blank,
        Some(peer::entry::Payload::Command(bytes)) => EntryPayload::Normal(Command(bytes)),
        Some(peer::entry::Payload::Membership(membership)) => {
            EntryPayload::Membership(membership_from_wire(membership)?)
        }
    };
    Ok(Entry::new(id, payload))
}

pub fn membership_to_wire(membership: &Membership) -> peer::Membership {
    let configs = membership
        .get_joint_config()
        .iter()
        .map(|voters| peer::membership::Config { voters: voters.iter().copied().collect() })
        .collect();
    let members = membership
        .nodes()
        .map(|(&id, node)| peer::membership::Member { id, name: node.name.clone(), peer_urls: node.urls.clone() })
        .collect();
    peer::Membership { configs, members }
}

pub fn membership_from_wire(membership: peer::Membership) -> Result<Membership, Malformed> {
    let configs: Vec<BTreeSet<u64>> =
        membership.configs.into_iter().map(|config| config.voters.into_iter().collect()).collect();
    let nodes: BTreeMap<u64, Peer> = membership
        .members
        .into_iter()
        .map(|member| (member.id, Peer { name: member.name, urls: member.peer_urls }))
        .collect();
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes).map_err(|_| Malformed("a membership whose voters are not members"))
}

pub fn stored_to_wire(stored: &StoredMembership) -> peer::StoredMembership {
    peer::StoredMembership {
        id: stored.log_id().as_ref().map(id_to_wire),
        membership: Some(membership_to_wire(stored.membership())),
    }
}

pub fn stored_from_wire(stored: peer::StoredMembership) -> Result<StoredMembership, Malformed> {
    let membership = membership_from_wire(stored.membership.unwrap_or_default())?;
    Ok(StoredMembership::new(stored.id.map(id_from_wire), membership))
}

/// What the store keeps as the membership: opaque there.
pub fn stored_to_bytes(stored: &StoredMembership) -> Bytes {
    stored_to_wire(stored).encode_to_vec().into()
}

/// Reads what [`stored_to_bytes`] wrote; no bytes: no membership yet.
pub fn stored_from_bytes(bytes: &[u8]) -> Result<StoredMembership, Malformed> {
    if bytes.is_empty() {
        return Ok(StoredMembership::default());
    }
    let stored = peer::StoredMembership::decode(bytes).map_err(|_| Malformed("the stored membership"))?;
    stored_from_wire(stored)
}
