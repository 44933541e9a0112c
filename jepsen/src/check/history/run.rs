//! What a run says of itself, so that its history alone can be judged again.

use serde::{Deserialize, Serialize};

use super::request::is_default;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "note", rename_all = "snake_case")]
pub enum RunNote {
    /// What is run. The first line.
    Begin(Setup),
    /// The process of this line begins, and belongs to this workload.
    Process { workload: String },
    /// All faults are healed and something has succeeded since: nothing is asked for any more but to see the end.
    LoadEnds,
    /// Nothing is written any more, and observers are given time to see this revision.
    Quiet { revision: i64 },
    /// What became of a step that is no checker's: of the nemesis, of processes, of the wait until all members agree.
    Step {
        name: String,
        #[serde(default, skip_serializing_if = "is_default")]
        failed: bool,
        detail: String,
    },
    /// The last line: a history without it was cut.
    End,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    /// The command that runs it again.
    pub command: String,
    /// The server's name.
    pub server: String,
    /// Those that share the cluster.
    pub workloads: Vec<String>,
    /// None: no faults. Several: any of them each time.
    pub nemeses: Vec<String>,
    pub members: usize,
    pub seed: u64,
    pub seconds: u64,
}

impl Setup {
    pub fn title(&self) -> String {
        let one = |names: &[String], none: &str, several: &str| match names {
            [] => none.to_owned(),
            [name] => name.clone(),
            _ => several.to_owned(),
        };
        let workload = one(&self.workloads, "nothing", "mixed");
        format!("{workload} under {}", one(&self.nemeses, "no faults", "mixed faults"))
    }
}
