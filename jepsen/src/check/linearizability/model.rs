//! The store as the search's machine.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use anyhow::{Result, bail};

use super::{
    super::{
        history::{Answer, CompareTarget, Header, Operation, Outcome, Range, Request, Response, TxnResult},
        store::{Store, Undo},
    },
    Evidence, Scope,
    search::{Call, Model},
};

/// An operation that the search finds a place for.
#[derive(Clone, Debug)]
pub struct Judged {
    pub process: u64,
    pub invoked: usize,
    pub ended: Option<usize>,
    pub request: Request,
    /// `None`: the outcome is unknown.
    pub response: Option<Response>,
}

impl Judged {
    /// What an operation stands for: itself, and the expiry of a lease that it grants.
    pub fn new(operation: &Operation) -> Result<Vec<Judged>> {
        let mut judged = Judged {
            process: operation.process,
            invoked: operation.invoked,
            ended: None,
            request: operation.request.clone(),
            response: None,
        };
        if let Outcome::Ok { ended, response, .. } = &operation.outcome {
            judged.ended = Some(*ended);
            judged.response = Some(response.clone());
        }
        while let Request::As { request, .. } = judged.request {
            judged.request = *request;
        }
        match &mut judged.request {
            Request::Put(_) | Request::Range(_) | Request::DeleteRange(_) | Request::Txn(_) => {}
            Request::LeaseRevoke { .. } | Request::Compact { .. } => {}
            Request::LeaseGrant { lease, .. } => {
                if let Some(Response { answer: Answer::LeaseGrant { lease: granted, .. }, .. }) = &judged.response {
                    *lease = *granted;
                }
                // Without an answer nobody knows the lease that the store chose.
                if *lease == 0 {
                    return Ok(Vec::new());
                }
                let request = Request::LeaseRevoke { lease: *lease };
                let expiry = Judged { request, response: None, ended: None, ..judged };
                return Ok(vec![judged, expiry]);
            }
            other => bail!("the model of the store does not know {other:?}"),
        }
        Ok(vec![judged])
    }

    /// A read of nothing, which takes the store to a revision that it is known to have had in a history of so many
    /// entries.
    pub fn reached(revision: i64, entries: usize) -> Judged {
        let answer = Answer::Range { kvs: Vec::new(), count: 0, more: false };
        Judged {
            process: u64::MAX,
            invoked: 0,
            ended: Some(entries),
            request: Request::Range(Range::default()),
            response: Some(Response { header: Header { revision, ..Header::default() }, answer }),
        }
    }

    /// Writes come before reads of the same revision.
    pub fn call(&self) -> Call {
        let revision = self.response.as_ref().map_or(0, |response| response.header.revision);
        let ranks = match self.effect() {
            _ if revision == 0 => None,
            Some(true) => Some((2 * revision, 2 * revision)),
            Some(false) => Some((2 * revision + 1, 2 * revision + 1)),
            None => Some((2 * revision, 2 * revision + 1)),
        };
        Call { invoked: self.invoked, ended: self.ended, rank: ranks }
    }

    /// Whether the store is the same without it, whatever else happened.
    pub fn changes_nothing(&self) -> bool {
        match &self.request {
            Request::Range(_) => true,
            Request::DeleteRange(_) | Request::Txn(_) => self.effect() == Some(false),
            _ => false,
        }
    }

    /// The revision that it was told as its own.
    pub fn claims(&self) -> Option<i64> {
        let revision = self.response.as_ref()?.header.revision;
        (revision > 0 && self.effect() == Some(true)).then_some(revision)
    }

    /// Whether it made a revision, as far as its answer tells.
    fn effect(&self) -> Option<bool> {
        match &self.response.as_ref()?.answer {
            Answer::Put { .. } => Some(true),
            Answer::DeleteRange { deleted, .. } => Some(*deleted > 0),
            Answer::Txn { results, .. } => Some(any_write(results)),
            Answer::LeaseRevoke => None,
            _ => Some(false),
        }
    }
}

fn any_write(results: &[TxnResult]) -> bool {
    results.iter().any(|result| match result {
        TxnResult::Put { .. } => true,
        TxnResult::DeleteRange { deleted, .. } => *deleted > 0,
        TxnResult::Range { .. } => false,
        TxnResult::Txn { results, .. } => any_write(results),
    })
}

impl fmt::Display for Judged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = |value: Result<String, serde_json::Error>| value.expect("requests and answers are JSON");
        write!(f, "entry {}, process {}: {}", self.invoked, self.process, json(serde_json::to_string(&self.request)))?;
        match &self.response {
            Some(response) => write!(f, " -> {}", json(serde_json::to_string(response))),
            None => write!(f, " -> unknown"),
        }
    }
}

pub struct StoreModel<'a> {
    store: Store,
    operations: &'a [Judged],
    scope: Scope,
    evidence: &'a Evidence,
    /// Revisions that someone was told as his own.
    claimed: &'a BTreeSet<i64>,
    reserved: BTreeMap<usize, i64>,
    /// Revisions that comparisons name.
    named: BTreeSet<i64>,
}

