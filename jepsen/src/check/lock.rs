//! Locks: what is done under one is not done under two at once.
//!
//! A bare lock promises less than one would wish: its holder may be paused, its lease expire, another get it, and the
//! first go on believing that it has it. No lock service can prevent that. What can be promised, and is checked here,
//! is about effects that are *guarded*: written by transactions that compare the create revision of the lock's key with
//! what the holder was given. Such a write succeeds only while that key is there.
//!
//! | found | meaning |
//! |---|---|
//! | two holders | a holder's key was created while an earlier holder's was still there |
//! | effect without the lock | a guarded write that succeeded when the guard's key was not there |
//! | not its lock | the key that was given to a holder is not there at that revision, or not of that lock |
//!
//! Holders are judged by the store's revisions and not by clocks: the one whose key has the lowest create revision
//! under a lock's name holds it.

use anyhow::Result;

use super::{
    history::{
        Answer, Blob, Compare, CompareResult, CompareTarget, History, Keys, Operation, Outcome, Request, Response,
        TxnResult,
    },
    linearizability::is_local,
    store::Store,
    verdict::Verdict,
};

/// Judges locks and the transactions that they guard, against the store as it was at each revision.
pub fn check(history: &History, truth: &Store) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    let operations = history.operations()?;
    for operation in &operations {
        let Outcome::Ok { response, ended, .. } = &operation.outcome else { continue };
        let (revision, invoked) = (response.header.revision, operation.invoked);
        match (&operation.request, &response.answer) {
            (Request::Lock { name, .. }, Answer::Lock { key }) => {
                verdict.count("locks", 1);
                judge_holder(invoked, name, key, revision, truth, &mut verdict);
            }
            (Request::Campaign { name, .. }, Answer::Campaign { leader, create_revision }) => {
                verdict.count("locks", 1);
                let until = revision_at(*ended, &operations).unwrap_or(truth.revision());
                judge_leader(invoked, name, (leader, *create_revision), until, truth, &mut verdict);
            }
            _ => judge_effect(operation, response, truth, &mut verdict),
        }
    }
    Ok(verdict)
}

/// Of all keys under a lock's name the holder's must be the oldest.
fn judge_holder(entry: usize, name: &Blob, key: &Blob, revision: i64, truth: &Store, verdict: &mut Verdict) {
    let prefix = Blob::from([&name[..], b"/"].concat());
    let Some(own) = truth.at(key, revision).filter(|_| key.starts_with(&prefix)) else {
        let explanation = format!("{key} was given for lock {name}, and was not there at revision {revision}");
        verdict.found("not its lock", [entry], explanation);
        return;
    };
    let waiting = truth.range(&Keys::prefix(prefix), revision);
    if let Some(older) =
        waiting.filter(|other| other.create_revision < own.create_revision).min_by_key(|kv| kv.create_revision)
    {
        let explanation = format!(
            "{key} (created at {}) was given lock {name} at revision {revision}, when {} (created at {}) had it",
            own.create_revision, older.key, older.create_revision
        );
        verdict.found("two holders", [entry], explanation);
    }
}

/// A campaign is answered with the revision of its beginning. Its key must have been the oldest at some revision until
/// the answer came.
fn judge_leader(
    entry: usize,
    name: &Blob,
    (key, created): (&Blob, i64),
    until: i64,
    truth: &Store,
    verdict: &mut Verdict,
) {
    let prefix = Keys::prefix([&name[..], b"/"].concat());
    let changes = truth.written(created..=until).filter(|(_, key, _)| prefix.contains(key));
    let is_oldest = |revision: i64| {
        let oldest = truth.range(&prefix, revision).min_by_key(|kv| kv.create_revision);
        oldest.is_some_and(|oldest| oldest.key == *key && oldest.create_revision == created)
    };
    if !changes.map(|(revision, _, _)| revision).any(is_oldest) {
        let explanation = format!("{key} (created at {created}) leads {name}, but until {until} was never the oldest");
        verdict.found("two holders", [entry], explanation);
    }
}

/// The highest revision that the store can have had at a place in the history: what anyone was told who asked later.
fn revision_at(place: usize, operations: &[Operation]) -> Option<i64> {
    let later = operations.iter().filter(|operation| operation.invoked > place && !is_local(&operation.request));
    later.filter_map(|operation| Some(operation.response()?.header.revision)).filter(|told| *told > 0).min()
}

