//! Leases: never early, gone afterwards, and all keys at once.
//!
//! A lease that was granted or kept alive for a time must live that long. Who asked for it knows no moment at which the
//! store began to count, but that it was not before the request was made. So a lease must not be told as gone, nor its
//! keys be deleted, before the last renewal's *invocation* plus its time to live, by the clock of the history. Clocks
//! of members may differ from that one in rate: the caller says by how much. A revocation that was asked for, even one
//! of unknown outcome, excuses everything.
//!
//! A lease that nobody renews must be gone within a bound, with its keys; and its keys go at one revision, which deletes
//! nothing else.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use super::{
    history::{Answer, Blob, Event, History, Keys, Operation, Outcome, Request, Txn, TxnOp, WatchSeen},
    store::Store,
    verdict::Verdict,
};

#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// How much less than its time a lease may live, for clocks that differ.
    pub early_ns: u64,
    /// How long after its time a lease may still be there. New leaders extend leases, so this holds an election and a
    /// time to live.
    pub late_ns: u64,
}

/// One lease.
#[derive(Default)]
struct Lease {
    /// Invocations of the grant and of renewals that were acknowledged, each with the moment until which it must live.
    renewals: Vec<(usize, u64)>,
    /// The last moment until which anything that was asked for may make it live. `None`: for ever.
    lives_at_most_ns: Option<u64>,
    /// Where its revocation was asked for first.
    revoked: Option<usize>,
    /// Where and when it was told as gone.
    told_gone: Vec<Seen>,
    told_alive: Vec<Seen>,
}

/// What was told by an operation.
#[derive(Clone, Copy)]
struct Seen {
    invoked: usize,
    invoked_ns: u64,
    ended_ns: u64,
}

/// Judges all leases of a history, against the store as it was at each revision.
pub fn check(history: &History, truth: &Store, bounds: Bounds) -> Result<Verdict> {
    let mut leases: BTreeMap<i64, Lease> = BTreeMap::new();
    let mut deleted_by_clients: Vec<Keys> = Vec::new();
    for operation in history.operations()? {
        take(&mut leases, &operation);
        if operation.may_have_happened() {
            keys_deleted(&operation.request, &mut deleted_by_clients);
        }
    }
    let mut verdict = Verdict::default();
    verdict.count("leases", leases.len());
    let deletions = deletions(history, truth);
    for (id, lease) in &leases {
        judge_early(*id, lease, bounds, &mut verdict);
        judge_late(*id, lease, bounds, &mut verdict);
        judge_keys(*id, lease, &deletions, bounds, &mut verdict);
    }
    judge_atomic(truth, &leases, &deleted_by_clients, &mut verdict);
    Ok(verdict)
}

/// Adds the keys that a request deletes, or may.
fn keys_deleted(request: &Request, keys: &mut Vec<Keys>) {
    fn of_txn(txn: &Txn, keys: &mut Vec<Keys>) {
        for op in txn.success.iter().chain(&txn.failure) {
            match op {
                TxnOp::DeleteRange(delete) => keys.push(delete.keys.clone()),
                TxnOp::Txn(txn) => of_txn(txn, keys),
                TxnOp::Put(_) | TxnOp::Range(_) => {}
            }
        }
    }
    match request {
        Request::As { request, .. } => keys_deleted(request, keys),
        Request::DeleteRange(delete) => keys.push(delete.keys.clone()),
        Request::Txn(txn) => of_txn(txn, keys),
        _ => {}
    }
}

fn take(leases: &mut BTreeMap<i64, Lease>, operation: &Operation) {
    let seen = |ended_ns| Seen { invoked: operation.invoked, invoked_ns: operation.invoked_ns, ended_ns };
    let answer = match &operation.outcome {
        Outcome::Ok { ended_ns, response, .. } => Some((*ended_ns, &response.answer)),
        Outcome::Failed { .. } => return,
        Outcome::Unknown { .. } => None,
    };
    match (&operation.request, answer) {
        (Request::LeaseGrant { .. }, Some((ended_ns, Answer::LeaseGrant { lease, ttl_s })))
        | (Request::LeaseKeepAlive { .. }, Some((ended_ns, Answer::LeaseKeepAlive { lease, ttl_s: ttl_s @ 1.. }))) => {
            let of = leases.entry(*lease).or_default();
            let ttl_ns = u64::try_from(*ttl_s).unwrap_or(0) * 1_000_000_000;
            of.renewals.push((operation.invoked, operation.invoked_ns + ttl_ns));
            if let Some(most) = &mut of.lives_at_most_ns {
                *most = (*most).max(ended_ns + ttl_ns);
            } else if of.renewals.len() == 1 {
                of.lives_at_most_ns = Some(ended_ns + ttl_ns);
            }
        }
        (Request::LeaseKeepAlive { lease }, Some((ended_ns, _))) => {
            leases.entry(*lease).or_default().told_gone.push(seen(ended_ns));
        }
        // It may be renewed at any later time.
        (Request::LeaseKeepAlive { lease }, None) => {
            let of = leases.entry(*lease).or_default();
            of.lives_at_most_ns = None;
            of.renewals.push((operation.invoked, 0));
        }
        (Request::LeaseRevoke { lease }, _) => {
            let of = leases.entry(*lease).or_default();
            of.revoked = Some(of.revoked.map_or(operation.invoked, |revoked| revoked.min(operation.invoked)));
        }
        (Request::LeaseTimeToLive { lease, .. }, Some((ended_ns, Answer::LeaseTimeToLive { ttl_s, .. }))) => {
            let of = leases.entry(*lease).or_default();
            if *ttl_s < 0 { of.told_gone.push(seen(ended_ns)) } else { of.told_alive.push(seen(ended_ns)) }
        }
        _ => {}
    }
}

