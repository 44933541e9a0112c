//! Dependencies and anomalies of rw-register.
//!
//! The order of a key's versions is inferred from three things: nothing comes before everything; what a transaction
//! reads comes before what it then writes; and of two transactions on the key, the versions of the one that ended
//! before the other began are not newer. The last takes it that each key alone is linearizable, as it is here.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    super::{history::RegisterOp, verdict::Verdict},
    Fate, Transaction,
    graph::{Edge, Graph},
    order::sweep,
};

/// `None`: nothing was written yet.
type Version = Option<u64>;

#[derive(Default)]
struct Key {
    /// Who wrote a value, and whether it did not write another after it.
    writers: HashMap<u64, (usize, bool)>,
    /// What transactions read before they wrote.
    reads: Vec<(usize, Version)>,
    /// Of committed transactions: the first version that is known to them and whether they wrote it, and the last.
    touched: BTreeMap<usize, Touched>,
    /// Versions and the ones that are known to be newer.
    newer: BTreeMap<Version, BTreeSet<Version>>,
}

#[derive(Clone, Copy)]
struct Touched {
    first: Version,
    last: Version,
}

pub fn read(transactions: &[Transaction<RegisterOp>], graph: &mut Graph, verdict: &mut Verdict) {
    let mut keys: BTreeMap<u64, Key> = BTreeMap::new();
    for (index, transaction) in transactions.iter().enumerate() {
        take_writes(&mut keys, index, transaction);
    }
    for (index, transaction) in transactions.iter().enumerate().filter(|(_, transaction)| transaction.is_committed()) {
        take_touched(&mut keys, index, transaction, verdict);
    }
    verdict.count("registers read", keys.values().map(|key| key.reads.len()).sum());
    for (name, key) in &mut keys {
        judge_reads(*name, key, transactions, verdict);
        infer(key, transactions);
        if let Some(circle) = circle_of(&key.newer) {
            let entries: Vec<usize> = circle
                .iter()
                .filter_map(|version| key.writers.get(version.as_ref()?))
                .map(|(writer, _)| transactions[*writer].invoked)
                .collect();
            let shown: Vec<String> = circle.iter().map(|version| format!("{version:?}")).collect();
            let explanation = format!("versions of {name} each newer than the one before: {}", shown.join(", "));
            verdict.found("cyclic versions", entries, explanation);
            // What would follow from an order that is none is not worth telling.
            key.newer.clear();
        }
        connect(*name, key, graph);
    }
}

fn take_writes(keys: &mut BTreeMap<u64, Key>, index: usize, transaction: &Transaction<RegisterOp>) {
    let mut last: HashMap<u64, u64> = HashMap::new();
    for op in &transaction.ops {
        let RegisterOp::Write { key, value } = op else { continue };
        let of = keys.entry(*key).or_default();
        let before = of.writers.insert(*value, (index, true));
        assert!(before.is_none(), "the workload writes {value} to {key} twice");
        if let Some(last) = last.insert(*key, *value) {
            of.writers.insert(last, (index, false));
        }
    }
}

fn take_touched(
    keys: &mut BTreeMap<u64, Key>,
    index: usize,
    transaction: &Transaction<RegisterOp>,
    verdict: &mut Verdict,
) {
    let mut known: HashMap<u64, Version> = HashMap::new();
    for op in &transaction.ops {
        let (key, version) = match op {
            RegisterOp::Write { key, value } => (*key, Some(*value)),
            RegisterOp::Read { key, value: Some(version) } => (*key, *version),
            RegisterOp::Read { value: None, .. } => continue,
        };
        let of = keys.entry(key).or_default();
        let before = known.insert(key, version);
        if let RegisterOp::Read { .. } = op {
            match before {
                None => of.reads.push((index, version)),
                Some(before) if before != version => {
                    let explanation = format!("read {key} as {version:?}, after it had read or written {before:?}");
                    verdict.found("internal", [transaction.invoked], explanation);
                }
                Some(_) => {}
            }
        }
        let touched = of.touched.entry(index).or_insert(Touched { first: version, last: version });
        touched.last = version;
        // What is overwritten in the same transaction is seen by nobody else.
        if let (RegisterOp::Write { .. }, Some(before)) = (op, before) {
            of.newer.entry(before).or_default().insert(version);
        }
    }
}

fn judge_reads(name: u64, key: &Key, transactions: &[Transaction<RegisterOp>], verdict: &mut Verdict) {
    for (reader, version) in &key.reads {
        let Some(value) = version else { continue };
        let entry = transactions[*reader].invoked;
        match key.writers.get(value) {
            None => verdict.found("garbage read", [entry], format!("read {value} in {name}, which nobody wrote")),
            Some((writer, is_last)) => {
                let entries = [entry, transactions[*writer].invoked];
                if transactions[*writer].outcome == Fate::Failed {
                    verdict.found("G1a", entries, format!("read {value} in {name}, whose write failed"));
                }
                if !is_last && writer != reader {
                    verdict.found("G1b", entries, format!("read {value} in {name}, which its writer overwrote"));
                }
            }
        }
    }
}

fn infer(key: &mut Key, transactions: &[Transaction<RegisterOp>]) {
    let touched: Vec<usize> = key.touched.keys().copied().collect();
    let (newer, of) = (&mut key.newer, &key.touched);
    sweep(transactions, &touched, |before, after| {
        let (before, after) = (of[&before].last, of[&after].first);
        if before != after {
            newer.entry(before).or_default().insert(after);
        }
    });
    let mut versions: BTreeSet<Version> = key.reads.iter().map(|(_, version)| *version).collect();
    versions.extend(of.values().flat_map(|touched| [touched.first, touched.last]));
    if versions.remove(&None) {
        newer.entry(None).or_default().extend(versions);
    }
}

fn connect(name: u64, key: &Key, graph: &mut Graph) {
    let writer = |value: u64| key.writers.get(&value).map(|(writer, _)| *writer);
    for (version, newer) in &key.newer {
        let (Some(value), Some(before)) = (*version, version.and_then(writer)) else { continue };
        for next in newer.iter().flatten() {
            if let Some(after) = writer(*next) {
                graph.add(before, after, Edge::Ww { key: name, value, next: *next });
            }
        }
    }
    for (reader, version) in &key.reads {
        if let (Some(value), Some(before)) = (*version, version.and_then(writer)) {
            graph.add(before, *reader, Edge::Wr { key: name, value });
        }
        for next in key.newer.get(version).into_iter().flatten().flatten() {
            if let Some(after) = writer(*next) {
                graph.add(*reader, after, Edge::Rw { key: name, next: *next });
            }
        }
    }
}

/// Versions that are each newer than the one before, and the first newer than the last.
fn circle_of(newer: &BTreeMap<Version, BTreeSet<Version>>) -> Option<Vec<Version>> {
    let mut finished: BTreeSet<Version> = BTreeSet::new();
    for start in newer.keys() {
        let mut path: Vec<(Version, Vec<Version>)> = vec![(*start, next_of(newer, start))];
        while let Some((at, left)) = path.last_mut() {
            let Some(next) = left.pop() else {
                finished.insert(*at);
                path.pop();
                continue;
            };
            if finished.contains(&next) {
                continue;
            }
            if let Some(begin) = path.iter().position(|(version, _)| *version == next) {
                return Some(path[begin..].iter().map(|(version, _)| *version).collect());
            }
            path.push((next, next_of(newer, &next)));
        }
    }
    None
}

fn next_of(newer: &BTreeMap<Version, BTreeSet<Version>>, version: &Version) -> Vec<Version> {
    newer.get(version).into_iter().flatten().copied().collect()
}
