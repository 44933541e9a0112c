//! A set that only grows, as in Jepsen's `set-full`: each element is a key that is put once, a read is a range over all.
//!
//! An element is *known* from the moment its put is acknowledged or a read has seen it. From then on each read that
//! begins must have it.
//!
//! | found | meaning |
//! |---|---|
//! | lost | known, and missing in the last reads that began after |
//! | stale | known, missing in a read that began after, and there again later |
//! | duplicated | twice in one read |
//! | phantom | read, though its put failed or nobody made it |
//!
//! An element that was acknowledged and that no read looked for afterwards leaves the verdict open.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};

use super::{
    history::{Answer, Blob, History, Keys, Operation, Outcome, Request},
    linearizability::is_local,
    verdict::Verdict,
};

/// What is known of one element.
#[derive(Default)]
struct Element {
    put: Option<Put>,
    /// Where it became known.
    known: Option<usize>,
    /// Reads that began when it was known, in the order of their ends, and whether they had it.
    looked_for: Vec<(usize, bool)>,
}

#[derive(Clone, Copy)]
struct Put {
    entry: usize,
    acknowledged: bool,
}

struct Read {
    invoked: usize,
    ended: usize,
    elements: Vec<Blob>,
}

/// Judges the elements among these keys, which nobody deletes.
pub fn check(history: &History, keys: &Keys) -> Result<Verdict> {
    let operations = history.operations()?;
    let mut elements: BTreeMap<Blob, Element> = BTreeMap::new();
    let mut reads = Vec::new();
    for operation in &operations {
        match &operation.request {
            Request::Put(put) if keys.contains(&put.key) => take_put(&mut elements, &put.key, operation)?,
            Request::Range(range) if range.keys == *keys && !is_local(&operation.request) => {
                reads.extend(read_of(operation));
            }
            Request::DeleteRange(delete) => {
                ensure!(!keys.contains(&delete.keys.key), "entry {} deletes an element", operation.invoked);
            }
            _ => {}
        }
    }
    reads.sort_by_key(|read| read.ended);
    let mut verdict = Verdict::default();
    verdict.count("elements", elements.len());
    verdict.count("reads of all", reads.len());
    for read in &reads {
        take_read(&mut elements, read, &mut verdict);
    }
    for read in &reads {
        look_for_known(&mut elements, read);
    }
    for (key, element) in &elements {
        judge(key, element, &mut verdict);
    }
    Ok(verdict)
}

fn take_put(elements: &mut BTreeMap<Blob, Element>, key: &Blob, operation: &Operation) -> Result<()> {
    let element = elements.entry(key.clone()).or_default();
    ensure!(element.put.is_none(), "entry {} puts {key} again", operation.invoked);
    if !operation.may_have_happened() {
        return Ok(());
    }
    let acknowledged = operation.response().is_some();
    element.put = Some(Put { entry: operation.invoked, acknowledged });
    if acknowledged {
        element.known = Some(operation.ended());
    }
    Ok(())
}

fn read_of(operation: &Operation) -> Option<Read> {
    let Outcome::Ok { ended, response, .. } = &operation.outcome else { return None };
    let Answer::Range { kvs, more: false, .. } = &response.answer else { return None };
    let elements = kvs.iter().map(|kv| kv.key.clone()).collect();
    Some(Read { invoked: operation.invoked, ended: *ended, elements })
}

fn take_read(elements: &mut BTreeMap<Blob, Element>, read: &Read, verdict: &mut Verdict) {
    let mut seen: BTreeSet<&Blob> = BTreeSet::new();
    for key in &read.elements {
        if !seen.insert(key) {
            verdict.found("duplicated", [read.invoked], format!("{key} is twice in one read"));
        }
        let element = elements.entry(key.clone()).or_default();
        if element.put.is_none_or(|put| put.entry > read.ended) {
            verdict.found("phantom", [read.invoked], format!("{key} was read, and nobody had put it"));
        }
        element.known = Some(element.known.map_or(read.ended, |known| known.min(read.ended)));
    }
}

fn look_for_known(elements: &mut BTreeMap<Blob, Element>, read: &Read) {
    let seen: BTreeSet<&Blob> = read.elements.iter().collect();
    for (key, element) in elements {
        if element.known.is_some_and(|known| known < read.invoked) {
            element.looked_for.push((read.invoked, seen.contains(key)));
        }
    }
}

