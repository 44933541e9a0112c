//! Serializable reads: old perhaps, but never wrong and never older than before.
//!
//! A serializable read is answered by the member that is asked, from what it has applied. It may be stale. But what it
//! tells must be the store as it was at the revision in its header, and a member does not go back: a read that begins
//! after an answer of the same member has come is not of a lower revision. A member whose process ended may go back to
//! what it had made durable.

use std::collections::HashMap;

use anyhow::Result;

use super::{
    history::{Answer, Event, FaultPhase, History, Outcome, Range, Request},
    store::Store,
    verdict::Verdict,
};

/// Judges them against the store as it was at each revision. `stopping`: the names of the faults that end processes; one
/// that names no members may end any of them, until it has ended itself.
pub fn check(history: &History, truth: &Store, stopping: &[&str]) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    let mut reads = Vec::new();
    for operation in history.operations()? {
        let (Request::Range(range), Outcome::Ok { ended, response, .. }) = (operation.request, operation.outcome)
        else {
            continue;
        };
        if !range.serializable {
            continue;
        }
        verdict.count("serializable reads", 1);
        let revision = response.header.revision;
        judge_content(operation.invoked, &range, revision, &response.answer, truth, &mut verdict);
        if let Some(node) = operation.node {
            reads.push(Read { node, invoked: operation.invoked, ended, revision });
        }
    }
    judge_order(history, reads, stopping, &mut verdict);
    Ok(verdict)
}

struct Read {
    node: String,
    invoked: usize,
    ended: usize,
    revision: i64,
}

fn judge_content(entry: usize, range: &Range, revision: i64, answer: &Answer, truth: &Store, verdict: &mut Verdict) {
    if revision > truth.revision() {
        let explanation = format!("told of revision {revision}, when the newest is {}", truth.revision());
        verdict.found("never existed", [entry], explanation);
        return;
    }
    let expected = truth.read_at(range, revision);
    if expected != *answer {
        let explanation = format!("at revision {revision} was {expected:?}, and {answer:?} was told");
        verdict.found("never existed", [entry], explanation);
    }
}

