//! Linearizability: whether all that clients were answered could have come from one store that does one request at a
//! time, each at some moment between its invocation and its end (Herlihy & Wing, 1990).
//!
//! Two scopes:
//!
//! - [`Scope::Store`]: the whole key space with transactions, ranges, leases and compactions. Every write that succeeds
//!   adds exactly one to the revision, so nobody else may write while such a history is made. What it asks is more than
//!   linearizability of each key: one order of all of them.
//! - [`Scope::Key`]: one key, when all of its operations are on it alone. Linearizability is local (ibid., section
//!   3.3): if each key's history is linearizable, so is all of it. Others may write other keys.
//!
//! What is answered helps the search. Of two answers the one with the lower revision came first. What anyone was told
//! about a revision must be what was written at it. An operation of unknown outcome is then left with few places: a
//! revision that nobody was told as his own.
//!
//! Failed operations are left out, since they are not done; so are serializable reads, which promise less (see
//! [`super::serializable`]). A lease may expire at any time after it was granted, which is as a revocation of unknown
//! outcome; whether it may at that time is for [`super::lease`] to say.

mod evidence;
mod model;
pub mod search;
mod shrink;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashSet};

use anyhow::{Context as _, Result};

use super::{
    history::{Blob, History, Keys, Request, Txn, TxnOp},
    store::Store,
    verdict::{Anomaly, Verdict},
};
use evidence::Evidence;
use model::{Judged, StoreModel};
use search::{Call, Found, search};
use shrink::shrink;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Store,
    Key,
}

/// Some 300 MB.
const CONFIGURATIONS_MAX: usize = 6_000_000;
/// Of a part of a history: that it has no order must be found quickly, or it is no help.
const CONFIGURATIONS_OF_PART_MAX: usize = 100_000;
const SHOWN_OF_ORDER: usize = 12;

/// One order for all requests to the store, which begins as `initial`.
pub fn check_store(history: &History, initial: &Store) -> Result<Verdict> {
    Ok(replay(history, initial)?.0)
}

/// The same, and the store after all requests in that order, which remembers each revision. If watchers fit in, it goes
/// on to the last revision that they saw.
pub fn replay(history: &History, initial: &Store) -> Result<(Verdict, Option<Store>)> {
    let operations = judged(history)?;
    let watched = Evidence::of_watches(history);
    if let Some(last) = watched.last() {
        let mut with_watches = operations.clone();
        with_watches.push(Judged::reached(last, history.entries().len()));
        let (verdict, store) = check(&with_watches, &with_watches, initial, Scope::Store, &watched, CONFIGURATIONS_MAX);
        if verdict.passes() {
            return Ok((verdict, store));
        }
        // Watches may be what is wrong: their checker says so. Without them the search is wider.
    }
    Ok(check(&operations, &operations, initial, Scope::Store, &Evidence::default(), CONFIGURATIONS_MAX))
}

/// An order for each key. All operations must be on one key each.
pub fn check_keys(history: &History, initial: &Store) -> Result<Verdict> {
    check_keys_within(history, &History::default(), initial)
}

/// The same, of a history from which operations on several keys were left out, and watches. They have no place in any
/// order, but what they told about a key counts: a comparison may name a revision that is known from nowhere else.
pub fn check_keys_within(history: &History, whole: &History, initial: &Store) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    let known = match Evidence::of_operations(&judged(whole)?, &Evidence::of_watches(whole)) {
        Ok(known) => known,
        Err(anomaly) => {
            verdict.anomalies.push(anomaly);
            return Ok(verdict);
        }
    };
    let operations = judged(history)?;
    let mut keys: BTreeMap<Blob, Vec<Judged>> = BTreeMap::new();
    for operation in &operations {
        let key = single_key(&operation.request).with_context(|| format!("not on one key: {operation}"))?;
        keys.entry(key.clone()).or_default().push(operation.clone());
    }
    for (key, of_key) in &keys {
        let known = known.of_key(key);
        verdict = verdict.and(check(of_key, &operations, initial, Scope::Key, &known, CONFIGURATIONS_MAX).0);
    }
    Ok(verdict)
}

