//! What checkers say, as the report shows it.

use anyhow::Result;
use jepsen::check::{
    history::{History, Operation, Outcome},
    store::Store,
    verdict,
};

use super::Case;
use crate::test::report::{
    Check, Verdict,
    anomaly::{Anomaly, Step},
    describe, figures, plots,
};

/// What a checker says of a run.
#[derive(Clone)]
pub struct Finding {
    pub check: Check,
    pub anomalies: Vec<Anomaly>,
}

/// More of one kind tell nothing new.
const SHOWN_MAX: usize = 5;

impl Finding {
    /// What became of a step that is no checker's.
    pub fn of_step(name: &str, failed: bool, detail: &str) -> Finding {
        let verdict = if failed { Verdict::Fail } else { Verdict::Pass };
        Finding { check: Check { name: name.to_owned(), verdict, detail: detail.to_owned() }, anomalies: Vec::new() }
    }

    pub fn undecided(name: &str, why: &str) -> Finding {
        let check = Check { name: name.to_owned(), verdict: Verdict::Undecided, detail: why.to_owned() };
        Finding { check, anomalies: Vec::new() }
    }

    pub fn of(name: &str, judged: Result<verdict::Verdict>, history: &History) -> Finding {
        let finding =
            |verdict, detail, anomalies| Finding { check: Check { name: name.to_owned(), verdict, detail }, anomalies };
        let judged = match judged {
            Ok(judged) => judged,
            Err(error) => return finding(Verdict::Fail, format!("no verdict: {error:#}"), Vec::new()),
        };
        let counts: Vec<String> = judged.looked_at.iter().map(|(what, count)| format!("{count} {what}")).collect();
        let counts = counts.join(", ");
        if !judged.anomalies.is_empty() {
            let detail = format!("{}: {} in {counts}", judged.names().join(", "), judged.anomalies.len());
            let operations = history.operations().unwrap_or_default();
            let shown = judged.anomalies.iter().take(SHOWN_MAX);
            let anomalies = shown.map(|anomaly| explain(name, anomaly, history, &operations)).collect();
            return finding(Verdict::Fail, detail, anomalies);
        }
        if judged.passes() {
            return finding(Verdict::Pass, counts, Vec::new());
        }
        let why = match judged.undecided.as_slice() {
            [] => "nothing was looked at".to_owned(),
            undecided => undecided.join("; "),
        };
        finding(Verdict::Undecided, why, Vec::new())
    }
}

impl Case<'_> {
    /// What a checker says that needs to know what happened.
    pub fn against_truth(&self, name: &str, check: impl FnOnce(&Store) -> Result<verdict::Verdict>) -> Finding {
        match self.truth {
            Ok(truth) => Finding::of(name, check(truth), self.history),
            Err(why) => Finding::undecided(name, why),
        }
    }
}

fn explain(name: &str, anomaly: &verdict::Anomaly, history: &History, operations: &[Operation]) -> Anomaly {
    let culprits: Vec<&Operation> = operations.iter().filter(|operation| shows(operation, &anomaly.entries)).collect();
    Anomaly {
        title: format!("{name}: {}", anomaly.name),
        text: anomaly.explanation.clone(),
        steps: culprits.into_iter().map(|operation| step(operation, history)).collect(),
    }
}

fn shows(operation: &Operation, entries: &[usize]) -> bool {
    entries.iter().any(|entry| *entry == operation.invoked || *entry == operation.ended())
}

fn step(operation: &Operation, history: &History) -> Step {
    let time = |entry: usize| figures::seconds(history.entries()[entry].time_ns);
    let (outcome, end) = match &operation.outcome {
        Outcome::Ok { ended, .. } => (plots::Outcome::Ok, Some(time(*ended))),
        Outcome::Failed { ended, .. } => (plots::Outcome::Fail, Some(time(*ended))),
        Outcome::Unknown { .. } => (plots::Outcome::Info, None),
    };
    Step {
        process: operation.process,
        text: describe::operation(&operation.request, operation.response()),
        begin: time(operation.invoked),
        end,
        outcome,
    }
}
