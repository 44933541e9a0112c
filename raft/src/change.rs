//! Changes of the membership, as the leader makes them: one at a time, each one entry of the log, and by etcd's rules.
//!
//! Voters differ by one at most from one membership to the next, so that any two majorities meet without a joint state
//! (Raft dissertation, section 4.1). In Raft a membership counts from the moment it is in the log; a voter that has not
//! started yet would then stand in the way of its own entry. So who is added as a voter is a learner to Raft, told
//! outside to be a voter, until it has caught up: see [`crate::membership`].
//!
//! Source of the rules: etcd, `server/etcdserver/server.go` (mayAddMember, mayRemoveMember, isLearnerReady),
//! `api/membership/cluster.go` (IsReadyTo…, ValidateConfigurationChange).

use std::collections::{BTreeMap, BTreeSet};

use openraft::ChangeMembers;
use proto::{EtcdError, MemberId};
use storage::planted;

use crate::{
    roster::{Roster, is_voting},
    types::{Membership, Peer},
};

/// A learner is ready when it has this part of the leader's log. (etcd: `readyPercentThreshold`.)
const READY_PERCENT: u64 = 90;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    AddVoter {
        id: MemberId,
        peer_urls: Vec<String>,
    },
    AddLearner {
        id: MemberId,
        peer_urls: Vec<String>,
    },
    Remove(MemberId),
    /// A learner becomes a voter.
    Promote(MemberId),
    Update {
        id: MemberId,
        peer_urls: Vec<String>,
    },
}

/// What the member that was asked is configured to allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangePolicy {
    /// Refuse what would leave the cluster without a working majority. (`--strict-reconfig-check`)
    pub is_strict: bool,
    /// (`--max-learners`)
    pub learners_max: usize,
}

/// What the leader knows when it decides.
#[derive(Debug, Default)]
pub struct View {
    pub local: u64,
    pub roster: Roster,
    /// Members that have said their names.
    pub started: BTreeSet<u64>,
    /// Members that answer, this one among them.
    pub active: BTreeSet<u64>,
    /// Entries that each member is known to have.
    pub matched: BTreeMap<u64, u64>,
    /// Entries that the leader has.
    pub last: u64,
}

/// How a change goes into the log.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// This membership is the next one.
    Append(Membership),
    /// The same voters, with other words about a member.
    Set(ChangeMembers<u64, Peer>),
}

impl View {
    /// The step that makes `change` so, or the refusal.
    pub fn plan(&self, change: &Change, policy: ChangePolicy) -> Result<Step, EtcdError> {
        if let Change::Promote(id) = change {
            self.check_ready(id.0)?;
        }
        if policy.is_strict {
            self.check_quorum(change)?;
        }
        match change {
            Change::AddVoter { id, peer_urls } => self.add(*id, peer_urls, true),
            Change::AddLearner { id, peer_urls } => {
                let step = self.add(*id, peer_urls, false)?;
                if self.learners() < policy.learners_max { Ok(step) } else { Err(EtcdError::TooManyLearners) }
            }
            Change::Remove(id) => self.remove(id.0),
            Change::Promote(id) => self.promote(id.0),
            Change::Update { id, peer_urls } => self.update(id.0, peer_urls),
        }
    }

    /// The step that makes a member a voter that was added as one and has caught up.
    pub fn seat(&self, id: u64) -> Option<Step> {
        let mut voters = self.voters();
        (self.peer(id).is_some() && voters.insert(id)).then(|| self.append(voters, self.peers()))
    }

    fn add(&self, id: MemberId, peer_urls: &[String], joins_as_voter: bool) -> Result<Step, EtcdError> {
        self.check_new(id, peer_urls)?;
        let mut peers = self.peers();
        peers.insert(id.0, Peer { name: String::new(), urls: peer_urls.to_vec(), joins_as_voter });
        let mut voters = self.voters();
        if joins_as_voter && planted!(MembershipAppliedEarly) {
            voters.insert(id.0);
        }
        Ok(self.append(voters, peers))
    }

    fn check_new(&self, id: MemberId, peer_urls: &[String]) -> Result<(), EtcdError> {
        if self.roster.removed.contains(&id.0) {
            return Err(EtcdError::MemberNotFound);
        }
        if self.peer(id.0).is_some() {
            return Err(EtcdError::MemberExist);
        }
        self.check_urls(id.0, peer_urls)
    }

    fn check_urls(&self, of: u64, peer_urls: &[String]) -> Result<(), EtcdError> {
        let taken = |url: &String| {
            self.roster.membership().nodes().any(|(id, peer)| *id != of && peer.urls.iter().any(|other| other == url))
        };
        if peer_urls.iter().any(taken) { Err(EtcdError::PeerURLExist) } else { Ok(()) }
    }

    fn remove(&self, id: u64) -> Result<Step, EtcdError> {
        self.peer(id).ok_or(EtcdError::MemberNotFound)?;
        let (mut voters, mut peers) = (self.voters(), self.peers());
        voters.remove(&id);
        peers.remove(&id);
        if voters.is_empty() {
            return Err(EtcdError::MemberNotEnoughStarted);
        }
        Ok(self.append(voters, peers))
    }

