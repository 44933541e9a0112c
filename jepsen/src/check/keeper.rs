//! Leases that a client keeps alive by itself: none ends while the cluster could be asked, and whoever keeps it is told
//! when it ends.
//!
//! A lease is kept from the first keep-alive of it that was waited for until it is revoked. Its end is where its keeper
//! was told that it is gone, or where a watcher sees one of its keys go.
//!
//! | found | meaning |
//! |---|---|
//! | lapsed | a kept lease ended, although during all of its time writes were acknowledged, a third of it apart at most |
//! | not told | others saw keys of a kept lease go, and its keeper was not told in time |
//!
//! Whether the cluster could be asked is judged by what anybody else achieved: a client that renews when a third of the
//! time is over, and then goes from member to member, must have found one of those that answered.

use std::collections::HashMap;

use anyhow::Result;

use super::{
    history::{Answer, Blob, Event, History, Operation, Outcome, Request, TxnOp, WatchSeen},
    verdict::Verdict,
};

/// How long after others a keeper may learn that its keys are gone, on a machine with much else to do.
const TOLD_LIMIT_NS: u64 = 2_000_000_000;

#[derive(Debug, Default)]
struct Lease {
    ttl_ns: u64,
    /// Where it was first kept.
    kept: Option<usize>,
    /// When somebody asked for its end; until then it is kept.
    revoked_ns: Option<u64>,
    /// When the keeper was told that it is gone.
    told: Option<(usize, u64)>,
    /// When others saw a key of it go.
    seen: Option<(usize, u64)>,
    keys: u64,
}

pub fn check(history: &History) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    let operations = history.operations()?;
    let end_ns = history.entries().last().map_or(0, |entry| entry.time_ns);
    let successes = successes(history);
    for (id, lease) in leases(history, &operations) {
        let Some(kept) = lease.kept else { continue };
        verdict.count("leases kept", 1);
        verdict.count("keys under them", lease.keys as usize);
        let is_kept = |at: &(usize, u64)| lease.revoked_ns.is_none_or(|revoked| at.1 < revoked);
        let (told, seen) = (lease.told.filter(is_kept), lease.seen.filter(is_kept));
        let Some((entry, at_ns)) = told.into_iter().chain(seen).min_by_key(|(_, at_ns)| *at_ns) else { continue };
        verdict.count("leases that ended while they were kept", 1);
        let outage_ns = longest_outage(&successes, at_ns.saturating_sub(lease.ttl_ns), at_ns);
        if outage_ns < lease.ttl_ns / 3 {
            let explanation = format!(
                "lease {id:x} of {} ms ended, although nobody waited longer than {} ms for a write meanwhile",
                lease.ttl_ns / 1_000_000,
                outage_ns / 1_000_000
            );
            verdict.found("lapsed", [kept, entry], explanation);
        }
        let Some((entry, seen_ns)) = seen else { continue };
        let until_ns = seen_ns + TOLD_LIMIT_NS;
        let had_time = until_ns < lease.revoked_ns.unwrap_or(end_ns);
        if lease.told.map_or(had_time, |(_, told_ns)| told_ns > until_ns) {
            let explanation = format!("a key of lease {id:x} was seen to go, and whoever kept it was not told");
            verdict.found("not told", [kept, entry], explanation);
        }
    }
    Ok(verdict)
}

/// When writes were acknowledged, in the order of time.
fn successes(history: &History) -> Vec<u64> {
    let is_one = |event: &Event| match event {
        Event::Ok(response) => matches!(
            response.answer,
            Answer::Put { .. } | Answer::Txn { .. } | Answer::DeleteRange { .. } | Answer::LeaseGrant { .. }
        ),
        _ => false,
    };
    history.entries().iter().filter(|entry| is_one(&entry.event)).map(|entry| entry.time_ns).collect()
}

/// The longest time without a success between these times.
fn longest_outage(successes: &[u64], from_ns: u64, to_ns: u64) -> u64 {
    let within = successes.iter().copied().filter(|at_ns| (from_ns..to_ns).contains(at_ns));
    let mut last_ns = from_ns;
    let mut longest_ns = 0;
    for at_ns in within.chain([to_ns]) {
        longest_ns = longest_ns.max(at_ns - last_ns);
        last_ns = at_ns;
    }
    longest_ns
}

fn leases(history: &History, operations: &[Operation]) -> HashMap<i64, Lease> {
    let mut leases: HashMap<i64, Lease> = HashMap::new();
    let mut keys: HashMap<&Blob, i64> = HashMap::new();
    // Keys that whoever held them has given up, and when.
    let mut left: HashMap<&Blob, u64> = HashMap::new();
    for operation in operations {
        match (&operation.request, operation.response().map(|response| &response.answer)) {
            (Request::LeaseGrant { .. }, Some(Answer::LeaseGrant { lease, ttl_s })) => {
                leases.entry(*lease).or_default().ttl_ns = ttl_s.unsigned_abs() * 1_000_000_000;
            }
            (Request::LeaseKeepAlive { lease }, answer) => {
                let of = leases.entry(*lease).or_default();
                of.kept.get_or_insert(operation.invoked);
                if let (Some(Answer::LeaseKeepAlive { ttl_s: ..=0, .. }), Outcome::Ok { ended, ended_ns, .. }) =
                    (answer, &operation.outcome)
                {
                    of.told.get_or_insert((*ended, *ended_ns));
                }
            }
            (Request::LeaseRevoke { lease }, _) => {
                leases.entry(*lease).or_default().revoked_ns.get_or_insert(operation.invoked_ns);
            }
            (Request::Campaign { lease, .. }, Some(Answer::Campaign { leader, .. })) => {
                bind(&mut leases, &mut keys, *lease, leader);
            }
            (Request::Resign { leader, .. }, _) => {
                left.entry(leader).or_insert(operation.invoked_ns);
            }
            (Request::Put(put), _) if operation.may_have_happened() => {
                bind(&mut leases, &mut keys, put.lease, &put.key);
            }
            (Request::Txn(txn), _) if operation.may_have_happened() => {
                for op in &txn.success {
                    if let TxnOp::Put(put) = op {
                        bind(&mut leases, &mut keys, put.lease, &put.key);
                    }
                }
            }
            _ => {}
        }
    }
    for (index, entry) in history.entries().iter().enumerate() {
        let Event::Watch(note) = &entry.event else { continue };
        let WatchSeen::Events { events, .. } = &note.seen else { continue };
        let is_left = |key| left.get(key).is_some_and(|left_ns| *left_ns <= entry.time_ns);
        for event in events.iter().filter(|event| event.delete && !is_left(event.key())) {
            if let Some(lease) = keys.get(event.key()).and_then(|id| leases.get_mut(id)) {
                lease.seen.get_or_insert((index, entry.time_ns));
            }
        }
    }
    leases
}

