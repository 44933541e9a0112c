//! A history as what a page shows of it.

use std::collections::HashMap;

use super::{
    FaultRow,
    plots::{Fault, Operation, Outcome, Run},
};
use crate::test::recorder;
use jepsen::check::history::{self, Event, FaultPhase, History, Request};

pub fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

/// The name of an operation, as it stands in the history.
pub fn name(request: &Request) -> &'static str {
    match request {
        Request::Put(_) => "put",
        Request::Range(range) if range.serializable => "range (serializable)",
        Request::Range(_) => "range",
        Request::DeleteRange(_) => "delete_range",
        Request::Txn(_) => "txn",
        Request::Compact { .. } => "compact",
        Request::LeaseGrant { .. } => "lease_grant",
        Request::LeaseRevoke { .. } => "lease_revoke",
        Request::LeaseKeepAlive { .. } => "lease_keep_alive",
        Request::LeaseTimeToLive { .. } => "lease_time_to_live",
        Request::Lock { .. } => "lock",
        Request::Unlock { .. } => "unlock",
        Request::Campaign { .. } => "campaign",
        Request::Proclaim { .. } => "proclaim",
        Request::Leader { .. } => "leader",
        Request::Resign { .. } => "resign",
        Request::HashKv { .. } => "hash_kv",
        Request::Defragment => "defragment",
        Request::Snapshot => "snapshot",
        Request::Watch { .. } => "watch",
        Request::Auth(_) => "auth",
        Request::As { request, .. } => name(request),
        Request::Append { .. } => "append",
        Request::Registers { .. } => "registers",
    }
}

/// What the plots show of a history. An operation of unknown outcome is drawn for as long as its process waited for
/// it; one that nobody waited for, to the end of the run.
pub fn run_of(history: &History) -> anyhow::Result<Run> {
    let end_ns = history.entries().last().map_or(1, |entry| entry.time_ns.max(1));
    let entries = history.entries();
    let given_up: HashMap<u64, u64> = entries
        .iter()
        .filter(|entry| matches!(entry.event, Event::Info(_)))
        .map(|entry| (entry.process, entry.time_ns))
        .collect();
    let operations = history
        .operations()?
        .into_iter()
        .map(|operation| {
            let (outcome, end_ns) = match &operation.outcome {
                history::Outcome::Ok { ended_ns, .. } => (Outcome::Ok, *ended_ns),
                history::Outcome::Failed { ended, .. } => (Outcome::Fail, entries[*ended].time_ns),
                history::Outcome::Unknown { .. } => {
                    (Outcome::Info, given_up.get(&operation.process).copied().unwrap_or(end_ns))
                }
            };
            Operation {
                process: operation.process,
                name: name(&operation.request),
                begin: seconds(operation.invoked_ns),
                end: seconds(end_ns),
                outcome,
            }
        })
        .collect();
    let faults = spans(history);
    let faults = faults
        .iter()
        .map(|span| Fault {
            name: span.name.clone(),
            detail: span.detail.clone(),
            begin: seconds(span.begin_ns),
            end: seconds(span.end_ns),
        })
        .collect();
    Ok(Run { operations, faults, seconds: seconds(end_ns) })
}

/// A fault from its begin to its end.
pub struct Span {
    pub name: String,
    pub detail: String,
    pub effect: String,
    pub begin_ns: u64,
    pub end_ns: u64,
}

pub fn spans(history: &History) -> Vec<Span> {
    let end_ns = history.entries().last().map_or(0, |entry| entry.time_ns);
    let mut spans: Vec<(u64, Span)> = Vec::new();
    for entry in history.entries() {
        let Event::Fault(note) = &entry.event else { continue };
        let counters: Vec<String> = note.counters.iter().map(|(name, count)| format!("{name} {count}")).collect();
        match note.phase {
            FaultPhase::Begin => {
                let (name, detail, effect) = (note.name.clone(), note.nodes.join(", "), counters.join(", "));
                spans.push((note.fault, Span { name, detail, effect, begin_ns: entry.time_ns, end_ns }));
            }
            FaultPhase::End => {
                if let Some((_, span)) = spans.iter_mut().find(|(fault, _)| *fault == note.fault) {
                    span.end_ns = entry.time_ns;
                    span.effect = counters.join(", ");
                }
            }
        }
    }
    spans.into_iter().map(|(_, span)| span).collect()
}

/// By fault, how long no write succeeded, and how long after its end one did. `until_ns` is when the load ended.
pub fn fault_rows(history: &History, until_ns: u64) -> Vec<FaultRow> {
    let successes: Vec<u64> = history
        .entries()
        .iter()
        .filter(|entry| entry.time_ns <= until_ns && recorder::is_acknowledged_write(&entry.event))
        .map(|entry| entry.time_ns)
        .collect();
    let spans = spans(history);
    let mut rows = Vec::with_capacity(spans.len());
    for (index, span) in spans.iter().enumerate() {
        let until = spans.get(index + 1).map_or(until_ns, |next| next.begin_ns.max(span.end_ns)).min(until_ns);
        let recovered = successes[successes.partition_point(|time| *time < span.end_ns)..].first();
        rows.push(FaultRow {
            name: span.name.clone(),
            detail: span.detail.clone(),
            effect: span.effect.clone(),
            begin: seconds(span.begin_ns),
            end: seconds(span.end_ns),
            outage_ms: seconds(longest_gap(&successes, span.begin_ns, until)) * 1000.0,
            recovery_ms: seconds(recovered.copied().unwrap_or(until_ns).saturating_sub(span.end_ns)) * 1000.0,
        });
    }
    rows
}

/// The longest time within these bounds in which nothing succeeded.
fn longest_gap(successes: &[u64], from: u64, until: u64) -> u64 {
    let first = successes.partition_point(|time| *time < from);
    let within = successes[first..].iter().copied().take_while(|time| *time <= until);
    let mut last = from;
    let mut longest = 0;
    for time in within.chain([until.max(from)]) {
        longest = longest.max(time - last);
        last = time;
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_reaches_to_both_bounds() {
        let successes = [10, 20, 50, 60];
        assert_eq!(longest_gap(&successes, 0, 100), 40);
        assert_eq!(longest_gap(&successes, 12, 60), 30);
        assert_eq!(longest_gap(&successes, 70, 100), 30);
        assert_eq!(longest_gap(&[], 5, 8), 3);
    }
}