    fn promote(&self, id: u64) -> Result<Step, EtcdError> {
        let peer = self.peer(id).ok_or(EtcdError::MemberNotFound)?;
        if is_voting(self.roster.membership(), id, peer) {
            return Err(EtcdError::MemberNotLearner);
        }
        self.seat(id).ok_or(EtcdError::MemberNotLearner)
    }

    fn update(&self, id: u64, peer_urls: &[String]) -> Result<Step, EtcdError> {
        let peer = self.peer(id).ok_or(EtcdError::MemberNotFound)?;
        self.check_urls(id, peer_urls)?;
        let peer = Peer { urls: peer_urls.to_vec(), ..peer.clone() };
        Ok(Step::Set(ChangeMembers::SetNodes(BTreeMap::from([(id, peer)]))))
    }

    /// Refuses what could leave too few members at work.
    fn check_quorum(&self, change: &Change) -> Result<(), EtcdError> {
        let voting = self.roster.voting();
        let started = voting.intersection(&self.started).count();
        let active = voting.intersection(&self.active).count();
        match change {
            Change::AddVoter { .. } | Change::AddLearner { .. } => {
                let is_voter = matches!(change, Change::AddVoter { .. });
                // A lone member may always get company.
                let is_growing_from_one = started == 1 && voting.len() == 1;
                if is_voter && !is_growing_from_one && started < quorum(voting.len() + 1) {
                    return Err(EtcdError::MemberNotEnoughStarted);
                }
                if voting.len() > 1 && active < quorum(voting.len() + 1) {
                    return Err(EtcdError::Unhealthy);
                }
            }
            Change::Remove(id) => {
                if self.peer(id.0).is_some() && !voting.contains(&id.0) {
                    return Ok(());
                }
                let left = voting.iter().filter(|other| **other != id.0).count();
                let left_started =
                    voting.iter().filter(|other| **other != id.0 && self.started.contains(other)).count();
                if left_started < quorum(left) {
                    return Err(EtcdError::MemberNotEnoughStarted);
                }
                // Who is down has no part in the majority that works.
                let is_active = id.0 == self.local || self.active.contains(&id.0);
                if is_active && active - 1 < 1 + (voting.len() - 1) / 2 {
                    return Err(EtcdError::Unhealthy);
                }
            }
            // It counts as started: it has the log.
            Change::Promote(_) if started + 1 < quorum(voting.len() + 1) => {
                return Err(EtcdError::MemberNotEnoughStarted);
            }
            Change::Promote(_) | Change::Update { .. } => {}
        }
        Ok(())
    }

    /// Whether a learner has nearly the whole log.
    fn check_ready(&self, id: u64) -> Result<(), EtcdError> {
        self.peer(id).ok_or(EtcdError::MemberNotFound)?;
        let matched = if id == self.local { self.last } else { self.matched.get(&id).copied().unwrap_or(0) };
        match matched * 100 < self.last * READY_PERCENT {
            true => Err(EtcdError::LearnerNotReady),
            false => Ok(()),
        }
    }

    fn learners(&self) -> usize {
        self.roster.membership().nodes().count() - self.roster.voting().len()
    }

    fn peer(&self, id: u64) -> Option<&Peer> {
        self.roster.membership().get_node(&id)
    }

    fn voters(&self) -> BTreeSet<u64> {
        self.roster.membership().voter_ids().collect()
    }

    fn peers(&self) -> BTreeMap<u64, Peer> {
        self.roster.membership().nodes().map(|(id, peer)| (*id, peer.clone())).collect()
    }

    fn append(&self, voters: BTreeSet<u64>, peers: BTreeMap<u64, Peer>) -> Step {
        Step::Append(Membership::new(vec![voters], peers).expect("every voter is a member"))
    }
}