/// Each key is put under one lease only.
fn bind<'a>(leases: &mut HashMap<i64, Lease>, keys: &mut HashMap<&'a Blob, i64>, lease: i64, key: &'a Blob) {
    if lease != 0 {
        leases.entry(lease).or_default().keys += 1;
        keys.insert(key, lease);
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            history::{KeyValue, Put, WatchEvent},
            tape::Tape,
        },
        *,
    };

    const TTL_S: i64 = 6;

    fn kept(tape: &mut Tape) {
        tape.done(1, Request::LeaseGrant { lease: 7, ttl_s: TTL_S }, 1, Answer::LeaseGrant { lease: 7, ttl_s: TTL_S });
        let put = Put { key: "k".into(), lease: 7, ..Put::default() };
        tape.done(1, Request::Put(put), 2, Answer::Put { prev_kv: None });
        tape.ask(1, Request::LeaseKeepAlive { lease: 7 });
    }

    fn writes(tape: &mut Tape, ms: impl Iterator<Item = u64>) {
        for ms in ms {
            tape.at_ms(ms).put(2, "other", "", 3);
        }
    }

    fn told(tape: &mut Tape) {
        tape.told(1, 0, Answer::LeaseKeepAlive { lease: 7, ttl_s: 0 });
    }

    fn key_goes(tape: &mut Tape) {
        let kv = KeyValue { key: "k".into(), mod_revision: 9, ..KeyValue::default() };
        let events = vec![WatchEvent { kv, delete: true, prev_kv: None }];
        tape.seen(1, WatchSeen::Events { revision: 9, fragment: false, events });
    }

    fn names(tape: &Tape) -> Vec<&'static str> {
        check(&tape.history).unwrap().names()
    }

    #[test]
    fn a_lease_that_is_kept_until_it_is_revoked_is_accepted() {
        let mut tape = Tape::default();
        kept(&mut tape);
        tape.told(1, 0, Answer::LeaseKeepAlive { lease: 7, ttl_s: TTL_S });
        writes(&mut tape, (0..20).map(|second| 1000 * second + 1));
        tape.done(1, Request::LeaseRevoke { lease: 7 }, 9, Answer::LeaseRevoke);
        key_goes(&mut tape);
        assert!(check(&tape.history).unwrap().passes());
        assert!(!check(&Tape::default().history).unwrap().passes(), "nothing proves nothing");
    }

    #[test]
    fn a_lock_that_is_given_up_says_nothing_of_its_lease() {
        for is_given_up in [true, false] {
            let mut tape = Tape::default();
            kept(&mut tape);
            let campaign = Request::Campaign { name: "l".into(), lease: 7, value: "".into() };
            tape.done(2, campaign, 0, Answer::Campaign { leader: "k".into(), create_revision: 2 });
            writes(&mut tape, (0..10).map(|second| 1000 * second + 1));
            if is_given_up {
                tape.done(2, Request::Resign { leader: "k".into(), create_revision: 2 }, 0, Answer::Resign);
            }
            key_goes(&mut tape);
            assert_eq!(names(&tape).is_empty(), is_given_up);
        }
    }

    #[test]
    fn a_lease_that_ends_while_others_write_has_lapsed() {
        let mut tape = Tape::default();
        kept(&mut tape);
        writes(&mut tape, (0..10).map(|second| 1000 * second + 1));
        told(&mut tape);
        assert_eq!(names(&tape), ["lapsed"]);
    }

    #[test]
    fn a_lease_that_ends_in_an_outage_is_nobodys_fault() {
        let mut tape = Tape::default();
        kept(&mut tape);
        writes(&mut tape, [1, 1000, 2000, 3000, 5500, 6500].into_iter());
        tape.at_ms(7000);
        told(&mut tape);
        assert!(check(&tape.history).unwrap().passes());
    }

    #[test]
    fn a_keeper_that_is_not_told_is_found() {
        for is_told_late in [true, false] {
            let mut tape = Tape::default();
            kept(&mut tape);
            tape.at_ms(7000);
            key_goes(&mut tape);
            tape.at_ms(9500);
            if is_told_late {
                told(&mut tape);
            } else {
                tape.put(2, "other", "", 3);
            }
            assert_eq!(names(&tape), ["not told"]);
        }
    }

    #[test]
    fn a_keeper_that_is_told_at_about_the_same_time_is_told() {
        let mut tape = Tape::default();
        kept(&mut tape);
        tape.at_ms(7000);
        key_goes(&mut tape);
        tape.at_ms(7500);
        told(&mut tape);
        tape.at_ms(20_000).put(2, "other", "", 3);
        assert!(names(&tape).is_empty());
    }
}
