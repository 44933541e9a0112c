//! Dependencies and anomalies of list-append.
//!
//! The longest list that was read of a key is the order of its versions: every other one must be a beginning of it.
//! Appends that were acknowledged and are not in it come after it.

use std::collections::{BTreeMap, HashMap};

use super::{
    super::{history::ListOp, verdict::Verdict},
    Fate, Transaction,
    graph::{Edge, Graph},
};

/// What is known of one key.
#[derive(Default)]
struct Key {
    /// Who appended a value, and whether nothing followed it in the same transaction.
    writers: HashMap<u64, (usize, bool)>,
    /// The longest list that was read.
    longest: Vec<u64>,
    longest_reader: usize,
    /// What transactions read before they appended.
    reads: Vec<(usize, Vec<u64>)>,
}

pub fn read(transactions: &[Transaction<ListOp>], graph: &mut Graph, verdict: &mut Verdict) {
    let mut keys: BTreeMap<u64, Key> = BTreeMap::new();
    for (index, transaction) in transactions.iter().enumerate() {
        take_writes(&mut keys, index, transaction);
    }
    for (index, transaction) in transactions.iter().enumerate().filter(|(_, transaction)| transaction.is_committed()) {
        take_reads(&mut keys, index, transaction, verdict);
    }
    verdict.count("lists read", keys.values().map(|key| key.reads.len()).sum());
    for (name, key) in &keys {
        judge_reads(*name, key, transactions, verdict);
        connect(*name, key, transactions, graph);
    }
}

fn take_writes(keys: &mut BTreeMap<u64, Key>, index: usize, transaction: &Transaction<ListOp>) {
    let mut last: HashMap<u64, u64> = HashMap::new();
    for op in &transaction.ops {
        let ListOp::Append { key, value } = op else { continue };
        let of = keys.entry(*key).or_default();
        let before = of.writers.insert(*value, (index, true));
        assert!(before.is_none(), "the workload appends {value} to {key} twice");
        if let Some(last) = last.insert(*key, *value) {
            of.writers.insert(last, (index, false));
        }
    }
}

/// Takes the lists as they were before the transaction's own appends, which each read must end with.
fn take_reads(keys: &mut BTreeMap<u64, Key>, index: usize, transaction: &Transaction<ListOp>, verdict: &mut Verdict) {
    let mut own: HashMap<u64, Vec<u64>> = HashMap::new();
    let mut known: HashMap<u64, Vec<u64>> = HashMap::new();
    for op in &transaction.ops {
        match op {
            ListOp::Append { key, value } => own.entry(*key).or_default().push(*value),
            ListOp::Read { list: None, .. } => {}
            ListOp::Read { key, list: Some(list) } => {
                let appended = own.get(key).map_or(&[][..], Vec::as_slice);
                let before = list.strip_suffix(appended);
                let same = known.get(key).is_none_or(|known| Some(known.as_slice()) == before);
                let (Some(before), true) = (before, same) else {
                    let explanation = format!("read {key} as {list:?}, which is not what it had read and appended");
                    verdict.found("internal", [transaction.invoked], explanation);
                    continue;
                };
                if known.insert(*key, before.to_vec()).is_some() {
                    continue;
                }
                let of = keys.entry(*key).or_default();
                if list.len() > of.longest.len() {
                    of.longest.clone_from(list);
                    of.longest_reader = index;
                }
                of.reads.push((index, before.to_vec()));
            }
        }
    }
}

fn judge_reads(name: u64, key: &Key, transactions: &[Transaction<ListOp>], verdict: &mut Verdict) {
    for (reader, list) in &key.reads {
        let entry = transactions[*reader].invoked;
        let mut sorted = list.clone();
        sorted.sort_unstable();
        if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
            verdict.found("duplicate elements", [entry], format!("read {name} as {list:?}"));
        }
        if !key.longest.starts_with(list) {
            let other = transactions[key.longest_reader].invoked;
            let explanation = format!("read {name} as {list:?}, when entry {other} read {:?}", key.longest);
            verdict.found("incompatible order", [entry, other], explanation);
        }
        for value in list {
            match key.writers.get(value) {
                None => {
                    verdict.found("garbage read", [entry], format!("read {value} in {name}, which nobody appended"))
                }
                Some((writer, _)) if transactions[*writer].outcome == Fate::Failed => {
                    let explanation = format!("read {value} in {name}, whose append failed");
                    verdict.found("G1a", [entry, transactions[*writer].invoked], explanation);
                }
                Some(_) => {}
            }
        }
        let last = list.last().and_then(|last| key.writers.get(last));
        if let Some((writer, false)) = last.filter(|(writer, _)| writer != reader) {
            let explanation = format!("read {name} as {list:?}, between appends of one transaction");
            verdict.found("G1b", [entry, transactions[*writer].invoked], explanation);
        }
    }
}

fn connect(name: u64, key: &Key, transactions: &[Transaction<ListOp>], graph: &mut Graph) {
    let writer = |value: &u64| key.writers.get(value).map(|(writer, _)| *writer);
    for pair in key.longest.windows(2) {
        if let (Some(before), Some(after)) = (writer(&pair[0]), writer(&pair[1])) {
            graph.add(before, after, Edge::Ww { key: name, value: pair[0], next: pair[1] });
        }
    }
    let unread: Vec<(u64, usize)> = unread(key, transactions);
    if let Some((last, before)) = key.longest.last().and_then(|last| Some((*last, writer(last)?))) {
        for (next, after) in &unread {
            graph.add(before, *after, Edge::Ww { key: name, value: last, next: *next });
        }
    }
    for (reader, list) in &key.reads {
        if let Some((value, before)) = list.last().and_then(|last| Some((*last, writer(last)?))) {
            graph.add(before, *reader, Edge::Wr { key: name, value });
        }
        match key.longest.get(list.len()) {
            Some(next) => {
                if let Some(after) = writer(next) {
                    graph.add(*reader, after, Edge::Rw { key: name, next: *next });
                }
            }
            None => {
                unread.iter().for_each(|(next, after)| graph.add(*reader, *after, Edge::Rw { key: name, next: *next }))
            }
        }
    }
}

/// Acknowledged appends that nobody read. Those of a transaction of which one was read come after that one anyway.
fn unread(key: &Key, transactions: &[Transaction<ListOp>]) -> Vec<(u64, usize)> {
    let unread = key
        .writers
        .iter()
        .filter(|(value, (writer, _))| transactions[*writer].is_committed() && !key.longest.contains(value));
    let mut unread: Vec<(u64, usize)> = unread.map(|(value, (writer, _))| (*value, *writer)).collect();
    unread.sort_unstable();
    unread
}
