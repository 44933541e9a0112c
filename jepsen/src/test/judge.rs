//! What a history says: the verdict of each check, and the page about the run.
//!
//! Nothing else is asked, neither clock nor cluster, so that a run is judged by what it kept, and a kept history can be
//! judged again, by later checkers too.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::{Context as _, Result, bail, ensure};
use jepsen::check::{
    history::{Event, FaultPhase, History, Request, RunNote, Setup},
    store::Store,
    verdict,
};

use super::{
    recorder::WITNESS,
    report::{Check, Page, Verdict, anomaly::Anomaly, figures},
    workload::{self, Case, Finding, Workload},
};

/// A run with fewer successes than this a second, faults and all, proves nothing.
const SUCCESSES_PER_SECOND_MIN: f64 = 2.0;

/// Judges a run by its history.
///
/// # Errors
/// When the history does not say what was run, or is not whole.
pub fn judge(history: &History) -> Result<Page> {
    let run = Run::of(history)?;
    // A history that cannot be is an error before it is anything else.
    let plots = figures::run_of(history)?;
    let mut findings = run.steps.clone();
    let truth = run.truth(history);
    for workload in &run.workloads {
        findings.extend(run.findings_of(workload, history, &truth));
    }
    let (mut checks, anomalies): (Vec<Check>, Vec<Vec<Anomaly>>) =
        findings.into_iter().map(|finding| (finding.check, finding.anomalies)).unzip();
    checks.push(run.proves_something(history));
    Ok(Page {
        title: run.setup.title(),
        settings: run.settings(),
        figures: run.figures(history),
        checks,
        anomalies: anomalies.into_iter().flatten().collect(),
        faults: figures::fault_rows(history, run.load_end_ns),
        run: plots,
    })
}

/// What a history says of its run.
struct Run<'a> {
    setup: &'a Setup,
    workloads: Vec<&'static Workload>,
    /// By process.
    workload_of: HashMap<u64, &'a str>,
    steps: Vec<Finding>,
    load_end_ns: u64,
    /// The revision that observers have had time to see.
    quiet_at: Option<i64>,
}