/// Goes through the history: what has been told by each member, and what was known when a read began.
fn judge_order(history: &History, reads: Vec<Read>, stopping: &[&str], verdict: &mut Verdict) {
    let mut told: HashMap<String, i64> = HashMap::new();
    let mut least: HashMap<usize, i64> = HashMap::new();
    let by_end: HashMap<usize, Read> = reads.into_iter().map(|read| (read.ended, read)).collect();
    let mut stops: HashMap<String, usize> = HashMap::new();
    // What was asked before this says nothing: members that nobody named were stopped.
    let mut stopped_until = 0;
    let begins: HashMap<usize, &str> = by_end.values().map(|read| (read.invoked, read.node.as_str())).collect();
    for (entry, line) in history.entries().iter().enumerate() {
        if let Event::Fault(fault) = &line.event
            && stopping.contains(&fault.name.as_str())
        {
            if fault.nodes.is_empty() {
                // Any member may stop at any time until it ends.
                told.clear();
                stopped_until = if fault.phase == FaultPhase::Begin { usize::MAX } else { entry };
            } else if fault.phase == FaultPhase::Begin {
                for node in &fault.nodes {
                    told.remove(node);
                    stops.insert(node.clone(), entry);
                }
            }
        }
        if let Some(node) = begins.get(&entry) {
            least.insert(entry, told.get(*node).copied().unwrap_or(0));
        }
        let Some(read) = by_end.get(&entry) else { continue };
        // An answer from before the stop may come after it, and says nothing of what the member is to know then.
        if stopped_until > read.invoked || stops.get(&read.node).is_some_and(|stop| *stop > read.invoked) {
            continue;
        }
        if read.revision < least[&read.invoked] {
            let explanation = format!("{} told {} after {}", read.node, read.revision, least[&read.invoked]);
            verdict.found("went back", [read.invoked], explanation);
        }
        let highest = told.entry(read.node.clone()).or_default();
        *highest = read.revision.max(*highest);
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            history::{Entry, FaultNote, Header, KeyValue, Keys, Response},
            tape::{Tape, kv, range_of},
        },
        *,
    };

    /// Revision 2: a = 1. Revision 3: a = 2.
    fn truth() -> Store {
        let mut truth = Store::default();
        truth.witness(2, "a".into(), Some(kv("a", "1", (2, 2, 1))));
        truth.witness(3, "a".into(), Some(kv("a", "2", (2, 3, 2))));
        truth
    }

    fn push(tape: &mut Tape, process: u64, node: &str, event: Event) {
        let time_ns = tape.history.entries().len() as u64;
        tape.history.push(Entry { time_ns, process, node: Some(node.to_owned()), event });
    }

    fn read(tape: &mut Tape, node: &str, revision: i64, kvs: Vec<KeyValue>) {
        let request = Range { keys: Keys::one("a"), serializable: true, ..Range::default() };
        push(tape, 1, node, Event::Invoke(Request::Range(request)));
        let header = Header { revision, ..Header::default() };
        push(tape, 1, node, Event::Ok(Response { header, answer: range_of(kvs) }));
    }

    fn kill(tape: &mut Tape, nodes: &[&str], phase: FaultPhase) {
        let nodes = nodes.iter().map(|node| node.to_string()).collect();
        let fault = FaultNote { fault: 1, name: "kill".to_owned(), nodes, phase, counters: [].into() };
        push(tape, 9, "nemesis", Event::Fault(fault));
    }

    fn first() -> Vec<KeyValue> {
        vec![kv("a", "1", (2, 2, 1))]
    }

    fn second() -> Vec<KeyValue> {
        vec![kv("a", "2", (2, 3, 2))]
    }

    fn judged(reads: &[(&str, i64, Vec<KeyValue>)]) -> Verdict {
        let mut tape = Tape::default();
        for (node, revision, kvs) in reads {
            read(&mut tape, node, *revision, kvs.clone());
        }
        check(&tape.history, &truth(), &["kill"]).unwrap()
    }

    #[test]
    fn old_reads_are_accepted_as_long_as_each_member_goes_on() {
        let reads = [("n1", 3, second()), ("n2", 1, vec![]), ("n2", 2, first()), ("n2", 3, second())];
        assert!(judged(&reads).passes(), "{}", judged(&reads));
        assert!(!judged(&[]).passes(), "nothing proves nothing");
    }

    #[test]
    fn a_member_that_goes_back_is_found() {
        assert_eq!(judged(&[("n1", 3, second()), ("n1", 2, first())]).names(), ["went back"]);
    }

    #[test]
    fn a_member_that_was_killed_may_go_back() {
        let mut tape = Tape::default();
        read(&mut tape, "n1", 3, second());
        kill(&mut tape, &["n1"], FaultPhase::Begin);
        read(&mut tape, "n1", 2, first());
        assert!(check(&tape.history, &truth(), &["kill"]).unwrap().passes());
        assert_eq!(check(&tape.history, &truth(), &["power cut"]).unwrap().names(), ["went back"]);
        read(&mut tape, "n1", 1, vec![]);
        assert_eq!(check(&tape.history, &truth(), &["kill"]).unwrap().names(), ["went back"]);
    }

    #[test]
    fn as_long_as_nobody_says_who_is_killed_any_member_may_go_back() {
        let mut tape = Tape::default();
        let names = |tape: &Tape| check(&tape.history, &truth(), &["kill"]).unwrap().names();
        read(&mut tape, "n1", 3, second());
        kill(&mut tape, &[], FaultPhase::Begin);
        read(&mut tape, "n1", 2, first());
        read(&mut tape, "n1", 1, vec![]);
        kill(&mut tape, &[], FaultPhase::End);
        read(&mut tape, "n1", 2, first());
        assert!(names(&tape).is_empty());
        read(&mut tape, "n1", 1, vec![]);
        assert_eq!(names(&tape), ["went back"]);
    }

    #[test]
    fn a_state_that_never_existed_is_found() {
        assert_eq!(judged(&[("n1", 2, second())]).names(), ["never existed"]);
        assert_eq!(judged(&[("n1", 3, vec![])]).names(), ["never existed"]);
        assert_eq!(judged(&[("n1", 4, second())]).names(), ["never existed"]);
    }
}
