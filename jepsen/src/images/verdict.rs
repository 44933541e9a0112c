//! What must hold of every image: acknowledged ⊆ recovered ⊆ issued, and what members promised each other.
//!
//! - No image is refused: a crash left it, nobody damaged it.
//! - The state that the store opens with is that of its applied index, and with the log applied that of the log's end:
//!   revision and HashKV as an empty store has them that applied the same entries.
//! - What a member told a leader to be in its log is there, until another leader is followed.
//! - A member's ballot does not go back behind a promise.
//! - An acknowledged write is in the logs of a quorum, whichever image each of its members comes back with.
//! - Nothing is recovered that nobody asked for.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use raft::recovered::{Ballot, EntryId};

use super::{
    recover::{Entries, Found, Known, Outcome, StoreState, apply, open_store, path_to, state_of},
    scenario::write_of,
    trace::{Mark, Op, Trace},
};

/// A time of the run, from one operation of a member to its next, and the images that a crash then leaves of it.
#[derive(Debug)]
pub struct Point {
    pub member: usize,
    /// Position of the operation that came last.
    pub at: usize,
    /// Of the one that comes next.
    pub until: usize,
    /// Numbers of images. Empty: not looked at.
    pub images: BTreeSet<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// None when it is no single one's.
    pub image: Option<usize>,
    pub at: usize,
    pub what: String,
}

/// What was said of the images of a run.
#[derive(Debug, Default)]
pub struct Verdict {
    pub violations: Vec<Violation>,
    /// How many images had what: without it a run has shown less than it seems.
    pub seen: BTreeMap<&'static str, usize>,
}

/// Images whose log ends with an entry that was never committed.
pub const CONFLICTING: &str = "end with an entry that was truncated later";
/// Images whose log leads on from the store.
pub const LEADS_ON: &str = "have entries behind the store";
pub const PURGED: &str = "have let go of entries";
/// Different ballots.
pub const BALLOTS: &str = "ballots";

/// The states that entries lead to, and where each entry's writes were asked for.
struct Reference {
    states: HashMap<EntryId, StoreState>,
    empty: StoreState,
    /// Position of the latest request among an entry and those before it; None: one was never asked for.
    issued: HashMap<EntryId, Option<usize>>,
    /// The entries that the run ended with, by index.
    committed: BTreeMap<u64, EntryId>,
}

/// Judges the images of a run. `last` is the image that the run ended with, `scratch` a directory that does not exist.
pub fn judge(
    trace: &Trace,
    points: &[Point],
    outcomes: &[Outcome],
    entries: &Entries,
    last: usize,
    scratch: &Path,
) -> Result<Verdict> {
    let known = entries.known.lock();
    let mut verdict = Verdict::default();
    let Outcome::Recovered(end) = &outcomes[last] else {
        let what = format!("the run's end is refused: {:?}", outcomes[last]);
        verdict.violations.push(Violation { image: Some(last), at: trace.ops.len(), what });
        return Ok(verdict);
    };
    let reference = Reference::new(trace, &known, end, scratch)?;
    verdict.seen = seen(outcomes, &reference);
    let mut judge = Judge { trace, outcomes, reference: &reference, violations: &mut verdict.violations };
    judge.states(points);
    judge.promises(points);
    judge.acknowledged(points, &known);
    Ok(verdict)
}

fn seen(outcomes: &[Outcome], reference: &Reference) -> BTreeMap<&'static str, usize> {
    let found: Vec<&Found> = outcomes
        .iter()
        .filter_map(|outcome| match outcome {
            Outcome::Recovered(found) => Some(found),
            Outcome::Refused(_) => None,
        })
        .collect();
    let count = |is: &dyn Fn(&Found) -> bool| found.iter().filter(|found| is(found)).count();
    let is_committed = |id: EntryId| reference.committed.get(&id.index) == Some(&id);
    BTreeMap::from([
        (CONFLICTING, count(&|found| found.last.is_some_and(|last| !is_committed(last)))),
        (LEADS_ON, count(&|found| found.last > found.applied)),
        (PURGED, count(&|found| found.purged.is_some())),
        (BALLOTS, found.iter().map(|found| found.ballot).collect::<BTreeSet<_>>().len()),
    ])
}