impl Lease {
    /// Until when it must live by what was acknowledged of it up to a place in the history.
    fn must_live_until_ns(&self, before: usize) -> u64 {
        let renewals = self.renewals.iter().filter(|(invoked, _)| *invoked < before);
        renewals.map(|(_, until_ns)| *until_ns).max().unwrap_or(0)
    }

    fn is_revoked_before(&self, place: usize) -> bool {
        self.revoked.is_some_and(|revoked| revoked < place)
    }
}

fn judge_early(id: i64, lease: &Lease, bounds: Bounds, verdict: &mut Verdict) {
    for seen in &lease.told_gone {
        let until_ns = lease.must_live_until_ns(seen.invoked);
        if !lease.is_revoked_before(usize::MAX) && seen.ended_ns + bounds.early_ns < until_ns {
            let early_ms = (until_ns - seen.ended_ns) / 1_000_000;
            verdict.found(
                "expired early",
                [seen.invoked],
                format!("lease {id} was gone {early_ms} ms before its time"),
            );
        }
    }
}

fn judge_late(id: i64, lease: &Lease, bounds: Bounds, verdict: &mut Verdict) {
    let Some(most_ns) = lease.lives_at_most_ns else { return };
    for seen in lease.told_alive.iter().filter(|seen| seen.invoked_ns > most_ns + bounds.late_ns) {
        let late_ms = (seen.invoked_ns - most_ns) / 1_000_000;
        verdict.found("not expired", [seen.invoked], format!("lease {id} was alive {late_ms} ms after its time"));
    }
}

/// A deletion that a watcher saw, of a key that had a lease.
struct Deletion {
    entry: usize,
    time_ns: u64,
    key: Blob,
    lease: i64,
}

fn deletions(history: &History, truth: &Store) -> Vec<Deletion> {
    let mut deletions = Vec::new();
    for (entry, line) in history.entries().iter().enumerate() {
        let Event::Watch(note) = &line.event else { continue };
        let WatchSeen::Events { events, .. } = &note.seen else { continue };
        for event in events.iter().filter(|event| event.delete) {
            let before = truth.at(event.key(), event.revision() - 1);
            if let Some(before) = before.filter(|before| before.lease != 0) {
                let key = event.key().clone();
                deletions.push(Deletion { entry, time_ns: line.time_ns, key, lease: before.lease });
            }
        }
    }
    deletions
}

fn judge_keys(id: i64, lease: &Lease, deletions: &[Deletion], bounds: Bounds, verdict: &mut Verdict) {
    for deletion in deletions.iter().filter(|deletion| deletion.lease == id) {
        verdict.count("deletions of leased keys", 1);
        let until_ns = lease.must_live_until_ns(deletion.entry);
        if !lease.is_revoked_before(deletion.entry) && deletion.time_ns + bounds.early_ns < until_ns {
            let early_ms = (until_ns - deletion.time_ns) / 1_000_000;
            let explanation = format!("{} was deleted {early_ms} ms before lease {id} had its time", deletion.key);
            verdict.found("expired early", [deletion.entry], explanation);
        }
    }
}