/// The operations that have a place in an order.
fn judged(history: &History) -> Result<Vec<Judged>> {
    let mut judged = Vec::new();
    for operation in history.operations()? {
        if !operation.may_have_happened() || is_local(&operation.request) {
            continue;
        }
        judged.extend(Judged::new(&operation)?);
    }
    Ok(judged)
}

/// Whether one member answers it from what it has.
pub(super) fn is_local(request: &Request) -> bool {
    fn local(txn: &Txn) -> bool {
        txn.success.iter().chain(&txn.failure).all(|op| match op {
            TxnOp::Range(range) => range.serializable,
            TxnOp::Txn(txn) => local(txn),
            TxnOp::Put(_) | TxnOp::DeleteRange(_) => false,
        })
    }
    match request {
        Request::As { request, .. } => is_local(request),
        Request::Range(range) => range.serializable,
        Request::Txn(txn) => local(txn) && !(txn.success.is_empty() && txn.failure.is_empty()),
        Request::LeaseKeepAlive { .. }
        | Request::LeaseTimeToLive { .. }
        | Request::HashKv { .. }
        | Request::Defragment
        | Request::Snapshot
        | Request::Watch { .. } => true,
        _ => false,
    }
}

fn check(
    operations: &[Judged],
    all: &[Judged],
    initial: &Store,
    scope: Scope,
    watched: &Evidence,
    configurations_max: usize,
) -> (Verdict, Option<Store>) {
    let mut verdict = Verdict::default();
    let definite = operations.iter().filter(|operation| operation.response.is_some()).count();
    verdict.count("operations with an answer", definite);
    verdict.count("operations of unknown outcome", operations.len() - definite);
    let claimed: BTreeSet<i64> = all.iter().filter_map(Judged::claims).collect();
    let question = Question { initial, scope, watched, claimed: &claimed };
    let answered = question.ask(operations, configurations_max, |mut model, calls, found| match found {
        Found::Order(order) => {
            // The search goes back to where it began.
            model.redo(&order, calls);
            Some(Some(model.into_store()))
        }
        Found::Undecided => Some(None),
        Found::Nothing { .. } => None,
    });
    match answered {
        Err(anomaly) => verdict.anomalies.push(anomaly),
        Ok(Some(Some(store))) => return (verdict, Some(store)),
        Ok(Some(None)) => verdict
            .undecided
            .push(format!("no order of {} operations within {configurations_max} configurations", operations.len())),
        Ok(None) => verdict.anomalies.push(question.smallest(operations, configurations_max)),
    }
    (verdict, None)
}

/// Whether operations have an order, but for the operations.
struct Question<'a> {
    initial: &'a Store,
    scope: Scope,
    watched: &'a Evidence,
    claimed: &'a BTreeSet<i64>,
}

