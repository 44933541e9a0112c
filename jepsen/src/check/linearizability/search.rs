//! The search for an order of operations that a sequential model accepts and that real time allows.
//!
//! Wing & Gong's search (1993) as Lowe made it fast ("Testing for linearizability", 2017): operations are taken in the
//! order of their invocations, an operation cannot be passed over once it has ended, and a configuration, that is the
//! set of operations done and the state they led to, is never looked at twice.
//!
//! Two things keep the search narrow. An operation whose outcome is unknown is tried only where no other fits: it may
//! be done at any time from its invocation on, or never. And an operation may have a *rank*, here from the revision it
//! was answered: of two ranked operations the one of lower rank comes first.

use std::collections::HashSet;

/// A sequential machine that can go back.
pub trait Model {
    type Undo;

    /// Does an operation, if it can be next with the answer that it had. One of unknown outcome only if that makes a
    /// difference to what can be seen later. What is of higher rank than `horizon` comes too early.
    fn apply(&mut self, operation: usize, horizon: i64) -> Option<Self::Undo>;

    fn undo(&mut self, undo: Self::Undo);

    /// Stands for the state.
    fn fingerprint(&self) -> u128;
}

/// When an operation ran: positions in the history.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub invoked: usize,
    /// `None`: the outcome is unknown.
    pub ended: Option<usize>,
    /// Lowest and highest rank.
    pub rank: Option<(i64, i64)>,
}

#[derive(Debug, PartialEq)]
pub enum Found {
    /// An order, without operations of unknown outcome that are not needed.
    Order(Vec<usize>),
    /// The longest order of those that end in a contradiction, and the operations of which one would have to be next.
    Nothing { longest: Vec<usize>, stuck: Vec<usize> },
    /// The bound was reached.
    Undecided,
}

/// Looks for an order in at most so many configurations, each of which takes some 32 bytes. The model is afterwards as
/// it was before.
pub fn search<M: Model>(model: &mut M, calls: &[Call], configurations_max: usize) -> Found {
    let mut search = Search::new(calls);
    let mut seen: HashSet<u128> = HashSet::new();
    let mut steps: Vec<Step<M::Undo>> = Vec::new();
    let mut longest = Longest::default();
    let mut next = search.first();
    loop {
        if search.definite_left == 0 {
            let order = steps.iter().map(|step| step.operation).collect();
            go_back(model, steps);
            return Found::Order(order);
        }
        let Some(candidate) = next else {
            longest.consider(&search, &steps);
            let Some(step) = steps.pop() else {
                return Found::Nothing { longest: longest.order, stuck: longest.stuck };
            };
            model.undo(step.undo);
            search.put_back(step.operation, step.at);
            next = search.after(step.at);
            continue;
        };
        let operation = search.operation(candidate);
        let horizon = search.horizon();
        let in_turn = calls[operation].rank.is_none_or(|(lowest, _)| lowest <= horizon);
        let applied = if in_turn { model.apply(operation, horizon) } else { None };
        let Some(undo) = applied else {
            next = search.after(candidate);
            continue;
        };
        if seen.len() == configurations_max {
            model.undo(undo);
            go_back(model, steps);
            return Found::Undecided;
        }
        search.take_out(operation, candidate);
        if seen.insert(search.done_fingerprint ^ model.fingerprint()) {
            steps.push(Step { operation, at: candidate, undo });
            next = search.first();
        } else {
            model.undo(undo);
            search.put_back(operation, candidate);
            next = search.after(candidate);
        }
    }
}

fn go_back<M: Model>(model: &mut M, mut steps: Vec<Step<M::Undo>>) {
    while let Some(step) = steps.pop() {
        model.undo(step.undo);
    }
}

struct Step<U> {
    operation: usize,
    at: Candidate,
    undo: U,
}

#[derive(Default)]
struct Longest {
    definite: usize,
    order: Vec<usize>,
    stuck: Vec<usize>,
}

impl Longest {
    fn consider<U>(&mut self, search: &Search, steps: &[Step<U>]) {
        let definite = search.definite - search.definite_left;
        if definite < self.definite || (definite == self.definite && !self.stuck.is_empty()) {
            return;
        }
        self.definite = definite;
        self.order = steps.iter().map(|step| step.operation).collect();
        self.stuck = search.running().collect();
    }
}

/// Where the search stands among what may be next.
#[derive(Clone, Copy, Debug)]
enum Candidate {
    /// A place in `Search::marks`.
    Definite(usize),
    /// A place in `Search::unknown`.
    Unknown(usize),
}

/// Invocations and ends in their order, without those of operations that are done.
struct Search<'a> {
    calls: &'a [Call],
    marks: Vec<Mark>,
    /// Where an operation's end is in `marks`.
    end_of: Vec<usize>,
    /// Operations of unknown outcome, in the order of their invocations.
    unknown: Vec<usize>,
    done: Vec<bool>,
    /// Zobrist's hash of the set of operations that are done.
    done_fingerprint: u128,
    definite: usize,
    definite_left: usize,
    /// Ranked operations by their highest rank, and how many at its beginning are done.
    ranked: Vec<usize>,
    ranked_done: usize,
    place_in_ranked: Vec<usize>,
}

/// In a doubly linked list, whose head is the first of all.
struct Mark {
    operation: usize,
    is_end: bool,
    previous: usize,
    next: usize,
}

const HEAD: usize = 0;