/// What a lease takes with it goes at one revision. Left out are keys that a client may have deleted.
fn judge_atomic(truth: &Store, leases: &BTreeMap<i64, Lease>, by_clients: &[Keys], verdict: &mut Verdict) {
    let mut by_revision: BTreeMap<i64, BTreeSet<Blob>> = BTreeMap::new();
    for (revision, key, kv) in truth.written(0..=truth.revision()) {
        if kv.is_none() {
            by_revision.entry(revision).or_default().insert(key.clone());
        }
    }
    for (revision, deleted) in &by_revision {
        if deleted.iter().any(|key| by_clients.iter().any(|keys| keys.contains(key))) {
            continue;
        }
        let of = |key: &Blob| truth.at(key, revision - 1).map_or(0, |before| before.lease);
        let gone: BTreeSet<i64> = deleted.iter().map(of).filter(|lease| leases.contains_key(lease)).collect();
        for lease in gone {
            let held = truth.range(&Keys::all(), revision - 1).filter(|kv| kv.lease == lease);
            let held: BTreeSet<&Blob> = held.map(|kv| &kv.key).collect();
            let some_left: Vec<&&Blob> = held.iter().filter(|key| !deleted.contains(**key)).collect();
            if !some_left.is_empty() || deleted.iter().any(|key| of(key) != lease) {
                let explanation =
                    format!("revision {revision} took {deleted:?} of lease {lease} and left {some_left:?}");
                verdict.found("lease by halves", [], explanation);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            history::{KeyValue, WatchEvent},
            tape::{Tape, kv},
        },
        *,
    };

    const BOUNDS: Bounds = Bounds { early_ns: 100_000_000, late_ns: 2_000_000_000 };

    fn granted(tape: &mut Tape) -> &mut Tape {
        tape.done(1, Request::LeaseGrant { lease: 7, ttl_s: 2 }, 1, Answer::LeaseGrant { lease: 7, ttl_s: 2 })
    }

    fn told(tape: &mut Tape, ms: u64, ttl_s: i64) {
        let answer = Answer::LeaseTimeToLive { lease: 7, ttl_s, granted_ttl_s: 2, keys: vec![] };
        tape.at_ms(ms).done(1, Request::LeaseTimeToLive { lease: 7, keys: false }, 1, answer);
    }

    fn kept_alive(tape: &mut Tape, ms: u64, ttl_s: i64) {
        let answer = Answer::LeaseKeepAlive { lease: 7, ttl_s };
        tape.at_ms(ms).done(1, Request::LeaseKeepAlive { lease: 7 }, 1, answer);
    }

    fn deleted(tape: &mut Tape, ms: u64) {
        let event = WatchEvent { kv: kv("a", "", (0, 4, 0)), delete: true, prev_kv: None };
        tape.at_ms(ms).seen(1, WatchSeen::Events { revision: 4, fragment: false, events: vec![event] });
    }

    /// Both keys of a lease, and how many of them are deleted at the next revision.
    fn truth(gone: usize) -> Store {
        let mut truth = Store::default();
        for (revision, key) in [(2, "a"), (3, "b")] {
            let leased = KeyValue { lease: 7, ..kv(key, "", (revision, revision, 1)) };
            truth.witness(revision, key.into(), Some(leased));
        }
        for key in ["a", "b"].into_iter().take(gone) {
            truth.witness(4, key.into(), None);
        }
        truth
    }

    fn names(tape: &Tape) -> Vec<&'static str> {
        check(&tape.history, &truth(2), BOUNDS).unwrap().names()
    }

    #[test]
    fn a_lease_that_lives_its_time_is_accepted() {
        let mut tape = Tape::default();
        granted(&mut tape);
        told(&mut tape, 1000, 1);
        kept_alive(&mut tape, 1500, 2);
        told(&mut tape, 3400, 0);
        deleted(&mut tape, 3600);
        told(&mut tape, 3700, -1);
        kept_alive(&mut tape, 3800, 0);
        assert!(check(&tape.history, &truth(2), BOUNDS).unwrap().passes());
        assert!(!check(&Tape::default().history, &truth(2), BOUNDS).unwrap().passes(), "nothing proves nothing");
    }

    #[test]
    fn a_lease_that_is_gone_early_is_found() {
        let mut tape = Tape::default();
        granted(&mut tape);
        told(&mut tape, 1500, -1);
        assert_eq!(names(&tape), ["expired early"]);
        let mut renewed = Tape::default();
        granted(&mut renewed);
        kept_alive(&mut renewed, 1500, 2);
        kept_alive(&mut renewed, 3000, 0);
        assert_eq!(names(&renewed), ["expired early"]);
        let mut keys = Tape::default();
        granted(&mut keys);
        deleted(&mut keys, 1500);
        assert_eq!(names(&keys), ["expired early"]);
    }

    #[test]
    fn a_lease_that_was_revoked_may_be_gone() {
        let mut tape = Tape::default();
        granted(&mut tape).ask(2, Request::LeaseRevoke { lease: 7 }).lost(2);
        deleted(&mut tape, 500);
        told(&mut tape, 600, -1);
        assert!(names(&tape).is_empty());
    }

    #[test]
    fn a_lease_that_does_not_go_is_found() {
        let mut tape = Tape::default();
        granted(&mut tape);
        told(&mut tape, 4500, 0);
        assert_eq!(names(&tape), ["not expired"]);
        let mut unknown = Tape::default();
        granted(&mut unknown).ask(2, Request::LeaseKeepAlive { lease: 7 }).lost(2);
        told(&mut unknown, 4500, 0);
        assert!(names(&unknown).is_empty(), "it may have been renewed");
    }

    #[test]
    fn a_lease_that_takes_some_of_its_keys_is_found() {
        let mut tape = Tape::default();
        granted(&mut tape);
        assert_eq!(check(&tape.history, &truth(1), BOUNDS).unwrap().names(), ["lease by halves"]);
        assert!(check(&tape.history, &truth(2), BOUNDS).unwrap().passes());
        let delete = super::super::history::DeleteRange { keys: Keys::one("a"), prev_kv: false };
        tape.ask(2, Request::DeleteRange(delete)).lost(2);
        assert!(check(&tape.history, &truth(1), BOUNDS).unwrap().passes(), "a client may have deleted it");
    }
}