fn quorum(voters: usize) -> usize {
    voters / 2 + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::StoredMembership;

    const STRICT: ChangePolicy = ChangePolicy { is_strict: true, learners_max: 1 };
    const LAX: ChangePolicy = ChangePolicy { is_strict: false, learners_max: 1 };

    /// Voters `1..=voters`, and `learners` behind them; all have started and answer.
    fn view(voters: u64, learners: u64) -> View {
        let url = |id: u64| format!("http://h:{id}");
        let all = 1..=voters + learners;
        let peers: BTreeMap<u64, Peer> =
            all.clone().map(|id| (id, Peer { urls: vec![url(id)], ..Peer::default() })).collect();
        let membership = Membership::new(vec![(1..=voters).collect()], peers).unwrap();
        View {
            local: 1,
            roster: Roster::default().then(StoredMembership::new(None, membership)),
            started: all.clone().collect(),
            active: all.clone().collect(),
            matched: all.map(|id| (id, 100)).collect(),
            last: 100,
        }
    }

    fn voter(id: u64) -> Change {
        Change::AddVoter { id: MemberId(id), peer_urls: vec![format!("http://h:{id}")] }
    }

    fn learner(id: u64) -> Change {
        Change::AddLearner { id: MemberId(id), peer_urls: vec![format!("http://h:{id}")] }
    }

    fn next(view: &View, change: &Change) -> (Vec<u64>, Vec<u64>) {
        match view.plan(change, STRICT).unwrap() {
            Step::Append(next) => (next.voter_ids().collect(), next.nodes().map(|(id, _)| *id).collect()),
            Step::Set(_) => panic!("{change:?} leaves the voters"),
        }
    }

    #[test]
    fn who_is_added_votes_only_when_it_has_caught_up() {
        let mut view = view(1, 0);
        assert_eq!(next(&view, &voter(2)), (vec![1], vec![1, 2]));
        let Ok(Step::Append(membership)) = view.plan(&voter(2), STRICT) else { panic!() };
        view.roster = view.roster.then(StoredMembership::new(None, membership));
        assert_eq!(view.roster.voting().len(), 2);
        assert!(matches!(view.seat(2), Some(Step::Append(next)) if next.voter_ids().count() == 2));
        // It is no learner to those outside.
        view.matched.insert(2, 100);
        assert_eq!(view.plan(&Change::Promote(MemberId(2)), LAX), Err(EtcdError::MemberNotLearner));
        // And a second one waits until the first has started.
        assert_eq!(view.plan(&voter(3), STRICT), Err(EtcdError::MemberNotEnoughStarted));
    }

    #[test]
    fn ids_and_urls_are_taken_once() {
        let mut view = view(3, 0);
        assert_eq!(view.plan(&voter(2), LAX), Err(EtcdError::MemberExist));
        let again = Change::AddVoter { id: MemberId(9), peer_urls: vec!["http://h:2".into()] };
        assert_eq!(view.plan(&again, LAX), Err(EtcdError::PeerURLExist));
        view.roster.removed.insert(9);
        assert_eq!(view.plan(&voter(9), LAX), Err(EtcdError::MemberNotFound));
        let update = |id, url: &str| Change::Update { id: MemberId(id), peer_urls: vec![url.into()] };
        assert_eq!(view.plan(&update(2, "http://h:3"), LAX), Err(EtcdError::PeerURLExist));
        assert_eq!(view.plan(&update(7, "http://h:7"), LAX), Err(EtcdError::MemberNotFound));
        assert!(matches!(view.plan(&update(2, "http://h:2"), LAX), Ok(Step::Set(_))));
    }

    #[test]
    fn a_working_majority_is_kept() {
        let mut view = view(3, 0);
        view.active.remove(&3);
        assert_eq!(view.plan(&voter(4), STRICT), Err(EtcdError::Unhealthy));
        assert!(view.plan(&voter(4), LAX).is_ok());
        // Of two that work none can be spared; the third can.
        assert_eq!(view.plan(&Change::Remove(MemberId(2)), STRICT), Err(EtcdError::Unhealthy));
        assert_eq!(next(&view, &Change::Remove(MemberId(3))), (vec![1, 2], vec![1, 2]));
        view.started.remove(&3);
        assert_eq!(view.plan(&Change::Remove(MemberId(2)), STRICT), Err(EtcdError::MemberNotEnoughStarted));
        assert_eq!(view.plan(&Change::Remove(MemberId(8)), LAX), Err(EtcdError::MemberNotFound));
    }

    #[test]
    fn the_last_voter_stays() {
        let view = view(1, 1);
        assert_eq!(view.plan(&Change::Remove(MemberId(1)), STRICT), Err(EtcdError::MemberNotEnoughStarted));
        assert_eq!(view.plan(&Change::Remove(MemberId(1)), LAX), Err(EtcdError::MemberNotEnoughStarted));
        assert_eq!(next(&view, &Change::Remove(MemberId(2))), (vec![1], vec![1]));
    }

    #[test]
    fn learners_are_few_and_become_voters_when_they_are_in_step() {
        let mut view = view(1, 1);
        assert_eq!(view.plan(&learner(3), STRICT), Err(EtcdError::TooManyLearners));
        assert!(view.plan(&learner(3), ChangePolicy { learners_max: 2, ..STRICT }).is_ok());
        let promote = Change::Promote(MemberId(2));
        assert_eq!(next(&view, &promote), (vec![1, 2], vec![1, 2]));
        view.matched.insert(2, 89);
        assert_eq!(view.plan(&promote, STRICT), Err(EtcdError::LearnerNotReady));
        view.matched.insert(2, 90);
        assert!(view.plan(&promote, STRICT).is_ok());
        assert_eq!(view.plan(&Change::Promote(MemberId(1)), STRICT), Err(EtcdError::MemberNotLearner));
        assert_eq!(view.plan(&Change::Promote(MemberId(5)), STRICT), Err(EtcdError::MemberNotFound));
    }
}
