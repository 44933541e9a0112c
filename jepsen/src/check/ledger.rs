//! A ledger: values that are each written once, and where they were found.
//!
//! | found | meaning |
//! |---|---|
//! | written twice | a value was written at two revisions, whatever became of its request |
//! | lost | a write was acknowledged, and the store did not do it at the revision that was told |
//! | phantom | a write failed for certain, or was in the branch of a transaction that was not taken, and was done |
//!
//! Of a client that sends requests again this says that it does so only where that is safe: a value that such a client
//! writes twice stands in the store at two revisions, also where the next write has taken its place.

use std::collections::HashMap;

use anyhow::Result;

use super::{
    history::{Answer, Blob, History, Operation, Outcome, Put, Request, Txn, TxnOp},
    store::Store,
    verdict::Verdict,
};

/// What is to be found of a value.
enum Expected {
    At(i64),
    Never,
    /// Nobody knows what became of it.
    OnceAtMost,
}

/// Judges all puts, also those in transactions, against every version of every key. Each has a value of its own.
pub fn check(history: &History, truth: &Store) -> Result<Verdict> {
    let mut written: HashMap<(&Blob, &Blob), Vec<i64>> = HashMap::new();
    for (revision, key, kv) in truth.written(0..=truth.revision()) {
        if let Some(kv) = kv {
            written.entry((key, &kv.value)).or_default().push(revision);
        }
    }
    let mut verdict = Verdict::default();
    for operation in &history.operations()? {
        for (put, expected) in puts(operation) {
            let revisions = written.get(&(&put.key, &put.value)).map_or(&[][..], Vec::as_slice);
            judge(operation, put, &expected, revisions, &mut verdict);
        }
    }
    Ok(verdict)
}

fn puts(operation: &Operation) -> Vec<(&Put, Expected)> {
    match &operation.request {
        Request::Put(put) => vec![(put, expected(operation, true))],
        Request::Txn(Txn { success, failure, .. }) => {
            let succeeded = match operation.response().map(|response| &response.answer) {
                Some(Answer::Txn { succeeded, .. }) => Some(*succeeded),
                _ => None,
            };
            let branch = |ops, is_success: bool| {
                let is_taken = succeeded.is_none_or(|succeeded| succeeded == is_success);
                own_puts(ops).map(move |put| (put, expected(operation, is_taken)))
            };
            branch(success, true).chain(branch(failure, false)).collect()
        }
        _ => Vec::new(),
    }
}

fn own_puts(ops: &[TxnOp]) -> impl Iterator<Item = &Put> {
    ops.iter().filter_map(|op| match op {
        TxnOp::Put(put) => Some(put),
        _ => None,
    })
}

fn expected(operation: &Operation, is_taken: bool) -> Expected {
    match &operation.outcome {
        Outcome::Ok { response, .. } if is_taken => Expected::At(response.header.revision),
        Outcome::Ok { .. } | Outcome::Failed { .. } => Expected::Never,
        Outcome::Unknown { .. } => Expected::OnceAtMost,
    }
}

fn judge(operation: &Operation, put: &Put, expected: &Expected, revisions: &[i64], verdict: &mut Verdict) {
    let entry = [operation.invoked];
    let shown = format!("{} = {} of process {}", put.key, put.value, operation.process);
    if revisions.len() > 1 {
        verdict.found("written twice", entry, format!("{shown} was written at revisions {revisions:?}"));
    }
    match expected {
        Expected::At(revision) => {
            verdict.count("writes acknowledged", 1);
            if !revisions.contains(revision) {
                let explanation = format!("{shown} was acknowledged at revision {revision}, and is at {revisions:?}");
                verdict.found("lost", entry, explanation);
            }
        }
        Expected::Never => {
            verdict.count("writes refused", 1);
            if !revisions.is_empty() {
                verdict.found("phantom", entry, format!("{shown} was not done, and is at {revisions:?}"));
            }
        }
        Expected::OnceAtMost => verdict.count("writes of unknown outcome", 1),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            history::{Compare, CompareResult, CompareTarget, Keys, TxnResult},
            tape::{Tape, kv, put},
        },
        *,
    };

    /// a = 1 at revision 2, a = 2 at 3, b = 1 at 4.
    fn truth() -> Store {
        let mut truth = Store::default();
        truth.witness(2, "a".into(), Some(kv("a", "1", (2, 2, 1))));
        truth.witness(3, "a".into(), Some(kv("a", "2", (2, 3, 2))));
        truth.witness(4, "b".into(), Some(kv("b", "1", (4, 4, 1))));
        truth
    }

    fn names(tape: &Tape) -> Vec<&'static str> {
        check(&tape.history, &truth()).unwrap().names()
    }

    #[test]
    fn writes_that_are_where_they_were_told_to_be_are_accepted() {
        let mut tape = Tape::default();
        tape.put(1, "a", "1", 2).ask(2, put("a", "2")).lost(2).ask(3, put("a", "3")).lost(3);
        tape.ask(4, put("a", "4")).failed(4, "refused").put(1, "b", "1", 4);
        let verdict = check(&tape.history, &truth()).unwrap();
        assert!(verdict.passes(), "{verdict}");
        assert_eq!(verdict.looked_at["writes acknowledged"], 2);
        assert!(!check(&Tape::default().history, &truth()).unwrap().passes(), "nothing proves nothing");
    }

    #[test]
    fn a_write_that_is_not_where_it_was_told_to_be_is_lost() {
        for (value, revision) in [("1", 3), ("9", 2)] {
            let mut tape = Tape::default();
            tape.put(1, "a", value, revision);
            assert_eq!(names(&tape), ["lost"]);
        }
    }

    #[test]
    fn a_write_that_was_refused_and_done_is_a_phantom() {
        let mut tape = Tape::default();
        tape.ask(1, put("a", "2")).failed(1, "refused");
        assert_eq!(names(&tape), ["phantom"]);
    }

    #[test]
    fn a_value_that_was_written_twice_is_found_whether_it_was_acknowledged_or_not() {
        let mut truth = truth();
        truth.witness(5, "a".into(), Some(kv("a", "2", (2, 5, 3))));
        let mut acknowledged = Tape::default();
        acknowledged.put(1, "a", "2", 5);
        let mut unknown = Tape::default();
        unknown.ask(1, put("a", "2")).lost(1);
        for tape in [acknowledged, unknown] {
            assert_eq!(check(&tape.history, &truth).unwrap().names(), ["written twice"]);
        }
    }

    #[test]
    fn of_a_transaction_one_branch_is_done() {
        let txn = |success: Put, failure: Put| {
            let compare = Compare {
                keys: Keys::one("b"),
                result: CompareResult::Equal,
                target: CompareTarget::CreateRevision(0),
            };
            let (success, failure) = (vec![TxnOp::Put(success)], vec![TxnOp::Put(failure)]);
            Request::Txn(Txn { compares: vec![compare], success, failure })
        };
        let value = |key: &str, value: &str| Put { key: key.into(), value: value.into(), ..Put::default() };
        let taken = || Answer::Txn { succeeded: true, results: vec![TxnResult::Put { prev_kv: None }] };
        let mut right = Tape::default();
        right.done(1, txn(value("a", "2"), value("a", "9")), 3, taken());
        assert!(names(&right).is_empty());
        let mut wrong = Tape::default();
        wrong.done(1, txn(value("a", "2"), value("b", "1")), 3, taken());
        assert_eq!(names(&wrong), ["phantom"]);
    }
}
