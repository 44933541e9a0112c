//! The membership as it has been applied, and who was removed: what the store keeps, and what is told outside.
//!
//! Raft itself goes by the newest membership in its log, applied or not; a client is told of what cannot be undone any
//! more. Ids of removed members are kept for ever, as in etcd (`api/membership/storev2.go`, the removed members): a
//! member that comes back from before its removal must not count.

use std::collections::BTreeSet;

use bytes::Bytes;
use prost::Message;
use proto::peer;

use crate::{
    convert::{Malformed, stored_from_wire, stored_to_wire},
    types::{Membership, Peer, StoredMembership},
};

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Roster {
    pub stored: StoredMembership,
    pub removed: BTreeSet<u64>,
}

impl Roster {
    /// Reads what [`Self::to_bytes`] wrote; no bytes: no membership yet.
    pub fn from_bytes(bytes: &[u8]) -> Result<Roster, Malformed> {
        if bytes.is_empty() {
            return Ok(Roster::default());
        }
        let stored = peer::StoredMembership::decode(bytes).map_err(|_| Malformed("the stored membership"))?;
        let removed = stored.removed.iter().copied().collect();
        Ok(Roster { stored: stored_from_wire(stored)?, removed })
    }

    /// What the store keeps: opaque there.
    pub fn to_bytes(&self) -> Bytes {
        let removed = self.removed.iter().copied().collect();
        peer::StoredMembership { removed, ..stored_to_wire(&self.stored) }.encode_to_vec().into()
    }

    /// The roster behind the entry that `stored` stands in.
    pub fn then(&self, stored: StoredMembership) -> Roster {
        let gone = self.membership().nodes().map(|(id, _)| *id).filter(|id| stored.membership().get_node(id).is_none());
        let removed = self.removed.iter().copied().chain(gone).collect();
        Roster { stored, removed }
    }

    pub fn membership(&self) -> &Membership {
        self.stored.membership()
    }

    /// The members that count as voters outside: those that join as such, too.
    pub fn voting(&self) -> BTreeSet<u64> {
        let membership = self.membership();
        membership.nodes().filter(|(id, peer)| is_voting(membership, **id, peer)).map(|(id, _)| *id).collect()
    }
}

/// Whether a member is told outside to be a voter.
pub fn is_voting(membership: &Membership, id: u64, peer: &Peer) -> bool {
    peer.joins_as_voter || membership.voter_ids().any(|voter| voter == id)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::types::log_id;

    fn stored(index: u64, ids: &[u64]) -> StoredMembership {
        let nodes: BTreeMap<u64, Peer> = ids.iter().map(|id| (*id, Peer::default())).collect();
        let membership = Membership::new(vec![ids.iter().copied().collect()], nodes).unwrap();
        StoredMembership::new(Some(log_id(1, index)), membership)
    }

    #[test]
    fn who_is_removed_is_kept_for_ever() {
        let roster = Roster::default().then(stored(0, &[1, 2, 3])).then(stored(5, &[1, 2])).then(stored(9, &[1, 4]));
        assert_eq!(roster.removed, BTreeSet::from([2, 3]));
        assert_eq!(Roster::from_bytes(&roster.to_bytes()).unwrap(), roster);
    }

    #[test]
    fn a_member_that_joins_as_a_voter_is_told_to_be_one() {
        let nodes = BTreeMap::from([
            (1, Peer::default()),
            (2, Peer { joins_as_voter: true, ..Peer::default() }),
            (3, Peer::default()),
        ]);
        let membership = Membership::new(vec![BTreeSet::from([1])], nodes).unwrap();
        let roster = Roster::default().then(StoredMembership::new(None, membership));
        assert_eq!(roster.voting(), BTreeSet::from([1, 2]));
    }
}