fn judge(key: &Blob, element: &Element, verdict: &mut Verdict) {
    let missing: Vec<usize> = element.looked_for.iter().filter(|(_, there)| !there).map(|(entry, _)| *entry).collect();
    match element.looked_for.last() {
        Some((_, false)) => verdict.found("lost", missing, format!("{key} was known, and is gone")),
        Some((_, true)) if !missing.is_empty() => {
            let explanation = format!("{key} was known, and missing in {} reads before it was back", missing.len());
            verdict.found("stale", missing, explanation);
        }
        None if element.put.is_some_and(|put| put.acknowledged) => {
            verdict.undecided.push(format!("{key} was acknowledged, and no read looked for it afterwards"));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            history::Range,
            tape::{Tape, kv, put, range_of},
        },
        *,
    };

    fn all() -> Request {
        Request::Range(Range { keys: Keys::prefix("s/"), ..Range::default() })
    }

    fn with(elements: &[&str]) -> Answer {
        range_of(elements.iter().map(|element| kv(element, "", (2, 2, 1))).collect())
    }

    fn verdict(tape: &Tape) -> Verdict {
        check(&tape.history, &Keys::prefix("s/")).unwrap()
    }

    #[test]
    fn a_set_that_keeps_all_is_accepted() {
        let mut tape = Tape::default();
        tape.put(1, "s/1", "", 2).ask(2, put("s/2", "")).lost(2).ask(3, put("s/3", "")).lost(3);
        tape.ask(4, put("s/4", "")).failed(4, "refused").put(1, "other", "", 3);
        tape.done(1, all(), 4, with(&["s/1", "s/2"]));
        assert!(verdict(&tape).passes(), "{}", verdict(&tape));
    }

    #[test]
    fn a_put_that_runs_may_be_seen_or_not() {
        let mut tape = Tape::default();
        tape.ask(1, put("s/1", "")).ask(2, all()).ask(3, all());
        tape.told(2, 2, with(&["s/1"])).told(3, 1, with(&[])).told(1, 2, Answer::Put { prev_kv: None });
        tape.done(2, all(), 2, with(&["s/1"]));
        assert!(verdict(&tape).passes(), "{}", verdict(&tape));
    }

    #[test]
    fn a_lost_element_is_found() {
        let mut tape = Tape::default();
        tape.put(1, "s/1", "", 2).done(1, all(), 2, with(&["s/1"])).done(1, all(), 2, with(&[]));
        assert_eq!(verdict(&tape).names(), ["lost"]);
        let mut never_seen = Tape::default();
        never_seen.put(1, "s/1", "", 2).done(1, all(), 2, with(&[]));
        assert_eq!(verdict(&never_seen).names(), ["lost"]);
        let mut seen = Tape::default();
        seen.ask(1, put("s/1", "")).lost(1).done(2, all(), 2, with(&["s/1"])).done(2, all(), 2, with(&[]));
        assert_eq!(verdict(&seen).names(), ["lost"], "what was seen is known");
    }

    #[test]
    fn a_stale_read_is_found() {
        let mut tape = Tape::default();
        tape.put(1, "s/1", "", 2).done(1, all(), 1, with(&[])).done(1, all(), 2, with(&["s/1"]));
        assert_eq!(verdict(&tape).names(), ["stale"]);
    }

    #[test]
    fn an_element_that_is_doubled_or_nobodys_is_found() {
        let mut tape = Tape::default();
        tape.put(1, "s/1", "", 2).done(1, all(), 2, with(&["s/1", "s/1"]));
        assert_eq!(verdict(&tape).names(), ["duplicated"]);
        let mut tape = Tape::default();
        tape.ask(1, put("s/1", "")).failed(1, "refused").done(1, all(), 2, with(&["s/1", "s/2"]));
        assert_eq!(verdict(&tape).anomalies.len(), 2);
        assert_eq!(verdict(&tape).names(), ["phantom"]);
        let mut early = Tape::default();
        early.done(2, all(), 2, with(&["s/1"])).put(1, "s/1", "", 2).done(1, all(), 2, with(&["s/1"]));
        assert_eq!(verdict(&early).names(), ["phantom"]);
    }

    #[test]
    fn an_element_that_no_read_looked_for_leaves_it_open() {
        let mut tape = Tape::default();
        tape.done(1, all(), 1, with(&[])).put(1, "s/1", "", 2);
        assert!(!verdict(&tape).passes() && verdict(&tape).anomalies.is_empty());
        tape.ask(
            1,
            Request::DeleteRange(super::super::history::DeleteRange { keys: Keys::one("s/1"), prev_kv: false }),
        );
        assert!(check(&tape.history, &Keys::prefix("s/")).is_err());
    }
}
