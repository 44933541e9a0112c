//! Between openraft's types and those of the wire and the store.

use std::collections::{BTreeMap, BTreeSet};

use openraft::{EntryPayload, entry::RaftEntry, vote::RaftLeaderId};
use proto::{MemberId, peer};

use crate::{
    change::{Change, ChangePolicy},
    types::{Command, Entry, LogId, Membership, Peer, StoredMembership, Vote, log_id},
};

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
    let members = membership.nodes().map(|(&id, node)| member_to_wire(id, node)).collect();
    peer::Membership { configs, members }
}

pub fn member_to_wire(id: u64, peer: &Peer) -> peer::membership::Member {
    let Peer { name, urls, joins_as_voter } = peer.clone();
    peer::membership::Member { id, name, peer_urls: urls, joins_as_voter }
}

pub fn member_from_wire(member: peer::membership::Member) -> (u64, Peer) {
    (member.id, Peer { name: member.name, urls: member.peer_urls, joins_as_voter: member.joins_as_voter })
}

pub fn membership_from_wire(membership: peer::Membership) -> Result<Membership, Malformed> {
    let configs: Vec<BTreeSet<u64>> =
        membership.configs.into_iter().map(|config| config.voters.into_iter().collect()).collect();
    let nodes: BTreeMap<u64, Peer> = membership.members.into_iter().map(member_from_wire).collect();
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes).map_err(|_| Malformed("a membership whose voters are not members"))
}

pub fn stored_to_wire(stored: &StoredMembership) -> peer::StoredMembership {
    peer::StoredMembership {
        id: stored.log_id().as_ref().map(id_to_wire),
        membership: Some(membership_to_wire(stored.membership())),
        removed: Vec::new(),
    }
}

pub fn stored_from_wire(stored: peer::StoredMembership) -> Result<StoredMembership, Malformed> {
    let membership = membership_from_wire(stored.membership.unwrap_or_default())?;
    Ok(StoredMembership::new(stored.id.map(id_from_wire), membership))
}

pub fn change_to_wire(change: &Change, policy: ChangePolicy) -> peer::ChangeMembersRequest {
    use peer::change_members_request::Change as Wire;
    let member = |id: MemberId, urls: &[String]| peer::membership::Member {
        id: id.0,
        peer_urls: urls.to_vec(),
        ..Default::default()
    };
    let change = match change {
        Change::AddVoter { id, peer_urls } => Wire::AddVoter(member(*id, peer_urls)),
        Change::AddLearner { id, peer_urls } => Wire::AddLearner(member(*id, peer_urls)),
        Change::Remove(id) => Wire::Remove(id.0),
        Change::Promote(id) => Wire::Promote(id.0),
        Change::Update { id, peer_urls } => Wire::Update(member(*id, peer_urls)),
    };
    let learners_max = u32::try_from(policy.learners_max).unwrap_or(u32::MAX);
    peer::ChangeMembersRequest { change: Some(change), is_strict: policy.is_strict, learners_max }
}

pub fn change_from_wire(request: peer::ChangeMembersRequest) -> Result<(Change, ChangePolicy), Malformed> {
    use peer::change_members_request::Change as Wire;
    let policy = ChangePolicy { is_strict: request.is_strict, learners_max: request.learners_max as usize };
    let change = match request.change.ok_or(Malformed("no change"))? {
        Wire::AddVoter(member) => Change::AddVoter { id: MemberId(member.id), peer_urls: member.peer_urls },
        Wire::AddLearner(member) => Change::AddLearner { id: MemberId(member.id), peer_urls: member.peer_urls },
        Wire::Remove(id) => Change::Remove(MemberId(id)),
        Wire::Promote(id) => Change::Promote(MemberId(id)),
        Wire::Update(member) => Change::Update { id: MemberId(member.id), peer_urls: member.peer_urls },
    };
    Ok((change, policy))
}