impl Reference {
    fn new(trace: &Trace, known: &BTreeMap<EntryId, Known>, end: &Found, scratch: &Path) -> Result<Reference> {
        let is_before: BTreeSet<EntryId> = known.values().filter_map(|known| known.before).collect();
        let mut reference = Reference {
            states: HashMap::new(),
            empty: StoreState { revision: 0, hash: 0 },
            issued: HashMap::new(),
            committed: BTreeMap::new(),
        };
        for (branch, leaf) in known.keys().filter(|id| !is_before.contains(id)).enumerate() {
            let path = path_to(known, *leaf)?;
            reference.replay(&path, known, &scratch.join(branch.to_string()))?;
        }
        let positions = positions_of_issues(trace);
        for (id, of_id) in known {
            let own = write_of(&of_id.entry.payload).map_or(Some(0), |write| positions.get(&write).copied());
            reference.issued.insert(*id, own);
        }
        let end = end.last.context("the run ended with an empty log")?;
        reference.committed = path_to(known, end)?.into_iter().map(|id| (id.index, id)).collect();
        Ok(reference)
    }

    fn replay(&mut self, path: &[EntryId], known: &BTreeMap<EntryId, Known>, dir: &Path) -> Result<()> {
        let store = open_store(dir)?;
        self.empty = state_of(&store)?;
        for id in path {
            apply(&store, std::slice::from_ref(&known[id].entry))?;
            let state = state_of(&store)?;
            let old = *self.states.entry(*id).or_insert(state);
            ensure!(old == state, "two replays up to {id:?} differ: {old:?}, {state:?}");
        }
        drop(store);
        std::fs::remove_dir_all(dir)?;
        Ok(())
    }
}

fn positions_of_issues(trace: &Trace) -> HashMap<u64, usize> {
    let issued = trace.ops.iter().enumerate().filter_map(|(at, op)| match op {
        Op::Mark(Mark::Issued(write)) => Some((*write, at)),
        _ => None,
    });
    issued.collect()
}

struct Judge<'a> {
    trace: &'a Trace,
    outcomes: &'a [Outcome],
    reference: &'a Reference,
    violations: &'a mut Vec<Violation>,
}

impl Judge<'_> {
    fn violation(&mut self, image: Option<usize>, at: usize, what: String) {
        self.violations.push(Violation { image, at, what });
    }

    /// Of each image by itself, at the first point where it may be left.
    fn states(&mut self, points: &[Point]) {
        let mut first = vec![usize::MAX; self.outcomes.len()];
        for point in points {
            point.images.iter().for_each(|image| first[*image] = first[*image].min(point.at));
        }
        for (image, outcome) in self.outcomes.iter().enumerate() {
            match outcome {
                Outcome::Refused(reason) => self.violation(Some(image), first[image], format!("refused: {reason}")),
                Outcome::Recovered(found) => {
                    for what in faults_of(found, self.reference, first[image]) {
                        self.violation(Some(image), first[image], what);
                    }
                }
            }
        }
    }

    /// What a member promised to others, against each image that it may come back with.
    fn promises(&mut self, points: &[Point]) {
        let members = points.iter().map(|point| point.member).max().map_or(0, |last| last + 1);
        for member in 0..members {
            let mut own: Vec<&Point> = points.iter().filter(|point| point.member == member).collect();
            own.sort_by_key(|point| point.until);
            let mut promised = Promised::default();
            let mut next = 0;
            for point in own {
                for op in &self.trace.ops[next..point.until] {
                    promised.note(op, member);
                }
                next = next.max(point.until);
                for &image in &point.images {
                    let Outcome::Recovered(found) = &self.outcomes[image] else { continue };
                    if let Some(what) = promised.broken_by(found) {
                        self.violation(Some(image), point.at, what);
                    }
                }
            }
        }
    }

    /// Acknowledged writes, against the worst image of each member.
    fn acknowledged(&mut self, points: &[Point], known: &BTreeMap<EntryId, Known>) {
        let committed = &self.reference.committed;
        let of_write: HashMap<u64, EntryId> =
            committed.values().filter_map(|id| Some((write_of(&known[id].entry.payload)?, *id))).collect();
        let members = points.iter().map(|point| point.member).max().map_or(0, |last| last + 1);
        // How far each member's log reaches in its worst image; None: not looked at.
        let mut reaches: Vec<Option<u64>> = vec![None; members];
        let mut begins: BTreeMap<usize, Vec<(usize, Option<u64>)>> = BTreeMap::new();
        for point in points {
            begins.entry(point.at).or_default().push((point.member, self.worst_reach(point)));
        }
        let (mut acknowledged, mut worst_gap) = (0, None);
        for (at, op) in self.trace.ops.iter().enumerate() {
            for (member, reach) in begins.get(&at).into_iter().flatten() {
                reaches[*member] = *reach;
            }
            if let Op::Mark(Mark::Acknowledged { write, revision }) = op {
                match of_write.get(write) {
                    None => self.violation(None, at, format!("write {write} was acknowledged, and is not in the log")),
                    Some(id) if self.reference.states[id].revision != *revision => {
                        let is = self.reference.states[id].revision;
                        self.violation(None, at, format!("write {write} was answered with {revision}, and is {is}"));
                    }
                    Some(id) => acknowledged = acknowledged.max(id.index),
                }
            }
            let holders = reaches.iter().filter(|reach| reach.is_none_or(|reach| reach >= acknowledged)).count();
            if holders <= members / 2 && worst_gap != Some(acknowledged) {
                worst_gap = Some(acknowledged);
                let what =
                    format!("entry {acknowledged} was acknowledged, and after a crash only {reaches:?} are left");
                self.violation(None, at, what);
            }
        }
    }

    fn worst_reach(&self, point: &Point) -> Option<u64> {
        let reach = |image: &usize| match &self.outcomes[*image] {
            // That is a violation of its own.
            Outcome::Refused(_) => None,
            Outcome::Recovered(found) => {
                let last = found.last.map_or(0, |last| last.index);
                let is_committed = |index: &u64| found.id_at(*index) == self.reference.committed.get(index).copied();
                Some((1..=last).rev().find(is_committed).unwrap_or(0))
            }
        };
        point.images.iter().filter_map(reach).min()
    }
}

