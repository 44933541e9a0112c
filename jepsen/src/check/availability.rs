//! How long nobody got anything done.
//!
//! A success is an answer to anything that needs a quorum. For each fault, from its beginning until a while after it was
//! taken back, the longest time without a success is told; after it was taken back, the first success must come within
//! a bound. Whether a fault may stop the cluster while it lasts is for the caller to say.

use std::collections::HashMap;

use anyhow::Result;

use super::{
    history::{Event, FaultNote, FaultPhase, History, Outcome},
    linearizability::is_local,
    verdict::Verdict,
};

/// What is asked of a run.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// From the end of a fault to the next success.
    pub heal_ns: u64,
    /// Without a success while a fault lasts that leaves a quorum; `None`: it is told only.
    pub outage_ns: Option<u64>,
}

/// The longest time without a success around one fault.
#[derive(Clone, Debug, PartialEq)]
pub struct Outage {
    pub fault: String,
    pub nodes: Vec<String>,
    pub begin_ns: u64,
    /// `None`: it lasts to the end of the run.
    pub end_ns: Option<u64>,
    /// From its beginning to the first success after its end.
    pub longest_ns: u64,
    /// From its end to the first success after it.
    pub recovery_ns: Option<u64>,
}

pub fn check(history: &History, bounds: Bounds) -> Result<(Verdict, Vec<Outage>)> {
    let successes = successes(history)?;
    let run_ends_ns = history.entries().last().map_or(0, |entry| entry.time_ns);
    let mut verdict = Verdict::default();
    verdict.count("successes", successes.len());
    let mut outages = Vec::new();
    for (entry, note, begin_ns, end_ns) in faults(history) {
        verdict.count("faults", 1);
        let outage = measure(note, begin_ns, end_ns, &successes, run_ends_ns);
        judge(entry, &outage, bounds, run_ends_ns, &mut verdict);
        outages.push(outage);
    }
    Ok((verdict, outages))
}

/// When answers came that needed a quorum, ascending.
fn successes(history: &History) -> Result<Vec<u64>> {
    let mut successes: Vec<u64> = Vec::new();
    for operation in history.operations()? {
        if let Outcome::Ok { ended_ns, .. } = operation.outcome
            && !is_local(&operation.request)
        {
            successes.push(ended_ns);
        }
    }
    successes.sort_unstable();
    Ok(successes)
}

/// Each fault with its beginning and its end.
fn faults(history: &History) -> Vec<(usize, &FaultNote, u64, Option<u64>)> {
    let mut faults: Vec<(usize, &FaultNote, u64, Option<u64>)> = Vec::new();
    let mut places: HashMap<u64, usize> = HashMap::new();
    for (entry, line) in history.entries().iter().enumerate() {
        let Event::Fault(note) = &line.event else { continue };
        match note.phase {
            FaultPhase::Begin => {
                places.insert(note.fault, faults.len());
                faults.push((entry, note, line.time_ns, None));
            }
            FaultPhase::End => {
                if let Some(place) = places.get(&note.fault) {
                    faults[*place].3 = Some(line.time_ns);
                }
            }
        }
    }
    faults
}

fn measure(note: &FaultNote, begin_ns: u64, end_ns: Option<u64>, successes: &[u64], run_ends_ns: u64) -> Outage {
    let recovered_ns = end_ns.and_then(|end_ns| {
        let after = successes.partition_point(|success| *success < end_ns);
        successes.get(after).copied()
    });
    let until_ns = recovered_ns.unwrap_or(run_ends_ns);
    let first = successes.partition_point(|success| *success <= begin_ns);
    // A silence that began before the fault is not all its own, but cannot be told apart from it.
    let mut last_ns = begin_ns;
    let mut longest_ns = 0;
    for success_ns in successes[first..].iter().copied().take_while(|success| *success < until_ns).chain([until_ns]) {
        longest_ns = longest_ns.max(success_ns.saturating_sub(last_ns));
        last_ns = success_ns;
    }
    Outage {
        fault: note.name.clone(),
        nodes: note.nodes.clone(),
        begin_ns,
        end_ns,
        longest_ns,
        recovery_ns: recovered_ns.zip(end_ns).map(|(recovered_ns, end_ns)| recovered_ns - end_ns),
    }
}