/// A write whose guard was the create revision of a lock's key.
fn judge_effect(operation: &Operation, response: &Response, truth: &Store, verdict: &mut Verdict) {
    let (Request::Txn(txn), Answer::Txn { succeeded: true, results }) = (&operation.request, &response.answer) else {
        return;
    };
    let wrote = results.iter().any(|result| matches!(result, TxnResult::Put { .. }));
    for (key, created) in txn.compares.iter().filter_map(guard).filter(|_| wrote) {
        verdict.count("guarded effects", 1);
        // The comparison is made with the state before the write.
        let before = response.header.revision - 1;
        let held = truth.at(key, before).is_some_and(|kv| kv.create_revision == created);
        if !held {
            let explanation = format!(
                "written at revision {} under {key} (created at {created}), which was not there",
                response.header.revision
            );
            verdict.found("effect without the lock", [operation.invoked], explanation);
        }
    }
}

fn guard(compare: &Compare) -> Option<(&Blob, i64)> {
    match (compare.result, &compare.target) {
        (CompareResult::Equal, CompareTarget::CreateRevision(created)) if *created > 0 && compare.keys.is_one() => {
            Some((&compare.keys.key, *created))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            history::{Put, Txn, TxnOp},
            tape::{Tape, kv},
        },
        *,
    };

    /// Revision 2 and 3: two wait for the lock. Revision 4: the first goes.
    fn truth() -> Store {
        let mut truth = Store::default();
        truth.witness(2, "l/a".into(), Some(kv("l/a", "", (2, 2, 1))));
        truth.witness(3, "l/b".into(), Some(kv("l/b", "", (3, 3, 1))));
        truth.witness(4, "l/a".into(), None);
        truth.witness(5, "x".into(), Some(kv("x", "1", (5, 5, 1))));
        truth
    }

    fn lock(tape: &mut Tape, process: u64, key: &str, revision: i64) {
        let request = Request::Lock { name: "l".into(), lease: 1 };
        tape.done(process, request, revision, Answer::Lock { key: key.into() });
    }

    fn effect(tape: &mut Tape, key: &str, created: i64, revision: i64) {
        let compare = Compare {
            keys: Keys::one(key),
            result: CompareResult::Equal,
            target: CompareTarget::CreateRevision(created),
        };
        let put = Put { key: "x".into(), ..Put::default() };
        let txn = Txn { compares: vec![compare], success: vec![TxnOp::Put(put)], failure: vec![] };
        let answer = Answer::Txn { succeeded: true, results: vec![TxnResult::Put { prev_kv: None }] };
        tape.done(9, Request::Txn(txn), revision, answer);
    }

    fn names(tape: &Tape) -> Vec<&'static str> {
        check(&tape.history, &truth()).unwrap().names()
    }

    #[test]
    fn holders_one_after_the_other_are_accepted() {
        let mut tape = Tape::default();
        lock(&mut tape, 1, "l/a", 2);
        effect(&mut tape, "l/a", 2, 3);
        lock(&mut tape, 2, "l/b", 4);
        effect(&mut tape, "l/b", 3, 5);
        assert!(check(&tape.history, &truth()).unwrap().passes());
        assert!(!check(&Tape::default().history, &truth()).unwrap().passes(), "nothing proves nothing");
    }

    #[test]
    fn two_holders_at_once_are_found() {
        let mut tape = Tape::default();
        lock(&mut tape, 1, "l/a", 2);
        lock(&mut tape, 2, "l/b", 3);
        assert_eq!(names(&tape), ["two holders"]);
    }

    #[test]
    fn a_leader_that_was_never_the_oldest_is_found() {
        let campaign = || Request::Campaign { name: "l".into(), lease: 1, value: "".into() };
        let leads = || Answer::Campaign { leader: "l/b".into(), create_revision: 3 };
        let mut tape = Tape::default();
        tape.done(2, campaign(), 3, leads()).get(1, "x", 4, vec![]);
        assert!(names(&tape).is_empty(), "the first was gone by revision 4");
        let mut early = Tape::default();
        early.done(2, campaign(), 3, leads()).get(1, "x", 3, vec![]);
        assert_eq!(names(&early), ["two holders"]);
    }

    #[test]
    fn an_effect_after_the_lock_was_lost_is_found() {
        let mut tape = Tape::default();
        lock(&mut tape, 1, "l/a", 2);
        effect(&mut tape, "l/a", 2, 5);
        assert_eq!(names(&tape), ["effect without the lock"]);
    }

    #[test]
    fn a_lock_that_is_not_there_is_found() {
        let mut tape = Tape::default();
        lock(&mut tape, 1, "l/a", 4);
        lock(&mut tape, 1, "other/a", 2);
        assert_eq!(check(&tape.history, &truth()).unwrap().anomalies.len(), 2);
        assert_eq!(names(&tape), ["not its lock"]);
    }
}