impl<'a> Run<'a> {
    fn of(history: &'a History) -> Result<Run<'a>> {
        let Some((first, last)) = history.entries().first().zip(history.entries().last()) else {
            bail!("the history is empty");
        };
        let Event::Run(RunNote::Begin(setup)) = &first.event else {
            bail!("line 1 does not say what was run");
        };
        let is_whole = last.event == Event::Run(RunNote::End);
        ensure!(is_whole, "line {}, the last, is not the end of a run: the history was cut", history.entries().len());
        let known = |name: &String| workload::by_name(name).with_context(|| format!("line 1: no workload {name}"));
        let workloads = setup.workloads.iter().map(known).collect::<Result<_>>()?;
        let mut run = Run {
            setup,
            workloads,
            workload_of: HashMap::new(),
            steps: Vec::new(),
            load_end_ns: last.time_ns,
            quiet_at: None,
        };
        for entry in history.entries() {
            let Event::Run(note) = &entry.event else { continue };
            match note {
                RunNote::Begin(_) | RunNote::End => {}
                RunNote::Process { workload } => drop(run.workload_of.insert(entry.process, workload)),
                RunNote::LoadEnds => run.load_end_ns = entry.time_ns,
                RunNote::Quiet { revision } => run.quiet_at = Some(*revision),
                RunNote::Step { name, failed, detail } => run.steps.push(Finding::of_step(name, *failed, detail)),
            }
        }
        Ok(run)
    }

    fn findings_of(&self, workload: &Workload, history: &History, truth: &Result<Store, String>) -> Vec<Finding> {
        let own = self.part_of(history, workload);
        let mut found = (workload.check)(&Case { history: &own, truth, quiet_at: self.quiet_at });
        if found.is_empty() {
            found.push(Finding::of("operations", Ok(verdict::Verdict::default()), &own));
        }
        for finding in &mut found {
            finding.check.name = format!("{}: {}", workload.name, finding.check.name);
        }
        found
    }

    /// What one workload did, with the faults; and with all compactions, if they matter to it.
    fn part_of(&self, history: &History, workload: &Workload) -> History {
        // Whoever compacts does nothing else.
        let compactors: HashSet<u64> = history
            .entries()
            .iter()
            .filter(|entry| workload.observers > 0 && matches!(entry.event, Event::Invoke(Request::Compact { .. })))
            .map(|entry| entry.process)
            .collect();
        let belongs = |process: u64| {
            let of = self.workload_of.get(&process);
            of.is_none_or(|of| *of == workload.name || *of == WITNESS) || compactors.contains(&process)
        };
        let mut own = History::default();
        for entry in history.entries().iter().filter(|entry| belongs(entry.process)) {
            own.push(entry.clone());
        }
        own
    }

    /// What the witness saw.
    fn truth(&self, history: &History) -> Result<Store, String> {
        let witness = history.entries().iter().find_map(|entry| match &entry.event {
            Event::Watch(note) if self.workload_of.get(&entry.process) == Some(&WITNESS) => Some(note.watcher),
            _ => None,
        });
        let witness = witness.ok_or("there was no witness")?;
        jepsen::check::watch::truth_of(history, witness, Store::default()).map_err(|error| format!("{error:#}"))
    }

    /// A run in which little happened passes every checker.
    fn proves_something(&self, history: &History) -> Check {
        let successes = successes(history);
        let wanted = (self.setup.seconds as f64 * SUCCESSES_PER_SECOND_MIN) as usize;
        let (faults, counters) = toll(history);
        let without_effect: Vec<&str> =
            counters.iter().filter(|(_, count)| **count == 0).map(|(name, _)| name.as_str()).collect();
        let result = match () {
            () if successes < wanted => Err(format!("{successes} operations succeeded; {wanted} are wanted")),
            () if !self.setup.nemeses.is_empty() && faults == 0 => Err("no fault was made".to_owned()),
            () if !without_effect.is_empty() => Err(format!("without effect: {}", without_effect.join(", "))),
            () => Ok(format!("{successes} operations succeeded")),
        };
        let verdict = if result.is_ok() { Verdict::Pass } else { Verdict::Fail };
        let (Ok(detail) | Err(detail)) = result;
        Check { name: "the run proves something".to_owned(), verdict, detail }
    }

    fn settings(&self) -> Vec<(String, String)> {
        let about: Vec<&str> = self.workloads.iter().map(|workload| workload.about).collect();
        let setup = self.setup;
        [
            ("again", setup.command.clone()),
            ("server", setup.server.clone()),
            ("workloads", setup.workloads.join(", ")),
            ("members", setup.members.to_string()),
            ("seed", setup.seed.to_string()),
            ("time", format!("{} s", setup.seconds)),
            ("what must hold", about.join("; ")),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    fn figures(&self, history: &History) -> Vec<(String, String)> {
        let (faults, counters) = toll(history);
        let mut figures = vec![
            ("entries in the history".to_owned(), history.entries().len().to_string()),
            ("operations that succeeded".to_owned(), successes(history).to_string()),
            ("faults".to_owned(), faults.to_string()),
        ];
        figures.extend(counters.into_iter().map(|(name, count)| (name, count.to_string())));
        if let Some(revision) = self.quiet_at {
            figures.push(("revision when nothing was written any more".to_owned(), revision.to_string()));
        }
        figures
    }
}

fn successes(history: &History) -> usize {
    history.entries().iter().filter(|entry| matches!(entry.event, Event::Ok(_))).count()
}

/// How many faults were made, and what took effect. By what is counted; each must have come to something.
fn toll(history: &History) -> (u64, BTreeMap<String, u64>) {
    let (mut faults, mut counters) = (0, BTreeMap::new());
    for entry in history.entries() {
        let Event::Fault(note) = &entry.event else { continue };
        faults += u64::from(note.phase == FaultPhase::Begin);
        for (name, count) in &note.counters {
            *counters.entry(name.clone()).or_default() += count;
        }
    }
    (faults, counters)
}