impl Question<'_> {
    /// Searches, and hands what was found to `then`. What a single answer contradicts is an anomaly at once.
    fn ask<T>(
        &self,
        operations: &[Judged],
        configurations_max: usize,
        then: impl FnOnce(StoreModel, &[Call], Found) -> T,
    ) -> Result<T, Anomaly> {
        let evidence = Evidence::of_operations(operations, self.watched)?;
        let calls: Vec<Call> = operations.iter().map(Judged::call).collect();
        let mut model = StoreModel::new(self.initial.clone(), operations, self.scope, &evidence, self.claimed);
        let found = search(&mut model, &calls, configurations_max);
        Ok(then(model, &calls, found))
    }

    /// Of operations that have no order, those that show it.
    fn smallest(&self, operations: &[Judged], configurations_max: usize) -> Anomaly {
        let part = shrink(operations, |part| {
            let found = self.ask(part, CONFIGURATIONS_OF_PART_MAX, |_, _, found| found);
            matches!(found, Ok(Found::Nothing { .. }))
        });
        let explained = self.ask(&part, configurations_max, |mut model, calls, found| {
            let Found::Nothing { longest, stuck } = found else { unreachable!("it was found to have no order") };
            let explanation = explain(&mut model, &part, calls, &longest, &stuck);
            // With the end of the order, they are the smallest history that shows it.
            let end = longest[longest.len().saturating_sub(SHOWN_OF_ORDER)..].iter();
            let late = first_left(calls, &longest);
            let entries = end.chain(&stuck).chain(&late).map(|operation| part[*operation].invoked).collect();
            let (few, all) = (part.len(), operations.len());
            let explanation = format!("{few} of {all} operations show it: {explanation}");
            Anomaly { name: "not linearizable", explanation, entries }
        });
        explained.unwrap_or_else(|anomaly| anomaly)
    }
}

/// The end of the longest order, and why none of the operations that run then can be next.
fn explain(
    model: &mut StoreModel,
    operations: &[Judged],
    calls: &[Call],
    longest: &[usize],
    stuck: &[usize],
) -> String {
    let mut lines = vec![format!("after {} operations none of those that run can be next", longest.len())];
    let from = longest.len().saturating_sub(SHOWN_OF_ORDER);
    lines.extend(longest[from..].iter().map(|operation| format!("  done: {}", operations[*operation])));
    model.redo(longest, calls);
    let late = first_left(calls, longest);
    for operation in stuck {
        let why_not = match late.filter(|late| comes_before(calls, *late, *operation)) {
            Some(late) => format!("by its revision it comes after {}, which was asked later", operations[late]),
            None => model.why_not(*operation),
        };
        lines.push(format!("  cannot be next: {}; {why_not}", operations[*operation]));
    }
    lines.join("\n")
}

/// Of what has no place in the order, the operation of the lowest rank.
fn first_left(calls: &[Call], order: &[usize]) -> Option<usize> {
    let placed: HashSet<usize> = order.iter().copied().collect();
    let left = (0..calls.len()).filter(|operation| !placed.contains(operation) && calls[*operation].ended.is_some());
    left.filter(|operation| calls[*operation].rank.is_some()).min_by_key(|operation| calls[*operation].rank)
}

fn comes_before(calls: &[Call], one: usize, other: usize) -> bool {
    let (Some((_, highest)), Some((lowest, _))) = (calls[one].rank, calls[other].rank) else { return false };
    highest < lowest
}

/// The key that a request is about, if it is about one only.
fn single_key(request: &Request) -> Option<&Blob> {
    let mut touched = Vec::new();
    match request {
        Request::As { request, .. } => return single_key(request),
        Request::Put(put) => touched.push(Some(&put.key)),
        Request::Range(range) => touched.push(one(&range.keys)),
        Request::DeleteRange(delete) => touched.push(one(&delete.keys)),
        Request::Txn(txn) => touch(txn, &mut touched),
        _ => {}
    }
    let first = *touched.first()?;
    touched.iter().all(|key| *key == first).then_some(first)?
}

fn one(keys: &Keys) -> Option<&Blob> {
    keys.is_one().then_some(&keys.key)
}

fn touch<'a>(txn: &'a Txn, touched: &mut Vec<Option<&'a Blob>>) {
    touched.extend(txn.compares.iter().map(|compare| one(&compare.keys)));
    for op in txn.success.iter().chain(&txn.failure) {
        match op {
            TxnOp::Put(put) => touched.push(Some(&put.key)),
            TxnOp::Range(range) => touched.push(one(&range.keys)),
            TxnOp::DeleteRange(delete) => touched.push(one(&delete.keys)),
            TxnOp::Txn(txn) => touch(txn, touched),
        }
    }
}