fn judge(entry: usize, outage: &Outage, bounds: Bounds, run_ends_ns: u64, verdict: &mut Verdict) {
    let ms = |ns: u64| ns / 1_000_000;
    let shown = format!("{} on {:?}", outage.fault, outage.nodes);
    let waited_ns = outage.end_ns.map_or(0, |end_ns| run_ends_ns - end_ns);
    if outage.recovery_ns.unwrap_or(waited_ns) > bounds.heal_ns {
        let explanation = match outage.recovery_ns {
            Some(recovery_ns) => format!("{shown}: the first success came {} ms after it was healed", ms(recovery_ns)),
            None => format!("{shown}: no success in the {} ms after it was healed", ms(waited_ns)),
        };
        verdict.found("not recovered", [entry], explanation);
    }
    if bounds.outage_ns.is_some_and(|bound| outage.longest_ns > bound) {
        verdict.found("outage", [entry], format!("{shown}: {} ms without a success", ms(outage.longest_ns)));
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tape::Tape, *};

    const MS: u64 = 1_000_000;

    fn fault(tape: &mut Tape, number: u64, phase: FaultPhase) {
        let nodes = vec!["n1".to_owned()];
        let note = FaultNote { fault: number, name: "kill".to_owned(), nodes, phase, counters: [].into() };
        tape.note(99, Event::Fault(note));
    }

    /// A fault from 1 s to 2 s, and successes at these moments.
    fn run(successes_ms: &[u64]) -> Tape {
        let mut tape = Tape::default();
        let mut moments: Vec<(u64, Option<FaultPhase>)> = successes_ms.iter().map(|ms| (*ms, None)).collect();
        moments.extend([(1000, Some(FaultPhase::Begin)), (2000, Some(FaultPhase::End))]);
        moments.sort_by_key(|(ms, _)| *ms);
        for (ms, phase) in moments {
            tape.at_ms(ms);
            match phase {
                Some(phase) => fault(&mut tape, 1, phase),
                None => drop(tape.put(1, "a", "", 2)),
            }
        }
        tape
    }

    fn judged(tape: &Tape, outage_ns: Option<u64>) -> (Verdict, Vec<Outage>) {
        check(&tape.history, Bounds { heal_ns: 500 * MS, outage_ns }).unwrap()
    }

    #[test]
    fn outage_and_recovery_are_measured() {
        let (verdict, outages) = judged(&run(&[900, 1100, 1600, 2200, 9000]), None);
        assert!(verdict.passes(), "{verdict}");
        assert_eq!(outages.len(), 1);
        assert_eq!(outages[0].longest_ns / MS, 600);
        assert_eq!(outages[0].recovery_ns.map(|ns| ns / MS), Some(200));
    }

    #[test]
    fn a_cluster_that_does_not_come_back_is_found() {
        assert_eq!(judged(&run(&[900, 1100, 2600]), None).0.names(), ["not recovered"]);
        let mut never = run(&[900, 1100]);
        never.at_ms(5000).ask(2, super::super::tape::put("a", "")).lost(2);
        assert_eq!(judged(&never, None).0.names(), ["not recovered"]);
    }

    #[test]
    fn an_outage_that_is_too_long_is_found() {
        let tape = run(&[900, 1950, 2100]);
        assert_eq!(judged(&tape, Some(500 * MS)).0.names(), ["outage"]);
        assert!(judged(&tape, Some(1000 * MS)).0.passes());
    }

    #[test]
    fn a_local_answer_is_no_success() {
        use super::super::history::{Keys, Range, Request};
        let mut tape = run(&[900, 1100]);
        let local = Range { keys: Keys::one("a"), serializable: true, ..Range::default() };
        tape.at_ms(2100).done(1, Request::Range(local), 2, super::super::tape::range_of(vec![]));
        tape.at_ms(3000).put(1, "a", "", 3);
        assert_eq!(judged(&tape, None).0.names(), ["not recovered"]);
    }
}
