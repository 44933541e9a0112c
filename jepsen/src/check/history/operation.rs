//! Invocations with their ends.

use std::collections::HashMap;

use anyhow::{Result, bail, ensure};

use super::{Event, History, Request, Response};

/// What one process asked for once.
#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    pub process: u64,
    pub node: Option<String>,
    pub request: Request,
    /// Where its invocation stands in the history.
    pub invoked: usize,
    pub invoked_ns: u64,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Ok { ended: usize, ended_ns: u64, response: Response },
    Failed { ended: usize, error: String },
    Unknown { error: Option<String> },
}

impl Operation {
    /// What was answered, if it was.
    pub fn response(&self) -> Option<&Response> {
        match &self.outcome {
            Outcome::Ok { response, .. } => Some(response),
            Outcome::Failed { .. } | Outcome::Unknown { .. } => None,
        }
    }

    /// Where its end stands in the history; that of an operation of unknown outcome never comes.
    pub fn ended(&self) -> usize {
        match self.outcome {
            Outcome::Ok { ended, .. } | Outcome::Failed { ended, .. } => ended,
            Outcome::Unknown { .. } => usize::MAX,
        }
    }

    pub fn may_have_happened(&self) -> bool {
        !matches!(self.outcome, Outcome::Failed { .. })
    }
}

impl History {
    /// All operations in the order of their invocations.
    pub fn operations(&self) -> Result<Vec<Operation>> {
        let mut operations: Vec<Operation> = Vec::new();
        let mut open: HashMap<u64, usize> = HashMap::new();
        for (index, entry) in self.entries().iter().enumerate() {
            let outcome = match &entry.event {
                Event::Watch(_) | Event::Fault(_) | Event::Run(_) => continue,
                Event::Invoke(request) => {
                    let before = open.insert(entry.process, operations.len());
                    ensure!(before.is_none(), "line {}: process {} does two things at once", index + 1, entry.process);
                    operations.push(Operation {
                        process: entry.process,
                        node: entry.node.clone(),
                        request: request.clone(),
                        invoked: index,
                        invoked_ns: entry.time_ns,
                        outcome: Outcome::Unknown { error: None },
                    });
                    continue;
                }
                Event::Ok(response) => {
                    Outcome::Ok { ended: index, ended_ns: entry.time_ns, response: response.clone() }
                }
                Event::Fail(failure) => Outcome::Failed { ended: index, error: failure.error.clone() },
                Event::Info(failure) => Outcome::Unknown { error: Some(failure.error.clone()) },
            };
            let Some(operation) = open.remove(&entry.process) else {
                bail!("line {}: process {} was told something that it had not asked", index + 1, entry.process);
            };
            operations[operation].outcome = outcome;
        }
        Ok(operations)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Answer, Entry, Failure, Header},
        *,
    };

    fn history(events: Vec<(u64, Event)>) -> Result<Vec<Operation>> {
        let mut history = History::default();
        for (process, event) in events {
            history.push(Entry { time_ns: history.entries().len() as u64, process, node: None, event });
        }
        history.operations()
    }

    fn invoke() -> Event {
        Event::Invoke(Request::Compact { revision: 2 })
    }

    fn ok() -> Event {
        Event::Ok(Response { header: Header::default(), answer: Answer::Compact })
    }

    #[test]
    fn invocations_are_joined_with_their_ends() {
        let failure = || Failure { error: "refused".to_owned() };
        let events = vec![
            (1, invoke()),
            (2, invoke()),
            (3, invoke()),
            (4, invoke()),
            (2, Event::Fail(failure())),
            (1, ok()),
            (3, Event::Info(failure())),
        ];
        let operations = history(events).unwrap();
        assert_eq!(operations.iter().map(Operation::ended).collect::<Vec<usize>>(), [5, 4, usize::MAX, usize::MAX]);
        let possible: Vec<bool> = operations.iter().map(Operation::may_have_happened).collect();
        assert_eq!(possible, [true, false, true, true]);
        assert!(operations[0].response().is_some() && operations[1].response().is_none());
    }

    #[test]
    fn a_process_that_does_two_things_or_is_told_unasked_is_found() {
        assert!(history(vec![(1, invoke()), (1, invoke())]).unwrap_err().to_string().contains("two things at once"));
        assert!(history(vec![(1, ok())]).unwrap_err().to_string().contains("had not asked"));
        assert!(history(vec![(1, invoke()), (1, ok()), (1, ok())]).is_err());
    }
}
