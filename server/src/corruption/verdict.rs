//! Who is odd, given the hashes: without a clock, a network or a store.
//! Source: etcd, `server/etcdserver/corrupt.go` (PeriodicCheck, checkPeerHashes).

use std::collections::BTreeMap;

use proto::MemberId;
use storage::HashKv;

/// What is wrong with a member's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The leader has got two hashes of one state.
    LeaderChanged,
    /// A follower is ahead of the leader.
    RevisionAhead,
    CompactRevisionAhead,
    HashDiffers,
}

/// What contradicts what, when the leader's hash was taken before and after the others' were asked for at the revision
/// of the first; the current revision in `after` is read behind a barrier.
pub fn periodic(
    leader: MemberId,
    before: HashKv,
    after: HashKv,
    followers: &[(MemberId, HashKv)],
) -> Vec<(MemberId, Fault)> {
    let mut faults = Vec::new();
    let is_same_state =
        after.hash_revision == before.hash_revision && after.compact_revision == before.compact_revision;
    if is_same_state && after.hash != before.hash {
        faults.push((leader, Fault::LeaderChanged));
    }
    for &(member, hash) in followers {
        if hash.revision > after.revision {
            faults.push((member, Fault::RevisionAhead));
        }
        if hash.compact_revision > after.compact_revision {
            faults.push((member, Fault::CompactRevisionAhead));
        }
        if hash.compact_revision == before.compact_revision && hash.hash != before.hash {
            faults.push((member, Fault::HashDiffers));
        }
    }
    faults
}

/// What members had at one compaction.
#[derive(Debug, PartialEq, Eq)]
pub enum Compared {
    /// All that answered have the leader's hash; whether all did.
    Same { is_everyone: bool },
    /// More than half have one hash; these have others.
    Odd(BTreeMap<u32, Vec<MemberId>>),
    /// There are several, and none is that of more than half: all of them.
    Undecided(BTreeMap<u32, Vec<MemberId>>),
}

/// `followers` holds all of them; None for one that did not answer, or not about this compaction.
pub fn compaction(leader: MemberId, hash: u32, followers: &[(MemberId, Option<u32>)]) -> Compared {
    let mut members = BTreeMap::from([(hash, vec![leader])]);
    for &(member, answered) in followers {
        if let Some(hash) = answered {
            members.entry(hash).or_default().push(member);
        }
    }
    if members.len() == 1 {
        return Compared::Same { is_everyone: followers.iter().all(|(_, hash)| hash.is_some()) };
    }
    let quorum = (followers.len() + 1) / 2 + 1;
    let majority = members.iter().find(|(_, members)| members.len() >= quorum).map(|(hash, _)| *hash);
    match majority {
        Some(hash) => {
            members.remove(&hash);
            Compared::Odd(members)
        }
        None => Compared::Undecided(members),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: HashKv = HashKv { hash: 1, revision: 10, hash_revision: 10, compact_revision: 5 };
    const ID: [MemberId; 5] = [MemberId(1), MemberId(2), MemberId(3), MemberId(4), MemberId(5)];

    fn faults(after: HashKv, follower: HashKv) -> Vec<(MemberId, Fault)> {
        periodic(ID[0], HASH, after, &[(ID[1], HASH), (ID[2], follower)])
    }

    #[test]
    fn the_same_data_is_no_fault_however_far_the_leader_has_come() {
        assert_eq!(faults(HASH, HASH), []);
        let later = HashKv { hash: 2, revision: 12, hash_revision: 12, ..HASH };
        assert_eq!(faults(later, HashKv { revision: 12, ..HASH }), []);
        // Another compaction in between: the hashes say nothing.
        assert_eq!(faults(HashKv { compact_revision: 7, ..HASH }, HashKv { compact_revision: 7, hash: 9, ..HASH }), []);
    }

    #[test]
    fn the_odd_one_is_named() {
        assert_eq!(faults(HASH, HashKv { hash: 2, ..HASH }), [(ID[2], Fault::HashDiffers)]);
        assert_eq!(faults(HASH, HashKv { revision: 11, ..HASH }), [(ID[2], Fault::RevisionAhead)]);
        assert_eq!(faults(HASH, HashKv { compact_revision: 6, ..HASH }), [(ID[2], Fault::CompactRevisionAhead)]);
        assert_eq!(faults(HashKv { hash: 2, ..HASH }, HASH), [(ID[0], Fault::LeaderChanged)]);
    }

    fn compare(hashes: &[u32], absent: usize) -> Compared {
        let mut followers: Vec<(MemberId, Option<u32>)> =
            hashes[1..].iter().enumerate().map(|(i, hash)| (ID[i + 1], Some(*hash))).collect();
        followers.extend((0..absent).map(|i| (ID[4 - i], None)));
        compaction(ID[0], hashes[0], &followers)
    }

    #[test]
    fn at_a_compaction_the_majority_is_right() {
        assert_eq!(compare(&[7, 7, 7], 0), Compared::Same { is_everyone: true });
        assert_eq!(compare(&[7, 7], 1), Compared::Same { is_everyone: false });
        assert_eq!(compare(&[7, 7, 8], 0), Compared::Odd(BTreeMap::from([(8, vec![ID[2]])])));
        // The leader itself, too.
        assert_eq!(compare(&[8, 7, 7], 0), Compared::Odd(BTreeMap::from([(8, vec![ID[0]])])));
        assert_eq!(compare(&[7, 7, 7, 8, 9], 0), Compared::Odd(BTreeMap::from([(8, vec![ID[3]]), (9, vec![ID[4]])])));
    }

    #[test]
    fn without_a_majority_nobody_is_right() {
        let both = BTreeMap::from([(7, vec![ID[0]]), (8, vec![ID[1]])]);
        assert_eq!(compare(&[7, 8], 0), Compared::Undecided(both));
        // Those that did not answer count as members.
        let three = BTreeMap::from([(7, vec![ID[0], ID[1]]), (8, vec![ID[2]])]);
        assert_eq!(compare(&[7, 7, 8], 2), Compared::Undecided(three));
    }
}
