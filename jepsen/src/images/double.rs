//! Doubles of the machine or of the code that do something wrong, to see that it is found.

use std::collections::{HashMap, HashSet};

use super::{
    recover::Outcome,
    trace::{Inode, Op, Slot, Trace},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Double {
    /// What is appended to the log is not synced.
    LogNotSynced,
    /// The files of the store are not synced.
    StoreNotSynced,
    /// Directories are not synced.
    DirectoriesNotSynced,
    /// Recovery forgets the newest promise.
    BallotForgotten,
    /// What the store applied and where it says to be are one entry apart.
    AppliedApart,
}

impl Double {
    /// The trace of a program that leaves syncs out.
    pub fn change_trace(self, trace: &mut Trace) {
        let files = files_of(trace);
        // A new segment's header is synced in any case: without it there is no log at all.
        let mut has_header = HashSet::new();
        for op in &mut trace.ops {
            if let Op::Write { file, offset: 0, .. } = op {
                has_header.insert(*file);
            }
            let Op::Sync { node, .. } = op else { continue };
            let is_new = has_header.remove(node);
            let is_left_out = match (self, files.get(node)) {
                (Double::LogNotSynced, Some(slot)) => &*slot.name == "new" && !is_new,
                (Double::StoreNotSynced, Some(slot)) => slot.name.ends_with(".sst"),
                (Double::DirectoriesNotSynced, None) => true,
                _ => false,
            };
            if is_left_out {
                *op = Op::SyncRange;
            }
        }
    }

    /// The outcome of a recovery that goes wrong.
    pub fn change_outcome(self, outcome: &mut Outcome) {
        let Outcome::Recovered(found) = outcome else { return };
        match self {
            Double::BallotForgotten => found.ballot = None,
            Double::AppliedApart => {
                if let Some(applied) = &mut found.applied {
                    applied.index = applied.index.saturating_sub(1);
                }
            }
            _ => {}
        }
    }
}

/// Files, with the name that each was made with; a segment is made as `new`.
fn files_of(trace: &Trace) -> HashMap<Inode, Slot> {
    let made = trace.ops.iter().filter_map(|op| match op {
        Op::Create { slot, file } => Some((*file, slot.clone())),
        _ => None,
    });
    made.collect()
}
