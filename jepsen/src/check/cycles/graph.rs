//! Who depends on whom, and the circles in it.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
};

use super::super::verdict::Verdict;

/// Why one transaction comes before another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Edge {
    /// Wrote `value`, of which the other wrote the next version.
    Ww {
        key: u64,
        value: u64,
        next: u64,
    },
    /// Wrote `value`, which the other read.
    Wr {
        key: u64,
        value: u64,
    },
    /// Did not see `next`, which the other wrote.
    Rw {
        key: u64,
        next: u64,
    },
    Process,
    RealTime,
}

impl Edge {
    fn is_rw(self) -> bool {
        matches!(self, Edge::Rw { .. })
    }
}

impl fmt::Display for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Edge::Ww { key, value, next } => write!(f, "ww: it wrote {value} to {key} and the next wrote {next} after"),
            Edge::Wr { key, value } => write!(f, "wr: it wrote {value} to {key}, which the next read"),
            Edge::Rw { key, next } => write!(f, "rw: it read {key} without {next}, which the next wrote"),
            Edge::Process => write!(f, "process: the next is later by the same process"),
            Edge::RealTime => write!(f, "realtime: it ended before the next was invoked"),
        }
    }
}

/// An anomaly by the edges that its circle may be made of, besides ww.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    wr: bool,
    rw: Rw,
    process: bool,
    real_time: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rw {
    None,
    One,
    Many,
}

impl Kind {
    const fn new(name: &'static str, wr: bool, rw: Rw, process: bool, real_time: bool) -> Kind {
        Kind { name, wr, rw, process, real_time }
    }

    fn has(self, edge: Edge) -> bool {
        match edge {
            Edge::Ww { .. } => true,
            Edge::Wr { .. } => self.wr,
            Edge::Rw { .. } => self.rw != Rw::None,
            Edge::Process => self.process,
            Edge::RealTime => self.real_time,
        }
    }
}

/// In the order in which they are looked for, so that each is named after the least that it takes.
const KINDS: [Kind; 12] = [
    Kind::new("G0", false, Rw::None, false, false),
    Kind::new("G1c", true, Rw::None, false, false),
    Kind::new("G-single", true, Rw::One, false, false),
    Kind::new("G2", true, Rw::Many, false, false),
    Kind::new("G0-process", false, Rw::None, true, false),
    Kind::new("G1c-process", true, Rw::None, true, false),
    Kind::new("G-single-process", true, Rw::One, true, false),
    Kind::new("G2-process", true, Rw::Many, true, false),
    Kind::new("G0-realtime", false, Rw::None, true, true),
    Kind::new("G1c-realtime", true, Rw::None, true, true),
    Kind::new("G-single-realtime", true, Rw::One, true, true),
    Kind::new("G2-realtime", true, Rw::Many, true, true),
];

/// Beginnings that are tried to find a short circle.
const BEGINNINGS_MAX: usize = 64;

/// Transactions with the edges that lead on from them, the last one's back to the first.
type Circle = Vec<(usize, Edge)>;

pub struct Graph {
    out: Vec<Vec<(usize, Edge)>>,
}

impl Graph {
    pub fn new(transactions: usize) -> Graph {
        Graph { out: vec![Vec::new(); transactions] }
    }

    pub fn add(&mut self, from: usize, to: usize, edge: Edge) {
        if from != to && !self.out[from].contains(&(to, edge)) {
            self.out[from].push((to, edge));
        }
    }

    /// One circle of each group of transactions that depend on each other.
    pub fn report_circles(&self, verdict: &mut Verdict, entry_of: impl Fn(usize) -> usize) {
        let mut reported: HashSet<usize> = HashSet::new();
        for kind in KINDS {
            for group in self.groups(kind) {
                if group.iter().any(|transaction| reported.contains(transaction)) {
                    continue;
                }
                let Some(circle) = self.circle(&group, kind) else { continue };
                reported.extend(&group);
                let entries: Vec<usize> = circle.iter().map(|(transaction, _)| entry_of(*transaction)).collect();
                let steps =
                    circle.iter().map(|(transaction, edge)| format!("  entry {}: {edge}", entry_of(*transaction)));
                let steps: Vec<String> = steps.collect();
                verdict.found(kind.name, entries, format!("a circle\n{}", steps.join("\n")));
            }
        }
    }

