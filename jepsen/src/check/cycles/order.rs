//! Orders that hold whatever was read: that of a process, and that of real time.

use std::collections::HashMap;

use super::{
    Transaction,
    graph::{Edge, Graph},
};

/// Connects transactions, not all pairs, but so that every pair that is ordered has a path.
pub fn connect<O>(transactions: &[Transaction<O>], graph: &mut Graph) {
    let mut last: HashMap<u64, usize> = HashMap::new();
    for (index, transaction) in transactions.iter().enumerate().filter(|(_, transaction)| transaction.is_committed()) {
        if let Some(before) = last.insert(transaction.process, index) {
            graph.add(before, index, Edge::Process);
        }
    }
    let all: Vec<usize> = (0..transactions.len()).filter(|index| transactions[*index].is_committed()).collect();
    sweep(transactions, &all, |before, after| graph.add(before, after, Edge::RealTime));
}

/// Calls `ordered` for pairs of which the first ended before the second was invoked, leaving out those between which
/// another is.
pub fn sweep<O>(transactions: &[Transaction<O>], of: &[usize], mut ordered: impl FnMut(usize, usize)) {
    let mut moments: Vec<(usize, bool, usize)> = Vec::with_capacity(of.len() * 2);
    for index in of {
        moments.push((transactions[*index].invoked, false, *index));
        moments.extend(transactions[*index].ended.map(|ended| (ended, true, *index)));
    }
    moments.sort_unstable();
    let mut newest_ended: Vec<usize> = Vec::new();
    let mut before: HashMap<usize, Vec<usize>> = HashMap::new();
    for (_, is_end, index) in moments {
        if is_end {
            let passed = before.remove(&index).unwrap_or_default();
            newest_ended.retain(|ended| !passed.contains(ended));
            newest_ended.push(index);
        } else {
            for ended in &newest_ended {
                ordered(*ended, index);
            }
            before.insert(index, newest_ended.clone());
        }
    }
}
