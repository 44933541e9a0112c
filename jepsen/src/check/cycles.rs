//! Transactions that depend on each other in a circle, which no serial order allows.
//!
//! The method is Elle's (Kingsbury & Alvaro, "Elle: inferring isolation anomalies from experimental observations",
//! 2020), the names of the anomalies are Adya's (1999). Clients do transactions on objects whose values tell who wrote
//! them, and from what was read follows which transaction came before which:
//!
//! | edge | from | to |
//! |---|---|---|
//! | ww | wrote a version | wrote the next one |
//! | wr | wrote a version | read it |
//! | rw | read a version | wrote the next one |
//! | process | was done by a process | was done by it next |
//! | realtime | ended | was invoked later |
//!
//! A circle of these is an anomaly, named after what it takes: G0 (ww alone), G1c (ww and wr), G-single (one rw), G2
//! (more), with `-process` or `-realtime` if it takes such an edge. A store that is strictly serializable has none.
//! Without a circle there are still G1a (a read of what failed), G1b (a read of what its writer overwrote) and others
//! that one read shows.

mod graph;
mod lists;
mod order;
mod registers;
#[cfg(test)]
mod tests;

use anyhow::Result;

use super::{
    history::{Answer, History, ListOp, Operation, Outcome, RegisterOp, Request},
    verdict::Verdict,
};
use graph::Graph;

/// A transaction of the workload.
#[derive(Clone, Debug)]
struct Transaction<O> {
    process: u64,
    invoked: usize,
    /// `None`: its outcome is unknown.
    ended: Option<usize>,
    outcome: Fate,
    /// With what was read, if there is an answer.
    ops: Vec<O>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Committed,
    Failed,
    Unknown,
}

impl<O> Transaction<O> {
    fn new(operation: &Operation, ops: Vec<O>) -> Transaction<O> {
        let (outcome, ended) = match operation.outcome {
            Outcome::Ok { ended, .. } => (Fate::Committed, Some(ended)),
            Outcome::Failed { ended, .. } => (Fate::Failed, Some(ended)),
            Outcome::Unknown { .. } => (Fate::Unknown, None),
        };
        Transaction { process: operation.process, invoked: operation.invoked, ended, outcome, ops }
    }

    fn is_committed(&self) -> bool {
        self.outcome == Fate::Committed
    }
}

/// Elle's list-append: lists tell all that was written to them before.
pub fn check_lists(history: &History) -> Result<Verdict> {
    let mut transactions: Vec<Transaction<ListOp>> = Vec::new();
    for operation in history.operations()? {
        let Request::Append { ops } = &operation.request else { continue };
        let ops = match operation.response().map(|response| &response.answer) {
            Some(Answer::Append { ops }) => ops.clone(),
            _ => ops.clone(),
        };
        transactions.push(Transaction::new(&operation, ops));
    }
    let mut verdict = counted(&transactions);
    let mut graph = Graph::new(transactions.len());
    lists::read(&transactions, &mut graph, &mut verdict);
    order::connect(&transactions, &mut graph);
    graph.report_circles(&mut verdict, |transaction| transactions[transaction].invoked);
    Ok(verdict)
}

/// Elle's rw-register: a read tells one version only, and the order of versions is inferred.
pub fn check_registers(history: &History) -> Result<Verdict> {
    let mut transactions: Vec<Transaction<RegisterOp>> = Vec::new();
    for operation in history.operations()? {
        let Request::Registers { ops } = &operation.request else { continue };
        let ops = match operation.response().map(|response| &response.answer) {
            Some(Answer::Registers { ops }) => ops.clone(),
            _ => ops.clone(),
        };
        transactions.push(Transaction::new(&operation, ops));
    }
    let mut verdict = counted(&transactions);
    let mut graph = Graph::new(transactions.len());
    registers::read(&transactions, &mut graph, &mut verdict);
    order::connect(&transactions, &mut graph);
    graph.report_circles(&mut verdict, |transaction| transactions[transaction].invoked);
    Ok(verdict)
}

fn counted<O>(transactions: &[Transaction<O>]) -> Verdict {
    let mut verdict = Verdict::default();
    verdict.count("committed transactions", transactions.iter().filter(|one| one.is_committed()).count());
    verdict
}
