//! A counter: the version of a key, to which each put adds one.
//!
//! A read must tell at least the puts that were acknowledged before it began, and at most those that had begun when it
//! ended and have not failed. Of two reads the later one must not tell less. No two puts may have counted from the same
//! version.

use std::collections::HashMap;

use anyhow::Result;

use super::{
    history::{Answer, Blob, History, Outcome, Request},
    linearizability::is_local,
    verdict::Verdict,
};

/// A version that was told, and when that was asked and answered.
struct Told {
    invoked: usize,
    ended: usize,
    version: i64,
}

pub fn check(history: &History, key: &Blob) -> Result<Verdict> {
    // Where puts began and where they were acknowledged, ascending.
    let (mut begun, mut acknowledged): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
    let (mut reads, mut counted): (Vec<Told>, Vec<Told>) = (Vec::new(), Vec::new());
    for operation in history.operations()? {
        let invoked = operation.invoked;
        match &operation.request {
            Request::Put(put) if put.key == *key && operation.may_have_happened() => {
                begun.push(invoked);
                let Outcome::Ok { ended, response, .. } = &operation.outcome else { continue };
                acknowledged.push(*ended);
                if let (true, Answer::Put { prev_kv }) = (put.prev_kv, &response.answer) {
                    let before = prev_kv.as_ref().map_or(0, |kv| kv.version);
                    counted.push(Told { invoked, ended: *ended, version: before + 1 });
                }
            }
            Request::Range(range) if range.keys.is_one() && range.keys.key == *key && range.revision == 0 => {
                let Outcome::Ok { ended, response, .. } = &operation.outcome else { continue };
                let Answer::Range { kvs, .. } = &response.answer else { continue };
                if !is_local(&operation.request) {
                    reads.push(Told { invoked, ended: *ended, version: kvs.first().map_or(0, |kv| kv.version) });
                }
            }
            _ => {}
        }
    }
    acknowledged.sort_unstable();
    let mut verdict = Verdict::default();
    verdict.count("increments acknowledged", acknowledged.len());
    verdict.count("reads of the counter", reads.len());
    judge_doubled(&counted, &mut verdict);
    for told in reads.iter().chain(&counted) {
        judge_bounds(told, &begun, &acknowledged, &mut verdict);
    }
    judge_order(reads, &mut verdict);
    Ok(verdict)
}

fn judge_bounds(told: &Told, begun: &[usize], acknowledged: &[usize], verdict: &mut Verdict) {
    let least = acknowledged.partition_point(|ended| *ended < told.invoked) as i64;
    let most = begun.partition_point(|invoked| *invoked < told.ended) as i64;
    let name = match told.version {
        version if version < least => "lost increment",
        version if version > most => "phantom increment",
        _ => return,
    };
    verdict.found(name, [told.invoked], format!("told {}, expected {least} to {most}", told.version));
}

fn judge_doubled(counted: &[Told], verdict: &mut Verdict) {
    let mut by_version: HashMap<i64, usize> = HashMap::new();
    for told in counted {
        if let Some(other) = by_version.insert(told.version, told.invoked) {
            let explanation = format!("two puts both counted to {}", told.version);
            verdict.found("doubled version", [other, told.invoked], explanation);
        }
    }
}

fn judge_order(mut reads: Vec<Told>, verdict: &mut Verdict) {
    reads.sort_by_key(|read| read.invoked);
    let mut ended: Vec<(usize, i64, usize)> =
        reads.iter().map(|read| (read.ended, read.version, read.invoked)).collect();
    ended.sort_unstable();
    let mut ended = ended.into_iter().peekable();
    let mut highest = (0, 0);
    for read in reads {
        while let Some((_, version, entry)) = ended.next_if(|(ended, _, _)| *ended < read.invoked) {
            highest = highest.max((version, entry));
        }
        let (before, entry) = highest;
        if read.version < before {
            let explanation = format!("told {} after {before} had been told", read.version);
            verdict.found("went back", [entry, read.invoked], explanation);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            history::{KeyValue, Put},
            tape::{Tape, kv, put},
        },
        *,
    };

    fn at(version: i64) -> Vec<KeyValue> {
        vec![kv("c", "", (2, 2, version))]
    }

    fn names(tape: &Tape) -> Vec<&'static str> {
        check(&tape.history, &"c".into()).unwrap().names()
    }

    #[test]
    fn a_counter_between_its_bounds_is_accepted() {
        let mut tape = Tape::default();
        tape.get(1, "c", 1, vec![]).put(1, "c", "", 2).ask(2, put("c", "")).lost(2);
        tape.ask(3, put("c", "")).failed(3, "refused").get(1, "c", 2, at(1)).get(1, "c", 3, at(2)).put(1, "x", "", 4);
        assert!(check(&tape.history, &"c".into()).unwrap().passes());
    }

    #[test]
    fn a_counter_that_lost_or_invented_is_found() {
        let mut lost = Tape::default();
        lost.put(1, "c", "", 2).put(1, "c", "", 3).get(1, "c", 3, at(1));
        assert_eq!(names(&lost), ["lost increment"]);
        let mut phantom = Tape::default();
        phantom.put(1, "c", "", 2).ask(3, put("c", "")).failed(3, "refused").get(1, "c", 3, at(2));
        assert_eq!(names(&phantom), ["phantom increment"]);
    }

    #[test]
    fn a_counter_that_goes_back_is_found() {
        let mut tape = Tape::default();
        tape.ask(2, put("c", "")).lost(2).get(1, "c", 2, at(1)).get(3, "c", 2, vec![]);
        assert_eq!(names(&tape), ["went back"]);
    }

    #[test]
    fn two_puts_that_count_from_the_same_version_are_found() {
        let put = || Request::Put(Put { key: "c".into(), prev_kv: true, ..Put::default() });
        let mut tape = Tape::default();
        tape.ask(1, put()).ask(2, put());
        tape.told(1, 2, Answer::Put { prev_kv: None }).told(2, 3, Answer::Put { prev_kv: None });
        assert_eq!(names(&tape), ["doubled version"]);
    }
}