fn faults_of(found: &Found, reference: &Reference, at: usize) -> Vec<String> {
    let mut faults = Vec::new();
    let state_at = |id: Option<EntryId>| match id {
        Some(id) => reference.states.get(&id).copied(),
        None => Some(reference.empty),
    };
    for (what, id, is) in [("opens", found.applied, found.opened), ("is replayed", found.last, found.replayed)] {
        match state_at(id) {
            Some(expected) if expected != is => {
                faults.push(format!("the store {what} at {id:?} with {is:?}, where {expected:?} belongs"));
            }
            Some(_) => {}
            None => faults.push(format!("the store {what} at {id:?}, which is no entry of the run")),
        }
    }
    if let Some(applied) = found.applied.filter(|id| reference.committed.get(&id.index) != Some(id)) {
        faults.push(format!("the store has applied {applied:?}, which was never committed"));
    }
    let ids =
        found.runs.iter().flat_map(|(term, first, last)| (*first..=*last).map(|index| EntryId { term: *term, index }));
    for id in ids {
        if reference.issued.get(&id).is_some_and(|issued| issued.is_none_or(|issued| issued > at)) {
            faults.push(format!("{id:?} holds a write that nobody had asked for"));
        }
    }
    faults
}

/// What a member has told others.
#[derive(Default)]
struct Promised {
    ballot: Option<Ballot>,
    /// Its log's end, and the term of the leader that was told.
    log: Option<(u64, EntryId)>,
    follows: u64,
}

impl Promised {
    fn note(&mut self, op: &Op, of: usize) {
        match op {
            Op::Mark(Mark::Voted { member, ballot }) if *member == of => {
                if self.ballot.is_none_or(|old| old.term <= ballot.term) {
                    self.ballot = Some(*ballot);
                }
            }
            Op::Mark(Mark::Follows { member, term }) if *member == of && *term > self.follows => {
                // The new leader may truncate what the old one had.
                self.follows = *term;
                self.log = None;
            }
            Op::Mark(Mark::Matches { member, leader_term, last }) if *member == of && *leader_term == self.follows => {
                self.log = self.log.max(Some((*leader_term, *last)));
            }
            _ => {}
        }
    }

    fn broken_by(&self, found: &Found) -> Option<String> {
        if let Some(promised) = self.ballot
            && found
                .ballot
                .is_none_or(|is| is.term < promised.term || is.term == promised.term && is.member != promised.member)
        {
            return Some(format!("the ballot is {:?}, but {promised:?} had been given", found.ballot));
        }
        let (_, last) = self.log?;
        let is_let_go = found.purged.max(found.applied).is_some_and(|id| id.index >= last.index);
        let is_there = is_let_go || found.id_at(last.index) == Some(last);
        (!is_there).then(|| format!("{last:?} had been promised to the leader, and the log ends with {:?}", found.last))
    }
}
