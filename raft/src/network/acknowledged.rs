//! What the others have told this leader to have on their disks, and how a member learns that its disk has lost it.
//!
//! A disk that confirms a sync and does not do it takes back, when its power fails, what the member has answered for.
//! The member cannot know; the leader can. So each request says how far its receiver has answered for its log in this
//! leader's term. A log that ends before that is no basis to go on: the member might elect a leader that lacks what
//! clients were told. (etcd's members stop so, too: `raft/log.go`, "Was the raft log corrupted, truncated, or lost?")

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use proto::peer::{self, append_response};

use crate::types::Vote;

/// By member, in the term of one leader. Clones share it.
#[derive(Clone, Default)]
pub struct Acknowledged(Arc<Mutex<HashMap<u64, (peer::Ballot, u64)>>>);

impl Acknowledged {
    /// The number of entries that the log of `member` has begun with, as it told the leader of this ballot; 0 when it
    /// has told nothing.
    pub fn by(&self, member: u64, leader: &peer::Ballot) -> u64 {
        let told = self.0.lock();
        told.get(&member).filter(|(of, _)| of == leader).map_or(0, |(_, count)| *count)
    }

    pub fn note(&self, member: u64, leader: &peer::Ballot, response: &peer::AppendResponse) {
        let Some(append_response::Result::Matching(matching)) = &response.result else { return };
        let Some(id) = &matching.id else { return };
        let mut told = self.0.lock();
        let entry = told.entry(member).or_insert((*leader, 0));
        if entry.0 != *leader {
            *entry = (*leader, 0);
        }
        entry.1 = entry.1.max(id.index + 1);
    }
}

/// The end of a log, as entries from the beginning, and the newest ballot in it.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    pub vote: Option<Vote>,
    pub count: u64,
}

impl Held {
    /// Whether it lacks what its member has told the leader of this vote. To a leader that it does not follow any more
    /// it has promised nothing.
    pub fn lacks(&self, leader: &Vote, acknowledged: u64) -> bool {
        self.count < acknowledged && self.vote.is_none_or(|own| own <= *leader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ballot(term: u64) -> peer::Ballot {
        peer::Ballot { term, member: 1, committed: true }
    }

    fn matching(index: u64) -> peer::AppendResponse {
        let id = peer::LogId { index, ..peer::LogId::default() };
        let result = append_response::Result::Matching(append_response::Matching { id: Some(id) });
        peer::AppendResponse { result: Some(result) }
    }

    #[test]
    fn the_most_that_was_told_in_a_term_counts() {
        let told = Acknowledged::default();
        for index in [4, 9, 7] {
            told.note(2, &ballot(3), &matching(index));
        }
        told.note(2, &ballot(3), &peer::AppendResponse::default());
        assert_eq!(told.by(2, &ballot(3)), 10);
        assert_eq!(told.by(3, &ballot(3)), 0, "another member");
        assert_eq!(told.by(2, &ballot(4)), 0, "another term");
        told.note(2, &ballot(4), &matching(1));
        assert_eq!(told.by(2, &ballot(4)), 2);
    }

    #[test]
    fn a_log_lacks_what_its_member_told_the_leader_that_it_follows() {
        let held = |vote, count| Held { vote, count };
        let leader = Vote::new_committed(3, 1);
        assert!(held(Some(leader), 9).lacks(&leader, 10));
        assert!(held(Some(Vote::new_committed(2, 2)), 9).lacks(&leader, 10), "it has lost the vote, too");
        assert!(held(None, 0).lacks(&leader, 1));
        assert!(!held(Some(leader), 10).lacks(&leader, 10));
        assert!(!held(Some(Vote::new(4, 3)), 9).lacks(&leader, 10), "it may have cut its log for another leader");
    }
}