impl<'a> StoreModel<'a> {
    pub fn new(
        mut store: Store,
        operations: &'a [Judged],
        scope: Scope,
        evidence: &'a Evidence,
        claimed: &'a BTreeSet<i64>,
    ) -> StoreModel<'a> {
        for operation in operations.iter().filter(|operation| operation.response.is_none()) {
            if let Request::LeaseGrant { lease, .. } = operation.request {
                store.lease_is_possible(lease);
            }
        }
        let reserved = evidence.reservations(operations, claimed);
        let mut named = BTreeSet::new();
        operations.iter().for_each(|operation| name(&operation.request, &mut named));
        StoreModel { store, operations, scope, evidence, claimed, reserved, named }
    }

    pub fn into_store(self) -> Store {
        self.store
    }

    /// Does the operations of an order that the search has found.
    pub fn redo(&mut self, order: &[usize], calls: &[Call]) {
        let mut done = vec![false; calls.len()];
        for operation in order {
            let left = calls.iter().zip(&done).filter(|(call, done)| !**done && call.ended.is_some());
            let horizon = left.filter_map(|(call, _)| Some(call.rank?.1)).min().unwrap_or(i64::MAX);
            assert!(self.apply(*operation, horizon).is_some(), "it could be done before");
            done[*operation] = true;
        }
    }

    /// What speaks against an operation that has an answer.
    pub fn why_not(&mut self, operation: usize) -> String {
        let before = self.store.revision();
        let operation = &self.operations[operation];
        let executed = self.store.execute(&operation.request, before + 1);
        let answer = executed.answer.as_ref().map(|answer| serde_json::to_string(answer).expect("answers are JSON"));
        let revision = self.store.revision();
        self.store.undo(executed.undo);
        match answer {
            Some(answer) => format!("at revision {before} a store answers {answer} with revision {revision}"),
            None => format!("at revision {before} a store refuses it"),
        }
    }

    fn definite(&mut self, operation: usize, response: &Response) -> Option<Undo> {
        let before = self.store.revision();
        let (told, claims) = (response.header.revision, self.operations[operation].claims());
        let next = match (self.scope, claims) {
            (Scope::Key, Some(own)) if own <= before => return None,
            (Scope::Key, Some(own)) => own,
            (Scope::Key, None) if told > 0 => {
                if told < before {
                    return None;
                }
                self.store.skip_to(told);
                told + 1
            }
            (Scope::Key | Scope::Store, _) => before + 1,
        };
        let mut executed = self.store.execute(&self.operations[operation].request, next);
        executed.undo.back_to(before);
        let answered = executed.answer.as_ref().is_some_and(|answer| agree(answer, &response.answer));
        let in_place = told == 0 || self.store.revision() == told;
        if answered && in_place && (executed.undo.written().is_empty() || self.evidence.agrees(&self.store)) {
            return Some(executed.undo);
        }
        self.store.undo(executed.undo);
        None
    }

    /// An operation that writes nothing makes no difference.
    fn unknown(&mut self, operation: usize, next: i64) -> Option<Undo> {
        let executed = self.store.execute(&self.operations[operation].request, next);
        if !executed.undo.written().is_empty() && self.evidence.agrees(&self.store) {
            return Some(executed.undo);
        }
        self.store.undo(executed.undo);
        None
    }

    /// Where an operation on one key was done, if it was: at the next revision that is known to be of this key and
    /// nobody's, if it could have made that, or else at any that nobody was told about.
    fn unknown_of_key(&mut self, operation: usize, horizon: i64) -> Option<Undo> {
        // What lies beyond is looked at later, not again and again from here.
        let possible = self.store.revision() + 1..=horizon / 2;
        if possible.is_empty() {
            return None;
        }
        let reserved = self.reserved.get(&operation).copied();
        let known = reserved.or_else(|| self.evidence.first_unclaimed(possible.clone(), self.claimed));
        if let Some(known) = known.filter(|known| possible.contains(known)) {
            if let Some(undo) = self.unknown(operation, known) {
                return Some(undo);
            }
        }
        if reserved.is_some() {
            return None;
        }
        // One that no comparison names is better: by a revision that nobody was told none can have succeeded.
        let mut free = possible.filter(|revision| !self.claimed.contains(revision) && !self.evidence.has(*revision));
        let first = free.next()?;
        let unnamed = if self.named.contains(&first) { free.find(|free| !self.named.contains(free)) } else { None };
        self.unknown(operation, unnamed.unwrap_or(first))
    }
}

/// Adds the revisions that a request's comparisons name.
fn name(request: &Request, named: &mut BTreeSet<i64>) {
    let Request::Txn(txn) = request else { return };
    for compare in &txn.compares {
        if let CompareTarget::ModRevision(revision) | CompareTarget::CreateRevision(revision) = compare.target {
            named.insert(revision);
        }
    }
}

/// Whether a write at this revision is before what comes next.
fn in_turn(revision: i64, horizon: i64) -> bool {
    revision <= horizon / 2
}

impl Model for StoreModel<'_> {
    type Undo = Undo;

    fn apply(&mut self, operation: usize, horizon: i64) -> Option<Undo> {
        let operations = self.operations;
        if let Some(response) = &operations[operation].response {
            return self.definite(operation, response);
        }
        match operations[operation].request {
            // What they do is to make other requests possible or not; none that was done needs them.
            Request::LeaseGrant { .. } | Request::Compact { .. } | Request::Range(_) => None,
            _ if self.scope == Scope::Key => self.unknown_of_key(operation, horizon),
            _ => {
                let next = self.store.revision() + 1;
                let elsewhere = self.reserved.get(&operation).is_some_and(|reserved| *reserved != next);
                if elsewhere || self.claimed.contains(&next) || !in_turn(next, horizon) {
                    return None;
                }
                self.unknown(operation, next)
            }
        }
    }

    fn undo(&mut self, undo: Undo) {
        self.store.undo(undo);
    }

    fn fingerprint(&self) -> u128 {
        self.store.fingerprint() ^ u128::from(self.store.revision().unsigned_abs()).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// A lease's time to live may be more than was asked for.
fn agree(executed: &Answer, answered: &Answer) -> bool {
    match (executed, answered) {
        (Answer::LeaseGrant { lease, .. }, Answer::LeaseGrant { lease: answered, .. }) => lease == answered,
        _ => executed == answered,
    }
}
