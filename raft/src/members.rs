//! The members, as clients know them: the membership that Raft holds, with what each member said of itself.

use std::collections::BTreeMap;

use proto::{MemberId, command::MemberAttributes};
use storage::Applied;

use crate::{
    Member,
    convert::Malformed,
    roster::{Roster, is_voting},
    types::Membership,
};

/// Who is a member, and who was removed, in order of ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Members {
    pub members: Vec<Member>,
    pub removed: Vec<MemberId>,
}

/// The membership in the store is not what Raft has written there.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct MembershipError(#[from] Malformed);

impl Members {
    /// As a state of the store has them.
    pub fn of(applied: &Applied, said: Vec<MemberAttributes>) -> Result<Members, MembershipError> {
        let roster = Roster::from_bytes(&applied.membership)?;
        let removed = roster.removed.iter().copied().map(MemberId).collect();
        Ok(Members { members: join(roster.membership(), said), removed })
    }
}

/// In order of ids.
pub(crate) fn join(membership: &Membership, said: Vec<MemberAttributes>) -> Vec<Member> {
    let mut said: BTreeMap<u64, MemberAttributes> = said.into_iter().map(|member| (member.id, member)).collect();
    let mut members: Vec<Member> = membership
        .nodes()
        .map(|(id, peer)| {
            let said = said.remove(id).unwrap_or_default();
            Member {
                id: MemberId(*id),
                name: said.name,
                peer_urls: peer.urls.clone(),
                client_urls: said.client_urls,
                is_learner: !is_voting(membership, *id, peer),
            }
        })
        .collect();
    members.sort_by_key(|member| member.id);
    members
}
