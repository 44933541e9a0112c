//! Faults, made on purpose and taken back.
//!
//! A nemesis strikes, the fault lasts as long as the driver lets it, and it is healed. What it did is counted, and a
//! count that stays zero over a run shows that the fault never took effect: such a run proves nothing.

mod clock;
mod compaction;
mod disk;
mod files;
mod members;
mod metrics;
mod mixed;
mod network;
mod power;
mod process;
mod resources;
mod snapshots;
mod system_call;
pub mod victims;

use std::time::Instant;

use anyhow::{Result, bail};
use futures::future::BoxFuture;
use rand::rngs::StdRng;

use super::nodes::{Needs, Nodes, damage};
use files::Files;
pub use mixed::Mixed;
use network::{Kind, Network};
use snapshots::DamagedSnapshot;
use system_call::SystemCall;

/// What was done, and to whom.
#[derive(Clone, Debug)]
pub struct Fault {
    pub at: Instant,
    pub description: String,
    /// The names of the nodes that it concerns.
    pub victims: Vec<String>,
}

/// What came of a fault, known once it is healed.
#[derive(Clone, Debug)]
pub struct Effect {
    pub at: Instant,
    pub description: String,
    /// What proves that the fault took effect. Over a run each must come to more than zero.
    pub counters: Vec<(&'static str, u64)>,
}

pub trait Nemesis: Send {
    fn name(&self) -> &'static str;

    /// What the cluster must be made with for it.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// Makes the fault. Whatever it is, a quorum survives it, or comes back when it is healed.
    fn strike<'a>(&'a mut self, nodes: &'a mut Nodes, random: &'a mut StdRng) -> BoxFuture<'a, Result<Fault>>;

    /// Takes the fault back. All nodes run then, though they may still have to catch up.
    fn heal<'a>(&'a mut self, nodes: &'a mut Nodes, random: &'a mut StdRng) -> BoxFuture<'a, Result<Effect>>;
}

impl Fault {
    fn new(nodes: &Nodes, victims: &[usize], at: Instant, description: String) -> Fault {
        let victims = victims.iter().map(|victim| nodes.name(*victim).to_owned()).collect();
        Fault { at, description, victims }
    }
}

impl Effect {
    fn now(description: impl Into<String>, counters: &[(&'static str, u64)]) -> Effect {
        Effect { at: Instant::now(), description: description.into(), counters: counters.to_vec() }
    }
}

/// Each nemesis by its name.
const ALL: &[(&str, fn() -> Box<dyn Nemesis>)] = &[
    ("kill", || Box::new(process::Kill::default())),
    ("pause", || Box::new(process::Pause::default())),
    ("restart-all", || Box::new(process::RestartAll::default())),
    ("rolling-restart", || Box::new(process::RollingRestart)),
    ("slow-cpu", || Box::new(resources::SlowCpu::default())),
    ("memory-pressure", || Box::new(resources::MemoryPressure::default())),
    ("partition-halves", || Box::new(Network::new(Kind::Halves))),
    ("partition-ring", || Box::new(Network::new(Kind::MajorityRing))),
    ("partition-one-way", || Box::new(Network::new(Kind::OneWay))),
    ("partition-leader", || Box::new(Network::new(Kind::Leader))),
    ("partition-flapping", || Box::new(Network::new(Kind::Flapping))),
    ("lossy-links", || Box::new(Network::new(Kind::Lossy))),
    ("slow-links", || Box::new(Network::new(Kind::Slow))),
    ("reordering-links", || Box::new(Network::new(Kind::Reordering))),
    ("duplicating-links", || Box::new(Network::new(Kind::Duplicating))),
    ("narrow-links", || Box::new(Network::new(Kind::Narrow))),
    ("power-cut", || Box::new(power::PowerCut::new())),
    ("power-cut-any-subset", || Box::new(power::PowerCut::of_any_subset())),
    ("slow-sync", || Box::new(disk::SlowSync::default())),
    ("sync-error", || Box::new(disk::SyncError::default())),
    ("lost-syncs", || Box::new(disk::LostSyncs::default())),
    ("fdatasync-error", || Box::new(SystemCall::new(system_call::Kind::Error))),
    ("fdatasync-kill", || Box::new(SystemCall::new(system_call::Kind::Kill))),
    ("disk-full", || Box::new(disk::DiskFull::default())),
    ("bad-sectors", || Box::new(disk::BadSectors::default())),
    ("bit-flip", || Box::new(Files::new(files::Kind::BitFlip))),
    ("bit-flip-running", || Box::new(Files::new(files::Kind::BitFlipRunning))),
    ("truncation", || Box::new(Files::new(files::Kind::Truncation))),
    ("clock", || Box::new(clock::Clocks::default())),
    ("compaction-storm", || Box::new(compaction::CompactionStorm::default())),
    ("replace-member", || Box::new(members::Replace::default())),
    ("add-remove-member", || Box::new(members::AddRemove)),
    ("move-leader", || Box::new(members::MoveLeader::default())),
    ("lagging-member", || Box::new(members::Lag::default())),
    ("snapshot-bit-flip", || Box::new(DamagedSnapshot::new(damage::Kind::Flip))),
    ("snapshot-truncation", || Box::new(DamagedSnapshot::new(damage::Kind::Cut))),
    ("mixed", || Box::new(Mixed::default())),
];

pub fn names() -> Vec<&'static str> {
    ALL.iter().map(|(name, _)| *name).collect()
}

pub fn by_name(name: &str) -> Result<Box<dyn Nemesis>> {
    match ALL.iter().find(|(known, _)| *known == name) {
        Some((_, make)) => Ok(make()),
        None => bail!("no nemesis {name}; there are: {}", names().join(", ")),
    }
}
