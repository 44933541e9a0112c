//! The history of a run, in the shape that Jepsen gave it: what each process asked, what it was told, and when.
//!
//! A process does one thing at a time. It *invokes* an operation, and later that ends in one of three ways:
//!
//! | end | meaning |
//! |---|---|
//! | `ok` | it was done, and this is what was answered |
//! | `fail` | it was certainly not done, and never will be |
//! | `info` | nobody knows: it may have been done, or be done at any later time, or never |
//!
//! An operation without an end is as one that ended with `info`. After `info` a process goes on under another number,
//! since in truth its operation still runs. Watches and faults are not operations: what is seen of them is noted as it
//! comes.
//!
//! The order of the entries is the order of time. Who records them writes an invocation down before it is sent and an
//! end after it has come.

mod blob;
mod lines;
mod operation;
mod request;
mod response;
mod run;
mod watch;
mod wire;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use blob::Blob;
pub use operation::{Operation, Outcome};
pub use request::{
    AuthChange, Compare, CompareResult, CompareTarget, DeleteRange, Keys, ListOp, Permission, Put, Range, RegisterOp,
    Request, Txn, TxnOp,
};
pub use response::{Answer, Header, KeyValue, Response, TxnResult};
pub use run::{RunNote, Setup};
pub use watch::{WatchEvent, WatchRequest, WatchSeen};

/// One line of a history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Since the beginning of the run, by a clock that never goes back.
    pub time_ns: u64,
    pub process: u64,
    /// The member that was asked, where one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    #[serde(flatten)]
    pub event: Event,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event {
    Invoke(Request),
    Ok(Response),
    Fail(Failure),
    Info(Failure),
    Watch(WatchNote),
    Fault(FaultNote),
    Run(RunNote),
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    pub error: String,
}

/// What one watcher saw. A watcher is a watch as its owner sees it: it may be resumed, on other members too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WatchNote {
    pub watcher: u64,
    #[serde(flatten)]
    pub seen: WatchSeen,
}

/// What the nemesis did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FaultNote {
    /// Joins the beginning of a fault with its end.
    pub fault: u64,
    pub name: String,
    /// Those that it is done to.
    pub nodes: Vec<String>,
    pub phase: FaultPhase,
    /// What shows that it took effect: packets dropped, bytes lost, leaders changed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub counters: BTreeMap<String, u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultPhase {
    Begin,
    /// The nemesis has taken the fault back; the cluster need not have recovered.
    End,
}

/// All of a run, in the order of time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    entries: Vec<Entry>,
}

impl History {
    /// # Panics
    /// When the entry is earlier than the one before.
    pub fn push(&mut self, entry: Entry) {
        let last = self.last_ns();
        assert!(entry.time_ns >= last, "an entry of {} ns after one of {last} ns", entry.time_ns);
        self.entries.push(entry);
    }

    /// When the last entry was written.
    pub fn last_ns(&self) -> u64 {
        self.entries.last().map_or(0, |last| last.time_ns)
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }
}