impl<'a> Search<'a> {
    fn new(calls: &'a [Call]) -> Search<'a> {
        let mut events: Vec<(usize, usize, bool)> = Vec::with_capacity(calls.len() * 2);
        let mut unknown = Vec::new();
        for (operation, call) in calls.iter().enumerate() {
            match call.ended {
                Some(ended) => {
                    assert!(ended > call.invoked, "an operation ends after its invocation");
                    events.push((call.invoked, operation, false));
                    events.push((ended, operation, true));
                }
                None => unknown.push(operation),
            }
        }
        events.sort_unstable();
        unknown.sort_unstable_by_key(|operation| calls[*operation].invoked);
        let mut marks = vec![Mark { operation: usize::MAX, is_end: false, previous: 0, next: 1 }];
        let mut end_of = vec![usize::MAX; calls.len()];
        for (_, operation, is_end) in &events {
            let place = marks.len();
            if *is_end {
                end_of[*operation] = place;
            }
            marks.push(Mark { operation: *operation, is_end: *is_end, previous: place - 1, next: place + 1 });
        }
        let mut ranked: Vec<usize> = (0..calls.len())
            .filter(|operation| calls[*operation].ended.is_some() && calls[*operation].rank.is_some())
            .collect();
        ranked.sort_by_key(|operation| calls[*operation].rank.map(|(_, highest)| highest));
        let mut place_in_ranked = vec![usize::MAX; calls.len()];
        for (place, operation) in ranked.iter().enumerate() {
            place_in_ranked[*operation] = place;
        }
        Search {
            calls,
            marks,
            end_of,
            unknown,
            done: vec![false; calls.len()],
            done_fingerprint: 0,
            definite: events.len() / 2,
            definite_left: events.len() / 2,
            ranked,
            ranked_done: 0,
            place_in_ranked,
        }
    }

    fn first(&mut self) -> Option<Candidate> {
        self.definite_or_unknown(self.marks[HEAD].next)
    }

    /// What else could have been tried instead.
    fn after(&mut self, candidate: Candidate) -> Option<Candidate> {
        match candidate {
            Candidate::Definite(mark) => self.definite_or_unknown(self.marks[mark].next),
            Candidate::Unknown(place) => self.unknown_from(place + 1),
        }
    }

    fn definite_or_unknown(&mut self, mark: usize) -> Option<Candidate> {
        match self.marks.get(mark) {
            Some(Mark { is_end: false, .. }) => Some(Candidate::Definite(mark)),
            _ => self.unknown_from(0),
        }
    }

    /// Only those that were invoked before the first end that is left: whatever comes after it, comes after the
    /// operation that ended.
    fn unknown_from(&self, place: usize) -> Option<Candidate> {
        let end = self.first_end()?;
        let rest = self.unknown.get(place..)?.iter().enumerate();
        let mut running = rest.take_while(|(_, operation)| self.calls[**operation].invoked < end);
        running.find(|(_, operation)| !self.done[**operation]).map(|(offset, _)| Candidate::Unknown(place + offset))
    }

    fn first_end(&self) -> Option<usize> {
        let mut mark = self.marks[HEAD].next;
        while !self.marks.get(mark)?.is_end {
            mark = self.marks[mark].next;
        }
        self.calls[self.marks[mark].operation].ended
    }

    /// Operations that were invoked before the first end that is left, which is that of one of them.
    fn running(&self) -> impl Iterator<Item = usize> {
        let marks = std::iter::successors(Some(self.marks[HEAD].next), |mark| Some(self.marks[*mark].next));
        marks.map_while(|mark| self.marks.get(mark).filter(|mark| !mark.is_end).map(|mark| mark.operation))
    }

    fn operation(&self, candidate: Candidate) -> usize {
        match candidate {
            Candidate::Definite(mark) => self.marks[mark].operation,
            Candidate::Unknown(place) => self.unknown[place],
        }
    }

    /// The highest rank that the next operation may have: the lowest of those left.
    fn horizon(&mut self) -> i64 {
        while self.ranked.get(self.ranked_done).is_some_and(|operation| self.done[*operation]) {
            self.ranked_done += 1;
        }
        let first = self.ranked.get(self.ranked_done).and_then(|first| self.calls[*first].rank);
        first.map_or(i64::MAX, |(_, highest)| highest)
    }

    fn take_out(&mut self, operation: usize, candidate: Candidate) {
        self.done[operation] = true;
        self.done_fingerprint ^= zobrist(operation);
        let Candidate::Definite(mark) = candidate else { return };
        self.unlink(mark);
        self.unlink(self.end_of[operation]);
        self.definite_left -= 1;
    }

    fn put_back(&mut self, operation: usize, candidate: Candidate) {
        self.done[operation] = false;
        self.done_fingerprint ^= zobrist(operation);
        let Candidate::Definite(mark) = candidate else { return };
        self.relink(self.end_of[operation]);
        self.relink(mark);
        self.definite_left += 1;
        self.ranked_done = self.ranked_done.min(self.place_in_ranked[operation]);
    }

    fn unlink(&mut self, mark: usize) {
        let Mark { previous, next, .. } = self.marks[mark];
        self.marks[previous].next = next;
        if let Some(next) = self.marks.get_mut(next) {
            next.previous = previous;
        }
    }

    /// Takes back the last unlink that has not been taken back.
    fn relink(&mut self, mark: usize) {
        let Mark { previous, next, .. } = self.marks[mark];
        self.marks[previous].next = mark;
        if let Some(next) = self.marks.get_mut(next) {
            next.previous = mark;
        }
    }
}

/// A number for an operation, by Steele's SplitMix64, twice.
fn zobrist(operation: usize) -> u128 {
    let mix = |seed: u64| {
        let mut z = (operation as u64).wrapping_add(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        u128::from(z ^ (z >> 31))
    };
    mix(1) << 64 | mix(0x1234_5678_9abc_def1)
}