    /// A short circle within a group.
    fn circle(&self, group: &[usize], kind: Kind) -> Option<Circle> {
        let within: HashSet<usize> = group.iter().copied().collect();
        let mut best: Option<Circle> = None;
        for (tried, (from, to, edge)) in self.edges_of(group, &within, kind).enumerate() {
            if tried >= BEGINNINGS_MAX && best.is_some() {
                break;
            }
            let Some(way) = self.way(to, from, &within, kind) else { continue };
            if best.as_ref().is_none_or(|best| way.len() + 1 < best.len()) {
                best = Some([vec![(from, edge)], way].concat());
            }
        }
        best
    }

    /// Edges that a circle of this kind must have one of.
    fn edges_of(
        &self,
        group: &[usize],
        within: &HashSet<usize>,
        kind: Kind,
    ) -> impl Iterator<Item = (usize, usize, Edge)> {
        let edges = group.iter().flat_map(|from| self.out[*from].iter().map(move |(to, edge)| (*from, *to, *edge)));
        edges.filter(move |(_, to, edge)| {
            within.contains(to) && if kind.rw == Rw::None { kind.has(*edge) } else { edge.is_rw() }
        })
    }

    /// The shortest way, without an rw edge if the circle has had its only one.
    fn way(&self, from: usize, to: usize, within: &HashSet<usize>, kind: Kind) -> Option<Circle> {
        let mut came_by: HashMap<usize, (usize, Edge)> = HashMap::new();
        let mut queue = VecDeque::from([from]);
        while let Some(at) = queue.pop_front() {
            if at == to {
                let back =
                    std::iter::successors(
                        came_by.get(&to),
                        |(before, _)| {
                            if *before == from { None } else { came_by.get(before) }
                        },
                    );
                let mut way: Circle = back.copied().collect();
                way.reverse();
                return Some(way);
            }
            for (next, edge) in &self.out[at] {
                let usable = kind.has(*edge) && !(kind.rw == Rw::One && edge.is_rw());
                if usable && within.contains(next) && *next != from && !came_by.contains_key(next) {
                    came_by.insert(*next, (at, *edge));
                    queue.push_back(*next);
                }
            }
        }
        None
    }

    /// Strongly connected components of more than one transaction, by Tarjan's algorithm.
    fn groups(&self, kind: Kind) -> Vec<Vec<usize>> {
        const UNSEEN: usize = usize::MAX;
        let mut number = vec![UNSEEN; self.out.len()];
        let mut lowest = vec![UNSEEN; self.out.len()];
        let mut on_stack = vec![false; self.out.len()];
        let (mut stack, mut groups, mut numbered) = (Vec::new(), Vec::new(), 0);
        for root in 0..self.out.len() {
            if number[root] != UNSEEN {
                continue;
            }
            // Transactions on the way, each with how many of its edges have been followed.
            let mut path: Vec<(usize, usize)> = vec![(root, 0)];
            while let Some((at, followed)) = path.last_mut() {
                let at = *at;
                if *followed == 0 {
                    (number[at], lowest[at], on_stack[at]) = (numbered, numbered, true);
                    numbered += 1;
                    stack.push(at);
                }
                let next = self.out[at].get(*followed);
                *followed += 1;
                if let Some((next, edge)) = next {
                    if !kind.has(*edge) {
                    } else if number[*next] == UNSEEN {
                        path.push((*next, 0));
                    } else if on_stack[*next] {
                        lowest[at] = lowest[at].min(number[*next]);
                    }
                    continue;
                }
                path.pop();
                if let Some((before, _)) = path.last() {
                    lowest[*before] = lowest[*before].min(lowest[at]);
                }
                if lowest[at] == number[at] {
                    let begin = stack.iter().rposition(|other| *other == at).expect("it is on the stack");
                    let group = stack.split_off(begin);
                    group.iter().for_each(|other| on_stack[*other] = false);
                    if group.len() > 1 {
                        groups.push(group);
                    }
                }
            }
        }
        groups
    }
}
